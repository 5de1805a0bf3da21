"""The house that cases share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import (
    connecting,
    departures,
    entry,
    exhaustion,
    framing,
    heads,
    lifecycle,
    retries,
    secrecy,
    sends,
    streams,
)
from tests.faults.case import CASES
from tests.faults.house import House, house_of
from tests.faults.places import Spot
from tests.faults.tls import AUTHORITY

SECTIONS = (
    framing, entry, connecting, heads, streams, departures, retries, lifecycle, secrecy, exhaustion,
)  # fmt: skip
"""Each puts its cases into `CASES` when it is imported."""


@dataclass
class Shared:
    """The house, and the loop that it lives on."""

    runner: asyncio.Runner
    house: House


@asynccontextmanager
async def shared_house(directory: Path) -> AsyncIterator[House]:
    """Build one house for every case that needs none of its own."""
    ca = directory / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(ca)
    (directory / ".netrc").write_text("machine 127.0.0.1 login netrc password sk-from-netrc\n")
    spots: dict[str, Spot] = {"trap": Spot()}
    routes, more = [], []
    for case in CASES:
        spots |= case.places
        routes.append(case.routes)
        more.append(case.more)
    spots |= sends.SPOTS
    routes += sends.ROUTES
    trap = "http://127.0.0.1:9"  # nobody is there: whoever obeys these goes nowhere
    env = {
        "HTTP_PROXY": trap,
        "http_proxy": trap,
        "HTTPS_PROXY": trap,
        "https_proxy": trap,
        "ALL_PROXY": trap,
        "HOME": str(directory),
        "NETRC": str(directory / ".netrc"),
        "FAULT_NAMES": "up=127.0.0.1,dual=::1|127.0.0.1,none=,other=127.0.0.1,slow=127.0.0.1",
    }
    async with house_of(
        spots, "\n".join(routes), more="\n".join(more), server='max_body = "24MiB"', env=env, ca=ca
    ) as house:
        yield house
