"""Listening: TCP of either family, a unix socket that is ours alone, and what cannot be had."""

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from grp import getgrgid
from pathlib import Path

import pytest

from proxy.client.edge import Request, Server
from proxy.client.listening import CannotListen, Listener, listen
from proxy.config import ConfigError, Snapshot, load
from proxy.errors import ProxyError
from proxy.surfaces import Address
from proxy.wire.descriptors import Descriptors
from tests.harness.client import Client, chat, request
from tests.harness.proxy import process, serving

SANDBOX = '[routes]\n"*" = { upstream = "sandbox" }\n'
HEALTH = request(path="/health", method="GET")
HELLO = b"HTTP/1.1 204 Hello\r\n\r\n"


class Greeting:
    """Answers whatever it is asked with the same word."""

    leaving = False
    onward = None
    keepalive_idle = 60.0

    async def handle(self, request: Request) -> bool:
        assert request.transport is not None
        request.transport.write(HELLO)
        return True

    def malformed(self, request: Request, error: ProxyError) -> None:
        raise error

    refuse = malformed


def greeting() -> Server:
    return Server(Greeting(), Descriptors(print))


@asynccontextmanager
async def listening(address: Address) -> AsyncIterator[Listener]:
    """Listen on *address* until the end of the context."""
    listener = await listen(greeting(), address)
    try:
        yield listener
    finally:
        listener.close()
        await listener.server.shutdown(0.1)


async def ask(path: Path, sent: bytes = HEALTH) -> bytes:
    """Ask the server at the unix socket *path* and return the first line of its answer."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(sent)
        async with asyncio.timeout(5):
            return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
    finally:
        writer.transport.abort()


def open_files() -> int:
    """Return how many files are open, but for the one that libuv keeps for when there are too many."""
    files = [*Path("/proc/self/fd").iterdir()]
    return sum(file.is_symlink() and file.readlink() != Path("/dev/null") for file in files)


async def back_to(before: int) -> None:
    """Wait until no more than *before* files are open; the loop closes what it listened on soon."""
    async with asyncio.timeout(5):
        while open_files() > before:
            await asyncio.sleep(0.01)


# TCP


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_tcp(host: str) -> None:
    """Port 0 is any free port, and the address says which it has become; no other thing of it changes."""
    async with listening(Address(host, 0)) as listener:
        assert (listener.address.host, listener.address.path) == (host, "")
        assert listener.address.port > 0
        async with await Client.connect(listener.address.port, host) as client:
            await client.send(HEALTH)
            assert (await client.answer()).raw == HELLO


async def test_six_is_not_four() -> None:
    """A port of IPv6 leaves the same one of IPv4 to others."""
    async with (
        listening(Address("::", 0)) as six,
        listening(Address("0.0.0.0", six.address.port)) as four,
    ):
        assert four.address.port == six.address.port


@pytest.mark.parametrize("path", ["", "s"], ids=["tcp", "unix"])
async def test_closed(path: str, tmp_path: Path) -> None:
    """Who closes takes nobody new; connections that are open stay so, and the address is free again."""
    address = Address(path=str(tmp_path / path)) if path else Address("127.0.0.1", 0)
    before = open_files()
    async with listening(address) as listener:
        if path:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.address.port)
        for _ in range(2):
            writer.write(HEALTH)
            assert await reader.readexactly(len(HELLO)) == HELLO
            listener.close()  # the second time, it does nothing
        with pytest.raises(OSError, match=r"refused|No such file"):
            if path:
                await asyncio.open_unix_connection(address.path)
            else:
                await asyncio.open_connection("127.0.0.1", listener.address.port)
        async with listening(listener.address):
            pass
        writer.transport.abort()
    await back_to(before)


async def test_port_in_use() -> None:
    """A port that is taken is told, and nothing stays open of the attempt."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        before = open_files()
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}: .*in use"):
            async with serving(SANDBOX, listen=f"127.0.0.1:{port}"):
                pass
        await back_to(before)


