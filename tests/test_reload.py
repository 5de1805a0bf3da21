"""Changing while running: SIGHUP swaps the whole file, and nobody who is being served notices."""

import asyncio
import fcntl
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import count, pairwise
from pathlib import Path
from random import Random

import orjson
import pytest
import trustme

from proxy.config import load
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.client import request as write
from tests.harness.figures import descriptors, resident, show
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Upstream,
    answer,
    chunk,
    event,
    head,
    stream,
)
from tests.process.test_lifecycle import BYE, HELLO, Paused

HEALTH = request(path="/health", method="GET")
KEYS = ["sk-team-aaaaaaaaaaaaaaaa", "sk-team-bbbbbbbbbbbbbbbb", "sk-team-cccccccccccccccc"]


def toml(
    upstream: Upstream | str,
    model: str = "one",
    credential: str = '"sk-upstream-0000000000000000"',
    *,
    name: str = "m",
    server: str = "",
    rest: str = "",
) -> str:
    """Write a file in which *name* leads to *model* at *upstream*."""
    url = upstream if isinstance(upstream, str) else upstream.url
    return f"""
[server]
{server}
[upstreams.up]
base_url = "{url}"
credential = {credential}
[routes]
"{name}" = "up/{model}"
{rest}
"""


def model_of(received: Received) -> str:
    model: str = orjson.loads(received.body)["model"]
    return model


def bearer(received: Received) -> str:
    return (received.value(b"authorization") or b"").decode().removeprefix("Bearer ")


async def apply(proxy: Proxy, text: str, listen: str | None = "127.0.0.1:0") -> None:
    """Have the proxy in this process serve *text* from now on."""
    assert proxy.running is not None
    proxy.write(text)
    await proxy.running.apply(load(proxy.file, {}, listen=listen))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def refused(port: int) -> None:
    """Assert that nobody listens on *port*."""
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(port)


class Load:
    """Calls that follow one another, on a few connections, until the context ends; *answers* are
    what came, each with whatever *tag* was when it was asked for.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]], width: int = 4) -> None:
        self.tag = ""
        self.answers: list[tuple[str, Answer]] = []
        self._ask = ask
        self._width = width
        self._over = False

    async def __aenter__(self) -> "Load":
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        for _ in range(self._width):
            self._group.create_task(self._go_on())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._over = True
        await self._group.__aexit__(*raised)  # type: ignore[arg-type]  # as they came

    async def _go_on(self) -> None:
        while not self._over:
            tag = self.tag
            self.answers.append((tag, await self._ask()))

    async def some(self, more: int = 20) -> None:
        """Wait for *more* answers."""
        wanted = len(self.answers) + more
        async with asyncio.timeout(20):
            while len(self.answers) < wanted:
                await asyncio.sleep(0.005)


# What is in flight, and what comes next


async def test_in_flight(upstream: Upstream) -> None:
    """A stream that runs finishes as it began, byte for byte; the next request sees the new file, on the
    very connection that was there before.
    """
    paused = Paused()
    upstream.will(paused)
    async with (
        Upstream() as other,
        process(toml(upstream)) as proxy,
        await Client.connect(proxy.port) as streaming,
        await Client.connect(proxy.port) as waiting,
    ):
        await waiting.send(HEALTH)
        await waiting.answer()
        await streaming.send(request(chat(stream=True)))
        await paused.begun.wait()
        line = await proxy.reload(toml(other, "two", '"sk-other-0000000000000000"'))
        assert line["event"] == "reloaded"
        assert line["level"] == "info"
        assert line["digest"] != proxy.events("ready")[0]["digest"]
        await waiting.send(request(chat()))
        assert (await waiting.answer()).status == 200
        paused.released.set()
        got = await streaming.answer()
        assert got.body == HELLO + BYE + DONE
        assert got.whole
        await streaming.send(request(chat()))
        assert (await streaming.answer()).status == 200
    assert [model_of(one) for one in upstream.requests] == ["one"]
    assert [model_of(one) for one in other.requests] == ["two", "two"]
    assert {bearer(one) for one in other.requests} == {"sk-other-0000000000000000"}


async def test_body_on_its_way(upstream: Upstream) -> None:
    """A request whose body is still coming when the file changes goes by the old file, whole."""
    async with serving(toml(upstream)) as proxy, await Client.connect(proxy.port) as client:
        whole = request(chat(text="x" * 50_000))
        await client.send(whole[:-10])
        assert (await call(proxy.port, chat())).status == 200  # by now the other one is known
        await apply(proxy, toml(upstream, "two", '"sk-other-0000000000000000"'))
        await client.send(whole[-10:])
        assert (await client.answer()).status == 200
        await client.send(request(chat()))
        assert (await client.answer()).status == 200
        await proxy.record(3)
    _, early, late = upstream.requests
    assert (model_of(early), bearer(early)) == ("one", "sk-upstream-0000000000000000")
    assert (model_of(late), bearer(late)) == ("two", "sk-other-0000000000000000")


async def test_retry_goes_by_the_old_file(upstream: Upstream) -> None:
    """A request that is tried again after the file has changed is tried as it began."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def busy(conn: Conn, received: Received) -> None:
        asked.set()
        await go.wait()
        await answer(503)(conn, received)

    upstream.will(busy, answer())
    async with serving(toml(upstream)) as proxy:
        first = asyncio.create_task(call(proxy.port, chat()))
        await asked.wait()
        await apply(proxy, toml(upstream, "two", '"sk-other-0000000000000000"'))
        go.set()
        assert (await first).status == 200
        record = await proxy.record()
        assert [one["status"] for one in record["attempts"]] == [503, 200]
    assert [model_of(one) for one in upstream.requests] == ["one", "one"]
    assert {bearer(one) for one in upstream.requests} == {"sk-upstream-0000000000000000"}


