/** The demo in Node: Python's greedy answers, conversations, aborts, and what a run leaves. */
import { join } from "node:path";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { HostKv } from "../src/backend.js";
import { readFiles } from "../src/manifest.js";
import {
  type ChatEvent,
  GptOss,
  type Message,
  type Progress,
  type Sampling,
  Session,
  UserError,
  toolResult,
} from "../src/node.js";
import { openGraph } from "../src/node_graph.js";
import { type Answers, NODE_PACKAGE, collect, fromShared, toShared, vectors } from "./support.js";

const { answers } = vectors<Answers>("answers");
const QUESTION: Message[] = [{ role: "user", content: "What does os.path.join do?" }];
const ANSWER = "Join two or more pathname components, inserting '/' as needed.";
const system = { date: "2026-01-01" };

let model: GptOss;
beforeAll(async () => {
  model = await GptOss.load(NODE_PACKAGE, { threads: 1 });
});
afterAll(() => model.dispose());

describe("answers", () => {
  test.each(answers)("as Python's to $messages.0.content", async (expected) => {
    const messages = expected.messages.map(fromShared);
    const instructions = expected.instructions ?? undefined;
    const system = expected.date ? { date: expected.date } : null;
    const prompt = model.harmony.render(messages, { system, instructions });
    expect(prompt).toEqual(expected.prompt);
    expect(await collect(model.generate(prompt))).toEqual(expected.reply);
    const reply = model.chat(messages, { system, instructions, analysis: true });
    const events = await collect(reply);
    expect(reply.messages.map(toShared)).toEqual(expected.said);
    expect(reply.finishReason).toBe("stop");
    for (const { channel, content } of expected.said) {
      const said = events.filter((event) => event.channel === channel);
      expect(said.map((event) => event.text).join("")).toBe(content);
    }
  });

  test("are the same in chunks of a prompt and whatever the cache holds", async () => {
    for (const chunk of [1, 7, 64]) {
      await collect(model.generate([1, 2, 3], { maxNewTokens: 3 }));
      const reply = model.chat(QUESTION, { system, chunk });
      expect(await reply.text()).toBe(ANSWER);
      expect(reply.usage.reusedTokens).toBe(0);
    }
  });

  test("hide the reasoning unless it is asked for", async () => {
    const hidden = await collect(model.chat(QUESTION, { system }));
    expect(new Set(hidden.map((event) => event.channel))).toEqual(new Set(["final"]));
    const shown = await collect(model.chat(QUESTION, { system, analysis: true }));
    expect(shown[0].channel).toBe("analysis");
  });

  test("repeat with a seed", async () => {
    const sampling = { temperature: 4, seed: 7 };
    const prompt = model.harmony.render(QUESTION, { system });
    const drawn = (sampling: Sampling) => {
      // A fresh cache: one token's logits differ in their last bits from a chunk's.
      const session = model.newSession();
      return collect(model.generate(prompt, { sampling, maxNewTokens: 20, session }));
    };
    const first = await drawn(sampling);
    expect(await drawn(sampling)).toEqual(first);
    expect(await drawn({ ...sampling, seed: 8 })).not.toEqual(first);
  });

  test("go on when the cache grows, as if it had been large from the start", async () => {
    const options = { maxNewTokens: 300, stopIds: [] };
    const grown = model.generate([5], { ...options, session: model.newSession() });
    const ids = await collect(grown);
    expect(ids).toHaveLength(300);
    expect(grown.finishReason).toBe("length");
    const large = model.generate([5], { ...options, session: model.newSession(301) });
    expect(await collect(large)).toEqual(ids);
  });
});

