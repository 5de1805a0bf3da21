"""What vendors may be asked: which of them, with which key, how often, and after what."""

from dataclasses import dataclass
from itertools import groupby

from tests.fuzz.caller import Ask
from tests.fuzz.kinds import AGAIN, BROKEN, KINDS
from tests.fuzz.plan import CONNECT, DEADLINE
from tests.fuzz.rules import Rules
from tests.fuzz.vendor import Call


def check_sent(ask: Ask, call: Call) -> None:
    """Check *call*, which has arrived at a vendor, before *ask* has it among its calls."""
    Sent(ask, call).check()
    if not call.late:  # else it was sent at some time before
        SentInTime(ask, call).check()
        if ask.calls:
            SentAgain(ask, ask.calls[-1], call).check()


@dataclass
class Sent(Rules):
    """Of whatever arrives at a vendor."""

    ask: Ask
    call: Call

    def a_route_leads_to_its_own_vendors(self) -> bool:
        """A request goes to a vendor of the route that it names, in the file under which it came."""
        routed = self.ask.kind.routed
        return self.call.vendor.name in (
            self.ask.plan.routes[self.ask.route] if routed else ("two",)
        )

    def a_vendor_is_shown_its_own_keys(self) -> bool:
        """A vendor is shown a key of its own, of the file under which the request came."""
        return self.call.secret in self.ask.plan.secrets[self.call.vendor.name]

    def attempts_are_bounded(self) -> bool:
        """No more attempts are made at one vendor with one key than the file allows."""
        place = self.call.vendor, self.call.secret
        before = [call for call in self.ask.calls if (call.vendor, call.secret) == place]
        return len(before) < self.ask.plan.attempts

    def bills_are_bounded(self) -> bool:
        """No more attempts are made that may be billed than the file allows, whoever allows them."""
        billed = [call.unanswered or call.status in (200, *BROKEN) for call in self.ask.calls]
        return sum(billed) < self.ask.plan.attempts

    def a_place_is_asked_once(self) -> bool:
        """Nobody is asked again when somebody else has been asked meanwhile."""
        places = [(call.vendor.name, call.secret) for call in (*self.ask.calls, self.call)]
        return len([*groupby(places)]) == len({*places})

    def a_5xx_is_failed_over_once(self) -> bool:
        """A request is given to another vendor after a 5xx at most once."""
        return sum(call.status in BROKEN for call in self.ask.calls) <= 1

    def a_connection_has_one_request_at_a_time(self) -> bool:
        """A connection is used again when its answer is over, and that was not said to be the last one."""
        behind = self.call.behind
        return behind is None or (behind.finished and not behind.last)


@dataclass
class SentInTime(Rules):
    """Of what a vendor reads when it comes."""

    ask: Ask
    call: Call

    def nothing_is_sent_for_who_has_left(self) -> bool:
        """No vendor is asked for a caller who has left."""
        return self.ask.gone_at is None

    def nothing_is_sent_once_an_answer_has_begun(self) -> bool:
        """There is no retry once a byte of an answer has gone out."""
        return self.ask.reading.status is None

    def nothing_is_sent_after_the_deadline(self) -> bool:
        """No attempt begins after the deadline over all of them; to be reached takes its own time."""
        return self.call.at - self.ask.at <= DEADLINE + CONNECT or bool(self.ask.rest)


@dataclass
class SentAgain(Rules):
    """Of what was sent to a vendor before, the *last* time without success."""

    ask: Ask
    last: Call
    call: Call

    @property
    def _elsewhere(self) -> bool:
        return self.call.vendor is not self.last.vendor

    @property
    def _same(self) -> bool:
        return not self._elsewhere and self.call.secret == self.last.secret

    def who_may_have_executed_it_is_not_asked_again(self) -> bool:
        """A vendor that said 5xx, or nothing after it had it all, does not get the request again."""
        lost = [call.vendor for call in self.ask.calls if call.lost_to(self.ask.plan)]
        return self.call.vendor not in lost

    def an_upload_is_sent_once(self) -> bool:
        """What is passed on as it comes cannot be sent again."""
        return self.ask.kind is not KINDS["upload"]

    def what_is_no_answer_is_final(self) -> bool:
        """There is no retry after what is not HTTP, nor after an answer that was announced only."""
        last = self.last
        announced = last.announced and last.status is None and last.cut_at is not None
        return not last.spoilt and not announced

    def nothing_is_billed_twice(self) -> bool:
        """What a vendor had in full, and did not answer, goes elsewhere if the vendor is free, or the file
        allows it; and back on a new connection, if the vendor cannot have read it.
        """
        if not self.last.unanswered:
            return True
        if self._elsewhere:
            return not self.last.billed or self.ask.plan.ambiguous
        return self.ask.plan.stale and self.last.raced and self.call.behind is None

    def a_200_is_final(self) -> bool:
        """There is no retry after a 200, but where its first event, at which we peek, is an error."""
        failed = self.last.stream and self.last.events()[:1] == [self.last.kind.failure]
        return self.last.status != 200 or (self.ask.plan.peek and failed)

    def a_refused_key_is_not_shown_again(self) -> bool:
        """After a 401 comes another key, or another vendor."""
        return self.last.status != 401 or not self._same

    def a_5xx_is_failed_over_elsewhere(self) -> bool:
        """After a 5xx comes another vendor, if the file allows it."""
        allowed = self._elsewhere and self.ask.plan.failover_5xx
        return self.last.status not in BROKEN or allowed

    def other_answers_are_final(self) -> bool:
        """There is no retry after a status that does not ask for one."""
        return self.last.status in (None, 200, 401, *BROKEN, *AGAIN)

    def who_says_when_is_asked_then(self) -> bool:
        """The same is asked again no sooner than it said, and only if that is soon; not at all if it said so,
        nor if a 429 did not say when.
        """
        if self.last.status not in AGAIN or not self._same:
            return True
        busy, hints = self.last.status == 429, self.last.hints
        if hints.get(b"x-should-retry") == b"false" or (busy and not hints):
            return False
        wait = int(hints.get(b"Retry-After", 0)) + int(hints.get(b"retry-after-ms", 0)) / 1000
        waited = self.call.at - self.last.spoke_at
        return wait <= (2.0 if busy else 10.0) and waited >= wait - 0.001