async def test_model_removed(upstream: Upstream) -> None:
    """A model that leaves the file goes on where it is streaming, and is not found by who comes next."""
    paused = Paused()
    upstream.will(paused)
    async with serving(toml(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True)))
        await paused.begun.wait()
        await apply(proxy, toml(upstream, name="n"))
        got = await call(proxy.port, chat())
        assert (got.status, got.code) == (404, "model_not_found")
        paused.released.set()
        assert (await client.answer()).body == HELLO + BYE + DONE
        await client.send(request(chat()))
        assert (await client.answer()).status == 404


async def test_everything_changes(upstream: Upstream) -> None:
    """Paths, keys, endpoints, what is shown and what carries no model: all of it is new at once."""
    async with serving(toml(upstream)) as proxy, await Client.connect(proxy.port) as client:

        async def status(path: str, body: bytes = b"", *headers: Pair) -> int:
            method = "POST" if body else "GET"
            await client.send(request(body, path, headers, method))
            return (await client.answer()).status

        old = [("/v1/chat/completions", chat()), ("/v1/embeddings", chat()), ("/v1/models", b"")]
        assert [await status(*one) for one in old] == [200, 200, 200]
        assert await status("/v1/files") == 404
        server = 'base_paths = ["/api/v9"]\nendpoints = ["chat/completions", "files"]\n'
        server += 'models = "hidden"\nmax_body = "1KiB"\naccept = ["apikey"]'
        rest = f'[unrouted]\nfiles = "up"\n[keys]\nteam = "{KEYS[0]}"'
        await apply(proxy, toml(upstream, "two", server=server, rest=rest))
        assert [await status(*one) for one in old] == [404, 404, 404]
        key, wrong = (b"apikey", KEYS[0].encode()), (b"api-key", KEYS[0].encode())
        assert await status("/api/v9/chat/completions", chat()) == 401
        assert await status("/api/v9/chat/completions", chat(), wrong) == 401
        assert await status("/api/v9/chat/completions", chat(), key) == 200
        assert await status("/api/v9/files", b"", key) == 200
        assert await status("/api/v9/embeddings", chat(), key) == 404
        assert await status("/api/v9/models", b"", key) == 404
        await client.send(request(chat(text="x" * 2000), "/api/v9/chat/completions", [key]))
        assert (await client.answer()).status == 413
    assert upstream.requests[-1].target == "/v1/files"


# A file that cannot be used


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def make_huge(file: Path) -> None:
    os.truncate(file, 2 * 2**30)


CANARY = "sk-canary-7f3a9c5e1b2d4f60"
BAD: list[tuple[str, Callable[[Path, str], object], list[str]]] = [
    ("toml", lambda file, _: file.write_text(f'x = "{CANARY}'), ["is not TOML"]),
    ("twice", lambda file, old: file.write_text(old + old), ["is not TOML"]),
    ("text", lambda file, old: file.write_bytes(old.encode() + b"\xff"), ["is not UTF-8"]),
    ("missing", lambda file, _: file.unlink(), ["cannot be read: no such file"]),
    ("unreadable", lambda file, _: replace_by_directory(file), ["cannot be read: is a dir"]),
    ("pipe", lambda file, _: replace_by_pipe(file), ["cannot be read: is a named pipe"]),
    ("endless", lambda file, _: replace_by_device(file), ["cannot be read: is a device"]),
    ("huge", lambda file, _: make_huge(file), ["cannot be read: is larger than 16 MiB"]),
    (
        "several",
        lambda file, _: file.write_text(f"""
            [server]
            max_inflite = 3
            [upstreams.up]
            base_url = "https://{CANARY}@up.example/v1"
            credential = ["${{NOT_SET}}", "{CANARY}", "{CANARY}"]
            [routes]
            a = "b"
            b = "a"
            """),
        [
            'server.max_inflite: unknown key; did you mean "max_inflight"?',
            "upstreams.up.credential[0]: the environment variable NOT_SET is not set",
            "upstreams.up.base_url: must not hold a user or password",
            "routes.a: ",
        ],
    ),
    (
        "secret",
        lambda file, old: file.write_text(old.replace('"sk-upstream', f'"sk-\\n{CANARY}')),
        ["upstreams.up.credential: the secret"],
    ),
    (
        "nowhere",
        lambda file, old: file.write_text(old.replace("[server]", '[server]\ndrain = "-1s"')),
        ["server.drain: "],
    ),
]


async def test_bad_files(upstream: Upstream) -> None:
    """A file that cannot be used changes nothing; the log says everything that is wrong with it, and not a
    word of what it may hold in secret.
    """
    good = toml(upstream)
    async with process(good) as proxy:
        for name, spoil, problems in BAD:
            with suppress(IsADirectoryError):
                proxy.write(good)
            spoil(proxy.file, good)
            line = await proxy.reload()
            assert (line["event"], line["level"]) == ("reload_failed", "error"), name
            assert line["file"] == str(proxy.file)
            for problem in problems:
                assert any(problem in told for told in line["problems"]), (name, line["problems"])
            assert "exception" not in line
            assert (await call(proxy.port, chat())).status == 200
            if proxy.file.is_dir():
                proxy.file.rmdir()
        assert CANARY not in proxy.log.read_text()
        assert "upstream-0000" not in proxy.log.read_text()
        assert (await proxy.reload(toml(upstream, "two")))["event"] == "reloaded"
        assert (await call(proxy.port, chat())).status == 200
        await proxy.record(len(BAD) + 1)
    assert [model_of(one) for one in upstream.requests] == ["one"] * len(BAD) + ["two"]


