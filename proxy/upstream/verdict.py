"""What an answer is, judged by its status and by how its body begins: whether its vendor means more by it, or
less, than the status says.
"""

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote

from proxy.errors import is_good
from proxy.exchange import Attempt
from proxy.headers import is_plain, is_stream
from proxy.shapes import LOOKED_AT, Meaning, Said, hearsay, meaning, named, said, unpacked
from proxy.sse import first_error, has_event, status_of
from proxy.upstream.asked import Asked
from proxy.upstream.connection import Connection
from proxy.upstream.retry import NOT_PERMITTED, TOO_LONG

PEEK_BYTES = 64 * 1024
"""Look at no more than this of how a body begins."""
PEEK_SECONDS = 0.5
"""Wait no longer than this for that much of it."""

_STANDS_FOR: dict[Meaning | None, int] = {
    Meaning.CREDENTIAL: 401,
    Meaning.ACCOUNT: 402,
    Meaning.PERMISSION: NOT_PERMITTED,
    Meaning.TOO_LONG: TOO_LONG,
}
"""What an error is taken for whose status says less than its body."""


class Verdict(NamedTuple):
    """What an answer *stands for*: its status, or what its body says that it should have been (a status, or
    what `retry` has in its place). With *hearsay* the caller may have made it so.
    """

    stands_for: int
    hearsay: bool = False


async def judge(
    asked: Asked, connection: Connection, attempt: Attempt, clock: Callable[[], float]
) -> Verdict:
    """Return what the answer on *connection* is, that was *asked* for, and is doubtful; put into *attempt* what
    its vendor calls an error. To wait for its body is to wait for the upstream.
    """
    status, headers = connection.status, connection.headers
    if 400 <= status < 500:
        looked_at = status in LOOKED_AT and not asked.passthrough
        body = await _peek(
            asked, connection, clock, lambda _: not looked_at, PEEK_SECONDS if looked_at else 0.0
        )
        body = unpacked(body, headers.first.get(b"content-encoding", b""))
        attempt.vendor_code, attempt.vendor_type = named(body)
        return _meant(asked, status, said(body)) if looked_at else Verdict(status)
    if is_good(status) and is_stream(headers) and is_plain(headers):
        body = await _peek(asked, connection, clock, has_event, PEEK_SECONDS)
        if (error := first_error(body)) is not None:
            return _meant(asked, status_of(error), error, 400)
    return Verdict(status)


def is_doubtful(asked: Asked, status: int) -> bool:
    """Return whether an answer of *status* is judged at all: each error is, a good one where the route says so."""
    return status >= 400 or (asked.route is not None and asked.route.peek)


def _meant(asked: Asked, status: int, told: Said, read_as: int = 0) -> Verdict:
    """Judge an error of *status*, *read as* one of another, that has *told* this."""
    meant = meaning(read_as or status, told)
    if meant is Meaning.TOO_LONG and not (asked.route and asked.route.on_context_length):
        return Verdict(status)
    stands_for = _STANDS_FOR.get(meant, status)
    if stands_for not in (401, 402) or meaning(read_as or status, Said(told.codes)) is meant:
        return Verdict(stands_for)  # none but a vendor writes its codes
    if asked.upload is not None:
        return Verdict(stands_for, hearsay=True)  # what went up was not seen
    target = unquote(f"{asked.exchange.path}?{asked.exchange.query}")
    return Verdict(stands_for, hearsay(told, asked.body, asked.name or "", target))


async def _peek(
    asked: Asked,
    connection: Connection,
    clock: Callable[[], float],
    enough: Callable[[bytes], bool],
    seconds: float,
) -> bytes:
    """Return how the body of an answer begins."""
    begun = clock()
    try:
        return await connection.peek(enough, PEEK_BYTES, seconds)
    finally:
        asked.exchange.waited += clock() - begun
