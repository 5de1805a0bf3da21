"""The pages for people, in a real browser: what a visitor sees, does and is told; and what they are
made of.

`pages/browser.mjs` drives, these tests judge. The code that the pages print is run for real.
"""

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop

from proxy import pages
from tests.harness.client import call
from tests.harness.proxy import process, serving
from tests.pages.subpath import PREFIX, below

CHROMIUM = shutil.which("chromium")
NODE = shutil.which("node")
HERE = Path(__file__).parent
ROOT = HERE.parent
MODULES = HERE / "clients/node"
MISSING = (
    "chromium is not installed"
    if CHROMIUM is None
    else "node is not installed"
    if NODE is None
    else "the browser's driver is not installed: npm ci --prefix tests/clients/node"
    if not (MODULES / "node_modules/playwright-core").is_dir()
    else ""
)
browses = pytest.mark.skipif(bool(MISSING), reason=MISSING)
pytestmark = pytest.mark.timeout(300)  # the first test waits for the whole visit

KEY = "sk-team-0123456789"
ODD = """</script><img src=x onerror=alert(1)>'`$(exit 1)\\n"""
"""A model's name that is read as something else wherever it is not kept apart."""
ROUTES = f"""
[[surface]]
name = "keys"
listen = "127.0.0.1:0"
[[surface]]
name = "open"
listen = "127.0.0.2:0"
auth = "none"
[[surface]]
name = "narrow"
listen = "127.0.0.3:0"
base_paths = ["/api/v1"]
accept = ["apikey"]
models = "hidden"
endpoints = ["chat/completions"]
[keys]
team = "{KEY}"
"<b>odd</b>" = {{ secret = "sk-odd-0123456789", models = ["</script>*"] }}
[routes]
"default" = "sandbox/echo"
"sandbox/*" = {{ upstream = "sandbox", list = ["sandbox/echo", "sandbox/slow", "sandbox/429"] }}
"gemini-pro" = {{ base_url = "http://127.0.0.1:1/v1", speaks = ["gemini"] }}
{orjson.dumps(ODD).decode()} = "sandbox/echo"
[unrouted]
"files" = "sandbox"
[hooks.alerts]
route = "default"
secret = "sk-hook-0123456789"
"""

Seen = dict[str, Any]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A visitor's whole visit, at three addresses of one proxy and below another's path; the proxy
    is there until all has been judged.
    """
    shots = tmp_path_factory.mktemp("screenshots")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()

        async def begin() -> Seen:
            proxy = await stack.enter_async_context(
                process(ROUTES, listen=None, python=("-W", "error"))
            )
            ready = next(line for line in proxy.lines() if line["event"] == "ready")
            ports = [address.rpartition(":")[2] for address in ready["listen"]]
            asked = {
                "keys": f"http://127.0.0.1:{ports[0]}",
                "open": f"http://127.0.0.2:{ports[1]}",
                "narrow": f"http://127.0.0.3:{ports[2]}",
                "below": await stack.enter_async_context(below(int(ports[0]))),
                "key": KEY,
                "chromium": CHROMIUM,
                "shots": str(shots),
            }
            browser = await asyncio.create_subprocess_exec(
                NODE or "node",
                str(HERE / "pages/browser.mjs"),
                orjson.dumps(asked).decode(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await browser.communicate()
            assert browser.returncode == 0, err.decode()
            seen: Seen = orjson.loads(out) | {"asked": asked, "shots": shots}
            return seen | {"ran": await ran(printed(seen["seen"]))}

        try:
            yield runner.run(begin())
        finally:
            runner.run(stack.aclose())


CLIENTS = [
    "OpenAI Python", "OpenAI Node", "Anthropic Python", "Anthropic Node", "LangChain",
    "Vercel AI SDK", "curl",
]  # fmt: skip
"""Whose printed settings can be run here."""
LANGS = ["curl", "python", "node"]
ANSWERS = {
    "chat": 'it\'s "$HOME" \\ 😀 `x`\nnext',
    "messages": "You said: Say hello in one short sentence.",
    "responses": "You said: Say hello in one short sentence.",
    "embeddings": '"embedding"',
    "rerank": "relevance_score",
    "models": "sandbox/echo",
}
"""What the explorer's code for each operation must bring."""


