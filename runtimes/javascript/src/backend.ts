/** What a platform gives to the session: a graph to run, and buffers for the KV cache. */
import type { OnnxValue, Tensor, TensorConstructor } from "onnxruntime-common";

export interface Graph {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  run(
    feeds: Record<string, Tensor>,
    fetches: Record<string, Tensor | null>,
  ): Promise<Record<string, OnnxValue>>;
  release(): Promise<void>;
}

export interface Backend {
  readonly name: "cpu" | "webgpu" | "wasm";
  /** Why it is not a faster one. */
  readonly reason?: string;
  readonly graph: Graph;
  readonly Tensor: TensorConstructor;
  /** Whether `run` fills the tensors it is given as outputs. */
  readonly fillsOutputs: boolean;
  /** Prompt tokens a run takes when the caller does not say. */
  readonly chunk: number;
  makeKv(shape: KvShape): KvBuffer;
  dispose(): Promise<void>;
}

export interface KvShape {
  heads: number;
  /** Tokens. */
  capacity: number;
  /** Of one head. */
  size: number;
  /** Holds about a window of tokens and never grows. */
  windowed: boolean;
}

/** One KV tensor [1, heads, capacity, size], given as past and as present so it never moves. */
export interface KvBuffer {
  readonly capacity: number;
  readonly past: Tensor;
  /** null lets the runtime allocate, and `take` is given what it made. */
  readonly present: Tensor | null;
  take(present: Tensor): void;
  /** Make room for `capacity` tokens; the first `used` stay. */
  grow(capacity: number, used: number): void;
  /** The first `used` rows of each head, [heads, used, size]. */
  read(used: number): Float32Array;
  write(rows: Float32Array): void;
  dispose(): void;
}

/** In main memory; `inPlace` where the runtime writes into the tensor it is given. */
export class HostKv implements KvBuffer {
  past: Tensor;
  readonly #Tensor: TensorConstructor;
  readonly #shape: KvShape;
  readonly #inPlace: boolean;

  constructor(Tensor: TensorConstructor, shape: KvShape, inPlace: boolean) {
    [this.#Tensor, this.#shape, this.#inPlace] = [Tensor, shape, inPlace];
    this.past = this.#allocate(shape.capacity);
  }

  get capacity(): number {
    return this.past.dims[2];
  }

  get present(): Tensor | null {
    return this.#inPlace ? this.past : null;
  }

  get #data(): Float32Array {
    return this.past.data as Float32Array;
  }

  #allocate(capacity: number): Tensor {
    const { heads, size } = this.#shape;
    const data = new Float32Array(heads * capacity * size);
    return new this.#Tensor("float32", data, [1, heads, capacity, size]);
  }

  take(present: Tensor): void {
    if (!this.#inPlace) this.past = present;
  }

  grow(capacity: number, used: number): void {
    if (!this.#inPlace) return; // what the runtime returns has grown already
    const rows = this.read(used);
    this.past = this.#allocate(capacity);
    this.write(rows);
  }

  read(used: number): Float32Array {
    const { heads, size } = this.#shape;
    const rows = new Float32Array(heads * used * size);
    for (let head = 0; head < heads; head++) {
      const from = head * this.capacity * size;
      rows.set(this.#data.subarray(from, from + used * size), head * used * size);
    }
    return rows;
  }

  write(rows: Float32Array): void {
    const { heads, size } = this.#shape;
    const length = rows.length / heads;
    for (let head = 0; head < heads; head++) {
      const part = rows.subarray(head * length, (head + 1) * length);
      this.#data.set(part, head * this.capacity * size);
    }
  }

  dispose(): void {
    this.past = this.#allocate(0);
  }
}
