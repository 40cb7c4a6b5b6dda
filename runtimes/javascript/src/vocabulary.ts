/** A vocabulary and its merges in flat arrays: 200,000 tokens as strings and Maps take ten times the memory. */

const EMPTY = -1;

/** Tokens by their bytes, which are found whole or as the union of two. */
export class Vocabulary {
  #arena = new Uint8Array(1 << 16);
  #used = 0;
  #starts = new Int32Array(1 << 10);
  #ends = new Int32Array(1 << 10);
  #table = new Int32Array(1 << 11).fill(EMPTY);
  #count = 0;
  /** One more than the highest id. */
  size = 0;

  /** The token's bytes; none for an id that there is not. */
  bytes(id: number): Uint8Array {
    return id >= 0 && id < this.size ? this.#arena.slice(this.#starts[id], this.#ends[id]) : new Uint8Array();
  }

  has(id: number): boolean {
    return id < this.size && this.#ends[id] > this.#starts[id];
  }

  /** Keep what `id` stands for; only what is `found` can be encoded to. Gives false where it is there already. */
  add(bytes: Uint8Array, id: number, found: boolean): boolean {
    if (this.has(id) || (found && this.find(bytes, 0, bytes.length) !== EMPTY)) return false;
    while (this.#used + bytes.length > this.#arena.length) this.#arena = doubled(this.#arena);
    while (id >= this.#starts.length) {
      this.#starts = doubled(this.#starts);
      this.#ends = doubled(this.#ends);
    }
    this.#arena.set(bytes, this.#used);
    this.#starts[id] = this.#used;
    this.#ends[id] = this.#used += bytes.length;
    this.size = Math.max(this.size, id + 1);
    if (found) this.#insert(id);
    return true;
  }

  /** Id of the token whose bytes are `buffer[from..to]`, or -1. */
  find(buffer: Uint8Array, from: number, to: number): number {
    const table = this.#table;
    const mask = table.length - 1;
    for (let at = hash(buffer, from, to) & mask; ; at = (at + 1) & mask) {
      const id = table[at];
      if (id === EMPTY || this.is(id, buffer, from, to)) return id;
    }
  }

  /** Whether the token's bytes are `buffer[from..to]`. */
  is(id: number, buffer: Uint8Array, from: number, to: number): boolean {
    if (id >= this.size) return false;
    const arena = this.#arena;
    let place = this.#starts[id];
    if (this.#ends[id] - place !== to - from) return false;
    for (let i = from; i < to; i++) if (arena[place++] !== buffer[i]) return false;
    return true;
  }

  #insert(id: number): void {
    if (++this.#count * 2 > this.#table.length) {
      const old = this.#table;
      this.#table = new Int32Array(old.length * 2).fill(EMPTY);
      for (const other of old) if (other !== EMPTY) this.#place(other);
    }
    this.#place(id);
  }

  #place(id: number): void {
    const mask = this.#table.length - 1;
    let at = hash(this.#arena, this.#starts[id], this.#ends[id]) & mask;
    while (this.#table[at] !== EMPTY) at = (at + 1) & mask;
    this.#table[at] = id;
  }
}

/** Which two tokens merge, how early, and into what. */
export class Merges {
  #pairs: Int32Array; // left, right, rank
  #results: Int32Array;
  #count = 0;

  /** `expected` merges take no growing. */
  constructor(expected: number) {
    const slots = 1 << (33 - Math.clz32(expected + 1));
    this.#pairs = new Int32Array(3 * slots).fill(EMPTY);
    this.#results = new Int32Array(slots / 2);
  }

  add(left: number, right: number, result: number): void {
    const rank = this.#count++;
    if (rank >= this.#results.length) {
      this.#results = doubled(this.#results);
      const old = this.#pairs;
      this.#pairs = new Int32Array(old.length * 2).fill(EMPTY);
      for (let at = 0; at < old.length; at += 3) {
        if (old[at] !== EMPTY) this.#set(old[at], old[at + 1], old[at + 2]);
      }
    }
    this.#results[rank] = result;
    this.#set(left, right, rank);
  }

  /** The rank of a merge, lower ones first, or -1. */
  rank(left: number, right: number): number {
    return this.#pairs[this.#find(left, right) + 2];
  }

  result(rank: number): number {
    return this.#results[rank];
  }

  #set(left: number, right: number, rank: number): void {
    const at = this.#find(left, right);
    this.#pairs[at] = left;
    this.#pairs[at + 1] = right;
    this.#pairs[at + 2] = rank;
  }

  /** Where the pair is, or would be. */
  #find(left: number, right: number): number {
    const pairs = this.#pairs;
    const mask = pairs.length / 3 - 1;
    let slot = mix(Math.imul(left, 0x9e3779b1) ^ right) & mask;
    while (pairs[3 * slot] !== EMPTY && (pairs[3 * slot] !== left || pairs[3 * slot + 1] !== right)) {
      slot = (slot + 1) & mask;
    }
    return 3 * slot;
  }
}

function doubled<T extends Uint8Array | Int32Array>(array: T): T {
  const made = new (array.constructor as new (length: number) => T)(array.length * 2);
  made.set(array);
  return made;
}

function hash(bytes: Uint8Array, from: number, to: number): number {
  let state = 0x811c9dc5;
  for (let i = from; i < to; i++) state = Math.imul(state ^ bytes[i], 0x01000193);
  return mix(state);
}

function mix(state: number): number {
  const mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
  return (mixed ^ (mixed >>> 13)) >>> 0;
}
