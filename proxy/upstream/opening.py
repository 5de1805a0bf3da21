"""Open an answer: pick a place, send, wait for how an answer begins; where that fails, elsewhere or again, as
`retry` says. It ends with an opened answer, or with an error.
"""

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from proxy.errors import (
    UPSTREAM_AUTH,
    UPSTREAM_CONNECT,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    Fault,
    Outcome,
    ProxyError,
    UpstreamFailure,
    outcome_of,
)
from proxy.exchange import Attempt, Exchange
from proxy.outbound import Addressed
from proxy.routes import Target
from proxy.upstream.asked import Asked
from proxy.upstream.balance import Choice, Scores
from proxy.upstream.clocks import Clocks, clocks_of, deadline_of
from proxy.upstream.connection import Connection
from proxy.upstream.hints import retry_after, should_retry
from proxy.upstream.places import Places
from proxy.upstream.retry import RULES, Failed, Go, Stop, Trip, rule_of
from proxy.upstream.transport import Transport
from proxy.upstream.verdict import is_doubtful, judge

Tell = Callable[..., object]
"""Is told, as an event of the log with its facts, what an operator should hear of."""

CREDENTIAL_REST_SECONDS = 60.0
"""Ask no credential for this long that the upstream has refused."""
REST_SECONDS = 5.0
"""Ask no credential for this long after a 402 or 429 that does not say how long."""
CUT_SHORT_SECONDS = 0.02
"""Blame no upstream for an attempt that failed with less than this left: it has failed because there was no
more.
"""