async def test_bad_environment(upstream: Upstream, tmp_path: Path) -> None:
    """The file of variables is read anew too; one that cannot be is a problem like any other."""
    file = tmp_path / "env"
    file.write_text("CREDENTIAL=sk-one-0000000000000000\n")
    text = toml(upstream, credential='"${CREDENTIAL}"')
    async with process(text, further=("--env-file", str(file))) as proxy:
        assert (await call(proxy.port, chat())).status == 200
        file.write_text(f"CREDENTIAL=sk-two-0000000000000000\n{CANARY}\n")
        line = await proxy.reload()
        assert line["event"] == "reload_failed"
        assert CANARY not in proxy.log.read_text()
        assert line["problems"] == [f"{file}:2 is not NAME=VALUE"]
        assert (await call(proxy.port, chat())).status == 200
        replace_by_pipe(file)
        line = await proxy.reload()
        assert line["problems"] == [f"{file} cannot be read: is a named pipe, not a regular file"]
        assert (await call(proxy.port, chat())).status == 200
        file.unlink()
        file.write_text("CREDENTIAL=sk-two-0000000000000000\n")
        assert (await proxy.reload())["event"] == "reloaded"
        assert (await call(proxy.port, chat())).status == 200
    seen = [bearer(one) for one in upstream.requests]
    assert seen == [*["sk-one-0000000000000000"] * 3, "sk-two-0000000000000000"]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_takes_a_restart(upstream: Upstream, workers: str) -> None:
    """A reload names each time what it cannot make true before the next start, and nothing else."""
    other = "workers = 3\ndrain = '7s'\nmax_inflight = 99"
    log = "[log]\nlevel = 'debug'\nformat = 'json'"
    async with process(toml(upstream), further=("--workers", workers)) as proxy:
        assert (await proxy.reload())["takes_restart"] == []
        everything = toml(upstream, server=other, rest=log)
        named = ["server.workers", "log.format", "log.level"]
        for _ in range(2):
            assert (await proxy.reload(everything))["takes_restart"] == named
        assert (await proxy.reload(toml(upstream)))["takes_restart"] == []


# Rotation


async def test_keys_rotate(upstream: Upstream) -> None:
    """A key is replaced without one refused request: the new one is let in, clients change, the old one
    goes; from then on it opens nothing, on no connection.
    """

    def with_keys(*keys: str) -> str:
        lines = "\n".join(f'k{index} = "{key}"' for index, key in enumerate(keys))
        return toml(upstream, rest=f"[keys]\n{lines}")

    key = KEYS[0]

    async def ask() -> Answer:
        return await call(proxy.port, chat(), headers=[(b"x-api-key", key.encode())])

    async with process(with_keys(KEYS[0])) as proxy, await Client.connect(proxy.port) as client:
        async with Load(ask) as load:
            for old, new in pairwise(KEYS):
                await load.some()
                assert (await proxy.reload(with_keys(old, new)))["keys"] == 2
                await load.some()
                key = new
                await load.some()  # none asks with the old one any more
                await proxy.reload(with_keys(new))
                await load.some()
        assert {got.status for _, got in load.answers} == {200}
        for key in KEYS[:2]:
            got = await ask()
            assert (got.status, got.code) == (401, "invalid_api_key")
            await client.send(request(chat(), headers=[(b"x-api-key", key.encode())]))
            assert (await client.answer()).status == 401


async def statuses(proxy: Proxy, *keys: str) -> list[int]:
    """Ask once without a key, and once with each of *keys*."""
    given = [[], *([(b"x-api-key", key.encode())] for key in keys)]
    return [(await call(proxy.port, chat(), headers=headers)).status for headers in given]


async def test_the_last_key_goes(upstream: Upstream) -> None:
    """A file without keys closes what keys had closed, half-written ones too; the word `none` opens it."""
    keys = f'[keys]\nk = "{KEYS[0]}"\n'
    hooks = '[hooks.a]\nroute = "m"\n'
    async with process(toml(upstream, rest=hooks)) as proxy:
        assert await statuses(proxy, KEYS[0]) == [200, 200]
        said = b'{"text":"x"}'
        assert (await call(proxy.port, said, "/hooks/a")).status != 404
        await proxy.reload(toml(upstream))
        assert await statuses(proxy) == [200]  # nobody had a key as yet
        assert not proxy.events("closed")
        line = await proxy.reload(toml(upstream, rest=keys))
        assert (line["keys"], await statuses(proxy, KEYS[0])) == (1, [401, 200])
        for rest in ("", "[keys]\n", hooks):
            line = await proxy.reload(toml(upstream, rest=rest))
            assert (line["event"], line["keys"]) == ("reloaded", 0)
            assert await statuses(proxy, KEYS[0]) == [401, 401]
        closed = await proxy.event("closed", count=2)
        assert (closed["level"], closed["surfaces"]) == ("warning", ["main"])
        assert len(proxy.events("closed")) == 2
        assert (await call(proxy.port, said, "/hooks/a")).status == 404
        whole = toml(upstream, name="n", rest=keys)
        await proxy.reload(whole[: whole.index("[keys]")])  # as an editor may leave it
        assert await statuses(proxy, KEYS[0]) == [401, 401]
        await proxy.reload(toml(upstream, server='name = "other"\nopen = true'))
        assert await statuses(proxy, KEYS[0]) == [401, 401]
        await proxy.reload(toml(upstream, server='auth = "keys"'))
        assert await statuses(proxy, KEYS[0]) == [401, 401]
        await proxy.reload(toml(upstream, server='auth = "none"'))
        assert await statuses(proxy) == [200]
        await proxy.reload(toml(upstream))
        assert await statuses(proxy) == [401]  # they were in force once
        await proxy.reload(toml(upstream, rest=keys))
        assert await statuses(proxy, KEYS[0]) == [401, 200]


