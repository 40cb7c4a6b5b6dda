// node examples/node.mjs [PACKAGE] [QUESTION]; without a question it is a conversation
import { createInterface } from "node:readline";
import { GptOss } from "gptoss-onnx";

const [folder = "../../build/demo-node-int4", question] = process.argv.slice(2);
const maxNewTokens = Number(process.env.MAX_NEW_TOKENS) || undefined;
const model = await GptOss.load(folder);
const conversation = model.conversation({ maxNewTokens });

async function ask(text) {
  const reply = conversation.send(text);
  let last;
  for await (const { kind, text: piece, message } of reply) {
    if (kind !== "final" && kind !== "commentary") continue;
    if (last !== undefined && message !== last) process.stdout.write("\n");
    process.stdout.write(piece);
    last = message;
  }
  process.stdout.write("\n");
  if (reply.cutIn === "analysis") {
    console.error("[cut while the model was still thinking: raise MAX_NEW_TOKENS]");
  } else if (reply.cutIn) console.error("[cut]");
}

if (question) {
  await ask(question);
} else {
  const lines = createInterface({ input: process.stdin, output: process.stdout });
  lines.prompt();
  for await (const line of lines) {
    if (line.trim()) await ask(line);
    lines.prompt();
  }
}
await model.dispose();
