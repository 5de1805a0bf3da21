// Drives a real browser over the two pages, case by case, and prints what was seen: Python judges.
//
//   node browser.mjs '{"keys": URL, "open": URL, "narrow": URL, "below": URL, "key": …, "shots": DIR}'
//
// Whatever the cases do, nothing may leave the origin, break the policy, or be complained about in the
// console, but for what the browser itself says of an answer that is an error.

import { createRequire } from "node:module";

const require = createRequire(new URL("../clients/node/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const { keys, open, narrow, below, key, chromium: executablePath, shots } = JSON.parse(process.argv[2]);

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const requests = [], complaints = [];
const browser = await chromium.launch({ executablePath, args: FLAGS });
const DESK = {
  viewport: { width: 1280, height: 900 }, permissions: ["clipboard-read", "clipboard-write"],
};

async function visit(url, options = DESK) {
  const page = await browser.newPage(options);
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  page.setDefaultTimeout(45_000); // for a machine that has much else to do
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => complaints.push(`error: ${error.message}`));
  page.on("console", (message) => {
    const expected = /^Failed to load resource: (the server responded with a status of|net::ERR_(FAILED|INCOMPLETE_CHUNKED_ENCODING))/;
    if (["error", "warning"].includes(message.type()) && !expected.test(message.text())) complaints.push(message.text());
  });
  await page.goto(url);
  if (new URL(url).pathname.includes("/docs/api")) await page.waitForFunction(() => document.querySelector("#url").textContent);
  else await page.waitForSelector("#addresses code");
  return page;
}

async function explorer(base, { withKey = key, operation, model, options } = {}) {
  const page = await visit(`${base}/docs/api${operation ? `#${operation}` : ""}`, options);
  if (withKey) {
    await page.fill("#secret", withKey);
    await page.press("#secret", "Tab");
    await page.waitForFunction(() => document.querySelector("#keynote").textContent !== "stays in this tab, goes to this proxy only");
  }
  if (model) await ask(page, model);
  return page;
}

async function ask(page, model) {
  const text = await page.inputValue("#body");
  await page.fill("#body", text.replace(/"model": "[^"]*"/, `"model": "${model}"`));
}

const done = (page) => page.waitForFunction(() => !document.querySelector("#send").disabled);
const text = (page, id) => page.textContent(`#${id}`);
const LANGS = ["curl", "python", "node"];

async function written(page, lang) { // a radio button shows through whatever tab is open
  await page.evaluate((value) => document.querySelector(`[name=lang][value=${value}]`).click(), lang);
  return text(page, "code");
}

const PHONE = { viewport: { width: 390, height: 844 }, reducedMotion: "reduce" };

// From now on notes how much of the answer is seen, and where everything stands on the page
const watch = (page) => page.evaluate(() => {
  const boxes = () => [".facts", "#tabs", ".pane:not([hidden])", "#secret", "#body", "#send"].map((name) => {
    const box = document.querySelector(name).getBoundingClientRect();
    return [box.x, box.y + scrollY, box.width, box.height].map(Math.round).join(" ");
  }).join(" | ");
  const answer = document.querySelector("#answer");
  window.noted = { sizes: [], places: [boxes()] };
  new MutationObserver(() => {
    window.noted.sizes.push(answer.textContent.length);
    window.noted.places.push(boxes());
  }).observe(answer, { childList: true, characterData: true, subtree: true });
});
const noted = async (page) => {
  const { sizes, places } = await page.evaluate(() => window.noted);
  return { sizes, places: [...new Set(places)] };
};

const CASES = {
  async docs() {
    const page = await visit(`${keys}/docs`);
    const stranger = await text(page, "main");
    await page.fill("#secret", "sk-wrong");
    await page.press("#secret", "Enter");
    await page.waitForFunction(() => document.querySelector("#known").textContent);
    const wrong = await text(page, "known");
    await page.fill("#secret", key);
    await page.click("#use");
    await page.waitForSelector("#list code");
    const settings = {};
    for (const tab of await page.locator("#names [role=tab]").all()) {
      await tab.click();
      settings[await tab.textContent()] = await text(page, "settings");
    }
    await page.click("#panel .copy");
    const seen = {
      stranger, wrong, settings, known: await text(page, "known"), key: await text(page, "forms"),
      models: await page.locator("#list code").allTextContents(),
      addresses: await page.locator("#addresses code").allTextContents(),
      copied: await page.evaluate(() => navigator.clipboard.readText()),
      links: await page.locator("a").evaluateAll((all) => all.map((each) => each.href.split("#")[0])),
      stored: await page.evaluate(() => [localStorage.length, document.cookie, Object.values({ ...sessionStorage }), location.href]),
    };
    await page.focus("#names [aria-selected=true]");
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowDown");
    seen.arrow = await page.evaluate(() => document.activeElement.textContent);
    await page.goto(`${keys}/docs/`);
    await page.waitForSelector("#addresses code");
    seen.slash = await page.locator("#addresses code").first().textContent();
    return seen;
  },

  async open() {
    const page = await visit(`${open}/docs`);
    const seen = {
      key: await text(page, "forms"), field: await page.isVisible("#secret"),
      models: await page.locator("#list code").allTextContents(),
      python: await text(page, "settings"),
    };
    const tried = await explorer(open, { withKey: "" });
    await tried.click("#send");
    await done(tried);
    return { ...seen, answer: await text(tried, "answer"), asked: await tried.isVisible("#secret"), code: await text(tried, "code") };
  },

  async narrow() {
    const page = await visit(`${narrow}/docs`);
    await page.fill("#secret", key);
    await page.click("#use");
    await page.waitForFunction(() => document.querySelector("#known").textContent);
    const settings = {};
    for (const tab of await page.locator("#names [role=tab]").all()) {
      await tab.click();
      settings[await tab.textContent()] = await text(page, "settings");
    }
    const tried = await explorer(narrow);
    const typed = { other: await tried.inputValue("#other"), listed: await tried.isVisible("#list") };
    await tried.click("#send");
    await done(tried);
    const operations = await tried.locator("#operation option").allTextContents();
    return { settings, models: await text(page, "list"), key: await text(page, "forms"), answer: await text(tried, "answer"), operations, code: await text(tried, "code"), ...typed };
  },

  async grows() {
    const page = await explorer(keys, { model: "sandbox/slow" });
    await watch(page);
    await page.focus("#body");
    await page.keyboard.press("Control+Enter");
    await page.waitForFunction(() => document.querySelector("#answer").matches(".live"));
    await done(page);
    const facts = await page.locator(".facts dd").allTextContents();
    const answer = await text(page, "answer");
    const events = await text(page, "events");
    await page.click("#t-heads");
    return { ...await noted(page), facts, answer, events, heads: await text(page, "heads"), said: await text(page, "said") };
  },

  async stopped() {
    const page = await explorer(keys, { withKey: "", options: PHONE });
    await watch(page);
    await page.fill("#secret", key);
    await page.fill("#body", JSON.stringify({
      model: "sandbox/slow", stream: true, messages: [{ role: "user", content: "many words ".repeat(200) }],
    }));
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("#answer").textContent.length > 20);
    const seen = { at: await page.evaluate(() => document.querySelector(".facts").getBoundingClientRect().top) };
    await page.click("#stop");
    await done(page);
    return { ...seen, ...await noted(page), end: await text(page, "end"), answer: await text(page, "answer") };
  },

  async wrongKey() {
    const page = await explorer(keys, { withKey: "" });
    await page.click("#send");
    await done(page);
    const without = await text(page, "problem");
    await page.fill("#secret", "sk-wrong");
    await page.click("#send");
    await done(page);
    await page.waitForFunction(() => document.querySelector("#problem").textContent.includes("accepted"));
    const wrong = await text(page, "problem");
    const note = await text(page, "keynote");
    await page.click("#problem button");
    return { without, wrong, note, status: await text(page, "status"), focus: await page.evaluate(() => document.activeElement.id) };
  },

  async limited() {
    const page = await explorer(keys, { model: "sandbox/429" });
    await page.click("#send");
    await done(page);
    const first = await text(page, "problem");
    await page.waitForFunction(() => document.querySelector("#problem").textContent.includes("again now"));
    return { first, heads: await text(page, "heads"), model: await page.inputValue("#model"), later: await text(page, "problem") };
  },

  async unknownModel() {
    const page = await explorer(keys, { model: "sandboy/echo" });
    const typed = await page.inputValue("#other");
    await page.click("#send");
    await done(page);
    const problem = await text(page, "problem");
    const near = await page.locator("#problem button").allTextContents();
    await page.locator("#problem button").first().click();
    return { typed, problem, near, body: await page.inputValue("#body"), model: await page.inputValue("#model") };
  },

  async failures() {
    const page = await explorer(keys);
    const seen = {};
    for (const model of ["sandbox/cut", "sandbox/incomplete", "sandbox/401", "sandbox/html"]) {
      await ask(page, model);
      await page.click("#send");
      await done(page);
      seen[model] = [await text(page, "status"), await text(page, "answer"), (await text(page, "problem")) + (await text(page, "end"))];
    }
    await page.fill("#body", "{");
    seen.invalid = await text(page, "valid");
    await page.click("#send");
    await done(page);
    seen.json = await text(page, "problem");
    await page.route("**/chat/completions", (route) => route.abort());
    await page.click("#send");
    await done(page);
    seen.network = await text(page, "problem");
    await page.evaluate(() => setTimeout(() => { throw new Error("a fault"); }));
    await page.waitForSelector("#trouble:not([hidden])");
    seen.fault = await text(page, "trouble");
    complaints.splice(complaints.indexOf("error: a fault"), 1);
    return seen;
  },

  async dialects() {
    const page = await explorer(keys);
    const seen = {};
    for (const operation of ["responses", "messages", "completions", "embeddings", "rerank", "models", "models_one", "health", "audio_transcriptions"]) {
      await page.selectOption("#operation", operation);
      await page.click("#send");
      await done(page);
      seen[operation] = [await text(page, "status"), (await text(page, "answer")).slice(0, 80), await text(page, "problem"), await text(page, "url")];
    }
    return seen;
  },

  async hook() {
    const page = await explorer(keys, { withKey: "", operation: "hooks_name" });
    await page.fill("#in-name", "alerts");
    await page.click("#send");
    await done(page);
    const without = await text(page, "problem");
    await page.fill("#secret", "sk-hook-0123456789");
    await page.check("#stream");
    await page.click("#send");
    await done(page);
    const answer = await text(page, "answer"), end = await text(page, "end"), code = await text(page, "code");
    await page.fill("#secret", key);
    await page.selectOption("#operation", "status_events");
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("#answer").textContent.includes("uptime_seconds"));
    await page.click("#stop");
    await done(page);
    return { without, answer, end, code, status: JSON.parse(await text(page, "answer")).status, stopped: await text(page, "end") };
  },

  async keeps() {
    const page = await explorer(keys, { model: "sandbox/slow" });
    await page.selectOption("#operation", "messages");
    const messages = [await page.inputValue("#body"), await page.inputValue("#model")];
    await page.selectOption("#operation", "gemini_generateContent");
    const gemini = [await page.inputValue("#model"), await text(page, "url")];
    await page.selectOption("#operation", "chat_completions");
    await page.selectOption("#model", { label: "Another name…" });
    await page.keyboard.type("acme/new");
    const typed = await page.inputValue("#body");
    await page.click("#list");
    return { messages, gemini, typed, back: await page.inputValue("#body") };
  },

  async tabs() {
    const page = await explorer(keys);
    await page.focus("#t-answer");
    const seen = [];
    for (const press of ["ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home"]) {
      await page.keyboard.press(press);
      seen.push(await page.evaluate(() => {
        const tab = document.activeElement;
        const shown = [...document.querySelectorAll("[role=tabpanel]")].filter((pane) => !pane.hidden);
        return [tab.id, tab.getAttribute("aria-selected"), shown.map((pane) => pane.id).join(), getComputedStyle(tab).outlineStyle];
      }));
    }
    await page.focus(".skip");
    const stops = [];
    for (let count = 0; count < 24; count++) {
      await page.keyboard.press("Tab");
      stops.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim()));
    }
    const nameless = await page.evaluate(() => [...document.querySelectorAll("input, select, textarea, button")]
      .filter((each) => !each.labels?.length && !each.getAttribute("aria-labelledby") && !each.getAttribute("aria-label") && !each.textContent.trim())
      .map((each) => each.outerHTML));
    const docs = [], rings = new Set();
    await page.goto(`${keys}/docs`);
    await page.waitForSelector("#addresses code");
    while (docs.at(-1) !== "settings" && docs.length < 60) {
      await page.keyboard.press("Tab");
      const [stop, ring] = await page.evaluate(() => {
        const at = document.activeElement;
        return [at.id || at.textContent.trim(), getComputedStyle(at).outlineStyle];
      });
      docs.push(stop);
      rings.add(ring);
    }
    return { seen, stops, nameless, docs, rings: [...rings] };
  },

  async code() {
    const page = await explorer(keys, { operation: "chat_completions" });
    await page.fill("#body", JSON.stringify({
      model: "sandbox/echo", temperature: 0.5, stream: true,
      messages: [{ role: "user", content: "it's \"$HOME\" \\ 😀 `x`\nnext" }],
    }, null, 2));
    const all = async () => {
      const found = {};
      for (const lang of LANGS) found[lang] = await written(page, lang);
      return found;
    };
    await page.click("#t-code");
    const seen = { chat: await all() };
    await page.click("#take");
    seen.copied = await page.evaluate(() => navigator.clipboard.readText());
    await page.uncheck("#stream");
    seen.unstreamed = await page.inputValue("#body");
    for (const operation of ["messages", "responses", "embeddings", "rerank", "models"]) {
      await page.selectOption("#operation", operation);
      seen[operation] = await all();
    }
    return seen;
  },

  async odd() {
    const odd = "sk-odd-0123456789";
    const page = await visit(`${keys}/docs`);
    await page.fill("#secret", odd);
    await page.click("#use");
    await page.waitForSelector("#list code");
    const [known, models] = [await text(page, "known"), await page.locator("#list code").allTextContents()];
    await page.click("#names >> text=curl");
    const code = [await text(page, "settings")];
    const tried = await explorer(keys, { withKey: odd });
    for (const lang of LANGS) code.push(await written(tried, lang));
    await tried.click("#send");
    await done(tried);
    const made = (one) => one.evaluate(() => document.querySelectorAll("img, #keynote *, #known *, pre *, code *:not(#url *)").length);
    return {
      known, models, code, answer: await text(tried, "answer"), note: await text(tried, "keynote"),
      options: await tried.locator("#model > option[value]:not([value=''])").allTextContents(),
      made: await made(page) + await made(tried),
    };
  },

  async below() {
    const docs = await visit(`${below}/docs`);
    const addresses = await docs.locator("#addresses code").allTextContents();
    await docs.click("nav >> text=Explorer");
    await docs.waitForFunction(() => document.querySelector("#url").textContent);
    await docs.fill("#secret", key);
    await docs.click("#send");
    await done(docs);
    return { addresses, answer: await text(docs, "answer"), url: await text(docs, "url") };
  },

  async looks() {
    const seen = {};
    for (const [name, path] of [["docs", "/docs"], ["explorer", "/docs/api"]]) {
      const page = await visit(`${open}${path}`);
      if (name === "explorer") {
        await page.click("#send");
        await done(page);
      }
      for (const [width, height, colorScheme] of [[360, 740, "light"], [390, 844, "light"], [390, 844, "dark"], [1440, 900, "dark"], [1440, 900, "light"]]) {
        await page.setViewportSize({ width, height });
        await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
        await page.evaluate(() => scrollTo(0, 0));
        const shown = `${name}-${width}-${colorScheme}`;
        if (width > 360) await page.screenshot({ path: `${shots}/${shown}.png`, fullPage: true });
        seen[shown] = await page.evaluate(() => ({
          wide: document.documentElement.scrollWidth - innerWidth,
          background: getComputedStyle(document.body).backgroundColor,
          motion: getComputedStyle(document.documentElement).scrollBehavior,
        }));
      }
    }
    return seen;
  },
};

const LANES = [ // side by side: most of them wait most of the time; there is one clipboard
  ["docs", "code", "odd", "dialects", "below", "stopped", "open"],
  ["grows", "looks", "wrongKey", "keeps", "tabs"],
  ["limited", "failures", "unknownModel", "narrow", "hook"],
];
const seen = {}, took = {};
await Promise.all(LANES.map(async (lane) => {
  for (const name of lane) {
    const began = performance.now();
    try {
      seen[name] = { value: await CASES[name]() };
    } catch (error) {
      seen[name] = { error: error.message };
    }
    took[name] = Math.round(performance.now() - began);
  }
}));
await browser.close();
const origins = [...new Set(requests.map((url) => new URL(url).origin))];
console.log(JSON.stringify({ seen, took, origins, complaints }));
