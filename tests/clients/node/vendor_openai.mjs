// The OpenAI SDK's usual calls, at $BASE_URL with the key $OAI: a vendor, or the proxy in front of it.

import { createHash } from "node:crypto";
import https from "node:https";
import net from "node:net";
import OpenAI, { toFile } from "openai";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import WebSocket from "ws";
import { ASKED, AUDIO, IMAGE, LINES, SCHEMA, TOOL, drain, run } from "./cases.mjs";

// The SDK's realtime clients insist on TLS, whatever the base URL says: both are told to do without.
class Plain extends https.Agent {
  createConnection({ host, port }) {
    return net.connect(port, host);
  }
}
globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(String(url).replace("wss:", "ws:"), protocols);
  }
};
const options = { baseURL: `${process.env.BASE_URL}/v1`, apiKey: process.env.OAI, maxRetries: 0 };
const client = new OpenAI(options);
const model = "gpt-4o";
const ask = { model, messages: ASKED };
const tools = [{ type: "function", function: { name: TOOL, parameters: SCHEMA } }];
const flat = [{ type: "function", name: TOOL, parameters: SCHEMA, strict: true }];

const audio = () => toFile(AUDIO, "speech.wav", { type: "audio/wav" });
const image = () => toFile(IMAGE, "in.png", { type: "image/png" });
const digest = async (response) =>
  createHash("sha256").update(Buffer.from(await response.arrayBuffer())).digest("hex");
const ids = (list) => drain(list, (item) => item.id);

/** Ask once over a realtime connection; return what was said, once it is closed. */
const realtime = (connection) =>
  new Promise((resolve, reject) => {
    let said = "";
    connection.on("session.created", () => connection.send({ type: "response.create" }));
    connection.on("response.output_text.delta", (event) => (said += event.delta));
    connection.on("response.done", () => connection.close({ code: 1000, reason: "enough" }));
    connection.on("error", reject);
    connection.socket.addEventListener("close", (event) => resolve([said, event.code]));
  });

await run({
  chat: async () => (await client.chat.completions.create(ask)).choices[0].message.content,
  chat_stream: async () => {
    const asked = { ...ask, stream: true, stream_options: { include_usage: true } };
    const chunks = await drain(await client.chat.completions.create(asked));
    const said = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    return [said, chunks.at(-1).usage.total_tokens];
  },
  chat_tools: async () => {
    const { message } = (await client.chat.completions.create({ ...ask, tools })).choices[0];
    const [called] = message.tool_calls;
    const result = { role: "tool", tool_call_id: called.id, content: "rain" };
    const asked = { model, tools, messages: [...ASKED, message, result] };
    const last = await client.chat.completions.create(asked);
    return [called.function, last.choices[0].message.content];
  },
  chat_tools_stream: async () => {
    const whole = await client.chat.completions.stream({ ...ask, tools }).finalChatCompletion();
    return whole.choices[0].message.tool_calls[0].function.arguments;
  },
  completions: async () =>
    (await client.completions.create({ model: "gpt-3.5-turbo-instruct", prompt: "Say" })).choices[0].text,
  embeddings: async () => {
    const asked = { model: "text-embedding-3-small", input: ["a", "b"] };
    const packed = await client.embeddings.create(asked);
    const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
    return [packed, plain].map((reply) => reply.data.map((item) => [...item.embedding]));
  },
  responses: async () => (await client.responses.create({ model, input: "Hello" })).output_text,
  responses_stream: async () => {
    const events = await drain(await client.responses.create({ model, input: "Hello", stream: true }));
    const words = events.filter((event) => event.type === "response.output_text.delta");
    return [words.map((event) => event.delta).join(""), events.at(-1).type];
  },
  responses_tools: async () => {
    const reply = await client.responses.create({ model, input: "Hello", tools: flat });
    const [called] = reply.output;
    const result = { type: "function_call_output", call_id: called.call_id, output: "rain" };
    const more = { model, tools: flat, input: [result], previous_response_id: reply.id };
    return [called.arguments, (await client.responses.create(more)).output_text];
  },
  responses_kept: async () => {
    const kept = await client.responses.retrieve("resp_1");
    const items = await ids(client.responses.inputItems.list("resp_1", { limit: 5 }));
    const { status } = await client.responses.cancel("resp_1");
    await client.responses.delete("resp_1");
    return [kept.output_text, items, status];
  },
  moderations: async () =>
    (await client.moderations.create({ model: "omni-moderation-latest", input: "x" })).results[0].flagged,
  files: async () => {
    const file = await toFile(LINES, "requests.jsonl");
    const kept = await client.files.create({ file, purpose: "batch" });
    const listed = await ids(client.files.list({ purpose: "batch", limit: 10 }));
    const { filename } = await client.files.retrieve(kept.id);
    const back = Buffer.from(await (await client.files.content(kept.id)).arrayBuffer());
    const { deleted } = await client.files.delete(kept.id);
    return [kept.bytes, listed, filename, back.equals(LINES), deleted];
  },
  batches: async () => {
    const input_file_id = "file-1";
    const asked = { input_file_id, endpoint: "/v1/chat/completions", completion_window: "24h" };
    const made = await client.batches.create(asked);
    const seen = await client.batches.retrieve(made.id);
    const listed = await ids(client.batches.list({ limit: 3 }));
    return [made.status, seen.status, listed, (await client.batches.cancel(made.id)).status];
  },
  transcription: async () => {
    const asked = { model: "whisper-1", file: await audio(), language: "en" };
    return (await client.audio.transcriptions.create(asked)).text;
  },
  transcription_stream: async () => {
    const asked = { model: "gpt-4o-transcribe", file: await audio(), stream: true };
    return drain(await client.audio.transcriptions.create(asked), (event) => event.delta ?? event.text);
  },
  translation: async () =>
    (await client.audio.translations.create({ model: "whisper-1", file: await audio() })).text,
  speech: async () =>
    digest(await client.audio.speech.create({ model: "tts-1", voice: "alloy", input: "Hello" })),
  images: async () => {
    const asked = { model: "gpt-image-1", prompt: "A cat" };
    const made = await client.images.generate(asked);
    const edited = await client.images.edit({ ...asked, image: await image() });
    const both = await client.images.edit({ ...asked, image: [await image(), await image()] });
    return [made, edited, both].map((reply) => reply.data[0].b64_json);
  },
  realtime: async () => {
    const connect = { model: "gpt-realtime", options: { agent: new Plain() } };
    return realtime(new OpenAIRealtimeWS(connect, client));
  },
  realtime_browser: async () => {
    const inside = new OpenAI({ ...options, dangerouslyAllowBrowser: true });
    const connect = { model: "gpt-realtime", dangerouslyAllowBrowser: true };
    return realtime(new OpenAIRealtimeWebSocket(connect, inside));
  },
});
