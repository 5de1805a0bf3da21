"""One proxy for a file of tests, in a process of its own: blocking clients may block."""

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.clients.team import ENV, STRICT, routes_file
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
