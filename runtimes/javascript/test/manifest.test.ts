/** manifest.json is data of a stranger: what is taken, refused and chosen is the shared vectors'. */
import { describe, expect, test } from "vitest";

import schema from "../../manifest.schema.json";
import { UserError } from "../src/errors.js";
import { samplingFromConfig, stopIdsFromConfig } from "../src/generation_config.js";
import type { Runtime } from "../src/graph_choice.js";
import { type GraphEntry, parseManifest, readFiles } from "../src/manifest.js";
import { fault } from "./json_schema.js";
import { vectors } from "./support.js";

type Content = Record<string, any>;
interface Change {
  at: (string | number)[];
  value?: unknown;
}
interface Case {
  name: string;
  of: "single" | "several";
  changes: Change[];
}
const shared = vectors<{
  single: Content;
  several: Content;
  manifests: (Case & { refused: string | null })[];
  texts: { name: string; text: string; times: number }[];
  paths: { good: string[]; bad: string[] };
  graphs: Record<string, GraphEntry>;
  choice: {
    name: string;
    graphs: string[];
    runtime: Omit<Runtime, "features" | "name" | "target"> & { features: string[] };
    chosen: string | null;
    names: string[];
  }[];
  reads: (Case & { graph: string; files: string[] })[];
}>("manifest");

/** Runs everything. */
const ANY: Runtime = {
  name: "onnxruntime-node",
  target: "node",
  version: "9999.0",
  providers: ["CPUExecutionProvider", "WebGpuExecutionProvider", "CUDAExecutionProvider"],
  features: new Set(["shader-f16"]),
  kv: ["float32", "float16", "int8"],
  appends: true,
};
/** What is refused beyond the schema: fields that contradict each other, or this runtime. */
const BEYOND = /must be among the files|must be another|must have one|needs onnxruntime|which onnx|which this device|not supported/;
const WHERE = "p/manifest.json";

function changed({ of, changes }: Case): Content {
  const content = structuredClone(shared[of]);
  for (const change of changes) {
    const last = change.at.at(-1) as string;
    const place = change.at.slice(0, -1).reduce((found: Content, part) => found[part], content);
    if ("value" in change) {
      // JSON.parse makes a member of any name; an assignment to __proto__ would not.
      Object.defineProperty(place, last, { value: change.value, enumerable: true, configurable: true, writable: true });
    } else delete place[last];
  }
  return content;
}

/** The message; null where it is taken. */
function refusal(text: string): string | null {
  try {
    parseManifest(text, WHERE, ANY);
    return null;
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    const { message } = error as Error;
    expect(message.startsWith(`${WHERE}: `)).toBe(true);
    expect(message).toMatch(/^[ -~]{1,400}$/);
    return message;
  }
}

test.each(shared.manifests)("$name", ({ refused, ...made }) => {
  const said = refusal(JSON.stringify(changed(made)));
  if (refused === null) expect(said).toBeNull();
  else expect(said).toContain(refused);
});

test.each(shared.texts)("$name is no manifest", ({ text, times }) => {
  expect(refusal(text.repeat(times))).not.toBeNull();
});

describe("names of files", () => {
  const { single, paths } = shared;
  const withName = (name: string, more: Content = {}) => {
    const files = Object.entries(single.files).concat([[name, { size: 1, sha256: "0".repeat(64) }]]);
    return JSON.stringify({ ...single, ...more, files: Object.fromEntries(files) });
  };
  test.each(paths.good)("%j", (name) => {
    expect(refusal(withName(name, { links: [name] }))).toBeNull();
  });
  test.each(paths.bad)("not %j", (name) => {
    expect(refusal(withName(name))).toContain("files");
    expect(refusal(JSON.stringify({ ...single, links: [name] }))).toContain("links");
    expect(refusal(withName(name, { graph: name }))).toContain("graph");
  });
});

describe("which graph runs", () => {
  test.each(shared.choice)("$name", ({ graphs: names, runtime, chosen, names: words }) => {
    const graphs = names.map((name) => shared.graphs[name]);
    const files = Object.fromEntries(graphs.map((g) => [g.graph, shared.single.files["model.onnx"]]));
    const listed = graphs.length > 1 ? graphs : [];
    const text = JSON.stringify({ ...shared.single, ...graphs[0], graphs: listed, files });
    const here = { ...ANY, ...runtime, features: new Set(runtime.features) };
    if (chosen !== null) {
      const entry = graphs.find((g) => g.graph === chosen);
      expect(parseManifest(text, WHERE, here)).toMatchObject({ graph: chosen, kv: entry?.kv });
      return;
    }
    expect(() => parseManifest(text, WHERE, here)).toThrow(UserError);
    for (const word of words) expect(() => parseManifest(text, WHERE, here)).toThrow(word);
    expect(() => parseManifest(text, WHERE, here)).toThrow("gptoss export --target node");
  });

  test("the reason is said", () => {
    const node = { ...ANY, version: "1.30.0", providers: ["CPUExecutionProvider"] };
    const browser = { ...ANY, providers: ["WebGpuExecutionProvider", "CPUExecutionProvider"] };
    const text = JSON.stringify(shared.several);
    expect(parseManifest(text, WHERE, browser).graphReason).toBe("this device has shader-f16");
    expect(parseManifest(text, WHERE, { ...node, features: new Set() }).graphReason).toBe(
      "model.web16.onnx needs shader-f16, which this device lacks",
    );
    expect(parseManifest(JSON.stringify(shared.single), WHERE, node).graphReason).toBeUndefined();
  });
});

