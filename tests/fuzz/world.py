"""A proxy, its vendors and its callers in one virtual time, driven step by step.

The proxy is the one that `serve` makes in production, but for the clocks and the network.
"""

import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast
from unittest.mock import patch

import orjson

from proxy import server
from proxy.client.frame import Frame
from proxy.config import load
from proxy.config.snapshot import Snapshot
from proxy.forward import Forward
from proxy.upstream import transport
from proxy.upstream.opening import Opener
from proxy.upstream.transport import Transport
from tests.fuzz.caller import Ask, Caller
from tests.fuzz.kinds import KINDS
from tests.fuzz.loop import VirtualLoop
from tests.fuzz.plan import Plan
from tests.fuzz.rules import Broken
from tests.fuzz.sending import check_sent
from tests.fuzz.vendor import Call, Line, Vendor

T = TypeVar("T")

MOMENT = 0.001
"""What one step takes, unless it says otherwise."""


class World:
    """Everything, from the beginning under *plan* to `close`.

    *dialled* is what became of connections of callers, and when; *drained* when the proxy began to
    leave, and for how long it was to wait; *wrong* what did not hold when a vendor was asked.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.wrong: list[Broken] = []
        self.plan = plan
        self.asks: list[Ask] = []
        self.calls: list[Call] = []
        self.dialled: set[tuple[str, str]] = set()
        self.drained: tuple[float, float] | None = None
        self._draining: asyncio.Task[None] | None = None
        self.loop = VirtualLoop()
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._file, self._log = Path(directory, "routes.toml"), Path(directory, "log")
        self._socket = str(Path(directory, "s"))
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._stack.callback(os.close, descriptor)
        self._replace_clocks(seed)
        self._stack.enter_context(patch.object(transport, "start_connection", self._dial))
        self.vendors = {
            name: Vendor(name, self.loop.time, self._heard) for name in ("one", "two", "free")
        }
        self._serving = server.serve(self._snapshot(plan), descriptor)
        self.running = self.run(self._serving.__aenter__())
        self._stopped = False
        self.settle()

    def __repr__(self) -> str:
        gate = f"{self.running.gate.inflight} in flight, {self.running.gate.held} bytes held"
        return f"<world at {self.now}: {gate}, {self.dialled}, {self.loop.errors}, {self.asks}>"

    def _replace_clocks(self, seed: int) -> None:
        clock, chance = self.loop.time, Random(seed).random

        def wall() -> float:
            return 1_750_000_000.0 + clock()

        made = {
            "Transport": partial(Transport, clock=clock),
            "Forward": partial(Forward, clock=clock),
            "Frame": partial(Frame, clock=clock),
            "Opener": partial(Opener, clock=clock, wall=wall, chance=chance),
        }
        self._stack.enter_context(patch.multiple(server, **cast(Any, made)))

    @property
    def now(self) -> float:
        return self.loop.time()

    def run(self, what: Awaitable[T]) -> T:
        async def main() -> T:
            return await what

        return self.loop.run_until_complete(main())

    def settle(self, seconds: float = MOMENT) -> None:
        """Let *seconds* pass, and everything happen that follows from what has."""
        self.run(asyncio.sleep(seconds))

    # Callers

    def ask(
        self,
        what: str,
        route: str,
        *,
        stream: bool,
        reuse: bool,
        patience: float | None,
        **how: Any,
    ) -> Ask:
        """Send a request, over a connection that was used before where *reuse* finds one."""
        ask = Ask(len(self.asks), KINDS[what], route, self.plan, stream, patience, self.loop.time)
        caller = (self._unused() if reuse else None) or self._connect()
        self.asks.append(ask)
        if caller is not None:
            ask.send(caller, **how)
            self.settle()
        return ask

    def _unused(self) -> Caller | None:
        """Return the connection of a caller who could ask again."""
        return next((ask.caller for ask in self.asks if ask.free), None)

    def _connect(self) -> Caller | None:
        caller, became = None, "refused"
        with suppress(OSError):
            _, caller = self.run(self.loop.create_unix_connection(Caller, self._socket))
            became = "taken"
        self.dialled.add((became, "serving" if self.drained is None else "leaving"))
        return caller

    # Vendors

    async def _dial(self, addresses: Sequence[Any], **_: object) -> socket.socket:
        """Connect to a vendor: this stands in for the network."""
        port: int = addresses[0][4][1]
        return await list(self.vendors.values())[port - 1].meet()

    def _heard(self, line: Line, headers: Mapping[bytes, bytes]) -> Call:
        """Take note of a request that has arrived at a vendor."""
        ask = self.asks[int(headers[b"x-tag"])]
        call = Call(
            id=len(self.calls),
            line=line,
            behind=line.calls[-1] if line.calls else None,
            kind=ask.kind,
            stream=ask.stream and ask.kind.routed,
            secret=headers[b"authorization"].removeprefix(b"Bearer ").decode(),
            at=self.now,
            late=line.deaf,
        )
        try:
            check_sent(ask, call)
        except Broken as error:  # raised by the next check: here the loop would swallow it
            self.wrong.append(error)
        self.calls.append(call)
        ask.calls.append(call)
        return call

    def change(self, vendor: Vendor, manner: str) -> None:
        """Let *vendor* behave in this *manner* from now on."""
        vendor.manner = manner
        lines = [line for line in vendor.lines if line.open]
        if manner == "deaf":
            for line in lines:
                line.stop()
            return
        deaf = [line for line in lines if line.deaf]
        for line in deaf:
            line.transport.resume_reading()
        self.settle()  # what was sent meanwhile is read now
        for line in deaf:
            line.deaf = False

    # The operator

    def _snapshot(self, plan: Plan) -> Snapshot:
        ports = enumerate(self.vendors, 1)
        places = {name: f"http://127.0.0.2:{port}/v1" for port, name in ports}
        self._file.write_text(plan.toml(places))
        return load(self._file, {}, listen=f"unix:{self._socket}")

    def reload(self, plan: Plan) -> None:
        """Serve *plan* from now on."""
        self.run(self.running.apply(self._snapshot(plan)))
        self.plan = plan

    def drain(self, seconds: float) -> None:
        """Begin to leave."""
        self.drained = self.now, seconds
        self._draining = self.loop.create_task(self.running.drain(seconds))

    def stop(self) -> None:
        """End the proxy, if it runs."""
        if not self._stopped:
            self._stopped = True
            self.run(self._serving.__aexit__(None, None, None))

    def log(self) -> list[dict[str, Any]]:
        """Return what the proxy has written down."""
        return [orjson.loads(line) for line in self._log.read_bytes().splitlines()]

    def close(self) -> None:
        """Give everything back."""
        self.stop()
        for vendor in self.vendors.values():
            for line in vendor.lines:
                if not line.lost:
                    line.transport.abort()
        for ask in self.asks:
            if not ask.unheard and not ask.caller.closed:
                ask.caller.transport.abort()
        self.settle()
        if self._draining is not None:
            self._draining.cancel()
            self.settle()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self._stack.close()
