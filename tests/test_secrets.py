"""Secrets: a canary in every slot that may hold one, and a search of everything that comes out."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from proxy.cli import main
from proxy.config import ConfigError, load
from proxy.upstream import asked
from tests.harness.client import Client, Pair, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    DONE,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    close,
    event,
    hang,
    raw,
    reset,
    stream,
)
from tests.test_errors import deaf, unknown_authority

SLOTS = {
    "plain": "Qm7tXv2KpLr9WzNc4HbY",
    "header": "Ja5uRs8DfGk3VyEo6TiP",
    "inline": "Zw1xCn4MvBq7LhUg0SdF",
    "preset": "Ot9yIp6RkEj2XaWm5QlH",
    "file": "Gc3vBz8NxMt1KsYf7JdU",
    "var_file": "Lp6oAw4ThRu9ZeXi2CnV",
    "headers": "Yk8jHf5DgSq0MbNr3PoW",
    "short": "Fd2sUe7IwOx",
    "proxy": "Vb4nTm9GyLc6RzKa1QjE",
    "client": "Xs7dEf3CrWv5TgBy8HnU",
    "other client": "Nj0mKi2UhYb6VgTc4FxD",
    "wrong": "Rz5eWs8QaPl1OkMi9JnH",
    "cookie": "Ue3rTy6IoPa9SdFg2HjK",
    "wrong query": "Ic8uYt5RvEw0QzXn7BmL",
    "google": "Mw3eRx6TcYv9UbIn2OlA",
    "command": "Aq4zWs6XeDc9RfVt1GbY",
    "argument": "Hn7uJm3KiLo5PpQz8WxE",
    "aside": "Cr2vTb0NyMu4IkOl6ZaS",
    "spoilt": "Dx9cFv1GbHn3JmKq5WeR",
    "form": "Tu6yIo8PaSd2FgHj4KlZ",
    "said": "Xe0cRv5TbYn7UmIk9OlP",
    "expired": "Pb6wQk1ZsXd8LtHe3JyG",
}
"""What is planted where. No eight characters of one stand in another, or anywhere else.

