// The Anthropic SDK through the proxy at $BASE_URL (no /v1) with the key $KEY.

import Anthropic from "@anthropic-ai/sdk";
import { HELLO, drain, first, run } from "./cases.mjs";

const baseURL = process.env.BASE_URL;
const key = process.env.KEY;
const make = (options) => new Anthropic({ baseURL, maxRetries: 0, ...options });
const client = make({ apiKey: key });
const model = process.env.MODEL ?? "sandbox/echo";
const ask = { model, max_tokens: 64, messages: HELLO };

const message = (more = {}) => client.messages.create({ ...ask, ...more });
const text = (message) => message.content[0].text;
const streamed = async (model) => drain(await message({ model, stream: true }), (e) => e.type);

await run({
  message: async () => text(await message()),
  auth_token: async () => text(await make({ authToken: key }).messages.create(ask)),
  x_api_key: async () => {
    const headers = { "x-api-key": key, authorization: null };
    return text(await make({ apiKey: "unused", defaultHeaders: headers }).messages.create(ask));
  },
  stream: async () => {
    const events = await drain(await message({ stream: true }));
    const words = events.flatMap((e) => (e.type === "content_block_delta" ? [e.delta.text] : []));
    return [words, events.at(-1).type];
  },
  helper: async () => {
    const whole = await client.messages.stream(ask).finalMessage();
    return [text(whole), whole.stop_reason];
  },
  leave: async () => {
    const asked = { ...ask, model: process.env.MODEL ?? "sandbox/slow", stream: true };
    const { data, response } = await client.messages.create(asked).withResponse();
    await first(data);
    return response.headers.get("x-trunkline-id");
  },
  count_tokens: async () => (await client.messages.countTokens({ model, messages: HELLO })).input_tokens,
  models: async () => drain(await client.models.list({ limit: 1000 }), (item) => item.id),
  model: async () => (await client.models.retrieve("sandbox/echo")).display_name,
  wrong_key: async () => make({ apiKey: "tl-another" }).messages.create(ask),
  unknown_model: async () => message({ model: "no/such" }),
  limited: async () => message({ model: "sandbox/429" }),
  overloaded: async () => message({ model: "sandbox/529", stream: true }),
  cut: async () => streamed("sandbox/cut"),
  incomplete: async () => streamed("sandbox/incomplete"),
  stalled: async () => streamed("stalling"),
  incomplete_helper: async () =>
    client.messages.stream({ ...ask, model: "sandbox/incomplete" }).finalMessage(),
});
