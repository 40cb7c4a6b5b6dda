/** `GptOss` in the browser: a package's URL, onnxruntime-web on WebGPU or WebAssembly. */
import { Downloader } from "./download.js";
import { UserError, firstLine } from "./errors.js";
import type { Experts } from "./gpu_chunk.js";
import { parseObject } from "./json_object.js";
import { type Manifest, TEXTS, contains, parseManifest } from "./manifest.js";
import { Model, type Progress } from "./model.js";
import { PackageFiles } from "./package_files.js";
import { Tokenizer } from "./tokenizer.js";
import { createSession, gpuBackend, wasmBackend } from "./web_backend.js";
import {
  type Device,
  type Provider,
  type RuntimeOptions,
  findDevice,
  importRuntime,
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
    const device = await findDevice(options.backend ?? "auto");
    const ort = await importRuntime(device.whyNot ? "wasm" : "webgpu", options);
    let [loaded, files] = [0, undefined as PackageFiles | undefined];
    const onBytes = (file: string, bytes: number) => {
      loaded += bytes;
      onProgress?.({ stage: "fetch", file, loaded, total: files?.total ?? 0 });
    };
    const downloader = await Downloader.open(base, options.cache ?? true, onBytes, signal);
    const text = await downloader.manifest();
    const choose = (features: ReadonlySet<string>) =>
      parseManifest(text, new URL("manifest.json", base).href, {
        name: "onnxruntime-web",
        version: ort.env.versions.web ?? ort.env.versions.common,
        target: "web",
        // Graphs for WebGPU are those for WebAssembly too.
        providers: ["WebGpuExecutionProvider", "CPUExecutionProvider"],
        features,
        kv: ["float32", "float16"],
        appends: false,
      });
    const attempts = planAttempts(device, choose, options.backend);
    const [{ manifest }] = attempts;
    files = new PackageFiles(base, downloader, manifest.files);
    await files.graph(manifest.graph, TEXTS);
    const tokenizer = new Tokenizer(await files.bytes("tokenizer.json"), manifest.vocab_size);
    const config = await files.optionalText("config.json");
    const generationConfig = await files.optionalText("generation_config.json");
    await downloader.keepManifest(text);

    let reason = device.whyNot;
    for (const { provider, manifest } of attempts) {
      const graphFiles = await files.graph(manifest.graph);
      signal?.throwIfAborted();
      onProgress?.({ stage: "prepare", loaded, total: files.total });
      try {
        const other = provider === "wasm" && !device.whyNot;
        const runtime = other ? await importRuntime("wasm", options) : ort;
        const session = await createSession(runtime, provider, graphFiles);
        const backend =
          provider === "webgpu"
            ? await gpuBackend(runtime, session, expertsInQMoE(graphFiles.graph, manifest, config))
            : wasmBackend(runtime, session, reason ?? whyNotGpu(manifest));
        const model = new GptOss(manifest, tokenizer, { config, generationConfig }, backend);
        model.notCached = downloader.notCached;
        return model;
      } catch (error) {
        if (error instanceof UserError) throw error;
        const name = provider === "webgpu" ? "WebGPU" : "ONNX Runtime";
        reason = `${name} cannot load the graph: ${firstLine(error)}`;
      }
    }
    throw new UserError(reason as string);
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
  const { num_local_experts, hidden_size } = parseObject(config ?? "{}", "config.json");
  const whole = (value: unknown) => (Number.isSafeInteger(value) ? (value as number) : undefined);
  const count = manifest.weights?.num_experts ?? whole(num_local_experts) ?? 128;
  return { count, hiddenSize: whole(hidden_size) ?? 64 };
}
