// node examples/node.mjs [PACKAGE] [QUESTION]; without a question it is a conversation
import { createInterface } from "node:readline";
import { GptOss } from "gptoss-onnx";

const [folder = "../../build/demo-node-int4", question] = process.argv.slice(2);
const model = await GptOss.load(folder);
const conversation = model.conversation();

async function ask(text) {
  for await (const { channel, text: piece } of conversation.send(text))
    if (channel === "final") process.stdout.write(piece);
  process.stdout.write("\n");
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
