// The official client for Node against a server: prints what it got, as JSON.
// node client.mjs <folder of the client's package> <base URL>

import { createRequire } from "node:module";

const [folder, baseURL] = process.argv.slice(2);
const { OpenAI } = createRequire(import.meta.url)(folder);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the weather in Ulm?" }];
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const got = { model };

const whole = await client.chat.completions.create({ model, messages, tools });
got.whole = whole.choices[0];
got.usage = whole.usage;

const stream = client.chat.completions.stream({ model, messages, tools });
got.deltas = 0;
for await (const chunk of stream) got.deltas += chunk.choices.length;
got.streamed = await stream.finalMessage();

// The tools run by the client's own helper, to the answer behind them.
const asked = [];
const runner = client.chat.completions.runTools({
  model,
  messages,
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        parameters,
        parse: JSON.parse,
        function: (given) => (asked.push(given), "sunny"),
      },
    },
  ],
});
got.answer = await runner.finalContent();
got.asked = asked;

const response = await client.responses.create({ model, input: "Hi?" });
got.text = response.output_text;
const events = [];
for await (const event of await client.responses.create({ model, input: "Hi?", stream: true }))
  events.push(event.type);
got.events = events;
got.retrieved = (await client.responses.retrieve(response.id)).output_text;
await client.responses.delete(response.id);
got.gone = await client.responses.retrieve(response.id).catch((error) => error.status);

got.refused = await client.chat.completions
  .create({ model, messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "http://example.org/a.png" } }] }] })
  .catch((error) => [error.status, error.type, error.message]);
console.log(JSON.stringify(got));
