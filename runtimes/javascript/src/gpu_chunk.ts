/**
 * How many prompt tokens the GPU takes at once: two kernels of onnxruntime-web 1.30 are wrong for
 * several tokens on some devices, so the device is asked.
 *
 * QMoE lists each expert's tokens in one dispatch, a workgroup a token: the first workgroup sets the
 * lists' lengths to 0, all of them add to them after sorting their experts, and nothing orders the
 * two. What is added before the zeros is lost. GPUs start workgroups in order, and sorting takes far
 * longer than starting: the zeros come first. Software (SwiftShader) runs workgroups in any order.
 * So that pattern of zeros, sorting and adding runs here many times. A single token takes another
 * path. QMoE also copies a token's row in 64 equal parts, which overlap where 64 does not divide it.
 *
 * GroupQueryAttention takes 32 tokens and more in steps of a subgroup, but never fewer than 8 keys:
 * on subgroups of 4 it counts keys twice.
 */

const TOKENS = 512;
const FEW_TOKENS = 16; // below the 32 from which attention goes by subgroups
const LEAST_SUBGROUP = 8;
const TRIALS = 50;
const ALIGNMENT = 64; // 32-bit words between bindings of one buffer
// GPUBufferUsage's, which is no constant where there is no WebGPU.
const [MAP_READ, COPY_SRC, COPY_DST, STORAGE] = [0x01, 0x04, 0x08, 0x80];

export interface Chunk {
  chunk: number;
  /** Why not more. */
  chunkReason?: string;
}

export interface Experts {
  count: number;
  hiddenSize: number;
}

/** `experts` are those in QMoE, if any. */
export async function gpuChunk(device: GPUDevice, experts?: Experts): Promise<Chunk> {
  if (experts) {
    const { count, hiddenSize } = experts;
    const one = (why: string) => ({ chunk: 1, chunkReason: `QMoE takes one token at a time ${why}` });
    if (hiddenSize % 64) return one(`of hidden size ${hiddenSize}: 64 does not divide it`);
    const lost = await countLosses(device, count);
    if (lost) {
      return one(
        "here: this device does not start workgroups in order " +
          `(${lost} of ${TRIALS} trials lost tokens)`,
      );
    }
  }
  const subgroup = await subgroupSize(device);
  if (subgroup !== undefined && subgroup < LEAST_SUBGROUP) {
    return {
      chunk: FEW_TOKENS,
      chunkReason: `GroupQueryAttention is wrong for 32 tokens and more on subgroups of ${subgroup}`,
    };
  }
  return { chunk: TOKENS };
}

/** As attention's workgroups of 64 have it; what an adapter says of itself is only a bound. */
async function subgroupSize(device: GPUDevice): Promise<number | undefined> {
  if (!device.features.has("subgroups")) return undefined; // attention goes another way
  const code = `
    enable subgroups;
    @group(0) @binding(0) var<storage, read_write> found: array<u32, 1>;
    @compute @workgroup_size(64)
    fn main(@builtin(local_invocation_index) lane: u32, @builtin(subgroup_size) size: u32) {
      if (lane == 0u) { found[0] = size; }
    }`;
  const [[size]] = await compute(device, code, { words: 1, workgroups: 1, times: 1 });
  return size;
}

/** Trials in which an addition was lost. */
async function countLosses(device: GPUDevice, experts: number): Promise<number> {
  const code = `
    @group(0) @binding(0) var<storage, read_write> lengths: array<atomic<u32>, ${experts}>;
    var<workgroup> order: array<u32, ${experts}>;
    @compute @workgroup_size(${experts})
    fn main(@builtin(workgroup_id) token: vec3u, @builtin(local_invocation_index) expert: u32) {
      if (token.x == 0u) { atomicStore(&lengths[expert], 0u); }
      order[expert] = expert;
      workgroupBarrier();
      for (var turn = 0u; turn < ${experts}u; turn++) {
        for (var i = 0u; i + 1u < ${experts}u - turn; i++) {
          if (expert == i) { order[i + 1u] = max(order[i], order[i + 1u]); }
          workgroupBarrier();
        }
      }
      if (expert == 0u) {
        atomicAdd(&lengths[token.x % ${experts}u], min(order[${experts - 1}] + 1u, 1u));
      }
    }`;
  const asked = { words: experts, workgroups: TOKENS, times: TRIALS };
  const counts = await compute(device, code, asked);
  return counts.filter((words) => words.reduce((a, b) => a + b, 0) !== TOKENS).length;
}

/** What `code` leaves in its one binding, of `words` 32-bit words that were 0: run by run. */
async function compute(
  device: GPUDevice,
  code: string,
  { words, workgroups, times }: { words: number; workgroups: number; times: number },
): Promise<Uint32Array[]> {
  const module = device.createShaderModule({ code });
  const pipeline = await device.createComputePipelineAsync({
    layout: "auto",
    compute: { module, entryPoint: "main" },
  });
  const stride = Math.ceil(words / ALIGNMENT) * ALIGNMENT; // words of one run
  const size = 4 * stride * times;
  const buffer = device.createBuffer({ size, usage: STORAGE | COPY_SRC });
  const result = device.createBuffer({ size, usage: MAP_READ | COPY_DST });
  try {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    const layout = pipeline.getBindGroupLayout(0);
    for (let run = 0; run < times; run++) {
      const resource = { buffer, offset: 4 * stride * run, size: 4 * words };
      const entries = [{ binding: 0, resource }];
      pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
      pass.dispatchWorkgroups(workgroups);
    }
    pass.end();
    encoder.copyBufferToBuffer(buffer, 0, result, 0, size);
    device.queue.submit([encoder.finish()]);
    await result.mapAsync(MAP_READ);
    const all = new Uint32Array(result.getMappedRange()).slice();
    return Array.from({ length: times }, (_, run) =>
      all.subarray(run * stride, run * stride + words),
    );
  } finally {
    buffer.destroy();
    result.destroy();
  }
}
