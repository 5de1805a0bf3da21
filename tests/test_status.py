"""How the proxy says that it is well, and what it is doing: `/status`, ping, time, and the health checks."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from proxy import __version__
from proxy.config import Snapshot, load
from proxy.endpoints import status
from proxy.endpoints.status import Status
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.keys import Key
from proxy.patterns import Pattern
from proxy.routes import RouteTable
from proxy.sight import Sight
from proxy.upstream.balance import Scores
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    event,
    hang,
    head,
    raw,
    reset,
    stream,
)

KEY = "sk-team-CANARY-key"
NARROW = "sk-narrow-CANARY-key"
CREDENTIAL = "sk-upstream-CANARY-credential"
HELLO = event(b'{"choices":[{"index":0,"delta":{"content":"CANARY"}}]}')


def routes(upstream: Upstream, more: str = "") -> str:
    """Write a routes file with one upstream that works, and one that waits for its variable."""
    return f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = "{CREDENTIAL}"
headers = {{ "x-CANARY" = "CANARY-header" }}
[routes]
"m" = {{ upstream = "up", model = "CANARY-model" }}
"p/*" = {{ upstream = "up" }}
"gpt" = "openai/gpt-4o"
{more}
"""


KEYS = f"""
[keys]
team = "{KEY}"
narrow = {{ secret = "{NARROW}", models = ["p/*"] }}
"""


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    async with serving(routes(upstream)) as running:
        yield running


async def get(proxy: Proxy, path: str = "/status", **kwargs: Any) -> Answer:
    return await call(proxy.port, b"", path, method=kwargs.pop("method", "GET"), **kwargs)


async def told(proxy: Proxy, **kwargs: Any) -> dict[str, Any]:
    """Return what the status is."""
    got = await get(proxy, **kwargs)
    assert got.status == 200, got.raw
    found: dict[str, Any] = got.json()
    return found


async def channel(proxy: Proxy, name: str = "up", **kwargs: Any) -> dict[str, Any]:
    """Return what the status is of the upstream *name*."""
    channels = (await told(proxy, **kwargs))["channels"]
    return {one["name"]: dict(one) for one in channels}[name]


# What it says


async def test_idle(proxy: Proxy, upstream: Upstream) -> None:
    """A proxy that does nothing says so: its version, its age, its file, what it is connected to."""
    first = await told(proxy)
    assert first["status"] == "ok"
    assert first["version"] == __version__
    assert first["active_sessions"] == 0
    assert first["sessions"] == []
    assert first["connected_channels"] == 1
    assert first["channels"] == [
        {
            "name": "up",
            "state": "ready",
            "in_flight": 0,
            "connections": {},
            "error_rate": 0.0,
            "first_byte_ms": None,
            "failures": {},
            "last_error": None,
            "credentials": [{"source": "upstreams.up.credential", "state": "ready"}],
        },
        {
            "name": "openai",
            "state": "dormant",
            "in_flight": 0,
            "connections": {},
            "error_rate": 0.0,
            "first_byte_ms": None,
            "failures": {},
            "last_error": None,
            "credentials": [],
        },
    ]
    second = await told(proxy)
    assert 0 <= first["uptime_seconds"] <= second["uptime_seconds"] < 30
    assert upstream.connections == []


async def test_snapshot(upstream: Upstream) -> None:
    """The file that holds is known by its hash, when it was read, and how many routes it has."""
    async with process(routes(upstream)) as proxy:
        found = (await told(proxy))["snapshot"]
        content = (proxy.log.parent / "routes.toml").read_bytes()
    assert found["routes"] == 3
    assert found["digest"] == sha256(content).hexdigest()[:12]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["loaded"])
    age = datetime.now(UTC) - datetime.fromisoformat(found["loaded"])
    assert 0 <= age.total_seconds() < 60


async def test_answer(proxy: Proxy) -> None:
    """The answer is ours like every other, to GET and to HEAD, and one line of the log."""
    got = await get(proxy)
    assert got.value(b"content-type") == b"application/json"
    assert got.value(b"x-trunkline-id") == got.value(b"x-request-id")
    assert (await proxy.record())["path"] == "/status"
    bare = await get(proxy, method="HEAD")
    assert (bare.status, bare.body) == (200, b"")
    wrong = await get(proxy, method="POST")
    assert (wrong.status, wrong.value(b"allow")) == (405, b"GET, HEAD")


