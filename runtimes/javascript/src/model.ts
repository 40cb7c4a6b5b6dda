/** A loaded package: what every platform's `GptOss` can do once its graph is there. */
import type { Backend } from "./backend.js";
import { type ChatOptions, Conversation, Reply, events } from "./chat.js";
import { DISPOSED, UserError } from "./errors.js";
import { checkGraph } from "./graph_contract.js";
import { type GenerateOptions, Generation } from "./generation.js";
import { GENERATION_CONFIG, samplingFromConfig, stopIdsFromConfig } from "./generation_config.js";
import { Harmony, type Message, stopIds } from "./harmony.js";
import { parseObject } from "./json_object.js";
import type { Manifest } from "./manifest.js";
import type { Sampling } from "./sampling.js";
import { Session } from "./session.js";
import type { Tokenizer } from "./tokenizer.js";

/** How far loading has come. */
export interface Progress {
  /** "fetch" counts bytes that came from network or cache, "verify" bytes hashed on disk. */
  stage: "fetch" | "verify" | "prepare";
  file?: string;
  /** Bytes, of all files together. */
  loaded: number;
  total: number;
}

export interface PackageTexts {
  config?: string;
  generationConfig?: string;
}

/** What computes. */
export interface BackendInfo {
  name: Backend["name"];
  /** Why it is not a faster one. */
  reason?: string;
  /** File of the package's graph that runs. */
  graph: string;
  /** Element type it computes in. */
  activations: string;
  /** Why that graph, where the package has several. */
  graphReason?: string;
  /** Prompt tokens a run takes. */
  chunk: number;
  /** Why not more of them. */
  chunkReason?: string;
}

export class Model {
  readonly manifest: Manifest;
  readonly tokenizer: Tokenizer;
  /** `eos_token_id` of generation_config.json, or of config.json, and harmony's own stops. */
  readonly stopIds: ReadonlySet<number>;
  readonly #generationConfig: Record<string, unknown>;
  readonly #backend: Backend;
  #harmony?: Harmony;
  #session?: Session;
  #disposed = false;

  protected constructor(
    manifest: Manifest,
    tokenizer: Tokenizer,
    texts: PackageTexts,
    backend: Backend,
  ) {
    checkGraph(backend.graph, manifest);
    [this.manifest, this.tokenizer] = [manifest, tokenizer];
    this.#generationConfig = parseObject(texts.generationConfig ?? "{}", GENERATION_CONFIG);
    const config = parseObject(texts.config ?? "{}", "config.json");
    const own =
      stopIdsFromConfig(this.#generationConfig, GENERATION_CONFIG) ??
      stopIdsFromConfig(config, "config.json");
    // A file of another tool may name a padding token alone, and a reply then runs on past its end.
    const stops = own === undefined ? this.harmony.stopIds : stopIds(tokenizer);
    this.stopIds = new Set([...(own ?? []), ...stops]);
    this.#backend = backend;
  }

  /** What computes, and why. */
  get backend(): BackendInfo {
    const { name, reason, chunk, chunkReason } = this.#backend;
    const { graph, graphReason, activations = "float32" } = this.manifest;
    return { name, reason, graph, activations, graphReason, chunk, chunkReason };
  }

  /** The sampling that generation_config.json asks for; UserError where it cannot be followed. */
  get sampling(): Sampling {
    return samplingFromConfig(this.#generationConfig);
  }

  /** UserError when the package's tokenizer lacks harmony's tokens. */
  get harmony(): Harmony {
    return (this.#harmony ??= new Harmony(this.tokenizer));
  }

  /**
   * Stream the reply to `messages` as events: text by channel, at the end the tool calls.
   * What the last prompt and reply have in common with this prompt is not computed again.
   */
  chat(messages: readonly Message[], options: ChatOptions = {}): Reply {
    return this.#reply(() => options.session ?? this.#shared(), messages, options);
  }

  /** A conversation that keeps its history and has a KV cache of its own. */
  conversation(options: ChatOptions & { maxLength?: number } = {}): Conversation {
    const { maxLength, ...defaults } = options;
    let { session } = options;
    const open = () => (session ??= this.newSession(maxLength));
    return new Conversation((messages, turn) => this.#reply(open, messages, turn), defaults);
  }

  /** Continue `prompt`, text or ids, as it stands: iterate over token ids. */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Generation {
    const ids = typeof prompt === "string" ? this.tokenizer.encode(prompt) : prompt;
    return this.#generate(options.session ?? this.#shared(), ids, options);
  }

  /** A KV cache to drive by hand, as `generate` does. */
  newSession(maxLength?: number): Session {
    if (this.#disposed) throw new UserError(DISPOSED);
    return new Session(this.#backend, this.manifest, maxLength);
  }

  /** Free the graph and the KV cache. */
  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#session?.dispose();
    await this.#backend.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }

  #shared(): Session {
    if (this.#disposed) throw new UserError(DISPOSED);
    return (this.#session ??= this.newSession());
  }

  #reply(open: () => Session, messages: readonly Message[], options: ChatOptions): Reply {
    const start = () => {
      const prompt = this.harmony.render(messages.map(withChannel), options);
      return this.#generate(open(), prompt, options);
    };
    return new Reply((end) => events(start, this.tokenizer, options, end));
  }

  #generate(
    session: Session,
    prompt: readonly number[],
    options: GenerateOptions,
  ): Generation {
    const { chunk = this.#backend.chunk, sampling = this.sampling } = options;
    return new Generation(session, prompt, { ...options, chunk, sampling }, this.stopIds);
  }
}

/** Histories kept for other models' chats name no channels: an answer is on the final one. */
function withChannel(message: Message): Message {
  const bare = message.role === "assistant" && !message.channel && !message.recipient;
  return bare ? { ...message, channel: "final" } : message;
}
