"""A proxy in a process of its own, the places it leads to, and what must hold after every case."""

import asyncio
import os
import re
import secrets
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import orjson

from tests.faults.places import Nobody, Place, Spot
from tests.harness.client import Answer, Client, Pair, request
from tests.harness.proxy import Proxy, complaints, process

STRICT = ("-X", "dev", "-W", "error", "-m", "tests.faults.host")
OUTCOMES = {
    "ok", "client_error", "refused", "upstream_error", "upstream_cut", "client_gone", "timeout", "shutdown",
}  # fmt: skip
PHASES = {"unsent", "sent", "answered", "streaming"}
GRAIN = 10
_RUN = re.compile(rb"[0-9a-f]{%d,}" % GRAIN)
NONCE = re.compile(rb"prompt-[0-9a-f]{16}")
OURS = re.compile(rb"sk-up-[0-9a-f]{32}")
MARKS = (
    b"[DONE]",
    b'"finish_reason":"stop"',
    b"message_stop",
    b"response.completed",
    b"response.failed",
)
ENDINGS = ("upstream_disconnected", "upstream_incomplete", "upstream_idle_timeout", "proxy_shutdown", "upstream_timeout")  # fmt: skip
_LAST = re.compile(
    rb"(?:\n\n)?(?:event: error\n)?data: (\{[^\n]*(?:%b)[^\n]*\})\n\n"
    % "|".join((*ENDINGS, '"request_id":"req_')).encode()
)
_ROWS = re.compile(r"^\| ([0-9]+(?:, [0-9]+)*)(?:, in a stream)? \| (`[^|]*`) \|", re.MULTILINE)


def codes() -> dict[str, set[int]]:
    """Read which statuses each of our codes may come with from the table for operators."""
    found: dict[str, set[int]] = {}
    for statuses, names in _ROWS.findall(Path("docs/errors.md").read_text("utf-8")):
        for name in re.findall(r"`([a-z_]+)`", names):
            found.setdefault(name, set()).update(int(one) for one in statuses.split(","))
    return found


CODES = codes()


@dataclass
class Said:
    """What an upstream said to one request: *complete* is None where only a close tells."""

    status: int
    body: bytes
    complete: bool | None


def understand(data: bytes) -> Said | None:
    """Read an upstream's answer, None where it is none."""
    while True:
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank or not re.match(rb"HTTP/1\.[01] [0-9]{3}\b", head):
            return None
        status = int(head.split(b" ", 2)[1][:3])
        if status >= 200:
            break
        data = rest
    if status in (204, 304):
        return Said(status, b"", complete=True)
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while True:
            line, end, after = rest.partition(b"\r\n")
            if not end or not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line.split(b";")[0].strip()):
                return Said(status, body, complete=False)
            size = int(line.split(b";")[0], 16)
            if size == 0:
                return Said(
                    status, body, complete=after.startswith(b"\r\n") or b"\r\n\r\n" in after
                )
            body += after[:size]
            if after[size : size + 2] != b"\r\n":
                return Said(status, body, complete=False)
            rest = after[size + 2 :]
    length = re.search(rb"\ncontent-length: ([0-9]{1,15})(?:\r|$)", lower)
    if length:
        size = int(length[1])
        return Said(status, rest[:size], complete=len(rest) >= size)
    return Said(status, rest, complete=None)