*argument* is a word of a command, and *aside* what it says besides the credential; *spoilt* is what a
file holds when it is no good; *form* is a field of a form, and *said* what is said in a WebSocket.
"""

EGRESS_USER = "egress-user"
EGRESS = b64encode(f"{EGRESS_USER}:{SLOTS['proxy']}".encode()).decode()


GOOGLE = "/v1beta/models/google:generateContent"


def grains(secret: str) -> Iterator[bytes]:
    """Return every eight characters in a row of *secret*."""
    return (secret[at : at + 8].encode() for at in range(len(secret) - 7))


def leaked(data: bytes, *, but: frozenset[str] = frozenset()) -> set[str]:
    """Return the slots of which eight characters in a row stand in *data*."""
    slots = {**SLOTS, "proxy in base64": EGRESS}
    return {
        name
        for name, secret in slots.items()
        if name not in but and any(grain in data for grain in grains(secret))
    }


@dataclass
class Place:
    """An upstream, the model that leads there, and the secrets that it is meant to see."""

    model: str
    upstream: Upstream
    secrets: frozenset[str]
    path: str = "/v1/chat/completions"


@dataclass
class House:
    """A routes file with a canary in every slot, the variables it needs, and where it leads."""

    toml: str
    env: Mapping[str, str]
    places: list[Place]
    models: list[str] = field(default_factory=list)


@asynccontextmanager
async def furnished(directory: Path) -> AsyncIterator[House]:
    """Make the upstreams, and a routes file that leads to them."""
    (directory / "file").write_text(SLOTS["file"] + "\n")
    (directory / "var").write_text(SLOTS["var_file"] + "\n")
    (directory / "command").write_text(SLOTS["command"] + "\n")
    (directory / "aside").write_text(SLOTS["aside"] + "\n")
    script = f"cat {directory}/aside >&2; cat {directory}/command"
    async with AsyncExitStack() as stack:
        names = (
            "plain", "header", "inline", "openai", "anthropic", "file", "google", "command", "egress",
        )  # fmt: skip
        up = {name: await stack.enter_async_context(Upstream()) for name in names}
        tls = await stack.enter_async_context(Upstream(tls=unknown_authority()))
        port = stack.enter_context(deaf())
        toml = f"""
            [defaults]
            timeout = {{ connect = "2s", first_byte = "100ms", idle = "100ms" }}
            [upstreams.plain]
            base_url = "{up["plain"].url}"
            credential = "${{PLAIN}}"
            headers = {{ "x-long" = "${{HEADERS}}", "x-short" = "${{SHORT}}" }}
            [upstreams.header]
            base_url = "{up["header"].url}"
            credential = {{ header = "x-corp-key", secret = "${{HEADER}}" }}
            [upstreams.openai]
            base_url = "{up["openai"].url}"
            [upstreams.anthropic]
            base_url = "{up["anthropic"].url}"
            [upstreams.file]
            base_url = "{up["file"].url}"
            credential = "${{file:{directory / "file"}}}"
            [upstreams.gemini]
            base_url = "{up["google"].url}"
            paths = {{ gemini = "{up["google"].url}beta" }}
            [upstreams.command]
            base_url = "{up["command"].url}"
            credential = {{ command = ["sh", "-c", "{script}", "{SLOTS["argument"]}"], refresh = "1s" }}
            [upstreams.egress]
            base_url = "http://inner.example/v1"
            credential = "${{PLAIN}}"
            proxy = "http://{EGRESS_USER}:${{PROXY}}@{up["egress"].authority}"
            [upstreams.tunnel]
            base_url = "https://inner.example/v1"
            credential = "${{PLAIN}}"
            proxy = "http://{EGRESS_USER}:${{PROXY}}@{up["egress"].authority}"
            [upstreams.dead]
            base_url = "http://127.0.0.1:{port}/v1"
            credential = "${{PLAIN}}"
            [upstreams.lost]
            base_url = "http://nowhere.invalid/v1"
            credential = "${{PLAIN}}"
            [upstreams.tls]
            base_url = "{tls.url}"
            credential = "${{PLAIN}}"
            [routes]
            "plain" = "plain/m"
            "header" = "header/m"
            "inline" = {{ base_url = "{up["inline"].url}", credential = "{SLOTS["inline"]}" }}
            "openai" = "openai/m"
            "anthropic" = "anthropic/m"
            "file" = "file/m"
            "google" = "gemini/m"
            "command" = "command/m"
            "egress" = "egress/m"
            "tunnel" = "tunnel/m"
            "dead" = "dead/m"
            "lost" = "lost/m"
            "tls" = "tls/m"
            "dormant" = "groq/m"
            [keys]
            team = "${{CLIENT}}"
            other = {{ secret = "{SLOTS["other client"]}", models = ["plain"] }}
            old = {{ secret = "{SLOTS["expired"]}", expires = 2020-01-01 }}
            [unrouted]
            "files" = "command"
            [log]
            level = "debug"
            """
        env = {
            "PLAIN": SLOTS["plain"],
            "HEADERS": SLOTS["headers"],
            "SHORT": SLOTS["short"],
            "HEADER": SLOTS["header"],
            "OPENAI_API_KEY": SLOTS["preset"],
            "ANTHROPIC_API_KEY_FILE": str(directory / "var"),
            "GEMINI_API_KEY": SLOTS["google"],
            "PROXY": SLOTS["proxy"],
            "CLIENT": SLOTS["client"],
        }
        places = [
            Place("plain", up["plain"], frozenset({"plain", "headers", "short"})),
            Place("header", up["header"], frozenset({"header"})),
            Place("inline", up["inline"], frozenset({"inline"})),
            Place("openai", up["openai"], frozenset({"preset"})),
            Place("anthropic", up["anthropic"], frozenset({"var_file"}), "/v1/messages"),
            Place("file", up["file"], frozenset({"file"})),
            Place("google", up["google"], frozenset({"google"}), GOOGLE),
            Place("command", up["command"], frozenset({"command"})),
            Place("egress", up["egress"], frozenset({"plain", "proxy in base64"})),
        ]
        yield House(toml, env, places, ["tunnel", "dead", "lost", "tls", "dormant", "nothing"])
        tls.errors.clear()  # of its handshakes


CLIENT: list[Pair] = [
    (b"Authorization", b"Bearer " + SLOTS["wrong"].encode()),
    (b"apikey", SLOTS["client"].encode()),
    (b"x-goog-api-key", SLOTS["other client"].encode()),
    (b"Cookie", b"session=" + SLOTS["cookie"].encode()),
]
QUERY = f"?key={SLOTS['client']}&a=1&key={SLOTS['other client']}"


def faults(secrets: bytes) -> list[Step]:
    """Return everything that an upstream does to answer, with *secrets* wherever we author the
    answer in its place.
    """
    return [
        answer(),
        stream(event(b"{}"), DONE),
        stream(event(b"{}"), end="cut"),
        stream(event(b"{}"), end="hang"),
        answer(401, b'{"error":{"message":"Incorrect key: ' + secrets + b'"}}'),
        answer(307, b"", [(b"Location", b"http://127.0.0.1:1/?key=" + secrets)]),
        raw(b"HTTP/1.1 200 " + secrets + b"\0\r\n" + secrets + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: x" + secrets + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nX-Long: " + secrets * 3_000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 101 " + secrets + b"\r\nUpgrade: " + secrets + b"\r\n\r\n", then="hang"),
        raw(secrets + b"\r\n\r\n"),
        close(),
        reset(),
        hang(),
    ]


KEY: list[Pair] = [(b"x-api-key", SLOTS["client"].encode())]
BAD = SLOTS["wrong"].encode()
REFUSED = [
    request(chat("plain"), headers=[(b"Authorization", b"Bearer " + BAD)]),
    request(chat("plain"), headers=[(b"x-api-key", BAD)]),
    request(chat("plain"), headers=[(b"x-api-key", SLOTS["expired"].encode())]),
    request(chat("plain"), f"/v1/chat/completions?key={SLOTS['wrong query']}"),
    request(chat("plain"), f"/nowhere?key={SLOTS['client']}", KEY),
    request(chat("plain"), f"/v1/chat/completions?key={SLOTS['client']}#", KEY),
    request(chat("plain"), headers=[(b"Authorization", b"Bearer " + BAD * 3_000)]),
    request(chat("plain"), headers=[(BAD * 3_000, b"x")]),
    request(chat("plain"), f"/v1/models?key={SLOTS['client'] * 1_000}"),
    request(chat("plain"), headers=[*KEY, (b"X Y", BAD)]),
    request(chat("plain"), headers=[*KEY, (b"X", BAD + b"\0")]),
    request(chat("plain"), headers=[*KEY, (b"Content-Length", BAD)]),
    request(chat("plain"), headers=[*KEY, (b"Transfer-Encoding", BAD)]),
    request(chat("plain"), headers=[*KEY, (b"Expect", BAD)]),
    request(chat("plain"), headers=[*KEY, (b"Content-Encoding", BAD)]),
    request(chat("plain"), headers=[*KEY, (b"Upgrade", BAD), (b"Connection", b"upgrade")]),
    request(chat("plain"), headers=KEY, host=BAD + b"/?"),
    request(chat("plain"), f"http://{SLOTS['wrong']}@localhost/v1/chat/completions", KEY),
    request(chat("header"), headers=[(b"x-api-key", SLOTS["other client"].encode())]),
    request(b'{"api_key":"' + BAD + b'", "model": 1}', headers=KEY),
    request(b'{"api_key":"' + BAD + b'" "model"}', headers=KEY),
    request(b'"' + BAD + b'"', headers=KEY),
    BAD + b" " + BAD + b" " + BAD + b"\r\n\r\n",
]


async def drive(proxy: Proxy, house: House) -> bytes:
    """Have everything happen that can; return every byte that clients received."""
    told = b""

    async def ask(sent: bytes) -> None:
        nonlocal told
        async with await Client.connect(proxy.port) as client:
            await client.send(sent)
            told += (await client.answer()).raw

    secrets = " ".join({**SLOTS, "b": EGRESS}.values()).encode()
    for place in house.places:
        for step in faults(secrets):
            place.upstream.will(step)
            await ask(request(chat(place.model), place.path + QUERY, CLIENT))
    house.places[-1].upstream.will(answer(407, secrets))  # to the tunnel
    for model in house.models:
        await ask(request(chat(model), "/v1/chat/completions" + QUERY, CLIENT))
        await ask(request(chat(model), "/v1/messages" + QUERY, CLIENT))
    for sent in REFUSED:
        await ask(sent)
    await ask(request(path="/v1/models" + QUERY, method="GET", headers=CLIENT))
    await ask(request(path="/health" + QUERY, method="GET", headers=CLIENT))
    # A client that leaves.
    place = house.places[0]
    place.upstream.will(stream(event(b"{}"), end="hang", headers=[SSE]))
    async with await Client.connect(proxy.port) as client:
        await client.send(request(chat(place.model), place.path + QUERY, CLIENT))
        await client.reader.readuntil(b"{}\n\n")
    return told


async def test_canaries(tmp_path: Path) -> None:
    """Whatever happens, no secret comes out anywhere but at the upstream that it is meant for."""
    async with furnished(tmp_path) as house:
        async with process(house.toml, house.env) as proxy:  # which stays silent on stderr
            assert proxy.process is not None
            told = await drive(proxy, house)
            count = len(house.places) * 14 + len(house.models) * 2 + len(REFUSED) + 3
            await proxy.record(count)
            assert leaked(Path(f"/proc/{proxy.process.pid}/cmdline").read_bytes()) == set()
            log = proxy.log.read_bytes()
        assert leaked(told) == set()
        assert leaked(log) == set()
        outcomes = {event.get("error") for event in map(orjson.loads, log.splitlines())}
        assert outcomes >= {
            "upstream_auth",
            "upstream_connect",
            "upstream_disconnected",
            "upstream_dns",
            "upstream_protocol",
            "upstream_timeout",
            "upstream_tls",
            "invalid_api_key",
            "headers_too_large",
        }
        lines = [orjson.loads(line) for line in log.splitlines()]
        attempts = [one for line in lines for one in line.get("attempts", ())]
        assert {one["credential"] for one in attempts} == {
            *("PLAIN", "HEADER", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"),
            *(f"file:{tmp_path}/file", "the command sh", "routes.inline.credential"),
        }
        assert "old" in {line.get("key") for line in lines}
        for place in house.places:
            received = b"".join(seen.head + seen.body for seen in place.upstream.requests)
            assert len(place.upstream.requests) >= 14
            assert leaked(received, but=place.secrets) == set(), place.model
            assert leaked(received) == place.secrets, place.model


def form(*fields: tuple[str, str], end: bytes = b"--x--\r\n") -> bytes:
    """Write a form of *fields*, one of which holds a canary."""
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
             for name, text in (("prompt", SLOTS["form"]), *fields)]  # fmt: skip
    return "".join(parts).encode() + end


FORM: list[Pair] = [(b"Content-Type", b"multipart/form-data; boundary=x"), *CLIENT]
FORMS = [
    form(("model", "command")),
    form(("model", "nothing")),
    form(("model", "command"), ("model", "command")),
    form(end=b""),
]
TOKEN = b"openai-insecure-api-key."


def conversation(key: str, *shown: Pair) -> bytes:
    """Write the beginning of a WebSocket, and what is said in it, readably: the mask is zero."""
    protocols = b"%b%b, realtime, %b%b" % (TOKEN, key.encode(), TOKEN, BAD)
    upgrade: list[Pair] = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"Sec-WebSocket-Protocol", protocols),
        (b"Cookie", SLOTS["cookie"].encode()),
        *shown,
    ]
    path = f"/v1/realtime?model=command&key={SLOTS['client']}"
    said = b"\x81\x94\0\0\0\0" + SLOTS["said"].encode()
    return request(path=path, headers=upgrade, method="GET") + said


def agree(*, cut: bool) -> Step:
    """Agree to a WebSocket, say back what is said, and leave, perhaps without a Close."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        request.body = await conn.reader.readexactly(26)
        await conn.send(b"\x81\x14" + request.body[6:] + (b"" if cut else b"\x88\x00"))
        conn.keep = False

    return step