test.each(shared.reads)("files that are read: $name", ({ graph, files, ...made }) => {
  const content = changed(made);
  const graphs = (content.graphs as Content[]).filter((entry) => entry.graph === graph);
  const manifest = parseManifest(JSON.stringify({ ...content, graphs, ...graphs[0], files: content.files }), WHERE, ANY);
  expect(manifest.graph).toBe(graph);
  expect(readFiles(manifest)).toEqual(files);
});

test("a graph's entry names no other files than those that were checked", () => {
  const content = structuredClone(shared.several);
  content.graphs[2].files = { "../evil": { size: 1, sha256: "0".repeat(64) } };
  content.graphs[2].name = 7;
  const runtime = { ...ANY, providers: ["CPUExecutionProvider"] };
  const manifest = parseManifest(JSON.stringify(content), WHERE, runtime);
  expect(manifest.graph).toBe("model.node.onnx");
  expect(manifest.files).toEqual(content.files);
  expect(manifest.name).toBe(content.name);
});

test("members of any name are one line", () => {
  const session = '{"providers":["CPUExecutionProvider"],"__proto__":{},"constructor":1,"a\\nb":2}';
  const { session: _, ...rest } = shared.single;
  expect(refusal(`${JSON.stringify(rest).slice(0, -1)},"session":${session}}`)).toContain("session.__proto__");
});

/** Every value of a manifest, wherever it stands, replaced by what does not belong there. */
test("a manifest changed anywhere is taken or refused as the schema says, in one line", () => {
  const odd = [null, true, -1, 0, 1, 65, 5000, 2 ** 25, 1e300, 0.5, "", "x", "../x", "a\nb", "a b", [], {}, [[]], { "a b": 1 }, "x".repeat(70), "x".repeat(300), "x".repeat(10_000)];
  const walk = function* (value: unknown, at: (string | number)[]): Generator<(string | number)[]> {
    if (at.length) yield at;
    if (typeof value !== "object" || value === null) return;
    const keys = Array.isArray(value) ? value.keys() : Object.keys(value);
    for (const key of keys) yield* walk((value as Content)[key], [...at, key]);
  };
  let refused = 0;
  for (const of of ["single", "several"] as const) {
    for (const at of walk(shared[of], [])) {
      for (const value of odd) {
        const content = changed({ name: "", of, changes: [{ at, value }] });
        const said = refusal(JSON.stringify(content));
        if (fault(content, schema, schema)) expect(said, `${at} ${value}`).not.toBeNull();
        else if (said) expect(said, `${at} ${value}`).toMatch(BEYOND);
        if (said !== null) refused++;
      }
      const content = changed({ name: "", of, changes: [{ at }] });
      const said = refusal(JSON.stringify(content));
      expect(fault(content, schema, schema) ? said : null, `${at}`).toEqual(
        fault(content, schema, schema) ? expect.any(String) : null,
      );
    }
  }
  expect(refused).toBeGreaterThan(1000);
});

describe("generation_config.json", () => {
  test.each([
    [{}, { doSample: false }],
    [{ do_sample: true, top_k: -1 }, { doSample: true, topK: 0 }],
    [{ do_sample: null, temperature: null, top_k: null }, { doSample: false }],
    [{ temperature: 0.5, top_p: 1, min_p: 0 }, { temperature: 0.5, topP: 1, minP: 0, doSample: false }],
  ])("%j", (config, wanted) => {
    expect(samplingFromConfig(config)).toEqual(wanted);
  });

  test.each([
    ["temperature", ["0.7", -1, true, [], {}]],
    ["top_p", [0, 1.5, "1", false]],
    ["top_k", [-2, 1.5, "50", true]],
    ["min_p", [-0.1, 1.1, "0"]],
    ["repetition_penalty", [0, -1, "1"]],
    ["do_sample", [0, 1, "true", []]],
    ["eos_token_id", ["7", -1, 1.5, true, [], [7, null], [[7]], {}, 2 ** 40]],
  ])("a fault of %s names file and field", (name, values) => {
    const words = new RegExp(`^generation_config\\.json: ${name}(\\[1\\]|\\[0\\])? is .*: it must be .*$`);
    const read = (config: Content) => {
      samplingFromConfig(config);
      return stopIdsFromConfig(config, "generation_config.json");
    };
    for (const value of values) expect(() => read({ [name]: value })).toThrow(words);
    expect(read({ [name]: null })).toBeUndefined();
  });
});
