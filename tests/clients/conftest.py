"""One proxy for a file of tests, in a process of its own: blocking clients may block."""

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.clients.front import Front, vendor_in_a_thread
from tests.clients.team import ENV, STRICT, routes_file
from tests.clients.vendor import Vendor, routes_to
from tests.harness.proxy import Proxy, process


@pytest.fixture(scope="module")
def team() -> Iterator[Proxy]:
    """A team's proxy on the shipped routes; at its end, it must have said nothing on stderr.

    It is no async fixture, because those begin anew for each test.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        running = process(routes_file(), ENV, python=STRICT)
        yield runner.run(running.__aenter__())
        runner.run(running.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    """Every vendor at once."""
    with vendor_in_a_thread() as running:
        yield running


@pytest.fixture(scope="module")
def front(vendor: Vendor) -> Iterator[Front]:
    """A team's proxy in front of every vendor; at its end, no exchange was written that was not asked for."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        running = process(routes_to(vendor), ENV, python=STRICT)
        front = Front(vendor, runner.run(running.__aenter__()))
        yield front
        written = len(front.proxy.records())
        runner.run(running.__aexit__(None, None, None))
        assert written == front.exchanges
