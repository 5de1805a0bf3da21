"""What a caller may have of an answer, and who may work for it."""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from tests.fuzz.caller import Ask
from tests.fuzz.kinds import BODILESS
from tests.fuzz.plan import BEGINS, GRACE, IDLE, KEEPALIVE, SLACK
from tests.fuzz.rules import Rules
from tests.fuzz.vendor import Call

COMMENT = b": keepalive\n"
ERRORS = {
    "upstream_disconnected": "upstream_cut",
    "upstream_incomplete": "upstream_cut",
    "upstream_idle_timeout": "timeout",
    "proxy_shutdown": "shutdown",
}
"""The errors that can end a stream, and how a request has ended then."""
ANY = "any of them"
"""The code of an error in a dialect that has none."""

_EVENT = re.compile(rb"(?:event: error\n)?data: (\{[^\n]*\})\n\n")


def check_answer(ask: Ask) -> None:
    """Check what there is of the answer to *ask*."""
    Answered(ask).check()
    call = ask.answering
    if call is not None:
        Relayed.of(ask, call).check()


@dataclass
class Answered(Rules):
    """Of every request."""

    ask: Ask

    def nothing_follows_an_answer(self) -> bool:
        """Nothing stands behind an answer on its connection, but the answer to the next request."""
        return not self.ask.reading.rest or not self.ask.latest

    def an_answer_comes_to_who_asked(self) -> bool:
        """An answer of a vendor's belongs to the request for which that vendor was asked."""
        return b"x-call" not in self.ask.reading.headers or self.ask.answering is not None

    def nobody_works_for_who_has_left(self) -> bool:
        """When a caller leaves, the work for it is stopped."""
        return not self.ask.abandoned or not any(call.runs for call in self.ask.calls)

    def one_vendor_at_a_time_works(self) -> bool:
        """When another vendor is asked, what the last one has not finished is stopped."""
        return not any(call.runs for call in self.ask.calls[:-1])

    def an_answer_begins_in_time(self) -> bool:
        """Who says for how long it waits has an answer before, and all when the last attempt's time is over.
        An upload is over, and its caller begins to wait, when a vendor has taken it.
        """
        ask, limit = self.ask, BEGINS + SLACK
        if ask.patience is not None and (ask.kind.routed or ask.calls):
            limit = ask.patience
        waits = ask.reading.status is None and not (ask.over or ask.was_paused or ask.rest)
        return not waits or ask.clock() - ask.at < limit

    def a_final_answer_begins_at_once(self) -> bool:
        """An answer after which nothing else may be tried begins when its vendor begins it."""
        ask, call = self.ask, self.ask.calls[-1] if self.ask.calls else None
        if call is None or not ask.listening or ask.rest:
            return True
        peeked = ask.plan.peek and call.checked
        final = call.status in (404, *BODILESS) or (call.status == 200 and not peeked)
        return not final or ask.reading.status is not None

    def nothing_is_billed_twice(self) -> bool:
        """Of all vendors that had a request in full, one at most bills it, if the file wants it so."""
        lost = [call for call in self.ask.calls if call.billed and not call.raced]
        given = [call for call in self.ask.calls if call.status == 200 and not call.failed]
        return self.ask.plan.ambiguous or len(lost) + len(given) <= 1


