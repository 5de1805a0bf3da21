"""The log: what a line looks like whatever is in it, and what happens when nobody reads it."""

import asyncio
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import sinks
from proxy.config import load
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.server import serve
from proxy.sinks import LineWriter, Log
from tests.harness.client import Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import Upstream, answer

NOWHERE = request(path="/nowhere", method="GET")


@asynccontextmanager
async def logging_to(fd: int, toml: str, directory: Path) -> AsyncIterator[int]:
    """Serve *toml* with *fd* for a log; the value is the port."""
    file = directory / "routes.toml"
    file.write_text(toml)
    async with serve(load(file, {}, listen="127.0.0.1:0"), fd) as running:
        yield running.addresses["main"][0].port


async def ask(port: int, count: int) -> None:
    """Have *count* requests answered, each of which leaves a line."""
    async with await Client.connect(port) as client:
        for batch in range(0, count, 20):
            size = min(20, count - batch)
            await client.send(NOWHERE * size)
            for _ in range(size):
                assert (await client.answer(seconds=5)).status == 404


SANDBOX = '[routes]\n"*" = { upstream = "sandbox" }\n'


# A log that nobody reads


class Pipe:
    """A pipe that can be filled, and emptied into *content*."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.content = b""
        self._thread: threading.Thread | None = None

    def fill(self) -> None:
        """Leave no room for a single byte."""
        os.set_blocking(self.writer, False)
        for size in (4096, 1):
            try:
                while True:
                    os.write(self.writer, b" " * (size - 1) + b"\n")
            except BlockingIOError:
                pass
        os.set_blocking(self.writer, True)

    def read(self) -> None:
        """Read from now on, to the end."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self.reader, 65536):
            self.content += piece

    def lines(self) -> list[dict[str, Any]]:
        """Return what was read, when all of it was."""
        os.close(self.writer)
        assert self._thread is not None
        self._thread.join()
        return [orjson.loads(line) for line in self.content.split(b"\n") if line.strip()]


@contextmanager
def piped() -> Iterator[Pipe]:
    pipe = Pipe()
    try:
        yield pipe
    finally:
        os.close(pipe.reader)


async def test_blocked_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that nobody reads stops nothing; what was lost is counted once it flows again."""
    monkeypatch.setattr(sinks, "QUEUE_LINES", 500)
    with piped() as pipe:
        pipe.fill()
        async with logging_to(pipe.writer, SANDBOX, tmp_path) as port:
            await ask(port, 3_000)
            assert (await call(port, chat())).status == 200
            pipe.read()
            async with asyncio.timeout(5):
                while b"\n{" not in pipe.content:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            await ask(port, 10)
        lines = pipe.lines()
        lost = sum(line.get("log_lines_dropped", 0) for line in lines)
        assert len(lines) >= 510
        assert lost > 2_000
        assert len(lines) + lost == 3_011


async def test_log_that_stays_blocked(tmp_path: Path) -> None:
    """A log that nobody ever reads again does not keep the proxy from leaving."""
    with piped() as pipe:
        pipe.fill()
        async with asyncio.timeout(10):
            async with logging_to(pipe.writer, SANDBOX, tmp_path) as port:
                await ask(port, 20)
        pipe.read()
        assert len(pipe.lines()) <= 20


async def test_log_that_never_waits(tmp_path: Path) -> None:
    """A log that somebody else made non-blocking loses nothing and breaks no line when it is full."""
    with piped() as pipe:
        pipe.fill()
        os.set_blocking(pipe.writer, False)
        os.read(pipe.reader, 8192)  # room for a part of what comes
        async with logging_to(pipe.writer, SANDBOX, tmp_path) as port:
            await ask(port, 60)
            await asyncio.sleep(3 * sinks.GATHER_SECONDS)
            pipe.read()
            await ask(port, 60)
        assert len(pipe.lines()) == 120


async def test_closed_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log whose reader is gone stops nothing either."""
    pipe = Pipe()
    os.close(pipe.reader)
    async with logging_to(pipe.writer, SANDBOX, tmp_path) as port:
        for _ in range(3):
            await ask(port, 100)
            await asyncio.sleep(2 * sinks.GATHER_SECONDS)
        assert (await call(port, chat())).status == 200
    os.close(pipe.writer)
    assert caplog.records == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A log for which there is no room stops nothing: that is said once on stderr, and counted in the status."""
    fd = os.open("/dev/full", os.O_WRONLY)
    async with logging_to(fd, SANDBOX, tmp_path) as port:
        for _ in range(3):
            await ask(port, 20)
            await asyncio.sleep(2 * sinks.GATHER_SECONDS)
        found = (await call(port, path="/status", method="GET")).json()
    os.close(fd)
    assert found["log_lines_dropped"] >= 60
    said = "the log cannot be written: no space left on device; /status counts what is lost"
    assert capfd.readouterr().err == f"trunkline: {said}\n"


async def test_torn_line(tmp_path: Path) -> None:
    """A line for which there was room for a part only stands alone: the next ones are whole."""
    limit = 4096
    script = f"""
