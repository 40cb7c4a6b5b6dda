/** The demo in Chromium: wasm and WebGPU, a worker, what is kept, and what cannot be loaded. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import type { ChatEvent } from "../src/chat.js";
import type * as Library from "../src/web.js";
import { Site, inChromium, openBrowser, openPage, residentBytes } from "./site.js";
import { type Answers, ROOT, WEB_PACKAGE, vectors } from "./support.js";

declare const gptoss: typeof Library;
declare const options: Library.LoadOptions & { ort: string };

const { answers } = vectors<Answers>("answers");
const date = "2026-01-01";
const SHARD = Object.keys(
  JSON.parse(readFileSync(`${WEB_PACKAGE}/manifest.json`, "utf8")).files,
).find((name) => name.includes(".data")) as string;
const QUESTION = [{ role: "user", content: "What does os.path.join do?" }];
const ANSWER = "Join two or more pathname components, inserting '/' as needed.";

inChromium("the demo", () => {
  let site: Site;
  let browser: Browser;
  let page: Page;
  beforeAll(async () => {
    [site, browser] = await Promise.all([Site.start(), openBrowser()]);
  });
  afterAll(() => Promise.all([browser?.close(), site?.stop()]));
  afterEach(async () => {
    site.reset();
    await page?.context().close();
  });

  /** Ids of the greedy replies to `which` answers of the vectors. */
  async function replies(backend: "wasm" | "webgpu", which: Answers["answers"]) {
    page = await openPage(browser, site);
    const asked = which.map((answer) => answer.prompt);
    return page.evaluate(
      async ({ backend, asked }) => {
        const model = await gptoss.GptOss.load("/package", { ...options, backend });
        const all: number[][] = [];
        for (const prompt of asked) {
          const ids: number[] = [];
          for await (const id of model.generate(prompt)) ids.push(id);
          all.push(ids);
        }
        const found = { backend: model.backend, all };
        await model.dispose();
        return found;
      },
      { backend, asked },
    );
  }

  test("answers on wasm are Python's", async () => {
    const which = answers.slice(-3);
    const all = which.map((answer) => answer.reply);
    expect(await replies("wasm", which)).toMatchObject({ backend: { name: "wasm" }, all });
  });

  test("an answer on WebGPU is Python's", async () => {
    const short = answers.filter((answer) => answer.date === null);
    const { backend, all } = await replies("webgpu", short);
    expect(all).toEqual(short.map((answer) => answer.reply));
    // What SwiftShader has and has not; it runs workgroups in any order.
    expect(backend).toMatchObject({
      name: "webgpu",
      graph: "model.onnx",
      activations: "float32",
      graphReason: "model.web.float16.onnx needs shader-f16, which this device lacks",
      chunk: 1,
      chunkReason: expect.stringMatching(/not start workgroups in order \(\d+ of 50 trials/),
    });
  }, 600_000); // every token is computed in software

  test("without a real GPU auto takes wasm and says why", async () => {
    page = await openPage(browser, site);
    const found = await page.evaluate(async () => {
      return (await gptoss.GptOss.load("/package", options)).backend;
    });
    expect(found).toMatchObject({
      name: "wasm",
      reason: expect.stringMatching(/software|no WebGPU/),
    });
  });

  test("a package for Node answers on wasm, and WebGPU says why it cannot", async () => {
    page = await openPage(browser, site);
    const found = await page.evaluate(
      async ({ question, date }) => {
        const load = (backend: "wasm" | "webgpu") =>
          gptoss.GptOss.load("/build/demo-node-int4", { ...options, backend });
        const model = await load("wasm");
        const said = await model.chat(question, { system: { date } }).text();
        return { said, why: await load("webgpu").catch((error: Error) => error.message) };
      },
      { question: QUESTION, date },
    );
    expect(found.said).toBe(ANSWER);
    expect(found.why).toBe(
      "the package's KV cache is windowed, which WebGPU cannot run: use --target web",
    );
  });

  test("the second start needs no network", async () => {
    page = await openPage(browser, site);
    const load = () =>
      page.evaluate(async (question) => {
        const seen: Library.Progress[] = [];
        const model = await gptoss.GptOss.load("/package/", {
          ...options,
          backend: "wasm",
          onProgress: (progress) => seen.push(progress),
        });
        const reply = model.chat(question, { maxNewTokens: 4 });
        await reply.text();
        await model.dispose();
        return { last: seen.at(-1), notCached: model.notCached, tokens: reply.usage.newTokens };
      }, QUESTION);
    const first = await load();
    expect(first).toMatchObject({ last: { stage: "prepare" }, tokens: 4 });
    expect(first.last?.loaded).toBe(first.last?.total);
    expect(first.notCached).toBeUndefined();
    site.requests.length = 0;
    await load();
    expect(site.requests).toEqual(["manifest.json"]);
    site.faults.set("*", null);
    expect(await load()).toEqual(first);
  });

  test("an abort in the middle leaves the model usable", async () => {
    page = await openPage(browser, site);
    const found = await page.evaluate(
      async ({ question, date }) => {
        const model = await gptoss.GptOss.load("/package", { ...options, backend: "wasm" });
        const control = new AbortController();
        const reply = model.chat(question, { signal: control.signal, system: { date } });
        setTimeout(() => control.abort(), 1); // heard only where a page is not blocked
        const cut = await reply.text();
        const whole = await model.chat(question, { system: { date } }).text();
        return { cut, reason: reply.finishReason, whole };
      },
      { question: QUESTION, date },
    );
    expect(found).toEqual({ cut: "", reason: "cancelled", whole: ANSWER });
  });

  test("two hundred turns take no more memory than the first ones", async () => {
    page = await openPage(browser, site);
    await page.evaluate(async () => {
      const model = await gptoss.GptOss.load("/package", { ...options, backend: "wasm" });
      const talk = model.conversation({ system: null, maxNewTokens: 2 });
      Object.assign(globalThis, { talk });
    });
    const turns = (count: number) =>
      page.evaluate(async (count) => {
        const { talk } = globalThis as unknown as { talk: Library.Conversation };
        for (let turn = 0; turn < count; turn++) {
          talk.messages = talk.messages.slice(-1);
          await talk.send(`What does os.path.${turn % 7 ? "join" : "split"} do?`).text();
        }
      }, count);
    await turns(50);
    const before = await residentBytes(browser);
    await turns(150);
    // The KV cache takes 0.15 MB at that length: one lost at each of 300 runs would be 45 MB.
    expect((await residentBytes(browser)) - before).toBeLessThan(20e6);
  }, 180_000);

  test("in a worker the page goes on, events and aborts cross", async () => {
    page = await openPage(browser, site);
    const found = await page.evaluate(
      async ({ question, date }) => {
        const settings = { ...options, backend: "wasm" as const };
        const model = await gptoss.RemoteModel.load("/package", settings);
        let longest = 0;
        let before = performance.now();
        const timer = setInterval(() => {
          const now = performance.now();
          [longest, before] = [Math.max(longest, now - before), now];
        }, 5);
        const talk = model.conversation({ system: { date }, analysis: true });
        const reply = talk.send(question[0].content);
        const events: ChatEvent[] = [];
        for await (const event of reply) events.push(event);
        clearInterval(timer);
        const control = new AbortController();
        const cut = talk.send("again", { signal: control.signal });
        let pieces = 0;
        for await (const _ of cut) if (++pieces === 2) control.abort();
        const left = model.generate([1, 2, 3], { stopIds: [] });
        for await (const _ of left) break;
        const whole = await model.chat(question, { system: { date } }).text();
        const ended = [reply.finishReason, cut.finishReason, left.finishReason];
        await model.dispose();
        const after = await model.chat(question).text().catch((error: Error) => error.name);
        return { events, pieces, ended, whole, messages: talk.messages.length, after };
      },
      { question: QUESTION, date },
    );
    const said = (channel: string) =>
      found.events.filter((e) => e.channel === channel).map((e) => e.text).join("");
    expect(said("final")).toBe(ANSWER);
    expect(said("analysis")).toBe("Look up os.path.join.");
    expect(found.ended).toEqual(["stop", "cancelled", "cancelled"]);
    expect(found.whole).toBe(ANSWER);
    expect(found.pieces).toBeLessThan(20);
    expect(found.messages).toBe(4);
    expect(found.after).toBe("UserError");
  });

  describe("of a package in several shards", () => {
    let folder: string;
    let shards: string[];
    beforeAll(() => {
      folder = mkdtempSync(join(tmpdir(), "gptoss-"));
      const code = `
import sys
from dataclasses import replace
from pathlib import Path
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.target import get_target
target = replace(get_target("web"), max_data_bytes=3_000_000)
options = Options(target, Quantization.parse("int4"), activations="float32")
export(open_checkpoint("demo"), options, Path(sys.argv[1]), lambda *_: None)`;
      execFileSync(`${ROOT}.venv/bin/python`, ["-c", code, `${folder}/cut`], { cwd: ROOT });
      shards = readdirSync(`${folder}/cut`).filter((name) => name.includes(".data"));
    });
    afterAll(() => rmSync(folder, { recursive: true }));

    test("they are fetched side by side", async () => {
      expect(shards.length).toBeGreaterThan(3);
      // The server gives none of them before all were asked for.
      site.package = `${folder}/cut`;
      site.together = new Set(shards);
      page = await openPage(browser, site);
      const said = await page.evaluate(
        async ({ question, date }) => {
          const model = await gptoss.GptOss.load("/package", { ...options, backend: "wasm" });
          return model.chat(question, { system: { date } }).text();
        },
        { question: QUESTION, date },
      );
      expect(said).toBe(ANSWER);
    });
  });

  const manifest = (change: (content: Record<string, any>) => void): string => {
    const content = JSON.parse(readFileSync(`${WEB_PACKAGE}/manifest.json`, "utf8"));
    change(content);
    return JSON.stringify(content);
  };
  const corrupted = () => {
    const bytes = readFileSync(`${WEB_PACKAGE}/${SHARD}`);
    bytes[bytes.length >> 1] ^= 1;
    return bytes;
  };
  test.each([
    ["a corrupted shard", SHARD, corrupted, /its bytes changed: the SHA-256 is not the manifest's/],
    ["a shard cut short", SHARD, () => corrupted().subarray(1), /\d+ bytes instead of \d+/],
    ["a missing shard", SHARD, () => 404, /404 Not Found: the package there is not complete/],
    ["no package", "manifest.json", () => 404, /404 Not Found: there is no package at this/],
    ["no server", "manifest.json", () => null, /cannot be fetched \(.*\): is the server up/],
    ["a page for a manifest", "manifest.json", () => "<p>", /cannot be read as JSON/],
    ["an old format", "manifest.json", () => manifest((m) => (m.format = 0)), /format 0 is not/],
    [
      "a runtime too old",
      "manifest.json",
      () => manifest((m) => [m, ...m.graphs].forEach((graph) => (graph.min_runtime = "9.1"))),
      /needs onnxruntime 9\.1 or newer, this is onnxruntime-web 1\./,
    ],
  ])("%s says so in one line", async (_, name, fault, message) => {
    page = await openPage(browser, site);
    const load = () =>
      page.evaluate(
        () =>
          gptoss.GptOss.load("/package", { ...options, backend: "wasm" }).then(
            () => ({ name: "none", message: "it loaded" }),
            (error: Error) => ({ name: error.name, message: error.message }),
          ),
      );
    site.faults.set(name, fault());
    const error = await load();
    expect(error.message).toMatch(message);
    expect(error.name).toBe("UserError");
    expect(error.message).not.toContain("\n");
    // Nothing bad was kept.
    site.faults.clear();
    expect((await load()).message).toBe("it loaded");
  });

  test("a library that is not there says so in one line", async () => {
    page = await openPage(browser, site);
    const said = await page.evaluate(() =>
      gptoss.GptOss.load("/package", { ...options, backend: "wasm", ort: "/nowhere" }).then(
        () => "it loaded",
        (error: Error) => `${error.name}: ${error.message}`,
      ),
    );
    expect(said).toMatch(/^UserError: onnxruntime-web cannot be loaded .* the option ort$/);
  });

  test("the page without a build step answers", async () => {
    page = await openPage(browser, site);
    const query = `package=${site.url}/package/`;
    await page.goto(`${site.url}/runtimes/javascript/examples/page/?${query}`);
    await page.waitForFunction(() => !document.querySelector("button")?.disabled);
    expect(await page.textContent("#status")).toContain("ready on wasm");
    await page.click("button");
    await page.waitForFunction(
      (answer) => document.querySelector("#answer")?.textContent === answer,
      ANSWER,
    );
  });
});
