"""Ask a real model server directly and through the proxy, and compare what comes back.

    python -m tests.real.compare http://127.0.0.1:9010/v1 tiny

Bodies are compared byte for byte, heads line by line in their order; then the SDKs and curl are
given both addresses. Exits 1 on any difference. What two calls to the same server may differ in is
blanked, and nothing else is: see `BLANKED` and `HEAD_BLANKED`. What the proxy may change is what its
edit list says: see `REMOVED` and `added`.
"""

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import orjson

from tests.clients.sdks import drain, entered, first, settle, text_of, trunkline_id
from tests.clients.team import STRICT, settled
from tests.harness.client import Answer, Client, request
from tests.harness.proxy import Proxy, process

BLANKED = (
    re.compile(rb'(?<="id":)( ?)"[^"]+"'),
    re.compile(rb'(?<="created":)( ?)\d+'),
)
"""In bodies: what a server makes anew for every answer."""
HEAD_BLANKED = re.compile(rb"(?i)^(date|x-request-id|openai-processing-ms)(: ?).*")
"""In heads: when it was, which call it was, and how long the server says it took."""
REMOVED = {
    b"connection",
    b"keep-alive",
    b"transfer-encoding",
    b"trailer",
    b"set-cookie",
    b"alt-svc",
}
"""Headers of this hop alone, and those that the edit list takes away."""

KEY = "tl-compare"
HELLO = [{"role": "user", "content": "Hello"}]
STEADY: dict[str, Any] = {"temperature": 0, "seed": 7, "max_tokens": 24}
LONG: dict[str, Any] = {**STEADY, "max_tokens": 120}
"""Long enough to be left early, and not so long that a slow server is kept from what follows."""
NODE = Path(__file__).parents[1] / "clients/node"


class Table:
    """What was compared, a line at a time, and whether all of it was the same."""

    def __init__(self) -> None:
        self.rows = self.failed = 0
        print(f"{'what':<44}{'direct':<24}{'proxied':<24}verdict")

    def row(
        self, what: str, direct: str, proxied: str, difference: str, verdict: str = "same"
    ) -> None:
        print(f"{what:<44}{direct:<24}{proxied:<24}{difference or verdict}")
        self.rows += 1
        self.failed += bool(difference)

    def equal(self, what: str, direct: object, proxied: object) -> None:
        """Compare what two clients made of their answers."""
        difference = "" if direct == proxied else f"DIFFERENT: {direct!r} / {proxied!r}"
        self.row(what, _short(direct), _short(proxied), difference)

    def holds(self, what: str, found: object, expected: object) -> None:
        """Check what only the proxy has."""
        difference = "" if found == expected else f"NOT {expected!r}"
        difference = difference and f"{difference}: {found!r}"
        self.row(what, "–", _short(found), difference, "right")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= 22 else f"{text[:21]}…"


# Byte for byte