async def test_canaries_off_the_usual_road(tmp_path: Path) -> None:
    """Forms, WebSockets, what is kept at a vendor, Google's keys and spoilt files keep secrets too."""
    told, count = b"", 0
    secrets = " ".join({**SLOTS, "b": EGRESS}.values()).encode()
    async with furnished(tmp_path) as house, process(house.toml, house.env) as proxy:
        up = {place.model: place.upstream for place in house.places}

        async def ask(sent: bytes) -> bytes:
            nonlocal count, told
            async with await Client.connect(proxy.port) as client:
                await client.send(sent)
                got = (await client.answer(seconds=5)).raw + await client.closed()
            count += 1
            told += got
            return got

        (tmp_path / "file").write_text(SLOTS["spoilt"] + "\0" + SLOTS["spoilt"])
        last: list[Pair] = [(b"Connection", b"close")]
        for step in [agree(cut=True), agree(cut=False)]:
            up["command"].will(step)
            got = await ask(conversation(SLOTS["client"]))
            assert leaked(got) == {"said"}
        for step in faults(secrets)[4:]:
            up["command"].will(step)
            await ask(conversation(SLOTS["client"]))
        await ask(conversation(SLOTS["wrong query"]))
        await ask(conversation(SLOTS["other client"]))
        await ask(conversation(SLOTS["client"], (b"Transfer-Encoding", BAD)))
        for body in FORMS:
            for step in (answer(), answer(401, secrets)):
                up["command"].will(step)
                await ask(request(body, "/v1/audio/transcriptions" + QUERY, FORM + last))
        for step in faults(secrets):
            up["command"].will(step)
            await ask(request(FORMS[0], "/v1/files" + QUERY, FORM + last))
            await ask(
                request(b"", "/v1/models?upstream=command&" + QUERY[1:], CLIENT + last, "GET")
            )
        for query in (QUERY, f"?key={SLOTS['client']}", f"?key={SLOTS['wrong query']}"):
            for shown in ([], [(b"x-goog-api-key", BAD)]):
                await ask(request(b"{}", GOOGLE + query, [*shown, *last]))
        async with asyncio.timeout(5):
            while b"credential_kept" not in proxy.log.read_bytes():
                await asyncio.sleep(0.02)
        await ask(request(chat("file"), headers=KEY + last))
        await proxy.record(count)
        log = proxy.log.read_bytes()
        statuses = {record["status"] for record in proxy.records()}
    assert leaked(told, but=frozenset({"said"})) == set()
    assert leaked(log) == set()
    assert {101, 200, 400, 401, 403, 404, 502, 504} <= statuses
    for place in house.places:
        received = b"".join(seen.head + seen.body for seen in place.upstream.requests)
        expected = {"command": place.secrets | {"said", "form"}, "google": place.secrets}
        expected["file"] = frozenset({"file"})
        assert leaked(received) == expected.get(place.model, frozenset()), place.model


