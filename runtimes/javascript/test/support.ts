/** Where the shared vectors and the demo's packages are. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import type { Message, SystemPrompt, Tool } from "../src/node.js";

export const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
/** The demo exported for Python, for Node and for browsers: `make test-js` makes them. */
export const CPU_PACKAGE = process.env.GPTOSS_CPU_PACKAGE ?? `${ROOT}build/demo-cpu-int4`;
export const NODE_PACKAGE = process.env.GPTOSS_NODE_PACKAGE ?? `${ROOT}build/demo-node-int4`;
export const WEB_PACKAGE = process.env.GPTOSS_WEB_PACKAGE ?? `${ROOT}build/demo-web-int4`;

export function vectors<T>(name: string): T {
  return JSON.parse(readFileSync(`${ROOT}tests/vectors/${name}.json`, "utf8")) as T;
}

export interface SharedMessage extends Omit<Message, "contentType" | "recipientInRole"> {
  content_type?: string;
  recipient_in_role?: boolean;
}

export interface SharedSystem extends Omit<SystemPrompt, "knowledgeCutoff"> {
  knowledge_cutoff?: string | null;
}

export interface Answers {
  answers: {
    /** null leaves the system message out. */
    date: string | null;
    messages: SharedMessage[];
    instructions: string | null;
    prompt: number[];
    reply: number[];
    said: SharedMessage[];
  }[];
}

export interface RenderCase {
  name: string;
  messages: SharedMessage[];
  system: SharedSystem | null;
  instructions: string | null;
  tools: Tool[];
  auto_drop_analysis: boolean;
  reply: boolean;
  ids: number[];
}

export function fromShared({
  content_type: contentType,
  recipient_in_role: recipientInRole,
  ...rest
}: SharedMessage): Message {
  return {
    ...rest,
    ...(contentType !== undefined && { contentType }),
    ...(recipientInRole && { recipientInRole }),
  };
}

export function toShared({ contentType, recipientInRole, ...rest }: Message): SharedMessage {
  return {
    ...rest,
    ...(contentType !== undefined && { content_type: contentType }),
    ...(recipientInRole && { recipient_in_role: recipientInRole }),
  };
}

export function systemFromShared(system: SharedSystem | null): SystemPrompt | null {
  if (!system) return null;
  const { knowledge_cutoff: knowledgeCutoff, ...rest } = system;
  return { ...rest, knowledgeCutoff };
}

export async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const one of stream) all.push(one);
  return all;
}