async def test_error_rate(proxy: Proxy, upstream: Upstream) -> None:
    """Of the answers of the last ten seconds, how many were 5xx, and how soon the good ones began."""
    upstream.will(answer(), answer(500), answer(404), answer(529), answer())
    for _ in range(4):
        await call(proxy.port, chat())
    found = await channel(proxy)
    assert found["error_rate"] == 0.4  # of five: the 529 is asked once more
    assert 0 < found["first_byte_ms"] < 1000
    assert (found["state"], found["in_flight"]) == ("ready", 0)


async def test_in_flight(proxy: Proxy, upstream: Upstream) -> None:
    """What is under way at an upstream is counted there, and no longer when it is over."""
    upstream.will(hang())
    async with await Client.connect(proxy.port) as one, await Client.connect(proxy.port) as two:
        for client in (one, two):
            await client.send(request(chat()))
        await until(proxy, lambda found: found["channels"][0]["in_flight"] == 2)
    await until(proxy, lambda found: found["channels"][0]["in_flight"] == 0)


async def test_connections(proxy: Proxy, upstream: Upstream) -> None:
    """What connections do at an upstream is counted by how far their answers have come."""
    upstream.will(answer(), hang())
    await call(proxy.port, chat())
    assert (await channel(proxy))["connections"] == {"idle": 1}
    async with await Client.connect(proxy.port) as one:
        await one.send(request(chat()))
        await until(proxy, lambda found: found["channels"][0]["connections"] == {"head": 1})
    await until(proxy, lambda found: found["channels"][0]["connections"] == {})


async def until(proxy: Proxy, holds: Any, **kwargs: Any) -> dict[str, Any]:
    """Wait until the status is such as *holds* says; return it."""
    async with asyncio.timeout(5):
        while not holds(found := await told(proxy, **kwargs)):
            await asyncio.sleep(0.02)
    return found


# Channels: each state, as the clock of a test has it


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def snapshot_of(tmp_path: Path, toml: str, env: dict[str, str] | None = None) -> Snapshot:
    file = tmp_path / "routes.toml"
    file.write_text(toml)
    return load(file, env or {})


TWO = """
[upstreams.up]
base_url = "http://127.0.0.1:1/v1"
credential = ["one", "two"]
[routes]
"m" = "up/x"
"gpt" = "openai/gpt-4o"
"""


def test_states(tmp_path: Path) -> None:
    """An upstream is dormant without its variable; ready while any of its credentials is; else open, if
    a breaker of it is, or resting.
    """
    snapshot, scores, clock = snapshot_of(tmp_path, TWO), Scores(), Clock()
    told = Status(snapshot, scores, set(), 900.0, clock)

    def state(name: str = "up") -> str:
        (found,) = [one for one in told.told()["channels"] if one["name"] == name]
        return str(found["state"])

    first, second = scores.of(snapshot.upstreams["up"])
    assert (state(), state("openai")) == ("ready", "dormant")
    first.rest(clock.now, 10)
    assert state() == "ready"
    second.rest(clock.now, 20)
    assert state() == "resting"
    clock.now += 11
    assert state() == "ready"
    for _ in range(5):
        first.fault(clock.now)
    assert state() == "open"  # the other one rests
    clock.now += 10
    assert state() == "ready"
    for _ in range(5):
        second.fault(clock.now)
    assert state() == "open"
    clock.now += 301
    assert state() == "ready"
    assert told.told()["connected_channels"] == 1
    assert told.told()["uptime_seconds"] == 422.0


def test_configured(tmp_path: Path) -> None:
    """With its variable set an upstream is a channel that is connected."""
    snapshot = snapshot_of(tmp_path, TWO, {"OPENAI_API_KEY": "sk-x"})
    found = Status(snapshot, Scores(), set(), 0.0).told()
    assert found["connected_channels"] == 2
    assert [one["state"] for one in found["channels"]] == ["ready", "ready"]


def test_forgotten(tmp_path: Path) -> None:
    """What happened more than ten seconds ago is in no error rate."""
    snapshot, scores, clock = snapshot_of(tmp_path, TWO), Scores(), Clock()
    told = Status(snapshot, scores, set(), 900.0, clock)
    health = scores.of(snapshot.upstreams["up"])[0]
    health.begin(clock.now)
    health.answered(clock.now, 500, 0.2, 0)
    health.end(0)
    assert told.told()["channels"][0]["error_rate"] == 1.0
    clock.now += 11
    assert told.told()["channels"][0]["error_rate"] == 0.0


async def test_resting(upstream: Upstream) -> None:
    """An upstream that has limited us rests, and the status says so."""
    async with Upstream() as other:
        upstream.will(answer(429, headers=[(b"Retry-After", b"30")]))
        other.will(answer())
        more = f"""
"two" = {{ targets = ["up/x", "other/x"] }}
[upstreams.other]
base_url = "{other.url}"
"""
        async with serving(routes(upstream, more)) as proxy:
            assert (await call(proxy.port, chat("two"))).status == 200
            found = await channel(proxy)
            assert (found["state"], found["failures"]) == ("resting", {"upstream_error": 1})
            assert found["last_error"]["code"] == "429"
            found = await channel(proxy, "other")
            assert (found["state"], found["failures"]) == ("ready", {})