def printed(seen: Seen) -> list[str]:
    """Return all the code that the pages have printed and that can be run here."""
    faces = [seen[case].get("value", {}).get("settings", {}) for case in ("docs", "narrow")]
    settings = [face[client] for face in faces for client in CLIENTS if client in face]
    code = seen["code"].get("value", {})
    settings += seen["odd"].get("value", {}).get("code", [])
    return settings + [code[name][lang] for name in ANSWERS if name in code for lang in LANGS]


async def ran(code: list[str]) -> dict[str, str]:
    """Run *code*, lines for a shell, Python or JavaScript; return what each says."""
    env = {**os.environ, "TRUNKLINE_KEY": KEY}

    async def run(*command: str) -> str:
        child = await asyncio.create_subprocess_exec(
            *command, env=env, cwd=MODULES, stdout=PIPE, stderr=PIPE
        )
        out, err = await child.communicate()
        return out.decode() if child.returncode == 0 else f"{command[-1]}\n{err.decode()}"

    async def together(language: str, *command: str) -> dict[str, str]:
        chosen = [text for text in code if language_of(text) == language]
        out = await run(*command, orjson.dumps(chosen).decode())
        assert out.startswith("["), out
        return dict(zip(chosen, orjson.loads(out), strict=True))

    async def curled() -> dict[str, str]:
        lines = [text for text in code if language_of(text) == "curl"]
        return {
            text: await run("sh", "-c", text.replace("curl -N", "curl -sN", 1)) for text in lines
        }

    found = await asyncio.gather(
        together("python", sys.executable, str(HERE / "pages/several.py")),
        together("node", NODE or "node", str(HERE / "pages/several.mjs")),
        curled(),
    )
    return {text: out for each in found for text, out in each.items()}


def language_of(code: str) -> str:
    if code.startswith("curl"):
        return "curl"
    return "python" if re.match("import [a-z]+$|from ", code, re.MULTILINE) else "node"


@pytest.fixture
def seen(visit: Seen, request: pytest.FixtureRequest) -> Any:
    """What was seen in the case that the test is named after."""
    name = re.sub(r"_(\w)", lambda match: match[1].upper(), request.function.__name__[5:])
    case = visit["seen"][name]
    assert "value" in case, case
    return case["value"]


# The documentation


@browses
def test_docs(visit: Seen, seen: Seen) -> None:
    """A visitor without a key is shown addresses and no model, with a wrong one what to do, and with
    a good one its models and settings that can be copied.
    """
    origin = visit["asked"]["keys"]
    assert "sandbox/" not in seen["stranger"]
    assert "not valid" in seen["wrong"]
    assert "pasted whole" in seen["wrong"]
    assert seen["known"] == "Known here as “team”."
    assert seen["models"] == [
        "default",
        "sandbox/echo",
        "sandbox/slow",
        "sandbox/429",
        ODD,
        "gemini-pro",
    ]  # those that speak the same stand together
    assert seen["addresses"] == [f"{origin}/v1", origin, origin]
    assert "Authorization: Bearer KEY" in seen["key"]
    assert {f"{origin}/{path}" for path in ("docs", "docs/api", "openapi.json", "llms.txt")} <= set(
        seen["links"]
    )
    assert seen["copied"] == seen["settings"]["Dify"]
    assert seen["arrow"] == "OpenAI Node"
    assert seen["slash"] == f"{origin}/v1"
    assert [*seen["settings"]] == [
        "OpenAI Python", "OpenAI Node", "Anthropic Python", "Anthropic Node", "Google GenAI",
        "LangChain", "LlamaIndex", "LiteLLM", "Vercel AI SDK", "curl",
        "Claude Code", "Codex CLI", "aider", "Continue", "Cursor", "Open WebUI", "n8n", "Dify",
    ]  # fmt: skip
    assert all(origin in text for text in seen["settings"].values())
    assert KEY not in str(seen["settings"])
    assert 'model="gemini-pro"' in seen["settings"]["Google GenAI"]


