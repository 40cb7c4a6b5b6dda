/** What a page computes with: a device and onnxruntime-web. */
import { UserError, firstLine } from "./errors.js";
import { importUrl } from "./import_url.js";

export type Ort = typeof import("onnxruntime-common");
export type Provider = "webgpu" | "wasm";

export interface RuntimeOptions {
  /**
   * The runtime, or the URL of the folder its files are in (onnxruntime-web's dist); imported as
   * `onnxruntime-web/webgpu` or `onnxruntime-web/wasm` when left out.
   */
  ort?: Ort | string;
  /** Where the runtime's own .wasm and .mjs files are, when not beside it. */
  wasmPaths?: string | { mjs?: string; wasm?: string };
  /** WebAssembly threads; they need a page that is cross-origin isolated. */
  threads?: number;
}

export interface Device {
  /** Why WebGPU is not used. */
  whyNot?: string;
  /** Of the adapter: `shader-f16` and others. */
  features: ReadonlySet<string>;
}

/** The WebGPU adapter, unless there is none or the caller wants none. */
export async function findDevice(wanted: "auto" | Provider): Promise<Device> {
  const without = (whyNot: string): Device => ({ whyNot, features: new Set() });
  if (wanted === "wasm") return without("the caller asked for wasm");
  if (!navigator.gpu) return without("this browser has no WebGPU here");
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return without("the browser found no WebGPU adapter");
  if (wanted === "auto" && adapter.info?.isFallbackAdapter) {
    return without("the only WebGPU adapter is a software one, slower than WebAssembly");
  }
  return { features: new Set<string>(adapter.features) };
}

/** Each provider in the build that is made for it: kernels differ, and so does what is fetched. */
export async function importRuntime(
  provider: Provider,
  { ort, wasmPaths, threads }: RuntimeOptions,
): Promise<Ort> {
  let found: Ort;
  if (typeof ort === "object") found = ort;
  else {
    try {
      if (ort) {
        const url = `${ort.replace(/\/+$/, "")}/ort.${provider}.bundle.min.mjs`;
        found = await importUrl(url);
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