async def test_what_was_opened_is_closed(tmp_path: Path) -> None:
    """Where one of several addresses cannot be had, none is kept."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        addresses = [f"unix:{tmp_path}/s", "127.0.0.1:0", f"127.0.0.1:{sock.getsockname()[1]}"]
        before = open_files()
        with pytest.raises(CannotListen, match="in use"):
            async with serving(f"[server]\nlisten = {addresses}\n{SANDBOX}", listen=None):
                pass
        await back_to(before)
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("unix:/nonexistent/s", "no such file"),
        ("192.0.2.1:8080", "cannot assign"),
        ("unix:/" + "x" * 200, "too long"),
        ("a..b:8080", "not a host name"),
    ],
)
async def test_cannot_listen(listen: str, why: str) -> None:
    """An address that cannot be had is told in one line that names it, and says why."""
    toml = f'[keys]\na = "sk-team-0123456789"\n{SANDBOX}'
    with pytest.raises(CannotListen) as caught:
        async with serving(toml, listen=listen):
            pass
    assert str(caught.value).startswith(f"cannot listen on {listen}: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_nothing_is_left_of_what_cannot_be(tmp_path: Path) -> None:
    """A unix socket whose path is too long leaves no lock where it would have been."""
    with pytest.raises(CannotListen):
        async with serving(SANDBOX, listen=f"unix:{tmp_path}/{'x' * 120}"):
            pass
    assert not list(tmp_path.iterdir())


# Unix sockets


async def test_unix_socket(tmp_path: Path) -> None:
    """A unix socket is for its owner alone, and is gone when the server is."""
    path = tmp_path / "s"
    async with serving(SANDBOX, listen=f"unix:{path}"):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await ask(path)).startswith(b"HTTP/1.1 200 ")
        assert (await ask(path, request(chat()))).startswith(b"HTTP/1.1 200 ")
    assert not path.exists()


async def test_unix_socket_in_use(tmp_path: Path) -> None:
    """The socket of a server that lives is not taken from it."""
    path = tmp_path / "s"
    async with serving(SANDBOX, listen=f"unix:{path}"):
        with pytest.raises(CannotListen, match="in use"):
            async with serving(SANDBOX, listen=f"unix:{path}"):
                pass
        assert (await ask(path)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("waiting", [0, 1])
async def test_somebody_else(waiting: int, tmp_path: Path) -> None:
    """Nor is the socket of another program that lives, which knows no lock: not even if it is so busy
    that it accepts nobody.
    """
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as caller:
        other.bind(str(path))
        other.listen(0)
        caller.setblocking(False)
        if waiting:
            caller.connect(str(path))
        with pytest.raises(CannotListen, match="in use"):
            await listen(greeting(), Address(path=str(path)))
        assert path.is_socket()


async def test_unix_socket_left_behind(tmp_path: Path) -> None:
    """The socket of a server that died is replaced."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    async with serving(SANDBOX, listen=f"unix:{path}"):
        assert (await ask(path)).startswith(b"HTTP/1.1 200 ")


async def test_two_at_once(tmp_path: Path) -> None:
    """Of two that start at the same moment, one has the socket."""
    path = tmp_path / "s"
    with (tmp_path / "s.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CannotListen, match="in use"):
            await listen(greeting(), Address(path=str(path)))
    async with listening(Address(path=str(path))):
        assert path.is_socket()


async def test_file_in_the_way(tmp_path: Path) -> None:
    """What is not a socket is never removed."""
    path = tmp_path / "s"
    path.write_text("precious")
    before = open_files()
    with pytest.raises(CannotListen, match="exists"):
        async with serving(SANDBOX, listen=f"unix:{path}"):
            pass
    assert path.read_text() == "precious"
    await back_to(before)


@pytest.mark.parametrize(
    ("keys", "mode", "gid"),
    [
        ('mode = "0660"', 0o660, None),
        ('mode = "606"', 0o606, None),
        ('group = "65534"', 0o600, 65534),
        (f'mode = "0770"\ngroup = "{getgrgid(0).gr_name}"', 0o770, 0),
    ],
)
async def test_shared_unix_socket(tmp_path: Path, keys: str, mode: int, gid: int | None) -> None:
    """A unix socket is for those whom `mode` and `group` name, from its first moment on."""
    if gid is not None and os.geteuid() != 0:
        pytest.skip("only root may give a socket to any group")
    path = tmp_path / "s"
    toml = f'[server]\nlisten = "unix:{path}"\n{keys}\n{SANDBOX}'
    async with serving(toml, listen=None):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == mode
        assert found.st_gid == (tmp_path.stat().st_gid if gid is None else gid)
    assert not path.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_reload_shares(tmp_path: Path, workers: str) -> None:
    """A reload that changes `mode` changes who may connect; one that does not leaves what somebody has set."""
    path = tmp_path / "s"

    def toml(keys: str) -> str:
        return f'[server]\nlisten = "unix:{path}"\n{keys}\n{SANDBOX}'

    async with process(toml(""), listen=None, further=("--workers", workers)) as proxy:
        path.chmod(0o666)
        await proxy.reload(toml("docs = false"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        for mode in (0o660, 0o600):
            assert (await proxy.reload(toml(f'mode = "{mode:o}"')))["event"] == "reloaded"
            assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    "keys",
    [
        'mode = "0400"',
        'mode = "rw"',
        'mode = "01777"',
        'mode = ""',
        'mode = "-600"',
        'group = "no such group"',
        'group = ""',
        'group = "-1"',
    ],
)
def test_bad_shares(tmp_path: Path, keys: str) -> None:
    """What is no mode, and no group, is told by its key."""
    with pytest.raises(ConfigError, match=f"server.{keys.split()[0]}: "):
        load_text(tmp_path, f'[server]\nlisten = "unix:{tmp_path}/s"\n{keys}\n{SANDBOX}')


def test_shares_of_no_unix_socket(tmp_path: Path) -> None:
    """Where there is no unix socket, nothing says who may connect to it."""
    with pytest.raises(ConfigError, match=r"server\.mode: is for a unix socket"):
        load_text(tmp_path, f'[server]\nmode = "0660"\n{SANDBOX}')


def load_text(directory: Path, toml: str) -> Snapshot:
    file = directory / "routes.toml"
    file.write_text(toml)
    return load(file, {})
