/** A reply in the harmony format as typed events, and a conversation that keeps its history. */
import { UserError } from "./errors.js";
import type { GenerateOptions, Generation, Usage } from "./generation.js";
import { noUsage } from "./generation.js";
import { FUNCTIONS, type Message, calledName } from "./harmony.js";
import { TEXT_TOOLS } from "./header.js";
import type { Kind, Piece } from "./parser.js";
import { type ChatFinishReason, ReplyReader, type ToolCallEvent } from "./reply.js";
import { type SystemPrompt, pinned } from "./system.js";
import type { Tokenizer } from "./tokenizer.js";
import { type Tool, type ToolNamespace, toolNames } from "./tools.js";

/** A piece of what the model says: whole characters of one message. */
export interface TextEvent {
  kind: "final" | "commentary" | "analysis";
  channel: "final" | "commentary" | "analysis";
  text: string;
  /** Pieces of one message have the same number, counted from 0 in a reply. */
  message: number;
  contentType?: string;
}

/** A piece of a call's arguments as they are written: a call only once its `call` event came. */
export interface ArgumentsEvent {
  kind: "arguments";
  channel: "arguments";
  /** As the model wrote it: `functions.weather`. */
  name: string;
  text: string;
  message: number;
}

export type ChatEvent = TextEvent | ArgumentsEvent | ToolCallEvent;

export interface ChatOptions extends GenerateOptions {
  /** null leaves the system message out. */
  system?: SystemPrompt | null;
  /** What other chat formats call the system message. */
  instructions?: string;
  tools?: readonly (Tool | ToolNamespace)[];
  /** Leave the reasoning of answered turns out of the prompt, as the format says; the default. */
  autoDropAnalysis?: boolean;
  /** Show the model's reasoning, channel "analysis", too. */
  analysis?: boolean;
}

/** The message that answers a tool call: the call's event, or its name, `weather` for short. */
export function toolResult(call: ToolCallEvent | string, text: string): Message {
  if (typeof call !== "string") return resultOf(call, text);
  const short = !call.includes(".") && !TEXT_TOOLS.includes(call);
  return resultOf({ name: short ? FUNCTIONS + call : call, on: "commentary" }, text);
}

function resultOf({ name, on }: Pick<ToolCallEvent, "name" | "on">, text: string): Message {
  return { role: name, content: text, channel: on, recipient: "assistant" };
}

/** How a reply ended; filled in when its last event came. */
export interface ReplyEnd {
  finishReason?: ChatFinishReason;
  /** Of a reply that was cut: the kind of message it was in. */
  cutIn?: Kind;
  /** The text of the final channel. */
  answer: string;
  /** What to add to the conversation. */
  messages: Message[];
  toolCalls: ToolCallEvent[];
  usage: Usage;
}

/** A reply being written: iterate over its events, once. */
export class Reply implements AsyncIterable<ChatEvent>, ReplyEnd {
  finishReason?: ChatFinishReason;
  cutIn?: Kind;
  answer = "";
  messages: Message[] = [];
  toolCalls: ToolCallEvent[] = [];
  usage: Usage = noUsage();
  readonly #events: AsyncGenerator<ChatEvent, void, undefined>;

  constructor(events: (end: ReplyEnd) => AsyncGenerator<ChatEvent, void, undefined>) {
    this.#events = events(this);
  }

  [Symbol.asyncIterator](): AsyncGenerator<ChatEvent, void, undefined> {
    return this.#events;
  }

  /** The whole answer: the text of the final channel. */
  async text(): Promise<string> {
    for await (const _ of this);
    return this.answer;
  }
}

