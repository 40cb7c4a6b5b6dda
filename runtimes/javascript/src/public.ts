/** What every platform exports beside its `GptOss`. */
export {
  type ArgumentsEvent,
  type ChatEvent,
  type ChatOptions,
  Conversation,
  Reply,
  type TextEvent,
  toolResult,
} from "./chat.js";
export { UserError } from "./errors.js";
export { type FinishReason, type GenerateOptions, Generation, type Usage } from "./generation.js";
export { BROWSER_TOOL, PYTHON_TOOL } from "./builtin_tools.js";
export { Harmony, type Message, type RenderOptions } from "./harmony.js";
export { type Manifest } from "./manifest.js";
export { type BackendInfo, Model, type Progress } from "./model.js";
export { type Kind, type Piece, StreamParser } from "./parser.js";
export { type ChatFinishReason, ReplyReader, type ToolCallEvent } from "./reply.js";
export { Sampler, type Sampling, SplitMix64 } from "./sampling.js";
export { Session } from "./session.js";
export { IncrementalDecoder, Tokenizer } from "./tokenizer.js";
export { type SystemPrompt } from "./system.js";
export { type JsonSchema, type Tool, type ToolNamespace } from "./tools.js";