async def test_resting_alone(upstream: Upstream) -> None:
    """A single credential that should rest is said to, though it is asked all the same; until it does well."""
    async with serving(routes(upstream)) as proxy:
        for step, code in (
            (answer(429, headers=[(b"Retry-After", b"30")]), "429"),
            (answer(401), "upstream_auth"),
        ):
            upstream.will(step, answer())
            await call(proxy.port, chat())
            found = await channel(proxy)
            assert found["state"] == "resting"
            assert [one["state"] for one in found["credentials"]] == ["resting"]
            assert found["last_error"]["code"] == code
            assert (await call(proxy.port, chat())).status == 200
            assert (await channel(proxy))["state"] == "ready"
        assert (await channel(proxy))["failures"] == {"upstream_error": 2}


CUT = stream(HELLO, end="cut")


@pytest.mark.parametrize(
    ("step", "outcome", "code"),
    [
        (answer(500), "upstream_error", "500"),
        (answer(402), "upstream_error", "402"),
        (answer(403), "upstream_error", "403"),
        (answer(401), "upstream_error", "upstream_auth"),
        (answer(302), "upstream_error", "upstream_protocol"),
        (raw(b"canary\r\n\r\n"), "upstream_error", "upstream_protocol"),
        (reset(), "upstream_error", "upstream_disconnected"),
        (hang(), "timeout", "upstream_timeout"),
        (CUT, "upstream_cut", "upstream_disconnected"),
        (stream(HELLO), "upstream_cut", "upstream_incomplete"),
        (stream(HELLO, end="hang"), "timeout", "upstream_idle_timeout"),
        (stream(event(b'{"error":{"message":"x"}}')), "upstream_error", "upstream_error_event"),
    ],
    ids=itertools.count(),
)
async def test_failures(upstream: Upstream, step: Step, outcome: str, code: str) -> None:
    """Every kind of failure counts, by the outcome that the log has; where nothing else came in the last
    minute, the upstream is failing.
    """
    more = (
        '[defaults]\ntimeout = { first_byte = "200ms", idle = "200ms" }\nretry = { attempts = 1 }\n'
    )
    async with serving(more + routes(upstream)) as proxy:
        upstream.will(step)
        began = datetime.now(UTC)
        await call(proxy.port, chat(stream=True))
        record = await proxy.record()
        found = await channel(proxy)
        assert record["outcome"] == outcome
        assert found["failures"] == {outcome: 1}
        assert found["last_error"]["code"] == code
        at = datetime.fromisoformat(found["last_error"]["at"])
        assert began - timedelta(seconds=0.01) <= at <= datetime.now(UTC)
        assert found["state"] == ("resting" if code in ("402", "upstream_auth") else "failing")
        upstream.will(stream(HELLO, DONE))
        await call(proxy.port, chat(stream=True))
        found = await channel(proxy)
        assert (found["state"], found["failures"]) == ("ready", {outcome: 1})


async def test_unreachable(tmp_path: Path) -> None:
    """So does one that cannot be reached, with each attempt."""
    toml = '[upstreams.up]\nbase_url = "http://127.0.0.1:1/v1"\n[routes]\n"m" = "up/x"\n'
    async with serving(toml) as proxy:
        await call(proxy.port, chat())
        tries = len((await proxy.record())["attempts"])
        found = await channel(proxy)
        assert found["failures"] == {"upstream_error": tries}
        assert (found["state"], found["last_error"]["code"]) == ("failing", "upstream_connect")


@pytest.mark.parametrize("step", [answer(400), answer(404), answer(200)])
async def test_no_failure(upstream: Upstream, step: Step) -> None:
    """What is the caller's own doing is no failure of the upstream, nor is a caller that leaves."""
    async with serving(routes(upstream)) as proxy:
        upstream.will(step)
        await call(proxy.port, chat())
        upstream.will(stream(HELLO, end="hang"))
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            async with asyncio.timeout(5):
                await client.reader.readuntil(HELLO)
        await proxy.record(2)
        found = await channel(proxy)
        assert (found["state"], found["failures"], found["last_error"]) == ("ready", {}, None)


