/**
 * The harmony chat format: messages to token ids.
 *
 * Prompts are built from ids: what a user typed is encoded as ordinary text, so it can never open a
 * message of its own.
 */
import { type SystemPrompt, systemText } from "./system.js";
import type { Tokenizer } from "./tokenizer.js";
import {
  FUNCTION_NAMESPACE,
  type Tool,
  type ToolNamespace,
  inNamespaces,
  renderTools,
} from "./tools.js";

export const STOPS = ["<|return|>", "<|call|>", "<|endoftext|>"];
export const CONSTRAIN = "<|constrain|>";
export const FUNCTIONS = `${FUNCTION_NAMESPACE}.`;
// Those a message can be meant for without being a call.
const NO_TOOLS: readonly (string | undefined)[] = [undefined, "all", "assistant", "user"];
const SPEAKERS = ["system", "developer", "user", "assistant"]; // every other role is a tool

/**
 * One message. A tool's result has the tool's name as role (`functions.weather`). A call names its
 * tool behind the channel, as models write it, or before it: `recipientInRole`.
 */
export interface Message {
  role: string;
  content: string;
  channel?: string;
  recipient?: string;
  contentType?: string;
  recipientInRole?: boolean;
}

export function isCall({ role, recipient }: Message): boolean {
  return role === "assistant" && !NO_TOOLS.includes(recipient);
}

/** Which of the names in `called` is meant: `name`, or that with or without `functions.` */
export function calledName(name: string, called: readonly string[]): string | undefined {
  const bare = name.startsWith(FUNCTIONS) ? name.slice(FUNCTIONS.length) : name;
  return [name, FUNCTIONS + name, bare].find((form) => called.includes(form));
}

export interface RenderOptions {
  /** null leaves the system message out. */
  system?: SystemPrompt | null;
  /** What other chat formats call the system message. */
  instructions?: string;
  tools?: readonly (Tool | ToolNamespace)[];
  /** Leave the reasoning of answered turns out, as the format says; the default. */
  autoDropAnalysis?: boolean;
  /** Open the assistant's turn at the end; the default. */
  reply?: boolean;
}

/** The tokens a reply ends with, those that the tokenizer has. */
export function stopIds(tokenizer: Tokenizer): Set<number> {
  const stops = STOPS.filter((name) => tokenizer.hasSpecial(name));
  return new Set(stops.map((name) => tokenizer.special(name)));
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
    this.stopIds = stopIds(tokenizer);
  }

  /** Ids of a conversation. */
  render(messages: readonly Message[], options: RenderOptions = {}): number[] {
    const { system = {}, instructions, tools, autoDropAnalysis = true, reply = true } = options;
    const namespaces = inNamespaces(tools ?? []);
    const functions = namespaces.some((n) => n.name === FUNCTION_NAMESPACE && n.tools.length > 0);
    const head: Message[] = [];
    if (system) head.push({ role: "system", content: systemText(system, functions) });
    const sections: string[] = [];
    if (typeof instructions === "string") sections.push(`# Instructions\n\n${instructions}`);
    if (namespaces.length) sections.push(renderTools(namespaces));
    if (sections.length) head.push({ role: "developer", content: sections.join("\n\n") });
    const ids = [...head, ...shownMessages(messages, autoDropAnalysis)].flatMap((m) => this.#render(m));
    if (reply) ids.push(this.tokenizer.special("<|start|>"), ...this.tokenizer.encode("assistant"));
    return ids;
  }

  #render(message: Message): number[] {
    const { role, content, channel, recipient, contentType } = message;
    const { tokenizer } = this;
    const special = (name: string) => tokenizer.special(name);
    const named = recipient !== undefined && recipient !== "all";
    const to = named ? tokenizer.encode(` to=${recipient}`) : [];
    const inRole = channel === undefined || role !== "assistant" || message.recipientInRole;
    const ids = [special("<|start|>"), ...tokenizer.encode(role), ...(inRole ? to : [])];
    if (channel !== undefined) ids.push(special("<|channel|>"), ...tokenizer.encode(channel));
    if (!inRole) ids.push(...to);
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

/**
 * What of a history the model is shown, with no call or result that lacks the other.
 *
 * The reasoning of answered turns is dropped unless `autoDropAnalysis` is off, that of a turn still
 * calling tools stays. Calls stay with their results, on any channel; a call that had none when the
 * user spoke again is dropped. A result takes the name its call was made by.
 */
function shownMessages(messages: readonly Message[], autoDropAnalysis: boolean): Message[] {
  const last = messages.findLastIndex(
    (m) => autoDropAnalysis && m.role === "assistant" && m.channel === "final" && !isCall(m),
  );
  const shown: Message[] = [];
  let waiting: { place: number; tool: string }[] = []; // calls without a result
  const dropped = new Set<number>();
  messages.forEach((message, at) => {
    const reasoning = message.role === "assistant" && message.channel === "analysis";
    if (reasoning && !isCall(message) && at < last) return;
    let said = message;
    if (isCall(message)) {
      waiting.push({ place: shown.length, tool: message.recipient as string });
    } else if (message.role === "user") {
      for (const { place } of waiting) dropped.add(place);
      waiting = [];
    } else if (!SPEAKERS.includes(message.role)) {
      const tools = waiting.map(({ tool }) => tool);
      const name = calledName(message.role, tools);
      if (name !== undefined) {
        waiting.splice(tools.indexOf(name), 1);
        said = { ...message, role: name };
      }
    }
    shown.push(said);
  });
  return shown.filter((_, place) => !dropped.has(place));
}