class Caller(Client):
    """A client whose answers are kept for the sweep."""

    def __init__(
        self, at: "At", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(reader, writer)
        self._at = at

    async def answer(self, *, head_only: bool = False, seconds: float = 20.0) -> Answer:
        got = await super().answer(head_only=head_only, seconds=seconds)
        self._at.answers.append(got)
        return got


@dataclass
class At:
    """One case at work in a *house*. *lines* is how many exchanges must be in the log at its end, *sends*
    how often one request may be sent in full, *events* what other events the log may have. *leaving*: the proxy is, and takes no further request.
    """

    house: "House"
    name: str
    places: Mapping[str, Place]
    lines: int = 0
    sends: int = 1
    events: set[str] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)
    nonces: dict[bytes, Answer | None] = field(default_factory=dict)
    callers: list[Caller] = field(default_factory=list)
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    leaving: bool = False
    _from: int = 0

    def __getitem__(self, name: str) -> Place:
        return self.places[name]

    @property
    def key(self) -> Pair:
        """Return the header with the caller's key."""
        return (b"Authorization", b"Bearer " + self.house.key.encode())

    @property
    def port(self) -> int:
        return self.house.proxy.port

    def nonce(self) -> bytes:
        """Return something to ask that nobody has asked before."""
        made = b"prompt-" + secrets.token_hex(8).encode()
        self.nonces[made] = None
        return made

    def body(self, model: str | None = None, text: str = "", **fields: Any) -> bytes:
        """Write the body of a chat for this case's route, with a nonce in it."""
        said = self.nonce().decode() + text
        messages = [{"role": "user", "content": said}]
        return orjson.dumps({"model": model or self.name, "messages": messages, **fields})

    def request(
        self, body: bytes | None = None, headers: Sequence[Pair] = (), **kwargs: Any
    ) -> bytes:
        """Write a request with the key, which will leave a line."""
        self.lines += 1
        return request(
            self.body() if body is None else body, headers=[self.key, *headers], **kwargs
        )

    async def connect(self) -> Caller:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**25)
        caller = Caller(self, reader, writer)
        self.callers.append(caller)
        return caller

    async def call(
        self,
        body: bytes | None = None,
        headers: Sequence[Pair] = (),
        *,
        model: str | None = None,
        text: str = "",
        seconds: float = 20.0,
        path: str = "/v1/chat/completions",
        **fields: Any,
    ) -> Answer:
        """Ask on a connection of its own; return the answer, behind which the connection is either
        closed or fit for the next request.
        """
        if body is None:
            body = self.body(model, text, **fields)
        found = NONCE.search(body)
        caller = await self.connect()
        await caller.send(self.request(body, headers, path=path))
        got = await caller.answer(seconds=seconds)
        if found:
            self.nonces[found[0]] = got
        check_framing(got)
        closes = (got.value(b"connection") or b"").lower() == b"close"
        if got.whole and not closes and not self.leaving:
            await caller.send(request(path="/health", method="GET"))
            assert (await caller.answer()).body == b'{"status":"ok"}'
        elif got.raw and not self.leaving:
            assert await caller.closed() == b""
        caller.close()
        return got

    def leave(self) -> None:
        """Close what is open still."""
        for caller in self.callers:
            caller.close()

    async def record(self, seconds: float = 10.0) -> dict[str, Any]:
        """Wait for the line of the exchange that ended last."""
        async with asyncio.timeout(seconds):
            while len(records := self.records()) < self.lines:
                await asyncio.sleep(0.01)
        return records[-1]

    def log(self) -> list[dict[str, Any]]:
        """Return what the log has of this case."""
        data = self.house.logged(self._from)
        return [
            orjson.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")
        ]

    def records(self) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"] == "exchange"]

    def has(self, event: str) -> bool:
        """Return whether the log has *event*, which is fine."""
        self.events.add(event)
        return any(line["event"] == event for line in self.log())

    async def sees(self, event: str, seconds: float = 5.0) -> None:
        """Wait until the log has *event*."""
        async with asyncio.timeout(seconds):
            while not self.has(event):
                await asyncio.sleep(0.01)


