"""What the kernel knows of a peer: what it has not taken, and whether it has left; ends of a queue."""

import asyncio
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import orjson
import pytest

from proxy.client.edge import Handler
from proxy.config import load
from proxy.wire.peers import Stall, Watch, has_left, linger, outstanding, watch
from tests.harness.client import Client, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import Upstream, answer
from tests.upstream.test_transport import blackhole

MUCH = b"x" * 20_000_000


@dataclass
class Peer:
    """A connected pair: *transport* is ours, *sock* the other end, which reads when it is told to."""

    transport: asyncio.Transport
    sock: socket.socket


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets of *kind*."""
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


@pytest.fixture(params=["tcp", "unix"])
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    ours, theirs = pair(request.param)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        yield Peer(transport, theirs)
        transport.abort()
        await asyncio.sleep(0.01)


async def take(peer: Peer, size: int) -> None:
    """Have the other end read *size* bytes or more."""
    loop = asyncio.get_running_loop()
    while size > 0:
        size -= len(await loop.sock_recv(peer.sock, 2**20))


async def until(true: Callable[[], bool]) -> None:
    """Wait for what must become *true*."""
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


# What is not taken


async def test_outstanding(peer: Peer) -> None:
    """What the peer has not taken is counted, in our buffer and in the kernel's, and shrinks."""
    assert outstanding(peer.transport) == 0
    peer.transport.write(MUCH)
    await asyncio.sleep(0.05)
    before = outstanding(peer.transport)
    assert before > peer.transport.get_write_buffer_size() > 0
    await take(peer, 8_000_000)
    await until(lambda: outstanding(peer.transport) < before)


class Socketless(asyncio.Transport):
    """A transport above something that is no socket."""

    def get_write_buffer_size(self) -> int:
        return 7


def test_without_a_socket() -> None:
    """Of what is no socket only our own buffer is known, and nothing is asked of a kernel."""
    assert outstanding(Socketless()) == 7
    assert not has_left(Socketless())
    linger(Socketless())


async def test_stall(peer: Peer) -> None:
    """A peer that takes a byte now and then is not late; one that takes none is, once."""
    peer.transport.write(MUCH)
    late = asyncio.Event()
    stall = Stall(asyncio.get_running_loop(), peer.transport, 0.3, late.set)
    for _ in range(8):
        await asyncio.sleep(0.1)
        await take(peer, 400_000)
    assert not late.is_set()
    async with asyncio.timeout(5):
        await late.wait()
    stall.stop()


async def test_stall_that_is_stopped(peer: Peer) -> None:
    """Who is watched no longer is never late."""
    peer.transport.write(MUCH)
    late = asyncio.Event()
    Stall(asyncio.get_running_loop(), peer.transport, 0.05, late.set).stop()
    await asyncio.sleep(0.2)
    assert not late.is_set()


# Ends


@pytest.mark.parametrize("unread", [b"", b"x" * 10_000], ids=["silent", "unread"])
@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_has_left(peer: Peer, how: str, unread: bytes) -> None:
    """A peer that is gone, or says no more, is known to be, though nothing of it is read."""
    peer.transport.pause_reading()
    peer.sock.send(unread)
    assert not has_left(peer.transport)
    if how == "half":
        peer.sock.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
    await until(lambda: has_left(peer.transport))


async def test_still_there(peer: Peer) -> None:
    """A peer that takes nothing, or to which we say no more, has not left."""
    peer.transport.pause_reading()
    peer.transport.write(MUCH)
    await asyncio.sleep(0.05)
    assert not has_left(peer.transport)
    await take(peer, len(MUCH))
    peer.transport.write_eof()
    assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""
    assert not has_left(peer.transport)


@contextmanager
def crowd(size: int) -> Iterator[None]:
    """Have *size* descriptors taken."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if hard < size + 200:
        pytest.skip("so many descriptors may not be open here")
    setrlimit(RLIMIT_NOFILE, (max(soft, size + 200), hard))
    with ExitStack() as stack:
        stack.callback(setrlimit, RLIMIT_NOFILE, (soft, hard))
        while True:
            fd = os.dup(0)
            stack.callback(os.close, fd)
            if fd >= size:
                break
        yield


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_large_descriptor(kind: str) -> None:
    """A descriptor may have any number, unlike with `select`."""
    with crowd(1024):
        ours, theirs = pair(kind)
        assert ours.fileno() > 1024
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.pause_reading()
        with theirs:
            assert not has_left(transport)
        await until(lambda: has_left(transport))
        transport.abort()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("peer", ["tcp"], indirect=True)
async def test_linger(peer: Peer) -> None:
    """A connection that lingers is reset, whatever stands in its queue: the peer knows at once."""
    peer.transport.write(MUCH)
    await asyncio.sleep(0.05)
    linger(peer.transport)
    peer.transport.abort()
    await asyncio.sleep(0.05)
    state = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    assert state == 7  # TCP_CLOSE: by a reset, since nothing was read


# Through the proxy


def deaf(port: int) -> str:
    """Return a routes file whose upstream, at *port*, accepts no connection."""
    return f"""
