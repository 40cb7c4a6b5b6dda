/**
 * Runs of onnxruntime-node that write into the caller's tensors and copy nothing.
 *
 * 1.30 fills an output tensor it is given, then makes a JavaScript copy of it all the same: at 4,096
 * tokens that took three times as long as the demo's whole decode step. The copies are made one by
 * one behind the run, each ending in a call of the `Tensor` class that the binding was handed when
 * it was set up. So it is handed one here that ends them at the first, the smallest. Where that
 * cannot be done (another release; somebody set the binding up before), runs go the public way,
 * with the same results.
 */
import { createRequire } from "node:module";

import type { InferenceSession, Tensor } from "onnxruntime-common";

import type { Graph, ValueInfo } from "./backend.js";

export type Ort = typeof import("onnxruntime-common");
type Tensors = Record<string, Tensor | null>;

/** What `onnxruntime-node/dist/binding.js` of 1.30 holds. */
interface Internals {
  binding: {
    initOrtOnce(logLevel: number, tensor: unknown, isMainThread: boolean): void;
    InferenceSession: new () => {
      loadModel(path: string, options: object): void;
      run(feeds: Tensors, fetches: Tensors): unknown;
      dispose(): void;
      inputMetadata: ValueInfo[];
      outputMetadata: ValueInfo[];
    };
    [STATE]?: State;
  };
  initOrt(): void;
}

interface State {
  /** While true, no output becomes a JavaScript tensor. */
  filled: boolean;
}

const STATE = Symbol.for("gptoss-onnx.outputs"); // shared by two copies of this module
const LONGEST_WAIT = 5; // ms that events may wait: going to them costs as much as a small layer
const FILLED = new Error("the outputs are where they were wanted");

/** Open the graph at `path`. */
export async function openGraph(
  ort: Ort,
  path: string,
  options: InferenceSession.SessionOptions,
): Promise<Graph> {
  const internals = setUp(ort);
  if (internals?.binding[STATE]) return new DirectGraph(internals, path, options);
  return ort.InferenceSession.create(path, options);
}

/** Whether onnxruntime-node was in use before this library; false where that cannot be told. */
export function wasSetUpBefore(ort: Ort): boolean {
  const internals = setUp(ort);
  return internals !== undefined && !internals.binding[STATE];
}

function setUp(ort: Ort): Internals | undefined {
  if (!ort.env.versions.node?.startsWith("1.30.")) return undefined; // others are left as they are
  try {
    const internals: Internals = createRequire(import.meta.url)("onnxruntime-node/dist/binding.js");
    const { binding, initOrt } = internals;
    if (!binding[STATE]) {
      const original = binding.initOrtOnce;
      binding.initOrtOnce = (logLevel, tensor, isMainThread) => {
        const state = { filled: false };
        const watched = new Proxy(tensor as new () => object, {
          construct(target, given, newTarget) {
            if (state.filled) throw FILLED;
            return Reflect.construct(target, given, newTarget);
          },
        });
        original.call(binding, logLevel, watched, isMainThread);
        binding[STATE] = state;
      };
      initOrt(); // does nothing when it was called before
      binding.initOrtOnce = original;
    }
    return internals;
  } catch {
    return undefined;
  }
}

class DirectGraph implements Graph {
  readonly inputMetadata: readonly ValueInfo[];
  readonly outputMetadata: readonly ValueInfo[];
  readonly #session: InstanceType<Internals["binding"]["InferenceSession"]>;
  readonly #state: State;
  #waited = 0;

  constructor({ binding }: Internals, path: string, options: object) {
    this.#state = binding[STATE] as State;
    this.#session = new binding.InferenceSession();
    this.#session.loadModel(path, options);
    ({ inputMetadata: this.inputMetadata, outputMetadata: this.outputMetadata } = this.#session);
  }

  /** Every one of `fetches` must be a tensor: what is null gets lost. */
  async run(feeds: Tensors, fetches: Tensors): Promise<Record<string, Tensor>> {
    if (performance.now() - this.#waited > LONGEST_WAIT) {
      await new Promise((resolve) => setImmediate(resolve)); // let events come in
      this.#waited = performance.now();
    }
    this.#state.filled = true;
    try {
      this.#session.run(feeds, fetches);
    } catch (error) {
      if (error !== FILLED && (error as Error)?.message !== FILLED.message) throw error;
    } finally {
      this.#state.filled = false;
    }
    return fetches as Record<string, Tensor>;
  }

  async release(): Promise<void> {
    this.#session.dispose();
  }
}