async def test_a_new_address_is_closed_too(upstream: Upstream) -> None:
    """Where keys were in force, an address that others reach is not refused for having none, and so the
    key that was taken back does not go on working.
    """
    keys = f'[keys]\nk = "{KEYS[0]}"\n'
    port = free_port()
    first = toml(upstream, server='listen = "127.0.0.1:0"', rest=keys)
    async with process(first, listen=None) as proxy:
        text = toml(upstream, server=f'name = "new"\nlisten = "0.0.0.0:{port}"')
        assert (await proxy.reload(text))["event"] == "reloaded"
        proxy.port = port
        assert await statuses(proxy, KEYS[0]) == [401, 401]


async def test_credentials_rotate(upstream: Upstream) -> None:
    """A credential is replaced without one failed request; after the swap the old one is never used."""
    credentials = [f"sk-vendor-{number}-000000000000" for number in range(6)]

    async def echo(conn: Conn, received: Received) -> None:
        await answer(200, bearer(received).encode())(conn, received)

    async def ask() -> Answer:
        return await call(proxy.port, chat())

    upstream.will(echo)
    async with process(toml(upstream, credential=f'"{credentials[0]}"')) as proxy:
        async with Load(ask) as load:
            for credential in credentials[1:]:
                await load.some()
                await proxy.reload(toml(upstream, credential=f'"{credential}"'))
                load.tag = credential
                await load.some()
        assert {got.status for _, got in load.answers} == {200}
        for tag, got in load.answers:
            if tag:  # a later one may have come while it was on its way
                assert got.body.decode() in credentials[credentials.index(tag) :]
        assert {got.body.decode() for _, got in load.answers} == {*credentials}
        records = await proxy.record(len(load.answers))
        assert records["outcome"] == "ok"
        assert all(len(record["attempts"]) == 1 for record in proxy.records())


async def test_file_of_a_credential(upstream: Upstream, tmp_path: Path) -> None:
    """What a credential's file holds at a reload is used from that moment on, and still followed later."""
    file = tmp_path / "credential"
    file.write_text("sk-one-0000000000000000\n")
    text = toml(upstream, credential=f'"${{file:{file}}}"')
    async with process(text) as proxy:
        assert (await call(proxy.port, chat())).status == 200
        file.write_text("sk-two-0000000000000000\n")
        await proxy.reload()
        assert (await call(proxy.port, chat())).status == 200
        file.unlink()
        assert (await proxy.reload())["event"] == "reload_failed"
        assert (await call(proxy.port, chat())).status == 200
        file.write_text("sk-three-00000000000000\n")
        async with asyncio.timeout(10):
            while bearer(upstream.requests[-1]) != "sk-three-00000000000000":
                assert (await call(proxy.port, chat())).status == 200
                await asyncio.sleep(0.05)
    seen = [bearer(one) for one in upstream.requests]
    assert seen[0] == "sk-one-0000000000000000"
    assert {*seen[1:-1]} == {"sk-two-0000000000000000"}


async def test_command_keeps_its_value(upstream: Upstream, tmp_path: Path) -> None:
    """A credential that a command prints has its value over a reload, though the command takes its time
    to print another, or prints none.
    """
    script = tmp_path / "token"
    script.write_text(f"""#!/bin/sh
        [ -e {tmp_path}/fail ] && exit 1
        [ -e {tmp_path}/again ] && sleep 30
        touch {tmp_path}/again
        echo sk-printed-0000000000000000
        """)
    script.chmod(0o755)
    text = toml(upstream, credential=f'{{ command = ["{script}"] }}')
    async with process(text) as proxy:
        for model in ("one", "two", "three"):
            if model != "one":
                # Beside one that is new and takes long, what is there goes on.
                await proxy.reload(text.replace("up/one", f"up/{model}"))
            got = await call(proxy.port, chat())
            assert got.status == 200, got.body
            if model == "two":
                (tmp_path / "fail").touch()
    assert [model_of(one) for one in upstream.requests] == ["one", "two", "three"]
    assert {bearer(one) for one in upstream.requests} == {"sk-printed-0000000000000000"}


async def test_new_command(upstream: Upstream, tmp_path: Path) -> None:
    """The value of a new command is there before the file that has it holds: nobody sees it lacking."""

    async def ask() -> Answer:
        return await call(proxy.port, chat())

    async with process(toml(upstream)) as proxy:
        async with Load(ask, 2) as load:
            await load.some()
            command = (
                '{ command = ["/bin/sh", "-c", "sleep 0.5; echo sk-printed-0000000000000000"] }'
            )
            assert (await proxy.reload(toml(upstream, credential=command)))["event"] == "reloaded"
            await load.some()
        assert {got.status for _, got in load.answers} == {200}
    seen = [bearer(one) for one in upstream.requests]
    first = seen.index("sk-printed-0000000000000000")
    assert {*seen[:first]} == {"sk-upstream-0000000000000000"}
    assert len({*seen[first + 2 :]}) == 1