import asyncio, resource, signal
from proxy.sinks import LineWriter

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    writer = LineWriter(1)
    for number in range(3):
        if number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        writer.write(b'{{"n":%d,"x":"%s"}}\\n' % (number, b"x" * 3000))
        await asyncio.sleep(0.2)
    writer.close()

asyncio.run(main())
"""
    file = tmp_path / "log"
    with file.open("wb") as out:
        child = [sys.executable, "-c", script]
        done = subprocess.run(child, stdout=out, stderr=subprocess.PIPE, check=True)
    assert done.stderr.count(b"\n") == 1
    assert b"file too large" in done.stderr
    whole, torn, after = file.read_bytes().splitlines()
    assert [orjson.loads(line)["n"] for line in (whole, after)] == [0, 2]
    assert len(torn) == limit - len(whole) - 1


async def test_lines_are_whole_and_in_order() -> None:
    """What is written comes out in order, all of it by the time the writer is closed."""
    with piped() as pipe:
        pipe.read()
        writer = LineWriter(pipe.writer)
        for number in range(10_000):
            writer.write(b'{"n":%d,"text":"%b"}\n' % (number, b"x" * (number % 500)))
            if number % 1000 == 0:
                await asyncio.sleep(0.06)
        writer.close()
        assert [line["n"] for line in pipe.lines()] == list(range(10_000))
        assert writer.dropped == 0


# What a line looks like


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_strange_text(upstream: Upstream, log_format: str) -> None:
    """Whatever a stranger sends, it takes exactly one line, of valid text, of a bounded length."""
    toml = f"""
        [routes."*"]
        base_url = "{upstream.url}"
        model = "*"
        [log]
        format = "{log_format}"
        """
    models = [
        '"\\ud83d"',
        '"\\ude00 \\ud83d"',
        '"a\\nb\\r\\nc"',
        '"\\u0000\\u001b[31m\\u0085\\u2028\\u2029"',
        '"ключ\U0001f600"',
        '"' + "x" * 1_000_000 + '"',
    ]
    headers: list[Pair] = [(b"X-Text", b"\xff\xfe"), (b"User-Agent", b"\x80\xe2\x82")]
    sent = [request(f'{{"model":{model}}}'.encode(), headers=headers) for model in models]
    sent += [
        request(path="/%ff%0a%1b[31m?%0a", method="GET"),
        request(path="/" + "x" * 15_000, method="GET"),
        request(path="/\xff\xe9\x85", method="GET"),
        b"\xff\xfe\n\x1b[31m {} \r\n\r\n",
    ]
    async with serving(toml) as proxy:
        for data in sent:
            async with await Client.connect(proxy.port) as client:
                await client.send(data)
                await client.answer()
        async with asyncio.timeout(5):
            while proxy.log.read_bytes().count(b"\n") < len(sent):
                await asyncio.sleep(0.01)
        written = proxy.log.read_bytes()
    lines = written.decode("utf-8").splitlines()  # which also splits at U+2028 and U+0085
    assert written.endswith(b"\n")
    if log_format == "json":
        for line in written.splitlines():
            assert orjson.loads(line)["event"] == "exchange"
        assert written.count(b"\n") == len(sent)
    else:
        assert len(lines) == len(sent)
        assert all(line.isprintable() for line in lines)
    assert max(map(len, written.splitlines())) < 20_000


async def test_console(proxy: Proxy, upstream: Upstream) -> None:
    """For a person a line says, column by column, what came of it, how long it took, who asked for what, and
    where it went, one place after the other.
    """
    toml = f"""
        [upstreams.up]
        base_url = "{upstream.url}"
        [upstreams.spare]
        base_url = "{upstream.url}"
        [routes]
        "m" = "up/other"
        "two" = {{ upstream = "up", model = "one", fallback = "spare/one" }}
        [keys]
        team = "sk-team-0123456789"
        [log]
        format = "console"
        """
    key = [(b"x-api-key", b"sk-team-0123456789")]
    upstream.will(answer(), answer(503), answer(), answer(401))
    async with serving(toml) as console:
        for model in ("m", "two", "m"):
            await call(console.port, chat(model), headers=key)
        await call(console.port, chat("nothing"), headers=key)
        await call(console.port, chat("m"))
        async with asyncio.timeout(5):
            while console.log.read_bytes().count(b"\n") < 5:
                await asyncio.sleep(0.01)
        lines = console.log.read_text().splitlines()
    assert all(line[2] == line[5] == ":" and line[36:40] == " ms " for line in lines)
    chats = "POST /v1/chat/completions"
    assert [[*line[9:27].split(), line[40:]] for line in lines] == [
        ["200", "ok", f" team         {chats} m → up/other"],
        ["200", "ok", f" team         {chats} two → up/one (503) → spare/one"],
        ["502", "upstream_error", f" team         {chats} m → up/other (upstream_auth)"],
        ["404", "client_error", f" team         {chats} nothing (model_not_found)"],
        ["401", "refused", f" -            {chats}  (invalid_api_key)"],
    ]


async def test_a_terminal_is_not_commanded() -> None:
    """What a stranger writes reaches no terminal as a command, and begins no line of its own."""
    async with serving(f'{SANDBOX}[log]\nformat = "console"\n') as console:
        await call(console.port, chat("a\x1b]0;x\x07\n12:00:00 200 ok\u202e\x9b"))
        async with asyncio.timeout(5):
            while not console.log.read_bytes().endswith(b"\n"):
                await asyncio.sleep(0.01)
        (line,) = console.log.read_text().split("\n")[:-1]
    assert line.isprintable()
    assert r"a\x1b]0;x\x07\n12:00:00 200 ok\u202e\x9b" in line


def shown(text: str, *, terminal: bool, env: Mapping[str, str]) -> str:
    """Return what a process logs of an exchange and of a warning: to a *terminal*, or else a pipe."""
    reading, writing = pty.openpty() if terminal else os.pipe()
    try:
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **env}
        subprocess.run([sys.executable, "-c", text], stdout=writing, env=variables, check=True)
        os.set_blocking(reading, False)
        return os.read(reading, 65536).decode()
    finally:
        os.close(reading)
        os.close(writing)


_SHOWS = """
import asyncio
from pathlib import Path
from types import SimpleNamespace
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.server import open_log

