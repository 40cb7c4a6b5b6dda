/** A graph with its KV cache: feeds tokens, grows the cache in place, goes back to a prefix. */
import type { Tensor } from "onnxruntime-common";

import type { Backend, KvBuffer } from "./backend.js";
import { UserError } from "./errors.js";
import type { Manifest } from "./manifest.js";
import { checkIds } from "./token_ids.js";

const FIRST_CAPACITY = 256; // tokens
// Rows of a windowed buffer beyond its window, as a part of the window: attention reads every row,
// while moving the window back to its start is paid once in slack + 1 tokens.
const WINDOW_SLACK = 0.25;
const SNAPSHOTS = 4;

/** The windowed layers' rows after `length` tokens. */
interface Snapshot {
  length: number;
  rows: Uint8Array[];
}

interface Slot {
  past: string;
  present: string;
  buffer: KvBuffer;
  /** null for a buffer that holds all tokens. */
  window: number | null;
}

/**
 * The running state of one sequence. `maxLength` (tokens) allocates the KV cache once, for that
 * many; without it the cache starts small and doubles.
 */
export class Session {
  readonly maxLength: number;
  /** Set while a generation uses the session. */
  busy = false;
  readonly #backend: Backend;
  readonly #manifest: Manifest;
  readonly #slots: Slot[];
  readonly #windowed: Slot[];
  #capacity: number;
  #mask: BigInt64Array;
  #logits: Tensor | null = null;
  #tokens: number[] = [];
  #snapshots: Snapshot[] = []; // by length
  #running = false;

  constructor(backend: Backend, manifest: Manifest, maxLength?: number) {
    const most = manifest.context_length;
    if (maxLength !== undefined && !(maxLength > 1 && maxLength <= most)) {
      throw new UserError(
        `maxLength is ${maxLength}: it must be from 2 to the package's context length, ${most}`,
      );
    }
    [this.#backend, this.#manifest] = [backend, manifest];
    this.maxLength = maxLength ?? most;
    this.#capacity = Math.min(maxLength ?? FIRST_CAPACITY, this.maxLength);
    this.#mask = new BigInt64Array(this.#capacity).fill(1n);
    this.#slots = this.#makeSlots();
    this.#windowed = this.#slots.filter((slot) => slot.window !== null);
  }

  #makeSlots(): Slot[] {
    const { dtype, num_kv_heads: heads, head_dim: size, layers } = this.#manifest.kv;
    return layers.flatMap((layer, index) =>
      ["key", "value"].map((part) => {
        const window = layer.windowed ? layer.window : null;
        const capacity = window ? Math.trunc(window * (1 + WINDOW_SLACK)) : this.#capacity;
        return {
          past: `past_key_values.${index}.${part}`,
          present: `present.${index}.${part}`,
          buffer: this.#backend.makeKv({ dtype, heads, capacity, size, windowed: window !== null }),
          window,
        };
      }),
    );
  }

  /** Tokens that the KV cache holds. */
  get tokens(): readonly number[] {
    return this.#tokens;
  }

  get vocabularySize(): number {
    return this.#manifest.vocab_size;
  }

  get length(): number {
    return this.#tokens.length;
  }

  /** Tokens at the start that windowed layers no longer have rows of. */
  get evicted(): number {
    const [slot] = this.#windowed;
    return slot ? firstPosition(slot, this.length) : 0;
  }

