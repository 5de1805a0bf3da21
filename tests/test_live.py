"""Credentials that change while we run: files that are written anew, commands that print a new one."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy import server
from proxy.cli import main
from proxy.config import live, load
from proxy.credentials import LiveSecret
from tests.harness.client import Answer, call, chat
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import Conn, Received, Upstream, answer

FIRST, SECOND, THIRD = "sk-first-CANARY-1", "sk-second-CANARY-2", "sk-third-CANARY-3"


def to(upstream: Upstream, credential: str, more: str = "") -> str:
    """Write a routes file whose model `m` is asked with *credential*, and `free` with none."""
    return f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = {credential}
[routes]
"m" = "up/m"
"free" = {{ base_url = "{upstream.url}" }}
{more}
"""


def of_file(file: Path) -> str:
    return f'"${{file:{file}}}"'


def command(*words: object, refresh: str = "50ms", header: str | None = None) -> str:
    """Write a credential that a command prints."""
    form = "" if header is None else f', header = "{header}"'
    listed = orjson.dumps([str(word) for word in words]).decode()
    return f'{{ command = {listed}, refresh = "{refresh}"{form} }}'


async def presented(proxy: Proxy, upstream: Upstream, name: bytes = b"authorization") -> str:
    """Make a request, which must succeed; return what it showed to the upstream."""
    got = await call(proxy.port, chat())
    assert got.status == 200, got.raw
    return (upstream.requests[-1].value(name) or b"").decode().removeprefix("Bearer ")


async def becomes(proxy: Proxy, upstream: Upstream, value: str, seconds: float = 3.0) -> None:
    """Wait until requests, none of which may fail, carry *value*."""
    async with asyncio.timeout(seconds):
        while await presented(proxy, upstream) != value:
            await asyncio.sleep(0.02)


async def heals(proxy: Proxy, path: str = "/v1/chat/completions", seconds: float = 5.0) -> None:
    """Wait until a request succeeds."""
    async with asyncio.timeout(seconds):
        while (await call(proxy.port, chat(), path)).status != 200:
            await asyncio.sleep(0.02)


def told(proxy: Proxy, what: str = "credential_kept") -> list[dict[str, Any]]:
    return [line for line in proxy.lines() if line["event"] == what]


async def kept(
    proxy: Proxy, count: int = 1, seconds: float = 5.0, what: str = "credential_kept"
) -> dict[str, Any]:
    """Wait until the log says *count* times that a value was kept; return the last line."""
    async with asyncio.timeout(seconds):
        while len(told(proxy, what)) < count:
            await asyncio.sleep(0.02)
    return told(proxy, what)[-1]


async def changed(proxy: Proxy, count: int = 1) -> dict[str, Any]:
    """Wait until the log says *count* times, and no more, that a value has changed."""
    line = await kept(proxy, count, what="credential_changed")
    await asyncio.sleep(0.06)  # one more than expected would be written by now
    assert len(told(proxy, "credential_changed")) == count
    return line


def silent(proxy: Proxy, *values: str) -> None:
    """Make sure that the log says nothing of any of *values*."""
    log = proxy.log.read_text()
    for value in ("CANARY", *values):
        assert value not in log


