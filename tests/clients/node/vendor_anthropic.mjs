// The Anthropic SDK's usual calls, at $BASE_URL with the key $CLAUDE: a vendor, or the proxy before it.

import Anthropic from "@anthropic-ai/sdk";
import { ASKED, SCHEMA, TOOL, drain, run } from "./cases.mjs";

const baseURL = process.env.BASE_URL;
const client = new Anthropic({ baseURL, apiKey: process.env.CLAUDE, maxRetries: 0 });
const model = "claude-sonnet-5";
const ask = { model, max_tokens: 64, messages: ASKED };
const tools = [{ name: TOOL, description: "The weather", input_schema: SCHEMA }];

await run({
  message: async () => (await client.messages.create(ask)).content[0].text,
  events: async () => {
    const events = await drain(await client.messages.create({ ...ask, stream: true }));
    const words = events.flatMap((e) => (e.type === "content_block_delta" ? [e.delta.text] : []));
    return [words.join(""), events.at(-1).type];
  },
  stream: async () => (await client.messages.stream(ask).finalMessage()).content[0].text,
  tools: async () => {
    const { content } = await client.messages.create({ ...ask, tools });
    const result = { type: "tool_result", tool_use_id: content[0].id, content: "rain" };
    const messages = [...ASKED, { role: "assistant", content }, { role: "user", content: [result] }];
    const last = await client.messages.create({ ...ask, tools, messages });
    return [content[0].input, last.content[0].text];
  },
  tools_stream: async () =>
    (await client.messages.stream({ ...ask, tools }).finalMessage()).content[0].input,
  beta: async () => {
    const betas = ["context-1m-2025-08-07", "files-api-2025-04-14"];
    return (await client.beta.messages.create({ ...ask, betas })).content[0].text;
  },
  count_tokens: async () =>
    (await client.messages.countTokens({ model, messages: ASKED })).input_tokens,
});
