"""What the log must say: one record of each request, of what has happened to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tests.fuzz.answering import ANY, ERRORS, Relayed
from tests.fuzz.caller import Ask
from tests.fuzz.kinds import KINDS
from tests.fuzz.plan import CONNECT, SLACK, WRITE
from tests.fuzz.rules import Rules

Record = dict[str, Any]

OURS = {"refused", "upstream_error", "timeout", "client_error"}
"""How a request may end whose answer is the proxy's own."""


def check_log(lines: Sequence[Record], asks: Sequence[Ask], last: float | None) -> None:
    """Check the *lines* of the log after *asks*; *last* is when the time was up for all that ran, None
    if it never was.
    """
    heard = [ask for ask in asks if not ask.unheard]
    records = [line for line in lines if line["event"] == "exchange"]
    Logged(lines, heard, [_owner(line, heard) for line in records]).check()
    for line in records:
        ask = _owner(line, heard)
        if ask is None:
            Nameless(line, heard).check()
        else:
            Recorded(ask, line, last).check()


def _owner(line: Record, asks: Sequence[Ask]) -> Ask | None:
    """Return whose record *line* is, None if all was over before that could be known."""
    for ask in asks:
        identity = ask.reading.headers.get(b"x-trunkline-id", b"").decode()
        named = line["model"] == f"{ask.route}/{ask.tag}" or line["path"] == f"/v1/files/{ask.tag}"
        if named or line["request_id"] == identity:
            return ask
    return None


@dataclass
class Logged(Rules):
    """Of the whole log: its *lines*, and the *owners* of its records."""

    lines: Sequence[Record]
    heard: Sequence[Ask]
    owners: Sequence[Ask | None]

    def nothing_has_gone_wrong_inside(self) -> bool:
        """The proxy has no errors of its own."""
        return not {"internal_error", "loop_error"} & {line["event"] for line in self.lines}

    def each_request_has_one_record(self) -> bool:
        """Every request leaves one record, whatever has become of it."""
        named = [ask for ask in self.owners if ask is not None]
        return len(self.owners) == len(self.heard) and len(named) == len(set(named))

    def what_was_sent_says_whose_it_is(self) -> bool:
        """The record of a request that a vendor has seen says which it is."""
        return all(ask in self.owners for ask in self.heard if ask.calls)


@dataclass
class Nameless(Rules):
    """Of a *record* of a request that was over before it could be known which of those *heard* it was."""

    record: Record
    heard: Sequence[Ask]

    def nobody_was_asked_for_it(self) -> bool:
        """No attempt is made for a request that was not read to its end."""
        return not self.record["attempts"]

    def somebody_gave_up(self) -> bool:
        """A request that was not read to its end was given up, by its caller or by the proxy."""
        unread = any(ask.was_paused for ask in self.heard)
        why = {"client_gone", "shutdown"} | ({"client_error"} if unread else set())
        return self.record["outcome"] in why


@dataclass
class Recorded(Rules):
    """Of the *record* of *ask*; at *last* the time was up for all that ran."""

    ask: Ask
    record: Record
    last: float | None

    @property
    def _ours(self) -> bool:
        """Whether the answer was the proxy's own."""
        return self.ask.reading.status is not None and self.ask.answering is None

    def attempts_are_bounded(self) -> bool:
        """No more attempts are made than the file allows, at each place, nor more that may be billed."""
        plan, attempts = self.ask.plan, self.record["attempts"]
        places = sum(map(len, plan.secrets.values()))
        billed = sum(bool(one["maybe_billed"]) for one in attempts)
        return len(attempts) <= plan.attempts * places and billed <= plan.attempts

    def every_attempt_is_told(self) -> bool:
        """What a vendor has seen is an attempt, and what it has answered was sent."""
        attempts, calls = self.record["attempts"], self.ask.calls
        reached = [one for one in attempts if one["phase"] != "unsent"]
        answered = [call for call in calls if call.status is not None]
        return len(calls) <= len(attempts) and len(answered) <= len(reached)

    def who_takes_nothing_is_left(self) -> bool:
        """A vendor that does not take a request, which is there, is not waited for longer than the file says."""
        unsent = [one for one in self.record["attempts"] if one["phase"] == "unsent"]
        limit = 1000 * (CONNECT + 2 * WRITE + SLACK)
        return self.ask.kind is KINDS["upload"] or all(one["ms"] <= limit for one in unsent)

    def what_may_be_billed_is_told(self) -> bool:
        """An attempt that a vendor had in full, and did not answer, may be billed."""
        billed = sum(bool(one["maybe_billed"]) for one in self.record["attempts"])
        return billed >= sum(call.unanswered for call in self.ask.calls)

    def the_status_is_told(self) -> bool:
        """The record has the status that the caller has."""
        return self.ask.reading.status in {None, self.record["status"]}

    def the_outcome_is_told(self) -> bool:
        """The record says how it has ended, and by whose doing."""
        return self.record["outcome"] in _outcomes(self.ask, draining=self.last is not None)

    def a_drain_waits(self) -> bool:
        """What runs when the proxy begins to leave may run until the time is up."""
        ended = self.ask.at + self.record["total_ms"] / 1000
        cut = self.record["outcome"] == "shutdown"
        return not cut or bool(self.last and ended >= self.last - 0.01)

    def an_error_is_whole(self) -> bool:
        """An answer of the proxy's own comes whole to whoever is there."""
        return not self._ours or self.ask.reading.whole or self.ask.gone_at is not None

    def an_error_is_the_one_that_is_told(self) -> bool:
        """An answer of the proxy's own has the code that is in the record."""
        if not self._ours or not self.ask.reading.whole or self.ask.kind is KINDS["messages"]:
            return True
        said = orjson.loads(self.ask.reading.body)["error"]["code"]
        return bool(said == self.record["error"])

    def nobody_is_led_to_pay_twice(self) -> bool:
        """An SDK is told not to send again what the last vendor may bill."""
        lost = any(call.unanswered for call in self.ask.calls)
        wanted = lost and self.record["attempts"][-1]["maybe_billed"] and self.ask.reading.whole
        hint = self.ask.reading.headers.get(b"x-should-retry")
        return not (self._ours and wanted) or hint == b"false"


def _outcomes(ask: Ask, *, draining: bool) -> set[str]:
    """Return how *ask* may be said to have ended."""
    call, whole = ask.answering, ask.reading.whole
    drained = {"shutdown"} if draining else set()
    broken_off = set() if whole else {"timeout"} | drained
    if ask.kind is KINDS["upload"] and not whole:
        broken_off.add("client_error")  # the rest of it did not come in time
    if ask.gone_at is not None and not ask.was_over:
        return {"client_gone"} | _outcomes_unseen(ask)
    if call is None:
        return OURS | drained
    if call.failed:
        return {"upstream_error"} | (broken_off if ask.was_paused else set())
    if whole or call.complete:
        status = call.status or 0
        bad = "upstream_error" if status >= 500 or status in (408, 429) else "client_error"
        return {bad if status >= 400 else "ok"} | broken_off
    code = Relayed.of(ask, call).code
    return {"upstream_cut"} | broken_off if code in (None, ANY) else {ERRORS[code]}


def _outcomes_unseen(ask: Ask) -> set[str]:
    """Return how *ask*, whose caller has left, may have ended before, unseen by the caller."""
    call = ask.answering
    if ask.was_paused or ask.kind is KINDS["upload"]:
        return {*ERRORS.values(), *OURS, "ok"}
    if call is None:
        return set()
    return ({"upstream_error"} if call.failed else set()) | ({"ok"} if call.complete else set())
