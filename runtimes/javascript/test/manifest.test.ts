/** Which of a package's graphs is chosen where, and why. */
import { describe, expect, test } from "vitest";

import { UserError } from "../src/errors.js";
import { type GraphEntry, type Runtime, parseManifest } from "../src/manifest.js";

const [CPU, GPU] = ["CPUExecutionProvider", "WebGpuExecutionProvider"];

function graph(name: string, changes: Partial<GraphEntry> & { providers?: string[] }): GraphEntry {
  const { providers = [CPU], ...rest } = changes;
  return {
    target: name.split(".")[0],
    min_runtime: "1.30",
    graph: `${name}.onnx`,
    activations: "float32",
    requires: [],
    logits: "last",
    kv: { dtype: "float32", num_kv_heads: 2, head_dim: 64, layers: [] },
    session: { providers },
    ...rest,
  };
}

const kv16 = { dtype: "float16", num_kv_heads: 2, head_dim: 64, layers: [] } as const;
const GRAPHS = {
  cpu: graph("cpu", { min_runtime: "1.32" }),
  node: graph("node", {}),
  web: graph("web", { providers: [GPU, CPU] }),
  web16: graph("web.float16", {
    providers: [GPU, CPU],
    activations: "float16",
    requires: ["shader-f16"],
    kv: { ...kv16, layers: [] },
  }),
  cuda: graph("cuda", { providers: ["CUDAExecutionProvider"] }),
};

function runtime(changes: Partial<Runtime> = {}): Runtime {
  const [name, target, version] = ["onnxruntime-node", "node", "1.30.0"];
  return { name, target, version, providers: [CPU], features: new Set(), ...changes };
}
const node = runtime();
const browser = runtime({ name: "onnxruntime-web", target: "web", providers: [GPU, CPU] });
const gpu16 = { ...browser, features: new Set(["shader-f16", "subgroups"]) };

function choose(names: (keyof typeof GRAPHS)[], where: Runtime) {
  const graphs = names.map((name) => GRAPHS[name]);
  const files = Object.fromEntries(graphs.map((g) => [g.graph, { size: 1, sha256: "0" }]));
  const general = { format: 1, name: "p", quant: "int4", context_length: 9, vocab_size: 9, files };
  const listed = graphs.length > 1 ? graphs : [];
  const text = JSON.stringify({ ...general, ...graphs[0], graphs: listed });
  return parseManifest(text, "p/manifest.json", where);
}

describe("of one package", () => {
  test.each<[string, (keyof typeof GRAPHS)[], Runtime, string]>([
    ["Node takes its own", ["node", "web", "web16"], node, "node.onnx"],
    ["in whatever order", ["web16", "web", "node"], node, "node.onnx"],
    ["an old Node leaves the new CPU's", ["cpu", "web", "web16"], node, "web.onnx"],
    ["a new Node takes it", ["cpu", "web"], runtime({ version: "1.32.0" }), "cpu.onnx"],
    ["a browser takes the web's", ["node", "web", "web16"], browser, "web.onnx"],
    ["with shader-f16 the float16 one", ["node", "web", "web16"], gpu16, "web.float16.onnx"],
    ["and without another none less", ["web16"], gpu16, "web.float16.onnx"],
    ["what another runtime needs is no matter", ["cuda", "node"], node, "node.onnx"],
  ])("%s", (_, names, where, expected) => {
    const chosen = choose(names, where);
    expect(chosen.graph).toBe(expected);
    const entry = Object.values(GRAPHS).find((g) => g.graph === expected);
    expect(chosen).toMatchObject({ activations: entry?.activations, kv: entry?.kv });
  });
});

test("the reason is said", () => {
  expect(choose(["web", "web16"], gpu16).graphReason).toBe("this device has shader-f16");
  expect(choose(["web", "web16"], browser).graphReason).toBe(
    "web.float16.onnx needs shader-f16, which this device lacks",
  );
  expect(choose(["cpu", "web"], node).graphReason).toBe(
    "cpu.onnx needs onnxruntime 1.32 or newer, this is onnxruntime-node 1.30.0: update it",
  );
  expect(choose(["node"], node).graphReason).toBeUndefined();
});

describe("none fits", () => {
  test.each<[string, (keyof typeof GRAPHS)[], Runtime, string]>([
    ["too old", ["cpu"], node, "needs onnxruntime 1.32 or newer, this is onnxruntime-node 1.30.0"],
    ["another provider", ["cuda"], node, "made for CUDAExecutionProvider, which onnxruntime-node"],
    ["a lacking device", ["web16"], browser, "needs shader-f16, which this device lacks"],
  ])("%s", (_, names, where, message) => {
    expect(() => choose(names, where)).toThrow(UserError);
    expect(() => choose(names, where)).toThrow(message);
    expect(() => choose(names, where)).toThrow(`gptoss export --target ${where.target}`);
  });

  test("a KV cache of another type", () => {
    const before = GRAPHS.node.kv;
    GRAPHS.node.kv = { ...before, dtype: "int8" as never };
    expect(() => choose(["node"], node)).toThrow("KV cache of int8, which is not supported");
    GRAPHS.node.kv = before;
  });
});

test("each graph of the list must be whole", () => {
  const broken = { ...GRAPHS.web, kv: undefined as never };
  const files = { "node.onnx": { size: 1, sha256: "0" }, "web.onnx": { size: 1, sha256: "0" } };
  const general = { format: 1, name: "p", quant: "int4", context_length: 9, vocab_size: 9, files };
  const text = JSON.stringify({ ...general, ...GRAPHS.node, graphs: [GRAPHS.node, broken] });
  expect(() => parseManifest(text, "p", node)).toThrow("no kv layout");
});
