// Runs OpenAI's own SDK in a page of another origin, in a real browser, and prints what it saw of each
// call: Python judges.
//
//   node origin.mjs '{"proxy": URL, "port": PORT OF THE PAGE, "key": …, "chromium": …, "models": […]}'

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const modules = new URL("../clients/node/node_modules/", import.meta.url);
const require = createRequire(new URL("../package.json", modules));
const { chromium } = require("playwright-core");
const { proxy, port, key, chromium: executablePath, models } = JSON.parse(process.argv[2]);

const files = createServer(async (request, response) => {
  const path = request.url.slice(1);
  const text = path ? await readFile(new URL(path, modules)).catch(() => null) : "<!doctype html><title>page</title>";
  response.writeHead(text === null ? 404 : 200, { "Content-Type": path ? "text/javascript" : "text/html" });
  response.end(text);
});
await new Promise((listening) => files.listen(port, "127.0.0.1", listening));

const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${port}/`);
const seen = await page.evaluate(async ({ proxy, key, models }) => {
  const { default: OpenAI } = await import("/openai/index.mjs");
  const client = new OpenAI({ baseURL: `${proxy}/v1`, apiKey: key, dangerouslyAllowBrowser: true });
  const seen = {};
  for (const model of models) {
    try {
      const { data, response } = await client.chat.completions
        .create({ model, messages: [{ role: "user", content: "Hello" }] }).withResponse();
      seen[model] = { said: data.choices[0].message.content, headers: Object.fromEntries(response.headers) };
    } catch (error) {
      seen[model] = { status: error.status, code: error.code, said: error.message, headers: Object.fromEntries(error.headers ?? []) };
    }
  }
  return seen;
}, { proxy, key, models });
await browser.close();
files.close();
console.log(JSON.stringify(seen));
