// The OpenAI SDK through the proxy at $BASE_URL with the key $KEY. $MODEL and $MORE (fields of every
// chat, as JSON) are for upstreams other than the sandbox.

import OpenAI from "openai";
import { HELLO, drain, first, run } from "./cases.mjs";

const baseURL = `${process.env.BASE_URL}/v1`;
const make = (options) =>
  new OpenAI({ baseURL, apiKey: process.env.KEY, maxRetries: 0, ...options });
const client = make({});
const model = process.env.MODEL ?? "sandbox/echo";
const ask = { model, messages: HELLO, ...JSON.parse(process.env.MORE ?? "{}") };
const tools = [
  { type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } },
];

const chat = (more = {}, options = {}) => client.chat.completions.create({ ...ask, ...more }, options);
const text = (chunk) => chunk.choices[0]?.delta?.content ?? "";
const streamed = async (model) => drain(await chat({ model, stream: true }), text);
const response = (more = {}) => client.responses.create({ model, input: "one two", ...more });

await run({
  chat: async () => (await chat()).choices[0].message.content,
  stream: async () => drain(await chat({ stream: true }), text),
  usage: async () => {
    const chunks = await drain(await chat({ stream: true, stream_options: { include_usage: true } }));
    return { choices: chunks.at(-1).choices, tokens: chunks.at(-1).usage.completion_tokens };
  },
  helper: async () => {
    const whole = await client.chat.completions.stream(ask).finalChatCompletion();
    return [whole.choices[0].message.content, whole.choices[0].finish_reason];
  },
  leave: async () => {
    const asked = { ...ask, model: process.env.MODEL ?? "sandbox/slow", stream: true };
    const { data, response } = await client.chat.completions.create(asked).withResponse();
    await first(data);
    return response.headers.get("x-trunkline-id");
  },
  tools: async () => {
    const choice = (await chat({ tools, tool_choice: "required" })).choices[0];
    return [choice.finish_reason, choice.message.tool_calls[0].function];
  },
  embeddings: async () => {
    const packed = await client.embeddings.create({ model, input: ["one", "two"] });
    return packed.data.map((item) => item.embedding.length);
  },
  completions: async () => (await client.completions.create({ model, prompt: "one two" })).choices[0].text,
  responses: async () => (await response()).output_text,
  responses_stream: async () => (await drain(await response({ stream: true }), (e) => e.type)).at(-1),
  moderations: async () => (await client.moderations.create({ model, input: "x" })).results[0].flagged,
  models: async () => drain(await client.models.list(), (item) => item.id),
  model: async () => (await client.models.retrieve("sandbox/echo")).id,
  wrong_key: async () => make({ apiKey: "tl-another" }).chat.completions.create(ask),
  unknown_model: async () => chat({ model: "no/such" }),
  limited: async () => chat({ model: "sandbox/429" }),
  failed: async () => chat({ model: "sandbox/500", stream: true }),
  html: async () => chat({ model: "sandbox/html" }),
  refused: async () => chat({ model: "sandbox/401" }),
  hang: async () => chat({ model: "sandbox/hang" }, { timeout: 300 }),
  impatient: async () => make({ maxRetries: 2 }).chat.completions.create({ ...ask, model: "impatient" }),
  cut: async () => streamed("sandbox/cut"),
  incomplete: async () => streamed("sandbox/incomplete"),
  stalled: async () => streamed("stalling"),
  error_event: async () => streamed("sandbox/error-event"),
  cut_plain: async () => chat({ model: "sandbox/cut" }),
  responses_incomplete: async () =>
    drain(await response({ model: "sandbox/incomplete", stream: true }), (e) => e.type),
});
