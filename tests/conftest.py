"""Everything runs on the loop that production runs on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import Upstream


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as scripted:
        yield scripted


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy without keys whose model `m` leads to the scripted upstream, under the same name."""
    async with serving(routes_to(upstream)) as running:
        yield running


def routes_to(upstream: Upstream, extra: str = "") -> str:
    """Return a routes file that leads every model to *upstream*, with a credential."""
    return f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
{extra}
[routes]
"*" = {{ upstream = "up", model = "*" }}
"""
