/** Harmony's system message: what the model is told about itself, the day and its built-in tools. */
import { type ToolNamespace, inNamespaces, renderTools } from "./tools.js";

export const CHANNELS = ["analysis", "commentary", "final"];

/** What the system message says: null leaves that line out, undefined takes harmony's words. */
export interface SystemPrompt {
  identity?: string | null;
  knowledgeCutoff?: string | null;
  /** ISO 8601, or "today", the default. */
  date?: string | null;
  reasoning?: "low" | "medium" | "high" | (string & {}) | null;
  /** Built in ones (`BROWSER_TOOL`, `PYTHON_TOOL`): those of an application are another option. */
  tools?: readonly ToolNamespace[] | null;
  channels?: readonly string[] | null;
}

/** The message; `hasFunctions` when the developer message declares functions. */
export function systemText(system: SystemPrompt, hasFunctions: boolean): string {
  const {
    identity = "You are ChatGPT, a large language model trained by OpenAI.",
    knowledgeCutoff = "2024-06",
    reasoning = "medium",
    tools = [],
    channels = CHANNELS,
  } = system;
  const { date } = pinned(system);
  const top: string[] = [];
  if (identity !== null) top.push(identity);
  if (knowledgeCutoff !== null) top.push(`Knowledge cutoff: ${knowledgeCutoff}`);
  if (date !== null) top.push(`Current date: ${date}`);
  const sections = top.length ? [top.join("\n")] : [];
  if (reasoning !== null) sections.push(`Reasoning: ${reasoning}`);
  if (tools?.length) sections.push(renderTools(inNamespaces(tools)));
  if (channels?.length) {
    const list = channels.join(", ");
    const must = `# Valid channels: ${list}. Channel must be included for every message.`;
    const calls = "\nCalls to these tools must go to the commentary channel: 'functions'.";
    sections.push(hasFunctions ? must + calls : must);
  }
  return sections.join("\n\n");
}

/** With the date of now, for a conversation that lasts past midnight. */
export function pinned(system: SystemPrompt): SystemPrompt {
  const { date = "today" } = system;
  return { ...system, date: date === "today" ? today() : date };
}

function today(): string {
  const now = new Date();
  const two = (number: number) => String(number).padStart(2, "0");
  return `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
}