class House:
    """A proxy, and everywhere it leads."""

    def __init__(self, proxy: Proxy, key: str, places: dict[str, Place], tasks: Path) -> None:
        self.proxy = proxy
        self.key = key
        self.places = places
        self._tasks_file = tasks
        self._fds = 0
        self._tasks = 0
        self._grains: set[bytes] = set()
        for secret in (key, *(one for place in places.values() for one in place.secrets)):
            random = secret[6:].encode()
            self._grains |= {random[at : at + GRAIN] for at in range(len(random) - GRAIN + 1)}
        self.extra = 0
        """Descriptors that a case has opened for as long as the proxy lives."""

    def logged(self, start: int) -> bytes:
        """Return the log from *start* on."""
        with self.proxy.log.open("rb") as log:
            log.seek(start)
            return log.read()

    @property
    def pid(self) -> int:
        assert self.proxy.process is not None
        return self.proxy.process.pid

    def descriptors(self) -> int:
        """Return how many descriptors the proxy has that are no kept connection to a place."""
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()]) - sum(
            p.open for p in self.places.values()
        )

    async def tasks(self) -> int:
        """Return how many tasks the proxy has."""
        self._tasks_file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        async with asyncio.timeout(5):
            while not self._tasks_file.exists():
                await asyncio.sleep(0.002)
        return int(self._tasks_file.read_text())

    def at(self, name: str, places: Mapping[str, Place] | None = None) -> At:
        """Begin a case."""
        at = At(self, name, self.places if places is None else places)
        for place in self.places.values():
            place.reset_all()
        at._from = self.proxy.log.stat().st_size
        return at

    async def measure(self) -> None:
        """Take what there is now for what there should always be."""
        self._fds, self._tasks = self.descriptors(), await self.tasks()

    async def settle(self, at: At) -> None:
        """Hold what the case *at* has left behind against what must hold after every case."""
        at.leave()
        await self._calm(at)
        self._check_log(at)
        self._check_places(at)
        for got in at.answers:
            check_answer(got)
            self._check_secrets(got.raw, "an answer")
        for nonce, answer in at.nonces.items():
            check_relayed(at, nonce, answer)
        assert self.proxy.stderr is not None
        assert complaints(self.proxy.stderr) == ""

    async def _calm(self, at: At) -> None:
        """Wait until everything is at rest again: places, lines, descriptors, tasks."""
        state: tuple[object, ...] = ()
        wanted = (0, at.lines, self._fds + self.extra, self._tasks)
        try:
            async with asyncio.timeout(6):
                while state != wanted:
                    await asyncio.sleep(0.01 if state else 0)
                    busy = sum(place.busy for place in self.places.values())
                    state = (busy, len(at.records()), self.descriptors())
                    if state == wanted[:3]:
                        state = (*state, await self.tasks())
        except TimeoutError:
            raise AssertionError(
                f"busy places, lines, descriptors, tasks are {state} and should be {wanted}; "
                f"{at.records()}"
            ) from None

    def _check_log(self, at: At) -> None:
        data = self.logged(at._from)
        self._check_secrets(data, "the log")
        assert NONCE.search(data) is None, "a prompt is in the log"
        records = at.records()
        ids = [record["request_id"] for record in records]
        assert len(set(ids)) == len(ids)
        names = {line["event"] for line in at.log()} - {"exchange"}
        assert names <= at.events, f"the log has {names - at.events}"
        for record in records:
            assert record["outcome"] in OUTCOMES, record
            assert (record["outcome"] == "ok") == (record["error"] is None) or record[
                "status"
            ] >= 400
            assert all(attempt["phase"] in PHASES for attempt in record["attempts"])
            assert len(record["attempts"]) <= 3, record

    def _check_places(self, at: At) -> None:
        """Each place has seen its own credentials and nobody else's, and nothing more often than allowed."""
        whole: Counter[bytes] = Counter()
        for name, place in self.places.items():
            assert place.errors == [], (name, place.errors)
            own = {secret.encode() for secret in place.secrets}
            for heard in place.heard:
                received = heard.request.head + heard.request.body
                assert set(OURS.findall(received)) <= own, (
                    f"{name} saw a credential that is not its"
                )
                assert self.key.encode() not in received, f"{name} saw the caller's key"
                asked = set(NONCE.findall(heard.request.body))
                assert len(asked) <= 1
                whole.update(asked)
                assert asked <= set(at.nonces)
        for nonce, count in whole.items():
            assert count <= at.sends, f"sent {count} times in full: {nonce!r}"
        sent = sum(
            attempt["phase"] != "unsent"
            for record in at.records()
            for attempt in record["attempts"]
        )
        assert sum(whole.values()) <= sent, "an upstream was asked of which the log says nothing"

    def _check_secrets(self, data: bytes, where: str) -> None:
        """No ten characters in a row of a secret stand in *data*."""
        for run in _RUN.findall(data):
            for start in range(len(run) - GRAIN + 1):
                assert run[start : start + GRAIN] not in self._grains, f"a secret is in {where}"


def check_framing(got: Answer) -> None:
    """Read an answer a second time, with a reader that is not ours."""
    if not got.raw.startswith(b"HTTP/"):
        return
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    reader.send(
        h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")])
    )
    reader.send(h11.EndOfMessage())
    reader.receive_data(got.raw)
    body, whole = bytearray(), False
    try:
        while True:
            if reader.their_state is h11.DONE:
                break
            event = reader.next_event()
            if event is h11.NEED_DATA:
                reader.receive_data(b"")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                whole = True
                break
            elif isinstance(event, h11.ConnectionClosed):
                break
    except h11.RemoteProtocolError:
        whole = False
    if got.value(b"content-length") or got.value(b"transfer-encoding"):
        assert (bytes(body), whole) == (got.body, got.whole)


def is_authored(got: Answer) -> bool:
    """Return whether an answer is ours, not an upstream's."""
    identity = got.value(b"x-trunkline-id")
    return identity is not None and got.value(b"request-id") == identity and got.status >= 400


