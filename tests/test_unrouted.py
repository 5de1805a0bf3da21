"""Requests that carry no model: which upstream gets them, and that both bodies pass as they come."""

import asyncio
import gzip
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256
from itertools import product
from pathlib import Path

import pytest

from proxy.client import edge
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    close,
    head,
    stream,
)
from tests.test_errors import INVALID, assert_authored

TEAM: Pair = (b"Authorization", b"Bearer sk-team-0123456789")
NARROW: Pair = (b"x-api-key", b"sk-narrow-0123456789")
MEBI = 2**20
BLOCK = os.urandom(MEBI)


def routes(
    upstream: Upstream, server: str = "", up: str = "", *, unrouted: str = '"*" = "up"'
) -> str:
    """Return a routes file whose upstreams all are *upstream*, each below a path of its own."""
    return f"""
        [server]
        {server}
        [upstreams.up]
        base_url = "http://{upstream.authority}/up"
        credential = "sk-upstream-secret"
        {up}
        [upstreams.other]
        base_url = "http://{upstream.authority}/other"
        [upstreams.mute]
        base_url = "http://{upstream.authority}/mute"
        speaks = ["chat"]
        [routes]
        "m" = "up/m"
        "o" = "other/o"
        "mute" = "mute/m"
        "dormant" = "openai/gpt-4o"
        [unrouted]
        {unrouted}
        """


KEYS = """
    [keys]
    team = "sk-team-0123456789"
    narrow = { secret = "sk-narrow-0123456789", models = ["m"] }
    """
TABLE = """
    "files" = "up"
    "files/special" = "other"
    "responses" = "up"
    "chat/completions" = "other"
    "messages" = "up"
    "*" = "other"
    """