async def test_hook_that_fails(upstream: Upstream) -> None:
    """What fails for a hook counts like all else."""
    upstream.will(CUT)
    async with serving(routes(upstream, '[hooks.h]\nroute = "m"')) as proxy:
        await call(proxy.port, b'{"text":"x"}', "/hooks/h")
        assert (await channel(proxy))["failures"] == {"upstream_cut": 1}


async def test_without_a_value(upstream: Upstream) -> None:
    """A credential that never had a value is not ready, and an upstream that has no other is not."""
    toml = f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = {{ command = ["false"] }}
[upstreams.two]
base_url = "{upstream.url}"
credential = ["sk-CANARY", {{ command = ["false"] }}]
[routes]
"m" = "up/x"
"n" = "two/x"
"""
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat())).code == "not_configured"
        found = await channel(proxy)
        told_of = [{"source": "the command false", "state": "unknown"}]
        assert (found["state"], found["credentials"]) == ("unknown", told_of)
        found = await channel(proxy, "two")
        assert found["state"] == "ready"
        assert [one["state"] for one in found["credentials"]] == ["ready", "unknown"]


def test_a_minute(tmp_path: Path) -> None:
    """A failure counts for a minute, and a success for as long; the last error is told for ever."""
    snapshot, scores, clock = snapshot_of(tmp_path, TWO), Scores(), Clock()
    wall = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
    told = Status(snapshot, scores, set(), 900.0, clock, lambda: wall)
    first, second = scores.of(snapshot.upstreams["up"])

    def found() -> tuple[str, dict[str, int], Any]:
        channel = told.told()["channels"][0]
        return channel["state"], channel["failures"], channel["last_error"]

    first.good = clock.now
    clock.now += 30
    first.failures.count(clock.now, "timeout", "upstream_timeout")
    error = {"code": "upstream_timeout", "at": "2026-11-22T09:30:00.000Z"}
    assert found() == ("ready", {"timeout": 1}, error)
    clock.now += 1
    second.failures.count(clock.now, "timeout", "upstream_timeout")
    second.failures.count(clock.now, "upstream_cut", "upstream_disconnected")
    clock.now += 30
    assert found()[:2] == ("failing", {"timeout": 2, "upstream_cut": 1})
    assert found()[2] == {"code": "upstream_disconnected", "at": "2026-11-22T09:29:30.000Z"}
    second.good = clock.now
    assert found()[0] == "ready"
    clock.now += 31
    assert found()[:2] == ("ready", {})
    assert found()[2] == {"code": "upstream_disconnected", "at": "2026-11-22T09:28:59.000Z"}


async def test_open(upstream: Upstream) -> None:
    """An upstream that refuses connection after connection is open, and the status says so."""
    gone = upstream.url
    toml = f'[upstreams.up]\nbase_url = "{gone}"\n[routes]\n"m" = "up/x"\n"n" = "up/y"\n'
    upstream._server.close()
    async with serving(toml) as proxy:
        for _ in range(3):
            assert (await call(proxy.port, chat())).status == 502
        assert (await channel(proxy))["state"] == "open"


# Sessions


async def test_phases(proxy: Proxy, upstream: Upstream) -> None:
    """Each exchange in flight is told with its route, its upstream, its age, its bytes, and how far it is."""
    begin = asyncio.Event()

    async def step(conn: Conn, received: Received) -> None:
        await begin.wait()
        await conn.send(head(200, [SSE, CHUNKED]) + chunk(HELLO))
        await conn.left(30)

    upstream.will(step)
    whole = request(chat("m"))
    async with await Client.connect(proxy.port) as client:
        await client.send(whole[:-5])
        found = await until(proxy, lambda found: found["active_sessions"] == 1)
        (session,) = found["sessions"]
        assert re.fullmatch(r"req_[0-9a-f]+", session.pop("id"))
        assert session.pop("age_seconds") >= 0
        assert session == {
            "surface": "main",
            "key": None,
            "model": None,
            "route": None,
            "upstream": None,
            "phase": "reading",
            "bytes_in": 0,
            "bytes_out": 0,
        }
        await client.send(whole[-5:])
        found = await until(proxy, lambda found: found["sessions"][0]["phase"] == "sent")
        (session,) = found["sessions"]
        assert (session["route"], session["upstream"]) == ("m", "up")
        assert (session["bytes_in"], session["bytes_out"]) == (len(chat("m")), 0)
        begin.set()
        found = await until(proxy, lambda found: found["sessions"][0]["phase"] == "streaming")
        assert found["sessions"][0]["bytes_out"] == len(HELLO)
        later = await told(proxy)
        assert later["sessions"][0]["age_seconds"] > session["age_seconds"]
    await until(proxy, lambda found: found["active_sessions"] == 0)


async def test_hook_is_a_session(upstream: Upstream) -> None:
    """A hook that is being answered is a session like any other."""
    upstream.will(stream(HELLO, end="hang"))
    async with (
        serving(routes(upstream, '[hooks.h]\nroute = "m"')) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(b'{"text":"CANARY","stream":true}', "/hooks/h"))
        found = await until(proxy, lambda found: any(one["bytes_out"] for one in found["sessions"]))
        (session,) = found["sessions"]
        assert (session["route"], session["phase"]) == ("m", "streaming")


# Nothing secret


async def test_nothing_secret(upstream: Upstream) -> None:
    """No address, key, credential, header, path or word of anybody's stands in it."""
    upstream.will(stream(HELLO, end="hang"))
    async with serving(routes(upstream, KEYS)) as proxy:
        bearer = [(b"Authorization", f"Bearer {KEY}".encode()), (b"x-CANARY", b"CANARY")]
        async with await Client.connect(proxy.port) as client:
            body = chat("p/x", "CANARY", user="CANARY")
            await client.send(request(body, "/v1/chat/completions?CANARY=1", bearer))
            async with asyncio.timeout(5):
                await client.reader.readuntil(HELLO)
            got = await get(proxy, headers=bearer)
            assert got.json()["active_sessions"] == 1
            for secret in (
                b"CANARY",
                upstream.authority.encode(),
                b"http",
                b"127.0.0.1",
                b"Bearer",
            ):
                assert secret not in got.body, got.body


