"""Whatever vendors, callers and the operator do, in whichever order: what the proxy promises holds."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

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

from tests.fuzz.caller import Ask
from tests.fuzz.kinds import STATUSES
from tests.fuzz.loop import VirtualLoop
from tests.fuzz.model import check, finish
from tests.fuzz.plan import PLANS, Plan
from tests.fuzz.vendor import Call, Line
from tests.fuzz.world import World
from tests.harness.upstream import Pair

T = TypeVar("T")

PICK = st.integers(0, 5)
TIMES = st.sampled_from([0.05, 0.4, 0.6, 1.0, 2.5, 8.0, 11.0, 21.0, 31.0, 70.0, 700.0])
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
RARELY = st.integers(0, 5).map(lambda one: one == 5)
SOMETIMES = st.integers(0, 2).map(lambda one: one == 2)
MUCH, TOO_MUCH = 150_000, 500_000
BEGUN = ["chunked", "chunked", "length", "close"]
REPLY = st.one_of(
    st.sampled_from(BEGUN),
    st.sampled_from(
        ["mark", "mark, end", "mark, end, last", "half", "much", "much, end", "lost", "lost"]
    ),
    st.sampled_from(["302", "401", "401", "404", "429", "429", "500", "503"]),
)
REPLIES = st.lists(REPLY, min_size=1, max_size=3) | REPLY.map(lambda one: [one] * 4)
CUTS = st.sampled_from(["fin", "reset"])


ASKED: dict[str, Any] = {
    "what": st.sampled_from(["chat", "chat", "messages", "responses", "file", "upload"]),
    "route": st.sampled_from(["solo", "chain", "cheap", "any"]),
    "stream": st.sampled_from([True, True, False]),
    "size": st.sampled_from([0, 0, 0, 0, 200_000, 1_500_000]),
    "chunked": RARELY,
    "reuse": st.booleans(),
    "last": RARELY,
}


def _reply(call: Call, reply: str, hints: tuple[Pair, ...]) -> None:
    """Let a vendor make such a *reply*."""
    if reply.isdigit():
        call.answer(int(reply), hints=hints)
    elif reply == "lost":
        call.cut("reset")
    elif reply in BEGUN:
        call.answer(framing=reply)
    else:
        call.answer(last="last" in reply)
        call.say("mark" if "mark" in reply else "word", big=TOO_MUCH if "much" in reply else 0)
        if "half" in reply:
            call.say(size=7)
        if "end" in reply and call.speaks:
            call.end()


def about(
    find: Callable[["Machine"], list[T]], **more: Any
) -> Callable[[Callable[..., None]], Any]:
    """Make a rule of a step with one of the things that *find* finds, while there are any."""

    def make(step: Callable[..., None]) -> Any:
        def chosen(self: "Machine", pick: int, **drawn: Any) -> None:
            things = find(self)
            step(self, things[pick % len(things)], **drawn)

        chosen.__name__ = step.__name__
        made: Any = rule(pick=PICK, **more)
        return precondition(lambda self: bool(find(self)))(made(chosen))

    return make


class Machine(RuleBasedStateMachine):
    """The rules are what may happen. What must hold is in `model`, and where that leads."""

    world: World
    sound = False  # that all held when it was checked last

    @initialize(plan=st.sampled_from(PLANS), seed=st.integers(0, 3))
    def begin(self, plan: Plan, seed: int) -> None:
        self.world = World(plan, seed)

    # Callers

    @rule(**ASKED, late=SOMETIMES, patience=st.sampled_from([None, None, 1.0, 8.0]))
    def ask(self, what: str, late: bool, patience: float | None, **how: Any) -> None:
        held = late and what != "file"
        self.world.ask(what, late=held, patience=None if held else patience, **how)

    @rule(
        **ASKED,
        paused=SOMETIMES,
        replies=REPLIES,
        hints=HINTS,
        after=st.sampled_from([0.0, 0.0, 0.0, 3.0, 9.0, 40.0]),
    )
    def ask_and_hear(
        self,
        paused: bool,
        replies: list[str],
        hints: tuple[Pair, ...],
        after: float,
        **how: Any,
    ) -> None:
        """Ask; each attempt gets one of the *replies* at once, because long stories are rare."""
        ask = self.world.ask(patience=None, late=False, **how)
        if paused and not ask.over:
            ask.pause()
        for reply in replies:
            if ask.calls and ask.calls[-1].waits:
                _reply(ask.calls[-1], reply, hints)
                self.world.settle(0.6)  # by then it is asked for again, where that is done soon
        self.world.settle(after)

    def _there(self) -> list[Ask]:
        return [ask for ask in self.world.asks if not ask.over]

    def _late(self) -> list[Ask]:
        return [ask for ask in self.world.asks if ask.rest and ask.gone_at is None]

    def _taking(self) -> list[Ask]:
        return [ask for ask in self._there() if not ask.caller.paused]

    def _paused(self) -> list[Ask]:
        return [ask for ask in self._there() if ask.caller.paused]

    @about(_late)
    def more(self, ask: Ask) -> None:
        ask.more()

    @about(_there)
    def leave(self, ask: Ask) -> None:
        ask.leave()

    @about(_taking)
    def pause(self, ask: Ask) -> None:
        ask.pause()

    @about(_paused)
    def resume(self, ask: Ask) -> None:
        ask.resume()

    def _served(self) -> list[Ask]:
        asks = [ask for ask in self._there() if ask.calls and ask.calls[-1].speaks]
        return [ask for ask in asks if ask.calls[-1].marked_at is None]

    @about(_served, times=st.integers(1, 4), end=st.booleans(), seconds=TIMES, resume=st.booleans())
    def drown(self, ask: Ask, times: int, end: bool, seconds: float, resume: bool) -> None:
        """Say more to a caller who takes nothing than can be on the way."""
        ask.pause()
        call = ask.calls[-1]
        for _ in range(times):
            self.world.settle()
            if call.speaks:
                call.say(big=MUCH)
        if end and call.speaks:
            call.end()
        self.world.settle(seconds)
        if resume:
            ask.resume()

    # Vendors

    def _waiting(self) -> list[Call]:
        return [call for call in self.world.calls if call.waits]

    def _speaking(self) -> list[Call]:
        return [call for call in self.world.calls if call.speaks and call.marked_at is None]

    def _marked(self) -> list[Call]:
        return [call for call in self.world.calls if call.speaks and call.marked_at is not None]

    def _busy(self) -> list[Call]:
        return [call for call in self.world.calls if call.waits or call.speaks]

    def _quiet(self) -> list[Line]:
        lines = [line for vendor in self.world.vendors.values() for line in vendor.lines]
        return [line for line in lines if line.open and not any(call.runs for call in line.calls)]

    @about(_waiting, framing=st.sampled_from(BEGUN), last=st.booleans())
    def begin_answer(self, call: Call, framing: str, last: bool) -> None:
        call.answer(framing=framing, last=last)

    @about(
        _waiting,
        status=st.sampled_from(STATUSES[1:]),
        hints=HINTS,
        last=st.booleans(),
        size=st.sampled_from([0, 0, 300_000]),
    )
    def refuse(self, call: Call, status: int, **more: Any) -> None:
        call.answer(status, **more)

    @about(_waiting)
    def announce(self, call: Call) -> None:
        call.announce()

    @about(_waiting, data=NOT_HTTP)
    def spoil(self, call: Call, data: bytes) -> None:
        call.spoil(data)

    @about(
        _speaking,
        words=st.lists(
            st.tuples(
                st.sampled_from(["word", "word", "word", "mark", "failure"]),
                st.sampled_from([None, None, 1, 7, 20]),
            ),
            min_size=1,
            max_size=4,
        ),
        big=st.sampled_from([0, 0, 0, 0, 0, TOO_MUCH]),
    )
    def say(self, call: Call, words: list[tuple[str, int | None]], big: int) -> None:
        for what, size in words:
            if call.speaks and call.marked_at is None:
                call.say(what, size, big)
            self.world.settle()

    @about(_speaking, early=st.booleans())
    def end(self, call: Call, early: bool) -> None:
        if early and call.stream and call.kind.early and not call.todo:
            call.say("early")
        if call.speaks:
            call.end()

    @about(_marked)
    def end_marked(self, call: Call) -> None:
        call.end()

    @about(_busy, how=CUTS, after=st.sampled_from([0.0, 0.0, 1.0]))
    def cut(self, call: Call, how: str, after: float) -> None:
        self.world.settle(after)
        if call.line.open:
            call.cut(how)

    @about(_quiet, how=st.sampled_from(["fin", "reset", "surplus", "surplus"]))
    def disturb(self, line: Line, how: str) -> None:
        if how != "surplus":
            line.cut(how)
        elif line.calls and not line.deaf:  # else something may have been asked, and not been read
            line.surplus()

    @precondition(lambda self: self.world.asks)
    @rule(
        name=st.sampled_from(["one", "two", "free"]),
        manner=st.sampled_from(
            ["well", "well", "well", "well", "refuses", "away", "deaf", "slams"]
        ),
    )
    def change(self, name: str, manner: str) -> None:
        self.world.change(self.world.vendors[name], manner)

    # Time, and the operator

    @precondition(lambda self: self.world.asks)
    @rule(seconds=TIMES)
    def wait(self, seconds: float) -> None:
        self.world.settle(seconds)

    @rule(plan=st.sampled_from(PLANS))
    @precondition(lambda self: self.world.drained is None and bool(self._there()))
    def reload(self, plan: Plan) -> None:
        self.world.reload(plan)

    @rule(seconds=st.sampled_from([0.0, 5.0, 60.0]), now=st.booleans())
    @precondition(lambda self: self.world.drained is None and len(self.world.asks) > 2)
    def drain(self, seconds: float, now: bool) -> None:
        if now:
            self.world.drain(seconds)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "world"):
            return
        self.sound = False
        self.world.settle()
        check(self.world)
        self.sound = True

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if self.sound:
                finish(self.world)
        finally:
            self.world.close()


QUICK = settings(
    max_examples=250,
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
