/** `manifest.json`: what is in a package, and whether this runtime can run it. */
import { UserError, firstLine } from "./errors.js";

export const FORMAT = 1;

/** Bytes of an element, of the KV caches there are. */
export const KV_BYTES = { float32: 4, float16: 2 } as const;
export type KvDtype = keyof typeof KV_BYTES;

export interface KvLayer {
  /** The attention's reach in tokens, null for all of them. */
  window: number | null;
  /** The buffer holds about a window of tokens instead of all of them. */
  windowed: boolean;
}

export interface KvLayout {
  dtype: KvDtype;
  num_kv_heads: number;
  head_dim: number;
  layers: KvLayer[];
}

export interface FileEntry {
  /** Bytes. */
  size: number;
  sha256: string;
}

/** What a manifest says of one graph. */
export interface GraphEntry {
  target: string;
  min_runtime: string;
  /** Its file. */
  graph: string;
  /** Element type it computes in; float32 when left out. */
  activations?: string;
  /** What a device must have to run it, as WebGPU names features. */
  requires?: string[];
  logits: "last" | "all";
  kv: KvLayout;
  session?: SessionSettings;
}

/** A package, and of its graphs the one that was chosen. */
export interface Manifest extends GraphEntry {
  name: string;
  quant: string;
  context_length: number;
  vocab_size: number;
  weights?: { num_experts?: number };
  files: Record<string, FileEntry>;
  /** All of them, where there are several. */
  graphs?: GraphEntry[];
  /** Why this graph and not another. */
  graphReason?: string;
}

/** Settings the exporter chose, named as in ONNX Runtime's Python API. */
export interface SessionSettings {
  /** The one it is made for first. */
  providers?: string[];
  intra_op_num_threads?: number | null;
  config?: Record<string, string | number>;
}

/** What there is to run a graph with. */
export interface Runtime {
  /** As its npm package is called. */
  name: string;
  version: string;
  /** What packages for it are exported with. */
  target: string;
  /** ONNX Runtime's names; the one whose graphs suit it best first. */
  providers: readonly string[];
  /** Of the device. */
  features: ReadonlySet<string>;
}

/**
 * Read a manifest and choose among its graphs; UserError when `runtime` can run none. `where` is
 * its path or URL.
 */
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
  const entries = content.graphs?.length ? content.graphs : [content];
  const problem =
    findProblem(content) ?? entries.map((entry) => graphProblem(entry, content)).find(Boolean);
  if (problem) throw new UserError(`${where}: not a valid manifest (${problem})`);
  const chosen = chooseGraph(entries, runtime, where);
  return { ...content, ...chosen };
}

/**
 * Of the graphs that can run here the one for the best provider; of those the one that asks most
 * of the device.
 */
function chooseGraph(
  entries: readonly GraphEntry[],
  runtime: Runtime,
  where: string,
): GraphEntry & { graphReason?: string } {
  const refusals = entries.map((entry) => refusal(entry, runtime));
  const fit = entries.filter((_, i) => !refusals[i]);
  if (!fit.length) {
    const again = `export the package for it (gptoss export --target ${runtime.target})`;
    throw new UserError(`${where}: ${refusals[0]}; ${again}`);
  }
  const place = (entry: GraphEntry) => {
    const first = runtime.providers.indexOf(providersOf(entry)[0]);
    return first < 0 ? runtime.providers.length : first; // made for another, but runs
  };
  const asked = (entry: GraphEntry) => entry.requires?.length ?? 0;
  const [best] = fit.sort((a, b) => place(a) - place(b) || asked(b) - asked(a));
  const graphReason = asked(best)
    ? `this device has ${best.requires?.join(", ")}`
    : entries.flatMap((entry, i) => (refusals[i] ? `${entry.graph} ${refusals[i]}` : [])).join("; ");
  return { ...best, graphReason: graphReason || undefined };
}

