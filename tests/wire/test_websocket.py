"""The watcher of frames sees what a WebSocket library has written, however its bytes are split."""

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from proxy.wire.websocket import Frames

SIZES = st.one_of(
    st.integers(0, 130), st.sampled_from([125, 126, 127, 65_535, 65_536, 65_537, 70_000])
)
"""Lengths on both sides of where another form of length begins (RFC 6455 section 5.2)."""
CONTROL = st.sampled_from([Opcode.PING, Opcode.PONG])
FRAMES = st.one_of(
    st.builds(
        Frame,
        st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT]),
        SIZES.map(bytes),
        fin=st.booleans(),
    ),
    st.builds(Frame, CONTROL, st.binary(max_size=125)),
)
CLOSE = st.builds(Frame, st.just(Opcode.CLOSE), st.binary(max_size=125))


@dataclass(frozen=True)
class Written:
    """The bytes of some frames, where each begins and ends, and how long the head of a Close is."""

    data: bytes
    bounds: frozenset[int]
    closes: tuple[int, int] | None
    """Where the first Close begins, and where its head ends."""


def write(frames: list[Frame], mask: list[bool]) -> Written:
    data, bounds, closes = b"", {0}, None
    for frame, masked in zip(frames, mask, strict=True):
        if frame.opcode is Opcode.CLOSE and closes is None:
            closes = (len(data), len(data) + (6 if masked else 2))
        one = frame.serialize(mask=masked)
        if frame.opcode is Opcode.TEXT:
            one = bytes([one[0] | 0x40]) + one[1:]  # as a compressed one has it (RFC 7692)
        data += one
        bounds.add(len(data))
    return Written(data, frozenset(bounds), closes)


@st.composite
def written(draw: st.DrawFn) -> Written:
    """Make frames of all kinds, in any order, perhaps with a Close among them."""
    frames = draw(st.lists(FRAMES, max_size=8))
    if draw(st.booleans()):
        frames.insert(draw(st.integers(0, len(frames))), draw(CLOSE))
    mask = draw(st.lists(st.booleans(), min_size=len(frames), max_size=len(frames)))
    return write(frames, mask)


def watch(seen: Written, cuts: list[int]) -> None:
    """Feed what is *written* in the pieces between *cuts*, and look after each one."""
    frames, last = Frames(), 0
    assert (frames.between, frames.closed) == (True, False)
    for cut in sorted({*cuts, len(seen.data)}):
        frames.feed(seen.data[last:cut])
        last = cut
        assert frames.between is (cut in seen.bounds), cut
        if seen.closes is None or cut <= seen.closes[0]:
            assert not frames.closed
        elif cut >= seen.closes[1]:
            assert frames.closed


@given(st.data(), written())
def test_any_split(data: st.DataObject, seen: Written) -> None:
    """Wherever the pieces end, it knows whether a frame does, and whether a Close has begun."""
    near = [bound + offset for bound in seen.bounds for offset in range(-2, 16)]
    near = [cut for cut in near if 0 <= cut <= len(seen.data)]
    anywhere = st.integers(0, len(seen.data))
    watch(seen, data.draw(st.lists(st.one_of(anywhere, st.sampled_from(near)), max_size=20)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
def test_byte_by_byte(size: int, masked: bool) -> None:
    """Each form of length is read right when every byte comes alone."""
    frames = [Frame(Opcode.BINARY, bytes(size)), Frame(Opcode.PING, b""), Frame(Opcode.CLOSE, b"")]
    seen = write(frames, [masked] * 3)
    watch(seen, list(range(len(seen.data) + 1)))


def test_a_close_inside_a_payload() -> None:
    """What looks like a Close, and stands inside a message, is none."""
    inner = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False)
    frames = Frames()
    for masked in (False, True):
        frames.feed(Frame(Opcode.BINARY, inner * 100).serialize(mask=masked))
    assert (frames.closed, frames.between) == (False, True)


def test_a_message_in_parts() -> None:
    """Pings among the parts of a message end frames, not the message, and close nothing."""
    parts = [
        Frame(Opcode.TEXT, b"a" * 300, fin=False),
        Frame(Opcode.PING, b"there?"),
        Frame(Opcode.CONT, b"b" * 70_000, fin=False),
        Frame(Opcode.PONG, b""),
        Frame(Opcode.CONT, b""),
    ]
    frames = Frames()
    for part in parts:
        data = part.serialize(mask=True)
        frames.feed(data[:1])
        assert not frames.between
        frames.feed(data[1:])
        assert frames.between
    assert not frames.closed


def cpu_seconds(total: int, size: int) -> float:
    """Return what it costs to watch *total* bytes in frames of *size*, in the pieces a socket gives."""
    data = Frame(Opcode.BINARY, bytes(size)).serialize(mask=True) * (total // size)
    pieces = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    frames = Frames()
    begun = time.process_time()
    for piece in pieces:
        frames.feed(piece)
    spent = time.process_time() - begun
    assert frames.between
    return spent


@pytest.mark.parametrize("size", [2**10, 2**16, 2**26])
def test_linear(size: int) -> None:
    """To watch costs the same for each byte, whatever has passed before: 64 MB, in frames of any size."""
    total = 2**26
    small = min(cpu_seconds(total // 8, min(size, total // 8)) for _ in range(3))
    large = min(cpu_seconds(total, size) for _ in range(2))
    assert large < 0.05 + 16 * small
    assert large < 2.0