@pytest.fixture
async def kept(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy without keys that sends everything without a model to one upstream."""
    async with serving(routes(upstream, 'max_body = "64KiB"')) as running:
        yield running


async def get(proxy: Proxy, path: str, *headers: Pair, method: str = "GET") -> Answer:
    return await call(proxy.port, b"", path, headers, method)


# Which upstream


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "files",
        "files?purpose=batch&limit=2&after=file%2Fx+y%20z&&=",
        "files/file-1/content",
        "files/a%2Fb%3F%C3%A9/c:d;e=f,g",
        "fine_tuning/jobs/ft_1/events?x=http://evil.example/?y",
        "some/thing/new/",
    ],
)
async def test_method_and_target(kept: Proxy, upstream: Upstream, method: str, path: str) -> None:
    """The method, the path below the base path and the query go up as they were written."""
    body = b"" if method in ("GET", "DELETE") else b"\x00\xff{"
    got = await call(kept.port, body, f"/v1/{path}", [(b"X-Own", b"1")], method)
    assert (got.status, got.body) == (200, b'{"ok":true}')
    (seen,) = upstream.requests
    assert seen.line == f"{method} /up/{path} HTTP/1.1".encode()
    assert seen.body == body
    assert seen.values(b"x-own") == [b"1"]
    assert seen.values(b"authorization") == [b"Bearer sk-upstream-secret"]
    record = await kept.record()
    assert (record["upstream"], record["status"], record["outcome"]) == ("up", 200, "ok")
    assert (record["route"], record["model"], record["upstream_model"]) == (None, None, None)
    assert (record["method"], record["path"]) == (method, "/v1/" + path.partition("?")[0])
    assert (record["bytes_in"], record["bytes_out"]) == (len(body), 11)
    assert record["attempts"][0]["phase"] == "streaming"
    assert record["attempts"][0]["maybe_billed"] is False


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", "/v1/files", "/up/files"),
        ("GET", "/api/v1/files/x", "/up/files/x"),
        ("GET", "/files/x", "/up/files/x"),
        ("GET", "/v1/files/special", "/other/files/special"),
        ("GET", "/v1/files/special/x", "/other/files/special/x"),
        ("GET", "/v1/files/specials", "/up/files/specials"),
        ("GET", "/v1/filesystem", "/other/filesystem"),
        ("GET", "/v1/Files", "/other/Files"),
        ("GET", "/v1/batches", "/other/batches"),
        ("GET", "/api/v1/batches?a", "/other/batches?a"),
        ("GET", "//v1//files///x", "/up/files/x"),
        ("GET", "/v1/v1/files", "/up/files"),
        ("GET", "/v1/responses/resp_1", "/up/responses/resp_1"),
        ("GET", "/v1/responses", "/up/responses"),
        ("POST", "/v1/responses/resp_1/cancel", "/up/responses/resp_1/cancel"),
        ("DELETE", "/v1/chat/completions/c_1", "/other/chat/completions/c_1"),
        ("GET", "/v1/chat/completions?model=m", "/other/chat/completions?model=m"),
        ("GET", "/v1/messages/batches/b_1/results", "/up/messages/batches/b_1/results"),
        ("DELETE", "/v1/models/ft:gpt-4o:x", "/other/models/ft:gpt-4o:x"),
        ("GET", "/v1/files/*", "/up/files/*"),
        ("GET", "/v1/*", "/other/*"),
    ],
)
async def test_prefix(upstream: Upstream, method: str, path: str, target: str) -> None:
    """The longest prefix counts, cut at a slash; `*` stands for the rest below a base path."""
    async with serving(routes(upstream, unrouted=TABLE)) as proxy:
        assert (await call(proxy.port, b"", path, method=method)).status == 200
    assert upstream.requests[0].line == f"{method} {target} HTTP/1.1".encode()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/.env",
        "/wp-login.php",
        "/v1beta/files",
        "/admin/v1/files",
        "/v2/files",
        "/batches",
        "/upload/v1/files",
        "//",
    ],
)
async def test_not_for_strangers(kept: Proxy, upstream: Upstream, method: str, path: str) -> None:
    """What stands below no base path, or names nothing below it, is not sent on by `*`."""
    got = await call(kept.port, b"", path, method=method)
    assert (got.status, (await kept.record())["error"]) == (404, "not_found")
    assert upstream.connections == []


@pytest.mark.parametrize("path", ["responses", "chat/completions", "messages"])
async def test_a_model_goes_by_model(upstream: Upstream, path: str) -> None:
    """What is posted to an endpoint that takes a model goes where its model leads."""
    async with serving(routes(upstream, unrouted=TABLE)) as proxy:
        for model, target in (("m", f"/up/{path}"), ("o", f"/other/{path}")):
            assert (await call(proxy.port, chat(model), f"/v1/{path}")).status == 200
            assert upstream.requests[-1].target == target
        got = await call(proxy.port, chat("none"), f"/v1/{path}")
        assert got.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", b"POST"),
        ("DELETE", "/v1/responses", b"POST"),
        ("PUT", "/v1beta/models/m:generateContent", b"POST"),
        ("DELETE", "/v1/models/m", b"GET, HEAD"),
        ("POST", "/v1/models", b"GET, HEAD"),
        ("OPTIONS", "/v1/files", b"GET, POST, PUT, PATCH, DELETE"),
        ("TRACE", "/v1/files/x", b"GET, POST, PUT, PATCH, DELETE"),
    ],
)
async def test_method_not_allowed(
    upstream: Upstream, method: str, path: str, allowed: bytes
) -> None:
    """A method that neither the endpoint takes nor `[unrouted]` has a place for is named as such."""
    async with serving(routes(upstream, unrouted='"files" = "up"')) as proxy:
        got = await call(proxy.port, b"", path, method=method)
    assert (got.status, got.values(b"allow")) == (405, [allowed])
    assert upstream.connections == []


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches/x", "/files", "/v1/responses/r"])
async def test_nothing_is_unrouted(upstream: Upstream, path: str) -> None:
    """Without `[unrouted]`, there is nothing at such a path."""
    async with serving(routes(upstream, unrouted="")) as proxy:
        assert_authored(await get(proxy, path), 404, INVALID, "not_found")


# Who may


async def test_keys(upstream: Upstream) -> None:
    """A key without a list of models opens these paths, wherever it stands, and goes no further."""
    async with serving(routes(upstream) + KEYS) as proxy:
        for header in (TEAM, (b"x-api-key", b"sk-team-0123456789")):
            got = await get(proxy, "/v1/files?key=sk-team-0123456789&a=%41", header)
            assert got.status == 200
            assert b"sk-team" not in upstream.requests[-1].head
            assert upstream.requests[-1].target == "/up/files?a=%41"
        for headers in ([], [(b"x-api-key", b"sk-wrong")]):
            got = await get(proxy, "/v1/files", *headers)
            assert (got.status, got.code) == (401, "invalid_api_key")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_keys_for_some_models(upstream: Upstream, method: str) -> None:
    """A key for some models opens none of these paths: nobody can tell which model they mean."""
    async with serving(routes(upstream) + KEYS) as proxy:
        got = await get(proxy, "/v1/files", NARROW, method=method)
        assert_authored(got, 403, "permission_error", "model_not_allowed")
        assert "narrow" in got.json()["error"]["message"]
        record = await proxy.record()
        assert (record["key"], record["outcome"]) == ("narrow", "refused")
    assert upstream.connections == []


async def test_surface_with_routes(upstream: Upstream) -> None:
    """On a surface that shows some routes only, there is nothing at these paths."""
    async with serving(routes(upstream, 'routes = ["m"]')) as proxy:
        assert_authored(await get(proxy, "/v1/files"), 404, INVALID, "not_found")
        assert (await call(proxy.port, chat())).status == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/files", 200),
        ("/v1/files/x", 200),
        ("/v1/chat/completions/c_1", 200),
        ("/v1/filesystem", 404),
        ("/v1/batches", 404),
        ("/v1/responses/r", 404),
    ],
)
async def test_surface_with_endpoints(upstream: Upstream, path: str, status: int) -> None:
    """A surface that has some endpoints only, has no others for these requests either."""
    server = 'endpoints = ["chat/completions", "files"]'
    unrouted = '"files" = "up"\n"*" = "up"'
    async with serving(routes(upstream, server, unrouted=unrouted)) as proxy:
        assert (await get(proxy, path)).status == status


async def test_passthrough(upstream: Upstream) -> None:
    """Callers' own credentials go up, and to those upstreams only that may have them."""
    toml = routes(
        upstream, 'auth = "passthrough"', "passthrough = true", unrouted='"files"="up"\n"*"="other"'
    )
    async with serving(toml) as proxy:
        own: Pair = (b"Authorization", b"Bearer sk-the-callers-own")
        assert (await get(proxy, "/v1/files?key=own", own)).status == 200
        (seen,) = upstream.requests
        assert seen.values(b"authorization") == [own[1]]
        assert seen.target == "/up/files?key=own"
        got = await get(proxy, "/v1/batches", own)
        assert_authored(got, 403, "permission_error", "model_not_allowed")
        upstream.will(answer(401, b"no"))
        assert (await get(proxy, "/v1/files", own)).body == b"no"
    assert len(upstream.requests) == 2


async def test_dormant(upstream: Upstream) -> None:
    """What leads to a vendor without its variable says which one that is."""
    async with serving(routes(upstream, unrouted='"files" = "openai"')) as proxy:
        got = await call(proxy.port, b"x" * 1000, "/v1/files")
        assert_authored(got, 503, "upstream_error", "not_configured")
        assert "OPENAI_API_KEY" in got.json()["error"]["message"]


async def test_our_credential_is_refused(kept: Proxy, upstream: Upstream) -> None:
    """A 401 and a redirect are not the caller's business, here as elsewhere."""
    upstream.will(
        answer(401, b"wrong key sk-upstream-secret"), answer(302, b"", [(b"Location", b"/")])
    )
    got = await get(kept, "/v1/files")
    assert (got.status, got.code) == (502, "upstream_auth")
    assert b"sk-upstream" not in got.raw
    got = await get(kept, "/v1/files")
    assert (got.status, got.code) == (502, "upstream_protocol")


@pytest.mark.parametrize(
    ("path", "anthropic"),
    [
        ("/v1/messages/batches", True),
        ("/v1/messages/batches/b_1/results", True),
        ("/v1/files", False),
        ("/v1/responses/r", False),
        ("/v1/threads/t_1/messages", False),
    ],
)
@pytest.mark.parametrize("what", ["key", "models", "cut"])
async def test_error_shapes(upstream: Upstream, path: str, anthropic: bool, what: str) -> None:
    """An error is told in the dialect that the path belongs to."""
    upstream.will(close())
    async with serving(routes(upstream) + KEYS) as proxy:
        headers: dict[str, list[Pair]] = {"key": [], "models": [NARROW], "cut": [TEAM]}
        got = await get(proxy, path, *headers[what])
    assert got.status == {"key": 401, "models": 403, "cut": 502}[what]
    assert (got.json().get("type") == "error") is anthropic


# Vendors' own lists of models


async def test_vendors_list(upstream: Upstream) -> None:
    """`?upstream=NAME` relays that vendor's own list as it came, its other parameters kept."""
    upstream.will(answer(200, b'{"object" : "list"}', [JSON, (b"X-Theirs", b"1")]))
    async with serving(routes(upstream) + KEYS) as proxy:
        for path, target in (
            ("/v1/models?upstream=up", "/up/models"),
            ("/v1/models?limit=%32&upstream=up&after_id=a+b", "/up/models?limit=%32&after_id=a+b"),
            ("/models?upstream=other&&a", "/other/models?&a"),
            ("/v1/models/org%2Fm?upstream=up", "/up/models/org%2Fm"),
            ("/v1/models?upstream=u%70", "/up/models"),
        ):
            got = await get(proxy, path, TEAM)
            assert (got.status, got.body) == (200, b'{"object" : "list"}')
            assert got.values(b"x-theirs") == [b"1"]
            assert upstream.requests[-1].line == f"GET {target} HTTP/1.1".encode()
            assert b"sk-team" not in upstream.requests[-1].head
        record = await proxy.record(5)
        assert (record["upstream"], record["key"], record["outcome"]) == ("up", "team", "ok")


@pytest.mark.parametrize(
    ("name", "header", "status", "kind", "code"),
    [
        ("up", NARROW, 403, "permission_error", "model_not_allowed"),
        ("none", NARROW, 403, "permission_error", "model_not_allowed"),
        ("none", TEAM, 404, INVALID, "not_found"),
        ("", TEAM, 404, INVALID, "not_found"),
        ("groq", TEAM, 404, INVALID, "not_found"),
        ("openai", TEAM, 503, "upstream_error", "not_configured"),
        ("mute", TEAM, 404, INVALID, "endpoint_not_supported"),
    ],
)
async def test_no_vendors_list(
    upstream: Upstream, name: str, header: Pair, status: int, kind: str, code: str
) -> None:
    """It is refused to keys for some models, and where there is no such upstream, or no such list."""
    async with serving(routes(upstream) + KEYS) as proxy:
        got = await get(proxy, f"/v1/models?upstream={name}", header)
        assert_authored(got, status, kind, code)
        got = await get(proxy, f"/v1/models?upstream={name}")
        assert got.status == 401
    assert upstream.connections == []


async def test_no_vendors_list_where_models_are_hidden(upstream: Upstream) -> None:
    """Where models are hidden, no vendor's are shown either, whatever `*` says."""
    async with serving(routes(upstream, 'models = "hidden"')) as proxy:
        for path in ("/v1/models", "/v1/models/m", "/v1/models?upstream=up", "/v1beta/models"):
            got = await get(proxy, path)
            assert got.status == 404
    assert upstream.connections == []


# Bodies on their way up


class Reading(Upstream):
    """An upstream whose script reads the request's body itself, or does not."""

    @staticmethod
    async def _read(conn: Conn) -> Received | None:
        try:
            return Received(await conn.reader.readuntil(b"\r\n\r\n"), b"", conn.index)
        except (asyncio.IncompleteReadError, OSError):
            return None


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    scripted = Reading()
    async with scripted:
        yield scripted


async def pieces(conn: Conn, request: Received) -> AsyncIterator[bytes]:
    """Yield the body of *request* as it comes; raise `IncompleteReadError` if it breaks off."""
    length = request.value(b"content-length")
    if request.value(b"transfer-encoding") is None:
        left = int(length or 0)
        while left:
            piece = await conn.reader.read(min(left, 65536))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece
        return
    assert length is None
    while True:
        size = int((await conn.reader.readuntil(b"\r\n"))[:-2], 16)
        piece = (await conn.reader.readexactly(size + 2))[:-2]
        if not size:
            return
        yield piece


async def whole(conn: Conn, request: Received) -> bytes:
    return b"".join([piece async for piece in pieces(conn, request)])


async def swallow(conn: Conn, request: Received) -> None:
    """Read the body into *request*, and answer with its digest."""
    request.body = await whole(conn, request)
    digest = sha256(request.body).hexdigest().encode()
    await conn.send(head(200, [(b"Content-Length", b"64")]) + digest)


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    + bytes(range(256)) * 1000
    + b"\r\n--x--\r\n"
)
BODIES = {
    "form": (FORM, (b"Content-Type", b"multipart/form-data; boundary=x")),
    "compressed": (gzip.compress(FORM, mtime=0), (b"Content-Encoding", b"gzip")),
    "not JSON": (b"{" * 100_000, JSON),
    "one byte": (b"\0", JSON),
}


