"""Known heads change nothing: whatever packets come, a proxy that knows all heads does what one that knows
none does, to the client, to the upstream, and in its log.
"""

import asyncio
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from aiohttp.http_parser import RawRequestMessage
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.client.heads import Head, Heads
from proxy.sinks import Log
from tests.harness.client import chat
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import DONE, SSE, Conn, Received, Upstream, chunk, event
from tests.harness.upstream import head as answer_head

TOML = """
[server]
max_body = "4KiB"
[[surface]]
name = "keyed"
listen = "127.0.0.1:0"
cors = ["https://app.example.com"]
trusted_proxies = ["127.0.0.1"]
[[surface]]
name = "passing"
listen = "127.0.0.2:0"
auth = "passthrough"
[[surface]]
name = "open"
listen = "127.0.0.3:0"
auth = "none"
echo_model = true
[[surface]]
name = "local"
listen = "unix:{directory}/socket"
auth = "none"
accept = ["x-api-key"]
cors = ["https://app.example.com"]
trusted_proxies = ["10.0.0.0/8"]
[keys]
team = "sk-team-0123456789"
[keys.some]
secret = "sk-some-0123456789"
models = ["m"]
[keys.gone]
secret = "sk-gone-0123456789"
expires = 2020-01-01
[upstreams.up]
base_url = "{upstream}"
credential = "sk-upstream-secret"
passthrough = true
defaults = {{ messages = {{ anthropic-version = "2023-06-01" }} }}
[routes]
"*" = {{ upstream = "up", model = "*" }}
renamed = {{ upstream = "up", model = "quite-another" }}
[routes.chosen]
header = "X-Mix"
[routes.chosen.to]
a = "up/one"
b = "up/two"
[unrouted]
files = "up"
"""
SURFACES = ("keyed", "passing", "open", "local")
STARTS = [
    *["POST /v1/chat/completions HTTP/1.1"] * 6,
    "POST /v1/messages HTTP/1.1",
    "POST /v1/chat/completions?a=1&key=sk-team-0123456789 HTTP/1.1",
    "POST http://localhost/v1/chat/completions HTTP/1.1",
    "POST http://other/v1/chat/completions HTTP/1.1",
    "POST /v1beta/models/renamed:generateContent?key=sk-team-0123456789&b HTTP/1.1",
    "POST /v1beta/models/m:streamGenerateContent?alt=sse&key=sk-gone-0123456789 HTTP/1.1",
    "POST /v1/chat/completions HTTP/1.0",
    "POST /v1/files HTTP/1.1",
    "PUT /v1/files/file_1?b=2 HTTP/1.1",
    "GET /v1/files HTTP/1.1",
    "GET /v1/models HTTP/1.1",
    "HEAD /v1/models HTTP/1.1",
    "OPTIONS /v1/chat/completions HTTP/1.1",
    "GET /livez HTTP/1.1",
    "GET /v1/../livez HTTP/1.1",
    "GET /nothing HTTP/1.1",
    "\r\nPOST /v1/chat/completions HTTP/1.1",
]
FIELDS = [
    *["Authorization: Bearer sk-team-0123456789"] * 4,
    "Authorization: Bearer sk-some-0123456789",
    "Authorization: Bearer sk-gone-0123456789",
    "Authorization: Bearer sk-none-0123456789",
    "x-api-key: sk-team-0123456789",
    "x-api-key: sk-some-0123456789",
    "Origin: https://app.example.com",
    "Origin: https://evil.example.com",
    "Access-Control-Request-Method: POST",
    "Expect: 100-continue",
    "Expect: more",
    "X-Forwarded-For: 192.0.2.1",
    "X-Forwarded-For: 192.0.2.1, 10.1.1.1",
    "Connection: close",
    "Connection: X-Mix",
    "Connection: keep-alive",
    "X-Mix: a",
    "X-Mix: b",
    "X-Mix: c",
    "Content-Encoding: gzip",
    "Accept-Encoding: gzip",
    "Content-Type: application/json",
    "x-a: 1",
    "X-A: 1",
    "X-Content-Length: 2",
    "X-A : 1",
    " folded",
    "Upgrade: websocket",
]
BODIES = [
    *[chat("m"), chat("m", text="longer")] * 3,
    chat("renamed"),
    chat("chosen"),
    chat(None),
    chat("m", stream=True),
    chat("m", text="x" * 3000),
    chat("m", text="x" * 5000),
    b"{}\r\n\r\n",
    b"\r\n",
    b"",
    b"POST / HTTP/1.1\r\n",
]
LENGTHS = [
    *["Content-Length: %d"] * 8, "content-length: %d", "Content-Length:\t%d", "Content-Length: 0%d",
    "Content-Length: %d ", "Content-Length: 1%d", "Content-Length: %d\r\nContent-Length: %d",
    "Content-Length: " + "0" * 4400 + "%d", "Transfer-Encoding: chunked", "",
]  # fmt: skip


