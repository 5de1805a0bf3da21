"""What the two sides of the wire see of each other is what they are."""

from inspect import getattr_static, isfunction, signature
from typing import Any, cast

import pytest

from proxy.edge import Request
from proxy.ports import Caller, Downstream, Flow, Inbound, Sink
from proxy.reader import Reader
from proxy.relay import Relay
from proxy.tunnel import Tunnel

PAIRS = [
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