@pytest.mark.parametrize("cut", [None, 1, 5000])
@pytest.mark.parametrize("name", BODIES)
async def test_body(reading: Reading, name: str, cut: int | None) -> None:
    """A body goes up byte for byte, however large, whatever it is, in the framing that it has."""
    body, kind = BODIES[name]
    reading.will(swallow)
    async with serving(routes(reading, 'max_body = "1KiB"')) as proxy:
        if cut is None:
            sent = request(body, "/v1/files", [kind])
        else:
            sent = request(b"", "/v1/files", [kind, CHUNKED], length=False)
            step = max(cut, len(body) // 500)
            sent += b"".join(chunk(body[at : at + step]) for at in range(0, len(body), step))
            sent += b"0\r\nX-Trailer: 1\r\n\r\n"
        async with await Client.connect(proxy.port) as client:
            await client.send(sent)
            got = await client.answer()
        assert got.body == sha256(body).hexdigest().encode()
        (seen,) = reading.requests
        assert seen.body == body
        assert seen.values(kind[0]) == [kind[1]]
        framing = seen.values(b"content-length"), seen.values(b"transfer-encoding")
        assert framing == (([b"%d" % len(body)], []) if cut is None else ([], [b"chunked"]))
        assert b"X-Trailer" not in seen.head
        record = await proxy.record()
        assert (record["bytes_in"], record["bytes_out"]) == (len(body), 64)
        assert (record["outcome"], record["error"]) == ("ok", None)
        assert proxy.running is not None
        assert (proxy.running.gate.inflight, proxy.running.gate.held) == (0, 0)


@pytest.mark.parametrize(
    ("method", "headers", "framing"),
    [
        ("GET", [], []),
        ("DELETE", [], []),
        ("GET", [(b"Content-Length", b"0")], [b"0"]),
        ("PATCH", [(b"content-length", b"0")], [b"0"]),
        ("PUT", [(b"Connection", b"content-length"), (b"Content-Length", b"0")], [b"0"]),
    ],
)
async def test_no_body(
    kept: Proxy, upstream: Upstream, method: str, headers: list[Pair], framing: list[bytes]
) -> None:
    """A request without a body says no more of its length than it said."""
    for _ in range(2):
        assert (await call(kept.port, b"", "/v1/files", headers, method)).status == 200
    for seen in upstream.requests:
        assert seen.values(b"content-length") == framing
        assert seen.values(b"transfer-encoding") == []
    assert len(upstream.connections) == 1


async def test_a_body_that_comes_slowly(reading: Reading) -> None:
    """Every piece is passed on when it arrives."""
    seen = asyncio.Queue[bytes]()

    async def step(conn: Conn, request: Received) -> None:
        async for piece in pieces(conn, request):
            seen.put_nowait(piece)
        await answer()(conn, request)

    reading.will(step)
    async with (
        serving(routes(reading)) as proxy,
        asyncio.timeout(10),
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(b"", "/v1/files", [CHUNKED], length=False))
        for piece in (b"one", b"2" * 1000, b"three"):
            await client.send(chunk(piece))
            got = b""
            while len(got) < len(piece):
                got += await seen.get()
            assert got == piece
        await client.send(b"0\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_expect(reading: Reading) -> None:
    """A client that waits for a word before its body gets one, and the upstream hears nothing of it."""
    reading.will(swallow)
    async with serving(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        expect: Pair = (b"Expect", b"100-continue")
        length: Pair = (b"Content-Length", b"200000")
        await client.send(request(b"", "/v1/files", [expect, length], length=False))
        async with asyncio.timeout(5):
            word = await client.reader.readuntil(b"\r\n\r\n")
        assert word == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"x" * 200_000)
        got = await client.answer()
        assert got.body == sha256(b"x" * 200_000).hexdigest().encode()
        assert reading.requests[0].values(b"expect") == []
        await client.send(request(b"x", "/v1/files"))
        assert (await client.answer()).status == 200


async def test_expect_for_nothing() -> None:
    """Nobody is asked for a body that cannot go anywhere."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        toml = f"""
            [routes]
            "m" = {{ base_url = "http://127.0.0.1:{port}" }}
            [upstreams.up]
            base_url = "http://127.0.0.1:{port}"
            [unrouted]
            "*" = "up"
            """
        async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
            headers: list[Pair] = [(b"Expect", b"100-continue"), (b"Content-Length", b"9")]
            await client.send(request(b"", "/v1/files", headers, length=False))
            got = await client.answer()
            assert got.raw.startswith(b"HTTP/1.1 502 ")
            assert got.values(b"connection") == [b"close"]
            assert (await proxy.record())["attempts"][0]["phase"] == "unsent"


async def test_the_next_request(reading: Reading) -> None:
    """After an upload with a length the connection takes another request; after chunks it closes."""
    reading.will(swallow)
    async with serving(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        for size in (0, 1, 300_000, 3_000_000):
            body = b"x" * size
            await client.send(request(body, "/v1/files"))
            got = await client.answer()
            assert got.body == sha256(body).hexdigest().encode()
            await client.send(request(chat()))
            got = await client.answer()
            assert got.body == sha256(chat()).hexdigest().encode()
        two = request(b"a", "/v1/files") + request(b"b", "/v1/files")
        await client.send(two)
        for body in (b"a", b"b"):
            assert (await client.answer()).body == sha256(body).hexdigest().encode()
        await client.send(request(b"", "/v1/files", [CHUNKED], length=False) + b"0\r\n\r\n")
        got = await client.answer()
        assert (got.body, got.values(b"connection")) == (
            sha256(b"").hexdigest().encode(),
            [b"close"],
        )
        assert await client.closed() == b""


async def test_echo(reading: Reading) -> None:
    """An upstream may answer while it reads: both bodies pass at one time."""
    total = 8

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [CHUNKED]))
        async for piece in pieces(conn, request):
            await conn.send(chunk(piece))
        await conn.send(b"0\r\n\r\n")

    reading.will(step)
    async with serving(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        length: Pair = (b"Content-Length", b"%d" % (total * MEBI))

        async def send() -> None:
            await client.send(request(b"", "/v1/files", [length], length=False))
            for _ in range(total):
                await client.send(BLOCK)

        sending = asyncio.create_task(send())
        got = await client.answer()
        await sending
        assert got.whole
        assert got.body == BLOCK * total
        record = await proxy.record()
        assert (record["bytes_in"], record["bytes_out"]) == (total * MEBI, total * MEBI)
        assert (record["outcome"], record["error"]) == ("ok", None)


# Where an upload breaks

BEGUN = request(b"", "/v1/files", [(b"Content-Length", b"100000")], length=False) + b"x" * 50_000
BEGUN_CHUNKED = request(b"", "/v1/files", [CHUNKED], length=False) + chunk(b"x" * 50_000)


class Witness:
    """A script that reads bodies, and knows how much of one has come, and whether it broke off."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        self.broke = asyncio.Event()

    async def __call__(self, conn: Conn, request: Received) -> None:
        try:
            async for piece in pieces(conn, request):
                request.body += piece
                if len(request.body) >= 50_000:
                    self.some.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broke.set()
            raise
        await answer()(conn, request)


@pytest.fixture
def witness(reading: Reading) -> Witness:
    script = Witness()
    reading.will(script)
    return script


async def _within(event: asyncio.Event, seconds: float = 1.0) -> None:
    async with asyncio.timeout(seconds):
        await event.wait()


@pytest.mark.parametrize("begun", [BEGUN, BEGUN_CHUNKED], ids=["length", "chunks"])
async def test_client_leaves(reading: Reading, witness: Witness, begun: bytes) -> None:
    """A client that leaves in the middle ends the upstream's connection, unfinished, at once."""
    async with process(routes(reading)) as proxy:
        for count, leave in enumerate(("abort", "close", "reset"), 1):
            witness.some.clear()
            witness.broke.clear()
            async with await Client.connect(proxy.port) as client:
                await client.send(begun)
                await _within(witness.some, 5)
                if leave == "reset":
                    Conn(0, client.reader, client.writer).reset()
                elif leave == "close":
                    client.writer.close()
            await _within(witness.broke)
            record = await proxy.record(count)
            assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
            assert (record["status"], record["bytes_in"]) == (499, 50_000)
            (attempt,) = record["attempts"]
            assert (attempt["phase"], attempt["error"]) == ("unsent", "client_gone")
            assert attempt["maybe_billed"] is False
        assert len(reading.connections) == count


async def test_client_is_reset_while_it_is_held_back(reading: Reading) -> None:
    """Also one that is not read from just now, because the upstream takes nothing."""

    async def step(conn: Conn, request: Received) -> None:
        await asyncio.sleep(30)

    reading.will(step)
    async with process(routes(reading)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await _fill(client)
            Conn(0, client.reader, client.writer).reset()
        record = await proxy.record(1, 2)
        assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")


@pytest.mark.parametrize("begun", [BEGUN, BEGUN_CHUNKED], ids=["length", "chunks"])
async def test_client_stalls(
    reading: Reading, witness: Witness, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends no more of its body is told so after a while, and the upstream let go."""
    monkeypatch.setattr(edge, "BODY_IDLE_SECONDS", 0.3)
    async with serving(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        loop = asyncio.get_running_loop()
        await client.send(begun)
        await _within(witness.some)
        started = loop.time()
        got = await client.answer()
        assert 0.1 < loop.time() - started < 2
        no_retry = {b"x-should-retry": b"false"}
        assert_authored(got, 408, INVALID, "request_timeout", headers=no_retry, closes=True)
        await _within(witness.broke)
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == ("client_error", "request_timeout")
        (attempt,) = record["attempts"]
        assert (attempt["phase"], attempt["error"]) == ("unsent", "request_timeout")
        assert proxy.running is not None
        assert proxy.running.gate.inflight == 0


async def test_client_is_not_late_where_the_upstream_is(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is held back because the upstream takes its time is not the one who stalls."""
    monkeypatch.setattr(edge, "BODY_IDLE_SECONDS", 0.2)

    async def step(conn: Conn, request: Received) -> None:
        await asyncio.sleep(0.8)
        await swallow(conn, request)

    reading.will(step)
    async with serving(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        sending = asyncio.create_task(client.send(request(BLOCK * 24, "/v1/files")))
        got = await client.answer()
        await sending
        assert got.body == sha256(BLOCK * 24).hexdigest().encode()


async def test_malformed_chunk(reading: Reading, witness: Witness) -> None:
    """A body that turns out not to be HTTP breaks off on both sides, and never looks finished."""
    chunks = (
        b"zz\r\nx\r\n",
        b"5\r\nhello!!\r\n",
        b"-1\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"5\nhello\n",
    )
    async with process(routes(reading)) as proxy:
        for count, bad in enumerate(chunks, 1):
            witness.some.clear()
            witness.broke.clear()
            async with await Client.connect(proxy.port) as client:
                await client.send(BEGUN_CHUNKED)
                await _within(witness.some, 5)
                await client.send(bad)
                got = await client.answer()
                assert_authored(got, 400, INVALID, "bad_request", closes=True)
                assert await client.closed() == b""
            await _within(witness.broke)
            record = await proxy.record(count)
            assert (record["outcome"], record["error"]) == ("client_error", "bad_request")
            assert record["attempts"][0]["phase"] == "unsent"


def _dying(how: str) -> Step:
    """Die when half of the body is there."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.reader.readexactly(20_000)
        if how == "reset":
            conn.reset()
        conn.keep = False

    return step


async def test_upstream_dies(reading: Reading) -> None:
    """An upstream that dies in the middle is reported as such, and not sent anything again."""
    count = 0
    async with process(routes(reading)) as proxy:
        for how, begun in product(("close", "reset"), (BEGUN, BEGUN_CHUNKED)):
            count += 1
            reading.will(_dying(how))
            async with await Client.connect(proxy.port) as client:
                await client.send(begun)
                got = await client.answer()
                assert (got.status, got.code) == (502, "upstream_disconnected")
                assert got.values(b"x-should-retry") == []
            record = await proxy.record(count)
            (attempt,) = record["attempts"]
            assert (attempt["phase"], attempt["error"]) == ("unsent", "upstream_disconnected")
            assert attempt["maybe_billed"] is False
            assert record["outcome"] == "upstream_error"
            assert len(reading.connections) == count


async def test_upstream_dies_with_the_whole_of_it(reading: Reading) -> None:
    """One that has taken all of it and dies may have done the work: it is not asked again."""

    async def step(conn: Conn, request: Received) -> None:
        await whole(conn, request)
        conn.keep = False

    reading.will(answer(), step)
    async with serving(routes(reading)) as proxy:
        assert (await get(proxy, "/v1/files")).status == 200  # whose connection is kept
        got = await call(proxy.port, b"x" * 100_000, "/v1/files")
        assert (got.status, got.code) == (502, "upstream_disconnected")
        assert got.values(b"x-should-retry") == [b"false"]
        record = await proxy.record(2)
        (attempt,) = record["attempts"]
        assert (attempt["phase"], attempt["maybe_billed"]) == ("sent", True)
    assert len(reading.requests) == 2


async def _fill(client: Client) -> None:
    """Begin an upload without end, and return when it goes no further."""
    await client.send(request(b"", "/v1/files", [(b"Content-Length", b"%d" % 2**32)], length=False))
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.5):
                await client.send(BLOCK)


async def test_upstream_takes_nothing(reading: Reading) -> None:
    """An upstream that takes not a byte for too long is given up."""
    gone = asyncio.Event()

    async def step(conn: Conn, request: Received) -> None:
        await asyncio.sleep(1.5)
        with suppress(ConnectionError):
            while await conn.reader.read(MEBI):
                pass
        gone.set()
        conn.keep = False

    reading.will(step)
    toml = routes(reading, up='timeout = { write = "300ms" }')
    async with process(toml) as proxy, await Client.connect(proxy.port) as client:
        filling = asyncio.create_task(_fill(client))
        got = await client.answer()
        filling.cancel()
        assert (got.status, got.code) == (504, "upstream_timeout")
        await _within(gone, 5)
        record = await proxy.record()
        assert (record["outcome"], record["attempts"][0]["phase"]) == ("timeout", "unsent")
        assert record["attempts"][0]["maybe_billed"] is False


async def test_first_byte_counts_from_the_end_of_the_upload(reading: Reading) -> None:
    """The wait for an answer begins when the body is up, however long that took."""

    async def step(conn: Conn, request: Received) -> None:
        await whole(conn, request)
        await conn.left(30)
        conn.keep = False

    reading.will(step)
    toml = routes(reading, up='timeout = { first_byte = "300ms" }')
    async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
        await client.send(BEGUN_CHUNKED)
        await asyncio.sleep(0.6)
        started = asyncio.get_running_loop().time()
        await client.send(b"0\r\n\r\n")
        got = await client.answer()
        assert (got.status, got.code) == (504, "upstream_timeout")
        assert asyncio.get_running_loop().time() - started > 0.2
        (attempt,) = (await proxy.record())["attempts"]
        assert (attempt["phase"], attempt["maybe_billed"]) == ("sent", True)


# Early answers


def _early(status: int, how: str) -> Step:
    """Answer when half of the body is there."""
    body = b'{"early":true}'
    start = head(status, [JSON, (b"Content-Length", b"%d" % len(body))])

    async def step(conn: Conn, request: Received) -> None:
        await conn.reader.readexactly(20_000)
        if how == "in two":
            await conn.send(start + body[:5])
            await asyncio.sleep(0.1)
            await conn.send(body[5:])
        else:
            await conn.send(start + body)
        if how == "close":
            conn.keep = False
        elif how == "FIN":
            with suppress(OSError):  # the proxy may have left already
                conn.writer.write_eof()
                await conn.left(30)
        else:
            await conn.left(30)

    return step


@pytest.mark.parametrize("begun", [BEGUN, BEGUN_CHUNKED], ids=["length", "chunks"])
async def test_early_answer(reading: Reading, begun: bytes) -> None:
    """An answer that comes before the body is up is the answer; its connections end with it."""
    count = 0
    async with process(routes(reading)) as proxy:
        for status, how in product((200, 413), ("keep", "in two", "FIN", "close")):
            count += 1
            reading.will(_early(status, how))
            async with await Client.connect(proxy.port) as client:
                await client.send(begun)
                got = await client.answer()
                assert (got.status, got.body, got.whole) == (status, b'{"early":true}', True)
                assert got.values(b"connection") == [b"close"]
                await _within(reading.connections[-1].gone)
                client.writer.write_eof()
                assert await client.closed() == b""
            record = await proxy.record(count)
            assert (record["status"], record["error"]) == (status, None)
            assert record["outcome"] == ("ok" if status == 200 else "client_error")
            assert len(record["attempts"]) == 1


@pytest.mark.parametrize("how", ["keep", "FIN", "close"])
async def test_early_answer_to_a_flood(reading: Reading, how: str) -> None:
    """It also reaches a client that goes on sending all the while."""
    reading.will(_early(413, how))
    async with process(routes(reading), python=("-W", "error")) as proxy:
        for count in range(1, 21 if how == "close" else 4):  # a race, lost now and then
            async with await Client.connect(proxy.port) as client:

                async def flood(client: Client = client) -> None:
                    with suppress(ConnectionError):
                        await client.send(request(BLOCK * 8, "/v1/files"))

                sending = asyncio.create_task(flood())
                got = await client.answer()
                assert (got.status, got.body) == (413, b'{"early":true}'), got.raw
                sending.cancel()
            record = await proxy.record(count)
            assert (record["status"], record["error"]) == (413, None)


async def test_early_refusal_of_our_credential(reading: Reading) -> None:
    """An early 401 is turned into an error of ours, as a late one is."""
    reading.will(_early(401, "keep"))
    async with process(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(BEGUN)
        got = await client.answer()
        assert (got.status, got.code) == (502, "upstream_auth")
        await _within(reading.connections[0].gone)


async def test_early_answer_and_then_the_rest(reading: Reading) -> None:
    """A client that is answered early and then sends the rest all the same is not cut off in it."""
    reading.will(_early(200, "keep"))
    async with process(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(BEGUN)
        assert (await client.answer()).status == 200
        await client.send(b"x" * 50_000)
        assert await client.closed() == b""


async def test_an_upload_breaks_under_its_answer(reading: Reading) -> None:
    """A client's malformed chunk ends also an answer that has begun, visibly unfinished."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [CHUNKED]) + chunk(b"begun"))
        await conn.left(30)
        conn.keep = False

    reading.will(step)
    async with process(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(BEGUN_CHUNKED)
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"begun\r\n")
        await client.send(b"zz\r\n")
        assert await client.closed() == b""
        await _within(reading.connections[0].gone)
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == ("client_error", "bad_request")


async def test_shutdown_ends_an_upload(reading: Reading, witness: Witness) -> None:
    """An upload that does not end in time is told that the proxy leaves, and not left looking whole."""
    async with serving(routes(reading)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(BEGUN)
        await _within(witness.some)
        assert proxy.running is not None
        await proxy.running.drain(0.1)
        got = await client.answer()
        assert (got.status, got.code) == (503, "proxy_shutdown")
        await _within(witness.broke)


# Answers


async def test_stream_of_a_response(kept: Proxy, upstream: Upstream) -> None:
    """A response that is fetched as a stream is one: not compressed, and checked for its end."""
    events = [b"event: response.created\ndata: {}\n\n", b"event: response.completed\ndata: {}\n\n"]
    path = "/v1/responses/resp_1?starting_after=2&stream=true"
    upstream.will(stream(*events), stream(events[0]))
    got = await get(kept, path, (b"Accept-Encoding", b"gzip"))
    assert (got.whole, got.body) == (True, b"".join(events))
    assert got.values(b"x-accel-buffering") == [b"no"]
    (seen,) = upstream.requests
    assert seen.target == "/up/responses/resp_1?starting_after=2&stream=true"
    assert seen.values(b"accept-encoding") == [b"identity"]
    record = await kept.record()
    assert (record["stream"], record["outcome"]) == (True, "ok")
    got = await get(kept, path)
    assert not got.whole
    assert got.body.startswith(events[0] + b"event: error\ndata: {")
    assert (await kept.record(2))["error"] == "upstream_incomplete"


@pytest.mark.parametrize("path", ["/v1/files/f/content", "/v1/messages/batches/b/results"])
async def test_other_streams(kept: Proxy, upstream: Upstream, path: str) -> None:
    """What is no stream of an answer is not checked for the end of one."""
    upstream.will(stream(b'{"a":1}\n', b'{"b":2}\n', headers=[(b"Content-Type", b"x/jsonl")]))
    got = await get(kept, path, (b"Accept-Encoding", b"gzip"))
    assert (got.whole, got.body) == (True, b'{"a":1}\n{"b":2}\n')
    assert upstream.requests[0].values(b"accept-encoding") == [b"gzip"]
    upstream.will(stream(b"data: 1\n\n", headers=[SSE]))
    got = await get(kept, "/v1/fine_tuning/jobs/j/events?stream=true")
    assert (got.whole, got.body) == (True, b"data: 1\n\n")


async def test_download_is_cut(kept: Proxy, upstream: Upstream) -> None:
    """A download that the upstream breaks off never looks whole."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [(b"Content-Length", b"100")]) + b"half")
        conn.keep = False

    upstream.will(step)
    got = await get(kept, "/v1/files/f/content")
    assert (got.status, got.body, got.whole) == (200, b"half", False)
    record = await kept.record()
    assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_disconnected")


async def test_old_connection(kept: Proxy, upstream: Upstream) -> None:
    """A request without a body goes once more where the old connection was dead; one with, on a new one."""
    upstream.will(answer(close=False))
    assert (await get(kept, "/v1/files")).status == 200
    upstream.connections[0].reset()
    await asyncio.sleep(0.05)
    assert (await get(kept, "/v1/files")).status == 200
    assert (await call(kept.port, b"x", "/v1/files")).status == 200
    assert len(upstream.connections) == 3


# Nothing is held


def _memory(proxy: Proxy, what: str) -> int:
    """Return what the kernel says about the proxy's memory: `VmRSS` now, `VmHWM` at most so far."""
    assert proxy.process is not None
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def _settled(count: Callable[[], int]) -> int:
    """Wait until *count* grows no further."""
    last = -1
    while count() != last:
        last = count()
        await asyncio.sleep(0.3)
    return last


def _digest(total: int) -> bytes:
    digest = sha256()
    for _ in range(total):
        digest.update(BLOCK)
    return digest.hexdigest().encode()


async def _upload(proxy: Proxy, total: int, sent: list[int], framing: str) -> Answer:
    """Send *total* blocks, and count in *sent* what has gone."""
    async with await Client.connect(proxy.port) as client:
        length: Pair = (b"Content-Length", b"%d" % (total * MEBI))
        given = length if framing == "length" else CHUNKED
        await client.send(request(b"", "/v1/files", [given], length=False))
        for _ in range(total):
            await client.send(BLOCK if framing == "length" else chunk(BLOCK))
            sent.append(MEBI)
        if framing == "chunks":
            await client.send(b"0\r\n\r\n")
        return await client.answer(seconds=60)


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_slow_upstream_stops_the_client(reading: Reading, framing: str) -> None:
    """While an upstream takes nothing, the client is stopped, and next to nothing is held."""
    go = asyncio.Event()

    async def step(conn: Conn, request: Received) -> None:
        sock = conn.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
        await go.wait()
        digest, count = sha256(), 0
        async for piece in pieces(conn, request):
            digest.update(piece)
            count += 1
            if count % 50 == 0:
                await asyncio.sleep(0.001)
        await conn.send(head(200, [(b"Content-Length", b"64")]) + digest.hexdigest().encode())

    reading.will(answer(), step)
    async with process(routes(reading), python=("-W", "error")) as proxy:
        assert (await get(proxy, "/v1/files")).status == 200
        before = _memory(proxy, "VmRSS")
        sent: list[int] = []
        uploading = asyncio.create_task(_upload(proxy, 96, sent, framing))
        stopped = await _settled(lambda: len(sent))
        assert 0 < stopped < 64
        assert _memory(proxy, "VmRSS") - before < 8 * MEBI
        go.set()
        assert (await uploading).body == _digest(96)
        assert _memory(proxy, "VmHWM") - before < 12 * MEBI
        assert (await proxy.record(2))["bytes_in"] == 96 * MEBI


async def _download(proxy: Proxy, go: asyncio.Event) -> tuple[bytes, int]:
    """Fetch a file, its body only after *go*; return its digest and length."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    with sock:
        await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
        await loop.sock_sendall(sock, request(path="/v1/files/f/content", method="GET"))
        await go.wait()
        data = await loop.sock_recv(sock, 65536)
        start, _, data = data.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", start)
        assert found is not None
        digest, left = sha256(), int(found[1])
        while True:
            digest.update(data)
            left -= len(data)
            if not left or not data:
                return digest.hexdigest().encode(), int(found[1]) - left
            data = await loop.sock_recv(sock, MEBI)


def _serving(total: int, sent: list[int]) -> Step:
    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [(b"Content-Length", b"%d" % (total * MEBI))]))
        for _ in range(total):
            await conn.send(BLOCK)
            sent.append(MEBI)

    return step


async def test_a_slow_client_stops_the_upstream(reading: Reading) -> None:
    """While a client takes nothing of a download, the upstream is stopped, and nothing is held."""
    sent: list[int] = []
    reading.will(answer(), _serving(96, sent))
    async with process(routes(reading), python=("-W", "error")) as proxy:
        assert (await get(proxy, "/v1/files")).status == 200
        before = _memory(proxy, "VmRSS")
        go = asyncio.Event()
        downloading = asyncio.create_task(_download(proxy, go))
        stopped = await _settled(lambda: len(sent))
        assert stopped < 64
        assert _memory(proxy, "VmRSS") - before < 8 * MEBI
        go.set()
        assert await downloading == (_digest(96), 96 * MEBI)
        assert _memory(proxy, "VmHWM") - before < 12 * MEBI
        assert (await proxy.record(2))["bytes_out"] == 96 * MEBI


@pytest.mark.long
@pytest.mark.parametrize("way", ["up", "up in chunks", "down"])
async def test_half_a_gigabyte(reading: Reading, way: str) -> None:
    """A file of 500 MB passes in either direction through a few megabytes."""
    total = 500

    async def step(conn: Conn, request: Received) -> None:
        digest = sha256()
        async for piece in pieces(conn, request):
            digest.update(piece)
        await conn.send(head(200, [(b"Content-Length", b"64")]) + digest.hexdigest().encode())

    async with process(routes(reading), python=()) as proxy:
        assert (await get(proxy, "/v1/files")).status == 200
        before = _memory(proxy, "VmRSS")
        if way == "down":
            reading.will(_serving(total, []))
            go = asyncio.Event()
            go.set()
            assert await _download(proxy, go) == (_digest(total), total * MEBI)
        else:
            reading.will(step)
            framing = "chunks" if "chunks" in way else "length"
            assert (await _upload(proxy, total, [], framing)).body == _digest(total)
        assert _memory(proxy, "VmHWM") - before < 16 * MEBI