@dataclass
class Play:
    """What is sent to a *surface*: *packets*, each by itself, those before *hasty* one by one only when
    all before them have been answered.
    """

    surface: str
    packets: list[bytes]
    hasty: int


@dataclass
class Heard:
    """What the client, at *sock*, was told, and whether its connection was closed."""

    told: bytes = b""
    closed: bool = False
    sock: socket.socket = field(default_factory=socket.socket, repr=False)

    def listen(self) -> None:
        """Take what has come."""
        try:
            while not self.closed:
                data = self.sock.recv(2**20)
                self.told += data
                self.closed = not data
        except BlockingIOError:
            pass
        except ConnectionError:
            self.closed = True


class Reading(Upstream):
    """An upstream that reads chunked bodies too."""

    @staticmethod
    async def _read(conn: Conn) -> Received | None:
        request = await Upstream._read(conn)
        if request is not None and request.value(b"transfer-encoding") is not None:
            while not request.body.endswith(b"\r\n0\r\n\r\n") and request.body != b"0\r\n\r\n":
                request.body += await conn.reader.readexactly(1)
        return request


async def mirror(conn: Conn, seen: Received) -> None:
    """Answer with what came, as a stream where one is asked for."""
    if b'"stream":true' in seen.body:
        start = answer_head(headers=[SSE, (b"Transfer-Encoding", b"chunked")])
        await conn.send(start + chunk(event(b'{"model":"x"}')) + chunk(DONE) + b"0\r\n\r\n")
        return
    framing = (b"Content-Length", b"%d" % len(seen.body))
    await conn.send(answer_head(headers=[framing, (b"x-line", seen.line)]) + seen.body)


