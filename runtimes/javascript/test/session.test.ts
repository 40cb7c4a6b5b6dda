/** Sessions are left as session.json says, and go on as one that was never anywhere else. */
import { join } from "node:path";

import { afterAll, beforeAll, expect, test } from "vitest";

import { type Graph, HostKv } from "../src/backend.js";
import { GptOss, Session, UserError } from "../src/node.js";
import { openGraph } from "../src/node_graph.js";
import { NODE_PACKAGE, vectors } from "./support.js";

/** [text, from, to] */
type Piece = [number, number, number];
interface Step {
  do: "feed" | "fail" | "refuse" | "reuse" | "rewind" | "snapshot" | "reset";
  tokens: Piece[];
  ids: number[];
  length: number;
  left: { kept: Piece[]; evicted: number };
}
interface Case {
  name: string;
  max_length: number | null;
  steps: Step[];
}

// One token's dense layers add up in another order than a chunk's: 0.05 in logits with a standard
// deviation of 3. With a wrong row of a window some differ by more than 1.
const TOLERANCE = 0.1;

let model: GptOss;
let fails = false;
let open: (inPlace: boolean, maxLength?: number) => Session;
beforeAll(async () => {
  model = await GptOss.load(NODE_PACKAGE, { threads: 1 });
  const ort = await import("onnxruntime-node");
  const options = { intraOpNumThreads: 1, logSeverityLevel: 3 } as const;
  const path = join(NODE_PACKAGE, model.manifest.graph);
  const [inPlaceGraph, otherGraph] = await Promise.all([
    openGraph(ort as never, path, options),
    ort.InferenceSession.create(path, options) as unknown as Promise<Graph>,
  ]);
  const failing = (inner: Graph): Graph => ({
    inputMetadata: inner.inputMetadata,
    outputMetadata: inner.outputMetadata,
    release: () => inner.release(),
    // The worst of failures: all that it would write is written.
    run: async (...given) => {
      const results = await inner.run(...given);
      if (fails) throw new Error("this run fails");
      return results;
    },
  });
  open = (inPlace, maxLength) =>
    new Session(
      {
        name: "cpu",
        graph: failing(inPlace ? inPlaceGraph : otherGraph),
        Tensor: ort.Tensor as never,
        fillsOutputs: inPlace,
        chunk: 512,
        makeKv: (shape) => {
          const capacity = inPlace || shape.windowed ? shape.capacity : 0;
          return new HostKv(ort.Tensor as never, { ...shape, capacity }, inPlace);
        },
        dispose: async () => {},
      },
      model.manifest,
      maxLength,
    );
});
afterAll(() => model.dispose());

const tokens = (pieces: Piece[]) =>
  pieces.flatMap(([text, from, to]) =>
    Array.from({ length: to - from }, (_, i) => (7919 * (from + i) + 104729 * text + 13) % 4000),
  );

async function perform(session: Session, step: Step): Promise<Float32Array | undefined> {
  if (step.do === "feed") return (await session.feed(tokens(step.tokens))).slice();
  if (step.do === "refuse") await expect(session.feed(step.ids)).rejects.toThrow(UserError);
  else if (step.do === "reuse") expect(session.reuse(tokens(step.tokens))).toBe(session.length);
  else if (step.do === "rewind") expect(session.rewind(step.length)).toBe(session.length);
  else if (step.do === "snapshot") session.snapshot();
  else if (step.do === "reset") session.reset();
  else {
    fails = true;
    await expect(session.feed(tokens(step.tokens))).rejects.toThrow("this run fails");
    fails = false;
  }
  return undefined;
}

// In place as in Node, and with a cache that each run makes anew as WebAssembly does.
const { sessions } = vectors<{ sessions: Case[] }>("session");
test.each(sessions.flatMap((given) => [true, false].map((inPlace) => ({ ...given, inPlace }))))(
  "$name, in place: $inPlace",
  async ({ max_length, steps, inPlace }) => {
    const session = open(inPlace, max_length ?? undefined);
    for (const step of steps) {
      const found = await perform(session, step);
      const kept = tokens(step.left.kept);
      expect(session.tokens).toEqual(kept);
      expect(session.evicted).toBe(step.left.evicted);
      if (!found) continue;
      const fresh = model.newSession(Math.max(kept.length, 2));
      const expected = await fresh.feed(kept);
      const most = found.reduce((max, logit, i) => Math.max(max, Math.abs(logit - expected[i])), 0);
      expect(most).toBeLessThan(TOLERANCE);
      fresh.dispose();
    }
    session.dispose();
  },
);

test("what a run reads and writes is not changed under it", async () => {
  const session = model.newSession();
  const run = session.feed([1, 2, 3]);
  await expect(session.feed([4])).rejects.toThrow("this session is computing");
  for (const change of [() => session.rewind(0), () => session.reset(), () => session.snapshot()]) {
    expect(change).toThrow("this session is computing");
  }
  await run;
  expect(session.tokens).toEqual([1, 2, 3]);
  for (const wrong of [-1, 4, 1.5, Number.NaN]) {
    expect(() => session.rewind(wrong)).toThrow(`cannot rewind to ${wrong} of 3 tokens`);
  }
  session.dispose();
});