@pytest.mark.parametrize("path", ["/status", "/status/events"])
async def test_hidden_names(upstream: Upstream, path: str) -> None:
    """The names of routes that a caller may not call are not shown to it."""
    upstream.will(hang())
    every, narrow = ([(b"x-api-key", key.encode())] for key in (KEY, NARROW))
    async with (
        serving(routes(upstream, KEYS)) as proxy,
        await Client.connect(proxy.port) as one,
        await Client.connect(proxy.port) as two,
        await Client.connect(proxy.port) as asking,
    ):
        await one.send(request(chat("m"), headers=every))
        await two.send(request(chat("p/x"), headers=every))
        await until(
            proxy,
            lambda found: {one["route"] for one in found["sessions"]} == {"m", "p/*"},
            headers=every,
        )
        await asking.send(request(path=path, method="GET", headers=narrow))
        async with asyncio.timeout(5):
            got = await asking.reader.readuntil(b'"bytes_out":0}]}')
        shown = orjson.loads(got[got.index(b"{") :])
        seen = {(one["key"], one["model"], one["route"]) for one in shown["sessions"]}
        assert seen == {(None, None, None), (None, "p/x", "p/*")}
        every_one = (await told(proxy, headers=every))["sessions"]
        seen = {(one["key"], one["model"], one["route"]) for one in every_one}
        assert seen >= {("team", "m", "m"), ("team", "p/x", "p/*")}


OTHERS = """
[upstreams.spare]
base_url = "http://127.0.0.1:1/v1"
[upstreams.other]
base_url = "http://127.0.0.1:1/v1"
[routes]
"m" = "up/x"
"p/*" = { upstream = "up" }
"gpt" = "openai/x"
"q/*" = { upstream = "other" }
"q/one" = "up/x"
"p/two" = { upstream = "up", fallback = "spare/x" }
"*" = { upstream = "other" }
[keys]
one = { secret = "sk-one-0123456789", models = ["q/one"] }
two = { secret = "sk-two-0123456789", models = ["p/*"] }
rest = { secret = "sk-rest-0123456789", models = ["z*"] }
none = { secret = "sk-none-0123456789", models = ["gpt"] }
all = "sk-all-0123456789"
"""


@pytest.mark.parametrize(
    ("key", "patterns", "seen"),
    [
        ("all", None, {"up", "openai", "spare", "other"}),
        ("one", None, {"up"}),
        ("two", None, {"up", "spare"}),
        ("rest", None, {"other"}),
        ("none", None, {"openai"}),
        ("all", ["q/*"], {"other", "up"}),
        ("all", ["gpt", "p/t*"], {"openai", "up", "spare"}),
        ("two", ["p/x", "gpt"], {"up"}),
        ("two", ["gpt"], set()),
        ("all", [], set()),
    ],
)
async def test_hidden_channels(
    upstream: Upstream, key: str, patterns: list[str] | None, seen: set[str]
) -> None:
    """Who may ask for some models only sees the upstreams that those lead to, be it by the key or by the
    surface; and of sessions neither the others' keys nor where else they are.
    """
    surface = "" if patterns is None else f"[server]\nroutes = {patterns}\n"
    toml = f'{surface}[upstreams.up]\nbase_url = "{upstream.url}"\n{OTHERS}'
    headers = [(b"x-api-key", f"sk-{key}-0123456789".encode())]
    async with serving(toml) as proxy:
        found = await told(proxy, headers=headers)
    assert {one["name"] for one in found["channels"]} == seen
    assert found["connected_channels"] == len(seen - {"openai"})


