// Vercel's AI SDK with four of its providers, at $BASE_URL: vendors, or the proxy in front of them.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  embedMany, experimental_generateSpeech, experimental_transcribe, generateImage, generateText,
  jsonSchema, stepCountIs, streamText, tool,
} from "ai";
import { ASKED, AUDIO, SCHEMA, TOOL, drain, run } from "./cases.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const { BASE_URL, OAI, CLAUDE, GOOGLE } = process.env;
const oai = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: OAI });
const claude = createAnthropic({ baseURL: `${BASE_URL}/v1`, apiKey: CLAUDE });
const google = createGoogleGenerativeAI({ baseURL: `${BASE_URL}/v1beta`, apiKey: GOOGLE });
const any = createOpenAICompatible({ name: "any", baseURL: `${BASE_URL}/v1/`, apiKey: OAI });

const models = {
  responses: oai("gpt-4o"),
  chat: oai.chat("gpt-4o"),
  claude: claude("claude-sonnet-5"),
  google: google("gemini-2.5-flash"),
  any: any("gpt-4o"),
};
const execute = async () => "rain";
const tools = { [TOOL]: tool({ description: "The weather", inputSchema: jsonSchema(SCHEMA), execute }) };
const ask = (model, more) => ({ model, messages: ASKED, maxRetries: 0, ...more });

/** Ask each model as an application does: at once, as a stream, and with a tool that it calls. */
const usual = ([name, model]) => ({
  [name]: async () => (await generateText(ask(model))).text,
  [`${name}_stream`]: async () => (await drain(streamText(ask(model)).textStream)).join(""),
  [`${name}_tools`]: async () => {
    const { steps, text } = await generateText(ask(model, { tools, stopWhen: stepCountIs(2) }));
    return [steps[0].toolCalls[0].input, text];
  },
  [`${name}_tools_stream`]: async () => {
    const result = streamText(ask(model, { tools, stopWhen: stepCountIs(2) }));
    return [(await result.steps)[0].toolCalls[0].input, await result.text];
  },
});

const vectors = async (model) =>
  (await embedMany({ model, values: ["a", "b"], maxRetries: 0 })).embeddings;

await run({
  ...Object.assign({}, ...Object.entries(models).map(usual)),
  oai_embeddings: async () => vectors(oai.textEmbeddingModel("text-embedding-3-small")),
  any_embeddings: async () => vectors(any.textEmbeddingModel("text-embedding-3-small")),
  google_embeddings: async () => vectors(google.textEmbeddingModel("gemini-embedding-001")),
  transcription: async () =>
    (await experimental_transcribe({ model: oai.transcription("whisper-1"), audio: AUDIO, maxRetries: 0 })).text,
  speech: async () => {
    const asked = { model: oai.speech("tts-1"), text: "Hello", maxRetries: 0 };
    return (await experimental_generateSpeech(asked)).audio.uint8Array.length;
  },
  image: async () => {
    const asked = { model: oai.image("gpt-image-1"), prompt: "A cat", maxRetries: 0 };
    return (await generateImage(asked)).image.base64;
  },
});
