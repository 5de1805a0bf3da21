"""Open an attempt: pick a target and a credential, send, wait for the head of an answer; where that
fails, others, as `retry` allows. It ends with an opened answer, or with an error.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from sys import getsizeof
from urllib.parse import unquote

from proxy.balance import Choice, Scores, order
from proxy.body import Body, BodyError, Found, Piece, splice
from proxy.breaker import FAILURES, Health
from proxy.connection import Connection, Upload
from proxy.dialects import REALTIME, Dialect
from proxy.errors import (
    CLIENT_STALLED,
    NOT_CONFIGURED,
    UPSTREAM_AUTH,
    UPSTREAM_CONNECT,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    UPSTREAM_UNAVAILABLE,
    Fault,
    Outcome,
    ProxyError,
    UpstreamFailure,
    is_good,
    outcome_of,
)
from proxy.exchange import Attempt, Exchange
from proxy.headers import NO_NAMES, Names, is_plain, is_stream
from proxy.hints import patience, retry_after, should_retry
from proxy.outbound import WEBSOCKET, Addressed, Written, address, from_azure, head, length
from proxy.retry import (
    CREDENTIAL_REST_SECONDS,
    NOT_PERMITTED,
    RULES,
    TOO_LONG,
    Failed,
    Rule,
    Trip,
    again,
    rule_of,
)
from proxy.routes import Group, Route, Target, Upstream
from proxy.shapes import LOOKED_AT, Meaning, Said, hearsay, meaning, named, said, unpacked
from proxy.sse import first_error, has_event, status_of
from proxy.target import path_for, query_for
from proxy.transport import Transport, least

Pieces = Sequence[Piece]
Tell = Callable[..., object]
"""Is told, as an event of the log with its facts, what an operator should hear of."""

PEEK_BYTES = 64 * 1024
PEEK_SECONDS = 0.5
REST_SECONDS = 5.0
"""How long a credential rests after a 429 that does not say."""
CUT_SHORT_SECONDS = 0.02
"""An attempt that fails with less than this left has failed because there was no more."""

_STANDS_FOR: dict[Meaning | None, int] = {
    Meaning.CREDENTIAL: 401,
    Meaning.ACCOUNT: 402,
    Meaning.PERMISSION: NOT_PERMITTED,
    Meaning.TOO_LONG: TOO_LONG,
}
"""What an error is taken for whose status says less than its body."""


@dataclass(slots=True, eq=False)
class Asked:
    """What is asked for in *exchange*, of whichever of *groups* will have it.

    *name* is the model asked for, as *found* in the request, and *route* says what each target
    calls it; all None where no model is carried, *name* also where the request names none. *body* is
    held whole; an *upload* is passed on as it comes, *framing* says how. With *upgrade* the answer
    may be a tunnel. *strip* names what of the client's headers stays here, as the surface says.
    """

    exchange: Exchange
    groups: tuple[Group, ...]
    passthrough: bool
    route: Route | None = None
    name: str | None = None
    found: Found | None = None
    body: Body = b""
    framing: bytes = b""
    upload: Upload | None = None
    upgrade: bool = False
    strip: Names = NO_NAMES

    @property
    def dialect(self) -> Dialect:
        """Return the dialect that is spoken."""
        assert self.exchange.dialect is not None
        return self.exchange.dialect

    def write(self, choice: Choice) -> tuple[Addressed, Pieces]:
        """Write the request that goes to *choice*: where to, and its pieces in order."""
        exchange, dialect, found = self.exchange, self.dialect, self.found
        target = choice.target
        suffix, query, framing = exchange.suffix, exchange.query, self.framing
        sent, base = None, None
        content: Pieces = [self.body] if self.body else []
        if found is not None and self.route is not None:
            sent = exchange.model_sent = self.route.model_sent(target, self.name)
            if sent is None or found.model == sent:
                pass  # not a byte changes
            elif dialect.carries == "path":
                try:
                    suffix = path_for(suffix, sent)
                except BodyError as error:
                    raise error.told() from None
            elif dialect.carries == "query":
                query = query_for(query, sent)
            else:
                content = splice(self.body, found, sent)
            framing = WEBSOCKET
            if dialect is not REALTIME:
                framing = length(sum(map(len, content)))
        if exchange.azure is not None:
            try:
                base, suffix, query = from_azure(
                    target.upstream, exchange.azure, dialect, suffix, query, sent
                )
            except BodyError as error:
                raise error.told() from None
        signature = choice.signature(
            dialect,
            stream=exchange.stream or exchange.echo is not None,  # no name fits into gzip
            passthrough=self.passthrough,
            hidden=self._hidden(target.upstream),
        )
        known, strip = exchange.learnt.written.get(signature), self.strip
        if (
            known is None
            or known.suffix != suffix
            or known.query != query
            or known.strip is not strip
        ):
            to = address(target.upstream, dialect, suffix, query, base)
            begun = head(exchange.method, to, signature, exchange.headers, strip)
            known = Written(suffix, query, strip, to, begun)
            size = len(begun) + getsizeof(to.target) + getsizeof(suffix) + getsizeof(query)
            exchange.learnt.written.keep(signature, known, size)
        return known.to, [b"%b%b\r\n" % (known.begun, framing), *content]

    def _hidden(self, upstream: Upstream) -> bytes | None:
        """Return the header, in lower case, that chose the route and is nobody else's business."""
        switch = None if self.route is None else self.route.switch
        if switch is None:
            return None
        name = switch.name.lower().encode("ascii")
        return None if name in upstream.forward else name


