/** `manifest.json`: what is in a package, and whether this runtime can run it. */
import { UserError, firstLine } from "./errors.js";

export const FORMAT = 1;

export interface KvLayer {
  /** The attention's reach in tokens, null for all of them. */
  window: number | null;
  /** The buffer holds about a window of tokens instead of all of them. */
  windowed: boolean;
}

export interface KvLayout {
  dtype: string;
  num_kv_heads: number;
  head_dim: number;
  layers: KvLayer[];
}

export interface FileEntry {
  /** Bytes. */
  size: number;
  sha256: string;
}

export interface Manifest {
  name: string;
  target: string;
  quant: string;
  min_runtime: string;
  graph: string;
  logits: "last" | "all";
  context_length: number;
  vocab_size: number;
  kv: KvLayout;
  files: Record<string, FileEntry>;
  session: SessionSettings;
}

/** Settings the exporter chose, named as in ONNX Runtime's Python API. */
export interface SessionSettings {
  intra_op_num_threads?: number | null;
  config?: Record<string, string | number>;
}

export interface Runtime {
  /** As its npm package is called. */
  name: string;
  version: string;
}

/** Read a manifest; UserError when `runtime` cannot run what it says. `where` is its path or URL. */
export function parseManifest(text: string, where: string, runtime: Runtime): Manifest {
  let content: Manifest & { format?: unknown };
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new UserError(`${where}: cannot be read as JSON (${firstLine(error)})`);
  }
  if (typeof content !== "object" || content === null || Array.isArray(content)) {
    throw new UserError(`${where}: holds no JSON object`);
  }
  if (content.format !== FORMAT) {
    throw new UserError(
      `${where}: format ${JSON.stringify(content.format)} is not known; this version reads ` +
        `format ${FORMAT}: update it or export the package again`,
    );
  }
  const problem = findProblem(content);
  if (problem) throw new UserError(`${where}: not a valid manifest (${problem})`);
  if (compareVersions(runtime.version, content.min_runtime) < 0) {
    throw new UserError(
      `${where}: needs onnxruntime ${content.min_runtime} or newer, this is ${runtime.name} ` +
        `${runtime.version}; update it, or export the package for it ` +
        `(gptoss export --target ${runtime.name === "onnxruntime-node" ? "node" : "web"})`,
    );
  }
  if (content.kv.dtype !== "float32") {
    throw new UserError(
      `${where}: a KV cache of ${content.kv.dtype} is not supported; float32 is`,
    );
  }
  return { ...content, session: content.session ?? {} };
}

function findProblem(content: Manifest): string | undefined {
  for (const name of ["name", "target", "quant", "min_runtime", "graph", "logits"] as const) {
    if (typeof content[name] !== "string") return `no ${name}`;
  }
  for (const name of ["context_length", "vocab_size"] as const) {
    if (!isCount(content[name])) return `no ${name}`;
  }
  if (!["last", "all"].includes(content.logits)) {
    return `logits ${content.logits} is neither 'last' nor 'all'`;
  }
  const { kv, files } = content;
  if (!kv || !isCount(kv.num_kv_heads) || !isCount(kv.head_dim) || !Array.isArray(kv.layers)) {
    return "no kv layout";
  }
  if (kv.layers.some((layer) => layer.windowed && !layer.window)) {
    return "a windowed KV layer has no window";
  }
  if (typeof files !== "object" || files === null) return "no files";
  for (const [name, entry] of Object.entries(files)) {
    if (!Number.isSafeInteger(entry?.size) || typeof entry.sha256 !== "string") {
      return `no size or sha256 of ${name}`;
    }
  }
  for (const name of [content.graph, ...Object.keys(files)]) {
    if (name.startsWith("/") || name.split("/").includes("..")) {
      return `${name} lies outside the package`;
    }
  }
  return content.graph in files ? undefined : `${content.graph} is not among the files`;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

/** Below 0 when `a` is the older; by leading numbers: 1.32.0-dev.1 is 1.32.0. */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((v) => v.split(/[-+]/)[0].split(".").map(Number));
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] || 0) - (right[i] || 0);
    if (difference) return difference;
  }
  return 0;
}

/** Names of the data files that `graph`, a serialized ONNX model, refers to. */
export function externalDataFiles(graph: Uint8Array): string[] {
  // An external_data entry is {key: "location", value: NAME}; these are its bytes up to the length.
  const mark = [0x0a, 8, ...new TextEncoder().encode("location"), 0x12];
  const names = new Set<string>();
  for (let at = graph.indexOf(mark[0]); at >= 0; at = graph.indexOf(mark[0], at + 1)) {
    if (!mark.every((byte, i) => graph[at + i] === byte)) continue;
    let [place, length, shift] = [at + mark.length, 0, 0];
    do {
      length |= (graph[place] & 0x7f) << shift;
      shift += 7;
    } while (graph[place++] & 0x80);
    names.add(new TextDecoder().decode(graph.subarray(place, place + length)));
  }
  return [...names];
}
