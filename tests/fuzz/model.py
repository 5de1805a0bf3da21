"""What must hold in a world: at each moment, and when everything is over."""

import asyncio
from dataclasses import dataclass

from tests.fuzz.answering import check_answer
from tests.fuzz.plan import SLACK
from tests.fuzz.records import check_log
from tests.fuzz.rules import Rules
from tests.fuzz.world import World

EVER = 2_000.0
"""By then everything is over, whatever nobody does: longer than all that may wait for each other."""


def check(world: World) -> None:
    """Check everything as it stands."""
    for error in world.wrong:
        raise error
    Always(world).check()
    for ask in world.asks:
        if not ask.unheard:
            check_answer(ask)


def finish(world: World) -> None:
    """Let everything come to its end, and check what is left, and the log."""
    for ask in world.asks:
        if not ask.unheard:
            ask.resume()
    world.settle()
    check(world)
    world.settle(EVER)
    for vendor in world.vendors.values():
        world.change(vendor, "well")
    check(world)
    Finally(world).check()
    world.stop()
    check_log(world.log(), world.asks, world.drained and sum(world.drained))


@dataclass
class Always(Rules):
    """Of a world at any moment."""

    world: World

    def no_error_goes_unheard(self) -> bool:
        """Nothing is raised where only the loop hears of it."""
        return not self.world.loop.errors

    def who_comes_is_let_in_until_the_drain(self) -> bool:
        """Connections are taken until the proxy leaves, and none after."""
        return self.world.dialled <= {("taken", "serving"), ("refused", "leaving")}

    def the_gate_counts(self) -> bool:
        """No more is in flight than was asked for, and bytes are held for what is in flight only."""
        inflight, held = self.world.running.gate.inflight, self.world.running.gate.held
        return 0 <= inflight <= len(self.world.asks) and (held >= 0 if inflight else held == 0)

    def nothing_runs_for_nobody(self) -> bool:
        """No more is in flight than there are callers who wait, and take what comes."""
        return self.world.running.gate.inflight <= sum(ask.alive for ask in self.world.asks)

    def a_busy_connection_is_somebodys(self) -> bool:
        """There are no more busy connections than requests in flight."""
        pool, gate = self.world.running._transport, self.world.running.gate
        busy = [one for one in pool._open if one.arrival and not one.transport.is_closing()]
        return len(busy) <= gate.inflight

    def loads_are_counted(self) -> bool:
        """A vendor's load is not below nothing, nor above what is in flight."""
        loads = self.world.running._opener.scores._loads.values()
        inflight = self.world.running.gate.inflight
        return all(0 <= one.active <= inflight and one.retrying >= 0 for one in loads)

    def a_drain_comes_to_an_end(self) -> bool:
        """All is over soon after the time is up that was given to what ran."""
        if self.world.drained is None or self.world.now <= sum(self.world.drained) + SLACK:
            return True
        over = all(ask.over or ask.caller.paused for ask in self.world.asks)
        return over and self.world.running.gate.inflight == 0


@dataclass
class Finally(Rules):
    """Of a world in which everything is over."""

    world: World

    def every_request_ends(self) -> bool:
        """Every caller who is there has an end of the answer."""
        return all(ask.over for ask in self.world.asks)

    def nothing_is_left_in_the_gate(self) -> bool:
        """Nothing is in flight, and no byte is held."""
        return (self.world.running.gate.inflight, self.world.running.gate.held) == (0, 0)

    def nothing_is_left_of_a_load(self) -> bool:
        """No vendor has anything to do, and none is being probed."""
        scores = self.world.running._opener.scores
        idle = all((one.active, one.retrying) == (0, 0) for one in scores._loads.values())
        return idle and not any(one.probing for one in scores._healths.values())

    def no_connection_is_left(self) -> bool:
        """Connections that nobody uses are closed, on both sides."""
        pool = self.world.running._transport
        lines = [line for vendor in self.world.vendors.values() for line in vendor.lines]
        return not pool._open and not pool._idle and not any(line.open for line in lines)

    def nothing_runs(self) -> bool:
        """No relay is left, and no task."""
        return not self.world.running._relays and not asyncio.all_tasks(self.world.loop)