async def appears(file: Path, seconds: float = 5.0) -> str:
    """Wait until *file* has a whole line; return it."""
    async with asyncio.timeout(seconds):
        while not (file.exists() and file.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
    return file.read_text().strip()


def alive(pid: int) -> bool:
    """Return whether *pid* runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def dies(pid: int, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while alive(pid):
            await asyncio.sleep(0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files often, and try commands again soon."""
    monkeypatch.setattr(live, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.1)


# Files


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


def rename(file: Path, text: str) -> None:
    """Put another file in the place of *file*, as is done to be atomic."""
    beside = file.with_name("beside")
    beside.write_text(text)
    beside.rename(file)


@asynccontextmanager
async def asking(proxy: Proxy) -> AsyncIterator[list[Answer]]:
    """Make one request after the other, as long as the context lasts."""
    answers: list[Answer] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            answers.append(await call(proxy.port, chat()))

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        yield answers
        stop.set()


@pytest.mark.parametrize("write", [rewrite, rename])
async def test_a_file_is_written_anew(
    tmp_path: Path, upstream: Upstream, write: Callable[[Path, str], None]
) -> None:
    """However a file is written anew, what stands in it is used within seconds, and nothing fails."""
    file = tmp_path / "token"
    file.write_text(FIRST + "\n")
    async with serving(to(upstream, of_file(file))) as proxy, asking(proxy) as answers:
        assert await presented(proxy, upstream) == FIRST
        write(file, SECOND + "\r\n")
        await becomes(proxy, upstream, SECOND)
        assert {got.status for got in answers} == {200}
        values = [seen.value(b"authorization") or b"" for seen in upstream.requests]
        assert set(values) == {f"Bearer {value}".encode() for value in (FIRST, SECOND)}
        assert values == sorted(values)  # never back to the first one
        line = await changed(proxy)
        assert line["source"] == f"file:{file}"
        silent(proxy)


@pytest.mark.usefixtures("quick")
async def test_many_times(tmp_path: Path, upstream: Upstream) -> None:
    """A file may change as often as it likes."""
    file = tmp_path / "token"
    file.write_text(FIRST)
    async with serving(to(upstream, of_file(file))) as proxy:
        for number in range(10):
            (rewrite, rename)[number % 2](file, f"sk-number-{number}")
            await becomes(proxy, upstream, f"sk-number-{number}")
        await changed(proxy, 10)


@pytest.mark.usefixtures("quick")
async def test_a_mounted_secret(tmp_path: Path, upstream: Upstream) -> None:
    """A file behind a symlink to a symlinked directory, which is what is swapped, is followed."""
    for name, value in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(value)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "token").symlink_to("..data/token")
    async with serving(to(upstream, of_file(tmp_path / "token"))) as proxy:
        assert await presented(proxy, upstream) == FIRST
        (tmp_path / "..tmp").symlink_to("two")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        shutil.rmtree(tmp_path / "one")
        await becomes(proxy, upstream, SECOND)
        assert told(proxy) == []


def remove(file: Path) -> None:
    file.unlink()


