/** Twenty of the demo's questions, answered alike by every graph of it on every runtime here. */
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { GptOss } from "../src/node.js";
import type * as Library from "../src/web.js";
import { Site, inChromium, openBrowser, openPage } from "./site.js";
import { CPU_PACKAGE, NODE_PACKAGE, ROOT, WEB_PACKAGE } from "./support.js";

declare const gptoss: typeof Library;
declare const options: Library.LoadOptions & { ort: string };

interface Reply {
  question: string;
  prompt: number[];
  ids: number[];
}

/** Python's, from the CPU package; the last prompt is longer than the window. */
let expected: Reply[];
beforeAll(() => {
  const questions = `${ROOT}demo/evaluation/questions.jsonl`;
  const args = ["-m", "tests.targets.answers", CPU_PACKAGE, questions, "20"];
  const text = execFileSync(`${ROOT}.venv/bin/python`, args, {
    cwd: ROOT,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  expected = JSON.parse(text).replies;
  expect(expected).toHaveLength(21);
});

/** The web package's manifest with its float16 graph for every device. */
function float16Manifest(): string {
  const content = JSON.parse(readFileSync(`${WEB_PACKAGE}/manifest.json`, "utf8"));
  const graph = content.graphs.find((entry: any) => entry.activations === "float16");
  expect(graph.requires).toEqual(["shader-f16"]);
  return JSON.stringify({ ...content, ...graph, requires: [], graphs: [] });
}

describe("in Node", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "gptoss-"));
    cpSync(WEB_PACKAGE, folder, { recursive: true });
    writeFileSync(join(folder, "manifest.json"), float16Manifest());
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test.each([
    ["its own graph", () => NODE_PACKAGE, "float32"],
    ["the web's", () => WEB_PACKAGE, "float32"],
    ["the web's of float16", () => folder, "float16"],
  ])("%s", async (_, source, activations) => {
    const model = await GptOss.load(source(), { threads: 1 });
    expect(model.backend.activations).toBe(activations);
    for (const { question, prompt, ids } of expected) {
      const found: number[] = [];
      for await (const id of model.generate(prompt, { session: model.newSession() })) found.push(id);
      expect(found, question).toEqual(ids);
    }
    await model.dispose();
  });

  test("a reply ends where the package says too, which is no text", async () => {
    const copy = mkdtempSync(join(tmpdir(), "gptoss-"));
    cpSync(NODE_PACKAGE, copy, { recursive: true });
    const { question, ids } = expected[0];
    const system = { date: "2026-01-01" };
    const own = ids.findLast((id) => id > 999 && id < 4087 && ids.indexOf(id) === ids.lastIndexOf(id));
    const file = join(copy, "generation_config.json");
    // Of the same size; and one that no model can write does no harm.
    const text = readFileSync(file, "utf8").replace("4089", String(own)).replace("4095", "9999");
    writeFileSync(file, text);
    const model = await GptOss.load(copy, { threads: 1 });
    expect([...model.stopIds].sort()).toEqual([own, 4088, 4089, 4095, 9999]);
    const reply = model.chat([{ role: "user", content: question }], { system });
    const said = await reply.text();
    expect(reply.finishReason).toBe("stop");
    expect(said).not.toBe("");
    const before = model.tokenizer.decode(ids.slice(0, ids.indexOf(own as number)));
    expect(before.endsWith(said)).toBe(true);
    expect(() => model.generate([1], { stopIds: [9999] })).toThrow("stopIds have 9999 at position 0");
    await model.dispose();
    rmSync(copy, { recursive: true });
  });
});

inChromium("on WebAssembly", () => {
  let site: Site;
  let browser: Browser;
  beforeAll(async () => {
    [site, browser] = await Promise.all([Site.start(), openBrowser()]);
  });
  afterAll(() => Promise.all([browser?.close(), site?.stop()]));

  test.each(["float32", "float16"])("the graph of %s", async (activations) => {
    if (activations === "float16") site.faults.set("manifest.json", float16Manifest());
    const page = await openPage(browser, site);
    const found = await page.evaluate(
      async (prompts) => {
        const model = await gptoss.GptOss.load("/package", { ...options, backend: "wasm" });
        const replies: number[][] = [];
        for (const prompt of prompts) {
          const ids: number[] = [];
          for await (const id of model.generate(prompt)) ids.push(id);
          replies.push(ids);
        }
        return { activations: model.backend.activations, replies };
      },
      expected.map((reply) => reply.prompt),
    );
    expect(found.activations).toBe(activations);
    expected.forEach(({ question, ids }, i) => expect(found.replies[i], question).toEqual(ids));
  }, 300_000);
});
