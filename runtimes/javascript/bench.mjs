/**
 * Tokens a second at 200 and at 2,000 tokens of context, here and in the Python runtime, in turns:
 * greedy replies, all of it measured, sampler and tokens handed over one by one.
 *
 *     npm run build && node bench.mjs ../../build/demo-node-int4 [threads] [rounds]
 */
import { execFileSync } from "node:child_process";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { GptOss } from "./dist/node.js";

const [folder = "../../build/demo-node-int4", threads = "1", rounds = "5"] = process.argv.slice(2);
const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const [STEPS, CONTEXTS] = [200, [200, 2000]];

const PYTHON = `
import sys, json
from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.session import Session
package = Package.open(sys.argv[1], threads=int(sys.argv[2]))
rates = []
for length in ${JSON.stringify(CONTEXTS)}:
    options = Options(${STEPS}, Sampling(temperature=0), stop_ids=())
    reply = generate(Session(package), [i % 3000 + 1 for i in range(length)], options)
    for token in reply:
        pass
    rates.append(reply.usage.decode_tokens_per_second)
print(json.dumps(rates))
`;

const model = await GptOss.load(folder, { threads: Number(threads) });

async function node() {
  const rates = [];
  for (const length of CONTEXTS) {
    const session = model.newSession();
    const prompt = Array.from({ length }, (_, i) => (i % 3000) + 1);
    const options = { session, maxNewTokens: STEPS, stopIds: [], sampling: { doSample: false } };
    const reply = model.generate(prompt, options);
    for await (const _ of reply);
    session.dispose();
    rates.push((STEPS - 1) / reply.usage.decodeSeconds);
  }
  return rates;
}

function python() {
  const args = ["-c", PYTHON, resolve(folder), threads];
  const text = execFileSync(`${ROOT}.venv/bin/python`, args, { cwd: ROOT, encoding: "utf8" });
  return JSON.parse(text);
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
await node(); // to compile
const seen = { node: [], python: [] };
for (let round = 0; round < Number(rounds); round++) {
  seen.node.push(await node());
  seen.python.push(python());
}
CONTEXTS.forEach((length, i) => {
  const [here, there] = [seen.node, seen.python].map((all) => median(all.map((rates) => rates[i])));
  const ratios = seen.node.map((rates, round) => rates[i] / seen.python[round][i]);
  console.log(
    `${length} tokens of context: Node ${here.toFixed(0)} tokens/s, Python ${there.toFixed(0)}; ` +
      `Node/Python ${median(ratios).toFixed(2)} (rounds ${ratios.map((r) => r.toFixed(2)).join(", ")})`,
  );
});
await model.dispose();
