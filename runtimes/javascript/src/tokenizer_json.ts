/** tokenizer.json read from its bytes: 900,000 strings of merges are never made. */
import { UserError, firstLine } from "./errors.js";
import { Merges, Vocabulary } from "./vocabulary.js";

/** The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2). */
const ALPHABET: Int16Array = (() => {
  const alphabet = new Int16Array(512).fill(-1);
  let shifted = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0xad) || byte > 0xad;
    alphabet[printable ? byte : shifted++] = byte;
  }
  return alphabet;
})();
const [BLANK, QUOTE, COMMA, COLON, ESCAPE, OPEN, CLOSE] = [...' ",:\\[]'].map((char) => char.charCodeAt(0));
const LONGEST = 1 << 24; // more ids than any vocabulary has

export type Json = Record<string, unknown>;

/** What a tokenizer.json holds: its vocabulary and merges in tables, the rest as it stands. */
export interface Content {
  vocabulary: Vocabulary;
  merges: Merges;
  /** Without `vocab` and `merges`. */
  model: Json;
  rest: Json;
}

/** UserError where the bytes are no JSON or no byte-level BPE. */
export function readTokenizer(bytes: Uint8Array): Content {
  return new Reader(bytes).content();
}

class Reader {
  readonly #bytes: Uint8Array;
  #at = 0;
  // The string read last, as the bytes that its characters stand for.
  #piece = new Uint8Array(1 << 10);
  #length = 0;
  #blank = -1;
  #vocabulary = new Vocabulary();
  #merges = new Merges(0);

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  content(): Content {
    const [rest, model]: [Json, Json] = [{}, {}];
    let [vocab, merges] = [-1, -1];
    this.#object((name) => {
      if (name !== "model") rest[name] = this.#value();
      else {
        this.#object((part) => {
          if (part === "vocab") {
            vocab = this.#at;
            this.#readVocabulary();
          } else if (part === "merges") {
            merges = this.#at;
            if (vocab < 0) this.#skip();
            else this.#readMerges();
          } else model[part] = this.#value();
        });
      }
    });
    this.#space();
    if (this.#at < this.#bytes.length) this.#fail();
    if (vocab < 0 || merges < 0) throw new UserError("model has no vocab or no merges: no BPE");
    if (merges < vocab) {
      this.#at = merges;
      this.#readMerges();
    }
    return { vocabulary: this.#vocabulary, merges: this.#merges, model, rest };
  }

  #readVocabulary(): void {
    this.#elements("{", "}", () => {
      const from = this.#at;
      const known = this.#string() === 0;
      const to = this.#at;
      const piece = known ? this.#piece.subarray(0, this.#length) : utf8(this.#json(from, to));
      this.#expect(COLON);
      const id = this.#whole();
      if (!this.#vocabulary.add(piece, id, known)) {
        throw new UserError(`model.vocab has ${this.#shown(from, to)} or its id ${id} twice`);
      }
    });
  }

  #readMerges(): void {
    const vocabulary = this.#vocabulary;
    this.#merges = new Merges((this.#bytes.length - this.#at) >> 5); // of 32 bytes and more
    let result = 0;
    this.#elements("[", "]", (number) => {
      const start = this.#at;
      const first = this.#bytes[start];
      if (first !== QUOTE && first !== OPEN) throw new UserError(`model.merges[${number}] is no pair`);
      const split = first === QUOTE ? this.#words() : this.#pair();
      const [piece, length] = [this.#piece, this.#length];
      const left = vocabulary.find(piece, 0, split);
      const right = vocabulary.find(piece, split, length);
      // Merges are mostly in the order of what they make.
      if (vocabulary.is(result + 1, piece, 0, length)) result++;
      else if (!vocabulary.is(result, piece, 0, length)) result = vocabulary.find(piece, 0, length);
      if (split < 1 || left < 0 || right < 0 || result < 0) {
        throw new UserError(`model.merges[${number}] is of no tokens: ${this.#shown(start, this.#at)}`);
      }
      this.#merges.add(left, right, result);
    });
  }

  /** `["a", "b"]`; gives where b begins, or -1. */
  #pair(): number {
    this.#expect(OPEN);
    const strange = this.#string();
    const split = this.#length;
    this.#expect(COMMA);
    const more = this.#string(split);
    this.#expect(CLOSE);
    return strange + more === 0 ? split : -1;
  }

  /** `"a b"`; gives where b begins, or -1. */
  #words(): number {
    return this.#string() === 1 ? this.#blank : -1;
  }

  /**
   * Read a string into #piece behind `kept` bytes: each character as the byte it stands for. Gives
   * how many stand for none; #blank is where the last blank was.
   */
  #string(kept = 0): number {
    const bytes = this.#bytes;
    this.#space();
    if (bytes[this.#at++] !== QUOTE) this.#fail();
    this.#length = kept;
    this.#blank = -1;
    for (let strange = 0; ; ) {
      let code = bytes[this.#at++];
      if (code === QUOTE) return strange;
      if (code === undefined || code < 0x20) this.#fail();
      if (code === ESCAPE) code = this.#escaped();
      else if (code >= 0x80) code = this.#character(code);
      else if (code === BLANK) this.#blank = this.#length;
      const byte = code < ALPHABET.length ? ALPHABET[code] : -1;
      if (byte < 0) strange++;
      else this.#append(byte);
    }
  }

  #append(byte: number): void {
    if (this.#length === this.#piece.length) {
      const longer = new Uint8Array(2 * this.#length);
      longer.set(this.#piece);
      this.#piece = longer;
    }
    this.#piece[this.#length++] = byte;
  }

  /** The code point that begins with `first`; the alphabet's are of two bytes at most. */
  #character(first: number): number {
    if (first < 0xe0) return ((first & 31) << 6) | (this.#bytes[this.#at++] & 63);
    this.#at += first < 0xf0 ? 2 : 3;
    return 0xffff;
  }

  #escaped(): number {
    const start = this.#at++;
    if (this.#bytes[start] === 0x75) this.#at += 4; // \uXXXX
    const escaped = decode(this.#bytes.subarray(start - 1, this.#at));
    return (JSON.parse(`"${escaped}"`) as string).charCodeAt(0);
  }

  #whole(): number {
    this.#space();
    const start = this.#at;
    let number = 0;
    for (let digit; (digit = this.#bytes[this.#at] - 0x30) >= 0 && digit <= 9; this.#at++) {
      number = Math.min(number * 10 + digit, LONGEST);
    }
    const behind = this.#peek();
    if (this.#at === start || number >= LONGEST || (behind !== "," && behind !== "}")) {
      this.#at = start;
      throw new UserError(`model.vocab has the id ${this.#shown(start, this.#skipped())}`);
    }
    return number;
  }

  /** Each member's name; `read` reads its value. */
  #object(read: (name: string) => void): void {
    this.#elements("{", "}", () => {
      const start = this.#at;
      this.#string();
      const name = this.#json(start, this.#at) as string;
      this.#expect(COLON);
      read(name);
    });
  }

  #elements(open: string, close: string, read: (number: number) => void): void {
    if (this.#peek() !== open) {
      const kind = open === "{" ? "an object" : "a list";
      throw new UserError(`${this.#shown(this.#at, this.#skipped()) || "the end"} where ${kind} has to be`);
    }
    this.#at++;
    for (let number = 0; this.#peek() !== close; number++) {
      if (number) this.#expect(COMMA);
      this.#space();
      read(number);
    }
    this.#at++;
  }

  #value(): unknown {
    return this.#json(this.#skip(), this.#at);
  }

  /** Pass a value, of which only strings and brackets are looked at; gives where it begins. */
  #skip(): number {
    this.#space();
    const start = this.#at;
    this.#at = this.#skipped();
    if (this.#at === start) this.#fail();
    return start;
  }

  #skipped(): number {
    const bytes = this.#bytes;
    let depth = 0;
    let at = this.#at;
    for (; at < bytes.length; at++) {
      const byte = bytes[at];
      if (byte === QUOTE) {
        while (++at < bytes.length && bytes[at] !== QUOTE) if (bytes[at] === ESCAPE) at++;
        if (!depth) return at + 1;
      } else if (byte === 0x5b || byte === 0x7b) depth++;
      else if (byte === 0x5d || byte === 0x7d) {
        if (!depth) return at;
        if (!--depth) return at + 1;
      } else if (!depth && (byte === COMMA || byte <= 0x20)) return at;
    }
    return at;
  }

  #space(): void {
    const bytes = this.#bytes;
    while (bytes[this.#at] === 0x20 || bytes[this.#at] === 0x0a || bytes[this.#at] === 0x0d || bytes[this.#at] === 0x09) {
      this.#at++;
    }
  }

  #peek(): string {
    this.#space();
    return String.fromCharCode(this.#bytes[this.#at] ?? 0);
  }

  #expect(byte: number): void {
    this.#space();
    if (this.#bytes[this.#at++] !== byte) this.#fail();
  }

  #json(from: number, to: number): unknown {
    return JSON.parse(decode(this.#bytes.subarray(from, to)));
  }

  /** The beginning of a value, on one line. */
  #shown(from: number, to: number): string {
    return decode(this.#bytes.subarray(from, Math.min(to, from + 100))).replace(/\s+/g, " ");
  }

  #fail(): never {
    throw new UserError(`not as JSON or a tokenizer has it at byte ${Math.min(this.#at, this.#bytes.length)}`);
  }
}

function utf8(text: unknown): Uint8Array {
  return new TextEncoder().encode(text as string);
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** `what` a function gives; all that it throws is a UserError that names the file. */
export function naming<T>(what: () => T): T {
  try {
    return what();
  } catch (error) {
    throw new UserError(`tokenizer.json: ${firstLine(error)}`);
  }
}