def check_answer(got: Answer) -> None:
    """What we say ourselves has the form of the table for operators, and gives nothing away."""
    if not got.raw.startswith(b"HTTP/") or not is_authored(got):
        return
    assert got.value(b"content-type") == b"application/json"
    assert got.value(b"x-request-id") == got.value(b"x-trunkline-id")
    assert got.whole
    if not got.body:
        return  # to a HEAD
    body = got.json()
    if "request_id" in body:
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
        message = body["error"]["message"]
    elif "status" in body["error"]:
        assert set(body) == {"error"}
        message = body["error"]["message"]
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        message = body["error"]["message"]
        assert got.status in CODES[body["error"]["code"]], (got.status, body)
    assert message.isprintable()
    for never in ("127.0.0.1", "::1", "localhost", "Error", "Exception", "Traceback", "http://"):
        assert never not in message


def check_relayed(at: At, nonce: bytes, got: Answer | None) -> None:
    """What a client got of an upstream's answer is all of it, or its beginning and a word of ours."""
    if got is None or not got.raw.startswith(b"HTTP/") or is_authored(got):
        return
    told = [
        said
        for place in at.house.places.values()
        for heard in place.heard
        if nonce in heard.request.body and (said := understand(bytes(heard.said))) is not None
    ]
    fitting = [said for said in told if said.status == got.status]
    assert fitting, f"{got.head!r} came from nowhere"
    assert any(_follows(said, got) for said in fitting), (fitting[-1].body[-300:], got.body[-300:])


def _follows(said: Said, got: Answer) -> bool:
    body = got.body.replace(b": keepalive\n", b"")
    theirs = said.body.replace(b": keepalive\n", b"")
    whole = got.whole
    if body == theirs:
        return not whole or said.complete is not False or any(mark in body for mark in MARKS)
    if whole:
        # What comes behind the marker may be cut off: the stream had ended.
        return theirs.startswith(body) and any(mark in body for mark in MARKS)
    pairs = enumerate(zip(body, theirs, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(body), len(theirs)))
    for at in range(shared, max(-1, shared - 3), -1):  # our own line end may look like theirs
        rest = body[at:]
        last = _LAST.fullmatch(rest)
        if not rest or (last and isinstance(orjson.loads(last[1]), dict)):
            return True
    return False


@asynccontextmanager
async def house_of(
    spots: Mapping[str, Spot],
    routes: str,
    *,
    server: str = "",
    more: str = "",
    env: Mapping[str, str] | None = None,
    ca: Path | None = None,
    check: bool = True,
) -> AsyncIterator[House]:
    """Build every place of *spots* and a proxy that leads there. In *routes* and *more*, `<NAME>` stands for
    an upstream's URL, and `<CA>` for the file of the authority that tests trust.
    """
    key = f"sk-cl-{secrets.token_hex(16)}"
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places: dict[str, Place] = {}
        tables = []
        for name, spot in spots.items():
            place, url = await _build(stack, spot)
            if place is not None:
                places[name] = place
            values = place.secrets if place else [f"sk-up-{secrets.token_hex(16)}"]
            listed = ", ".join(f'"{value}"' for value in values)
            extra = spot.extra.replace("<CA>", str(ca))
            tables.append(
                f'[upstreams."{name}"]\nbase_url = "{url}"\ncredential = [{listed}]\n{extra}'
            )
            routes, more = (text.replace(f"<{name}>", url) for text in (routes, more))
        toml = "\n".join(
            [f"[server]\n{server}", *tables, f'[keys]\nteam = "{key}"', "[routes]", routes, more]
        )
        tasks = directory / "tasks"
        around = {"FAULT_TASKS": str(tasks), "HOME": str(directory), **(env or {})}
        proxy = await stack.enter_async_context(process(toml, around, python=STRICT, check=check))
        house = House(proxy, key, places, tasks)
        await house.measure()
        yield house


async def _build(stack: AsyncExitStack, spot: Spot) -> tuple[Place | None, str]:
    if spot.kind in ("closed", "deaf"):
        port = stack.enter_context(Nobody(deaf=spot.kind == "deaf"))
        return None, f"http://{spot.name or '127.0.0.1'}:{port}/v1"
    if spot.kind == "url":
        return None, spot.url
    if spot.kind.startswith("bare"):
        assert spot.serve is not None
        server = await asyncio.start_server(spot.serve, spot.host, 0, limit=2**16)  # type: ignore[arg-type]  # any callable will do
        stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
        scheme = "https" if spot.kind == "bare tls" else "http"
        return None, f"{scheme}://{spot.name or 'localhost'}:{port}/v1"
    place = Place(spot)
    await stack.enter_async_context(place)
    if spot.name:
        scheme = "https" if spot.kind == "tls" else "http"
        return place, f"{scheme}://{spot.name}:{place.port}/v1"
    return place, place.url
