"""The control socket: found by the routes file alone, for our own user alone, whatever comes in."""

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.process import control
from proxy.process.control import NoAnswer, Nobody, address_of, answering

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")


class Told(list[tuple[str, Any]]):
    """What the log would hold."""

    def __call__(self, event: str, **facts: Any) -> None:
        self.append((event, facts))


async def answer(name: str, value: Any) -> Any:
    if name == "broken":
        raise ValueError("no such thing")
    if name == "slow":
        await asyncio.sleep(60)
    return {"name": name, "value": value}


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Path]:
    """A file that is served as long as the test runs."""
    told = Told()
    async with answering(tmp_path / "routes.toml", answer, told):
        yield tmp_path / "routes.toml"
    assert told == []


async def ask(file: Path, name: str, value: Any = None, seconds: float = 5.0) -> Any:
    return await asyncio.to_thread(control.ask, address_of(file), name, value, seconds=seconds)


async def connect(file: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address_of(file) or "")
    return await asyncio.open_unix_connection(sock=sock)


async def raw(file: Path, data: bytes) -> bytes:
    """Return all that is said to who says *data*."""
    reader, writer = await connect(file)
    writer.write(data)
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


async def test_one_line_in_one_line_out(file: Path) -> None:
    """A question has a name and a value, and its answer a value, or why there is none."""
    assert await ask(file, "what", [1, "é"]) == {"name": "what", "value": [1, "é"]}
    assert await raw(file, b'{"ask":"x"}\n') == b'{"value":{"name":"x","value":null}}\n'
    with pytest.raises(NoAnswer, match="no such thing"):
        await ask(file, "broken")


@LINUX
def test_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is named by the user and the file's absolute path, links as they are written."""
    monkeypatch.chdir(tmp_path)
    digest = sha256(os.fsencode(tmp_path / "routes.toml")).hexdigest()
    wanted = f"\0trunkline-{os.geteuid()}-{digest}"
    assert address_of(Path("routes.toml")) == address_of(Path("x/../routes.toml")) == wanted
    (tmp_path / "link.toml").symlink_to("routes.toml")
    assert address_of(Path("link.toml")) != wanted
    assert address_of(Path(os.fsdecode(b"\xff.toml"))) not in (None, wanted)


async def test_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sockets have no names without files, it is a file of the user's own directory, if there is one."""
    monkeypatch.setattr(sys, "platform", "darwin")
    file = tmp_path / "r.toml"
    assert address_of(file, {}) is None
    with pytest.raises(Nobody):
        control.ask(None, "x", seconds=1)
    runtime = Path("/tmp") / f"trunkline-test-{os.getpid()}"  # a short path
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    told = Told()
    try:
        async with answering(file, answer, told):
            assert (await ask(file, "first"))["name"] == "first"
            (path,) = runtime.iterdir()
            assert str(path) == address_of(file)
            assert path.stat().st_mode & 0o777 == 0o600
            async with answering(file, answer, told):  # the later one is asked
                assert (await ask(file, "second"))["name"] == "second"
        with pytest.raises(Nobody):
            await ask(file, "gone")
    finally:
        for path in runtime.iterdir():
            path.unlink()
        runtime.rmdir()
    assert told == []
    async with answering(file, answer, told):
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        with pytest.raises(Nobody):
            await ask(file, "none")
    assert [event for event, _ in told] == ["control_unavailable"]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"1\n",
        b'"ask"\n',
        b"null\n",
        b'{"ask"\n',
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 100_000 + b"\n",
    ],
)
async def test_no_question(file: Path, line: bytes) -> None:
    """What is no question is answered as that, and the next one is answered as ever."""
    assert await raw(file, line) == b'{"failed":"that is no question"}\n'
    assert (await ask(file, "next"))["name"] == "next"


async def test_strange_names(file: Path) -> None:
    """A name may be anything; it is for who answers to know it."""
    for name in (None, 1, ["x"], {"a": 1}):
        told = orjson.loads(await raw(file, orjson.dumps({"ask": name}) + b"\n"))
        assert told == {"value": {"name": name, "value": None}}


