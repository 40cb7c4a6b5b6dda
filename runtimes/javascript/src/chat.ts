/** A reply in the harmony format as typed events, and a conversation that keeps its history. */
import { UserError } from "./errors.js";
import type { FinishReason, GenerateOptions, Generation, Usage } from "./generation.js";
import { noUsage } from "./generation.js";
import type { Message, SystemPrompt } from "./harmony.js";
import { StreamParser } from "./parser.js";
import type { Tokenizer } from "./tokenizer.js";
import type { Tool } from "./tools.js";

/** A piece of what the model says: whole characters. */
export interface TextEvent {
  channel: "final" | "commentary" | "analysis" | (string & {});
  text: string;
}

/** What the model asks for, once it has asked: the last event of a reply. */
export interface ToolCallEvent {
  channel: "call";
  /** As `functions.weather`. */
  name: string;
  /** `text` as JSON; undefined when it is none: only a model wrote it. */
  arguments: unknown;
  text: string;
}

export type ChatEvent = TextEvent | ToolCallEvent;
export type ChatFinishReason = FinishReason | "tool_call";

export interface ChatOptions extends GenerateOptions {
  /** null leaves the system message out. */
  system?: SystemPrompt | null;
  /** What other chat formats call the system message. */
  instructions?: string;
  tools?: readonly Tool[];
  /** Show the model's reasoning, channel "analysis", too. */
  analysis?: boolean;
}

/** The message that answers a tool call: `functions.weather`, or `weather` for short. */
export function toolResult(name: string, text: string): Message {
  const role = name.includes(".") ? name : `functions.${name}`;
  return { role, content: text, channel: "commentary", recipient: "assistant" };
}

/** How a reply ended; filled in when its last event came. */
export interface ReplyEnd {
  finishReason?: ChatFinishReason;
  /** What to add to the conversation. */
  messages: Message[];
  toolCalls: ToolCallEvent[];
  usage: Usage;
}

/** A reply being written: iterate over its events, once. */
export class Reply implements AsyncIterable<ChatEvent>, ReplyEnd {
  finishReason?: ChatFinishReason;
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
    let text = "";
    for await (const event of this) if (event.channel === "final") text += event.text;
    return text;
  }
}

/** The events of a generation's tokens. */
export async function* events(
  start: () => Generation,
  tokenizer: Tokenizer,
  analysis: boolean,
  end: ReplyEnd,
): AsyncGenerator<ChatEvent, void, undefined> {
  const generation = start();
  const parser = new StreamParser(tokenizer);
  const shown = (pieces: ReturnType<StreamParser["feed"]>): ChatEvent[] =>
    pieces
      .filter(({ recipient }) => !isCall(recipient))
      .filter(({ channel }) => analysis || channel !== "analysis")
      .map(({ channel, text }) => ({ channel, text }));
  try {
    for await (const token of generation) yield* shown(parser.feed(token));
    yield* shown(parser.finish());
  } finally {
    // Also when the caller stopped listening: what was said is kept.
    parser.finish();
    record(parser.messages, generation, end);
  }
  yield* end.toolCalls;
}

function isCall(recipient: string | undefined): boolean {
  return recipient !== undefined && recipient !== "all" && recipient !== "assistant";
}

/**
 * A reply that was aborted, cut at its length limit or abandoned keeps what a reader saw: its final
 * and commentary text so far. Its reasoning and tool calls are dropped, so the next turn starts
 * from a conversation the model knows the form of.
 */
function record(said: readonly Message[], generation: Generation, end: ReplyEnd): void {
  end.usage = generation.usage;
  end.finishReason = generation.finishReason ?? "cancelled";
  const complete = generation.finishReason === "stop";
  for (const message of said) {
    // A model that left the format may speak for others: that is no part of the history.
    if (message.role !== "assistant") continue;
    const call = isCall(message.recipient);
    if (call && complete) {
      end.toolCalls.push(toolCall(message));
      end.finishReason = "tool_call";
    }
    if (complete || !(call || message.channel === "analysis")) end.messages.push(message);
  }
}

function toolCall(message: Message): ToolCallEvent {
  let parsed: unknown;
  try {
    parsed = JSON.parse(message.content);
  } catch {
    // Left undefined: the caller sees the text.
  }
  const name = message.recipient as string;
  return { channel: "call", name, arguments: parsed, text: message.content };
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

  constructor(
    chat: (messages: readonly Message[], options: ChatOptions) => Reply,
    options: ChatOptions,
  ) {
    [this.#chat, this.#options] = [chat, options];
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

  /** Answer the tool call of that name (`functions.weather`, or `weather` for short). */
  addToolResult(name: string, text: string): void {
    const message = toolResult(name, text);
    const asked = this.last?.toolCalls.map((call) => call.name) ?? [];
    if (!asked.includes(message.role)) {
      throw new UserError(
        `a result of ${message.role} was not asked for: the model called ` +
          (asked.join(", ") || "no tool"),
      );
    }
    this.messages.push(message);
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
        this.messages.push(...this.last.messages);
        const { finishReason, messages, toolCalls, usage } = this.last;
        Object.assign(end, { finishReason, messages, toolCalls, usage });
      }
    }
  }
}
