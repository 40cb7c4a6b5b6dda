/**
 * What manifest.schema.json says, in a third of its bytes: pages load this. Tests hold it to the
 * schema, at every field.
 */
import { type Check, either, flag, list, never, object, oneOf, table, text, whole } from "./checks.js";

const nothing = oneOf(null);
const word = text(64, /^[\w.+-]+$/, "one word");
const line = text(255, /^[^\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+$/, "one line");
const label = either(text(255), nothing);
const kind = either(text(64), nothing);
const count = whole(1, 2 ** 24);
const length = whole(1, 4096);
const path = text(
  255,
  /^(?!\/|manifest\.json$)(?:(?:^|\/)(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:[./]|$))\w(?:[\w.+-]*[\w+-])?)+$/i,
  "FOLDER/NAME, inside the package",
);
const tensors = list(object({ name: line, "dtype?": kind, "shape?": list(either(whole(), text(255)), 16) }), 8192);

function both(one: Check, other: Check): Check {
  return (value, where) => one(value, where) ?? other(value, where);
}

const graph = {
  target: word,
  min_runtime: text(32, /^\d{1,4}(?:\.\d{1,4}){0,3}$/, "as 1.32"),
  "verified?": text(4096),
  graph: both(path, text(255, /\.(?:onnx|ort)$/, "NAME.onnx or NAME.ort")),
  "activations?": oneOf("float32", "float16", "bfloat16"),
  "requires?": list(word, 16),
  "inputs?": tensors,
  "outputs?": tensors,
  logits: oneOf("last", "all"),
  "padded_batches?": flag,
  kv: object({
    dtype: oneOf("float32", "float16", "bfloat16", "int8"),
    "in_place?": flag,
    "scales?": either(table(16), nothing),
    num_kv_heads: length,
    head_dim: length,
    layers: list(object({ window: either(count, nothing), windowed: flag }), 1024, 1),
  }),
  // What targets write, and nothing else: an option of ONNX Runtime can write files.
  session: object(
    {
      providers: list(
        oneOf(...["CPU", "CUDA", "Dml", "WebGpu"].map((name) => `${name}ExecutionProvider`)),
        4,
        1,
      ),
      "provider_options?": object(
        { "arena_extend_strategy?": oneOf("kSameAsRequested"), "enable_skip_layer_norm_strict_mode?": oneOf("1") },
        never,
      ),
      "config?": object({ "session.use_device_allocator_for_initializers?": oneOf("1") }, never),
      "intra_op_num_threads?": either(whole(1, 256), nothing),
    },
    never,
  ),
};

/** What a graph's entry has. */
export const GRAPH_FIELDS = Object.keys(graph).map((name) => name.replace("?", ""));

export const checkManifest = object({
  format: oneOf(1),
  name: line,
  quant: word,
  context_length: count,
  vocab_size: count,
  files: table(4096, path, object({ size: whole(), sha256: text(64, /^[\da-f]{64}$/, "of 64 digits from 0 to f") }), 1),
  ...graph,
  "graphs?": list(object(graph), 64),
  "links?": list(path, 4096),
  "source?": both(table(64), object({ "name?": line, "revision?": label, "expert_format?": kind })),
  "recipe?": table(64, word, line),
  "rounding?": both(table(64), object({ "method?": word })),
  "weights?": table(64, word, whole()),
  "tokenizer?": table(64),
  "versions?": table(64, word, label),
});
