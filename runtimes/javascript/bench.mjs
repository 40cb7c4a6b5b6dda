/**
 * Time per token at 200 and at 2,000 tokens of context, here and in the Python runtime, in turns.
 *
 *     npm run build && node bench.mjs ../../build/demo-node-int4
 */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

import { GptOss } from "./dist/node.js";

const [folder = "../../build/demo-node-int4", threads = "1"] = process.argv.slice(2);
const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const [STEPS, ROUNDS, CONTEXTS] = [100, 5, [200, 2000]];

const PYTHON = `
import sys, time, json
from runtimes.package import Package
from runtimes.session import Session
package = Package.open(sys.argv[1], threads=int(sys.argv[2]))
for length in (200, 2000):
    session = Session(package)
    session.feed([[i % 3000 + 1 for i in range(length)]])
    times = []
    for step in range(${STEPS}):
        start = time.perf_counter()
        int(session.feed([[step + 1]])[0].argmax())
        times.append(time.perf_counter() - start)
    print(json.dumps(sorted(times)[len(times) // 2] * 1000))
`;

const model = await GptOss.load(folder, { threads: Number(threads) });

async function here() {
  const medians = [];
  for (const length of CONTEXTS) {
    const session = model.newSession();
    await session.feed(Array.from({ length }, (_, i) => (i % 3000) + 1));
    const times = [];
    for (let step = 0; step < STEPS; step++) {
      const start = performance.now();
      const logits = await session.feed([step + 1]);
      logits.indexOf(Math.max(...logits.subarray(0, 1)));
      times.push(performance.now() - start);
    }
    session.dispose();
    medians.push(times.sort((a, b) => a - b)[STEPS >> 1]);
  }
  return medians;
}

function python() {
  const args = ["-c", PYTHON, fileURLToPath(new URL(folder, `file://${process.cwd()}/`)), threads];
  const text = execFileSync(`${ROOT}.venv/bin/python`, args, { cwd: ROOT, encoding: "utf8" });
  return text.trim().split("\n").map(Number);
}

const best = { node: [Infinity, Infinity], python: [Infinity, Infinity] };
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, times] of [["node", await here()], ["python", python()]]) {
    best[name] = best[name].map((time, i) => Math.min(time, times[i]));
  }
}
for (const [name, times] of Object.entries(best)) {
  console.log(name, CONTEXTS.map((n, i) => `${times[i].toFixed(2)} ms at ${n} tokens`).join(", "));
}
console.log("node / python, tokens a second:", CONTEXTS.map((_, i) => {
  return (best.python[i] / best.node[i]).toFixed(2);
}).join(", "));
await model.dispose();
