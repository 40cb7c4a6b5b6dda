/** Generating tokens: chunked prefill, decode, stopping, aborting, and what it all took. */
import { UserError } from "./errors.js";
import { Sampler, type Sampling } from "./sampling.js";
import type { Session } from "./session.js";
import { checkIds } from "./token_ids.js";

export type FinishReason = "stop" | "length" | "cancelled";

export interface GenerateOptions {
  /** As many as fit when left out. */
  maxNewTokens?: number;
  /** The package's own when left out. */
  sampling?: Sampling;
  /** The package's own when left out. */
  stopIds?: Iterable<number>;
  /**
   * Prompt tokens a run takes: more are faster; fewer take less memory and stop sooner. 512 on
   * CPUs; on WebGPU as many as are computed well there.
   */
  chunk?: number;
  /** Ends the reply after the run under way: `finishReason` is "cancelled", nothing is thrown. */
  signal?: AbortSignal;
  /** The KV cache to use, of `newSession`; the model's own when left out. */
  session?: Session;
}

/** What a generation took. Times are wall-clock seconds. */
export interface Usage {
  promptTokens: number;
  /** Of the prompt, that were in the KV cache already. */
  reusedTokens: number;
  /** A stop token included. */
  newTokens: number;
  prefillSeconds: number;
  /** From the start. */
  firstTokenSeconds?: number;
  /** From the first token to the last. */
  decodeSeconds: number;
}

export function noUsage(): Usage {
  return { promptTokens: 0, reusedTokens: 0, newTokens: 0, prefillSeconds: 0, decodeSeconds: 0 };
}

/** A reply being written: iterate over its token ids, a stop token included. */
export class Generation implements AsyncIterable<number> {
  /** undefined until the last token came. */
  finishReason?: FinishReason;
  readonly usage: Usage;
  readonly stopIds: ReadonlySet<number>;
  readonly #steps: AsyncGenerator<number, void, undefined>;

  /**
   * Write one reply to `prompt` (ids), reusing what `session` holds of it already. Work starts with
   * the first token asked for. UserError for a prompt that is empty or does not fit.
   */
  constructor(
    session: Session,
    prompt: readonly number[],
    options: GenerateOptions & { sampling: Sampling },
    stopIds: ReadonlySet<number>, // the package's
  ) {
    for (const name of ["maxNewTokens", "chunk"] as const) {
      const value = options[name];
      if (value !== undefined && !(value >= 1)) {
        throw new UserError(`${name} is ${value}: it must be at least 1`);
      }
    }
    const room = roomBehind(prompt, session.maxLength);
    checkIds(prompt, session.vocabularySize, "the prompt's tokens");
    this.stopIds = options.stopIds ? new Set(options.stopIds) : stopIds;
    if (options.stopIds) checkIds(this.stopIds, session.vocabularySize, "stopIds");
    this.usage = { ...noUsage(), promptTokens: prompt.length };
    const limit = Math.min(options.maxNewTokens ?? room, room);
    const sampler = new Sampler(options.sampling, prompt);
    const { chunk = 512, signal } = options;
    this.#steps = this.#run(session, prompt, sampler, limit, { chunk, signal });
  }

  [Symbol.asyncIterator](): AsyncGenerator<number, void, undefined> {
    return this.#steps;
  }

  async *#run(
    session: Session,
    prompt: readonly number[],
    sampler: Sampler,
    limit: number,
    { chunk, signal }: { chunk: number; signal?: AbortSignal },
  ): AsyncGenerator<number, void, undefined> {
    if (session.busy) {
      throw new Error("this session is generating already: finish that or abort it first");
    }
    session.busy = true;
    const { usage } = this;
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    try {
      usage.reusedTokens = session.reuse(prompt);
      let logits: Float32Array | undefined;
      for (let at = session.length; at < prompt.length; at += chunk) {
        if (signal?.aborted) return;
        logits = await session.feed(prompt.slice(at, at + chunk));
      }
      session.snapshot(); // the next turn drops this reply's analysis and comes back to here
      usage.prefillSeconds = elapsed();
      while (logits && !signal?.aborted) {
        const token = sampler.next(logits);
        usage.newTokens++;
        usage.firstTokenSeconds ??= elapsed();
        usage.decodeSeconds = elapsed() - usage.firstTokenSeconds;
        if (this.stopIds.has(token)) this.finishReason = "stop";
        else if (usage.newTokens >= limit) this.finishReason = "length";
        yield token;
        if (this.finishReason || signal?.aborted) return;
        logits = await session.feed([token]);
      }
    } finally {
      session.busy = false;
      // Aborted, or the caller stopped listening.
      this.finishReason ??= "cancelled";
    }
  }
}

/** Tokens that fit behind the prompt; UserError when none does. */
function roomBehind(prompt: readonly number[], maxLength: number): number {
  if (!prompt.length) throw new UserError("the prompt is empty: it needs at least one token");
  if (prompt.length >= maxLength) {
    throw new UserError(
      `the prompt has ${prompt.length} tokens, the context holds ${maxLength} with at least one ` +
        `for the reply: shorten the prompt by ${prompt.length - maxLength + 1} tokens or more`,
    );
  }
  return maxLength - prompt.length;
}
