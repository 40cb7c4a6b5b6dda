/** What a model answers: its tokens to what a caller sees, the same in every entry. */
import type { FinishReason } from "./generation.js";
import { type Message, isCall } from "./harmony.js";
import { TEXT_TOOLS, wordsOf } from "./header.js";
import { type Kind, type Piece, StreamParser, kindOf } from "./parser.js";
import type { Tokenizer } from "./tokenizer.js";

/** What the model asks for, once it has asked: the last event of a reply. */
export interface ToolCallEvent {
  kind: "call";
  channel: "call";
  /** As the model wrote it: `functions.weather`. */
  name: string;
  /** `text` as JSON; undefined when it is no object: only a model wrote it. */
  arguments: Record<string, unknown> | undefined;
  text: string;
  /** The channel it was made on, to which its result goes. */
  on: string;
  /** Why the call cannot be made, for the model to read: one line. */
  error?: string;
}

export type ChatFinishReason = FinishReason | "tool_call";

/** A reply on its way: feed it tokens and it tells pieces; all else is whole after `finish`. */
export class ReplyReader {
  /** The answer: what the final channel says. */
  text = "";
  finishReason?: ChatFinishReason;
  readonly #parser: StreamParser;
  #answer?: number; // the last message in `text`

  /** As `StreamParser`. */
  constructor(tokenizer: Tokenizer, tools?: Iterable<string>, stopIds?: Iterable<number>) {
    this.#parser = new StreamParser(tokenizer, tools, stopIds);
  }

  /** What `token` completes. */
  feed(token: number): Piece[] {
    return this.#tell(this.#parser.feed(token));
  }

  /** What was held back; `reason` is why no more tokens come. */
  finish(reason: FinishReason): Piece[] {
    if (this.finishReason !== undefined) return [];
    this.finishReason = reason;
    const pieces = this.#tell(this.#parser.finish());
    if (this.calls.length) this.finishReason = "tool_call";
    return pieces;
  }

  #tell(pieces: Piece[]): Piece[] {
    for (const { kind, text, message } of pieces) {
      if (kind !== "final") continue;
      const apart = this.#answer !== undefined && this.#answer !== message;
      this.text += (apart ? "\n\n" : "") + text;
      this.#answer = message;
    }
    return pieces;
  }

  /** The assistant's messages so far, the last one maybe cut. */
  get said(): Message[] {
    // A model that left the format may speak for others: that is no part of its reply.
    return this.#parser.messages.filter(({ role }) => role === "assistant");
  }

  get complete(): boolean {
    return this.finishReason === "stop" || this.finishReason === "tool_call";
  }

  /**
   * What to add to the history. Of a reply that was cut, what a reader saw: its reasoning and calls
   * are dropped, so that the next turn starts from a conversation the model knows the form of.
   */
  get messages(): Message[] {
    if (this.complete) return this.said;
    return this.said.filter((message) => {
      return ["commentary", "final"].includes(kindOf(message)) && wordsOf(message.content).length > 0;
    });
  }

  /** The calls of a complete reply, in order. */
  get calls(): ToolCallEvent[] {
    return this.complete ? this.said.filter(isCall).map(toolCall) : [];
  }

  /** Of a reply that was cut: which kind of message it was in; undefined of a complete one. */
  get cutIn(): Kind | undefined {
    if (this.complete || this.finishReason === undefined) return undefined;
    const last = this.said.at(-1);
    return last ? kindOf(last) : "analysis";
  }
}

const NO_OBJECT =
  "Error: the arguments are no JSON object, so nothing was called. Call again with one.";

export function toolCall({ recipient, content, channel = "commentary" }: Message): ToolCallEvent {
  const name = recipient as string;
  const parsed = TEXT_TOOLS.includes(name) ? undefined : objectIn(content);
  const bad = parsed === undefined && !TEXT_TOOLS.includes(name);
  const call = { kind: "call", channel: "call", name, arguments: parsed, text: content } as const;
  return { ...call, on: channel, ...(bad && { error: NO_OBJECT }) };
}

function objectIn(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    return isObject ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}