async def test_authorities_rotate(tmp_path: Path) -> None:
    """The authorities that an upstream's `ca` names are read anew, as everything the file names is."""
    ca, file = trustme.CA(), tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    async with Upstream(context) as upstream:
        text = toml(upstream, credential='"sk-0000000000000000"\n' + f'ca = "{file}"')
        async with serving(text) as proxy:
            upstream.will(answer(close=True))
            assert (await call(proxy.port, chat())).status == 200
            ca = trustme.CA()
            ca.cert_pem.write_to_path(str(file))
            ca.issue_cert("127.0.0.1").configure_cert(context)
            await apply(proxy, text)
            got = await call(proxy.port, chat())
            assert got.status == 200, got.body


# Where it listens


async def test_listen_elsewhere(upstream: Upstream) -> None:
    """A new address is listened on; one that is gone is left: streams there finish, idle connections are
    closed, and what has begun is answered.
    """
    old, new = free_port(), free_port()
    paused, plain = Paused(), Paused(stream=False)
    upstream.will(paused, plain, answer())
    text = toml(upstream, server=f'listen = "127.0.0.1:{old}"')
    async with serving(text, listen=None) as proxy, AsyncExitStack() as stack:
        assert proxy.port == old
        clients = [await stack.enter_async_context(await Client.connect(old)) for _ in range(5)]
        fresh, idle, streaming, waiting, sending = clients
        await idle.send(HEALTH)
        await idle.answer()
        for client, begun in ((streaming, paused), (waiting, plain)):
            await client.send(request(chat(stream=client is streaming)))
            await begun.begun.wait()
        upload = request(chat(text="x" * 1000))
        await sending.send(upload[:-10])
        assert (await call(old, chat())).status == 200  # by now the other one is known
        text = toml(upstream, "two", server=f'listen = "127.0.0.1:{new}"')
        await apply(proxy, text, None)
        assert (await call(new, chat())).status == 200
        await refused(old)
        assert await fresh.closed() == b""
        assert await idle.closed() == b""
        paused.released.set()
        plain.released.set()
        got = await streaming.answer()
        assert (got.body, got.whole) == (HELLO + BYE + DONE, True)
        got = await waiting.answer()
        assert (got.body, got.whole) == (b'{"late":true}', True)
        await sending.send(upload[-10:])
        assert (await sending.answer()).status == 200
        for client in (streaming, waiting, sending):
            assert await client.closed() == b""
        await proxy.record(5)
    models = [model_of(one) for one in upstream.requests]
    assert models == ["one", "one", "one", "two", "one"]


async def test_last_answer_says_so(upstream: Upstream) -> None:
    """An answer after which its connection is closed, because its address has been left, says that: a
    client would else send the next request into the closing.
    """
    old, new = free_port(), free_port()
    paused = Paused(stream=False)
    upstream.will(paused)
    text = toml(upstream, server=f'listen = "127.0.0.1:{old}"')
    async with serving(text, listen=None) as proxy, await Client.connect(old) as client:
        await client.send(request(chat()))
        await paused.begun.wait()
        await apply(proxy, toml(upstream, server=f'listen = "127.0.0.1:{new}"'), None)
        paused.released.set()
        got = await client.answer()
        assert got.status == 200
        assert got.value(b"connection") == b"close"


async def test_left_address_forgets_keys(upstream: Upstream) -> None:
    """What has come in at an address that was left is answered, and nothing after it: a key that is not
    valid any more opens nothing there.
    """
    old, new = free_port(), free_port()
    key = [(b"x-api-key", KEYS[0].encode())]

    def listening(port: int, key: str) -> str:
        server = f'listen = "127.0.0.1:{port}"'
        return toml(upstream, server=server, rest=f'[keys]\nteam = "{key}"')

    text = listening(old, KEYS[0])
    async with serving(text, listen=None) as proxy, await Client.connect(old) as client:
        upload = request(chat(text="x" * 1000), headers=key)
        await client.send(upload[:-10])
        assert (await call(old, chat(), headers=key)).status == 200
        await apply(proxy, listening(new, KEYS[1]), None)
        await client.send(upload[-10:])
        assert (await client.answer()).status == 200
        with suppress(ConnectionError):
            await client.send(request(chat(), headers=key))
        assert await client.closed() == b""
    assert len(upstream.requests) == 2


async def test_address_in_use(upstream: Upstream, tmp_path: Path) -> None:
    """An address that somebody else has is a reason to change nothing at all; what had been opened
    already is left again.
    """
    port, path = free_port(), tmp_path / "s"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = sock.getsockname()[1]
        text = toml(upstream, server=f'listen = "127.0.0.1:{port}"')
        async with process(text, listen=None) as proxy:
            assert proxy.process is not None
            before = descriptors(proxy.process.pid)
            listen = [f"unix:{path}", f"127.0.0.1:{taken}", f"127.0.0.1:{port}"]
            line = await proxy.reload(toml(upstream, "two", server=f"listen = {listen}"))
            assert line["event"] == "reload_failed"
            (problem,) = line["problems"]
            assert problem == f"cannot listen on 127.0.0.1:{taken}: address already in use"
            assert not path.exists()
            assert descriptors(proxy.process.pid) == before
            assert (await call(port, chat())).status == 200
    assert [model_of(one) for one in upstream.requests] == ["one"]


