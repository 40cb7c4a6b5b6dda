/** A loaded graph held to its manifest: the KV cache is made by what the manifest says. */
import type { Graph, ValueInfo } from "./backend.js";
import { UserError } from "./errors.js";
import type { Manifest } from "./manifest.js";

// As onnxruntime-node's binding has them; elsewhere they are names.
const TYPES = { float32: 1, float16: 10 } as const;

/** UserError names the manifest's field that the graph's inputs and outputs contradict. */
export function checkGraph(loaded: Graph, { graph, kv, vocab_size }: Manifest): void {
  const agree = (field: string, said: unknown, found: unknown) => {
    if (said === found) return;
    throw new UserError(
      `manifest.json: ${field} is ${said}, but ${graph} has ${found}; export or copy the package again`,
    );
  };
  const find = (values: readonly ValueInfo[], name: string): ValueInfo => {
    const found = values.find((value) => value.name === name);
    if (!found) throw new UserError(`${graph}: has no ${name}: it is no graph of a GPT-OSS package`);
    return found;
  };
  /** A graph may leave a length open. */
  const agreeOn = (field: string, said: number, { shape = [] }: ValueInfo, place: number) => {
    const found = shape[place];
    if (typeof found !== "string" && found !== -1) agree(field, said, found);
  };
  const { inputMetadata: inputs, outputMetadata: outputs } = loaded;
  const past = inputs.filter(({ name }) => name.startsWith("past_key_values."));
  agree("the number of kv.layers", kv.layers.length, past.length / 2);
  agreeOn("vocab_size", vocab_size, find(outputs, "logits"), 2);
  for (const name of ["input_ids", "attention_mask"]) find(inputs, name);
  kv.layers.forEach((_, layer) => {
    for (const part of ["key", "value"]) {
      find(outputs, `present.${layer}.${part}`);
      const value = find(inputs, `past_key_values.${layer}.${part}`);
      if (value.type !== TYPES[kv.dtype]) agree("kv.dtype", kv.dtype, value.type);
      agreeOn("kv.num_kv_heads", kv.num_kv_heads, value, 1);
      agreeOn("kv.head_dim", kv.head_dim, value, 3);
    }
  });
}