def cases(model: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what is asked, by name: the endpoint and the body."""
    chat = {"model": model, "messages": HELLO, **STEADY}
    completion = {"model": model, "prompt": "Hello", **STEADY}
    usage = {"stream_options": {"include_usage": True}}
    return {
        "chat": ("chat/completions", chat),
        "chat, stream": ("chat/completions", {**chat, "stream": True}),
        "chat, stream, usage": ("chat/completions", {**chat, "stream": True, **usage}),
        "completion": ("completions", completion),
        "completion, stream": ("completions", {**completion, "stream": True}),
        "embedding": ("embeddings", {"model": model, "input": ["Hello", "world"]}),
        "invalid: messages is a string": ("chat/completions", {**chat, "messages": "Hello"}),
        "invalid: temperature is a word": ("chat/completions", {**chat, "temperature": "hot"}),
        "invalid: no input": ("embeddings", {"model": model}),
        "invalid: prompt over the context": (
            "completions",
            {**completion, "prompt": "Hello world. " * 20_000},
        ),
    }


async def fetch(base: str, suffix: str, body: bytes) -> Answer:
    """Send one request below *base* on a connection of its own."""
    parts = urlsplit(base)
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Authorization", b"Bearer " + KEY.encode()),
        (b"Accept", b"*/*"),
    ]
    path = f"{parts.path}/{suffix}"
    async with await Client.connect(parts.port or 80, parts.hostname or "") as client:
        await client.send(request(body, path, headers, host=parts.netloc.encode()))
        return await client.answer(seconds=120)


def head_of(answer: Answer, without: Sequence[bytes] = ()) -> list[bytes]:
    """Return the lines of the head that must be the same, in their order."""
    first_line, *lines = answer.head.rstrip(b"\r\n").split(b"\r\n")
    kept = [line for line in lines if _name(line) not in REMOVED and line not in without]
    return [first_line, *(HEAD_BLANKED.sub(rb"\1\2*", line) for line in kept)]


def added(direct: Answer, proxied: Answer) -> list[bytes]:
    """Return the lines of the proxied head that the edit list says are added to this answer."""
    theirs = direct.head.split(b"\r\n")
    ours = [b"x-trunkline-id"]
    if direct.value(b"x-request-id") is None:
        ours.append(b"x-request-id")
    stream = (direct.value(b"content-type") or b"").startswith(b"text/event-stream")
    if stream:
        ours.append(b"x-accel-buffering")
        if direct.value(b"cache-control") is None:
            ours.append(b"cache-control")
    lines = proxied.head.split(b"\r\n")
    return [line for line in lines if _name(line) in ours and line not in theirs]


def _name(line: bytes) -> bytes:
    return line.split(b":")[0].lower()


def blanked(body: bytes) -> bytes:
    for pattern in BLANKED:
        body = pattern.sub(rb'\1"*"', body)
    return body


def difference(direct: Answer, proxied: Answer) -> str:
    """Return where two answers part, or nothing."""
    if direct.whole != proxied.whole:
        return f"DIFFERENT: complete: {direct.whole} / {proxied.whole}"
    heads = head_of(direct), head_of(proxied, added(direct, proxied))
    if heads[0] != heads[1]:
        lost = [line for line in heads[0] if line not in heads[1]]
        more = [line for line in heads[1] if line not in heads[0]]
        return f"DIFFERENT HEADS: without {lost}, with {more} (or another order)"
    one, other = blanked(direct.body), blanked(proxied.body)
    if one != other:
        pairs = enumerate(zip(one, other, strict=False))
        at = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
        return f"DIFFERENT at byte {at}: {one[at : at + 40]!r} / {other[at : at + 40]!r}"
    return ""


async def compare_bytes(table: Table, direct: str, proxied: str, model: str) -> None:
    """Ask everything directly, directly again, and through the proxy under two names."""

    def said(answer: Answer) -> str:
        return f"{answer.status}, {len(answer.body)} bytes"

    for what, (suffix, fields) in cases(model).items():
        body = orjson.dumps(fields)
        once = await fetch(direct, suffix, body)
        again = await fetch(direct, suffix, body)
        if different := difference(once, again):
            table.row(f"{what} (direct, twice)", said(once), said(again), different)
            continue
        for name in (model, "alias"):
            asked = orjson.dumps({**fields, "model": name})
            answer = await fetch(proxied, suffix, asked)
            table.row(f"{what} (as {name})", said(once), said(answer), difference(once, answer))
    body = orjson.dumps({"model": "no-such-model", "messages": HELLO, **STEADY})
    once = await fetch(direct, "chat/completions", body)
    answer = await fetch(proxied, "chat/completions", body)
    table.row("a model unknown upstream", said(once), said(answer), difference(once, answer))


# Clients


async def ask(kind: str, base: str, model: str) -> dict[str, Any]:
    """Return what OpenAI's client of *kind*, sync or async, makes of what it is told."""
    make: Any = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}[kind]
    asked = {"model": model, "messages": HELLO, **STEADY}
    async with entered(make(base_url=base, api_key=KEY, max_retries=0)) as client:
        create = client.chat.completions.create
        whole = await settle(create(**asked))
        chunks = await drain(await settle(create(**asked, stream=True)))
        text = await settle(client.completions.create(model=model, prompt="Hello", **STEADY))
        try:
            await settle(create(model=model, messages="Hello"))
            mistake = "none"
        except openai.APIStatusError as error:
            mistake = f"{type(error).__name__}: {error.message}"
    return {
        "chat": whole.choices[0].message.content,
        "usage": whole.usage.model_dump(),
        "stream": text_of(chunks),
        "finish_reason": [choice.finish_reason for chunk in chunks for choice in chunk.choices],
        "completion": text.choices[0].text,
        "mistake": mistake,
    }


async def leave(kind: str, proxy: Proxy, model: str) -> tuple[str, str]:
    """Leave a long stream after its first chunk; return the outcome logged, and the next answer."""
    make: Any = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}[kind]
    asked = {"model": model, "messages": HELLO}
    async with entered(make(base_url=f"{proxy.url}/v1", api_key=KEY, max_retries=0)) as client:
        create = client.chat.completions.create
        async with entered(await settle(create(**asked, **LONG, stream=True))) as s:
            await first(s)
        record = await settled(proxy, trunkline_id(s.response))
        whole = await settle(create(**asked, **STEADY))
    return record["outcome"], whole.choices[0].message.content


