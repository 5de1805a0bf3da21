"""Durations (`600s`, `1m30s`, `250ms`, `none`), sizes (`64MiB`, `1GB`) and numbers of workers, as the
file writes them.
"""

import re

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
MOST_WORKERS = 256
_SHORTEST, _LONGEST = 5.0, 36000.0
"""Allow no shorter and no longer time between two of TCP's probes: it has to fit into 15 bits."""
_YEAR = 366 * 86400.0
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?)?B?")
_BYTES = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def seconds(text: object) -> float | None:
    """Read a duration as seconds, `none` as None. Raises `ValueError` saying what is expected."""
    if text == "none":
        return None
    if isinstance(text, str):
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            total = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            if 0 < total <= _YEAR:
                return float(total)
    raise ValueError('must be a duration such as "30s", "250ms", "1m30s", or "none"')


def span(text: object) -> float:
    """Read a duration as seconds, but not `none`. Raises `ValueError` saying what is expected."""
    try:
        found = seconds(text)
    except ValueError:
        found = None
    if found is None:
        raise ValueError('must be a duration such as "620s" or "5m"')
    return found


def pause(text: object) -> float:
    """Read a duration as seconds, `0s` among them. Raises `ValueError` saying what is expected."""
    if text in ("0s", "0ms"):
        return 0.0
    try:
        found = seconds(text)
    except ValueError:
        found = None
    if found is None:
        raise ValueError('must be a duration such as "5s", or "0s"')
    return found


def peer_timeout(text: object) -> float | None:
    """Read a duration that TCP can keep, in seconds, `none` as None. Raises `ValueError` saying what is
    expected.
    """
    found = seconds(text)
    if found is not None and not _SHORTEST <= found <= _LONGEST:
        raise ValueError('must be from "5s" to "10h", or "none"')
    return found


def size(value: object) -> int:
    """Read a size as bytes. Raises `ValueError` saying what is expected."""
    count = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)) is not None:
        count = float(match[1]) * _BYTES[match[2]]
    if 1 <= count <= 2**53:
        return int(count)
    raise ValueError('must be a size such as "64MiB", "10MB", or a number of bytes')


def workers(value: object) -> int | None:
    """Read a number of workers, `auto` as None. Raises `ValueError` saying what is expected."""
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_WORKERS:
        return value
    raise ValueError(f'must be a number from 1 to {MOST_WORKERS}, or "auto"')