async def main():
    settings = SimpleNamespace(log_format="console", log_level="info")
    log, writer = open_log(SimpleNamespace(settings=settings), 1, shared=False)
    for status, error in ((200, None), (404, "not_found"), (502, "upstream_dns")):
        exchange = Exchange("req_1", "main", "GET", "/x", "", Headers(), False, None, 0.0)
        exchange.status, exchange.error, exchange.outcome = status, error, "ok"
        log.line(exchange.record(1.0))
    log.events.warning("closed", why="it is")
    writer.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("terminal", "env", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),  # no-color.org: when not empty
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours(terminal: bool, env: dict[str, str], coloured: bool) -> None:
    """On a terminal good, bad and worse have colours, unless somebody does not want any; nowhere else has it."""
    text = shown(_SHOWS, terminal=terminal, env=env)
    good, bad, worse, warning = text.splitlines()
    assert ("\x1b[" in text) is coloured
    for line, colour in ((good, 32), (bad, 33), (worse, 31), (warning, 33)):
        assert (f"\x1b[{colour}m" in line) is coloured
    plain = [re.sub(r"\x1b\[[0-9]+m", "", line) for line in (good, bad, worse, warning)]
    assert [line[9:12] for line in plain] == ["200", "404", "502", "war"]
    assert [line.index("GET") for line in plain[:3]] == [54] * 3


