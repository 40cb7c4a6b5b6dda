/** `GptOss` in Node: a package's folder, onnxruntime-node. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile, realpath, stat } from "node:fs/promises";
import { join, sep } from "node:path";
import { fileURLToPath } from "node:url";

import type { InferenceSession } from "onnxruntime-common";

import { type Backend, type Graph, HostKv } from "./backend.js";
import { UserError, firstLine } from "./errors.js";
import { type Manifest, parseManifest, readFiles } from "./manifest.js";
import { Model, type Progress } from "./model.js";
import { type Ort, openGraph, wasSetUpBefore } from "./node_graph.js";
import { Tokenizer } from "./tokenizer.js";

export * from "./public.js";

export interface LoadOptions {
  /** Compute threads; the manifest's number or one a core when left out. */
  threads?: number;
  /** Read every file that is needed and compare its SHA-256; without it only sizes are checked. */
  verify?: boolean;
  onProgress?: (progress: Progress) => void;
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

export class GptOss extends Model {
  /** Load the package in `folder`, a path or a file: URL; UserError says what is wrong with it. */
  static async load(folder: string | URL, options: LoadOptions = {}): Promise<GptOss> {
    const root = folderPath(folder);
    const { threads, verify, onProgress, signal } = options;
    if (threads !== undefined && !(threads >= 1)) {
      throw new UserError(`threads is ${threads}: it must be at least 1`);
    }
    const ort = await importRuntime();
    const path = join(root, "manifest.json");
    const text = (await readOptional(path))?.toString();
    if (text === undefined) throw new UserError(`${path}: no such file; ${root} is not a package`);
    const version = ort.env.versions.node ?? ort.env.versions.common;
    const manifest = parseManifest(text, path, {
      name: "onnxruntime-node",
      version,
      target: "node",
      providers: ["CPUExecutionProvider"],
      features: new Set(),
      kv: ["float32", "float16"],
      appends: false,
    });
    await checkSizes(root, manifest);
    if (verify) await checkHashes(root, manifest, onProgress, signal);
    signal?.throwIfAborted();
    const vocabulary = await readPart(root, "tokenizer.json");
    if (vocabulary === undefined) throw new UserError(`${root}: the package has no tokenizer.json`);
    const tokenizer = new Tokenizer(vocabulary, manifest.vocab_size);
    const config = (await readPart(root, "config.json"))?.toString();
    const generationConfig = (await readPart(root, "generation_config.json"))?.toString();
    onProgress?.({ stage: "prepare", loaded: 0, total: 0 });
    const graph = await load(ort, root, manifest, threads);
    const backend: Backend = {
      name: "cpu",
      graph,
      Tensor: ort.Tensor,
      fillsOutputs: true,
      chunk: 512,
      makeKv: (shape) => new HostKv(ort.Tensor, shape, true),
      dispose: () => graph.release(),
    };
    return new GptOss(manifest, tokenizer, { config, generationConfig }, backend);
  }
}

async function importRuntime(): Promise<Ort> {
  // It reports its use to its maker unless it is told not to before it is loaded.
  const told = process.env.ORT_DISABLE_TELEMETRY;
  process.env.ORT_DISABLE_TELEMETRY ??= "1";
  let ort: Ort;
  try {
    ort = (await import("onnxruntime-node")) as Ort;
  } catch (error) {
    throw new UserError(
      `onnxruntime-node cannot be loaded: npm install onnxruntime-node (${firstLine(error)})`,
    );
  }
  if (told === undefined && wasSetUpBefore(ort)) {
    process.emitWarning(
      "onnxruntime-node was in use before its reports were off: load the package first, or set ORT_DISABLE_TELEMETRY=1",
    );
  }
  return ort;
}

function folderPath(folder: string | URL): string {
  const text = String(folder);
  if (text.startsWith("file:")) return fileURLToPath(text);
  if (/^https?:/.test(text)) {
    throw new UserError(`${text}: in Node a package is a folder; download it first`);
  }
  return text;
}

async function readOptional(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new UserError(`${path}: cannot be read (${firstLine(error)})`);
  }
}

/** A file of the package; undefined where there is none, or a link out of it. */
async function readPart(root: string, name: string): Promise<Buffer | undefined> {
  const path = join(root, name);
  const found = await stat(path).catch(() => undefined);
  return found?.isFile() && (await isInside(root, path)) ? readOptional(path) : undefined;
}

async function checkSizes(root: string, manifest: Manifest): Promise<void> {
  for (const name of readFiles(manifest)) {
    const [path, { size }] = [join(root, name), manifest.files[name]];
    const found = await stat(path).catch(() => undefined);
    const problem = !found?.isFile()
      ? "missing"
      : !(await isInside(root, path))
        ? "a link out of the package"
        : found.size !== size && `${found.size} bytes instead of ${size}`;
    if (problem) {
      throw new UserError(`${root}: ${name}: ${problem}; export or copy the package again`);
    }
  }
}

/** Whether a file, links followed, lies in `root`, or where a hub's cache keeps its files. */
async function isInside(root: string, file: string): Promise<boolean> {
  const [home, real] = await Promise.all([realpath(root), realpath(file)]);
  // huggingface_hub: snapshots/REVISION/NAME is a link to blobs/HASH of the same repository.
  const [repository, cached] = home.split(`${sep}snapshots${sep}`);
  const blobs = cached === undefined ? [] : [join(repository, "blobs")];
  return [home, ...blobs].some((folder) => real.startsWith(folder + sep));
}

async function checkHashes(
  root: string,
  manifest: Manifest,
  onProgress?: (progress: Progress) => void,
  signal?: AbortSignal,
): Promise<void> {
  const names = readFiles(manifest);
  const total = names.reduce((sum, name) => sum + manifest.files[name].size, 0);
  let loaded = 0;
  for (const file of names) {
    const entry = manifest.files[file];
    const hash = createHash("sha256");
    for await (const block of createReadStream(join(root, file), { highWaterMark: 1 << 20 })) {
      signal?.throwIfAborted();
      hash.update(block);
      loaded += block.length;
      onProgress?.({ stage: "verify", file, loaded, total });
    }
    if (hash.digest("hex") !== entry.sha256) {
      throw new UserError(
        `${root}: ${file}: its bytes changed: the SHA-256 is not the manifest's; ` +
          "export or copy the package again",
      );
    }
  }
}

async function load(
  ort: Ort,
  root: string,
  manifest: Manifest,
  threads?: number,
): Promise<Graph> {
  const { intra_op_num_threads: wanted, config = {} } = manifest.session;
  const options: InferenceSession.SessionOptions = {
    executionProviders: ["cpu"],
    intraOpNumThreads: threads ?? wanted ?? undefined,
    extra: config,
    logSeverityLevel: 3,
  };
  if (options.intraOpNumThreads === undefined) delete options.intraOpNumThreads;
  try {
    // By path, so that weights stay mapped from the package's files.
    return await openGraph(ort, join(root, manifest.graph), options);
  } catch (error) {
    throw new UserError(`${root}: ONNX Runtime cannot load the graph: ${firstLine(error)}`);
  }
}
