"""Read what is said about waiting: by an answer, `Retry-After` and its many relatives; by an SDK, how long
it will wait itself.

Vendors write seconds, milliseconds, dates, Go durations (`1m30.5s`, `6ms`) and epochs. What makes no
sense counts as nothing said.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from proxy.headers import Pair

LONGEST = 366 * 86400.0
"""Believe no answer that asks for a longer wait than this, in seconds."""

_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|us|µs|ns|h|m|s|d)")
_UNITS = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_SHARE, _LEAST_SECONDS, _MOST_SECONDS = 0.05, 0.05, 1.0
"""Leave an SDK this share of its patience when it has our answer, at least and at most so long."""

_MILLISECONDS = (b"retry-after-ms", b"x-ms-retry-after-ms")
_RESETS = (
    b"x-ratelimit-reset-requests",
    b"x-ratelimit-reset-tokens",
    b"x-ratelimit-reset",
    b"ratelimit-reset",
    b"anthropic-ratelimit-requests-reset",
    b"anthropic-ratelimit-tokens-reset",
    b"anthropic-ratelimit-input-tokens-reset",
    b"anthropic-ratelimit-output-tokens-reset",
)


def retry_after(headers: Iterable[Pair], now: float) -> float | None:
    """Return how many seconds *headers* ask to wait, None where they say nothing; *now* is the time
    of day, in seconds since 1970.

    What is said about retrying counts before what is said about limits. Of several limits the
    longest reset counts, among those of which nothing remains, if any says what remains.
    """
    values: dict[bytes, str] = {}
    for name, value in headers:
        values.setdefault(name.lower(), value.decode("latin-1").strip())
    for name in _MILLISECONDS:
        wait = _number(values.get(name, ""))
        if wait is not None and _sane(wait / 1000) is not None:
            return wait / 1000
    wait = _parse(values.get(b"retry-after", ""), now)
    if wait is not None:
        return wait
    resets = []
    for name in _RESETS:
        wait = _parse(values.get(name, ""), now)
        if wait is not None and values.get(_remaining(name), "0") in ("0", "0.0"):
            resets.append(wait)
    return max(resets) if resets else None


def should_retry(headers: Iterable[Pair]) -> bool | None:
    """Return what `x-should-retry` says, None where it says nothing."""
    for name, value in headers:
        if name.lower() == b"x-should-retry":
            return {b"true": True, b"false": False}.get(value.strip().lower())
    return None


def patience(told: bytes | None) -> float | None:
    """Return for how many seconds an SDK can be kept waiting that says it waits for *told*: a little less.
    None where it says nothing, nothing that is a number, or 0.
    """
    if not told or len(told) > 15 or not told.replace(b".", b"", 1).isdigit():
        return None
    seconds = float(told)
    margin = min(max(_SHARE * seconds, _LEAST_SECONDS), _MOST_SECONDS)
    return max(seconds - margin, seconds / 2) or None


def _parse(text: str, now: float) -> float | None:
    """Read *text* as seconds, an epoch, a duration, an HTTP date or an ISO date."""
    number = _number(text)
    if number is not None:
        if number > 1e11:  # milliseconds since 1970
            number /= 1000
        return _sane(max(0.0, number - now) if number > 1e9 else number)
    parts = _DURATION.findall(text)
    if parts and "".join(amount + unit for amount, unit in parts) == text:
        return _sane(sum(float(amount) * _UNITS[unit] for amount, unit in parts))
    return _date(text, now)


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _date(text: str, now: float) -> float | None:
    if not 8 <= len(text) <= 64:
        return None
    try:
        read = datetime.fromisoformat if text[4:5] == "-" else parsedate_to_datetime
        moment = read(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return _sane(max(0.0, moment.timestamp() - now))
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _sane(seconds: float) -> float | None:
    return seconds if 0 <= seconds <= LONGEST else None


def _remaining(name: bytes) -> bytes:
    """Return the header that says how much of the limit that *name* resets is left."""
    return name.replace(b"reset", b"remaining")