async def compare_python(table: Table, direct: str, proxy: Proxy, model: str) -> None:
    """Let the SDK for Python ask both, sync and async, and leave early."""
    for kind in ("sync", "async"):
        one, other = await ask(kind, direct, model), await ask(kind, f"{proxy.url}/v1", model)
        for what, said in one.items():
            table.equal(f"openai-python {kind}: {what}", said, other[what])
        outcome, afterwards = await leave(kind, proxy, model)
        table.holds(f"openai-python {kind}: left early, in the log", outcome, "client_gone")
        table.equal(f"openai-python {kind}: asked after that", one["chat"], afterwards)
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, max_retries=0) as client:
        names = sorted([item.id async for item in client.models.list()])
        table.holds("models: list", names, sorted({model, "alias", "no-such-model"}))
        try:
            error = (await client.models.retrieve("nobody/knows")).id
        except openai.NotFoundError as problem:
            error = str(problem.code)
        table.holds("models: error", error, "model_not_found")


async def compare_node(table: Table, direct: str, proxy: Proxy, model: str) -> None:
    """Let the SDK for Node ask both, where it is installed."""
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules/openai").is_dir():
        print("openai-node is not installed: npm ci --prefix tests/clients/node")
        return

    def run(base: str, *names: str, more: dict[str, Any]) -> dict[str, Any]:
        env = {"PATH": os.environ["PATH"], "KEY": KEY, "MODEL": model}
        env["BASE_URL"] = base.removesuffix("/v1")
        env["MORE"] = orjson.dumps({"messages": HELLO, **more}).decode()
        command = [node, str(NODE / "openai.mjs"), *names]
        said: dict[str, Any] = orjson.loads(subprocess.check_output(command, env=env, timeout=120))
        return said

    names = ("chat", "stream", "helper")
    one = run(direct, *names, more=STEADY)
    other = run(proxy.url, *names, more=STEADY)
    for name in names:
        table.equal(f"openai-node: {name}", one[name]["value"], other[name]["value"])
    left = run(proxy.url, "leave", more=LONG)["leave"]["value"]
    outcome = (await settled(proxy, left))["outcome"]
    table.holds("openai-node: left early, in the log", outcome, "client_gone")


def compare_curl(table: Table, direct: str, proxied: str, model: str) -> None:
    """Let `curl -N` ask both for a stream."""
    if shutil.which("curl") is None:
        print("curl is not installed")
        return

    def run(base: str) -> tuple[int, bytes]:
        body = orjson.dumps({"model": model, "messages": HELLO, **STEADY, "stream": True})
        command = ["curl", "-sSN", f"{base}/chat/completions", "-H", f"Authorization: Bearer {KEY}"]
        command += ["-H", "Content-Type: application/json", "-d", body.decode()]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, check=False)
        return done.returncode, blanked(done.stdout)

    one, other = run(direct), run(proxied)
    table.row(
        "curl -N",
        f"exit {one[0]}, {len(one[1])} bytes",
        f"exit {other[0]}, {len(other[1])} bytes",
        "" if one == other else f"DIFFERENT: {one} / {other}",
    )


async def compare_log(table: Table, proxy: Proxy) -> None:
    """See that every exchange has left a line that fits its status."""
    await asyncio.sleep(0.2)  # the log gathers its lines for a moment
    records = proxy.records()
    print(f"log: {dict(Counter(record['outcome'] for record in records))}")
    expected = {"ok": range(200, 400), "client_gone": range(200, 400)}
    expected |= {"client_error": range(400, 500), "upstream_error": range(500, 600)}
    odd = [
        record["request_id"]
        for record in records
        if record["status"] not in expected.get(record["outcome"], ())
    ]
    table.holds("log: outcomes that do not fit their status", odd, [])


def routes_to(base: str, model: str) -> str:
    """Return a routes file: the model under its own name, under another, and one unknown upstream."""
    upstream = f"base_url = {orjson.dumps(base).decode()}"
    name = orjson.dumps(model).decode()
    return f"""
[keys]
compare = "${{COMPARE_KEY}}"
[upstreams.real]
{upstream}
[routes]
{name} = {{ upstream = "real", model = {name} }}
"alias" = {{ upstream = "real", model = {name} }}
"no-such-model" = {{ upstream = "real" }}
"""


async def main(base: str, model: str) -> int:
    """Compare everything; return the exit status."""
    env = {"COMPARE_KEY": KEY}
    async with process(routes_to(base, model), env, python=STRICT) as proxy:
        proxied = f"{proxy.url}/v1"
        table = Table()
        await compare_bytes(table, base, proxied, model)
        await compare_python(table, base, proxy, model)
        await compare_node(table, base, proxy, model)
        compare_curl(table, base, proxied, model)
        await compare_log(table, proxy)
    print(
        f"{table.failed} of {table.rows} differ" if table.failed else f"all {table.rows} the same"
    )
    return 1 if table.failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Compare a model server with itself behind the proxy."
    )
    parser.add_argument("base_url", help="all that precedes /chat/completions; plain http")
    parser.add_argument("model", help="the model's name there")
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.base_url.rstrip("/"), options.model)))