SETTINGS = {
    "Claude Code": ["ANTHROPIC_BASE_URL='{origin}'\n", 'ANTHROPIC_AUTH_TOKEN="$TRUNKLINE_KEY"'],
    "Codex CLI": [
        'base_url = "{origin}/v1"',
        'wire_api = "responses"',
        'env_key  = "TRUNKLINE_KEY"',
    ],
    "Google GenAI": ['"base_url": "{origin}",'],
    "LlamaIndex": ['api_base="{origin}/v1"'],
    "LangChain": ['base_url="{origin}/v1"', "stream_usage=True"],
    "LiteLLM": ['api_base="{origin}/v1"', 'model="openai/default"'],
    "Vercel AI SDK": ["createOpenAICompatible({", 'baseURL: "{origin}/v1"'],
    "aider": ["OPENAI_API_BASE='{origin}/v1'\n", "--model 'openai/default'"],
    "Continue": ["provider: openai", 'apiBase: "{origin}/v1"', "${{ secrets.TRUNKLINE_KEY }}"],
    "Cursor": ["Override OpenAI Base URL   {origin}/v1\n", "HTTPS"],
    "Open WebUI": ["Connections → OpenAI", "{origin}/v1\n"],
    "n8n": ["{origin}/v1\n", "Use Responses API   off"],
    "Dify": ["OpenAI-API-compatible", "{origin}/v1\n"],
}
"""What the settings of a client must say, above all whether its base URL ends in `/v1`."""


@browses
@pytest.mark.parametrize("client", SETTINGS)
def test_settings_say(visit: Seen, client: str) -> None:
    """Every client is told the base URL in the form that it wants, and where it takes its key from."""
    settings = visit["seen"]["docs"]["value"]["settings"][client]
    for part in SETTINGS[client]:
        assert part.replace("{origin}", visit["asked"]["keys"]) in settings


@browses
def test_key_stays(visit: Seen) -> None:
    """The key is kept for the tab alone: not for later, not in a cookie, not in an address."""
    stored, cookie, tab, address = visit["seen"]["docs"]["value"]["stored"]
    assert (stored, cookie, tab) == (0, "", [KEY])
    assert KEY not in address


@browses
@pytest.mark.parametrize("client", CLIENTS)
def test_settings(visit: Seen, client: str) -> None:
    """The settings that the documentation prints work as they are."""
    settings = visit["seen"]["docs"]["value"]["settings"][client]
    assert "You said: Say hello." in said(visit["ran"][settings])


@browses
def test_open(visit: Seen, seen: Seen) -> None:
    """Where no key is asked for, none is asked for: the models are there at once."""
    assert "No key is asked for" in seen["key"]
    assert (seen["field"], seen["asked"]) == (False, False)
    assert seen["models"][0] == "default"
    assert 'api_key="not-needed"' in seen["python"]
    assert seen["answer"] == "You said: Say hello in one short sentence."
    assert "TRUNKLINE_KEY" not in seen["code"]


@browses
def test_narrow(visit: Seen, seen: Seen) -> None:
    """What a surface does not have is not spoken of, and its own header and base path are."""
    assert [*seen["settings"]] == [
        "OpenAI Python", "OpenAI Node", "LangChain", "LlamaIndex", "LiteLLM", "Vercel AI SDK", "curl",
    ]  # fmt: skip
    assert "does not list its models" in seen["models"]
    assert "apikey: KEY" in seen["key"]
    assert "Authorization" not in seen["key"]
    assert (seen["other"], seen["listed"]) == ("default", False)
    assert seen["answer"] == "You said: Say hello in one short sentence."
    assert seen["operations"][0] == "Chat completions"
    assert "Messages" not in seen["operations"]
    assert '-H "apikey: $TRUNKLINE_KEY"' in seen["code"]
    for client in ("OpenAI Python", "OpenAI Node", "LangChain", "Vercel AI SDK", "curl"):
        assert "You said: Say hello." in said(visit["ran"][seen["settings"][client]]), client


# The explorer


