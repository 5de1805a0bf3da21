"""Members of a JSON text of which both ends were kept: found where they are of the outermost object."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.members import END_BYTES, TRIES, Ends, beginnings, endings


@given(st.lists(st.integers(1, END_BYTES), max_size=8))
def test_ends(sizes: Sequence[int]) -> None:
    """All is kept of what is short; of what is long, the first 64 KiB and the last; never more than a piece above."""
    pieces = [bytes([65 + at]) * size for at, size in enumerate(sizes)]
    ends, body = Ends(), b"".join(pieces)
    for piece in pieces:
        ends.add(piece)
    assert ends.head == body[:END_BYTES]
    assert ends.tail == body[max(END_BYTES, len(body) - END_BYTES) :]
    whole = ends.whole()
    assert whole == body or (whole is None and len(body) > 2 * END_BYTES)


OPENINGS = (b"{",)


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (b'2]},"usage":{"a":1}}', True),
        (b'2]}, "usage" : {"a":1}, "model":"m"}', True),
        (b'2]},"usage":{"usage":{"a":1}}}', True),
        (b'2,"usage":{"a":1}}]}', False),
        (b'text \\"usage\\":{\\"a\\":1}"}', False),
        (b'"usage","model":"m"}', False),
        (b'"usage":{"a":1}', False),
        (b'"usage":{"a":', False),
        (b'\xff"usage":{"a":1}}', True),
        (b"", False),
    ],
)
def test_endings(tail: bytes, found: bool) -> None:
    """From the end, a member is found where what it is in is the outermost object, and nowhere else."""
    whole = [text for text in endings(tail, b"usage", OPENINGS) if is_whole(text)]
    assert bool(whole) is found
    assert all("usage" in msgspec.json.decode(text) for text in whole)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b'{"usage":{"a":1},"data":[0.1', True),
        (b'{"id":"x","usage":{"a":{"b":1}},"data":[', True),
        (b'{"data":[{"usage":{"a":1}},', False),
        (b'{"inner":{"usage":{"a":1}},"data":[', False),
        (b'{"usage":{"a":1', False),
        (b'{"text":"\\"usage\\":{}', False),
        (b"", False),
    ],
)
def test_beginnings(head: bytes, found: bool) -> None:
    """From the beginning, too, and what stands inside of another is not taken for it."""
    whole = [text for text in beginnings(head, b"usage", b"}") if is_whole(text)]
    assert any("usage" in msgspec.json.decode(text) for text in whole) is found


def test_tries() -> None:
    """What is full of the name costs no more than a few tries."""
    full = b'{"data":[' + b'{"usage":{}},' * 9999
    assert sum(1 for _ in endings(full, b"usage", OPENINGS)) == TRIES
    assert sum(1 for _ in beginnings(full, b"usage", b"}")) == TRIES


def is_whole(text: bytes) -> bool:
    """Return whether *text* is one JSON text."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
