/** `GptOss` in the browser: a package's URL, onnxruntime-web on WebGPU or WebAssembly. */
import type { Backend } from "./backend.js";
import { Downloader } from "./download.js";
import { UserError, firstLine } from "./errors.js";
import type { Experts } from "./gpu_chunk.js";
import { type Manifest, contains, externalDataFiles, parseManifest } from "./manifest.js";
import { Model, type Progress } from "./model.js";
import { Tokenizer } from "./tokenizer.js";
import { type GraphFiles, createSession, gpuBackend, wasmBackend } from "./web_backend.js";
import {
  type Device,
  type Provider,
  type RuntimeOptions,
  findDevice,
  importRuntime,
  importTokenizers,
} from "./web_runtime.js";

export * from "./public.js";
export { RemoteModel } from "./remote.js";
export type { Ort } from "./web_runtime.js";

export interface LoadOptions extends RuntimeOptions {
  /** "auto", the default, is WebGPU where it works, else WebAssembly: `model.backend` says why. */
  backend?: "auto" | Provider;
  /** Keep the files for the next start (default), which then needs no network. */
  cache?: boolean;
  onProgress?: (progress: Progress) => void;
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** A way to run the package, tried in order. */
interface Attempt {
  provider: Provider;
  manifest: Manifest;
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
    const device = await findDevice(options.backend ?? "auto");
    const [ort, library] = await Promise.all([
      importRuntime(device.whyNot ? "wasm" : "webgpu", options),
      importTokenizers(options),
    ]);
    const files = await Downloader.open(base, options.cache ?? true, onBytes, signal);
    const text = await files.manifest();
    const choose = (features: ReadonlySet<string>) =>
      parseManifest(text, new URL("manifest.json", base).href, {
        name: "onnxruntime-web",
        version: ort.env.versions.web ?? ort.env.versions.common,
        target: "web",
        // Graphs for WebGPU are those for WebAssembly too.
        providers: ["WebGpuExecutionProvider", "CPUExecutionProvider"],
        features,
      });
    const attempts = planAttempts(device, choose, options.backend);
    const { manifest } = attempts[0];

    const fetched = new Map<string, Promise<Uint8Array>>();
    const get = (name: string): Promise<Uint8Array> => {
      const entry = manifest.files[name];
      if (!entry) throw new UserError(`${base}: the manifest names no ${name}; export it again`);
      const started = fetched.get(name) ?? files.file(name, entry);
      fetched.set(name, started);
      return started;
    };
    const getText = async (name: string) => new TextDecoder().decode(await get(name));
    const optional = async (name: string) =>
      name in manifest.files ? await getText(name) : undefined;
    const expect = (names: readonly string[]) => {
      for (const name of names) if (!fetched.has(name)) total += manifest.files[name]?.size ?? 0;
    };
    /** The graph says which data files it needs, so it comes first. */
    const getGraph = async (name: string, others: readonly string[]): Promise<GraphFiles> => {
      expect([name]);
      const graph = await get(name);
      const shards = externalDataFiles(graph);
      expect([...shards, ...others]);
      const data = shards.map(async (path) => ({ path, data: await get(path) }));
      await Promise.all([...data, ...others.filter((n) => n in manifest.files).map(get)]);
      return { graph, data: await Promise.all(data) };
    };
    const texts = ["tokenizer.json", "config.json", "generation_config.json"];
    await getGraph(manifest.graph, texts);
    const tokenizer = new Tokenizer(await getText("tokenizer.json"), library);
    const config = await optional("config.json");
    const generationConfig = await optional("generation_config.json");
    await files.keepManifest(text, manifest);

    let reason = device.whyNot;
    for (const { provider, manifest } of attempts) {
      const graphFiles = await getGraph(manifest.graph, []);
      signal?.throwIfAborted();
      onProgress?.({ stage: "prepare", loaded, total });
      let backend: Backend;
      try {
        const runtime = provider === "wasm" && !device.whyNot
          ? await importRuntime("wasm", options)
          : ort;
        const session = await createSession(runtime, provider, graphFiles);
        const experts = expertsInQMoE(graphFiles.graph, manifest, config);
        if (provider === "webgpu") backend = await gpuBackend(runtime, session, experts);
        else backend = wasmBackend(runtime, session, reason ?? whyNotGpu(manifest));
      } catch (error) {
        if (error instanceof UserError) throw error;
        if (provider === "wasm") {
          throw new UserError(`ONNX Runtime cannot load the graph: ${firstLine(error)}`);
        }
        reason = `WebGPU cannot load the graph: ${firstLine(error)}`;
        continue;
      }
      const model = new GptOss(manifest, tokenizer, { config, generationConfig }, backend);
      model.notCached = files.notCached;
      return model;
    }
    throw new UserError(reason ?? whyNotGpu(manifest) ?? "WebGPU cannot run this package");
  }
}

/** WebGPU with the best graph for the device, WebGPU with the plain one, WebAssembly. */
function planAttempts(
  device: Device,
  choose: (features: ReadonlySet<string>) => Manifest,
  wanted?: "auto" | Provider,
): Attempt[] {
  const plain = choose(new Set());
  const best = device.whyNot ? plain : choose(device.features);
  const manifests = best.graph === plain.graph ? [best] : [best, plain];
  const gpu = device.whyNot ? [] : manifests.filter((manifest) => !whyNotGpu(manifest));
  const attempts: Attempt[] = gpu.map((manifest) => ({ provider: "webgpu", manifest }));
  if (wanted !== "webgpu") attempts.push({ provider: "wasm", manifest: plain });
  if (!attempts.length) throw new UserError(device.whyNot ?? (whyNotGpu(best) as string));
  return attempts;
}

function whyNotGpu({ kv }: Manifest): string | undefined {
  return kv.layers.some((layer) => layer.windowed)
    ? "the package's KV cache is windowed, which WebGPU cannot run: use --target web"
    : undefined;
}

/** undefined for a graph without QMoE. */
function expertsInQMoE(
  graph: Uint8Array,
  manifest: Manifest,
  config?: string,
): Experts | undefined {
  if (!contains(graph, new TextEncoder().encode("QMoE"))) return undefined;
  const { num_local_experts, hidden_size } = JSON.parse(config ?? "{}");
  const count = manifest.weights?.num_experts ?? num_local_experts ?? 128;
  return { count, hiddenSize: hidden_size ?? 64 };
}