@browses
def test_grows(seen: Seen) -> None:
    """Tokens are seen as they arrive, with the time to the first byte and the rate; nothing moves."""
    assert len({*seen["sizes"]}) > 2, seen["sizes"]
    sizes = seen["sizes"][seen["sizes"].count(0) :]  # it is emptied first
    assert sizes == sorted(sizes)
    assert seen["answer"] == "You said: Say hello in one short sentence."
    assert len(seen["places"]) == 1, seen["places"]
    status, first, time, tokens, rate = seen["facts"]
    assert status == "200 OK"
    assert re.fullmatch(r"\d+ ms|\d+\.\d+ s", first)
    assert re.fullmatch(r"\d+\.\d+ s", time)
    assert tokens == "8"
    events = re.findall(r"\+(\d+\.\d{3}) s\ndata: (.*)\n\n", seen["events"])
    assert len(events) == 11
    spoken = [float(at) for at, data in events if re.search(r'"content":"[^"]', data)]
    assert len(spoken) == 8
    assert float(rate) == pytest.approx(7 / (spoken[-1] - spoken[0]), abs=0.6)
    assert seen["events"].endswith("data: [DONE]\n\n")
    assert "x-trunkline-id" in seen["heads"]
    assert seen["said"].startswith("Done in ")


@browses
def test_stopped(seen: Seen) -> None:
    """A stream that is stopped stays as far as it came, and is shown as stopped; on a phone, where it is
    brought into view, nothing moves on the page, either.
    """
    assert "Stopped" in seen["end"]
    assert "You said: many words" in seen["answer"]
    assert 20 < len(seen["answer"]) < 2000
    assert len(seen["places"]) == 1, seen["places"]
    assert 0 <= seen["at"] < 200


@browses
def test_wrong_key(seen: Seen) -> None:
    """Who has no key, or a wrong one, is told what to do, and led to the field."""
    assert "A key is needed" in seen["without"]
    assert "This key is not accepted" in seen["wrong"]
    assert "pasted whole" in seen["wrong"]
    assert "not valid" in seen["note"]
    assert (seen["status"], seen["focus"]) == ("401", "secret")


@browses
def test_limited(seen: Seen) -> None:
    """A 429 is explained by its Retry-After, which is counted down."""
    assert "Too many requests" in seen["first"]
    assert "wait 1 s" in seen["first"]
    assert "whoever serves the model" in seen["first"]
    assert "retry-after" in seen["heads"]
    assert "You may send it again now" in seen["later"]
    assert seen["model"] == "sandbox/429"


@browses
def test_unknown_model(seen: Seen) -> None:
    """A model that is not there brings up the nearest names, one of which is a click away."""
    assert seen["typed"] == "sandboy/echo"
    assert "whoever serves" not in seen["near"]
    assert seen["near"][0] == seen["model"] == "sandbox/echo"
    assert '"model": "sandbox/echo"' in seen["body"]


@browses
def test_failures(seen: Seen) -> None:
    """A cut is shown as a cut, and every failure in plain words, the page's own faults included."""
    status, answer, told = seen["sandbox/cut"]
    assert status == "Cut"
    assert "You said: ".startswith(answer)  # a browser may drop what it has with the connection
    assert "The answer is cut here" in told
    assert seen["sandbox/incomplete"][0] == "Cut"
    assert "a part" in seen["sandbox/incomplete"][2]
    assert seen["sandbox/401"][0] == "502"
    assert "yours is fine" in seen["sandbox/401"][2]
    assert "Whoever serves the model failed" in seen["sandbox/html"][2]
    assert seen["invalid"].startswith("Not JSON yet")
    assert "not a JSON object" in seen["json"]
    assert "No answer came" in seen["network"]
    assert "a fault" in seen["fault"]


@browses
def test_dialects(visit: Seen, seen: Seen) -> None:
    """The explorer speaks whatever the proxy speaks: streams of three dialects, plain JSON, and GET."""
    said = "You said: Say hello in one short sentence."
    for operation in ("responses", "messages"):
        assert seen[operation][:3] == ["200 OK", said, ""], operation
    assert seen["completions"][:2] == ["200 OK", "You said: Once upon a time"]
    for operation in ("embeddings", "rerank", "models", "models_one", "health"):
        assert seen[operation][0] == "200 OK", operation
        assert seen[operation][1].startswith("{"), operation
    assert seen["models_one"][3] == visit["asked"]["keys"] + "/v1/models/default"
    assert seen["audio_transcriptions"][0] == "404"
    assert "does not speak" in seen["audio_transcriptions"][2]