  /** Forget everything; the buffers stay. */
  reset(): void {
    this.#idle();
    [this.#tokens, this.#snapshots] = [[], []];
  }

  /**
   * Feed the next tokens; the logits after the last, a view that the next call may overwrite.
   * UserError beyond `maxLength`, for an id outside the vocabulary and for no token at all: nothing
   * has changed then. When the run fails, what is left is the longest intact prefix.
   */
  async feed(tokens: readonly number[]): Promise<Float32Array> {
    this.#idle();
    checkIds(tokens, this.#manifest.vocab_size, "the tokens");
    if (!tokens.length) throw new UserError("no token is fed: feed at least one");
    const end = this.length + tokens.length;
    if (end > this.maxLength) {
      throw new UserError(
        `${end} tokens are more than the ${this.maxLength} this session has room for; ` +
          "start a new one, or shorten the conversation",
      );
    }
    if (end > this.#capacity) this.#grow(end);
    const { Tensor } = this.#backend;
    const ids = new BigInt64Array(tokens.length);
    for (let i = 0; i < ids.length; i++) ids[i] = BigInt(tokens[i]);
    const feeds: Record<string, Tensor> = {
      input_ids: new Tensor("int64", ids, [1, tokens.length]),
      attention_mask: new Tensor("int64", this.#mask.subarray(0, end), [1, end]),
    };
    const fetches: Record<string, Tensor | null> = { logits: this.#logitsFor(tokens.length) };
    for (const { past, present, buffer } of this.#slots) {
      feeds[past] = buffer.past;
      fetches[present] = buffer.present;
    }
    let logits: Tensor;
    this.#running = true;
    try {
      const results = await this.#backend.graph.run(feeds, fetches);
      for (const { present, buffer } of this.#slots) buffer.take(results[present] as Tensor);
      logits = results.logits as Tensor;
    } catch (error) {
      this.#afterFailure(end);
      throw error;
    } finally {
      this.#running = false;
    }
    for (const token of tokens) this.#tokens.push(token);
    const data = logits.data as Float32Array;
    return data.subarray(data.length - this.#manifest.vocab_size);
  }

  /** One tensor for all chunks of a size: each run writes into it. */
  #logitsFor(size: number): Tensor | null {
    if (!this.#backend.fillsOutputs) return null;
    const { logits, vocab_size: vocabulary } = this.#manifest;
    const rows = logits === "all" ? size : 1;
    if (this.#logits?.dims[1] !== rows) {
      const data = new Float32Array(rows * vocabulary);
      this.#logits = new this.#backend.Tensor("float32", data, [1, rows, vocabulary]);
    }
    return this.#logits;
  }

  /** A run reads and writes what all else here changes. */
  #idle(): void {
    if (this.#running) throw new Error("this session is computing: wait for that first");
  }

  #grow(needed: number): void {
    const capacity = Math.min(Math.max(2 * this.#capacity, needed), this.maxLength);
    for (const { window, buffer } of this.#slots) {
      // One by one, so that only one old buffer is alive beside its successor.
      if (window === null) buffer.grow(capacity, this.length);
    }
    this.#mask = new BigInt64Array(capacity).fill(1n);
    this.#capacity = capacity; // last: where memory ends half-way, the next feed grows again
  }

  /** Nothing was lost unless a windowed layer may have moved its rows for the failed chunk. */
  #afterFailure(end: number): void {
    if (!this.#sameRows(end, this.length)) this.#restoreSnapshot(this.length);
  }

  /** Make the present length one that `rewind` can come back to exactly. */
  snapshot(): void {
    this.#idle();
    if (!this.#windowed.length) return;
    const { length } = this;
    const rows = this.#windowed.map((slot) =>
      slot.buffer.read(length - firstPosition(slot, length)),
    );
    this.#snapshots.push({ length, rows });
    if (this.#snapshots.length > SNAPSHOTS) {
      // The newest stays; of the others, those that spare most tokens from being fed again.
      const lengths = [0, ...this.#snapshots.map((snapshot) => snapshot.length)];
      const gaps = this.#snapshots.slice(0, -1).map((_, i) => lengths[i + 1] - lengths[i]);
      this.#snapshots.splice(gaps.indexOf(Math.min(...gaps)), 1);
    }
  }

  /**
   * Go back to `length` tokens, or as near below it as can be restored exactly; returns it.
   *
   * Full layers only need the count. A windowed layer's rows are right when none was evicted
   * since, else they come from a snapshot; with neither, nothing is left.
   */
  rewind(length: number): number {
    this.#idle();
    if (!(Number.isInteger(length) && length >= 0 && length <= this.length)) {
      throw new RangeError(`cannot rewind to ${length} of ${this.length} tokens`);
    }
    if (this.#sameRows(this.length, length)) this.#cut(length);
    else this.#restoreSnapshot(length);
    return this.length;
  }

  /** Whether the windowed rows after `length` tokens begin with those after `shorter`. */
  #sameRows(length: number, shorter: number): boolean {
    return this.#windowed.every(
      (slot) => firstPosition(slot, length) === firstPosition(slot, shorter),
    );
  }

  /** Restore the longest prefix of at most `length` tokens that a snapshot holds, or none. */
  #restoreSnapshot(length: number): void {
    let best: Snapshot | undefined;
    let reached = 0;
    for (const snapshot of this.#snapshots) {
      // A later snapshot serves too when nothing was evicted between the two.
      const within = snapshot.length <= length || this.#sameRows(snapshot.length, length);
      if (within && Math.min(snapshot.length, length) > reached) {
        [best, reached] = [snapshot, Math.min(snapshot.length, length)];
      }
    }
    best?.rows.forEach((rows, i) => this.#windowed[i].buffer.write(rows));
    this.#cut(reached);
  }

  #cut(length: number): void {
    this.#tokens.length = length;
    this.#snapshots = this.#snapshots.filter((snapshot) => snapshot.length <= length);
  }

  /**
   * Keep what the cache has in common with the prompt `ids`; how many tokens need no feeding.
   * At least one token is left to feed: the logits after it are what a reply starts from.
   */
  reuse(ids: readonly number[]): number {
    let common = 0;
    const most = Math.min(this.length, ids.length - 1);
    while (common < most && this.#tokens[common] === ids[common]) common++;
    return this.rewind(common);
  }

  dispose(): void {
    for (const { buffer } of this.#slots) buffer.dispose();
    this.reset();
  }
}

/** Position that row 0 holds after `length` tokens. */
function firstPosition({ window, buffer }: Slot, length: number): number {
  if (window === null || length <= buffer.capacity) return 0;
  const evicted = buffer.capacity - window + 1; // at a time
  return Math.ceil((length - buffer.capacity) / evicted) * evicted;
}
