/** What a platform gives to the session: a graph to run, and buffers for the KV cache. */
import type { OnnxValue, Tensor, TensorConstructor } from "onnxruntime-common";

import type { KvDtype } from "./manifest.js";

/** What a graph says of an input or output. */
export interface ValueInfo {
  readonly name: string;
  readonly type?: string | number;
  /** A name or -1 where it leaves a length open. */
  readonly shape?: readonly (string | number)[];
}

export interface Graph {
  readonly inputMetadata: readonly ValueInfo[];
  readonly outputMetadata: readonly ValueInfo[];
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
  /** Why not more of them. */
  readonly chunkReason?: string;
  makeKv(shape: KvShape): KvBuffer;
  dispose(): Promise<void>;
}

export interface KvShape {
  dtype: KvDtype;
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
  /** The first `used` rows of each head, [heads, used, size], as bytes. */
  read(used: number): Uint8Array;
  write(rows: Uint8Array): void;
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

  get #bytes(): Uint8Array {
    const { buffer, byteOffset, byteLength } = this.past.data as Float32Array;
    return new Uint8Array(buffer, byteOffset, byteLength);
  }

  /** Of one head. */
  get #stride(): number {
    return this.#bytes.length / this.#shape.heads;
  }

  #allocate(capacity: number): Tensor {
    const { heads, size, dtype } = this.#shape;
    const [count, dims] = [heads * capacity * size, [1, heads, capacity, size]];
    return dtype === "float16"
      ? new this.#Tensor(dtype, new Uint16Array(count), dims)
      : new this.#Tensor(dtype, new Float32Array(count), dims);
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

  read(used: number): Uint8Array {
    const { heads } = this.#shape;
    const [bytes, stride] = [this.#bytes, this.#stride];
    const length = this.capacity ? (stride / this.capacity) * used : 0;
    const rows = new Uint8Array(heads * length);
    for (let head = 0; head < heads; head++) {
      rows.set(bytes.subarray(head * stride, head * stride + length), head * length);
    }
    return rows;
  }

  write(rows: Uint8Array): void {
    const { heads } = this.#shape;
    const [bytes, stride] = [this.#bytes, this.#stride];
    const length = rows.length / heads;
    for (let head = 0; head < heads; head++) {
      bytes.set(rows.subarray(head * length, (head + 1) * length), head * stride);
    }
  }

  dispose(): void {
    this.past = this.#allocate(0);
  }
}
