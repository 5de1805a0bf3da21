"""Whatever vendors, callers and the operator do, in whichever order: what the proxy promises holds."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fuzz.loop import VirtualLoop
from tests.fuzz.world import PLANS, STATUSES, Ask, Call, World

PICK = st.integers(0, 5)
TIMES = st.sampled_from([0.05, 0.4, 0.6, 1.0, 2.5, 6.0, 11.0, 21.0, 31.0, 70.0, 700.0])
HINTS = st.sampled_from(
    [
        (),
        ((b"Retry-After", b"0"),),
        ((b"Retry-After", b"1"),),
        ((b"Retry-After", b"30"),),
        ((b"retry-after-ms", b"300"),),
        ((b"x-should-retry", b"false"),),
    ]
)
NOT_HTTP = st.sampled_from(
    [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 099 No\r\n\r\n"]
)
CUTS = st.sampled_from(["fin", "reset"])


class Machine(RuleBasedStateMachine):
    """The rules are what may happen; the model is in `World`."""

    world: World

    @initialize(plan=st.sampled_from(PLANS), seed=st.integers(0, 3))
    def begin(self, plan: Any, seed: int) -> None:
        self.world = World(plan, seed)

    # Callers

    @rule(
        what=st.sampled_from(["chat", "chat", "messages", "responses", "file", "upload"]),
        route=st.sampled_from(["solo", "chain", "cheap", "any"]),
        stream=st.booleans(),
        size=st.sampled_from([0, 0, 0, 200_000, 1_500_000]),
        late=st.integers(0, 5).map(lambda one: one == 5),
        chunked=st.booleans(),
        reuse=st.booleans(),
        last=st.booleans(),
        patience=st.sampled_from([None, None, 1.0, 8.0]),
        served=st.sampled_from(["", "", "chunked", "length", "close", "whole", "500", "503"]),
    )
    def ask(
        self, what: str, route: str, late: bool, patience: float | None, served: str, **more: Any
    ) -> None:
        """Ask; some are answered at once, because long stories are rare."""
        world, held = self.world, late and what != "file"
        ask = world.ask(what, route, late=held, patience=None if held else patience, **more)
        call = ask.calls[-1] if ask.calls else None
        if not served or call is None or not call.waits:
            return
        if served.isdigit():
            world.answer(call, int(served))
        elif served == "whole":
            world.answer(call, framing="length")
            world.say(call, "mark")
            if call.speaks:
                world.end(call)
        else:
            world.answer(call, framing=served)

    def _asks(self) -> list[Ask]:
        return [ask for ask in self.world.asks if not ask.over]

    @precondition(lambda self: any(ask.rest and ask.gone_at is None for ask in self.world.asks))
    @rule(pick=PICK)
    def more(self, pick: int) -> None:
        asks = [ask for ask in self.world.asks if ask.rest and ask.gone_at is None]
        self.world.more(asks[pick % len(asks)])

    @precondition(lambda self: self._asks())
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        asks = self._asks()
        self.world.leave(asks[pick % len(asks)])

    @precondition(lambda self: any(not ask.caller.paused for ask in self._asks()))
    @rule(pick=PICK)
    def pause(self, pick: int) -> None:
        asks = [ask for ask in self._asks() if not ask.caller.paused]
        self.world.pause(asks[pick % len(asks)])

    @precondition(lambda self: any(ask.caller.paused for ask in self._asks()))
    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        asks = [ask for ask in self._asks() if ask.caller.paused]
        self.world.resume(asks[pick % len(asks)])

    # Vendors

    def _waiting(self) -> list[Call]:
        return [call for call in self.world.calls if call.waits]

    def _speaking(self) -> list[Call]:
        return [call for call in self.world.calls if call.speaks and call.marked_at is None]

    @precondition(lambda self: self._waiting())
    @rule(pick=PICK, framing=st.sampled_from(["chunked", "length", "close"]), last=st.booleans())
    def begin_answer(self, pick: int, framing: str, last: bool) -> None:
        calls = self._waiting()
        self.world.answer(calls[pick % len(calls)], framing=framing, last=last)

    @precondition(lambda self: self._waiting())
    @rule(
        pick=PICK,
        status=st.sampled_from(STATUSES[1:]),
        hints=HINTS,
        last=st.booleans(),
        size=st.sampled_from([0, 0, 300_000]),
    )
    def refuse(self, pick: int, status: int, **more: Any) -> None:
        calls = self._waiting()
        self.world.answer(calls[pick % len(calls)], status, **more)

    @precondition(lambda self: self._waiting())
    @rule(pick=PICK)
    def interim(self, pick: int) -> None:
        calls = self._waiting()
        call = calls[pick % len(calls)]
        call.interim = True
        call.line.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")

    @precondition(lambda self: self._waiting())
    @rule(pick=PICK, data=NOT_HTTP)
    def spoil(self, pick: int, data: bytes) -> None:
        calls = self._waiting()
        self.world.spoil(calls[pick % len(calls)], data)

    @precondition(lambda self: self._speaking())
    @rule(
        pick=PICK,
        words=st.lists(
            st.tuples(
                st.sampled_from(["word", "word", "word", "mark", "failure"]),
                st.sampled_from([None, None, 1, 7, 20]),
            ),
            min_size=1,
            max_size=4,
        ),
        big=st.sampled_from([0, 0, 0, 500_000]),
    )
    def say(self, pick: int, words: list[tuple[str, int | None]], big: int) -> None:
        calls = self._speaking()
        call = calls[pick % len(calls)]
        for what, size in words:
            if call.speaks and call.marked_at is None:
                self.world.say(call, what, size, big)
            self.world.settle()

    @precondition(lambda self: self._speaking())
    @rule(pick=PICK, early=st.booleans())
    def end(self, pick: int, early: bool) -> None:
        calls = self._speaking()
        call = calls[pick % len(calls)]
        if early and call.stream and call.ask.kind.early and not call.todo:
            self.world.say(call, "early")
        if call.speaks:
            self.world.end(call)

    @precondition(lambda self: any(call.marked_at and call.speaks for call in self.world.calls))
    @rule(pick=PICK)
    def end_marked(self, pick: int) -> None:
        calls = [call for call in self.world.calls if call.marked_at and call.speaks]
        self.world.end(calls[pick % len(calls)])

    @precondition(lambda self: any(call.waits or call.speaks for call in self.world.calls))
    @rule(pick=PICK, how=CUTS, after=st.sampled_from([0.0, 0.0, 1.0]))
    def cut(self, pick: int, how: str, after: float) -> None:
        calls = [call for call in self.world.calls if call.waits or call.speaks]
        call = calls[pick % len(calls)]
        self.world.settle(after)
        if not call.line.open:
            return
        call.line.cut(how)
        if call.framing == "close" and how == "fin":
            call.finished = True

    def _quiet(self) -> list[Any]:
        lines = [line for one in self.world.vendors.values() for line in one.lines if line.open]
        return [line for line in lines if not line.calls or line.calls[-1].finished]

    @precondition(lambda self: self._quiet())
    @rule(pick=PICK, how=st.sampled_from(["fin", "reset", "surplus"]))
    def disturb(self, pick: int, how: str) -> None:
        lines = self._quiet()
        line = lines[pick % len(lines)]
        if how != "surplus":
            line.cut(how)
        elif line.calls:
            self.world.surplus(line)

    @rule(
        name=st.sampled_from(["one", "two", "free"]),
        manner=st.sampled_from(["well", "well", "refuses", "away", "deaf", "slams"]),
    )
    def change(self, name: str, manner: str) -> None:
        self.world.vendors[name].behave(manner)

    # Time, and the operator

    @rule(seconds=TIMES)
    def wait(self, seconds: float) -> None:
        self.world.settle(seconds)

    @rule(plan=st.sampled_from(PLANS))
    @precondition(lambda self: self.world.drained is None and bool(self._asks()))
    def reload(self, plan: Any) -> None:
        self.world.reload(plan)

    @rule(seconds=st.sampled_from([0.0, 5.0, 60.0]), now=st.integers(0, 3))
    @precondition(lambda self: self.world.drained is None and len(self.world.asks) > 1)
    def drain(self, seconds: float, now: int) -> None:
        if not now:
            self.world.drain(seconds)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if not self.world.broken:
                self.world.finish()
        finally:
            self.world.close()


QUICK = settings(
    max_examples=120,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(600)  # to make a failure small takes longer than to find it
def test_anything_may_happen() -> None:
    """Whatever happens, in whichever order, every promise holds: to callers, vendors, operators."""
    run_state_machine_as_test(Machine, settings=QUICK)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_anything_may_happen_at_length() -> None:
    """The same holds in thousands of longer stories."""
    thorough = settings(QUICK, max_examples=3000, stateful_step_count=50)
    run_state_machine_as_test(Machine, settings=thorough)


def test_waiting_takes_no_time() -> None:
    """Ten minutes pass on the virtual loop as one jump."""
    loop = VirtualLoop()
    loop.run_until_complete(asyncio.sleep(600))
    assert loop.time() >= 1600
    loop.close()
