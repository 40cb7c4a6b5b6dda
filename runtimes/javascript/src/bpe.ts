/** Byte pair encoding of one piece of text, in n log n. */
import type { Merges } from "./vocabulary.js";

const GONE = -1;

export class Bpe {
  readonly #merges: Merges;
  readonly #tokens = new Int32Array(256);
  #parts = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  #heap = new Heap(512);

  /** `tokens` are those of the 256 bytes, -1 for what has none and is left out. */
  constructor(tokens: ArrayLike<number>, merges: Merges) {
    this.#tokens.set(tokens);
    this.#merges = merges;
  }

  /** Append the ids of `bytes[0..length]`: the earliest merge first, of equal ones the leftmost. */
  encode(bytes: Uint8Array, length: number, ids: number[]): void {
    if (length > this.#parts.length) this.#reserve(length);
    const [parts, next, previous] = [this.#parts, this.#next, this.#previous];
    let count = 0;
    for (let i = 0; i < length; i++) {
      const id = this.#tokens[bytes[i]];
      if (id < 0) continue;
      [parts[count], next[count], previous[count]] = [id, count + 1, count - 1];
      count++;
    }
    const [merges, heap] = [this.#merges, this.#heap];
    heap.clear();
    const offer = (place: number) => {
      if (place < 0 || next[place] >= count) return;
      const rank = merges.rank(parts[place], parts[next[place]]);
      if (rank >= 0) heap.push(rank * count + place);
    };
    for (let place = 0; place < count; place++) offer(place);
    while (heap.size) {
      const key = heap.pop();
      const place = key % count;
      const rank = (key - place) / count;
      const right = next[place];
      // A pair that has merged with a neighbour since is another pair.
      if (parts[place] === GONE || right >= count) continue;
      if (merges.rank(parts[place], parts[right]) !== rank) continue;
      parts[place] = merges.result(rank);
      parts[right] = GONE;
      next[place] = next[right];
      if (next[right] < count) previous[next[right]] = place;
      offer(place);
      offer(previous[place]);
    }
    for (let place = 0; place < count; place = next[place]) ids.push(parts[place]);
    if (length > 1 << 16) this.#reserve(256); // what a long text took is given back
  }

  #reserve(length: number): void {
    this.#parts = new Int32Array(length);
    this.#next = new Int32Array(length);
    this.#previous = new Int32Array(length);
    this.#heap = new Heap(2 * length); // a merge takes one pair away and offers two
  }
}

/** The least number first. */
class Heap {
  readonly #keys: Float64Array;
  size = 0;

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity);
  }

  clear(): void {
    this.size = 0;
  }

  push(key: number): void {
    const keys = this.#keys;
    let at = this.size++;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (keys[above] <= key) break;
      keys[at] = keys[above];
      at = above;
    }
    keys[at] = key;
  }

  pop(): number {
    const keys = this.#keys;
    const least = keys[0];
    const last = keys[--this.size];
    let at = 0;
    for (let below = 1; below < this.size; below = 2 * at + 1) {
      if (below + 1 < this.size && keys[below + 1] < keys[below]) below++;
      if (keys[below] >= last) break;
      keys[at] = keys[below];
      at = below;
    }
    keys[at] = last;
    return least;
  }
}
