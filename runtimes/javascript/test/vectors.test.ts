/** What every language's runtime must do, as the Python one does it. */
import { readFileSync } from "node:fs";

import * as tokenizers from "@huggingface/tokenizers";
import { describe, expect, test } from "vitest";

import {
  Harmony,
  IncrementalDecoder,
  Sampler,
  SplitMix64,
  StreamParser,
  Tokenizer,
} from "../src/node.js";
import { samplingFromConfig } from "../src/sampling.js";
import {
  ROOT,
  type RenderCase,
  type SharedMessage,
  fromShared,
  systemFromShared,
  toShared,
  vectors,
} from "./support.js";

const vocabulary = readFileSync(`${ROOT}demo/tokenizer.json`, "utf8");
const tokenizer = new Tokenizer(vocabulary, tokenizers);

describe("tokenization", () => {
  const { encode, decode } = vectors<{
    encode: { text: string; ids: number[] }[];
    decode: { ids: number[]; text: string; pieces: string[] }[];
  }>("tokenization");

  test.each(encode)("encodes $text", ({ text, ids }) => {
    expect(tokenizer.encode(text)).toEqual(ids);
  });

  test.each(decode)("decodes $ids", ({ ids, text, pieces }) => {
    expect(tokenizer.decode(ids)).toBe(text);
    const decoder = new IncrementalDecoder(tokenizer);
    expect([...ids.map((id) => decoder.feed(id)), decoder.finish()]).toEqual(pieces);
  });

  test("half a surrogate pair is no character", () => {
    expect(tokenizer.encode("a\ud800b\udc00")).toEqual(tokenizer.encode("a\ufffdb\ufffd"));
    expect(tokenizer.decode(tokenizer.encode("🎉"))).toBe("🎉");
  });
});

test.each(vectors<{ render: RenderCase[] }>("harmony").render)(
  "renders $name",
  ({ messages, system, instructions, tools, reply, ids }) => {
    const options = {
      system: systemFromShared(system),
      instructions: instructions ?? undefined,
      tools,
      reply,
    };
    expect(new Harmony(tokenizer).render(messages.map(fromShared), options)).toEqual(ids);
  },
);

interface ReplyCase {
  name: string;
  ids: number[];
  events: [string, string][][];
  messages: SharedMessage[];
  cuts?: SharedMessage[][];
}

test.each(vectors<{ replies: ReplyCase[] }>("stream_parse").replies)(
  "parses $name",
  ({ ids, events, messages, cuts = [] }) => {
    const pairs = (pieces: { channel: string; text: string }[]) =>
      pieces.map(({ channel, text }) => [channel, text]);
    const parser = new StreamParser(tokenizer);
    expect([...ids.map((id) => pairs(parser.feed(id))), pairs(parser.finish())]).toEqual(events);
    expect(parser.messages.map(toShared)).toEqual(messages);
    cuts.forEach((expected, length) => {
      const cut = new StreamParser(tokenizer);
      for (const id of ids.slice(0, length)) cut.feed(id);
      cut.finish();
      expect(cut.messages.map(toShared)).toEqual(expected);
    });
  },
);

describe("sampling", () => {
  const { splitmix64, draws } = vectors<{
    splitmix64: { seed: string; next: string[]; uniform: number[] }[];
    draws: {
      logits: { values?: number[]; size: number; seed: string; scale: number };
      sampling: Record<string, number | boolean | string>;
      prompt: number[];
      tokens: number[];
    }[];
  }>("sampling");

  test.each(splitmix64)("SplitMix64 of $seed", ({ seed, next, uniform }) => {
    const [bits, doubles] = [new SplitMix64(BigInt(seed)), new SplitMix64(BigInt(seed))];
    const hex = (word: number) => word.toString(16).padStart(8, "0");
    expect(next.map(() => bits.next().map(hex).join(""))).toEqual(next);
    expect(uniform.map(() => doubles.uniform())).toEqual(uniform);
  });

  test.each(draws)("$sampling of $logits", ({ logits, sampling, prompt, tokens }) => {
    const random = new SplitMix64(BigInt(logits.seed ?? 0));
    const scores = Float32Array.from(
      logits.values ??
        Array.from({ length: logits.size }, () => {
          return Math.floor(random.uniform() * logits.scale * 256) / 256;
        }),
    );
    const { seed, do_sample: doSample = true, ...settings } = sampling;
    const options = samplingFromConfig({ ...settings, do_sample: doSample });
    const sampler = new Sampler({ ...options, seed: BigInt(seed as string) }, prompt);
    expect(tokens.map(() => sampler.next(scores))).toEqual(tokens);
  });
});