[upstreams.up]
base_url = "http://127.0.0.1:{port}/v1"
credential = "sk-upstream-secret"
timeout = {{ connect = "30s" }}
[routes]
"m" = "up/m"
[unrouted]
"*" = "up"
"""


async def caller(proxy: Proxy, path: Path | None) -> Client:
    """Connect to the unix socket at *path*, or to the port of *proxy*."""
    if path is None:
        return await Client.connect(proxy.port)
    return Client(*await asyncio.open_unix_connection(path))


@pytest.mark.parametrize("half", [False, True], ids=["close", "half"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_gone_while_held_back(kind: str, half: bool, tmp_path: Path) -> None:
    """A client that sends more than is taken while its upstream is connected to is seen to leave."""
    path = tmp_path / "s" if kind == "unix" else None
    listen = f"unix:{path}" if path else "127.0.0.1:0"
    with blackhole() as port:
        async with serving(deaf(port), listen=listen) as proxy:
            async with await caller(proxy, path) as client:
                client.writer.write(request(MUCH[:2_000_000], "/v1/files"))
                assert proxy.running is not None
                (server,) = proxy.running._servers()
                await until(lambda: any(one._reading_paused for one in server.connections))
                (handler,) = server.connections
                assert isinstance(handler, Handler)
                if half:
                    half_close(client)
                    await until(lambda: handler.transport is None)
            record = await proxy.record()
            assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
            (attempt,) = record["attempts"]
            assert (attempt["phase"], attempt["maybe_billed"]) == ("unsent", False)


def half_close(client: Client) -> None:
    """Say that no more comes, though the rest of what was written has not gone out."""
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as same:
        same.shutdown(socket.SHUT_WR)


# Whether a peer is there

IDLE, INTERVAL = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL
BUILT_IN = {"keep": 1, "idle": 60, "interval": 10, "probes": 4, "unacknowledged": 100_000}


def options(transport: asyncio.BaseTransport | None) -> dict[str, int]:
    """Return what the kernel does to find out whether the peer of *transport* is there."""
    assert transport is not None
    sock = transport.get_extra_info("socket")
    tcp = socket.IPPROTO_TCP
    return {
        "keep": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "idle": sock.getsockopt(tcp, IDLE),
        "interval": sock.getsockopt(tcp, INTERVAL),
        "probes": sock.getsockopt(tcp, socket.TCP_KEEPCNT),
        "unacknowledged": sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
    }


@pytest.mark.parametrize(
    ("seconds", "write", "expected"),
    [
        (100.0, 60.0, (60, 10, 100_000)),
        (100.0, 100.5, (60, 10, 100_500)),
        (100.0, 600.0, (60, 10, 600_000)),
        (100.0, None, (60, 10, 0)),
        (5.0, 0.25, (3, 1, 5_000)),
        (36000.0, 366 * 86400.0, (21600, 3600, 2**31 - 1)),
    ],
)
async def test_watch(seconds: float, write: float | None, expected: tuple[int, ...]) -> None:
    """A peer is asked after six tenths of the time, and then each tenth; what it does not acknowledge may take
    as long as it may take to take it, for ever where that may.
    """
    ours, theirs = pair("tcp")
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        watch(transport, Watch(seconds, write))
        found = options(transport)
        transport.abort()
        await asyncio.sleep(0)
        watch(transport, Watch(seconds, write))  # who has left is watched no more
    assert (found["idle"], found["interval"], found["unacknowledged"]) == expected
    assert (found["keep"], found["probes"]) == (1, 4)


async def test_watch_of_what_is_no_tcp() -> None:
    """A unix socket, whose peer the kernel knows anyway, is left alone."""
    ours, theirs = pair("unix")
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        watch(transport, Watch(5.0, 5.0))
        theirs.send(b"x")
        assert not has_left(transport)
        transport.abort()


WRITES = """
[server]
{server}
[upstreams.a]
base_url = "{a}"
[upstreams.b]
base_url = "{b}"
timeout = {{ write = "{write}" }}
[routes]
a = {{ upstream = "a" }}
b = {{ upstream = "b" }}
long = {{ upstream = "b", timeout = {{ write = "150s" }} }}
"""


@pytest.mark.parametrize(
    ("server", "write", "clients", "a", "b"),
    [
        ("", "60s", 150_000, 100_000, 150_000),
        ("", "300s", 300_000, 100_000, 300_000),
        ("", "none", 0, 100_000, 0),
        ('peer_timeout = "200s"', "60s", 200_000, 200_000, 200_000),
    ],
)
async def test_both_sides_are_watched(
    server: str, write: str, clients: int, a: int, b: int
) -> None:
    """Clients and upstreams are watched; how long they may not acknowledge is as long as the longest `write`
    that may hold on their connection.
    """
    async with Upstream() as up_a, Upstream() as up_b:
        toml = WRITES.format(server=server, a=up_a.url, b=up_b.url, write=write)
        async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
            for model in "ab":
                await client.send(request(chat(model)))
                assert (await client.answer()).status == 200
            running = proxy.running
            assert running is not None
            [handler] = [one for server in running._servers() for one in server.handlers]
            tenth = 20 if server else 10
            wanted = {**BUILT_IN, "idle": 6 * tenth, "interval": tenth}
            assert options(handler.transport) == {**wanted, "unacknowledged": clients}
            upstreams = {one.upstream: options(one.transport) for one in running._transport._open}
            assert upstreams == {
                "a": {**wanted, "unacknowledged": a},
                "b": {**wanted, "unacknowledged": b},
            }


async def test_a_reload_watches_anew(upstream: Upstream) -> None:
    """What another file says holds on connections that are open, clients' as upstreams'; one that says `none`
    leaves them alone.
    """

    def toml(line: str) -> str:
        return f'[server]\n{line}\n[upstreams.a]\nbase_url = "{upstream.url}"\n[routes]\na = "a/m"'

    async with serving(toml("")) as proxy, await Client.connect(proxy.port) as client:
        running = proxy.running
        assert running is not None
        await client.send(request(chat("a")))
        assert (await client.answer()).status == 200
        [handler] = [one for server in running._servers() for one in server.handlers]
        [connection] = running._transport._open
        for line, idle in (("", 60), ('peer_timeout = "10s"', 6), ('peer_timeout = "none"', 6)):
            proxy.write(toml(line))
            await running.apply(load(proxy.file, {}, listen="127.0.0.1:0"))
            assert options(handler.transport)["idle"] == idle
            assert options(connection.transport)["idle"] == idle


async def test_workers_watch_too(upstream: Upstream) -> None:
    """What a worker is handed is watched like what a process accepts itself, with TLS as without."""
    if not shutil.which("ss"):
        pytest.skip("`ss` is not installed")
    toml = f'[server]\nworkers = 2\n[upstreams.a]\nbase_url = "{upstream.url}"\n[routes]\na = "a/m"'
    async with process(toml) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat("a")))
        assert (await client.answer()).status == 200
        said = subprocess.run(
            ["ss", "-Htno", "state", "established", f"( sport = :{proxy.port} )"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert re.search(r"timer:\(keepalive,(5[0-9]|60)", said), said


def apart(*arguments: str) -> str:
    """Run `tests.harness.vanish` in a network of its own, where nobody else is cut off; return what it says."""
    command = ["unshare", "-rn", sys.executable, "-m", "tests.harness.vanish", *arguments]
    try:
        able = subprocess.run(
            ["unshare", "-rn", "sh", "-c", "ip link set lo up && iptables -L -n"],
            capture_output=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("`unshare` is not installed")
    if able.returncode:
        pytest.skip("no network of one's own can be made here, or `iptables` is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout


@pytest.mark.long
@pytest.mark.timeout(250)
@pytest.mark.parametrize(("seconds", "least", "most"), [("5s", 3, 9), ("100s", 60, 119)])
def test_who_vanishes_is_known(seconds: str, least: float, most: float) -> None:
    """A host that is cut off in the middle of a stream, and says no more, is known soon: an upstream's client is
    told, a client's upstream is left; as it is built in, within two minutes.
    """
    found = orjson.loads(apart(seconds))
    assert set(found) == {"client", "upstream"}
    for outcome, after in found.values():
        assert outcome in ("client_gone", "upstream_cut")
        assert least < after < most, found


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("write", ["none", "60s"])
async def test_who_pauses_lives(upstream: Upstream, write: str) -> None:
    """A client that is there and reads nothing is not taken for gone before its `write` says so, though that be
    never.
    """
    upstream.will(answer(body=MUCH))
    toml = f"""
[server]
peer_timeout = "5s"
[upstreams.a]
base_url = "{upstream.url}"
[routes]
a = {{ upstream = "a", timeout = {{ write = "{write}" }} }}
"""
    async with serving(toml) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=2**16)
        writer.write(request(chat("a")))
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(30 if write == "60s" else 90)
        assert len(await reader.readexactly(len(MUCH))) == len(MUCH)
        writer.close()
        assert (await proxy.record())["outcome"] == "ok"