async def test_own_session(upstream: Upstream) -> None:
    """A restricted key sees of its own sessions all that there is to see."""
    upstream.will(hang())
    narrow = [(b"x-api-key", NARROW.encode())]
    async with (
        serving(routes(upstream, KEYS)) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(chat("p/x"), headers=narrow))
        found = await until(proxy, lambda found: found["active_sessions"], headers=narrow)
        found = await until(proxy, lambda found: found["sessions"][0]["model"], headers=narrow)
        (session,) = found["sessions"]
        told_of = [session[name] for name in ("key", "model", "route", "upstream")]
        assert told_of == ["narrow", "p/x", "p/*", "up"]


# Who may ask


@pytest.mark.parametrize("path", ["/status", "/status/events"])
async def test_keys(upstream: Upstream, path: str) -> None:
    """Where the surface asks for keys, the status does."""
    async with serving(routes(upstream, KEYS)) as proxy:
        for headers in ([], [(b"x-api-key", b"wrong")]):
            got = await get(proxy, path, headers=headers)
            assert (got.status, got.code) == (401, "invalid_api_key")
        async with await Client.connect(proxy.port) as client:
            await client.send(
                request(path=path, method="GET", headers=[(b"x-api-key", KEY.encode())])
            )
            async with asyncio.timeout(5):
                assert (await client.reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        records = [await proxy.record(3)]
        assert records[0]["key"] == "team"


@pytest.mark.parametrize("path", ["/status", "/status/events"])
async def test_foreign_page(proxy: Proxy, path: str) -> None:
    """Where it asks for none, no web page reads it under a name of its own."""
    for kwargs in ({"host": b"evil.example"}, {"headers": [(b"Origin", b"http://evil.example")]}):
        got = await get(proxy, path, **kwargs)
        assert (got.status, got.code) == (403, "origin_not_allowed")


# As it goes on


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "EVERY_SECONDS", 0.05)


async def one_event(client: Client) -> dict[str, Any]:
    """Read the next event of a stream of ours, which comes as one chunk."""
    async with asyncio.timeout(5):
        size = int(await client.reader.readline(), 16)
        block = await client.reader.readexactly(size + 2)
    assert block.endswith(b"\n\n\r\n")
    assert b"\r" not in block[:-2]
    match = re.fullmatch(rb"data: (\{.*\})\n\n", block[:-2])
    assert match is not None, block
    found: dict[str, Any] = orjson.loads(match[1])
    return found


async def test_events(proxy: Proxy, upstream: Upstream, quick: None) -> None:
    """The status comes again and again, as events with LF only and no `id`, and each is how it is then."""
    upstream.will(hang())
    async with await Client.connect(proxy.port) as client:
        await client.send(request(path="/status/events", method="GET"))
        async with asyncio.timeout(5):
            head_part = await client.reader.readuntil(b"\r\n\r\n")
        names = [line.split(b":")[0].lower() for line in head_part.splitlines()[1:-1]]
        assert b"Content-Type: text/event-stream\r\n" in head_part
        assert b"Cache-Control: no-cache\r\n" in head_part
        assert b"X-Accel-Buffering: no\r\n" in head_part
        assert b"server" not in names
        assert b"date" not in names
        first = await one_event(client)
        assert first.keys() == (await told(proxy)).keys()
        assert first["active_sessions"] == 0
        async with await Client.connect(proxy.port) as busy:
            await busy.send(request(chat()))
            async with asyncio.timeout(5):
                while (await one_event(client))["active_sessions"] != 1:
                    pass
        async with asyncio.timeout(5):
            while (await one_event(client))["active_sessions"] != 0:
                pass


async def test_events_each_second(proxy: Proxy) -> None:
    """It comes once a second."""
    async with await Client.connect(proxy.port) as client:
        await client.send(request(path="/status/events", method="GET"))
        await client.reader.readuntil(b"\r\n\r\n")
        moments = [(await one_event(client))["uptime_seconds"] for _ in range(3)]
    assert 1.9 < moments[2] - moments[0] < 3


