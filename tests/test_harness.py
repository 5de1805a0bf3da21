"""The harness itself, where it decides: what it lets pass, no test would find."""

import asyncio
from datetime import UTC, datetime

import orjson
import pytest

from tests.conftest import routes_to
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream


@pytest.mark.parametrize(
    ("after", "lasted", "under_way", "found"),
    [(0.0, 50.0, 0, True), (0.0, 50.0, 1, False), (0.0, 0.0, 0, False), (0.1, 500.0, 0, False)],
    ids=["of what was counted", "under way", "of another", "later"],
)
async def test_one_line_too_many(
    upstream: Upstream, after: float, lasted: float, under_way: int, found: bool
) -> None:
    """A second line of what had been counted fails the test in the end, unless more was under way."""
    complaint = None
    try:
        async with serving(routes_to(upstream)) as proxy:
            assert (await call(proxy.port, chat())).status == 200
            line = await proxy.record(under_way=under_way)
            await asyncio.sleep(after)
            line |= {"ts": datetime.now(UTC), "total_ms": lasted}
            with proxy.log.open("ab") as log:
                log.write(orjson.dumps(line) + b"\n")
    except AssertionError as error:
        complaint = str(error)
    assert (complaint is not None) == found
    assert not found or "more than 1 exchanges" in str(complaint)