@dataclass(slots=True, eq=False)
class Opened:
    """An answer that has begun, on *connection*, to an *attempt* at *choice*. *stands_for* is its
    status, or what its body says that it should have been; *hearsay*: where the caller may have made it.
    """

    choice: Choice
    to: Addressed
    connection: Connection
    attempt: Attempt
    probe: int
    stands_for: int = 0
    hearsay: bool = False


class Opener:
    """Opens answers. One for each process: the *scores* are kept from exchange to exchange."""

    def __init__(
        self,
        transport: Transport,
        scores: Scores,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,  # noqa: TID251 - the default of a parameter
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.transport = transport
        self.scores = scores
        self.tell = tell
        self.clock = clock
        self.wall = wall
        self.chance = chance

    async def open(self, asked: Asked) -> Opened:
        """Return an answer to relay. Raises `ProxyError` where there is none that may be relayed."""
        opening = _Opening(self, asked)
        try:
            opened = await opening.run()
        finally:
            opening.close()
        self._judge(asked, opened)
        return opened

    def done(self, opened: Opened, outcome: Outcome | None, code: str | None) -> None:
        """Take note that the answer *opened*, whose attempt has ended, is over: with what *outcome*, and
        which error's *code*. Keep its connection, if it can be used again.
        """
        attempt, health = opened.attempt, opened.choice.health
        now = attempt.ended or self.clock()
        if outcome not in FAILURES or code == CLIENT_STALLED.code:
            health.good = now
        elif outcome is not None:
            status = attempt.status or 0  # of a stream that began with an error, what it stands for
            said = status if status >= 400 else opened.stands_for
            health.failures.count(now, outcome, code or str(said))
        if attempt.broken:
            health.fault(self.clock())
        elif attempt.error is None and (attempt.status or 0) < 500:
            health.succeeded(opened.probe)
        health.end(opened.probe)
        self.transport.release(attempt.upstream, opened.to.base.origin, opened.connection)

    def _judge(self, asked: Asked, opened: Opened) -> None:
        """Refuse an answer that must not be relayed, whatever it says."""
        status = opened.connection.status
        error = None
        if opened.stands_for == 401 and not asked.passthrough:
            # Not the caller's key is meant but ours, and the body may quote it.
            error = ProxyError(UPSTREAM_AUTH, "The upstream refused the proxy's credential.")
        elif 300 <= status < 400 and status != 304:
            error = ProxyError(UPSTREAM_PROTOCOL, "The upstream redirected the request.")
        if error is not None:
            kind, health = error.kind, opened.choice.health
            opened.attempt.error = kind.code
            health.failures.count(self.clock(), kind.outcome, kind.code)
            health.end(opened.probe)
            self.transport.drop(opened.connection)
            raise error


class _Opening:
    """One exchange's way to an answer."""

    def __init__(self, opener: Opener, asked: Asked) -> None:
        self._opener = opener
        self._asked = asked
        self._clock = opener.clock
        self._deadline = inf  # nothing is begun any more
        self._until = inf  # an answer must have begun
        self._patience: float | None = None  # and so long after all was sent
        self._trip: Trip | None = None
        self._held: Opened | None = None  # an answer that is relayed if nothing better comes
        self._ordered: list[Target] | None = None
        self._spent: list[Target | Upstream] = []  # what must not be asked again

    async def run(self) -> Opened:
        choice = self._only() or self._first()
        self._set_clocks(choice.target)
        try:
            return await self._attempt(choice)
        except Failed as failed:
            self._trip = self._make_trip(failed)
            try:
                return await again(self._trip, failed, self._attempt)
            except Failed as last:
                last.__traceback__ = None  # it leads to frames that lead back to it
                return self._settle(last)
            finally:
                failed.__traceback__ = None

    def close(self) -> None:
        """Give back what was held on the way."""
        if self._trip is not None:
            self._trip.close()
            self._trip = None
        if self._held is not None:
            self._discard()

    def _settle(self, failed: Failed) -> Opened:
        """Return the answer that *failed* came with, to be relayed as it is. Raises its error."""
        opened, self._held = self._held, None
        if opened is not None:
            return opened
        error, failed.error = failed.error, None  # which is about to know *failed*
        assert error is not None
        raise error

    def _set_clocks(self, target: Target) -> None:
        """Set until when an answer must have begun: before the route's `total` is up, and the patience of the
        SDK, which it counts from before it sends, or from when all was sent; and until when another
        attempt may be made.
        """
        exchange, asked = self._asked.exchange, self._asked
        told, sending, reading = exchange.headers.first, target.timeouts.total, None
        if b"x-stainless-timeout" in told:
            sending = least(patience(told[b"x-stainless-timeout"]), sending)
        if sending is not None:
            self._until = exchange.received + sending
        sent = exchange.received if exchange.read is None else exchange.read
        if b"x-stainless-read-timeout" in told:
            reading = patience(told[b"x-stainless-read-timeout"])
        if asked.upload is not None:
            self._patience = reading  # all is sent when the upload is over
        elif reading is not None:
            self._until = min(self._until, sent + reading)
        self._deadline, deadline = self._until, target.retry.deadline
        if deadline is not None and sent + deadline < self._until:
            self._deadline = sent + deadline

    def _seconds_left(self) -> float:
        """Return for how long another attempt may be begun."""
        return self._deadline - self._clock()

    def _make_trip(self, failed: Failed) -> Trip:
        count = self._asked.exchange.headers.first.get(b"x-stainless-retry-count")
        resent = count is not None and count not in (b"", b"0")
        trip = Trip(
            failed.choice.target.retry,
            self._others,
            self._seconds_left,
            resent=resent,
            chance=self._opener.chance,
        )
        trip.tried.append(failed.choice)
        return trip

    # Where to

    def _allowed(self) -> list[Target]:
        """Return the targets that will do, in the order in which to try them."""
        if self._ordered is None:
            ordered: list[Target] = []
            if self._asked.passthrough:  # the caller's own credential is for one upstream only
                ordered += self._asked.groups[0].targets[:1]
            else:
                for group in self._asked.groups:
                    ordered += self._order(group)
            self._ordered = [target for target in ordered if self._will_do(target)]
        return self._ordered

    def _order(self, group: Group) -> list[Target]:
        opener, stick = self._opener, None
        if group.sticky is not None:
            stick = self._asked.exchange.headers.first.get(group.sticky)
        return order(group, opener.scores, stick, opener.chance)

    def _will_do(self, target: Target) -> bool:
        upstream, asked = target.upstream, self._asked
        if asked.route is not None and not upstream.speaks(asked.dialect):
            return False
        return upstream.lacks(passthrough=asked.passthrough) is None

    def _choices(self, target: Target) -> list[Choice]:
        """Return the choices that *target* offers, the credential that was used longest ago first."""
        choices = self._opener.scores.choices(target)
        if len(choices) == 1 or self._asked.passthrough:
            return [choices[0]]
        return sorted(choices, key=lambda choice: choice.health.used)

    def _only(self) -> Choice | None:
        """Return where the first attempt goes, where there is but one place, and nothing against it: that
        it speaks the dialect, and is configured, was seen when the route was matched.
        """
        groups, asked = self._asked.groups, self._asked
        if len(groups) != 1 or len(groups[0].targets) != 1:
            return None
        target = groups[0].targets[0]
        choices = self._opener.scores.choices(target)
        if len(choices) != 1 or not _known(choices[0], asked):
            return None
        return choices[0] if choices[0].health.ready(self._clock()) else None

    def _first(self) -> Choice:
        """Return where the first attempt goes. Raises `ProxyError` where there is nowhere to go."""
        now = self._clock()
        choices = [choice for target in self._allowed() for choice in self._choices(target)]
        known = [choice for choice in choices if _known(choice, self._asked)]
        if not known:
            source = choices[0].credential.secret.source if choices[0].credential else ""
            message = f"It is not configured yet: {source} has not given a credential."
            raise ProxyError(NOT_CONFIGURED, message, headers=(("Retry-After", "2"),))
        for choice in known:
            if choice.health.ready(now):
                return choice
        last = min(known, key=lambda choice: choice.health.failed)
        if len({choice.target.upstream for choice in known}) == 1:
            if last.health.refused_until > now and last.health.open_until > now:
                message = "The upstream could not be reached: it refused the connection."
                raise ProxyError(UPSTREAM_CONNECT, message, headers=(("Retry-After", "1"),))
            return last  # a route's only upstream is never blacked out
        if not last.health.probing:
            return last
        rest = min(choice.health.ready_at() for choice in known) - now
        wait = (("Retry-After", str(max(1, round(rest)))),)
        message = "Every upstream of this model is resting after failures."
        raise ProxyError(UPSTREAM_UNAVAILABLE, message, headers=wait)

    def _others(self, trip: Trip, failed: Choice, rule: Rule) -> Iterator[Choice]:
        """Yield where else to go after an attempt at *failed* failed, best first."""
        now = self._clock()
        asked_already = {self._place(choice) for choice in trip.tried}
        nothing_sent = rule.fault or rule is RULES[Fault.DEAD]
        if not rule.same and not rule.sibling:
            self._spent.append(failed.target.upstream if nothing_sent else failed.target)
        for target in self._allowed():
            same_upstream = target.upstream is failed.target.upstream
            if same_upstream and nothing_sent:
                continue  # it would fare no better
            if target in self._spent or target.upstream in self._spent:
                continue  # nor may it be asked by way of another, which has failed meanwhile
            for choice in self._choices(target):
                if target is failed.target and not rule.sibling:
                    continue
                if self._place(choice) in asked_already or not _known(choice, self._asked):
                    continue
                if choice.health.ready(now):
                    yield choice

    def _place(self, choice: Choice) -> tuple[Health, str | None]:
        """Return what *choice* has in common with all that lead to the same place: a credential at an
        upstream, and the model that is asked for there.
        """
        route = self._asked.route
        model = None if route is None else route.model_sent(choice.target, self._asked.name)
        return choice.health, model

    # One attempt

    async def _attempt(self, choice: Choice) -> Opened:
        """Make an attempt at *choice*. Raises `Failed` where it may not be the last one."""
        if self._held is not None:
            held = self._held
            rule = rule_of(held.stands_for, held.choice.target.retry.also)
            held.attempt.abandoned = rule is not None and rule.billed
            self._discard()
        asked, trip, opener = self._asked, self._trip, self._opener
        exchange, upstream, health = asked.exchange, choice.target.upstream, choice.health
        if self._until <= self._clock():
            message = "The answer did not begin in the time that this route allows in all."
            raise ProxyError(UPSTREAM_TIMEOUT, message)
        if trip is not None:
            trip.tried.append(choice)
        exchange.upstream = upstream
        to, pieces = asked.write(choice)
        started = self._clock()
        if trip is not None and trip.wait:
            ended = exchange.attempts[-1].ended or started
            exchange.waited += min(trip.wait, started - ended)
        attempt = exchange.begin(upstream, started)
        if choice.credential is not None and not asked.passthrough:
            attempt.credential = choice.credential.secret.source
        probe = health.begin(started)
        try:
            connection = await opener.transport.open(
                upstream.name,
                to.base.origin,
                pieces,
                choice.target.timeouts,
                attempt,
                asked.upload,
                until=self._until,
                patience=self._patience,
                fresh=asked.upload is not None or asked.upgrade or (trip and trip.fresh) or False,
                upgrade=asked.upgrade,
            )
        except UpstreamFailure as failure:
            attempt.error, attempt.reason = failure.kind.code, failure.reason
            health.failures.count(self._clock(), failure.kind.outcome, failure.kind.code)
            self._note_fault(choice, failure)
            health.end(probe)
            raise Failed(choice, self._reason_of(failure), error=failure) from None
        except BaseException as error:
            if isinstance(error, ProxyError):
                attempt.error = error.kind.code
            health.end(probe)
            raise
        finally:
            attempt.ended = self._clock()
            exchange.waited += attempt.ended - started
        opened = Opened(choice, to, connection, attempt, probe)
        try:
            reason = connection.status
            if reason >= 400 or (asked.route is not None and asked.route.peek):
                reason = await self._look(opened)
            opened.stands_for = reason
        except BaseException:
            health.end(probe)
            opener.transport.drop(connection)
            raise
        health.answered(attempt.ended, _as_status(reason), attempt.ended - started, probe)
        if reason == 401 and not asked.passthrough and not opened.hearsay:
            self._note_refusal(choice)
        if reason < 400 or asked.upload is not None:
            return opened
        if rule_of(reason, choice.target.retry.also) is None:
            return opened
        self._held = opened
        raise self._failed(opened, reason)

    def _reason_of(self, failure: UpstreamFailure) -> Fault:
        """Return the fault of *failure*; what has begun to be passed on cannot be sent again."""
        if self._asked.upload is not None and not failure.fault.unsent:
            return Fault.MALFORMED
        return failure.fault

    def _note_fault(self, choice: Choice, failure: UpstreamFailure) -> None:
        """Keep the score of a *failure*, and tell the operator of one that will not heal by itself.

        Where the time was up for the caller, who may be hasty, or for the whole answer, that says nothing of
        an upstream that had not had its own time to be reached, or to begin.
        """
        cut_short = self._until - self._clock() < CUT_SHORT_SECONDS
        if RULES[failure.fault].fault and not cut_short:
            refused = failure.kind is UPSTREAM_CONNECT
            choice.health.fault(self._clock(), refused=refused)
        if failure.fault is Fault.CERTIFICATE:
            upstream = choice.target.upstream.name
            self._opener.tell("upstream_certificate", upstream=upstream, reason=failure.reason)

    async def _look(self, opened: Opened) -> int:
        """Return the status of an answer, or what stands for it where its body says more."""
        connection, asked = opened.connection, self._asked
        status, headers, route = connection.status, connection.headers, asked.route
        if 400 <= status < 500:
            held = status in LOOKED_AT and not asked.passthrough
            body = await self._peek(connection, lambda _: not held, PEEK_SECONDS if held else 0.0)
            coding = headers.first.get(b"content-encoding", b"")
            body = unpacked(body, coding)
            attempt = opened.attempt
            attempt.vendor_code, attempt.vendor_type = named(body)
            return self._stands_for(opened, status, said(body)) if held else status
        if route is None or not route.peek or not is_good(status):
            return status
        if is_stream(headers) and is_plain(headers):
            body = await self._peek(connection, has_event)
            if (error := first_error(body)) is not None:
                return self._stands_for(opened, status_of(error), error, 400)
        return status

    def _stands_for(self, opened: Opened, status: int, told: Said, read_as: int = 0) -> int:
        """Return what an error of *status*, *read as* one of another, is taken for that has *told* this."""
        route, exchange, asked = self._asked.route, self._asked.exchange, self._asked
        meant = meaning(read_as or status, told)
        coded = meaning(read_as or status, Said(told.codes)) is meant
        if meant is Meaning.TOO_LONG and (route is None or not route.on_context_length):
            return status
        stands_for = _STANDS_FOR.get(meant, status)
        if stands_for in (401, 402) and not coded:
            target = unquote(f"{exchange.path}?{exchange.query}")
            unseen = asked.upload is not None
            opened.hearsay = unseen or hearsay(told, asked.body, asked.name or "", target)
        return stands_for

    async def _peek(
        self,
        connection: Connection,
        enough: Callable[[bytes], bool],
        seconds: float = PEEK_SECONDS,
    ) -> bytes:
        """Return how the body of an answer begins; to wait for that is to wait for the upstream."""
        begun = self._clock()
        try:
            return await connection.peek(enough, PEEK_BYTES, seconds)
        finally:
            self._asked.exchange.waited += self._clock() - begun

    def _failed(self, opened: Opened, reason: int) -> Failed:
        """Say that the answer *opened* is one after which another upstream may be asked."""
        choice, headers = opened.choice, opened.connection.headers
        after = retry_after(headers, self._opener.wall())
        if reason in (402, 429) and not self._asked.passthrough and not opened.hearsay:
            self._rest(choice, REST_SECONDS if after is None else after)
        begun = opened.connection.status < 400
        return Failed(choice, reason, after=after, hint=should_retry(headers), begun=begun)

    def _note_refusal(self, choice: Choice) -> None:
        """Let a credential rest that the upstream would not have, and tell the operator."""
        if choice.credential is None:
            return
        choice.credential.secret.refused()
        source, upstream = choice.credential.secret.source, choice.target.upstream.name
        self._opener.tell("credential_refused", upstream=upstream, source=source)
        self._rest(choice, CREDENTIAL_REST_SECONDS)

    def _rest(self, choice: Choice, seconds: float) -> None:
        """Let *choice* rest, if there is anywhere to go meanwhile."""
        rest = choice.health.rest if self._has_alternative(choice) else choice.health.limit
        rest(self._clock(), seconds)

    def _has_alternative(self, choice: Choice) -> bool:
        """Return whether there is anywhere to go while *choice* rests."""
        allowed = self._allowed()
        return len(allowed) > 1 or len(self._opener.scores.choices(choice.target)) > 1

    def _discard(self) -> None:
        assert self._held is not None
        outcome = outcome_of(_as_status(self._held.stands_for))
        self._opener.done(self._held, outcome, None)
        self._held = None


def _known(choice: Choice, asked: Asked) -> bool:
    """Return whether the credential of *choice* has a value, or none is needed."""
    return choice.credential is None or asked.passthrough or choice.credential.secret.known


def _as_status(reason: int) -> int:
    return {TOO_LONG: 400, NOT_PERMITTED: 403}.get(reason, reason)
