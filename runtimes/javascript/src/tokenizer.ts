/** Text to token ids and back, from a package's tokenizer.json. */
import type { Tokenizer as Library } from "@huggingface/tokenizers";

import { UserError, firstLine } from "./errors.js";

// White space as Unicode (and Python, Rust) have it: JavaScript's \s lacks U+0085, has U+FEFF.
const SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

/** The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2). */
const BYTE_ALPHABET: ReadonlyMap<string, number> = (() => {
  const alphabet = new Map<string, number>();
  let shifted = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0xad) || byte > 0xad;
    alphabet.set(String.fromCharCode(printable ? byte : shifted++), byte);
  }
  return alphabet;
})();

interface AddedToken {
  id: number;
  content: string;
}

/** What is used of `@huggingface/tokenizers`, which each platform loads in its own way. */
export interface TokenizerLibrary {
  Tokenizer: typeof Library;
}

/** A byte-level BPE tokenizer whose special tokens can be written by id only, never by text. */
export class Tokenizer {
  readonly #library: Library;
  readonly #special: ReadonlyMap<string, number>;
  readonly #specialIds: ReadonlySet<number>;

  /** From the text of a tokenizer.json, with `@huggingface/tokenizers`. */
  constructor(text: string, { Tokenizer: Library }: TokenizerLibrary) {
    let content: Record<string, unknown> & { added_tokens?: AddedToken[] };
    try {
      content = JSON.parse(text);
      this.#library = new Library(
        {
          ...content,
          pre_tokenizer: JSON.parse(JSON.stringify(content.pre_tokenizer), portableRegex),
          // Without the added tokens no text can become one: they are written by id.
          added_tokens: [],
          post_processor: null,
        },
        {},
      );
    } catch (error) {
      throw new UserError(`tokenizer.json cannot be read: ${firstLine(error)}`);
    }
    this.#special = new Map((content.added_tokens ?? []).map((t) => [t.content, t.id]));
    this.#specialIds = new Set(this.#special.values());
  }

  /** Ids of ordinary text: `<|start|>` written by a user is nine characters, not a token. */
  encode(text: string): number[] {
    if (!text) return [];
    // Half a surrogate pair is no character.
    const whole = text.replace(/\p{Surrogate}/gu, "\ufffd");
    return this.#library.encode(whole, { add_special_tokens: false }).ids;
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
    if (token < 0 || this.#specialIds.has(token)) return new Uint8Array();
    // Models pad their vocabulary, so an id may lie beyond the tokenizer's.
    const piece = this.#library.id_to_token(token) ?? "";
    const bytes: number[] = [];
    for (const char of piece) {
      const byte = BYTE_ALPHABET.get(char);
      if (byte === undefined) bytes.push(...new TextEncoder().encode(char));
      else bytes.push(byte);
    }
    return Uint8Array.from(bytes);
  }
}

function portableRegex(key: string, value: unknown): unknown {
  if (key !== "Regex" || typeof value !== "string") return value;
  // In order: an escaped character, a bracket, a white space class in or outside of brackets.
  let bracketed = false;
  return value.replace(/\\.|[[\]]/gu, (part) => {
    if (part === "[") bracketed = true;
    if (part === "]") bracketed = false;
    if (part === "\\s") return bracketed ? SPACES : `[${SPACES}]`;
    if (part === "\\S" && !bracketed) return `[^${SPACES}]`;
    return part;
  });
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