@browses
def test_hook(seen: Seen) -> None:
    """A hook is tried with its own secret, and a stream without end is shown as it stands."""
    assert "its own secret" in seen["without"]
    assert seen["answer"] == "You said: Say hello in one short sentence."
    assert seen["end"] == ""
    assert "/hooks/alerts" in seen["code"]
    assert "Bearer $TRUNKLINE_KEY" in seen["code"]
    assert seen["status"] == "ok"
    assert "Stopped" in seen["stopped"]


@browses
def test_keeps(visit: Seen, seen: Seen) -> None:
    """The model is kept from one operation to the next that it speaks; another one can be typed."""
    body, model = seen["messages"]
    assert model == "sandbox/slow"
    assert '"model": "sandbox/slow"' in body
    model, url = seen["gemini"]
    assert model == "gemini-pro"
    assert url == f"{visit['asked']['keys']}/v1beta/models/gemini-pro:generateContent"
    assert '"model": "acme/new"' in seen["typed"]
    assert '"model": "default"' in seen["back"]


@browses
def test_tabs(seen: Seen) -> None:
    """Everything can be reached and done by keyboard, in an order that makes sense, and has a name."""
    ids = [tab for tab, *_ in seen["seen"]]
    assert ids == ["t-events", "t-heads", "t-code", "t-answer", "t-code", "t-answer"]
    for tab, selected, shown, outline in seen["seen"]:
        assert (selected, shown, outline) == ("true", tab.replace("t-", "p-"), "solid")
    reached = [stop for stop in seen["stops"] if stop in
               ("operation", "model", "secret", "body", "send", "t-answer", "p-answer")]  # fmt: skip
    assert reached[:7] == ["operation", "model", "secret", "body", "send", "t-answer", "p-answer"]
    assert seen["nameless"] == []
    links = ["Docs", "Explorer", "OpenAPI", "Try it in the explorer", "Settings for your client"]
    reached = [stop for stop in seen["docs"] if stop in (*links, "secret", "use", "client-0")]
    assert reached == [*links, "secret", "use", "client-0"]
    assert seen["rings"] == ["solid"]


@browses
@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("operation", ANSWERS)
def test_code(visit: Seen, operation: str, lang: str) -> None:
    """The code that is shown says what is typed: run for real, it gets the answer to that."""
    seen = visit["seen"]["code"]["value"]
    assert KEY not in str(seen)
    assert seen["copied"] == seen["chat"]["node"]
    assert '"stream": false' in seen["unstreamed"]
    assert ANSWERS[operation] in said(visit["ran"][seen[operation][lang]])


@browses
def test_odd(visit: Seen, seen: Seen) -> None:
    """Names are text and nothing else, on the pages and in the code that they print: run for real, it
    asks for the model that has such a name.
    """
    assert seen["known"] == "Known here as “<b>odd</b>”."
    assert seen["models"] == [ODD]
    assert seen["note"] == "known here as “<b>odd</b>”"
    assert (seen["made"], seen["options"]) == (0, [ODD])
    assert seen["answer"] == "You said: Say hello in one short sentence."
    assert len(seen["code"]) == 4
    for code in seen["code"]:
        assert "You said: Say hello" in said(visit["ran"][code])


@browses
def test_below(visit: Seen, seen: Seen) -> None:
    """Below another proxy's path all addresses are that path's, and everything works."""
    address = visit["asked"]["below"]
    assert address.endswith(PREFIX)
    assert seen["addresses"] == [f"{address}/v1", address, address]
    assert seen["url"] == f"{address}/v1/chat/completions"
    assert seen["answer"] == "You said: Say hello in one short sentence."


@browses
def test_looks(visit: Seen, seen: Seen) -> None:
    """Both pages fit a phone and a desk, are light and dark as the visitor is, and keep still."""
    assert len(seen) == 10
    for name, look in seen.items():
        assert look["wide"] <= 0, (name, look)
        assert look["motion"] == "auto", name
        if "-360-" not in name:
            assert (visit["shots"] / f"{name}.png").stat().st_size > 10_000
    backgrounds = {name.rpartition("-")[2]: look["background"] for name, look in seen.items()}
    assert backgrounds["light"] != backgrounds["dark"]


