"use strict";
// What both pages share. The key lives in this tab (sessionStorage) and in the header of a request.

const $ = (id) => document.getElementById(id);
const root = document.documentElement.dataset.root;
const KEY = "TRUNKLINE_KEY";

function complain(text) {
  const trouble = $("trouble");
  trouble.textContent = text;
  trouble.hidden = false;
}

addEventListener("error", (event) => complain(`Something in this page went wrong: ${event.message}`));
addEventListener("unhandledrejection", (event) =>
  complain(`Something in this page went wrong: ${event.reason?.message ?? event.reason}`));

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Words, with `code` among them
const prose = (text) => text.split("`").map((part, at) => (at % 2 ? element("code", {}, part) : part));

// The key

const held = {
  get() {
    try { return sessionStorage.getItem("trunkline-key") ?? ""; } catch { return ""; }
  },
  set(key) {
    try {
      if (key) sessionStorage.setItem("trunkline-key", key);
      else sessionStorage.removeItem("trunkline-key");
    } catch { /* this browser keeps nothing: the field still holds it */ }
  },
};

const sendable = (key) => /^[\x21-\x7e]*$/.test(key);

function present(key, auth) {
  if (!key || !auth.headers.length) return {};
  const name = auth.headers[0];
  return name === "authorization" ? { Authorization: `Bearer ${key}` } : { [name]: key };
}

async function describe(path, key, auth) {
  const url = new URL(`${root}/${path}`, location.href);
  let answer;
  try {
    answer = await fetch(url, { headers: present(key, auth), cache: "no-store", credentials: "omit" });
  } catch {
    throw new Error(`Nothing answers at ${url}. Is the proxy up?`);
  }
  if (!answer.ok) throw new Error(`${url} answers ${answer.status}.`);
  const info = await answer.json();
  const about = info["x-trunkline"] ?? info;
  about.urls = Object.fromEntries(Object.entries(about.base_urls).map(
    ([name, base]) => [name, new URL(base, url).href.replace(/\/$/, "")]));
  return [info, about];
}

// What is typed for a shell, Python and Node

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function keyLine(auth) {
  if (!auth.required) return [];
  const name = auth.headers[0];
  return [name === "authorization" ? `"Authorization: Bearer $${KEY}"` : `"${name}: $${KEY}"`];
}

function python(value, indent = "") {
  const deeper = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const open = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => python(item, deeper))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, deeper)}`);
  if (!items.length) return open;
  const line = items.join(", ");
  if (line.length < 64 && !line.includes("\n")) return open[0] + line + open[1];
  return `${open[0]}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${open[1]}`;
}

const node = (value, indent = "") => JSON.stringify(value, null, 2)
  .replace(/^(\s*)"([A-Za-z_]\w*)":/gm, "$1$2:").replaceAll("\n", `\n${indent}`);

// How each SDK is told where to go, and who asks. A header of its own where a Bearer is not taken.

const bearer = (auth) => !auth.required || auth.headers.includes("authorization");
const takes = (auth, name) => !auth.required || auth.headers.includes(name);
const secret = { python: `os.environ["${KEY}"]`, node: `process.env.${KEY}` };
const given = (auth, lang) => (bearer(auth) && auth.required ? secret[lang] : '"not-needed"');

function own(auth, lang, name) {
  if (bearer(auth)) return [];
  const header = `"${auth.headers[0]}": ${secret[lang]}`;
  return [lang === "python" ? `${name}={${header}},` : `${name}: { ${header} },`];
}

function client(library, lang, about) {
  const { auth, urls } = about;
  const url = JSON.stringify(library === "anthropic" ? urls.anthropic : urls.openai);
  const name = library === "anthropic" ? "Anthropic" : "OpenAI";
  const token = library === "anthropic" && auth.required && bearer(auth) && !takes(auth, "x-api-key");
  if (lang === "python") {
    const parameters = [
      `base_url=${url},`,
      `${token ? "auth_token" : "api_key"}=${given(auth, lang)},`,
      ...own(auth, lang, "default_headers"),
    ];
    return `${auth.required ? "import os\n" : ""}from ${library} import ${name}\n\n` +
      `client = ${name}(\n${parameters.map((line) => `    ${line}\n`).join("")})\n`;
  }
  const options = [
    `baseURL: ${url},`,
    `${token ? "authToken" : "apiKey"}: ${given(auth, lang)},`,
    ...own(auth, lang, "defaultHeaders"),
  ];
  const from = library === "anthropic" ? "@anthropic-ai/sdk" : "openai";
  return `import ${name} from "${from}";\n\n` +
    `const client = new ${name}({\n${options.map((line) => `  ${line}\n`).join("")}});\n`;
}

function curl(url, auth, headers, body) {
  const lines = [
    `curl -N ${shell(url)}`,
    ...[...keyLine(auth), ...headers.map(shell)].map((header) => `-H ${header}`),
    ...body,
  ];
  return lines.join(" \\\n  ");
}

// Parts of a page

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard where the page came over plain http
    const area = element("textarea", { class: "unseen", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    button.focus();
    if (!done) return complain("This browser lets no page copy: select the text instead.");
  }
  button.textContent = "Copied";
  $("said").textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; $("said").textContent = ""; }, 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy($(button.dataset.copy).textContent, button);
});

// Tabs as ARIA has them: one stop, arrows within.
function tabs(list, show) {
  const all = () => [...list.querySelectorAll("[role=tab]")];
  function select(tab, focus) {
    for (const each of all()) {
      each.setAttribute("aria-selected", each === tab);
      each.tabIndex = each === tab ? 0 : -1;
    }
    if (focus) tab.focus();
    show(tab);
  }
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    const every = all();
    const at = every.indexOf(document.activeElement);
    const to = {
      ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
      Home: 0, End: every.length - 1,
    }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    select(every[(to + every.length) % every.length], true);
  });
  return select;
}