def become_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def become_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def become_binary(file: Path) -> None:
    beside = file.with_name("beside")
    beside.write_bytes(THIRD.encode() + b"\xff\xfe\0")
    beside.rename(file)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "removed": (remove, "cannot be read: no such file or directory"),
    "a directory": (become_directory, "cannot be read: is a directory"),
    "a pipe": (become_pipe, "cannot be read: is a named pipe, not a regular file"),
    "endless": (become_device, "cannot be read: is a device, not a regular file"),
    "huge": (lambda file: os.truncate(file, 2**30), "cannot be read: is larger than 1 MiB"),
    "empty": (lambda file: rename(file, ""), "it is empty"),
    "a line end": (lambda file: rename(file, "\n"), "it is empty"),
    "spaces": (lambda file: rename(file, "  \n"), "it is empty, or has a character"),
    "binary": (become_binary, "is not UTF-8 text"),
    "two lines": (lambda file: rename(file, f"{THIRD}\n{THIRD}\n"), "has a character"),
    "a zero": (lambda file: rename(file, f"{THIRD}\0{THIRD}"), "has a character"),
    "not ASCII": (lambda file: rename(file, f"{THIRD}é"), "has a character"),
    "smuggling": (lambda file: rename(file, f"x\r\nX-Admin: {THIRD}"), "has a character"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", SPOILT)
async def test_a_file_is_spoilt(tmp_path: Path, upstream: Upstream, how: str) -> None:
    """What is no credential is not taken: the last good one stays, and the log says why, not what."""
    spoil, why = SPOILT[how]
    file = tmp_path / "token"
    file.write_text(FIRST)
    async with serving(to(upstream, of_file(file))) as proxy:
        assert await presented(proxy, upstream) == FIRST
        spoil(file)
        line = await kept(proxy)
        assert why in line["reason"]
        assert (line["source"], line["level"]) == (f"file:{file}", "warning")
        assert line["upstream"] == "up"
        await asyncio.sleep(0.15)  # for several more looks at it
        # Two only if it was spoilt in the middle of a look, which the next one cannot know.
        assert len(told(proxy)) <= 2
        assert await presented(proxy, upstream) == FIRST
        if file.is_dir():
            file.rmdir()
        rename(file, SECOND)
        await becomes(proxy, upstream, SECOND)
        silent(proxy)


@pytest.mark.usefixtures("quick")
async def test_each_change_is_told(tmp_path: Path, upstream: Upstream) -> None:
    """Each time that a file turns bad, that is said."""
    file = tmp_path / "token"
    file.write_text(FIRST)
    async with serving(to(upstream, of_file(file))) as proxy:
        for count, text in enumerate(["a\nb", "a\nb\nc", "", "d\ne"], 1):
            rename(file, text)
            await kept(proxy, count)
        assert await presented(proxy, upstream) == FIRST


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("preset", [True, False])
async def test_a_variables_file(tmp_path: Path, upstream: Upstream, preset: bool) -> None:
    """A file that stands in for a variable is followed like any, whether a preset names it or we do."""
    file = tmp_path / "token"
    file.write_text(FIRST)
    if preset:
        toml = f'[upstreams.openai]\nbase_url = "{upstream.url}"\n[routes]\n"m" = "openai/m"'
        env = {"OPENAI_API_KEY_FILE": str(file)}
    else:
        toml, env = to(upstream, '"${UP_KEY}"'), {"UP_KEY_FILE": str(file)}
    async with serving(toml, env) as proxy:
        assert await presented(proxy, upstream) == FIRST
        rename(file, SECOND)
        await becomes(proxy, upstream, SECOND)
        rename(file, "")
        line = await kept(proxy)
        assert line["source"] == ("OPENAI_API_KEY" if preset else "UP_KEY")
        assert line["upstream"] == ("openai" if preset else "up")
        assert await presented(proxy, upstream) == SECOND
        silent(proxy)


@pytest.mark.usefixtures("quick")
async def test_files_among_text(tmp_path: Path, upstream: Upstream) -> None:
    """A credential may be put together from several files, a variable and text, in its own header."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    secret = f'{{ header = "x-corp", secret = "${{V}}-${{file:{one}}}-$$-${{file:{two}}}" }}'
    async with serving(to(upstream, secret), {"V": "v"}) as proxy:
        assert await presented(proxy, upstream, b"x-corp") == "v-a-$-b"
        for file, text, expected in ((two, "c", "v-a-$-c"), (one, "d", "v-d-$-c")):
            rename(file, text)
            async with asyncio.timeout(3):
                while await presented(proxy, upstream, b"x-corp") != expected:
                    await asyncio.sleep(0.02)


@pytest.mark.usefixtures("quick")
async def test_a_file_serves_all_its_forms(tmp_path: Path, upstream: Upstream) -> None:
    """A vendor's credential changes in every form in which it is presented."""
    file = tmp_path / "token"
    file.write_text(FIRST)
    toml = f'[upstreams.anthropic]\nbase_url = "{upstream.url}"\n[routes]\n"m" = "anthropic/m"'
    async with serving(toml, {"ANTHROPIC_API_KEY_FILE": str(file)}) as proxy:
        rename(file, SECOND)
        await becomes(proxy, upstream, SECOND)
        await call(proxy.port, chat(), "/v1/messages")
        assert upstream.requests[-1].value(b"x-api-key") == SECOND.encode()


async def test_a_file_that_changed_before_we_began(tmp_path: Path, upstream: Upstream) -> None:
    """A file that changes between the reading of the routes and the beginning is not missed."""
    file = tmp_path / "token"
    file.write_text(FIRST)
    routes = tmp_path / "routes.toml"
    routes.write_text(to(upstream, of_file(file)))
    snapshot = load(routes, {}, listen="127.0.0.1:0")
    rename(file, SECOND)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    try:
        async with server.serve(snapshot, log) as running:
            port = running.addresses["main"][0].port
            proxy = Proxy(port, tmp_path / "log", routes, running)
            await becomes(proxy, upstream, SECOND)
    finally:
        os.close(log)


# Commands


async def test_a_command(upstream: Upstream) -> None:
    """What a command prints is the credential, from the first request on; what it says besides is lost."""
    script = f"echo {FIRST}; echo {SECOND} >&2"
    async with process(to(upstream, command("sh", "-c", script, refresh="1s"))) as proxy:
        assert await presented(proxy, upstream) == FIRST
        line = await changed(proxy)
        assert (line["source"], line["reason"]) == ("the command sh", "first value")
        silent(proxy)


async def test_a_command_for_a_header(upstream: Upstream) -> None:
    """What a command prints may go into a header of its own."""
    credential = command("printf", FIRST, header="api-key")
    async with serving(to(upstream, credential)) as proxy:
        assert await presented(proxy, upstream, b"api-key") == FIRST
        assert upstream.requests[-1].value(b"authorization") is None


AWKWARD = [
    "a b",
    "a  b;echo c",
    "$(id)",
    "`id`",
    "a|b>c&d",
    "*",
    "~",
    "'a' \"b\"",
    "$HOME",
    "-n",
    "\\",
]


@pytest.mark.parametrize("word", AWKWARD)
async def test_no_shell(upstream: Upstream, word: str) -> None:
    """A command's words reach it as they are written: no shell comes between."""
    credential = command("printf", "%s", word.replace("$", "$$"), refresh="10s")
    async with serving(to(upstream, credential)) as proxy:
        assert await presented(proxy, upstream) == word


async def test_words_from_the_environment(upstream: Upstream) -> None:
    """References in a command's words are filled in as everywhere."""
    async with serving(to(upstream, command("printf", "${V}-${W:-w}-$$")), {"V": "v"}) as proxy:
        assert await presented(proxy, upstream) == "v-w-$"


@pytest.mark.usefixtures("quick")
async def test_refresh(tmp_path: Path, upstream: Upstream) -> None:
    """A command is run again and again, and a new value takes the place of the old one."""
    file = tmp_path / "token"
    file.write_text(FIRST)
    async with serving(to(upstream, command("cat", file))) as proxy, asking(proxy) as answers:
        for value in (SECOND, THIRD):
            rename(file, value)
            await becomes(proxy, upstream, value)
        assert {got.status for got in answers} == {200}
        await changed(proxy, 3)
        silent(proxy)


async def test_refresh_in_time(tmp_path: Path, upstream: Upstream) -> None:
    """A command is run as often as `refresh` says, no more and no less."""
    runs = tmp_path / "runs"
    script = f"date +%s.%N >> {runs}; echo {FIRST}"
    async with serving(to(upstream, command("sh", "-c", script, refresh="500ms"))):
        async with asyncio.timeout(6):
            while runs.read_text().count("\n") < 3:
                await asyncio.sleep(0.05)
    times = [float(line) for line in runs.read_text().split()]
    assert all(0.45 < later - sooner < 2.0 for sooner, later in pairwise(times))


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "fails": (("sh", "-c", f"echo {THIRD}; echo {THIRD} >&2; exit 3"), "failed with status 3"),
    "is killed": (("sh", "-c", f"echo {THIRD}; kill -9 $$$$"), "failed with status -9"),
    "is missing": (("no-such-program-here", THIRD), "cannot be run: no such file or directory"),
    "is no program": (("/", THIRD), "cannot be run: permission denied"),
    "prints nothing": (("true", THIRD), "it is empty"),
    "prints line ends": (("printf", "\\n\\n"), "it is empty"),
    "prints two lines": (("printf", f"{THIRD}\\n{THIRD}\\n"), "has a character"),
    "prints binary": (("printf", f"{THIRD}\\377\\376"), "did not print UTF-8"),
    "prints a zero": (("printf", f"{THIRD}\\000{THIRD}"), "has a character"),
    "prints a megabyte": ((sys.executable, "-ISc", "print('CANARY' * 170_000)"), ""),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", BAD)
async def test_a_command_is_no_good_at_first(upstream: Upstream, how: str) -> None:
    """Until a command has given a credential, what needs it gets 503, and the log says why, not what."""
    words, why = BAD[how]
    async with serving(to(upstream, command(*words))) as proxy:
        got = await call(proxy.port, chat())
        assert (got.status, got.code) == (503, "not_configured")
        assert int(got.value(b"retry-after") or b"") > 0
        assert "CANARY" not in got.body.decode()
        line = await kept(proxy)
        assert why in line["reason"]
        assert line["source"] == f"the command {Path(str(words[0])).name}"
        assert (await call(proxy.port, chat("free"))).status == 200
        silent(proxy)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", ["fails", "prints nothing", "prints binary", "prints a megabyte"])
async def test_a_command_is_no_good_later(tmp_path: Path, upstream: Upstream, how: str) -> None:
    """When a command that has worked is no good any more, the last good value stays in use."""
    words, why = BAD[how]
    program, good, bad = tmp_path / "program", tmp_path / "good", tmp_path / "bad"
    good.write_text(f"#!/bin/sh\necho {FIRST}\n")
    good.chmod(0o755)
    program.symlink_to(good)
    async with serving(to(upstream, command(program, *words[1:]))) as proxy:
        assert await presented(proxy, upstream) == FIRST
        bad.symlink_to(shutil.which(str(words[0])) or "")
        bad.rename(program)
        line = await kept(proxy)
        assert why in line["reason"]
        await kept(proxy, 2)
        assert await presented(proxy, upstream) == FIRST
        silent(proxy)


async def test_a_command_that_is_gone(tmp_path: Path, upstream: Upstream) -> None:
    """A program that is removed while we run leaves the last good value in use."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho {FIRST}\n")
    program.chmod(0o755)
    async with serving(to(upstream, command(program))) as proxy:
        assert await presented(proxy, upstream) == FIRST
        program.unlink()
        line = await kept(proxy)
        assert "the command program cannot be run: no such file" in line["reason"]
        assert await presented(proxy, upstream) == FIRST


@pytest.mark.usefixtures("quick")
async def test_a_command_heals(tmp_path: Path, upstream: Upstream) -> None:
    """A command that has failed is tried again soon, however long `refresh` is."""
    file = tmp_path / "token"
    async with serving(to(upstream, command("cat", file, refresh="1h"))) as proxy:
        assert (await call(proxy.port, chat())).status == 503
        file.write_text(FIRST)
        await heals(proxy)
        assert await presented(proxy, upstream) == FIRST


HANGS = {
    "alone": "echo $$$$ > {pid}; exec sleep 300",
    "with a child": "sleep 300 & echo $! > {pid}; wait",
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", HANGS)
async def test_a_command_hangs(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A command that takes too long is killed, with all that it has started, and tried again."""
    monkeypatch.setattr(live, "COMMAND_SECONDS", 0.3)
    pid, number = tmp_path / "pid", 0
    script = f"test -e {pid} && exec echo {FIRST}; {HANGS[how].format(pid=pid)}"
    try:
        async with serving(to(upstream, command("sh", "-c", script))) as proxy:
            line = await kept(proxy)
            assert "the command sh took over 0.3 seconds" in line["reason"]
            number = int(await appears(pid))
            await dies(number)
            await heals(proxy)
            assert await presented(proxy, upstream) == FIRST
    finally:
        if number and alive(number):
            os.kill(number, signal.SIGKILL)


@pytest.mark.usefixtures("quick")
async def test_a_command_without_end(upstream: Upstream) -> None:
    """A command that prints and prints is stopped long before its time is over."""
    script = "head -c 8000000 /dev/zero | tr '\\\\000' x; exec sleep 60"
    async with serving(to(upstream, command("sh", "-c", script, refresh="1h"))) as proxy:
        await kept(proxy, seconds=8)
        assert (await call(proxy.port, chat())).status == 503
        silent(proxy)


async def test_a_slow_first_run(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before we listen, a first run is waited for; but not for ever."""
    monkeypatch.setattr(server, "FIRST_VALUES_SECONDS", 0.3)
    go = tmp_path / "go"
    script = f"while ! test -e {go}; do sleep 0.05; done; echo {FIRST}"
    begun = time.monotonic()
    async with serving(to(upstream, command("sh", "-c", script))) as proxy:
        assert 0.3 <= time.monotonic() - begun < 3
        assert (await call(proxy.port, chat())).status == 503
        go.touch()
        await heals(proxy)


@pytest.mark.usefixtures("quick")
async def test_off_the_loop(tmp_path: Path, upstream: Upstream) -> None:
    """While a command runs, nothing waits for it."""
    running, done = tmp_path / "running", tmp_path / "done"
    slow = f"test -e {running} && {{ echo {SECOND}; exit; }}; test -e {tmp_path}/go || {{ echo {FIRST}; exit; }}"
    script = f"{slow}; echo > {running}; sleep 1; echo > {done}; echo {SECOND}"
    async with serving(to(upstream, command("sh", "-c", script))) as proxy:
        assert await presented(proxy, upstream) == FIRST
        (tmp_path / "go").touch()
        await appears(running)
        slowest, count = 0.0, 0
        while not done.exists():
            begun = time.monotonic()
            assert await presented(proxy, upstream) in (FIRST, SECOND)
            slowest = max(slowest, time.monotonic() - begun)
            count += 1
        assert slowest < 0.5
        assert count > 10
        await becomes(proxy, upstream, SECOND)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_the_upstream_refuses_it(tmp_path: Path, upstream: Upstream, path: str) -> None:
    """When an upstream refuses what a command has printed, it is run before its time."""
    file = tmp_path / "token"
    file.write_text(FIRST)

    async def step(conn: Conn, request: Received) -> None:
        good = request.value(b"authorization") == b"Bearer " + SECOND.encode()
        await answer(200 if good else 401)(conn, request)

    upstream.will(step)
    async with serving(to(upstream, command("cat", file, refresh="1h"))) as proxy:
        rename(file, SECOND)
        got = await call(proxy.port, chat(), path)
        assert got.status == 502
        await heals(proxy, path)
        await changed(proxy, 2)


@pytest.mark.usefixtures("quick")
async def test_an_upstream_that_refuses_everything(tmp_path: Path, upstream: Upstream) -> None:
    """However often an upstream refuses, a command is run only so often."""
    runs = tmp_path / "runs"
    upstream.will(answer(401))
    script = f"echo >> {runs}; echo {FIRST}"
    async with serving(to(upstream, command("sh", "-c", script, refresh="1h"))) as proxy:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.6:
            assert (await call(proxy.port, chat())).status == 502
        assert 2 <= runs.read_text().count("\n") <= 8
        await changed(proxy, 1)


@pytest.mark.usefixtures("quick")
async def test_each_command_has_its_own_time(tmp_path: Path, upstream: Upstream) -> None:
    """A command that hangs holds up no other one, and no file."""
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text(FIRST)
    other.write_text(FIRST)
    more = f"""
        "o" = {{ base_url = "{upstream.url}", credential = {command("cat", other)} }}
        "f" = {{ base_url = "{upstream.url}", credential = {of_file(file)} }}
        """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "FIRST_VALUES_SECONDS", 0.2)
        async with serving(to(upstream, command("sleep", 60), more)) as proxy:
            assert (await call(proxy.port, chat("m"))).status == 503
            rename(file, SECOND)
            rename(other, THIRD)
            async with asyncio.timeout(5):
                for model, value in (("f", SECOND), ("o", THIRD)):
                    while True:
                        assert (await call(proxy.port, chat(model))).status == 200
                        if (
                            upstream.requests[-1].value(b"authorization")
                            == f"Bearer {value}".encode()
                        ):
                            break
                        await asyncio.sleep(0.02)


# Leaving


@pytest.mark.parametrize("how", HANGS)
async def test_shutdown_while_a_command_runs(tmp_path: Path, upstream: Upstream, how: str) -> None:
    """A command that runs when we leave is killed, with all that it has started, and not waited for."""
    pid, first, number = tmp_path / "pid", tmp_path / "first", 0
    script = f"test -e {first} || {{ echo > {first}; exec echo {FIRST}; }}; {HANGS[how]}"
    script = script.replace("{pid}", str(pid))
    try:
        async with process(to(upstream, command("sh", "-c", script))) as proxy:
            assert proxy.process is not None
            number = int(await appears(pid))
            assert alive(number)
            proxy.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(4):
                await proxy.process.wait()
        await dies(number)
    finally:
        if number and alive(number):
            os.kill(number, signal.SIGKILL)


@asynccontextmanager
async def beginning(directory: Path, toml: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a proxy that may not get as far as to be ready."""
    (directory / "routes.toml").write_text(toml)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", "serve"),
        *("-c", str(directory / "routes.toml"), "--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())},
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_before_the_beginning(
    tmp_path: Path, upstream: Upstream, number: signal.Signals
) -> None:
    """Told to stop while a first run is waited for, it leaves as in order as ever, and the command too."""
    pid = tmp_path / "pid"
    toml = to(upstream, command("sh", "-c", f"echo $$$$ > {pid}; exec sleep 300"))
    running = 0
    try:
        async with beginning(tmp_path, toml) as child:
            running = int(await appears(pid, 10))
            child.send_signal(number)
            async with asyncio.timeout(5):
                _, errors = await child.communicate()
        assert errors == b""
        assert child.returncode in (0, -number, 128 + number)
        await dies(running)
    finally:
        if running and alive(running):
            os.kill(running, signal.SIGKILL)


def children() -> set[int]:
    """Return the processes that this one has started and that run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= set(map(int, (task / "children").read_text().split()))
    return {pid for pid in found if alive(pid)}


def test_closed_in_any_moment() -> None:
    """Whenever it is told to end, no command and no thread stays behind."""
    before, threads = children(), threading.active_count()
    started = set()
    for turn in range(40):
        secret = LiveSecret("", "the command sleep")
        one = live.Live(secret, command=("sleep", "300"), refresh=1.0)
        refresher = live.Refresher([one] * 2, lambda *_: None)
        refresher.start()
        time.sleep(turn * 0.0002)
        refresher.close()
        started |= children() - before
    deadline = time.monotonic() + 3
    while (children() - before or threading.active_count() > threads) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    left = children() - before
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == set()
    assert threading.active_count() <= threads


# Looking without touching


@pytest.fixture
def line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """A command line whose routes file stands in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRUNKLINE_CONFIG", raising=False)

    def run(toml: str, *verb: str, env: Mapping[str, str] | None = None, status: int = 0) -> str:
        (tmp_path / "routes.toml").write_text(toml)
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        assert main(list(verb)) == status
        return "".join(capfd.readouterr())

    yield run


async def test_nothing_is_run_to_look(
    tmp_path: Path, upstream: Upstream, line: Callable[..., str]
) -> None:
    """`check`, `explain` and `routes` run no command, and show nothing of its words."""
    script = f"echo > {tmp_path}/ran; echo {FIRST}"
    toml = to(upstream, command("/bin/sh", "-c", script, SECOND))
    for verb in (["check"], ["explain", "m"], ["routes"]):
        written = line(toml, *verb)
        assert "CANARY" not in written
        assert str(tmp_path / "ran") not in written
        if verb[0] == "explain":
            assert "Authorization: Bearer …  (from the command sh)" in written
    assert not (tmp_path / "ran").exists()


async def test_a_file_is_explained(
    tmp_path: Path, upstream: Upstream, line: Callable[..., str]
) -> None:
    """Of a credential in a file, `explain` says which file, and its last four characters."""
    file = tmp_path / "token"
    file.write_text("sk-CANARY-0123456789")
    written = line(to(upstream, of_file(file)), "explain", "m")
    assert f"Authorization: Bearer …6789  (from file:{file})" in written
    assert "CANARY" not in written


@pytest.mark.parametrize(
    ("credential", "problem"),
    [
        ("{ command = [] }", "command"),
        ('{ command = [""] }', "must begin with the name of a program"),
        ('{ command = ["a\\u0000b"] }', "must begin with the name of a program"),
        ('{ command = "gcloud auth print-access-token" }', "must be a list"),
        ('{ command = ["x"], secret = "y" }', "needs either a `secret` or a `command`"),
        ('{ refresh = "1s" }', "needs either a `secret` or a `command`"),
        ('{ command = ["x"], refresh = "soon" }', "must be a duration"),
        ('{ command = ["x"], header = "a b" }', "is not the name of a header"),
        ('{ command = ["x"], header = "Host" }', "is not the name of a header"),
        ("{ command = [5] }", "must be text"),
    ],
)
async def test_problems(upstream: Upstream, credential: str, problem: str, line: Any) -> None:
    """What is wrong with a credential that is to be run is told by `check`."""
    written = line(to(upstream, credential), "check", status=1)
    assert "upstreams.up.credential" in written
    assert problem in written
