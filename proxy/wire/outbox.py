"""Writes that go out together, when a round of the loop is over.

Half of what a write to a socket costs is to wake up who waits at its other end. Where many
connections are busy at a time, what they write within one round of the event loop waits for
its end, and is sent then, one right after the other: who is awake need not be woken. A round takes
microseconds, or as long as that which is ready; to hold no one up, it ends early after a few.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

MOST = 16
"""Flush early once this many connections have pending writes."""
ALONE = 7
"""Send at most this many writes at once, before it is looked again whether there is company."""
LARGE_BYTES = 32 * 1024
"""Send at once what is this long: to join it costs more than to wake somebody."""

Data = bytes | bytearray | memoryview


class Outbox:
    """The connections of one loop that have written something in this round.

    A round in which only one has anything to say shows that there is no company to wait for: the
    next writes go out at once, more of them each time that this is found.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Outgoing] = []
        self._count = 0  # so many have written in this round, sent or not
        self._alone = 0  # so many writes went out at once, after the last round with only one
        self._at_once = 0  # so many of them are left

    def add(self, transport: "Outgoing") -> None:
        """Have *transport* send what is pending there, soon."""
        if self._at_once:
            self._at_once -= 1
            transport.send()
            return
        self._waiting.append(transport)
        self._count += 1
        if self._count == 1:
            self._loop.call_soon(self._end_round)
        elif len(self._waiting) >= MOST:
            self._send()

    def _end_round(self) -> None:
        count, self._count = self._count, 0
        if count == 1:
            self._alone = self._at_once = min(2 * self._alone + 1, ALONE)
        else:
            self._alone = 0
        self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            transport.send()


class Outgoing(asyncio.Transport):
    """*transport*, but that what is written to it goes out with what others write, by way of *outbox*.

    The order of things is kept: whatever else is done to it comes behind what was written before.
    """

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        super().__init__()
        self._transport = transport
        self._outbox = outbox
        self._pending: list[bytes] = []
        # It is asked before each event: this spares a call.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]

    def write(self, data: Data) -> None:
        """Send *data*, soon."""
        if self._pending:
            self._pending.append(bytes(data))
        elif len(data) < LARGE_BYTES and isinstance(data, bytes):
            self._pending.append(data)
            self._outbox.add(self)
        else:
            self._transport.write(data)

    def pass_on(self, data: bytes) -> None:
        """Send *data*, which came by itself, by itself: at once, or behind what is pending."""
        if self._pending:
            self._pending.append(data)
        else:
            self._transport.write(data)

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        """Send all of *list_of_data*."""
        self.send()
        self._transport.writelines(list_of_data)

    def send(self) -> None:
        """Send what is pending, now."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        if not self._transport.is_closing():
            self._transport.write(pending[0] if len(pending) == 1 else b"".join(pending))

    def write_eof(self) -> None:
        self.send()
        self._transport.write_eof()
        # Who writes after it is told so, and not those whose writes would be sent behind that one.
        self.write = self._transport.write  # type: ignore[method-assign]

    def close(self) -> None:
        self.send()
        self._transport.close()

    def abort(self) -> None:
        self._pending.clear()
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._pending)) + self._transport.get_write_buffer_size()

    # The rest is as it is

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)


class _Closed(asyncio.Transport):
    """A transport that is no more."""

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None:
        pass

    close = abort

    def get_write_buffer_size(self) -> int:
        return 0


CLOSED = _Closed()
"""Takes the place of a transport that was lost: who asks is told so, and nobody holds the other any more."""
