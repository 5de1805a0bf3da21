"""What the two sides of the wire see of each other is what they are."""

from inspect import getattr_static, isfunction, signature
from typing import Any, cast

import pytest

from proxy import sse
from proxy.client.edge import Request
from proxy.reader import Reader
from proxy.relay import Relay
from proxy.tunnel import Tunnel
from proxy.unnamed import Unnamed
from proxy.wire.ports import Caller, Downstream, Flow, Inbound, Sink, Tap, together
from proxy.wire.websocket import Frames

PAIRS = [
    (Tap, sse.Tap),
    (Tap, Frames),
    (Tap, Unnamed),
    (Flow, Relay),
    (Flow, Tunnel),
    (Sink, Relay),
    (Sink, Reader),
    (Sink, Tunnel),
    (Downstream, Request),
    (Caller, Request),
    (Inbound, Request),
]


def named(port: type) -> list[str]:
    """Return the names of what *port* has, and can be asked to do."""
    found = [name for one in port.__mro__[:-1] for name in vars(one)]
    return [name for name in found if not name.startswith("_")]


@pytest.mark.parametrize(("port", "stands"), PAIRS)
def test_both_sides_meet(port: type, stands: type) -> None:
    """What stands at a port has what the port has; its calls take the same, by the same names."""
    wanted = named(port)
    assert wanted
    for name in wanted:
        there, here = (cast(Any, getattr_static(one, name)) for one in (stands, port))
        if isfunction(here):
            assert list(signature(there).parameters) == list(signature(here).parameters)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_together(count: int) -> None:
    """Taps are fed in their order, each piece to all of them before the next one."""
    told: list[tuple[int, bytes]] = []

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def feed(self, data: bytes) -> None:
            told.append((self.number, data))

    feed = together([Numbered(number) for number in range(count)])
    feed(b"a")
    feed(b"b")
    assert told == [(number, data) for data in (b"a", b"b") for number in range(count)]
