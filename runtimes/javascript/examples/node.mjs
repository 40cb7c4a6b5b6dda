// node examples/node.mjs [PACKAGE] [QUESTION]
import { GptOss } from "gptoss-onnx";

const [folder = "../../build/demo-node-int4", question = "What does os.path.join do?"] =
  process.argv.slice(2);
const model = await GptOss.load(folder);
for await (const { channel, text } of model.chat([{ role: "user", content: question }]))
  if (channel === "final") process.stdout.write(text);
process.stdout.write("\n");
await model.dispose();
