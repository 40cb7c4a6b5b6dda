/** Text to token ids and back, from a package's tokenizer.json. */
import { AddedTokens, SPACES, readAddedTokens } from "./added_tokens.js";
import { Bpe } from "./bpe.js";
import { UserError } from "./errors.js";
import { type Json, naming, readTokenizer } from "./tokenizer_json.js";
import type { Vocabulary } from "./vocabulary.js";

/** A byte-level BPE tokenizer whose special tokens can be written by id only, never by text. */
export class Tokenizer {
  readonly #vocabulary: Vocabulary;
  readonly #added: AddedTokens;
  readonly #addedBytes: ReadonlyMap<number, Uint8Array>;
  readonly #special: ReadonlyMap<string, number>;
  readonly #specialIds: ReadonlySet<number>;
  readonly #split: RegExp;
  readonly #bpe: Bpe;
  readonly #wholePieces: boolean;
  #bytes = new Uint8Array(1 << 10);

  /** From a tokenizer.json; UserError says what is wrong with it. */
  constructor(file: string | Uint8Array, vocabSize = Number.POSITIVE_INFINITY) {
    const bytes = typeof file === "string" ? new TextEncoder().encode(file) : file;
    const { vocabulary, merges, model, rest } = naming(() => readTokenizer(bytes));
    const added = naming(() => readAddedTokens(rest.added_tokens));
    this.#split = naming(() => {
      checkModel(model, rest);
      return splitPattern(rest.pre_tokenizer);
    });
    this.#vocabulary = vocabulary;
    this.#added = new AddedTokens(added);
    this.#addedBytes = new Map(added.map(({ id, content }) => [id, new TextEncoder().encode(content)]));
    this.#special = new Map(added.filter((token) => token.special).map((token) => [token.content, token.id]));
    this.#specialIds = new Set(this.#special.values());
    this.#wholePieces = model.ignore_merges === true;
    const single = Array.from({ length: 256 }, (_, byte) => vocabulary.find(Uint8Array.of(byte), 0, 1));
    this.#bpe = new Bpe(single, merges);
    naming(() => this.#checkIds(added, vocabSize));
  }

  #checkIds(added: readonly { id: number; content: string }[], vocabSize: number): void {
    const contents = new Map<string, number>();
    for (const { id, content } of added) {
      const bytes = this.#addedBytes.get(id) as Uint8Array;
      const other = this.#vocabulary.find(bytes, 0, bytes.length);
      const taken = this.#vocabulary.has(id) && other !== id && !same(this.#vocabulary.bytes(id), bytes);
      if (contents.has(content) || taken || (other >= 0 && other !== id)) {
        throw new UserError(`added_tokens has ${JSON.stringify(content)} or its id ${id} twice`);
      }
      contents.set(content, id);
    }
    if (this.#addedBytes.size < added.length) throw new UserError("added_tokens has an id twice");
    const size = added.reduce((most, { id }) => Math.max(most, id + 1), this.#vocabulary.size);
    for (let id = 0; id < size; id++) {
      if (!this.#vocabulary.has(id) && !this.#addedBytes.has(id)) {
        throw new UserError(`no token has the id ${id}, and others have higher ones`);
      }
    }
    if (size > vocabSize) {
      throw new UserError(`a token has the id ${size - 1}: the model has ${vocabSize} ids`);
    }
  }

  /** Ids of ordinary text: `<|start|>` written by a user is nine characters, not a token. */
  encode(text: string): number[] {
    const ids: number[] = [];
    // Half a surrogate pair is no character.
    for (const part of this.#added.split(text.replace(/\p{Surrogate}/gu, "\ufffd"))) {
      if (typeof part === "number") ids.push(part);
      else this.#encodeText(part, ids);
    }
    return ids;
  }

  #encodeText(text: string, ids: number[]): void {
    let done = 0;
    for (const match of text.matchAll(this.#split)) {
      if (match.index > done) this.#encodePiece(text.slice(done, match.index), ids);
      if (match[0]) this.#encodePiece(match[0], ids);
      done = match.index + match[0].length;
    }
    if (done < text.length) this.#encodePiece(text.slice(done), ids);
  }

  #encodePiece(piece: string, ids: number[]): void {
    if (piece.length * 3 > this.#bytes.length) this.#bytes = new Uint8Array(piece.length * 3);
    const { written } = new TextEncoder().encodeInto(piece, this.#bytes);
    const whole = this.#wholePieces ? this.#vocabulary.find(this.#bytes, 0, written) : -1;
    if (whole >= 0) ids.push(whole);
    else this.#bpe.encode(this.#bytes, written, ids);
    if (written > 1 << 16) this.#bytes = new Uint8Array(1 << 10);
  }

  /** Text of `ids`: special tokens give none, bytes that are no UTF-8 give U+FFFD. */
  decode(ids: Iterable<number>): string {
    const decoder = new IncrementalDecoder(this);
    let text = "";
    for (const id of ids) text += decoder.feed(id);
    return text + decoder.finish();
  }

  /** Id of the special token `name`; UserError when the tokenizer has none. */
  special(name: string): number {
    const id = this.#special.get(name);
    if (id === undefined) {
      throw new UserError(`cannot chat: the tokenizer has no special token ${name}`);
    }
    return id;
  }

  hasSpecial(name: string): boolean {
    return this.#special.has(name);
  }

  /** Bytes of one token; none for special tokens and for ids beyond the vocabulary. */
  tokenBytes(token: number): Uint8Array {
    const added = this.#addedBytes.get(token);
    // Models pad their vocabulary, so an id may lie beyond the tokenizer's.
    if (added === undefined) return this.#vocabulary.bytes(token);
    return this.#specialIds.has(token) ? new Uint8Array() : added;
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** What else a tokenizer.json can ask for is refused: ids would be others. */
function checkModel(model: Json, rest: Json): void {
  if ((model.type ?? "BPE") !== "BPE") throw new UserError(`model.type is ${JSON.stringify(model.type)}, not "BPE"`);
  for (const option of ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]) {
    if (model[option]) throw new UserError(`model.${option} is ${JSON.stringify(model[option])}, which this runtime has not`);
  }
  if (rest.normalizer) throw new UserError("normalizer is set, which this runtime has not");
}

/** The pattern of a pre_tokenizer that splits by one and then writes bytes as characters. */
function splitPattern(given: unknown): RegExp {
  const { type, pretokenizers } = (given ?? {}) as { type?: unknown; pretokenizers?: Json[] };
  const [split, bytes, ...more] = Array.isArray(pretokenizers) ? pretokenizers : [];
  const pattern = (split?.pattern as Json | undefined)?.Regex;
  const plain = split?.type === "Split" && split.behavior === "Isolated" && !split.invert;
  const level = bytes?.type === "ByteLevel" && !bytes.add_prefix_space && bytes.use_regex === false;
  if (type !== "Sequence" || typeof pattern !== "string" || !plain || !level || more.length) {
    throw new UserError("pre_tokenizer is not Split by a Regex (Isolated) and ByteLevel, all this runtime has");
  }
  return new RegExp(portable(pattern), "gu");
}

/** The pattern with white space, and letters of either case, spelled out. */
function portable(pattern: string): string {
  let bracketed = false;
  let anyCase = 0; // how many groups deep
  // In order: a group's begin, an escaped character, any other.
  return pattern.replace(/\(\?i:|\\.|[^]/gu, (part) => {
    if (part === "(?i:" || (anyCase && part === "(" && !bracketed)) {
      anyCase++;
      return part === "(" ? part : "(?:";
    }
    if (part === ")" && anyCase && !bracketed) anyCase--;
    if (part === "[") bracketed = true;
    if (part === "]") bracketed = false;
    if (part === "\\s") return bracketed ? SPACES : `[${SPACES}]`;
    if (part === "\\S" && !bracketed) return `[^${SPACES}]`;
    return anyCase && !bracketed ? eitherCase(part) : part;
  });
}

/** A letter as the reference takes it where case does not matter: ſ is an s, the Kelvin sign a k. */
function eitherCase(part: string): string {
  if (!/^[a-z]$/i.test(part)) return part;
  const more = { s: "\\u017f", k: "\\u212a" }[part.toLowerCase()] ?? "";
  return `[${part.toLowerCase()}${part.toUpperCase()}${more}]`;
}

/** Turns tokens into text as they come, holding back the bytes of unfinished characters. */
export class IncrementalDecoder {
  readonly #tokenizer: Tokenizer;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** The whole characters that `token` completes. */
  feed(token: number): string {
    return this.#decoder.decode(this.#tokenizer.tokenBytes(token), { stream: true });
  }

  /** What is left: U+FFFD for an unfinished character. The decoder can be used again. */
  finish(): string {
    return this.#decoder.decode();
  }
}