describe("conversation", () => {
  test("keeps what was said and computes only what is new", async () => {
    const talk = model.conversation({ system });
    expect(await talk.send("What does os.listdir do?").text()).toContain("Return a list");
    const second = talk.send(QUESTION[0].content);
    expect(await second.text()).toBe(ANSWER);
    expect(talk.messages.map((message) => message.channel ?? message.role)).toEqual([
      "user", "analysis", "final", "user", "analysis", "final",
    ]);
    const { promptTokens, reusedTokens } = second.usage;
    expect(reusedTokens).toBeGreaterThan(60);
    expect(promptTokens - reusedTokens).toBeLessThan(60);
    // The cache gives what a fresh one gives.
    const fresh = model.chat(talk.messages.slice(0, 4), { system });
    expect(await fresh.text()).toBe(ANSWER);
  });

  test("a reader who leaves keeps what was seen, and may go on", async () => {
    const talk = model.conversation({ system });
    let seen = "";
    for await (const { channel, text } of talk.send(QUESTION[0].content)) {
      if (channel === "final") seen += text;
      if (seen.length > 10) break;
    }
    expect(ANSWER.startsWith(seen)).toBe(true);
    expect(talk.messages.map((m) => m.content)).toEqual([QUESTION[0].content, seen]);
    expect(talk.last?.finishReason).toBe("cancelled");
    expect(await talk.send(QUESTION[0].content).text()).toBe(ANSWER);
  });

  test("one turn at a time", async () => {
    const talk = model.conversation({ system });
    const first = talk.send("What does math.sqrt do?")[Symbol.asyncIterator]();
    await first.next();
    await expect(talk.send("again").text()).rejects.toThrow("finish that or abort it first");
    await first.return();
    expect(await talk.send(QUESTION[0].content).text()).toBe(ANSWER);
  });

  test("a turn that fails leaves the history as it was", async () => {
    const talk = model.conversation({ system });
    await expect(talk.send("word ".repeat(6000)).text()).rejects.toThrow("shorten the prompt by");
    expect(talk.messages).toEqual([]);
    expect(() => talk.addToolResult("weather", "{}")).toThrow("was not asked for");
  });
});

