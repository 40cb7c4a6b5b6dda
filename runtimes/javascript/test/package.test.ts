/** Packages in Node: what cannot be loaded, and what nothing reads. */
import {
  cpSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { GptOss, UserError } from "../src/node.js";
import { NODE_PACKAGE, collect } from "./support.js";

describe("what cannot be used says why in one line", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "gptoss-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  let made = 0;
  function changed(change: (copy: string) => void): string {
    const copy = join(folder, String(made++));
    cpSync(NODE_PACKAGE, copy, { recursive: true });
    change(copy);
    return copy;
  }

  function manifest(changes: (content: Record<string, any>) => void): string {
    return changed((copy) => {
      const path = join(copy, "manifest.json");
      const content = JSON.parse(readFileSync(path, "utf8"));
      changes(content);
      writeFileSync(path, JSON.stringify(content));
    });
  }

  const flip = (path: string) => {
    const bytes = readFileSync(path);
    bytes[bytes.length >> 1] ^= 1;
    writeFileSync(path, bytes);
  };

  const data = () => {
    const names = Object.keys(JSON.parse(readFileSync(`${NODE_PACKAGE}/manifest.json`, "utf8")).files);
    return names.find((name) => name.includes(".data")) as string;
  };

  const cases: [string, () => string, RegExp, object?][] = [
    ["a folder that is no package", () => tmpdir(), /no such file; .* is not a package/],
    ["a missing shard", () => changed((c) => rmSync(join(c, data()))), /data: missing; export/],
    [
      "a shard cut short",
      () => changed((c) => truncateSync(join(c, data()), 1000)),
      /1000 bytes instead of \d+; export or copy/,
    ],
    [
      "a corrupted shard",
      () => changed((c) => flip(join(c, data()))),
      /data: its bytes changed: the SHA-256 is not the manifest's/,
      { verify: true },
    ],
    ["an unknown format", () => manifest((m) => (m.format = 0)), /format 0 is not known/],
    [
      "a runtime that is too old",
      () => manifest((m) => (m.min_runtime = "1.99")),
      /needs onnxruntime 1\.99 or newer, this is onnxruntime-node 1\.\d+\.\d+: update it/,
    ],
    ["a manifest without kv", () => manifest((m) => delete m.kv), /manifest\.json: kv is missing/],
    [
      "a path out of the package",
      () => manifest((m) => (m.graph = "../model.onnx")),
      /manifest\.json: graph is "\.\.\/model\.onnx": it must be/,
    ],
    ...(
      [
        ["another head size", (m) => (m.kv.head_dim = 65), "kv.head_dim is 65, but model.onnx has 64"],
        ["more heads", (m) => (m.kv.num_kv_heads = 99), "kv.num_kv_heads is 99, but model.onnx has 2"],
        ["a layer fewer", (m) => m.kv.layers.pop(), "the number of kv.layers is 5, but model.onnx has 6"],
        ["more tokens", (m) => (m.vocab_size = 5000), "vocab_size is 5000, but model.onnx has 4096"],
        ["float16 KV", (m) => (m.kv.dtype = "float16"), "kv.dtype is float16, but model.onnx has"],
      ] as [string, (manifest: any) => void, string][]
    ).map(([name, change, told]): [string, () => string, RegExp] => [
      name,
      () => manifest(change),
      new RegExp(`^manifest\\.json: ${told}.*; export or copy the package again$`),
    ]),
    [
      "a setting that writes a file",
      () => manifest((m) => (m.session.optimized_model_filepath = "/tmp/x.onnx")),
      /manifest\.json: session\.optimized_model_filepath is not known/,
    ],
    [
      "a link out of the package",
      () =>
        changed((c) => {
          renameSync(join(c, "tokenizer.json"), join(folder, "outside.json"));
          symlinkSync(join(folder, "outside.json"), join(c, "tokenizer.json"));
        }),
      /tokenizer\.json: a link out of the package/,
    ],
    ["no threads", () => NODE_PACKAGE, /threads is 0: it must be at least 1/, { threads: 0 }],
    ["a URL", () => "https://example.org/x", /in Node a package is a folder/],
  ];
  test.each(cases)("%s", async (_, source, message, options) => {
    const error: Error = await GptOss.load(source(), options).then(
      () => expect.fail("it loaded"),
      (error) => error,
    );
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(message);
    expect(error.message).not.toContain("\n");
  });

  test("a model that was disposed of", async () => {
    const other = await GptOss.load(NODE_PACKAGE, { verify: true });
    await other.dispose();
    await other.dispose();
    await expect(other.chat([{ role: "user", content: "Hello" }]).text()).rejects.toThrow("load it again");
  });
});

test("what nothing reads may be changed or gone", async () => {
  const copy = mkdtempSync(join(tmpdir(), "gptoss-"));
  cpSync(NODE_PACKAGE, copy, { recursive: true });
  writeFileSync(join(copy, "README.md"), "another text");
  rmSync(join(copy, "report.html"));
  const other = await GptOss.load(copy, { verify: true });
  await other.dispose();
  rmSync(copy, { recursive: true });
});

test("what a caller gives wins over faults of generation_config.json", async () => {
  const copy = mkdtempSync(join(tmpdir(), "gptoss-"));
  cpSync(NODE_PACKAGE, copy, { recursive: true });
  const [text, path] = ['{"temperature":"0.7"}', join(copy, "manifest.json")];
  writeFileSync(join(copy, "generation_config.json"), text);
  const content = JSON.parse(readFileSync(path, "utf8"));
  content.files["generation_config.json"].size = text.length;
  writeFileSync(path, JSON.stringify(content));
  const other = await GptOss.load(copy);
  const sampling = { temperature: 0 };
  expect(await collect(other.generate([1, 2], { sampling, maxNewTokens: 1 }))).toHaveLength(1);
  expect(() => other.generate([1, 2])).toThrow(
    'generation_config.json: temperature is "0.7": it must be a number, 0 or more',
  );
  await other.dispose();
  rmSync(copy, { recursive: true });
});