async def test_unix_sockets(upstream: Upstream, tmp_path: Path) -> None:
    """Unix sockets come and go like other addresses; one that stays is never missing, not for a moment."""
    port, one, two = free_port(), tmp_path / "one", tmp_path / "two"

    def listening(*addresses: str) -> str:
        return toml(upstream, server=f"listen = {[*addresses]}")

    async def ask(path: Path) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            writer.write(request(chat()))
            async with asyncio.timeout(5):
                return (await reader.readuntil(b"\r\n\r\n"))[:12]
        finally:
            writer.transport.abort()

    async with serving(listening(f"127.0.0.1:{port}"), listen=None) as proxy:
        await apply(proxy, listening(f"unix:{one}"), None)
        await refused(port)
        inode = one.stat().st_ino
        assert await ask(one) == b"HTTP/1.1 200"
        await apply(proxy, listening(f"unix:{two}", f"unix:{one}"), None)
        assert one.stat().st_ino == inode
        assert [await ask(one), await ask(two)] == [b"HTTP/1.1 200"] * 2
        await apply(proxy, listening(f"127.0.0.1:{port}", f"unix:{two}"), None)
        assert not one.exists()
        assert (await call(port, chat())).status == 200
        await apply(proxy, listening(f"unix:{one}"), None)  # once more
        assert await ask(one) == b"HTTP/1.1 200"
        assert not two.exists()
    assert not one.exists()


async def test_option_holds(upstream: Upstream) -> None:
    """`--listen` holds whatever the file says, at every reload."""
    other = free_port()
    async with process(toml(upstream)) as proxy:
        line = await proxy.reload(toml(upstream, "two", server=f'listen = "127.0.0.1:{other}"'))
        assert line["listen"] == [f"127.0.0.1:{proxy.port}"]
        assert (await call(proxy.port, chat())).status == 200
        await refused(other)
    assert [model_of(one) for one in upstream.requests] == ["two"]


async def test_left_addresses_are_forgotten(upstream: Upstream) -> None:
    """However often it moves from address to address, nothing is kept of those that it has left."""
    ports = [free_port(), free_port()]
    async with serving(toml(upstream)) as proxy:
        assert proxy.running is not None
        for turn in range(10):
            listen = f'listen = "127.0.0.1:{ports[turn % 2]}"'
            await apply(proxy, toml(upstream, server=listen), None)
            assert (await call(ports[turn % 2], chat())).status == 200
            await asyncio.sleep(0)
        assert len([*proxy.running._servers()]) <= 3


# Bounds


async def test_bounds_change(upstream: Upstream) -> None:
    """The bounds on what is held at once are those of the file that holds."""
    paused = Paused()
    upstream.will(paused, answer())
    async with (
        serving(toml(upstream, server="max_inflight = 1")) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(chat(stream=True)))
        await paused.begun.wait()
        assert (await call(proxy.port, chat())).code == "overloaded"
        await apply(proxy, toml(upstream, server="max_inflight = 2"))
        assert (await call(proxy.port, chat())).status == 200
        await apply(proxy, toml(upstream, server='max_inflight = 2\nmax_held = "1KiB"'))
        assert (await call(proxy.port, chat(text="x" * 2000))).code == "overloaded"
        assert (await call(proxy.port, chat())).status == 200
        await apply(proxy, toml(upstream, server="max_inflight = 1"))
        assert (await call(proxy.port, chat())).code == "overloaded"
        paused.released.set()
        assert (await client.answer()).whole
        assert (await call(proxy.port, chat(text="x" * 2000))).status == 200
        assert proxy.running is not None
        assert (proxy.running.gate.inflight, proxy.running.gate.held) == (0, 0)


# State


async def test_rest_is_kept(upstream: Upstream) -> None:
    """A credential that rests goes on resting over a reload, while it is what it was; another one in its
    place does not.
    """

    async def limited(conn: Conn, received: Received) -> None:
        if bearer(received).startswith("sk-a"):
            await answer(429, b"{}", [JSON, (b"Retry-After", b"50")])(conn, received)
        else:
            await answer()(conn, received)

    upstream.will(limited)
    both = '["sk-a-00000000000000000", "sk-b-00000000000000000"]'
    async with serving(toml(upstream, credential=both)) as proxy:

        async def tried() -> list[str]:
            known = len(upstream.requests)
            assert (await call(proxy.port, chat())).status == 200
            return [bearer(one)[:4] for one in upstream.requests[known:]]

        assert await tried() == ["sk-a", "sk-b"]
        assert [await tried() for _ in range(3)] == [["sk-b"]] * 3
        await apply(proxy, toml(upstream, "two", both, rest='n = "up/n"'))
        assert [await tried() for _ in range(3)] == [["sk-b"]] * 3
        await apply(proxy, toml(upstream, "two", both.replace("sk-a-", "sk-c-")))
        assert {*await tried(), *await tried()} == {"sk-b", "sk-c"}
        await apply(proxy, toml(upstream, "two", both))  # the score is kept for its return
        assert [await tried() for _ in range(3)] == [["sk-b"]] * 3


async def test_breaker_is_kept(upstream: Upstream) -> None:
    """An upstream whose breaker is open is passed over after a reload as well; one that has moved is
    asked again.
    """
    fallback = 'n = "sandbox/echo"\nm = { upstream = "up", model = "one", fallback = "n" }'
    text = toml(upstream, name="other", rest=fallback)
    upstream.will(stream(HELLO, end="cut"))
    async with serving(text) as proxy:
        for _ in range(5):
            assert not (await call(proxy.port, chat(stream=True))).whole
        assert len(upstream.requests) == 5
        assert (await call(proxy.port, chat())).status == 200
        assert len(upstream.requests) == 5
        await apply(proxy, text.replace("up/one", "up/two"))
        assert (await call(proxy.port, chat())).status == 200
        assert len(upstream.requests) == 5
        upstream.will(answer())
        await apply(proxy, text.replace(upstream.url, upstream.url + "/v2"))
        assert (await call(proxy.port, chat())).status == 200
        assert len(upstream.requests) == 6


