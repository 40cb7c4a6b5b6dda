/** `GptOss` in the browser: a package's URL, onnxruntime-web on WebGPU or WebAssembly. */
import type { InferenceSession, Tensor } from "onnxruntime-common";

import { type Backend, type Graph, HostKv } from "./backend.js";
import { Downloader } from "./download.js";
import { UserError, firstLine } from "./errors.js";
import { GpuKv } from "./gpu.js";
import { externalDataFiles, parseManifest } from "./manifest.js";
import { Model, type Progress } from "./model.js";

export * from "./public.js";
export { RemoteModel } from "./remote.js";

export type Ort = typeof import("onnxruntime-common");

export interface LoadOptions {
  /** "auto", the default, is WebGPU where it works, else WebAssembly: `model.backend` says why. */
  backend?: "auto" | "webgpu" | "wasm";
  /**
   * The runtime, or the URL of the folder its files are in (onnxruntime-web's dist); imported as
   * `onnxruntime-web/webgpu` or `onnxruntime-web/wasm` when left out.
   */
  ort?: Ort | string;
  /** Where the runtime's own .wasm and .mjs files are, when not beside it. */
  wasmPaths?: string | { mjs?: string; wasm?: string };
  /** WebAssembly threads; they need a page that is cross-origin isolated. */
  threads?: number;
  /** Keep the files for the next start (default), which then needs no network. */
  cache?: boolean;
  onProgress?: (progress: Progress) => void;
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

export class GptOss extends Model {
  /** Why the browser keeps no copy of the package; undefined when it does. */
  notCached?: string;

