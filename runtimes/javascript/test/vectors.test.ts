/** What every language's runtime must do, as the Python one does it. */
import { readFileSync } from "node:fs";

import { describe, expect, test } from "vitest";

import {
  type FinishReason,
  Harmony,
  IncrementalDecoder,
  type Piece,
  ReplyReader,
  Sampler,
  SplitMix64,
  StreamParser,
  Tokenizer,
} from "../src/node.js";
import { kindOf } from "../src/parser.js";
import { toolCall } from "../src/reply.js";
import { samplingFromConfig } from "../src/generation_config.js";
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
const tokenizer = new Tokenizer(vocabulary);

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
  ({ messages, system, instructions, tools, auto_drop_analysis: autoDropAnalysis, reply, ids }) => {
    const options = {
      system: systemFromShared(system),
      instructions: instructions ?? undefined,
      tools,
      autoDropAnalysis,
      reply,
    };
    expect(new Harmony(tokenizer).render(messages.map(fromShared), options)).toEqual(ids);
  },
);

test("null is nothing to render", () => {
  const [harmony, date] = [new Harmony(tokenizer), "2026-01-01"];
  const nothing = { instructions: null, tools: null, system: { date, tools: null } } as never;
  expect(harmony.render([], nothing)).toEqual(harmony.render([], { system: { date } }));
  const quiet = { system: { date, channels: null } };
  expect(harmony.render([], quiet)).toEqual(harmony.render([], { system: { date, channels: [] } }));
});

interface ParseCase {
  name: string;
  ids: number[];
  events: [string, string, number, string?][][];
  messages: SharedMessage[];
  cuts?: SharedMessage[][];
}

const parses = vectors<{ tools: string[]; stop_ids: number[]; replies: ParseCase[] }>("stream_parse");

test.each(parses.replies)("parses $name", ({ ids, events, messages, cuts = [] }) => {
  const told = (pieces: Piece[]) =>
    pieces.map(({ kind, text, message, recipient }) => {
      return [kind, text, message, ...(recipient === undefined ? [] : [recipient])];
    });
  const parser = new StreamParser(tokenizer, parses.tools, parses.stop_ids);
  expect([...ids.map((id) => told(parser.feed(id))), told(parser.finish())]).toEqual(events);
  expect(parser.messages.map(toShared)).toEqual(messages);
  cuts.forEach((expected, length) => {
    const cut = new StreamParser(tokenizer, parses.tools, parses.stop_ids);
    for (const id of ids.slice(0, length)) cut.feed(id);
    cut.finish();
    expect(cut.messages.map(toShared)).toEqual(expected);
  });
});

interface ReplyCase {
  name: string;
  ids: number[];
  reason: FinishReason;
  text: string;
  finish_reason: string;
  cut_in: string | null;
  messages: SharedMessage[];
  calls: { name: string; arguments: string; channel: string; error: string | null }[];
  then: SharedMessage[];
  next_ids: number[];
}

describe("replies", () => {
  const { tools, stop_ids, replies, arguments: given } = vectors<{
    tools: string[];
    stop_ids: number[];
    replies: ReplyCase[];
    arguments: { name: string; text: string; good: boolean }[];
  }>("reply");

  test.each(replies)("$name", ({ ids, reason, messages, calls, then, next_ids, ...expected }) => {
    const reply = new ReplyReader(tokenizer, tools, stop_ids);
    for (const id of ids) reply.feed(id);
    reply.finish(reason);
    const { text, finishReason, cutIn = null } = reply;
    expect({ text, finish_reason: finishReason, cut_in: cutIn }).toMatchObject({
      text: expected.text,
      finish_reason: expected.finish_reason,
      cut_in: expected.cut_in,
    });
    expect(reply.messages.map(toShared)).toEqual(messages);
    const found = reply.calls.map((call) => ({
      name: call.name,
      arguments: call.text,
      channel: call.on,
      error: call.error ?? null,
    }));
    expect(found).toEqual(calls);
    const question = { role: "user", content: "Weather?" };
    const history = [question, ...reply.messages, ...then.map(fromShared)];
    expect(new Harmony(tokenizer).render(history, { system: null })).toEqual(next_ids);
  });

  test.each(given)("a call of $name with $text", ({ name, text, good }) => {
    const message = { role: "assistant", content: text, recipient: name };
    expect(toolCall(message).error === undefined).toBe(good);
  });

  test("nothing a model writes is an error", () => {
    const special = (name: string) => tokenizer.special(name);
    const marks = Array.from({ length: 9 }, (_, i) => [4087 + i]);
    const words = [..."assistant user to=functions.f to= get_weather functions.g".split(" "),
      ..."final analysis commentary json { {} <|message|> <|end|> to=user 🎉".split(" ")]
      .flatMap((word) => [tokenizer.encode(word), tokenizer.encode(` ${word}`)]);
    const random = new SplitMix64(7n);
    const below = (count: number) => Math.floor(random.uniform() * count);
    const harmony = new Harmony(tokenizer);
    let called = 0;
    for (let round = 0; round < 2000; round++) {
      const ids = Array.from({ length: below(40) }, () => {
        const pool = below(11);
        if (pool === 0) return [below(5002) - 2];
        return pool < 6 ? marks[below(marks.length)] : words[below(words.length)];
      }).flat();
      const reply = new ReplyReader(tokenizer, tools);
      const pieces = ids.flatMap((id) => reply.feed(id)).concat(reply.finish("stop"));
      const { said } = reply;
      const heard = said.map((_, place) => pieces.filter((piece) => piece.message === place));
      said.forEach((message, place) => {
        expect(heard[place].map((piece) => piece.text).join("")).toBe(message.content);
        const kinds = new Set(heard[place].map((piece) => piece.kind));
        expect([...kinds]).toEqual(message.content ? [kindOf(message)] : []);
      });
      expect(pieces.length).toBe(heard.flat().length);
      for (const call of reply.calls) {
        called++;
        expect(call.text.trim()).not.toBe("");
      }
      const prompt = harmony.render([...said, { role: "user", content: "b" }], { system: null });
      const count = (mark: string) => prompt.filter((id) => id === special(mark)).length;
      expect(count("<|start|>")).toBe(count("<|message|>") + 1);
      expect(count("<|channel|>")).toBeLessThanOrEqual(count("<|message|>"));
    }
    expect(called).toBeGreaterThan(50);
  });
});

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