async def test_connections_are_kept(upstream: Upstream) -> None:
    """Connections to an upstream that stays are used on; a reload costs no handshake."""
    async with serving(toml(upstream)) as proxy:
        for model in ("one", "two", "three"):
            await apply(proxy, toml(upstream, model, f'"sk-{model}-0000000000000000"'))
            assert (await call(proxy.port, chat())).status == 200
    assert len(upstream.connections) == 1
    assert [bearer(one)[3:6] for one in upstream.requests] == ["one", "two", "thr"]


async def test_commands_have_scores_of_their_own(upstream: Upstream) -> None:
    """Two credentials that two commands print are two, though it is the same program that runs."""

    async def limited(conn: Conn, received: Received) -> None:
        if bearer(received).startswith("sk-a"):
            await answer(429, b"{}", [JSON, (b"Retry-After", b"50")])(conn, received)
        else:
            await answer()(conn, received)

    upstream.will(limited)
    commands = [f'{{ command = ["/bin/echo", "sk-{name}-00000000000000000"] }}' for name in "ab"]
    async with serving(toml(upstream, credential=f"[{', '.join(commands)}]")) as proxy:
        got = await call(proxy.port, chat())
        assert got.status == 200, got.body
        assert [bearer(one)[:4] for one in upstream.requests] == ["sk-a", "sk-b"]


