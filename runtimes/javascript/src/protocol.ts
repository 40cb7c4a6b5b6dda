/** What a page and its worker say to each other. */
import type { ChatEvent, ChatOptions, ReplyEnd } from "./chat.js";
import type { FinishReason, GenerateOptions, Usage } from "./generation.js";
import type { Message } from "./harmony.js";
import type { BackendInfo, Progress } from "./model.js";

/** Options without what cannot cross: signals become "abort" requests, sessions stay. */
export type Sendable<T> = Omit<T, "signal" | "session" | "onProgress">;

export type Request =
  | { id: number; do: "load"; url: string; options: object }
  | { id: number; do: "chat"; messages: readonly Message[]; options: Sendable<ChatOptions> }
  | {
      id: number;
      do: "generate";
      prompt: string | readonly number[];
      options: Sendable<GenerateOptions>;
    }
  | { id: number; do: "dispose" }
  /** Ends the request of that id. */
  | { id: number; do: "abort" };

export interface LoadedInfo {
  name: string;
  backend: BackendInfo;
  notCached?: string;
}

export type GenerateEnd = { finishReason?: FinishReason; usage: Usage };

export type Response =
  | { id: number; is: "progress"; progress: Progress }
  | { id: number; is: "event"; event: ChatEvent | number }
  | { id: number; is: "done"; value?: LoadedInfo | ReplyEnd | GenerateEnd }
  | { id: number; is: "error"; name: string; message: string };
