// The npm package `openai` against a server: what it got, as JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, base, key, model, picture, stop] = process.argv.slice(2);
const entry = createRequire(`${modules}/`).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(entry));
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: key });
const content = [
  { type: "image_url", image_url: { url: picture } },
  { type: "text", text: "What is this?" },
];
const messages = [{ role: "user", content }];
const ask = (fields) => client.chat.completions.create({ model, messages, max_tokens: 8, ...fields });
const failure = async (call) => {
  try {
    await call();
    return ["nothing", null];
  } catch (error) {
    return [error.constructor.name, error.code];
  }
};

const whole = await ask({});
const answer = whole.choices[0].message.content;
let streamed = "", streamedUsage = null;
for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  streamedUsage = chunk.usage ?? streamedUsage;
}
const later = await ask({
  messages: [...messages, { role: "assistant", content: answer }, { role: "user", content: "And its colour?" }],
});
const stopped = await ask({ stop: [stop] });
console.log(JSON.stringify({
  answer,
  finish_reason: whole.choices[0].finish_reason,
  usage: whole.usage,
  streamed,
  streamed_usage: streamedUsage,
  later_prompt_tokens: later.usage.prompt_tokens,
  stopped: stopped.choices[0].message.content,
  stopped_reason: stopped.choices[0].finish_reason,
  errors: [
    await failure(() => ask({ model: "gpt-5" })),
    await failure(() => ask({ n: 2 })),
    await failure(() => new OpenAI({ baseURL: `${base}/v1`, apiKey: "wrong" }).models.list()),
  ],
}));