@browses
def test_nothing_leaves(visit: Seen) -> None:
    """No request goes anywhere but to the proxy, and the browser finds nothing to complain about."""
    origins = {
        visit["asked"][name].removesuffix(PREFIX) for name in ("keys", "open", "narrow", "below")
    }
    assert {*visit["origins"]} - {"null"} == origins
    assert visit["complaints"] == []


# What they are made of


def said(output: str) -> str:
    """Return the text in the events of *output*, joined, where it has any."""
    lines = [line.removeprefix("data: ") for line in output.splitlines()]
    events = [orjson.loads(line) for line in lines if line.startswith('{"') and line.endswith("}")]
    text = ""
    for event in events:
        for choice in event.get("choices", ()):
            text += (choice.get("delta") or {}).get("content") or ""
        delta = event.get("delta")
        text += (delta.get("text") or "") if isinstance(delta, dict) else delta or ""
    return text or output


@pytest.mark.parametrize("name", ["docs.html", "explorer.html"])
def test_page(name: str) -> None:
    """A page is whole, small, asks nobody else for anything, and runs nothing but what is in it."""
    page = pages.load(name)
    assert len(page.text.encode()) < 60_000
    assert not re.search(r"<link[^>]+stylesheet|<script[^>]+src|@import|\burl\(|style=", page.text)
    assert not re.search(r"""(?:src|href|action)=["']?(?:https?:)?//""", page.text)
    assert "/* page." not in page.text
    inline = re.findall(r"<(script|style)[^>]*>(.*?)</", page.text, re.DOTALL)
    assert [tag for tag, _ in inline] == ["style", "script"]
    for tag, text in inline:
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/docs/api", "/docs/api/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_headers(path: str, method: str) -> None:
    """A page is given without a key, under a policy that lets nothing in and nothing out."""
    async with serving(f'[routes]\nm = "sandbox/echo"\n[keys]\nk = "{KEY}"') as proxy:
        got = await call(proxy.port, b"", path, (), method=method)
    assert got.status == 200
    assert got.value(b"content-type") == b"text/html; charset=utf-8"
    assert got.value(b"x-content-type-options") == b"nosniff"
    assert got.value(b"referrer-policy") == b"no-referrer"
    policy = (got.value(b"content-security-policy") or b"").decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("script-src").startswith("'sha256-")
    assert rules.pop("style-src").startswith("'sha256-")
    assert rules == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    if method == "GET":
        root = {"/docs": ".", "/docs/": "..", "/docs/api": "..", "/docs/api/": "../.."}[path]
        assert f'data-root="{root}"'.encode() in got.body
        assert f'href="{root}/docs/api"'.encode() in got.body


def test_contrast() -> None:
    """Text stands out from whatever it may stand on by 4.5 to 1, what has a border by 3 to 1, in both
    schemes (WCAG 2.2, 1.4.3 and 1.4.11).
    """
    css = (ROOT / "proxy/pages/page.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    )
    for scheme in (light, dark):
        grounds = ("paper", "card", "sunk")
        pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in grounds]
        for text, ground in [*pairs, ("accent", "tint"), ("on-accent", "accent"), ("paper", "ink")]:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        for ground in ("paper", "card"):
            assert contrast(scheme["edge"], scheme[ground]) >= 3, ground


def contrast(one: str, other: str) -> float:
    """Return by how much two colours differ, as WCAG has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


async def test_host() -> None:
    """Where no key is asked for, the pages answer to the proxy's own names alone."""
    async with serving('[routes]\nm = "sandbox/echo"') as proxy:
        got = await call(proxy.port, b"", "/docs/api", (), "GET", host=b"evil.example")
        assert (got.status, got.code) == (403, "origin_not_allowed")


async def test_no_docs() -> None:
    """A surface without documentation has nothing at its paths."""
    async with serving('[server]\ndocs = false\n[routes]\nm = "sandbox/echo"') as proxy:
        for path in (
            "/docs", "/docs/", "/docs/api", "/docs/api/", "/openapi.json", "/docs/openapi.json",
            "/docs/llm.json", "/llms.txt",
        ):  # fmt: skip
            got = await call(proxy.port, b"", path, (), "GET")
            assert (got.status, got.code) == (404, "not_found"), path