  /** Load the package at `url`, a folder; UserError says what is wrong with it. */
  static async load(url: string | URL, options: LoadOptions = {}): Promise<GptOss> {
    const { onProgress, signal } = options;
    const base = new URL(`${String(url).replace(/\/+$/, "")}/`, globalThis.location?.href);
    let [loaded, total] = [0, 0];
    const onBytes = (file: string, bytes: number) => {
      loaded += bytes;
      onProgress?.({ stage: "fetch", file, loaded, total });
    };
    let reason = await whyNoWebgpu(options.backend ?? "auto");
    const ort = await importRuntime(reason ? "wasm" : "webgpu", options);
    const files = await Downloader.open(base, options.cache ?? true, onBytes, signal);
    const text = await files.manifest();
    const version = ort.env.versions.web ?? ort.env.versions.common;
    const where = new URL("manifest.json", base).href;
    const manifest = parseManifest(text, where, { name: "onnxruntime-web", version });

    const get = async (name: string) => {
      const entry = manifest.files[name];
      if (!entry) throw new UserError(`${base}: the manifest names no ${name}; export it again`);
      return files.file(name, entry);
    };
    const optional = async (name: string) =>
      name in manifest.files ? new TextDecoder().decode(await get(name)) : undefined;
    // The graph says which data files it needs, so it comes first.
    total = manifest.files[manifest.graph].size;
    const graph = await get(manifest.graph);
    const shards = externalDataFiles(graph);
    const texts = ["tokenizer.json", "config.json", "generation_config.json"];
    for (const name of [...shards, ...texts]) total += manifest.files[name]?.size ?? 0;
    const [data, tokenizer, config, generationConfig] = await Promise.all([
      Promise.all(shards.map(async (path) => ({ path, data: await get(path) }))),
      get("tokenizer.json").then((bytes) => new TextDecoder().decode(bytes)),
      optional("config.json"),
      optional("generation_config.json"),
    ]);
    await files.keepManifest(text, manifest);
    signal?.throwIfAborted();
    onProgress?.({ stage: "prepare", loaded, total });
    if (!reason && manifest.kv.layers.some((layer) => layer.windowed)) {
      reason = "the package's KV cache is windowed, which WebGPU cannot run: use --target web";
    }
    const backend = await openBackend(ort, reason, graph, data, options);
    const model = new GptOss(manifest, { tokenizer, config, generationConfig }, backend);
    model.notCached = files.notCached;
    return model;
  }
}

type Provider = "webgpu" | "wasm";

/** Each provider in the build that is made for it: kernels differ, and so does what is fetched. */
async function importRuntime(
  provider: Provider,
  { ort, wasmPaths, threads }: LoadOptions,
): Promise<Ort> {
  let found: Ort;
  if (typeof ort === "object") found = ort;
  else {
    try {
      if (ort) {
        const url = `${ort.replace(/\/+$/, "")}/ort.${provider}.bundle.min.mjs`;
        found = await import(/* @vite-ignore */ /* webpackIgnore: true */ url);
      } else if (provider === "webgpu") found = (await import("onnxruntime-web/webgpu")) as Ort;
      else found = (await import("onnxruntime-web/wasm")) as Ort;
    } catch (error) {
      throw new UserError(
        `onnxruntime-web cannot be loaded (${firstLine(error)}): install it, or say where it is ` +
          "with the option ort",
      );
    }
  }
  if (wasmPaths) found.env.wasm.wasmPaths = wasmPaths;
  if (threads) found.env.wasm.numThreads = threads;
  return found;
}

type ExternalData = { path: string; data: Uint8Array }[];

/** On WebGPU unless there is a `whyNot`, or the runtime finds one. */
async function openBackend(
  ort: Ort,
  whyNot: string | undefined,
  graph: Uint8Array,
  data: ExternalData,
  options: LoadOptions,
): Promise<Backend> {
  const open = (runtime: Ort, provider: Provider): Promise<InferenceSession> =>
    runtime.InferenceSession.create(graph, {
      executionProviders: [provider],
      externalData: data,
      logSeverityLevel: 3,
    });
  let reason = whyNot;
  if (!reason) {
    try {
      return await gpuBackend(ort, await open(ort, "webgpu"), gpuChunk(graph));
    } catch (error) {
      reason = `WebGPU cannot load the graph: ${firstLine(error)}`;
    }
  }
  if (options.backend === "webgpu") throw new UserError(reason);
  const runtime = whyNot ? ort : await importRuntime("wasm", options);
  try {
    return wasmBackend(runtime, await open(runtime, "wasm"), reason);
  } catch (error) {
    throw new UserError(`ONNX Runtime cannot load the graph: ${firstLine(error)}`);
  }
}

async function whyNoWebgpu(wanted: "auto" | Provider): Promise<string | undefined> {
  if (wanted === "wasm") return "the caller asked for wasm";
  if (!navigator.gpu) return "this browser has no WebGPU here";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return "the browser found no WebGPU adapter";
  if (wanted === "auto" && adapter.info?.isFallbackAdapter) {
    return "the only WebGPU adapter is a software one, slower than WebAssembly";
  }
  return undefined;
}

/**
 * Prompt tokens a run takes. On WebGPU 1.30 gives logits that vary from run to run when QMoE gets
 * more than one token, and coarser ones when MatMulNBits gets 32 or more.
 */
function gpuChunk(graph: Uint8Array): number {
  const name = new TextEncoder().encode("QMoE");
  for (let at = graph.indexOf(name[0]); at >= 0; at = graph.indexOf(name[0], at + 1)) {
    if (name.every((byte, i) => graph[at + i] === byte)) return 1;
  }
  return 16;
}

async function gpuBackend(
  ort: Ort,
  session: InferenceSession,
  chunk: number,
): Promise<Backend> {
  const device = (await ort.env.webgpu.device) as unknown as GPUDevice;
  const wrap: typeof Tensor.fromGpuBuffer = (buffer, options) =>
    ort.Tensor.fromGpuBuffer(buffer, options);
  const graph = new Serial(session, () => Promise.resolve());
  return {
    name: "webgpu",
    graph,
    chunk,
    Tensor: ort.Tensor,
    fillsOutputs: false,
    makeKv: (shape) => new GpuKv(device, wrap, shape),
    dispose: () => graph.release(),
  };
}

function wasmBackend(ort: Ort, session: InferenceSession, reason: string): Backend {
  const graph = new Serial(session, nextTask);
  return {
    name: "wasm",
    reason,
    graph,
    chunk: 512,
    Tensor: ort.Tensor,
    fillsOutputs: false,
    makeKv: (shape) => {
      // This runtime copies inputs in and outputs out, so a cache as long as its content is the
      // cheapest; only a windowed one has its length from the start.
      const capacity = shape.windowed ? shape.capacity : 0;
      return new HostKv(ort.Tensor, { ...shape, capacity }, false);
    },
    dispose: () => graph.release(),
  };
}

/** A session one run at a time: the runtime refuses a second one. */
class Serial implements Graph {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly #session: InferenceSession;
  readonly #after: () => Promise<void>;
  #last: Promise<unknown> = Promise.resolve();

  constructor(session: InferenceSession, after: () => Promise<void>) {
    [this.#session, this.#after] = [session, after];
    [this.inputNames, this.outputNames] = [session.inputNames, session.outputNames];
  }

  run(...[feeds, fetches]: Parameters<Graph["run"]>): ReturnType<Graph["run"]> {
    const result = this.#last.then(async () => {
      const results = await this.#session.run(feeds, fetches);
      await this.#after();
      return results;
    });
    this.#last = result.catch(() => {});
    return result;
  }

  release(): Promise<void> {
    return this.#last.then(() => this.#session.release());
  }
}

/** Lets events come in: WebAssembly runs without ever leaving the task. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel(); // timers would wait 4 ms
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