async def test_auto_is_json_where_nobody_looks(proxy: Proxy) -> None:
    """Unless it is a terminal, a log is JSON."""
    await call(proxy.port, chat())
    assert (await proxy.record())["event"] == "exchange"


async def test_events_are_of_the_same_form(tmp_path: Path) -> None:
    """What is not an exchange begins as those do: time, level, event; a traceback is one field."""
    file = tmp_path / "log"
    with file.open("wb") as out:
        writer = LineWriter(out.fileno())
        log = Log(writer, console=False, level="info")
        log.events.debug("too quiet")
        log.events.info("ready", listen=["127.0.0.1:1"], odd="\udcff")
        try:
            raise ValueError("why")
        except ValueError:
            log.events.exception("internal_error", request_id="req_1")
        writer.close()
    ready, internal = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert list(ready)[:3] == ["ts", "level", "event"]
    assert (ready["level"], ready["event"]) == ("info", "ready")
    assert internal["level"] == "error"
    assert "ValueError: why" in internal["exception"]


# Whatever is in it

TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["\ud83d", "\udc80x", "a\nb\r\nc", "\x00\x1b[31m\x85\u2028\u2029", "\\", '"}']
)
FACTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.binary(max_size=4)
    | st.builds(ValueError, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def one_line(line: bytes) -> str:
    """Return *line*, which must be one, and valid text."""
    text = line.decode("utf-8")
    assert text.endswith("\n")
    assert line.count(b"\n") == 1
    assert "\r" not in text
    return text


@given(st.dictionaries(st.sampled_from(["file", "reason", "problems"]), FACTS))
def test_any_event(facts: dict[str, Any]) -> None:
    """Whatever the facts of an event are, it is one line of JSON, and each fact has its field."""
    event = {"ts": "", "level": "info", "event": "reload_failed", **facts}
    read = orjson.loads(one_line(sinks._json(event)))
    assert list(read) == list(event)


@given(st.text(max_size=40), st.text(max_size=40), TEXTS, st.none() | TEXTS, st.floats(0, 1e9))
def test_any_exchange(path: str, model: str, sent: str, error: str | None, seconds: float) -> None:
    """Whatever was asked for, an exchange is one line of JSON, with all of its fields in order."""
    exchange = Exchange("req_1", "main", "POST", path, "", Headers(), False, None, 0.0)
    exchange.model, exchange.model_sent, exchange.error = model, sent, error
    event = exchange.record(seconds)
    read = orjson.loads(one_line(sinks._json(event)))
    assert list(read) == list(event)
    assert (read["model"], read["total_ms"]) == (model, event["total_ms"])


# Several processes

_WRITES = """
import asyncio, sys
from proxy.sinks import LineWriter

async def main():
    writer = LineWriter(1, shared=True)
    for number in range(300):
        length = 700 if number % 10 else 9000
        writer.write(b'{"of":%s,"n":%d,"x":"%s"}\\n' % (sys.argv[1].encode(), number, b"x" * length))
        if number % 50 == 0:
            await asyncio.sleep(0.06)
    writer.close(30)

asyncio.run(main())
"""


def test_lines_of_several_processes() -> None:
    """Processes that write to one pipe, which is full most of the time, do not tear each other's lines."""
    reading, writing = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITES, str(number)], stdout=writing)
        for number in range(3)
    ]
    os.close(writing)
    pieces = []
    while piece := os.read(reading, 3000):
        pieces.append(piece)
        time.sleep(0.001)  # slower than they write: the pipe fills up
    os.close(reading)
    assert [writer.wait(10) for writer in writers] == [0, 0, 0]
    lines = [orjson.loads(line) for line in b"".join(pieces).splitlines()]
    for of in range(3):
        assert [line["n"] for line in lines if line["of"] == of] == [*range(300)]