/** The events of a generation's tokens. */
export async function* events(
  start: () => Generation,
  tokenizer: Tokenizer,
  { analysis = false, tools = [] }: ChatOptions,
  end: ReplyEnd,
): AsyncGenerator<ChatEvent, void, undefined> {
  const generation = start();
  const reply = new ReplyReader(tokenizer, toolNames(tools), generation.stopIds);
  const shown = (pieces: Piece[]) =>
    pieces.filter(({ kind }) => analysis || kind !== "analysis").map(eventOf);
  try {
    for await (const token of generation) yield* shown(reply.feed(token));
    yield* shown(reply.finish(generation.finishReason ?? "cancelled"));
  } finally {
    // Also when the caller stopped listening: what was said is kept.
    reply.finish(generation.finishReason ?? "cancelled");
    const { finishReason, cutIn, text: answer, messages, calls: toolCalls } = reply;
    Object.assign(end, { finishReason, cutIn, answer, messages, toolCalls });
    end.usage = generation.usage;
  }
  yield* end.toolCalls;
}

function eventOf({ kind, text, message, recipient, contentType }: Piece): ChatEvent {
  if (kind === "call") {
    return { kind: "arguments", channel: "arguments", name: recipient as string, text, message };
  }
  return { kind, channel: kind, text, message, ...(contentType !== undefined && { contentType }) };
}

/**
 * One conversation. `messages` is its history and may be replaced between turns. When a turn fails,
 * the history is as it was before that turn. One turn at a time.
 */
export class Conversation {
  messages: Message[] = [];
  /** How the last turn ended. */
  last?: Reply;
  readonly #chat: (messages: readonly Message[], options: ChatOptions) => Reply;
  readonly #options: ChatOptions;
  #busy = false;
  #results: Message[] = []; // those told while the call's reply was read

  constructor(
    chat: (messages: readonly Message[], options: ChatOptions) => Reply,
    options: ChatOptions,
  ) {
    this.#chat = chat;
    const { system = {} } = options;
    // Today is the day of the first turn, or midnight would cost the KV cache.
    this.#options = { ...options, system: system && pinned(system) };
  }

  /** Say `said` and stream the reply; `options` hold for this turn only. */
  send(said: string | readonly Message[], options: ChatOptions = {}): Reply {
    const added = typeof said === "string" ? [{ role: "user", content: said }] : said;
    return new Reply((end) => this.#turn(added, options, end));
  }

  /** Stream what the model says to the tool results added since its call. */
  resume(options: ChatOptions = {}): Reply {
    return this.send([], options);
  }

  /** Answer the tool call of that name, as the model wrote it or without `functions.` */
  addToolResult(name: string, text: string): void {
    const calls = this.last?.toolCalls ?? [];
    const asked = calls.map((call) => call.name);
    const call = calls[asked.indexOf(calledName(name, asked) ?? "")];
    if (!call) {
      throw new UserError(
        `a result of ${name} was not asked for: the model called ${asked.join(", ") || "no tool"}`,
      );
    }
    // While the reply is still read, its messages are not in the history yet: results follow them.
    (this.#busy ? this.#results : this.messages).push(toolResult(call, text));
  }

  /**
   * Answer every tool call of the last reply with what `run` says to it; then `resume`. A call
   * whose arguments are no JSON object is not run: the model is told so.
   */
  async answerCalls(run: (call: ToolCallEvent) => string | Promise<string>): Promise<void> {
    for (const call of this.last?.toolCalls ?? []) {
      this.addToolResult(call.name, call.error ?? (await run(call)));
    }
  }

  async *#turn(
    added: readonly Message[],
    options: ChatOptions,
    end: ReplyEnd,
  ): AsyncGenerator<ChatEvent, void, undefined> {
    if (this.#busy) {
      throw new Error("this conversation is being answered: finish that or abort it first");
    }
    this.#busy = true;
    const before = this.messages;
    let failed = false;
    try {
      this.messages = [...before, ...added];
      this.last = this.#chat(this.messages, { ...this.#options, ...options });
      yield* this.last;
    } catch (error) {
      failed = true;
      throw error;
    } finally {
      this.#busy = false;
      if (failed || !this.last) this.messages = before;
      else {
        this.messages.push(...this.last.messages, ...this.#results);
        const { finishReason, cutIn, answer, messages, toolCalls, usage } = this.last;
        Object.assign(end, { finishReason, cutIn, answer, messages, toolCalls, usage });
      }
      this.#results = [];
    }
  }
}
