/**
 * The harmony chat format: messages to token ids.
 *
 * Prompts are built from ids: what a user typed is encoded as ordinary text, so it can never open a
 * message of its own.
 */
import type { Tokenizer } from "./tokenizer.js";
import { type Tool, renderTools } from "./tools.js";

export const CHANNELS = ["analysis", "commentary", "final"];
export const STOPS = ["<|return|>", "<|call|>", "<|endoftext|>"];
const CONSTRAIN = "<|constrain|>";

/** One message. A tool's result has the tool's name as role (`functions.weather`). */
export interface Message {
  role: string;
  content: string;
  channel?: string;
  recipient?: string;
  contentType?: string;
}

/** What the system message says. `date` is ISO 8601, today's when left out. */
export interface SystemPrompt {
  identity?: string;
  knowledgeCutoff?: string;
  date?: string;
  reasoning?: "low" | "medium" | "high" | (string & {});
}

export interface RenderOptions {
  /** null leaves the system message out. */
  system?: SystemPrompt | null;
  /** What other chat formats call the system message. */
  instructions?: string;
  tools?: readonly Tool[];
  /** Open the assistant's turn at the end; the default. */
  reply?: boolean;
}

function systemText(system: SystemPrompt, hasTools: boolean): string {
  const identity = system.identity ?? "You are ChatGPT, a large language model trained by OpenAI.";
  let text =
    `${identity}\nKnowledge cutoff: ${system.knowledgeCutoff ?? "2024-06"}` +
    `\nCurrent date: ${system.date ?? today()}` +
    `\n\nReasoning: ${system.reasoning ?? "medium"}` +
    `\n\n# Valid channels: ${CHANNELS.join(", ")}. Channel must be included for every message.`;
  if (hasTools) {
    text += "\nCalls to these tools must go to the commentary channel: 'functions'.";
  }
  return text;
}

function today(): string {
  const now = new Date();
  const two = (number: number) => String(number).padStart(2, "0");
  return `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
}

/** Renders conversations for one tokenizer; UserError when it lacks harmony's tokens. */
export class Harmony {
  readonly tokenizer: Tokenizer;
  readonly stopIds: ReadonlySet<number>;

  constructor(tokenizer: Tokenizer) {
    this.tokenizer = tokenizer;
    for (const name of ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]) {
      tokenizer.special(name);
    }
    const stops = STOPS.filter((name) => tokenizer.hasSpecial(name));
    this.stopIds = new Set(stops.map((name) => tokenizer.special(name)));
  }

  /** Ids of a conversation. */
  render(messages: readonly Message[], options: RenderOptions = {}): number[] {
    const { system = {}, instructions, tools = [], reply = true } = options;
    const head: Message[] = [];
    if (system) head.push({ role: "system", content: systemText(system, tools.length > 0) });
    const sections: string[] = [];
    if (instructions !== undefined) sections.push(`# Instructions\n\n${instructions}`);
    if (tools.length) sections.push(renderTools(tools));
    if (sections.length) head.push({ role: "developer", content: sections.join("\n\n") });
    const ids = [...head, ...withoutOldAnalysis(messages)].flatMap((m) => this.#render(m));
    if (reply) ids.push(this.tokenizer.special("<|start|>"), ...this.tokenizer.encode("assistant"));
    return ids;
  }

  #render({ role, content, channel, recipient, contentType }: Message): number[] {
    const { tokenizer } = this;
    const special = (name: string) => tokenizer.special(name);
    const ids = [special("<|start|>"), ...tokenizer.encode(role)];
    if (recipient !== undefined && recipient !== "all") {
      ids.push(...tokenizer.encode(` to=${recipient}`));
    }
    if (channel !== undefined) ids.push(special("<|channel|>"), ...tokenizer.encode(channel));
    if (contentType?.startsWith(CONSTRAIN)) {
      ids.push(...tokenizer.encode(" "), special(CONSTRAIN));
      ids.push(...tokenizer.encode(contentType.slice(CONSTRAIN.length)));
    } else if (contentType !== undefined) {
      ids.push(...tokenizer.encode(` ${contentType}`));
    }
    ids.push(special("<|message|>"));
    for (const id of tokenizer.encode(content)) ids.push(id); // may be too many to spread
    // History is what was said, not where sampling stopped: a <|return|> becomes <|end|>.
    ids.push(special(role === "assistant" && recipient !== undefined ? "<|call|>" : "<|end|>"));
    return ids;
  }
}

/** Drop the reasoning of answered turns; that of a turn still calling tools stays. */
function withoutOldAnalysis(messages: readonly Message[]): Message[] {
  const last = messages.findLastIndex((m) => m.role === "assistant" && m.channel === "final");
  return messages.filter((message, i) => i > last || message.channel !== "analysis");
}