async def test_events_end_with_the_client(upstream: Upstream) -> None:
    """Who leaves is not told any more: one line in the log, nothing on stderr, nothing in flight."""
    async with process(routes(upstream)) as proxy:
        for count in (1, 2):
            async with await Client.connect(proxy.port) as client:
                await client.send(request(path="/status/events", method="GET"))
                await client.reader.readuntil(b"\r\n\r\n")
                await one_event(client)
            record = await proxy.record(count)
            assert (record["outcome"], record["status"]) == ("client_gone", 200)
            assert record["stream"] is True
        assert (await told(proxy))["active_sessions"] == 0


async def test_events_end_on_shutdown(upstream: Upstream) -> None:
    """A shutdown does not wait for who watches: the stream ends, and so does the process, in order."""
    async with process(routes(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(path="/status/events", method="GET"))
            await client.reader.readuntil(b"\r\n\r\n")
            await one_event(client)
            assert proxy.process is not None
            proxy.process.terminate()
            rest = await client.closed(5)
        async with asyncio.timeout(5):
            assert await proxy.process.wait() == 0
        assert b"proxy_shutdown" in rest
        assert b"0\r\n\r\n" not in rest  # it was cut, and says so
        assert (await proxy.record())["outcome"] == "shutdown"


async def test_events_of_a_slow_client(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read is not written to without end."""
    monkeypatch.setattr(status, "EVERY_SECONDS", 0.0)
    async with await Client.connect(proxy.port) as client:
        cast(asyncio.Transport, client.writer.transport).pause_reading()
        await client.send(request(path="/status/events", method="GET"))
        assert proxy.running is not None
        async with asyncio.timeout(20):
            while not (clients := proxy.running._clients()):
                await asyncio.sleep(0.01)
            while clients[0].get_write_buffer_size() == 0:
                await asyncio.sleep(0.01)
            before = -1
            while (size := clients[0].get_write_buffer_size()) != before:
                before = size
                await asyncio.sleep(0.1)
        assert size < 2**20


# Always open


OPEN = ["/health", "/livez", "/readyz", "/v1/ping", "/v1/time"]
SURFACES = {
    "keys": f'[keys]\nteam = "{KEY}"',
    "passthrough": '[server]\nauth = "passthrough"',
    "none": '[server]\nauth = "none"',
    "narrow": f'[server]\nendpoints = ["chat/completions"]\nmodels = "hidden"\n[keys]\nt = "{KEY}"',
    "base": f'[server]\nbase_paths = ["/api/v1"]\n[keys]\nt = "{KEY}"',
}


@pytest.mark.parametrize("surface", SURFACES)
async def test_always_open(upstream: Upstream, surface: str) -> None:
    """Whatever the auth of a surface, whoever's page it is: who asks whether we are there is answered."""
    paths = [*OPEN, "/api/v1/ping", "/api/v1/time"] if surface == "base" else OPEN
    async with serving(SURFACES[surface] + routes(upstream), listen="127.0.0.1:0") as proxy:
        for path in paths:
            headers: list[Pair] = [(b"Origin", b"http://evil.example"), (b"x-api-key", b"wrong")]
            got = await get(proxy, path, headers=headers, host=b"evil.example")
            assert got.status == 200, (path, got.raw)
            assert got.value(b"content-type") == b"application/json"
            assert got.value(b"x-trunkline-id") is not None
            bare = await get(proxy, path, method="HEAD")
            assert (bare.status, bare.body) == (200, b"")
            wrong = await get(proxy, path, method="POST")
            assert (wrong.status, wrong.value(b"allow")) == (405, b"GET, HEAD")
        assert upstream.connections == []


async def test_ping(proxy: Proxy) -> None:
    """A ping, like a health check, says ok and nothing else."""
    for path in ("/health", "/livez", "/readyz", "/v1/ping"):
        assert (await get(proxy, path)).body == b'{"status":"ok"}'


async def test_time(proxy: Proxy) -> None:
    """The time is UTC, as ISO 8601 writes it, and in seconds and milliseconds since 1970: one moment."""
    before = datetime.now(UTC).timestamp()
    found = (await get(proxy, "/v1/time")).json()
    after = datetime.now(UTC).timestamp()
    assert set(found) == {"time", "epoch", "epoch_ms"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    moment = datetime.fromisoformat(found["time"])
    assert round(moment.timestamp() * 1000) == found["epoch_ms"]
    assert found["epoch"] == found["epoch_ms"] // 1000
    assert before - 0.001 <= moment.timestamp() <= after


async def test_quiet(upstream: Upstream) -> None:
    """Health checks stand in the log only where it is at debug level."""
    async with serving(routes(upstream)) as proxy:
        for path in OPEN:
            await get(proxy, path)
        await get(proxy)
        assert (await proxy.record(1))["path"] == "/status"
    async with serving(routes(upstream, '[log]\nlevel = "debug"')) as proxy:
        for path in OPEN:
            await get(proxy, path)
        await proxy.record(len(OPEN))
        assert [record["path"] for record in proxy.records()] == OPEN


async def test_ready(upstream: Upstream) -> None:
    """Who is about to leave is alive, but not ready."""
    async with process('[server]\nlame_duck = "2s"\n' + routes(upstream)) as proxy:
        assert (await get(proxy, "/readyz")).status == 200
        assert proxy.process is not None
        proxy.process.terminate()
        async with asyncio.timeout(5):
            while (got := await get(proxy, "/readyz")).status == 200:
                await asyncio.sleep(0.01)
        assert (got.status, got.json()) == (503, {"status": "leaving"})
        assert (await get(proxy, "/livez")).status == 200
        upstream.will(stream(HELLO, DONE))
        assert (await call(proxy.port, chat())).status == 200
        assert await proxy.process.wait() == 0


def test_session_without_attempt(tmp_path: Path) -> None:
    """An exchange that has not been read yet is told as such."""
    exchange = Exchange(
        "req_1", "main", "POST", "/CANARY", "CANARY", Headers(), False, "1.2.3.4", 990.0
    )
    found = Status(snapshot_of(tmp_path, TWO), Scores(), {exchange}, 900.0, Clock()).told()
    assert found["sessions"] == [
        {
            "id": "req_1",
            "surface": "main",
            "key": None,
            "model": None,
            "route": None,
            "upstream": None,
            "phase": "reading",
            "age_seconds": 10.0,
            "bytes_in": 0,
            "bytes_out": 0,
        }
    ]


# Of several workers


def facts(worker: int, state: str, answers: list[int], first: float | None) -> dict[str, Any]:
    """Write what one worker tells, with one session."""
    up = {"name": "up", "state": state, "in_flight": worker + 1, "error_rate": answers}
    up |= {"connections": {"idle": 1, "body": worker}}
    up |= {"failures": {"timeout": worker, "upstream_cut": 1}, "last_error": None}
    if worker:
        up |= {"last_error": {"code": f"c{worker}", "at": f"2026-11-22T09:30:0{worker}.000Z"}}
    up |= {"credentials": [{"source": "K", "state": state}, {"source": "L", "state": "ready"}]}
    session = {"id": f"req_{worker}", "route": f"r{worker}", "upstream": "up"}
    session |= {"key": f"k{worker}", "model": f"r{worker}"}
    return {
        "status": "ok",
        "uptime_seconds": 1.0,
        "active_sessions": 1,
        "log_lines_dropped": 5,
        "channels": [up | {"first_byte_ms": first}],
        "sessions": [session],
    }


def test_merged() -> None:
    """Counts add up, of states the worst is told and of times the best; each session says where it is."""
    told = [facts(0, "ready", [6, 0], 20.0), facts(1, "open", [1, 3], None)]
    workers: list[dict[str, Any]] = [
        {"worker": n, "pid": 10 + n, "facts": f} for n, f in enumerate(told)
    ]
    workers.append({"worker": 2, "pid": 12, "facts": None})
    key = Key("k1", b"", (Pattern("r1", False),))
    view = Sight(None, key, RouteTable(()))
    found = status.shown(status.merged(told[1], workers, 12.34567, 7), Sight())
    assert status.shown(found | {"channels": []}, view)["sessions"] == [
        dict.fromkeys(("route", "upstream", "key", "model")) | {"id": "req_0", "worker": 0},
        {"id": "req_1", "route": "r1", "upstream": None, "key": "k1", "model": "r1", "worker": 1},
    ]
    assert found == {
        "status": "ok",
        "uptime_seconds": 12.346,
        "active_sessions": 2,
        "connected_channels": 1,
        "log_lines_dropped": 7 + 2 * 5,
        "channels": [
            {
                "name": "up",
                "state": "open",
                "in_flight": 3,
                "connections": {"idle": 2, "body": 1},
                "error_rate": 0.3,
                "first_byte_ms": 20.0,
                "failures": {"timeout": 1, "upstream_cut": 2},
                "last_error": {"code": "c1", "at": "2026-11-22T09:30:01.000Z"},
                "credentials": [
                    {"source": "K", "state": "open"},
                    {"source": "L", "state": "ready"},
                ],
            }
        ],
        "sessions": [
            {"id": f"req_{n}", "route": f"r{n}", "upstream": "up", "key": f"k{n}"}
            | {"model": f"r{n}", "worker": n}
            for n in range(2)
        ],
        "workers": [{"worker": 0, "pid": 10}, {"worker": 1, "pid": 11}, {"worker": 2, "pid": 12}],
    }
