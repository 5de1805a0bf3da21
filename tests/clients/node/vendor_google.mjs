// Google's SDK's usual calls, at $BASE_URL with the key $GOOGLE: a vendor, or the proxy in front of it.

import { GoogleGenAI } from "@google/genai";
import { SCHEMA, TOOL, drain, run } from "./cases.mjs";

const httpOptions = { baseUrl: process.env.BASE_URL };
const { models, chats } = new GoogleGenAI({ apiKey: process.env.GOOGLE, httpOptions });
const model = "gemini-2.5-flash";
const ask = { model, contents: "Hello" };

await run({
  generate: async () => (await models.generateContent(ask)).text,
  stream: async () => drain(await models.generateContentStream(ask), (piece) => piece.text),
  tools: async () => {
    const declared = { name: TOOL, description: "The weather", parametersJsonSchema: SCHEMA };
    const config = { tools: [{ functionDeclarations: [declared] }] };
    return (await models.generateContent({ ...ask, config })).functionCalls[0].args;
  },
  chat: async () => {
    const talk = chats.create({ model });
    await talk.sendMessage({ message: "Hello" });
    return (await talk.sendMessage({ message: "And?" })).text;
  },
  count_tokens: async () => (await models.countTokens(ask)).totalTokens,
  embeddings: async () => {
    const reply = await models.embedContent({ model: "gemini-embedding-001", contents: ["a", "b"] });
    return reply.embeddings.map((item) => item.values);
  },
});