describe("tools", () => {
  const CALL = '{"city":"巴黎"}<|call|>';
  const HEADER = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>";
  const THOUGHT = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant";
  const SUNNY = "<|channel|>final<|message|>Sunny.<|return|>";

  function encode(text: string): number[] {
    const { tokenizer } = model;
    return text.split(/(<\|\w+\|>)/).flatMap((piece) => {
      return tokenizer.hasSpecial(piece) ? [tokenizer.special(piece)] : tokenizer.encode(piece);
    });
  }

  /** A session whose next tokens are decided, one text a reply: the demo knows no tools. */
  function saying(...texts: string[]): Session {
    const ids = texts.flatMap(encode);
    const session = model.newSession();
    const feed = session.feed.bind(session);
    session.feed = async (tokens) => {
      await feed(tokens);
      const logits = new Float32Array(model.manifest.vocab_size);
      logits[ids.shift() ?? model.tokenizer.special("<|return|>")] = 1;
      return logits;
    };
    return session;
  }

  test("a call is an event with its arguments, which are told as they come", async () => {
    const reply = model.chat(QUESTION, { session: saying(`${THOUGHT}${HEADER}${CALL}`) });
    const events = await collect(reply);
    expect(events.pop()).toEqual<ChatEvent>({
      kind: "call",
      channel: "call",
      name: "functions.weather",
      arguments: { city: "巴黎" },
      text: '{"city":"巴黎"}',
      on: "commentary",
    });
    expect(new Set(events.map((event) => event.kind))).toEqual(new Set(["arguments"]));
    expect(events.map((event) => event.text).join("")).toBe('{"city":"巴黎"}');
    expect(reply.finishReason).toBe("tool_call");
    const ids = model.harmony.render([...QUESTION, ...reply.messages, toolResult("weather", "1")]);
    expect(model.tokenizer.decode(ids)).toContain("functions.weather to=assistant");
  });

  test("arguments that are no JSON stay text, and a call cut short is none", async () => {
    const odd = model.chat(QUESTION, { session: saying(`${HEADER}{"city":<|call|>`) });
    expect((await collect(odd)).at(-1)).toMatchObject({
      kind: "call",
      arguments: undefined,
      error: expect.stringContaining("no JSON object"),
    });
    const cut = model.chat(QUESTION, { session: saying(HEADER + CALL), maxNewTokens: 24 });
    expect((await collect(cut)).filter((event) => event.kind === "call")).toEqual([]);
    expect([cut.finishReason, cut.cutIn]).toEqual(["length", "call"]);
    expect(cut.messages).toEqual([]);
  });

  test.each(["functions.weather", "weather", "python", "files.read"])(
    "a call of %s is answered in the loop that hears of it",
    async (name) => {
      const called = `${THOUGHT}${HEADER.replace("functions.weather", name)}${CALL}`;
      const session = saying(called, SUNNY);
      const talk = model.conversation({ system, session });
      for await (const event of talk.send("Weather?")) {
        if (event.kind === "call") talk.addToolResult(event.name, "sun");
      }
      expect(talk.messages.map((m) => m.recipient ?? m.role)).toEqual([
        "user", "assistant", name, "assistant",
      ]); // prettier-ignore
      expect(talk.messages.at(-1)?.role).toBe(name);
      const held = session.length;
      expect(await talk.resume().text()).toBe("Sunny.");
      // The whole call was in the cache: only its result is fed, and the turn's opening.
      expect(talk.last?.usage.reusedTokens).toBe(held);
      const fed = encode(`<|start|>${name} to=assistant<|channel|>commentary<|message|>sun<|end|>`);
      expect(talk.last?.usage.promptTokens).toBe(
        held + 1 + fed.length + encode("<|start|>assistant").length,
      );
    },
  );

  test("a result by its short or long name", async () => {
    for (const [name, given] of [["functions.weather", "weather"], ["weather", "functions.weather"]]) {
      const session = saying(HEADER.replace("functions.weather", name) + CALL);
      const talk = model.conversation({ system, session });
      await collect(talk.send("Weather?"));
      talk.addToolResult(given, "sun");
      expect(talk.messages.at(-1)?.role).toBe(name);
      expect(() => talk.addToolResult("time", "noon")).toThrow(`the model called ${name}`);
    }
  });

  test("arguments that are no JSON are answered, not run", async () => {
    const bad = `${HEADER}{'city'}<|end|><|start|>assistant`;
    const talk = model.conversation({ system, session: saying(bad + HEADER + CALL, SUNNY) });
    await collect(talk.send("Weather?"));
    const run: unknown[] = [];
    await talk.answerCalls(async (call) => {
      run.push(call.arguments);
      return "sun";
    });
    expect(run).toEqual([{ city: "巴黎" }]);
    const told = talk.messages.slice(-2).map((message) => message.content);
    expect(told).toEqual([expect.stringMatching(/^Error: the arguments are no JSON.*$/), "sun"]);
    expect(await talk.resume().text()).toBe("Sunny.");
  });

  test("a tool that is known is called without to=", async () => {
    const header = HEADER.replace("to=functions.weather", "weather");
    const tools = [{ name: "weather", description: "" }];
    const reply = model.chat(QUESTION, { tools, session: saying(header + CALL) });
    expect((await collect(reply)).map((event) => event.kind)).toEqual(["arguments", "call"]);
    const called = HEADER.replace("to=functions.weather", "browser.search") + CALL;
    const namespace = { name: "browser", tools: [{ name: "search" }] };
    const search = model.chat(QUESTION, { tools: [namespace], session: saying(called) });
    expect((await collect(search)).at(-1)).toMatchObject({ kind: "call", name: "browser.search" });
    const other = model.chat(QUESTION, { session: saying(header + CALL) });
    expect(new Set((await collect(other)).map((e) => e.kind))).toEqual(new Set(["commentary"]));
  });

  test("messages are told apart, and reasoning is no answer", async () => {
    const said = `<|channel|>commentary<|message|>Let me check.<|end|><|start|>assistant${SUNNY}`;
    const reply = model.chat(QUESTION, { session: saying(said) });
    const texts: string[] = [];
    for await (const event of reply) {
      if (event.kind === "call") continue;
      texts[event.message] = (texts[event.message] ?? "") + event.text;
    }
    expect(texts).toEqual(["Let me check.", "Sunny."]);
    expect(reply.answer).toBe("Sunny.");
    const cut = model.chat(QUESTION, { session: saying(THOUGHT), maxNewTokens: 6 });
    expect(await cut.text()).toBe("");
    expect([cut.finishReason, cut.cutIn]).toEqual(["length", "analysis"]);
  });
});

describe("abort", () => {
  test("in the middle ends the reply and leaves the model usable", async () => {
    const control = new AbortController();
    const reply = model.chat(QUESTION, { system, signal: control.signal });
    let pieces = 0;
    for await (const _ of reply) if (++pieces === 3) control.abort();
    expect(pieces).toBe(3);
    expect(reply.finishReason).toBe("cancelled");
    expect(await model.chat(QUESTION, { system }).text()).toBe(ANSWER);
  });

  test("in a long prefill too", async () => {
    const control = new AbortController();
    const prompt = Array.from({ length: 2000 }, (_, i) => (i % 3000) + 1);
    const reply = collect(model.generate(prompt, { chunk: 16, signal: control.signal }));
    setTimeout(() => control.abort(), 20);
    expect(await reply).toEqual([]);
    expect(await model.chat(QUESTION, { system }).text()).toBe(ANSWER);
  });

  test("before the start", async () => {
    const reply = model.chat(QUESTION, { system, signal: AbortSignal.abort() });
    expect(await reply.text()).toBe("");
    expect(reply.finishReason).toBe("cancelled");
    const load = GptOss.load(NODE_PACKAGE, { signal: AbortSignal.abort(new Error("enough")) });
    await expect(load).rejects.toThrow("enough");
  });
});

