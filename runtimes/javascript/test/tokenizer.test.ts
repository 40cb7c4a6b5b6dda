/** Tokenizers that are the demo's with a change: what is read, and what is refused in one line. */
import { readFileSync } from "node:fs";

import { describe, expect, test } from "vitest";

import { IncrementalDecoder, Tokenizer, UserError } from "../src/node.js";
import { ROOT, vectors } from "./support.js";

interface Change {
  name: string;
  find: string;
  replace: string;
}

const { vocab_size, read, damaged } = vectors<{
  vocab_size: number;
  read: (Change & {
    encode: { text: string; ids: number[] }[];
    decode: { ids: number[]; text: string; pieces: string[] }[];
  })[];
  damaged: Change[];
}>("tokenizer_files");
const demo = readFileSync(`${ROOT}demo/tokenizer.json`, "utf8");

function changed({ find, replace }: Change): string {
  expect(demo).toContain(find);
  return demo.replace(find, () => replace);
}

describe.each(read)("$name", (change) => {
  const tokenizer = new Tokenizer(changed(change), vocab_size);

  test("encodes", () => {
    const found = change.encode.map(({ text }) => ({ text, ids: tokenizer.encode(text) }));
    expect(found).toEqual(change.encode);
  });

  test("decodes", () => {
    for (const { ids, text, pieces } of change.decode) {
      expect(tokenizer.decode(ids)).toBe(text);
      const decoder = new IncrementalDecoder(tokenizer);
      expect([...ids.map((id) => decoder.feed(id)), decoder.finish()]).toEqual(pieces);
    }
  });
});

test.each(damaged)("is refused: $name", (change) => {
  const read = () => new Tokenizer(changed(change), vocab_size);
  expect(read).toThrow(UserError);
  expect(read).toThrow(/^tokenizer\.json: [^\n]+$/);
});

test("merges may be texts, as older files have them, and stand before the vocabulary", () => {
  const content = JSON.parse(demo);
  const { vocab, merges, ...model } = content.model;
  content.model = { merges: merges.map((pair: string[]) => pair.join(" ")), ...model, vocab };
  const older = new Tokenizer(new TextEncoder().encode(JSON.stringify(content)));
  for (const { text, ids } of vectors<{ encode: { text: string; ids: number[] }[] }>("tokenization").encode) {
    expect(older.encode(text)).toEqual(ids);
  }
});

test.each([
  ["ignore_merges", (content: any) => (content.model.ignore_merges = true)],
  ["another normalizer", (content: any) => (content.normalizer = { type: "NFC" })],
  ["a byte without token", (content: any) => (content.model.byte_fallback = true)],
  ["another pre-tokenizer", (content: any) => (content.pre_tokenizer = content.decoder)],
  ["an unknown token", (content: any) => (content.model.unk_token = "!")],
  ["a prefix", (content: any) => (content.pre_tokenizer.pretokenizers[1].add_prefix_space = true)],
])("what would give other ids is refused or done: %s", (name, change) => {
  const content = JSON.parse(demo);
  change(content);
  const read = () => new Tokenizer(JSON.stringify(content));
  if (name === "ignore_merges") expect(read().encode("hello")).toEqual(new Tokenizer(demo).encode("hello"));
  else expect(read).toThrow(/^tokenizer\.json: .*this runtime has/);
});
