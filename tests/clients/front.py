"""The same call made twice: straight at the vendor, and through the proxy that stands in front of it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.clients.team import KEY
from tests.clients.vendor import SECRETS, Vendor, credentials, leaks, name_of, wire
from tests.harness.proxy import Proxy
from tests.harness.upstream import Received

SIGNED = {
    "oai": [
        [("authorization", f"Bearer {SECRETS['oai']}")],
        [("subprotocol", SECRETS["oai"])],  # where a browser showed the proxy's key in the same way
    ],
    "claude": [[("x-api-key", SECRETS["claude"])]],
    "google": [[("x-goog-api-key", SECRETS["google"])]],
}
"""What each vendor may get from the proxy: one credential, in the form that the routes file says."""


@dataclass(frozen=True)
class Access:
    """What an application is told: an address and, for each vendor, a key. Nothing else differs."""

    url: str
    keys: dict[str, str]


Call = Callable[[Access], Awaitable[Any]]


@dataclass
class Front:
    """A *vendor* and a *proxy* in front of it."""

    vendor: Vendor
    proxy: Proxy
    exchanges: int = 0

    @property
    def direct(self) -> Access:
        return Access(self.vendor.origin, SECRETS)

    @property
    def proxied(self) -> Access:
        return Access(self.proxy.url, dict.fromkeys(SECRETS, KEY))

    async def same(self, call: Call, proxied: Call | None = None) -> Any:
        """Make *call* both ways; return its result, after seeing that nothing tells them apart.

        *proxied* is what is called through the proxy, where that names another model.
        """
        self.vendor.take()
        expected = await call(self.direct)
        sent = self.vendor.take()
        result = await (proxied or call)(self.proxied)
        arrived = self.vendor.take()
        await self.logged(arrived)
        assert result == expected
        alike(sent, arrived)
        return result

    async def logged(self, arrived: list[Received]) -> None:
        """See that the log has one line more for each request that *arrived*, all of them good."""
        for record, request in zip(await self.records(len(arrived)), arrived, strict=True):
            seen = (record["outcome"], record["error"], record["key"], record["upstream"])
            assert seen == ("ok", None, "team", name_of(request.target)), record
            assert record["status"] in (101, 200)

    async def records(self, number: int, seconds: float = 5.0) -> list[dict[str, Any]]:
        """Wait for exactly this *number* of exchanges that were not seen before; return their lines."""
        async with asyncio.timeout(seconds):
            while len(self.proxy.records()) < self.exchanges + number:
                await asyncio.sleep(0.005)
        records = self.proxy.records()[self.exchanges :]
        self.exchanges += len(records)
        assert len(records) == number, records
        return records


def alike(sent: list[Received], arrived: list[Received]) -> None:
    """See that what *arrived* through the proxy is what is *sent* without one, differently signed."""
    assert [wire(request)[0] for request in arrived] == [wire(request)[0] for request in sent]
    for one, other in zip(sent, arrived, strict=True):
        assert wire(other) == wire(one)
        assert other.value(b"accept-encoding") in (_readable(one), b"identity")
        assert list(credentials(other)) in SIGNED[name_of(other.target)]
        assert not leaks(other)


def _readable(request: Received) -> bytes | None:
    """Return the content codings that *request* accepts, but for those that the proxy could not read."""
    offered = request.value(b"accept-encoding")
    if offered is None:
        return None
    return b", ".join(one for one in offered.split(b", ") if one not in (b"br", b"zstd"))


@contextmanager
def vendor_in_a_thread() -> Iterator[Vendor]:
    """Run a vendor on a loop of its own, so that blocking clients may block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    vendor = Vendor()
    try:
        asyncio.run_coroutine_threadsafe(vendor.__aenter__(), loop).result(10)
        yield vendor
        leave = vendor.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(leave, loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
