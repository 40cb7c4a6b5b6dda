/** onnxruntime-web's sessions as backends. */
import type { InferenceSession, Tensor } from "onnxruntime-common";

import { type Backend, type Graph, HostKv, type ValueInfo } from "./backend.js";
import { GpuKv } from "./gpu.js";
import { type Experts, gpuChunk } from "./gpu_chunk.js";
import type { GraphFiles } from "./package_files.js";
import type { Ort, Provider } from "./web_runtime.js";

export function createSession(
  ort: Ort,
  provider: Provider,
  { graph, data }: GraphFiles,
): Promise<InferenceSession> {
  return ort.InferenceSession.create(graph, {
    executionProviders: [provider],
    externalData: data,
    logSeverityLevel: 3,
  });
}

/** `experts` are those in QMoE, if any. */
export async function gpuBackend(
  ort: Ort,
  session: InferenceSession,
  experts?: Experts,
): Promise<Backend> {
  const device = (await ort.env.webgpu.device) as unknown as GPUDevice;
  const wrap: typeof Tensor.fromGpuBuffer = (buffer, options) =>
    ort.Tensor.fromGpuBuffer(buffer, options);
  const graph = new Serial(session, () => Promise.resolve());
  return {
    name: "webgpu",
    graph,
    ...(await gpuChunk(device, experts)),
    Tensor: ort.Tensor,
    fillsOutputs: false,
    makeKv: (shape) => new GpuKv(device, wrap, shape),
    dispose: () => graph.release(),
  };
}

/** `reason` is why it is not on WebGPU. */
export function wasmBackend(ort: Ort, session: InferenceSession, reason?: string): Backend {
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
  readonly inputMetadata: readonly ValueInfo[];
  readonly outputMetadata: readonly ValueInfo[];
  readonly #session: InferenceSession;
  readonly #after: () => Promise<void>;
  #last: Promise<unknown> = Promise.resolve();

  constructor(session: InferenceSession, after: () => Promise<void>) {
    [this.#session, this.#after] = [session, after];
    ({ inputMetadata: this.inputMetadata, outputMetadata: this.outputMetadata } = session);
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