class Opened(msgspec.Struct, eq=False):
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
        places = Places(asked, self.scores, self.chance)
        choice = places.first(self.clock())
        own = fresh = asked.upgrade or asked.upload is not None  # takes a connection of its own
        clocks = clocks_of(asked.exchange, choice.target, upload=asked.upload is not None)
        trip: Trip | None = None
        came: Opened | Failed[Opened] | None = None
        step: Go | Stop[Opened] | None = None
        try:
            while True:
                # 1. The client leaves, or the fault is ours: that is raised, and nothing follows.
                came = await self._attempt(places, clocks, choice, fresh=fresh)
                # 2. An answer comes that is the caller's, whatever it says.
                if isinstance(came, Opened):
                    return self._relayable(asked, came)
                # 3. No answer comes; or
                # 4. one that another place may better, which is kept in hand meanwhile.
                trip, now = trip or self._trip(asked, clocks, choice.target), self.clock()
                step = trip.after(came, places.other(came, now), now)
                if isinstance(step, Stop):
                    if isinstance(step.result, Opened):
                        return self._relayable(asked, step.result)
                    raise step.result
                await self._pause(asked.exchange, came, step.wait)
                choice, fresh = step.choice, own or step.fresh
        finally:
            if trip is not None:
                trip.close()
            came = step = None  # else an error that is raised leads to itself, and to a body

    def done(self, opened: Opened, outcome: Outcome | None, code: str | None) -> None:
        """Take note that the answer *opened*, whose attempt has ended, is over: with what *outcome*, and
        which error's *code*. Keep its connection, if it can be used again.
        """
        attempt, health = opened.attempt, opened.choice.health
        status = attempt.status or 0  # of a stream that began with an error, what it stands for
        said = status if status >= 400 else opened.stands_for
        health.ended(attempt.ended or self.clock(), outcome, code, said)
        if attempt.broken:
            health.fault(self.clock())
        elif attempt.error is None and status < 500:
            health.succeeded(opened.probe)
        health.end(opened.probe)
        self.transport.release(attempt.upstream, opened.to.base.origin, opened.connection)

    async def _attempt(
        self, places: Places, clocks: Clocks, choice: Choice, *, fresh: bool
    ) -> Opened | Failed[Opened]:
        """Make an attempt at *choice*, with *fresh* on a new connection. Raises `ProxyError` for what is not the
        upstream's doing, and where the time is up.
        """
        asked, upstream, health = places.asked, choice.target.upstream, choice.health
        exchange = asked.exchange
        if clocks.until <= self.clock():
            message = "The answer did not begin in the time that this route allows in all."
            raise ProxyError(UPSTREAM_TIMEOUT, message)
        exchange.upstream = upstream
        to, pieces = asked.write(choice)
        started = self.clock()
        attempt = exchange.begin(upstream, started)
        if choice.credential is not None and not asked.passthrough:
            attempt.credential = choice.credential.secret.source
        probe, connection = health.begin(started), None
        try:
            try:
                connection = await self.transport.open(
                    upstream.name,
                    to.base.origin,
                    pieces,
                    choice.target.timeouts,
                    attempt,
                    asked.upload,
                    until=clocks.until,
                    patience=clocks.patience,
                    fresh=fresh,
                    upgrade=asked.upgrade,
                )
            finally:
                attempt.ended = self.clock()
                exchange.waited += attempt.ended - started
            opened = Opened(choice, to, connection, attempt, probe, connection.status)
            if is_doubtful(asked, connection.status):
                verdict = await judge(asked, connection, attempt, self.clock)
                opened.stands_for, opened.hearsay = verdict
        except BaseException as error:
            health.end(probe)  # of an answer `done` does so
            if connection is not None:
                self.transport.drop(connection)
            elif isinstance(error, UpstreamFailure):
                return self._unanswered(asked, clocks, choice, attempt, error)
            elif isinstance(error, ProxyError):
                attempt.error = error.kind.code
            raise
        status = opened.stands_for % 1000  # what `retry` has in the place of one is that and 1000
        health.answered(attempt.ended, status, attempt.ended - started, probe)
        return opened if status < 400 else self._weighed(places, opened)

    def _unanswered(
        self,
        asked: Asked,
        clocks: Clocks,
        choice: Choice,
        attempt: Attempt,
        failure: UpstreamFailure,
    ) -> Failed[Opened]:
        """Keep the score of an *attempt* without an answer, and tell the operator of what will not heal by itself.

        Where the time was up for the caller, who may be hasty, or for the whole answer, that says nothing of
        an upstream that had not had its own time to be reached, or to begin.
        """
        fault, now = failure.fault, self.clock()
        attempt.error, attempt.reason = failure.kind.code, failure.reason
        choice.health.failures.count(now, failure.kind.outcome, failure.kind.code)
        cut_short = clocks.until - now < CUT_SHORT_SECONDS
        if RULES[fault].fault and not cut_short:
            choice.health.fault(now, refused=failure.kind is UPSTREAM_CONNECT)
        if fault is Fault.CERTIFICATE:
            upstream = choice.target.upstream.name
            self.tell("upstream_certificate", upstream=upstream, reason=failure.reason)
        if asked.upload is not None and not fault.unsent:
            fault = Fault.MALFORMED  # what has begun to be passed on cannot be sent again
        return Failed(choice, fault, RULES[fault], failure)

    def _weighed(self, places: Places, opened: Opened) -> Opened | Failed[Opened]:
        """Return *opened*, which is an error: as an answer, or as a failure where another place may better it.
        Let the credential rest that it is about.
        """
        asked, choice, reason = places.asked, opened.choice, opened.stands_for
        ours = not asked.passthrough and not opened.hearsay
        if reason == 401 and ours and choice.credential is not None:
            secret, upstream = choice.credential.secret, choice.target.upstream.name
            secret.refused()
            self.tell("credential_refused", upstream=upstream, source=secret.source)
            self._rest(places, choice, CREDENTIAL_REST_SECONDS)
        rule = rule_of(reason, choice.target.retry.also)
        if rule is None or asked.upload is not None:
            return opened
        headers = opened.connection.headers
        after = retry_after(headers, self.wall())
        if reason in (402, 429) and ours:
            self._rest(places, choice, REST_SECONDS if after is None else after)
        begun = opened.connection.status < 400
        return Failed(choice, reason, rule, opened, after, should_retry(headers), begun)

    def _rest(self, places: Places, choice: Choice, seconds: float) -> None:
        """Let *choice* rest, if there is anywhere to go meanwhile."""
        rest = choice.health.rest if places.has_other(choice) else choice.health.limit
        rest(self.clock(), seconds)

    async def _pause(self, exchange: Exchange, failed: Failed[Opened], seconds: float) -> None:
        """Wait *seconds*, which are nobody's overhead, before another attempt is made; then abandon the answer
        that has *failed*, if there is one.
        """
        began, answer = self.clock(), failed.result
        try:
            await asyncio.sleep(seconds)
            exchange.waited += min(seconds, self.clock() - began)
            if isinstance(answer, Opened):
                answer.attempt.abandoned = failed.rule.billed
        finally:
            if isinstance(answer, Opened):
                self.done(answer, outcome_of(answer.stands_for % 1000), None)

    def _trip(self, asked: Asked, clocks: Clocks, first: Target) -> Trip:
        """Return the trip that begins when an attempt at the *first* target has failed."""
        exchange = asked.exchange
        count = exchange.headers.first.get(b"x-stainless-retry-count")
        resent = count is not None and count not in (b"", b"0")
        deadline = deadline_of(exchange, first, clocks)
        return Trip(first.retry, deadline, resent=resent, chance=self.chance)

    def _relayable(self, asked: Asked, opened: Opened) -> Opened:
        """Return *opened*. Raises `ProxyError` where it must not be relayed, whatever it says."""
        if opened.stands_for == 401 and not asked.passthrough:
            # Not the caller's key is meant but ours, and the body may quote it.
            kind, message = UPSTREAM_AUTH, "The upstream refused the proxy's credential."
        elif 300 <= opened.connection.status < 400 and opened.connection.status != 304:
            kind, message = UPSTREAM_PROTOCOL, "The upstream redirected the request."
        else:
            return opened
        opened.attempt.error = kind.code
        opened.connection.close()
        self.done(opened, kind.outcome, kind.code)
        raise ProxyError(kind, message)
