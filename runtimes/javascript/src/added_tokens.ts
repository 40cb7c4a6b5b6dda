/** Tokens that a tokenizer.json adds to its vocabulary, and where they are in a text. */
import { UserError } from "./errors.js";

export interface AddedToken {
  id: number;
  content: string;
  /** Written by id only: in a text it is characters. */
  special: boolean;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
}

const FLAGS = ["special", "single_word", "lstrip", "rstrip", "normalized"] as const;
// White space and letters as Rust's regular expressions have them, and Unicode.
export const SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const [BEGINS_IN_WORD, ENDS_IN_WORD] = [new RegExp(`^${WORD}`, "u"), new RegExp(`${WORD}$`, "u")];
const SPACE = new RegExp(`[${SPACES}]`);

/** The entries of `added_tokens`; UserError where one is not as tokenizers write them. */
export function readAddedTokens(entries: unknown): AddedToken[] {
  if (!Array.isArray(entries ?? [])) throw new UserError("added_tokens is no list");
  return ((entries ?? []) as unknown[]).map((entry, number) => {
    const token = { ...(entry as AddedToken) };
    const { id, content } = token;
    if (typeof content !== "string" || !content || FLAGS.some((flag) => typeof token[flag] !== "boolean")) {
      throw new UserError(`added_tokens[${number}] is no token`);
    }
    if (!Number.isInteger(id) || id < 0 || id >= 1 << 24) {
      throw new UserError(`added_tokens[${number}] has the id ${JSON.stringify(id)}`);
    }
    return token;
  });
}

/** Splits a text at its added tokens, as the tokenizers library does. */
export class AddedTokens {
  // Those that ask for normalized text are looked for in what the others leave.
  readonly #passes: [RegExp, ReadonlyMap<string, AddedToken>][];

  constructor(tokens: readonly AddedToken[]) {
    const passes = [false, true].map((after) => tokens.filter((token) => token.normalized === after));
    this.#passes = passes
      .filter((some) => some.some((token) => !token.special))
      .map((some) => {
        // Special ones are found too and stay text: no other token begins inside of them.
        const longest = some.map((token) => token.content).sort((a, b) => b.length - a.length);
        const pattern = longest.map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|");
        return [new RegExp(pattern, "gu"), new Map(some.map((token) => [token.content, token]))];
      });
  }

  /** Texts between tokens, and the ids of tokens. */
  split(text: string): (string | number)[] {
    let parts: (string | number)[] = [text];
    for (const [pattern, tokens] of this.#passes) {
      parts = parts.flatMap((part) => (typeof part === "string" ? splitAt(part, pattern, tokens) : [part]));
    }
    return parts;
  }
}

function splitAt(
  text: string,
  pattern: RegExp,
  tokens: ReadonlyMap<string, AddedToken>,
): (string | number)[] {
  const parts: (string | number)[] = [];
  let done = 0;
  for (const match of text.matchAll(pattern)) {
    const token = tokens.get(match[0]) as AddedToken;
    if (token.special) continue;
    let [start, end] = [match.index, match.index + match[0].length];
    // Two units are one character at least.
    const [before, behind] = [text.slice(Math.max(0, start - 2), start), text.slice(end, end + 2)];
    if (token.single_word && (ENDS_IN_WORD.test(before) || BEGINS_IN_WORD.test(behind))) continue;
    if (token.lstrip) while (start > done && SPACE.test(text[start - 1])) start--;
    if (token.rstrip) while (end < text.length && SPACE.test(text[end])) end++;
    if (start > done) parts.push(text.slice(done, start));
    parts.push(token.id);
    done = end;
  }
  if (done < text.length) parts.push(text.slice(done));
  return parts;
}
