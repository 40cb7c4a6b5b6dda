/** The worker's side of `RemoteModel`: loads a package and answers for it. */
import { firstLine } from "./errors.js";
import type { Request, Response } from "./protocol.js";
import { GptOss, type LoadOptions } from "./web.js";

const scope = globalThis as unknown as {
  postMessage(message: Response): void;
  onmessage: ((event: MessageEvent<Request>) => void) | null;
};
const running = new Map<number, AbortController>();
let model: GptOss | undefined;

scope.onmessage = ({ data: request }) => {
  if (request.do === "abort") running.get(request.id)?.abort();
  else void answer(request);
};

async function answer(request: Exclude<Request, { do: "abort" }>): Promise<void> {
  const { id } = request;
  const control = new AbortController();
  running.set(id, control);
  try {
    scope.postMessage({ id, is: "done", value: await perform(request, control.signal) });
  } catch (error) {
    const name = error instanceof Error ? error.name : "Error";
    scope.postMessage({ id, is: "error", name, message: firstLine(error) });
  } finally {
    running.delete(id);
  }
}

async function perform(
  request: Exclude<Request, { do: "abort" }>,
  signal: AbortSignal,
): Promise<Extract<Response, { is: "done" }>["value"]> {
  const { id } = request;
  const send = (event: Extract<Response, { is: "event" }>["event"]) =>
    scope.postMessage({ id, is: "event", event });
  if (request.do === "load") {
    await model?.dispose();
    model = await GptOss.load(request.url, {
      ...(request.options as LoadOptions),
      signal,
      onProgress: (progress) => scope.postMessage({ id, is: "progress", progress }),
    });
    const { manifest, backend, notCached } = model;
    return { name: manifest.name, backend, notCached };
  }
  if (!model) throw new Error("no package is loaded in this worker");
  switch (request.do) {
    case "chat": {
      const reply = model.chat(request.messages, { ...request.options, signal });
      for await (const event of reply) send(event);
      const { finishReason, cutIn, answer, messages, toolCalls, usage } = reply;
      return { finishReason, cutIn, answer, messages, toolCalls, usage };
    }
    case "generate": {
      const generation = model.generate(request.prompt, { ...request.options, signal });
      for await (const token of generation) send(token);
      return { finishReason: generation.finishReason, usage: generation.usage };
    }
    case "dispose":
      await model.dispose();
      model = undefined;
  }
  return undefined;
}