async def test_nothing_of_the_old_file_stays(upstream: Upstream) -> None:
    """Of a file that holds no more nothing is remembered but scores, even where what it had begun goes on."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(conn: Conn, received: Received) -> None:
        asked.set()
        await go.wait()
        await answer(503)(conn, received)

    async with serving(toml(upstream)) as proxy:
        assert proxy.running is not None
        choices = proxy.running._opener.scores._choices
        for turn in range(3):
            upstream.will(slow, answer())
            first = asyncio.create_task(call(proxy.port, chat()))
            await asked.wait()
            await apply(proxy, toml(upstream, f"m{turn}"))
            go.set()
            assert (await first).status == 200
            asked.clear()
            go.clear()
        upstream.will(answer())
        await apply(proxy, toml(upstream, "last"))
        assert (await call(proxy.port, chat())).status == 200
        assert len(choices) <= 1


async def test_what_carries_no_model_leaves_nothing(upstream: Upstream) -> None:
    """A request that carries no model leaves nothing in memory, however many there are."""
    async with serving(toml(upstream, rest='[unrouted]\nfiles = "up"')) as proxy:
        assert proxy.running is not None
        for _ in range(20):
            assert (await call(proxy.port, path="/v1/files", method="GET")).status == 200
        assert len(proxy.running._opener.scores._choices) <= 1


# Signals that meet


async def test_many_at_once(upstream: Upstream) -> None:
    """However many signals come, what holds in the end is the file as it was at the last of them."""
    async with process(toml(upstream)) as proxy:
        for turn in range(30):
            proxy.write(toml(upstream, f"m{turn}"))
            proxy.tell(signal.SIGHUP)
        async with asyncio.timeout(10):
            while not upstream.requests or model_of(upstream.requests[-1]) != "m29":
                assert (await call(proxy.port, chat())).status == 200
        await proxy.event("reloaded")
        assert len(proxy.events("reloaded")) <= 30
        assert not proxy.events("reload_failed")
        assert (await proxy.reload(toml(upstream, "last")))["event"] == "reloaded"
        assert (await call(proxy.port, chat())).status == 200
    assert model_of(upstream.requests[-1]) == "last"


@pytest.mark.parametrize("server", ["", 'lame_duck = "20s"'], ids=["draining", "lame duck"])
async def test_reload_while_leaving(upstream: Upstream, server: str) -> None:
    """Who is leaving reads nothing anew, and is not kept from leaving."""
    paused = Paused()
    upstream.will(paused)
    async with process(toml(upstream, server=server)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            await paused.begun.wait()
            proxy.tell()
            await proxy.event("draining")
            for _ in range(3):
                proxy.write(toml(upstream, "two", server='listen = "127.0.0.1:1"'))
                proxy.tell(signal.SIGHUP)
            paused.released.set()
            got = await client.answer()
            assert (got.body, got.whole) == (HELLO + BYE + DONE, True)
        if server:
            proxy.tell()  # else it would wait for the balancers
        assert proxy.process is not None
        async with asyncio.timeout(10):
            assert await proxy.process.wait() == 0
        events = [line["event"] for line in proxy.lines()]
        assert events == ["ready", "draining", "exchange", "stopped"]


async def test_told_to_stop_while_reading(upstream: Upstream) -> None:
    """Told to stop while it reads a file that does not come, it leaves all the same: what runs finishes."""
    paused = Paused()
    upstream.will(paused)
    async with process(toml(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True)))
        await paused.begun.wait()
        lines = "".join(f'"x{number}" = "up/one"\n' for number in range(600_000))
        proxy.write(toml(upstream, rest=lines))  # which takes many seconds to read
        proxy.tell(signal.SIGHUP)
        await asyncio.sleep(0.5)
        proxy.tell()
        await proxy.event("draining")
        paused.released.set()
        assert (await client.answer(seconds=10)).body == HELLO + BYE + DONE
        assert proxy.process is not None
        async with asyncio.timeout(10):
            assert await proxy.process.wait() == 0
        assert not proxy.events("reloaded", "reload_failed")


@pytest.mark.parametrize("begun", [True, False], ids=["reload", "start"])
async def test_told_to_stop_while_a_command_runs(
    upstream: Upstream, tmp_path: Path, begun: bool
) -> None:
    """Told to stop while it waits for the first value of a command, it ends at once, and the command with
    it.
    """
    lock = tmp_path / "lock"
    held = f"exec 9>{lock}; flock 9; touch {tmp_path}/runs; sleep 40"
    text = toml(upstream, credential=f'{{ command = ["/bin/sh", "-c", "{held}"] }}')
    async with AsyncExitStack() as stack:
        if begun:
            proxy = await stack.enter_async_context(process(toml(upstream)))
            assert proxy.process is not None
            child = proxy.process
            proxy.write(text)
            proxy.tell(signal.SIGHUP)
        else:
            file = tmp_path / "routes.toml"
            file.write_text(text)
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", "serve", "-c", str(file)),
                *("--listen", "127.0.0.1:0"),
                stdout=asyncio.subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())},
            )
        async with asyncio.timeout(10):
            while not (tmp_path / "runs").exists():
                await asyncio.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await child.wait() == 0
        with lock.open("w") as free:  # whoever of the command still lives has it
            async with asyncio.timeout(5):
                while True:
                    with suppress(BlockingIOError):
                        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    await asyncio.sleep(0.02)


# All of it at once

FILES = {"ma": "sk-vendor-aaaaaaaaaaaaaaaa", "mb": "sk-vendor-bbbbbbbbbbbbbbbb"}


def piece(by: str, number: int) -> bytes:
    """Write event *number* of a stream that was asked for *by* a model and a credential."""
    return event(
        b'{"by":"%b","n":%d,"choices":[{"delta":{"content":"x"}}]}' % (by.encode(), number)
    )


async def tale(conn: Conn, received: Received) -> None:
    """Tell, in every event, by which model and credential it was asked for."""
    body = orjson.loads(received.body)
    by = f"{body['model']} {bearer(received)}"
    if not body.get("stream"):
        await answer(200, by.encode())(conn, received)
        return
    await conn.send(head(200, [SSE, CHUNKED]))
    for number in range(int(body["messages"][0]["content"])):
        await conn.send(chunk(piece(by, number)))
        await asyncio.sleep(0.15)
    await conn.send(chunk(DONE) + b"0\r\n\r\n")


async def test_fifty_reloads(upstream: Upstream, request: pytest.FixtureRequest) -> None:
    """50 reloads under 200 streams and 50 requests a second drop nothing, alter nothing, and mix nothing:
    each answer is of one file or of the other. Memory and descriptors are as before.
    """
    upstream.will(tale)
    random = Random(4)
    key = KEYS[0]
    files = {
        model: toml(
            upstream,
            model,
            f'"{credential}"',
            rest=f'[keys]\nteam = "{key}"\n{model} = "{key}{model}"',
        )
        for model, credential in FILES.items()
    }
    whole = {f"{model} {credential}" for model, credential in FILES.items()}
    over = asyncio.Event()
    holds: tuple[int, str] = (
        0,
        "ma",
    )  # which of the reloads has the word, and its file; 0 in between
    streams, plain = count(), count()

    def sent(body: bytes) -> bytes:
        return write(body, headers=[(b"Authorization", b"Bearer " + key.encode())])

    async def one_stream(client: Client, pieces: int) -> None:
        await client.send(sent(chat(text=str(pieces), stream=True)))
        got = await client.answer()
        assert (got.status, got.whole) == (200, True), got.raw
        by = got.body.split(b'"', 4)[3].decode()
        assert by in whole
        assert got.body == b"".join(piece(by, number) for number in range(pieces)) + DONE
        next(streams)

    async def streaming(number: int) -> None:
        async with await Client.connect(proxy.port) as client:
            while not over.is_set():
                await one_stream(client, random.randrange(5, 25))

    async def one_call() -> None:
        before = holds
        async with await Client.connect(proxy.port) as client:
            await client.send(sent(chat()))
            got = await client.answer()
        assert got.status == 200, got.raw
        by = got.body.decode()
        assert by in whole
        if before == holds and before[0]:
            assert by.startswith(before[1])
        next(plain)

    async def steady() -> None:
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                group.create_task(one_call())
                await asyncio.sleep(0.02)

    # Not in development mode, which says so on stderr whenever the machine is slow.
    async with process(files["ma"], python=("-W", "error")) as proxy:
        assert proxy.process is not None
        pid = proxy.process.pid
        idle = descriptors(pid)
        early = 0.0
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(streaming(number))
            group.create_task(steady())
            async with asyncio.timeout(20):
                while len(upstream.connections) < 200:
                    await asyncio.sleep(0.02)
            for turn in range(1, 51):
                model = ("ma", "mb")[turn % 2]
                holds = (0, model)
                line = await proxy.reload(files[model])
                assert line["event"] == "reloaded"
                holds = (turn, model)
                await asyncio.sleep(0.04)
                if turn == 10:
                    early = resident(pid)
            over.set()
        finished = next(streams) + next(plain)
        record = await proxy.record(finished, seconds=10)
        assert record["status"] == 200
        assert {one["outcome"] for one in proxy.records()} == {"ok"}
        late = resident(pid)
        for conn in upstream.connections:
            conn.writer.transport.abort()
        async with asyncio.timeout(10):
            while descriptors(pid) > idle + 1:
                await asyncio.sleep(0.05)
        rss = f"RSS {early:.1f} MB after 10, {late:.1f} MB after 50"
        show(
            request,
            f"50 reloads, {finished} answers: {rss}; {idle} → {descriptors(pid)} descriptors",
        )
        assert late - early < 8