async def test_too_long(file: Path) -> None:
    """A line without end is hung up on."""
    assert await raw(file, b'"' + b"x" * (control.LINE_BYTES + 2**17)) == b""
    assert (await ask(file, "next"))["name"] == "next"


async def test_who_says_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing is not waited for for ever, and keeps nobody else waiting."""
    monkeypatch.setattr(control, "SECONDS", 0.2)
    silent = asyncio.create_task(raw(file, b'{"ask"'))
    assert (await ask(file, "next"))["name"] == "next"
    assert await silent == b""


async def test_who_leaves(file: Path) -> None:
    """Who leaves before its answer breaks nothing."""
    for data in (b"", b'{"ask":"slow"}\n'):
        _, writer = await connect(file)
        writer.write(data)
        await writer.drain()
        writer.close()
    assert (await ask(file, "next"))["name"] == "next"


async def test_no_answer(file: Path) -> None:
    """A process that does not answer in time is one that is there."""
    with pytest.raises(TimeoutError):
        await ask(file, "slow", seconds=0.2)


async def test_nobody(tmp_path: Path) -> None:
    """Where nobody serves the file, nobody is there."""
    with pytest.raises(Nobody):
        await ask(tmp_path / "other.toml", "x")


@LINUX
async def test_another_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the address but is not our user is nobody; who asks and is not our user hears nothing.

    So is who belongs to another container of the same network, whose processes have no number here.
    """
    for other in ((1, os.geteuid() + 1, 0), (0, os.geteuid(), 0)):
        with monkeypatch.context() as patch:
            patch.setattr(struct, "unpack", lambda *_, other=other: other)
            assert await raw(file, b'{"ask":"x"}\n') == b""
            with pytest.raises(Nobody):
                await ask(file, "x")
    assert (await ask(file, "x"))["name"] == "x"


@LINUX
async def test_the_later_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that serve one file the later one is asked, and the earlier one again after it."""
    monkeypatch.setattr(control, "AGAIN_SECONDS", 0.05)

    async def other(name: str, value: Any) -> str:
        return "later"

    told = Told()
    async with answering(file, other, told):
        assert await ask(file, "who") == "later"
        await asyncio.sleep(0.2)
        assert await ask(file, "who") == "later"
    async with asyncio.timeout(5):
        while True:
            try:
                assert (await ask(file, "who"))["name"] == "who"
                break
            except Nobody:
                await asyncio.sleep(0.02)
    assert told == []


@LINUX
async def test_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that somebody has who does not give way is told, and all else goes on; it is ours as
    soon as they are gone.
    """
    monkeypatch.setattr(control, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(control, "GIVEN_WAY_SECONDS", 0.1)
    monkeypatch.setattr(control, "SECONDS", 0.1)
    file = tmp_path / "routes.toml"
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(address_of(file) or "")
        squatter.listen()
        told = Told()
        async with answering(file, answer, told):
            assert [event for event, _ in told] == ["control_unavailable"]
            with pytest.raises(OSError):
                await ask(file, "who", seconds=0.1)
            squatter.close()
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert (await ask(file, "who"))["name"] == "who"
                        break
                    except Nobody:
                        await asyncio.sleep(0.02)


@LINUX
def test_no_trace(tmp_path: Path) -> None:
    """It ends with its process, however that ends: nothing is left that would have to be cleared away."""
    file = tmp_path / "routes.toml"
    code = (
        "import asyncio, pathlib, sys\n"
        "from proxy.process.control import answering\n"
        "async def main():\n"
        "    async with answering(pathlib.Path(sys.argv[1]), None, print):\n"
        "        print('there', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"there\n"
    with pytest.raises(NoAnswer):  # it has nothing that answers
        control.ask(address_of(file), "x", seconds=5)
    child.kill()
    child.wait()
    child.stdout.close()
    with pytest.raises(Nobody):
        control.ask(address_of(file), "x", seconds=5)
    assert list(tmp_path.iterdir()) == []
