"""What each side of the wire sees of the other: the five Protocols between the two.

They stand below both sides, so that neither knows the other: `edge` serves what `relay` and
`tunnel` write to, `connection` feeds what they are.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.admission import Admitted
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.model.body import Body
from proxy.wire.coding import Unpacker
from proxy.wire.outbox import Outgoing


class Flow(Protocol):
    """What listens to whether a peer keeps up with what is written to it."""

    def pause_writing(self) -> None:
        """The peer takes no more for now."""

    def resume_writing(self) -> None:
        """The peer takes again."""


class Sink(Protocol):
    """Where the body of an answer goes, as calls and not as objects: an event costs one."""

    @property
    def size(self) -> int:
        """Return how many bytes have been taken, for who counts them anyway."""

    def data(self, data: bytes) -> None:
        """Take the next piece, which is never empty."""

    def end(self) -> None:
        """The answer is complete."""

    def broke(self, error: ProxyError) -> None:
        """The answer will not be completed; its connection is of no use any more."""


class Tap(Protocol):
    """A tap: reads along what an upstream says, each piece when it has passed, and changes nothing."""

    def feed(self, data: bytes) -> None:
        """Take note of *data*, the next piece."""


def together(taps: Sequence[Tap]) -> Callable[[bytes], None]:
    """Return what feeds all of *taps*, at least one, in their order: made once, so that an event finds it
    in one look.
    """
    if len(taps) == 1:
        return taps[0].feed

    def feed(data: bytes) -> None:
        for tap in taps:
            tap.feed(data)

    return feed


class Downstream(Protocol):
    """The client's connection, as an answer is written to it."""

    transport: Outgoing | None
    flow: Flow | None

    @property
    def writing_paused(self) -> bool:
        """Return whether the client takes no more for now."""


class Caller(Protocol):
    """The client's connection, of which a tunnel takes every byte."""

    transport: Outgoing | None
    flow: Flow | None

    def tunnel(self, take: Callable[[bytes], None]) -> None:
        """Hand to *take* what the client sends from now on, and at once what it has sent early."""


class Inbound(Downstream, Caller, Protocol):
    """The client's side of one exchange: all that the road knows of `edge`."""

    async def read(
        self, exchange: Exchange, limit: int, admitted: Admitted, unpacker: Unpacker | None = None
    ) -> Body:
        """Return the whole request body, as *unpacker* has it, for whose bytes *admitted* has room then."""

    async def receive(self, exchange: Exchange) -> bytes:
        """Return the next piece of the request body as it comes, nothing at its end."""

    @property
    def length(self) -> int | None:
        """Return how long the request body is said to be, None where only its end will tell."""

    def complete(self) -> bool:
        """Return whether the whole request body has come in."""

    @property
    def keep_alive(self) -> bool:
        """Return whether the client's connection may be used again after this answer."""
