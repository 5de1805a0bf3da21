"""Durations (`600s`, `1m30s`, `250ms`, `none`) and sizes (`64MiB`, `1GB`), as the file writes them."""

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?)?B?")
_BYTES = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def seconds(text: object) -> float | None:
    """Read a duration as seconds, `none` as None. Raises `ValueError` saying what is expected."""
    if text == "none":
        return None
    if isinstance(text, str):
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            total = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            if total > 0:
                return float(total)
    raise ValueError('must be a duration such as "30s", "250ms", "1m30s", or "none"')


def size(value: object) -> int:
    """Read a size as bytes. Raises `ValueError` saying what is expected."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is not None:
            count = int(float(match[1]) * _BYTES[match[2]])
            if count > 0:
                return count
    raise ValueError('must be a size such as "64MiB", "10MB", or a number of bytes')