async def test_internal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback shows where something went wrong, and not with what."""

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(asked, "head", fault)
    async with furnished(tmp_path) as house, serving(house.toml, house.env) as proxy:
        for place in house.places:
            async with await Client.connect(proxy.port) as client:
                await client.send(request(chat(place.model), place.path + QUERY, CLIENT))
                got = await client.answer()
                assert got.status == 500
                assert leaked(got.raw) == set()
        await proxy.record(len(house.places))
        log = proxy.log.read_bytes()
        assert log.count(b'"event":"internal_error"') == len(house.places)
        assert leaked(log) == set()


async def test_egress_proxy_is_told_the_password(tmp_path: Path) -> None:
    """The password in a proxy's URL goes to that proxy, with and without a tunnel."""
    async with furnished(tmp_path) as house, serving(house.toml, house.env) as proxy:
        egress = house.places[-1].upstream
        egress.will(answer(), answer(407, b""))
        for model, status in (("egress", 200), ("tunnel", 502)):
            async with await Client.connect(proxy.port) as client:
                await client.send(request(chat(model), headers=KEY))
                assert (await client.answer()).status == status
    plain, *tunnels = egress.requests
    assert plain.target == "http://inner.example/v1/chat/completions"
    assert [tunnel.line for tunnel in tunnels] == [b"CONNECT inner.example:443 HTTP/1.1"]
    for seen in egress.requests:
        assert seen.values(b"proxy-authorization") == [b"Basic " + EGRESS.encode()]
    for tunnel in tunnels:
        assert leaked(tunnel.head) == {"proxy in base64"}


