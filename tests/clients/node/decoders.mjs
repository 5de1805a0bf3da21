// What the decoders of three SDKs make of streams in which comments stand, and of one that is cut in the
// middle of an event (the model `half`), through the proxy at $BASE_URL.

import Anthropic from "@anthropic-ai/sdk";
import { GoogleGenAI } from "@google/genai";
import OpenAI from "openai";
import { HELLO, drain, run } from "./cases.mjs";

const { BASE_URL: base } = process.env;
const oai = new OpenAI({ baseURL: `${base}/v1`, apiKey: "x", maxRetries: 0 });
const claude = new Anthropic({ baseURL: base, apiKey: "x", maxRetries: 0 });
const { models } = new GoogleGenAI({ apiKey: "x", httpOptions: { baseUrl: base } });

const chat = async (model) =>
  drain(
    await oai.chat.completions.create({ model, messages: HELLO, stream: true }),
    (chunk) => chunk.choices[0].delta.content,
  );
const responses = async (model) =>
  drain(await oai.responses.create({ model, input: "x", stream: true }), (event) => event.type);
const messages = async (model) =>
  drain(
    await claude.messages.create({ model, max_tokens: 9, messages: HELLO, stream: true }),
    (event) => event.type,
  );
const google = async (model) =>
  drain(await models.generateContentStream({ model, contents: "x" }), (piece) => piece.text);

await run({
  chat: () => chat("slow"),
  responses: () => responses("slow"),
  messages: () => messages("slow"),
  google: () => google("slow"),
  chat_half: () => chat("half"),
  responses_half: () => responses("half"),
  messages_half: () => messages("half"),
  google_half: () => google("half"),
});
