/** KV tensors that stay on the GPU. */
import type { Tensor } from "onnxruntime-common";

import type { KvBuffer, KvShape } from "./backend.js";
import { KV_BYTES } from "./manifest.js";

type FromGpuBuffer = typeof Tensor.fromGpuBuffer;
// GPUBufferUsage's, which is no constant where there is no WebGPU.
const [COPY_SRC, COPY_DST, STORAGE] = [0x04, 0x08, 0x80];

export class GpuKv implements KvBuffer {
  past: Tensor;
  readonly #device: GPUDevice;
  readonly #wrap: FromGpuBuffer;
  readonly #shape: KvShape;
  #buffer: GPUBuffer;

  constructor(device: GPUDevice, wrap: FromGpuBuffer, shape: KvShape) {
    [this.#device, this.#wrap, this.#shape] = [device, wrap, shape];
    [this.#buffer, this.past] = this.#allocate(shape.capacity);
  }

  get capacity(): number {
    return this.past.dims[2];
  }

  get present(): Tensor {
    return this.past;
  }

  take(): void {}

  #allocate(capacity: number): [GPUBuffer, Tensor] {
    const { dtype, heads, size } = this.#shape;
    const buffer = this.#device.createBuffer({
      size: heads * capacity * size * KV_BYTES[dtype],
      usage: STORAGE | COPY_SRC | COPY_DST,
    });
    const dims = [1, heads, capacity, size];
    return [buffer, this.#wrap(buffer as never, { dataType: dtype, dims })];
  }

  grow(capacity: number, used: number): void {
    const { dtype, heads, size } = this.#shape;
    const row = size * KV_BYTES[dtype];
    const [old, before] = [this.#buffer, this.capacity];
    [this.#buffer, this.past] = this.#allocate(capacity);
    const encoder = this.#device.createCommandEncoder();
    for (let head = 0; head < heads && used > 0; head++) {
      const [from, to] = [before, capacity].map((rows) => head * rows * row);
      encoder.copyBufferToBuffer(old, from, this.#buffer, to, used * row);
    }
    this.#device.queue.submit([encoder.finish()]);
    old.destroy(); // once the copy is done
  }

  // Only windowed layers are copied out and in, and WebGPU runs none.
  read(): Uint8Array {
    throw new Error("a KV cache on the GPU is not read back");
  }

  write(): void {
    throw new Error("a KV cache on the GPU is not written from here");
  }

  dispose(): void {
    this.#buffer.destroy();
  }
}