# The command line


async def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the command line shows of a secret is where it came from, and its last four characters."""
    shown = {}
    async with furnished(tmp_path) as house:
        (tmp_path / "routes.toml").write_text(house.toml)
        monkeypatch.setenv("TRUNKLINE_CONFIG", str(tmp_path / "routes.toml"))
        for name, value in house.env.items():
            monkeypatch.setenv(name, value)
        verbs = [["check"], ["routes"], ["explain", "anthropic", "--path", "/v1/messages"]]
        verbs += [["explain", place.model] for place in house.places]
        for verb in verbs:
            assert main(verb) == 0
            written = "".join(capfd.readouterr())
            assert leaked(written.encode()) == set(), (verb, written)
            shown[verb[-1]] = written
    explained = shown["plain"]
    assert f"Authorization: Bearer …{SLOTS['plain'][-4:]}  (from PLAIN)" in explained
    assert SLOTS["headers"][:4] not in explained
    assert SLOTS["short"][:4] not in explained
    assert f"…{SLOTS['var_file'][-4:]}" in shown["/v1/messages"]
    assert EGRESS_USER not in shown["egress"]
    assert "Authorization: Bearer …  (from the command sh)" in shown["command"]


def spoiled() -> dict[str, str]:
    """Return files in each of which a secret stands where something is wrong with it."""
    secret = SLOTS["plain"]
    return {
        "not TOML": f'[keys]\nteam = "{secret}',
        "not TOML either": f"[keys]\nteam = {secret}",
        "not text": f'[routes]\nm = {{ base_url = "http://x.example", credential = [["{secret}"]] }}',
        "a number among them": f'[routes]\nm = {{ base_url = "http://x.example", credential = ["{secret}", 5] }}',
        "one twice": f'[routes]\nm = {{ base_url = "http://x.example", credential = ["{secret}", "{secret}"] }}',
        "one twice out of variables": '[routes]\nm = { base_url = "http://x.example", credential = ["${PLAIN}", "${PLAIN}"] }',
        "one too many": f'[routes]\nm = {{ base_url = "http://x.example", credential = ["{secret}", "${{SPOILED}}"] }}',
        "a number": '[routes]\nm = { base_url = "http://x.example", credential = 5 }',
        "characters": '[routes]\nm = { base_url = "http://x.example", credential = "${SPOILED}" }',
        "header": '[routes]\nm = { base_url = "http://x.example", headers = { x = "${SPOILED}" } }',
        "key": '[keys]\nteam = "${SPOILED}"',
        "two keys": f'[keys]\na = "{secret}"\nb = "{secret}"',
        "hash": f'[keys]\na = {{ hash = "{secret}" }}',
        "expires": f'[keys]\na = {{ secret = "{secret}", expires = "{secret}" }}',
        "models": f'[keys]\na = {{ secret = "{secret}", models = "{secret}" }}',
        "word": f'[upstreams.openai]\napi_key = "{secret}"',
        "word in a route": f'[routes]\nm = {{ upstream = "openai", key = "{secret}" }}',
        "base_url": f'[routes]\nm = {{ base_url = "http://u:{secret}@x.example" }}',
        "base_url query": f'[routes]\nm = {{ base_url = "http://x.example/?key={secret}" }}',
        "proxy": f'[routes]\nm = {{ base_url = "http://x.example", proxy = "ftp://u:{secret}@x" }}',
        "proxy port": f'[routes]\nm = {{ base_url = "http://x.example", proxy = "http://u:{secret}" }}',
        "route": f'[routes]\nm = "${{SPOILED}}"\nn = {{ base_url = "{secret}" }}',
        "auth": f'[server]\nauth = "{secret}"',
        "listen": '[server]\nlisten = "${SPOILED}"',
        "level": '[log]\nlevel = "${SPOILED}"',
        "timeout": '[defaults]\ntimeout = { idle = "${SPOILED}" }',
        "command": f'[routes]\nm = {{ base_url = "http://x.example", credential = {{ command = "{secret}" }} }}',
        "command and secret": f'[routes]\nm = {{ base_url = "http://x.example", credential = {{ command = ["{secret}"], secret = "{secret}" }} }}',
        "refresh": f'[routes]\nm = {{ base_url = "http://x.example", credential = {{ command = ["{secret}"], refresh = "{secret}" }} }}',
        "word of a command": '[routes]\nm = { base_url = "http://x.example", credential = { command = ["${SPOILED}", 5] } }',
        "vars": '[routes]\nm = "azure/m"\n[upstreams.azure]\nvars = { resource = "${SPOILED}" }',
        "preset": '[routes]\nm = "up/m"\n[upstreams.up]\npreset = "${SPOILED}"',
        "paths": '[routes]\nm = { base_url = "http://x.example", paths = { messages = "${SPOILED}" } }',
        "unrouted": '[routes]\nm = { base_url = "http://x.example" }\n[unrouted]\nfiles = "${SPOILED}"',
        "speaks": '[routes]\nm = { base_url = "http://x.example", speaks = ["${SPOILED}"] }',
        "defaults": '[routes]\nm = { base_url = "http://x.example", defaults = { chat = { x = "${SPOILED}" } } }',
        "fallback": '[routes]\nm = { base_url = "http://x.example", fallback = "${SPOILED}" }',
        "fallback to a model": '[routes]\nm = { base_url = "http://x.example", fallback = ["opnai/${SPOILED}"] }',
        "targets": '[routes]\nm = { targets = ["${SPOILED}", { to = "${SPOILED}", weight = 2 }] }',
        "weight": '[routes]\nm = { targets = [{ to = "openai/x", weight = "${SPOILED}" }] }',
        "policy": '[routes]\nm = { targets = ["openai/x", "groq/x"], policy = "${SPOILED}" }',
        "sticky": '[routes]\nm = { targets = ["openai/x", "groq/x"], policy = "weighted", sticky = "${SPOILED}" }',
        "attempts": '[defaults]\nretry = { attempts = "${SPOILED}" }',
        "deadline": '[upstreams.openai]\nretry = { deadline = "${SPOILED}" }',
        "keepalive": '[defaults]\nkeepalive = "${SPOILED}"',
        "lame_duck": '[server]\nlame_duck = "${SPOILED}"',
        "ca": '[routes]\nm = { base_url = "http://x.example", ca = "${SPOILED}" }',
    }


@pytest.mark.parametrize("toml", spoiled().values(), ids=list(spoiled()))
def test_problems(tmp_path: Path, toml: str) -> None:
    """What is wrong with a file is told without quoting what may be a secret."""
    file = tmp_path / "routes.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(file, {"SPOILED": SLOTS["headers"] + "\u00e9\u2603\n", "PLAIN": SLOTS["plain"]})
    assert leaked(str(caught.value).encode()) == set()
    assert leaked(repr(caught.value).encode()) == set()


def test_a_part_of_a_url_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What `vars` puts into a URL is shown with it: it says where requests go."""
    file = tmp_path / "routes.toml"
    file.write_text('[routes]\nm = "azure/m"\n[upstreams.azure]\nvars = { resource = "acme-eu" }')
    monkeypatch.setenv("AZURE_API_KEY", SLOTS["plain"])
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", SLOTS["plain"])
    assert main(["explain", "m", "-c", str(file)]) == 0
    written = "".join(capfd.readouterr())
    assert "acme-eu" in written
    assert leaked(written.encode()) == set()


def test_nothing_has_a_printable_form(tmp_path: Path) -> None:
    """Of all that is read from a file nothing shows a secret when it is printed."""
    file = tmp_path / "routes.toml"
    file.write_text(
        """
        [upstreams.up]
        base_url = "http://x.example"
        credential = "${PLAIN}"
        headers = { x = "${HEADERS}" }
        proxy = "http://u:${PROXY}@x.example"
        [routes]
        m = "up/m"
        n = "openai/m"
        [keys]
        team = "${CLIENT}"
        """
    )
    env = {
        "PLAIN": SLOTS["plain"],
        "HEADERS": SLOTS["headers"],
        "PROXY": SLOTS["proxy"],
        "CLIENT": SLOTS["client"],
        "OPENAI_API_KEY": SLOTS["preset"],
    }
    snapshot = load(file, env)
    assert leaked(repr(snapshot).encode(), but=frozenset({"headers", "proxy"})) == set()
    for upstream in snapshot.upstreams.values():
        (credential,) = upstream.credentials
        assert leaked(repr(credential).encode()) == set()
        assert leaked(f"{credential}".encode()) == set()
