/** A model in a Web Worker, so that the page it serves never blocks. */
import { type ChatOptions, Conversation, Reply, type ReplyEnd } from "./chat.js";
import { DISPOSED, UserError } from "./errors.js";
import type { GenerateOptions, Usage } from "./generation.js";
import type { Message } from "./harmony.js";
import type { GenerateEnd, LoadedInfo, Request, Response } from "./protocol.js";
import type { LoadOptions } from "./web.js";

export interface RemoteLoadOptions extends LoadOptions {
  /** One that imports "gptoss-onnx/worker"; this package's own file when left out. */
  worker?: Worker;
  /** Only its URL crosses into a worker, where import maps do not hold. */
  ort?: string;
}

type Distribute<T> = T extends unknown ? Omit<T, "id"> : never;

export class RemoteModel {
  readonly name: string;
  readonly backend: LoadedInfo["backend"];
  readonly notCached?: string;
  readonly #link: Link;

  private constructor(link: Link, { name, backend, notCached }: LoadedInfo) {
    [this.#link, this.name, this.backend, this.notCached] = [link, name, backend, notCached];
  }

  /** As `GptOss.load`, in a worker. */
  static async load(url: string | URL, options: RemoteLoadOptions = {}): Promise<RemoteModel> {
    const { worker, signal, onProgress, ...rest } = options;
    const link = new Link(
      worker ?? new Worker(new URL("./worker.js", import.meta.url), { type: "module" }),
    );
    const absolute = new URL(String(url), globalThis.location?.href).href;
    const load = link.ask({ do: "load", url: absolute, options: rest }, signal);
    try {
      for await (const said of load) if (said.is === "progress") onProgress?.(said.progress);
    } catch (error) {
      link.close();
      throw signal?.aborted ? signal.reason : error;
    }
    return new RemoteModel(link, load.value as LoadedInfo);
  }

  /** As `GptOss.chat`. */
  chat(messages: readonly Message[], options: ChatOptions = {}): Reply {
    return new Reply((end) => this.#events(messages, options, end));
  }

  async *#events(messages: readonly Message[], options: ChatOptions, end: ReplyEnd) {
    const { signal, session: _, ...rest } = options;
    const chat = this.#link.ask({ do: "chat", messages, options: rest }, signal);
    try {
      for await (const said of chat) {
        if (said.is === "event" && typeof said.event === "object") yield said.event;
      }
    } finally {
      Object.assign(end, (chat.value as ReplyEnd | undefined) ?? { finishReason: "cancelled" });
    }
  }

  /** A conversation that keeps its history; its KV cache is the worker's one. */
  conversation(options: ChatOptions = {}): Conversation {
    return new Conversation((messages, turn) => this.chat(messages, turn), options);
  }

  /** As `GptOss.generate`. */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): RemoteGeneration {
    const { signal, session: _, stopIds, ...rest } = options;
    const settings = { ...rest, ...(stopIds && { stopIds: [...stopIds] }) };
    return new RemoteGeneration(
      this.#link.ask({ do: "generate", prompt, options: settings }, signal),
    );
  }

  /** Free the model and end its worker. */
  async dispose(): Promise<void> {
    for await (const _ of this.#link.ask({ do: "dispose" }));
    this.#link.close();
  }
}

export class RemoteGeneration implements AsyncIterable<number> {
  finishReason?: GenerateEnd["finishReason"];
  usage?: Usage;
  readonly #answers: Answers;

  constructor(answers: Answers) {
    this.#answers = answers;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<number, void, undefined> {
    try {
      for await (const said of this.#answers) {
        if (said.is === "event" && typeof said.event === "number") yield said.event;
      }
    } finally {
      Object.assign(this, (this.#answers.value as GenerateEnd) ?? { finishReason: "cancelled" });
    }
  }
}

/** Requests and their answers, told apart by id. */
class Link {
  readonly #worker: Worker;
  readonly #open = new Map<number, (said: Response) => void>();
  #next = 0;
  #closed = false;

  constructor(worker: Worker) {
    this.#worker = worker;
    worker.onmessage = ({ data }: MessageEvent<Response>) => this.#open.get(data.id)?.(data);
    worker.onerror = (event) => {
      const message = `the worker failed: ${event.message || "its script cannot be loaded"}`;
      for (const [id, tell] of this.#open) tell({ id, is: "error", name: "UserError", message });
    };
  }

  ask(request: Distribute<Request>, signal?: AbortSignal): Answers {
    const id = this.#next++;
    const start = (tell: (said: Response) => void) => {
      if (this.#closed) throw new UserError(DISPOSED);
      this.#open.set(id, tell);
      this.#worker.postMessage({ ...request, id });
    };
    const abort = () => this.#worker.postMessage({ id, do: "abort" });
    return new Answers(start, abort, () => this.#open.delete(id), signal);
  }

  close(): void {
    this.#closed = true;
    this.#worker.terminate();
    const error = { is: "error", name: "UserError", message: DISPOSED } as const;
    for (const [id, tell] of this.#open) tell({ id, ...error });
  }
}

/** The answers to one request as they come; leaving early ends it. `value` is the last one. */
class Answers implements AsyncIterable<Response> {
  value: Extract<Response, { is: "done" }>["value"];
  readonly #steps: AsyncGenerator<Response, void, undefined>;

  constructor(
    start: (tell: (said: Response) => void) => void,
    abort: () => void,
    end: () => void,
    signal?: AbortSignal,
  ) {
    this.#steps = this.#run(start, abort, end, signal);
  }

  [Symbol.asyncIterator](): AsyncGenerator<Response, void, undefined> {
    return this.#steps;
  }

  async *#run(
    start: (tell: (said: Response) => void) => void,
    abort: () => void,
    end: () => void,
    signal?: AbortSignal,
  ): AsyncGenerator<Response, void, undefined> {
    const waiting: Response[] = [];
    let wake = () => {};
    let finished = false;
    start((said) => {
      waiting.push(said);
      wake();
    });
    // From here on the worker owes an answer.
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    const next = async (): Promise<Response> => {
      while (!waiting.length) await new Promise<void>((resolve) => (wake = resolve));
      return waiting.shift() as Response;
    };
    const settle = (said: Response): boolean => {
      finished = said.is === "done" || said.is === "error";
      if (said.is === "done") this.value = said.value;
      return finished;
    };
    try {
      for (;;) {
        const said = await next();
        if (said.is === "error") {
          finished = true;
          throw said.name === "UserError"
            ? new UserError(said.message)
            : Object.assign(new Error(said.message), { name: said.name });
        }
        if (settle(said)) return;
        yield said;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      if (!finished) {
        // The caller left: what was said up to here still counts.
        abort();
        while (!settle(await next()));
      }
      end();
    }
  }
}