/** Why `runtime` cannot run a graph; undefined when it can. */
function refusal(entry: GraphEntry, runtime: Runtime): string | undefined {
  if (compareVersions(runtime.version, entry.min_runtime) < 0) {
    const { name, version } = runtime;
    return `needs onnxruntime ${entry.min_runtime} or newer, this is ${name} ${version}: update it`;
  }
  const providers = providersOf(entry);
  if (!providers.some((provider) => runtime.providers.includes(provider))) {
    return `is made for ${providers.join(", ")}, which ${runtime.name} lacks`;
  }
  const missing = entry.requires?.filter((feature) => !runtime.features.has(feature)) ?? [];
  if (missing.length) return `needs ${missing.join(", ")}, which this device lacks`;
  if (!(entry.kv.dtype in KV_BYTES)) {
    const kinds = Object.keys(KV_BYTES).join(" and ");
    return `has a KV cache of ${entry.kv.dtype}, which is not supported (${kinds} are)`;
  }
  return undefined;
}

function providersOf(entry: GraphEntry): string[] {
  return entry.session?.providers ?? ["CPUExecutionProvider"];
}

function findProblem(content: Manifest): string | undefined {
  for (const name of ["name", "quant"] as const) {
    if (typeof content[name] !== "string") return `no ${name}`;
  }
  for (const name of ["context_length", "vocab_size"] as const) {
    if (!isCount(content[name])) return `no ${name}`;
  }
  const { files } = content;
  if (typeof files !== "object" || files === null) return "no files";
  for (const [name, entry] of Object.entries(files)) {
    if (!Number.isSafeInteger(entry?.size) || typeof entry.sha256 !== "string") {
      return `no size or sha256 of ${name}`;
    }
    if (isOutside(name)) return `${name} lies outside the package`;
  }
  return undefined;
}

function graphProblem(entry: GraphEntry, { files }: Manifest): string | undefined {
  for (const name of ["target", "min_runtime", "graph", "logits"] as const) {
    if (typeof entry[name] !== "string") return `no ${name}`;
  }
  if (!["last", "all"].includes(entry.logits)) {
    return `logits ${entry.logits} is neither 'last' nor 'all'`;
  }
  const { kv } = entry;
  if (!kv || !isCount(kv.num_kv_heads) || !isCount(kv.head_dim) || !Array.isArray(kv.layers)) {
    return "no kv layout";
  }
  if (kv.layers.some((layer) => layer.windowed && !layer.window)) {
    return "a windowed KV layer has no window";
  }
  if (isOutside(entry.graph)) return `${entry.graph} lies outside the package`;
  return entry.graph in files ? undefined : `${entry.graph} is not among the files`;
}

function isOutside(name: string): boolean {
  return name.startsWith("/") || name.split("/").includes("..");
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

/** Whether `part` stands somewhere in `bytes`. */
export function contains(bytes: Uint8Array, part: Uint8Array): boolean {
  return !places(bytes, part).next().done;
}

/** Where `part` stands in `bytes`. */
function* places(bytes: Uint8Array, part: Uint8Array): Generator<number, void, undefined> {
  for (let at = bytes.indexOf(part[0]); at >= 0; at = bytes.indexOf(part[0], at + 1)) {
    if (part.every((byte, i) => bytes[at + i] === byte)) yield at;
  }
}

/** Names of the data files that `graph`, a serialized ONNX model, refers to. */
export function externalDataFiles(graph: Uint8Array): string[] {
  // An external_data entry is {key: "location", value: NAME}; these are its bytes up to the length.
  const mark = Uint8Array.of(0x0a, 8, ...new TextEncoder().encode("location"), 0x12);
  const names = new Set<string>();
  for (const at of places(graph, mark)) {
    let [place, length, shift] = [at + mark.length, 0, 0];
    do {
      length |= (graph[place] & 0x7f) << shift;
      shift += 7;
    } while (graph[place++] & 0x80);
    names.add(new TextDecoder().decode(graph.subarray(place, place + length)));
  }
  return [...names];
}