test("progress is told while a package is checked and loaded", async () => {
  const seen: Progress[] = [];
  const other = await GptOss.load(NODE_PACKAGE, { verify: true, onProgress: (p) => seen.push(p) });
  await other.dispose();
  const files = readFiles(other.manifest); // what is not read may be changed or gone
  const total = files.reduce((sum, name) => sum + other.manifest.files[name].size, 0);
  const verified = seen.filter((progress) => progress.stage === "verify");
  expect(new Set(verified.map((progress) => progress.file))).toEqual(new Set(files));
  expect(verified.at(-1)).toMatchObject({ loaded: total, total });
  expect(seen.at(-1)?.stage).toBe("prepare");
});

test("a step copies no KV cache", async () => {
  const session = model.newSession(model.manifest.context_length);
  await session.feed([1, 2, 3]);
  const before = process.memoryUsage().arrayBuffers;
  await session.feed([4]);
  // The cache takes 13 MB and more here, and nothing is collected within one step.
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1e6);
  session.dispose();
});

test.each(["1.30.0", "1.31.0"])("release %s runs its own way, to the same logits", async (release) => {
  const ort = await import("onnxruntime-node");
  // Only 1.30's private parts are known; of another release the public ones are used.
  const env = { ...ort.env, versions: { ...ort.env.versions, node: release } };
  const path = join(NODE_PACKAGE, model.manifest.graph);
  const options = { intraOpNumThreads: 1, logSeverityLevel: 3 } as const;
  const graph = await openGraph({ ...ort, env } as never, path, options);
  expect(graph.constructor.name).toBe(release === "1.30.0" ? "DirectGraph" : "InferenceSession");
  const session = new Session(
    {
      name: "cpu",
      graph,
      Tensor: ort.Tensor as never,
      fillsOutputs: true,
      chunk: 512,
      makeKv: (shape) => new HostKv(ort.Tensor as never, shape, true),
      dispose: () => graph.release(),
    },
    model.manifest,
  );
  const expected = model.newSession();
  for (const tokens of [[1, 2, 3], [4], Array.from({ length: 300 }, (_, i) => i + 5), [6]]) {
    expect(await session.feed(tokens)).toEqual(await expected.feed(tokens));
  }
  await graph.release();
});

test("a run that fails leaves what was there before it", async () => {
  const session = model.newSession();
  const expected = (await session.feed([1, 2, 3])).slice();
  await session.feed([4, 5]);
  await expect(session.feed([1e9])).rejects.toThrow();
  expect(session.tokens).toEqual([1, 2, 3, 4, 5]);
  session.rewind(2);
  const again = await session.feed([3]);
  const differences = again.map((logit, i) => Math.abs(logit - expected[i]));
  // One token's dense layers add up in another order than a chunk's.
  expect(Math.max(...differences)).toBeLessThan(0.05);
  session.dispose();
});

test("two hundred turns take no more memory than the first ones", async () => {
  const talk = model.conversation({ system, maxNewTokens: 2 });
  const after: number[] = [];
  for (let turn = 0; turn < 200; turn++) {
    talk.messages = talk.messages.slice(-1);
    await talk.send(`What does os.path.${turn % 7 ? "join" : "split"} do?`).text();
    if (turn === 49 || turn === 199) after.push(process.memoryUsage().rss);
  }
  // The KV cache is 1.6 MB: a copy leaked in each turn would be 240 MB.
  expect(after[1] - after[0]).toBeLessThan(40e6);
});

test("settings out of range are refused", () => {
  for (const options of [{ temperature: -1 }, { topP: 0 }, { topK: 1.5 }, { topK: -2 }, { seed: -1 }]) {
    expect(() => model.generate([1], { sampling: options })).toThrow(UserError);
  }
  expect(() => model.generate([])).toThrow("the prompt is empty");
  expect(() => model.generate([1], { maxNewTokens: 0 })).toThrow("must be at least 1");
});
