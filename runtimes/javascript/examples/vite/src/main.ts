import { RemoteModel } from "gptoss-onnx";

const find = <T extends Element>(selector: string) => document.querySelector(selector) as T;
const status = find<HTMLParagraphElement>("#status");
const talk = find<HTMLPreElement>("#talk");
const form = find<HTMLFormElement>("form");
const button = find<HTMLButtonElement>("button");

const settings = new URLSearchParams(location.search);
const worker = new Worker(new URL("./gptoss.worker.ts", import.meta.url), { type: "module" });
const model = await RemoteModel.load(settings.get("package") ?? "./package", {
  worker,
  onProgress: ({ stage, loaded, total }) => {
    status.textContent = stage === "fetch" ? `${Math.round((100 * loaded) / total)} %` : "preparing";
  },
}).catch((error) => {
  status.textContent = error.message;
  throw error;
});
status.textContent = `${model.name} on ${model.backend.name}`;
button.disabled = false;

const conversation = model.conversation();
form.onsubmit = async (event) => {
  event.preventDefault();
  button.disabled = true;
  const question = String(new FormData(form).get("question"));
  talk.append(`> ${question}\n`);
  for await (const { kind, text } of conversation.send(question)) {
    if (kind === "final") talk.append(text);
  }
  talk.append("\n");
  button.disabled = false;
};
