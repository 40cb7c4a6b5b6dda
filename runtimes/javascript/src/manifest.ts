/** `manifest.json`: what is in a package, and whether this runtime can run it. */
import { UserError } from "./errors.js";
import { type Runtime, chooseGraph } from "./graph_choice.js";
import { parseObject } from "./json_object.js";
import { GRAPH_FIELDS, checkManifest } from "./manifest_checks.js";
import { shown } from "./checks.js";

export const FORMAT = 1;
/** What is read beside a graph. */
export const TEXTS: readonly string[] = ["tokenizer.json", "config.json", "generation_config.json"];

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
  /** Past and present are one buffer; true when left out. */
  in_place?: boolean;
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
  session: SessionSettings;
}

/** A package, and of its graphs the one that was chosen. */
export interface Manifest extends GraphEntry {
  name: string;
  quant: string;
  context_length: number;
  vocab_size: number;
  weights?: { num_experts?: number };
  files: Record<string, FileEntry>;
  /** Files that are a checkpoint's own, under a second name. */
  links?: string[];
  /** All of them, where there are several. */
  graphs?: GraphEntry[];
  /** Why this graph and not another. */
  graphReason?: string;
}

/** Settings the exporter chose, named as in ONNX Runtime's Python API: the few there are. */
export interface SessionSettings {
  /** The one it is made for first. */
  providers: string[];
  intra_op_num_threads?: number | null;
  config?: Record<string, string>;
}

/**
 * Read a manifest and choose among its graphs; UserError when it is no valid one or `runtime` can
 * run none. `where` is its path or URL.
 */
export function parseManifest(text: string, where: string, runtime: Runtime): Manifest {
  const content = parseObject(text, where);
  if (content.format !== FORMAT) {
    throw new UserError(
      `${where}: format ${shown(content.format)} is not known; this version reads ` +
        `format ${FORMAT}: update it or export the package again`,
    );
  }
  const found = checkManifest(content, "") ?? contradiction(content as unknown as Content);
  if (found) {
    throw new UserError(`${where}: ${found}; the package is damaged or not to be trusted`);
  }
  const general = content as unknown as Content;
  const { entry, graphReason } = chooseGraph(entriesOf(general), runtime, where);
  // Of the entry what is a graph's, so that it cannot name other files than those checked.
  const known = GRAPH_FIELDS.filter((name) => Object.hasOwn(entry, name));
  const chosen = Object.fromEntries(known.map((name) => [name, entry[name as keyof GraphEntry]]));
  return { ...general, ...(chosen as unknown as GraphEntry), graphReason };
}

type Content = Omit<Manifest, "graphReason">;

function entriesOf(content: Content): readonly GraphEntry[] {
  return content.graphs?.length ? content.graphs : [content];
}

/** The first field that another one contradicts, in words. */
function contradiction(content: Content): string | undefined {
  const names = new Set<string>();
  const listed = (content.graphs ?? []).map((entry, i) => [`graphs[${i}].`, entry] as const);
  for (const [where, { graph, kv }] of [["", content] as const, ...listed]) {
    if (!Object.hasOwn(content.files, graph)) {
      return `${where}graph is ${graph}: it must be among the files`;
    }
    if (names.has(graph)) return `${where}graph is ${graph}: it must be another than those before it`;
    if (where) names.add(graph);
    const place = kv.layers.findIndex((layer) => layer.windowed && layer.window === null);
    if (place >= 0) return `${where}kv.layers[${place}].window is null: a windowed layer must have one`;
  }
  return undefined;
}

/** Names of the files that an application reads: they gate loading, reports do not. */
export function readFiles({ graph, links = [], files }: Manifest): string[] {
  const inGraph = graph.endsWith(".ort");
  const isRead = (name: string) =>
    name === graph ||
    TEXTS.includes(name) ||
    (!inGraph && (links.includes(name) || /\.onnx\.data(?:\.[0-9]+)?$/.test(name)));
  return Object.keys(files).filter(isRead).sort();
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