@dataclass
class Relayed(Rules):
    """Of every answer of a vendor's: what is *relayed* of it, less all comments, and the *code* of the error
    event of the proxy's own behind it, if there is one.
    """

    ask: Ask
    call: Call
    relayed: bytes
    code: str | None = None

    @classmethod
    def of(cls, ask: Ask, call: Call) -> "Relayed":
        """Tell what comes from *call*'s vendor, and what from the proxy, in what *ask* has of it."""
        body = ask.reading.body
        if not call.checked:
            return cls(ask, call, body)
        if ask.plan.keepalive:
            body = body.replace(COMMENT, b"")
        last = body.removesuffix(b"\n\n").rpartition(b"\n\n")[2] + b"\n\n"
        event = _EVENT.fullmatch(last) if body.endswith(last) else None
        code = None if event is None else _code(ask, orjson.loads(event[1]))
        if code is None:
            return cls(ask, call, body)
        return cls(ask, call, body.removesuffix(last), code)

    @property
    def _silent_for(self) -> float:
        """For how long the vendor could have spoken, and somebody would have listened."""
        could = self.call.speaks and self.ask.listening
        return self.ask.clock() - self.call.spoke_at if could else 0.0

    def the_status_is_the_vendors(self) -> bool:
        """The status of an answer is not changed."""
        return self.ask.reading.status == self.call.status

    def some_answers_are_never_shown(self) -> bool:
        """Neither that a key of ours is refused, nor a redirect, is passed on."""
        return self.call.status not in (302, 401)

    def an_error_event_stands_by_itself(self) -> bool:
        """An error stands between events: where one is open there is none."""
        return self.code is None or _between(self.relayed)

    def bytes_are_the_vendors(self) -> bool:
        """What is relayed is what was sent, byte for byte, and all of it where it looks complete."""
        some, whole = self.call.sent.startswith(self.relayed), self.call.sent == self.relayed
        return whole or (some and not self.ask.reading.whole)

    def no_byte_is_held_back(self) -> bool:
        """What was sent has reached a caller who takes it."""
        return self.call.sent == self.relayed or not self.ask.listening

    def comments_stand_between_events(self) -> bool:
        """A comment stands between events."""
        wanted = self.ask.plan.keepalive and self.call.checked
        parts = self.ask.reading.body.split(COMMENT) if wanted else []
        return all(_between(b"".join(parts[:count])) for count in range(1, len(parts)))

    def silence_is_commented_on(self) -> bool:
        """A stream that is silent between events gets a comment, if the file says so."""
        silent = self._silent_for > KEEPALIVE + SLACK and not self.call.over
        wanted = silent and self.call.checked and self.ask.plan.keepalive
        return not wanted or not _between(self.call.sent) or COMMENT in self.ask.reading.body

    def silence_is_an_end(self) -> bool:
        """A vendor that falls silent in its answer is waited for as long as the file says."""
        return self._silent_for <= IDLE + SLACK

    def what_looks_complete_is(self) -> bool:
        """A stream ends cleanly behind its marker only, anything else where its vendor ended it."""
        return not self.ask.reading.whole or (self.call.complete and self.code is None)

    def what_is_complete_looks_so(self) -> bool:
        """An answer that is complete is completed for the caller, and gets no error."""
        if not self.call.complete:
            return True
        ended = self.ask.reading.whole or not (self.call.finished and self.ask.listening)
        return ended and self.code is None

    def a_stream_ends_soon_behind_its_marker(self) -> bool:
        """A stream that its vendor leaves open behind its marker is ended when the grace is over."""
        marked = self.call.marked_at
        late = marked is not None and self.ask.clock() > marked + GRACE
        return not late or self.ask.reading.whole or not self.ask.listening

    def a_cut_is_seen_at_once(self) -> bool:
        """The connection of an answer that will not be completed is closed."""
        cut = self.code is not None or self.call.cut_at is not None
        open_ = not self.ask.reading.whole and not self.ask.caller.closed
        return not (cut and open_ and self.ask.listening) or bool(self.ask.rest)

    def an_error_is_true(self) -> bool:
        """An error event says what has happened."""
        happened = {
            "upstream_disconnected": self.call.cut_at is not None,
            "upstream_incomplete": self.call.finished,
            "upstream_idle_timeout": self.ask.clock() - self.call.spoke_at >= IDLE,
            "proxy_shutdown": True,  # the record says when
            ANY: True,
        }
        return self.code is None or happened[self.code]


def _code(ask: Ask, said: dict[str, Any]) -> str | None:
    """Return the code of an error of the proxy's own, None if what is *said* is not."""
    if ask.kind.path == "/v1/messages":
        return ANY if "request_id" in said else None
    code = said.get("code") or said.get("error", {}).get("code")
    return code if code in ERRORS else None


def _between(body: bytes | bytearray) -> bool:
    """Return whether *body*, the beginning of a stream, ends where an event does."""
    return not body or body.endswith(b"\n\n")
