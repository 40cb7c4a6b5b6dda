/** What is published: its size, and that it runs as it is. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import { expect, test } from "vitest";

import { NODE_PACKAGE } from "./support.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const DIST = `${ROOT}dist/`;
const QUESTION = "What does os.path.join do?";
const ANSWER = "Join two or more pathname components, inserting '/' as needed.";
const scripts = readdirSync(DIST).filter((name) => name.endsWith(".js"));

test("all of it, minified, takes less than 60 kB without its peers and the tokenizer", () => {
  const bytes = scripts.reduce((sum, name) => sum + statSync(DIST + name).size, 0);
  // The tokenizer was a peer too, of 37 kB.
  const esbuild = ["esbuild", "src/tokenizer.ts", "--bundle", "--minify", "--format=esm", "--target=es2023"];
  const tokenizer = execFileSync("npx", esbuild, { cwd: ROOT }).length;
  expect(tokenizer).toBeLessThan(13_000);
  expect(bytes - tokenizer).toBeLessThan(60_000);
  // What it leaves to its installer are peers, and nothing else.
  const { dependencies, peerDependencies } = JSON.parse(readFileSync(`${ROOT}package.json`, "utf8"));
  expect(dependencies).toBeUndefined();
  const text = scripts.map((name) => readFileSync(DIST + name, "utf8")).join("\n");
  const named = text.matchAll(/(?:from|import)\s*\(?"([^"]+)"/g);
  const outside = [...named].map(([, name]) => name).filter((name) => !/^(\.|node:)/.test(name));
  const owners = outside.map((name) => name.split("/").slice(0, name[0] === "@" ? 2 : 1).join("/"));
  expect(new Set(owners)).toEqual(new Set(Object.keys(peerDependencies)));
});

test("the Node example answers", () => {
  const options = { cwd: ROOT, encoding: "utf8" } as const;
  const command = ["examples/node.mjs", NODE_PACKAGE];
  expect(execFileSync("node", [...command, QUESTION], options)).toBe(`${ANSWER}\n`);
  const talk = execFileSync("node", command, { ...options, input: `${QUESTION}\n\n${QUESTION}\n` });
  expect(talk.split(ANSWER)).toHaveLength(3);
});

test.each([[undefined, false], ["0", true]])("reports of use are kept on demand only: %s", (wanted, kept) => {
  const home = mkdtempSync(`${tmpdir()}/gptoss-home-`);
  const told = wanted === undefined ? {} : { ORT_DISABLE_TELEMETRY: wanted };
  // A bare environment: where a variable says CI (CI, GITHUB_ACTIONS, …) it keeps none unasked.
  execFileSync("node", ["examples/node.mjs", NODE_PACKAGE, QUESTION], {
    cwd: ROOT,
    env: { PATH: process.env.PATH, HOME: home, ...told },
  });
  const files = readdirSync(home, { recursive: true }).map(String);
  rmSync(home, { recursive: true });
  expect(files.some((name) => name.endsWith("onnxruntime.db"))).toBe(kept);
});

test.each([undefined, "1"])("where the runtime was set up before, answers are the same: %s", (told) => {
  // Then its binding cannot be told to leave the outputs alone: runs go the public way.
  const code = `
    import { createRequire } from "node:module";
    import { InferenceSession } from "onnxruntime-node";
    await InferenceSession.create(process.argv[1] + "/tokenizer.onnx").catch(() => {});
    const { GptOss } = await import("gptoss-onnx");
    const model = await GptOss.load(process.argv[1], { threads: 1 });
    const question = [{ role: "user", content: "What does os.path.join do?" }];
    console.log(await model.chat(question).text());
    await model.dispose();
    await GptOss.load(process.argv[1], { threads: 1 });
    const { binding } = createRequire(process.cwd() + "/")("onnxruntime-node/dist/binding.js");
    console.log(binding[Symbol.for("gptoss-onnx.outputs")]);`;
  const args = ["--input-type=module", "-e", code, NODE_PACKAGE];
  const done = spawnSync("node", args, {
    cwd: ROOT,
    encoding: "utf8",
    env: { PATH: process.env.PATH, ...(told && { ORT_DISABLE_TELEMETRY: told }) },
  });
  expect(done.stdout).toBe(`${ANSWER}\nundefined\n`);
  expect(done.stderr.split("was in use before its reports were off")).toHaveLength(told ? 1 : 2);
});