@dataclass
class Subject:
    """A proxy with an upstream of its own, and the records of its log."""

    proxy: Proxy
    upstream: Upstream
    records: list[dict[str, Any]]

    def connect(self, surface: str) -> Heard:
        """Connect to *surface*."""
        assert self.proxy.running is not None
        address = self.proxy.running.addresses[surface][0]
        if address.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(address.path))
        else:
            sock = socket.create_connection((address.host, address.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return Heard(sock=sock)

    def seen(self) -> list[tuple[bytes, bytes]]:
        """Return what the upstream has seen."""
        place = self.upstream.authority.encode()
        return [(one.head.replace(place, b"-"), one.body) for one in self.upstream.requests]

    def busy(self) -> int:
        """Return how many exchanges are not over."""
        assert self.proxy.running is not None
        return len(self.proxy.running._sessions)

    def told(self) -> list[dict[str, Any]]:
        """Return the records, less what is never the same."""
        return [plain(record) for record in self.records]


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return *record* less ids and times, and less what depends on them."""
    changing = {"ts", "request_id", "first_byte_ms", "total_ms", "overhead_us", "attempts"}
    rest = {name: value for name, value in record.items() if name not in changing}
    rest["attempts"] = [{**one, "ms": 0} for one in record["attempts"]]
    if (
        record["outcome"] == "client_gone"
        and rest["attempts"]
        and rest["attempts"][-1]["phase"] == "unsent"
    ):
        rest["bytes_in"] = None  # what was read of an upload by then is a race with the connecting
    return rest


_SELVES = re.compile(rb'req_[0-9a-f]{26}|"created":[0-9]+|"created_at":"[^"]*"')


def anonymous(told: bytes) -> bytes:
    """Return *told* less ids, and when each has read its file."""
    return _SELVES.sub(b"-", told)


@contextmanager
def tapped() -> Iterator[dict[int, list[dict[str, Any]]]]:
    """All records, by the log that they go into."""
    records: dict[int, list[dict[str, Any]]] = {}
    line = Log.line

    def tap(log: Log, record: dict[str, Any]) -> None:
        records.setdefault(id(log), []).append(record)
        line(log, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "line", tap)
        yield records


class Forgetful(Heads):
    """Heads of which none is ever known."""

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        return None

    def learn(self, data: bytes, message: RawRequestMessage) -> tuple[Head, int | None]:
        return Head(message), None


@asynccontextmanager
async def subject(records: dict[int, list[dict[str, Any]]]) -> AsyncIterator[Subject]:
    """A proxy that nobody has asked anything yet."""
    with tempfile.TemporaryDirectory() as directory:
        async with Reading() as upstream:
            upstream.will(mirror)
            toml = TOML.format(directory=directory, upstream=upstream.url)
            async with serving(toml, listen=None) as proxy:
                assert proxy.running is not None
                yield Subject(proxy, upstream, records.setdefault(id(proxy.running.log), []))


async def rounds(count: int) -> None:
    """Let the loop go round: what was sent has been read then, and most of it answered."""
    for _ in range(count):
        await asyncio.sleep(0)


async def send(subjects: list[Subject], play: Play) -> list[Heard]:
    """Send the packets of *play* to each of *subjects*."""
    heard = [one.connect(play.surface) for one in subjects]
    for number, packet in enumerate(play.packets):
        for one in heard:
            with suppress(ConnectionError):  # closed already; what it said is read all the same
                one.sock.send(packet)
        await rounds(2 if number >= play.hasty else 40)
    return heard


def told(subjects: list[Subject], heard: list[Heard], *, over: bool) -> list[Any]:
    """Return what each of *subjects* has done so far; with *over*, only what it has written down."""
    return [
        (one.seen(), one.told(), one.busy())
        if over
        else (anonymous(its.told), its.closed, one.seen(), one.told())
        for one, its in zip(subjects, heard, strict=True)
    ]


async def agreed(subjects: list[Subject], heard: list[Heard], *, over: bool) -> None:
    """Wait until all *subjects* have done the same and do no more; *over*: once the client has left."""
    still, last = 0, None
    for _ in range(400):
        await rounds(25)
        for one in [] if over else heard:
            one.listen()
        done = told(subjects, heard, over=over)
        still, last = still + 1 if done == last else 0, done
        if still >= 2:
            if done[0] == done[1]:
                return
            await asyncio.sleep(0.01)
    assert last is not None
    assert last[0] == last[1]


async def compare(subjects: list[Subject], play: Play) -> list[Heard]:
    """Have *subjects* do the same; return what they have told."""
    heard = await send(subjects, play)
    await agreed(subjects, heard, over=False)
    for one in heard:
        one.sock.close()
    await agreed(subjects, heard, over=True)
    for other in subjects:
        other.upstream.requests.clear()
        other.records.clear()
    return heard


@contextmanager
def running() -> Iterator[tuple[asyncio.Runner, list[Subject]]]:
    """A proxy that knows no heads, and one that does, on a loop that runs while it is told to."""

    async def begin(stack: AsyncExitStack) -> list[Subject]:
        cold, warm = [await stack.enter_async_context(subject(records)) for _ in range(2)]
        assert cold.proxy.running is not None
        for listener, _ in cold.proxy.running._listeners.values():
            listener.server._heads = Forgetful()
        return [cold, warm]

    with tapped() as records, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        subjects = runner.run(begin(stack))
        try:
            yield runner, subjects
        finally:
            runner.run(stack.aclose())


def written(start: str, host: str, fields: list[str], length: str, body: bytes) -> bytes:
    """Write a request, or what is nearly one."""
    framing = length.replace("%d", str(len(body)))
    if "chunked" in length:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    lines = [start, host, *fields[:1], framing, *fields[1:]]
    return "\r\n".join([*filter(None, lines), "", ""]).encode() + body


REQUESTS = st.builds(
    written,
    st.sampled_from(STARTS),
    st.sampled_from([*["Host: localhost"] * 8, "Host: evil.example.com", "Host: 127.0.0.3", ""]),
    st.lists(st.sampled_from(FIELDS), max_size=4),
    st.sampled_from(LENGTHS),
    st.sampled_from(BODIES),
)


HALVES = [b"", b"\r\n", b"P", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Half: "]


@st.composite
def plays(draw: st.DrawFn) -> Play:
    """A few requests, most of them more than once, whole or cut or joined."""
    pool = draw(st.lists(REQUESTS, min_size=1, max_size=2))
    pieces = st.one_of(st.sampled_from(pool), st.sampled_from(pool), st.sampled_from(HALVES))
    chosen = draw(st.lists(pieces, min_size=1, max_size=5))
    packets = chosen
    if draw(st.booleans()):
        whole = b"".join(chosen)
        cuts = draw(st.lists(st.integers(0, len(whole)), max_size=4))
        bounds = sorted({0, *cuts, len(whole)})
        packets = [whole[one:other] for one, other in pairwise(bounds)]
    hasty = draw(st.sampled_from([0, 1, 9, 9]))
    return Play(draw(st.sampled_from(SURFACES)), packets, hasty)


EXAMPLES = 600


@pytest.mark.timeout(240)  # it waits for every loop round of both
def test_nothing_differs() -> None:
    """Whatever comes, in whatever packets, and however often: both do the same."""
    with running() as (runner, subjects):

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        )
        @given(play=plays())
        def nothing_differs(play: Play) -> None:
            runner.run(compare(subjects, play))
            runner.run(compare(subjects, play))

        nothing_differs()
