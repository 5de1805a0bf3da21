"""Several workers under one supervisor, as a test starts them and sees them."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme

from tests.harness.client import call
from tests.harness.proxy import Proxy, process

STRICT = ("-W", "error")
"""Without `-X dev`, which complains of a busy machine: several processes begin here at once."""


def to(url: str, server: str = "") -> str:
    return f'[server]\n{server}\n[routes]\n"*" = {{ base_url = "{url}" }}\n'


@asynccontextmanager
async def workers(text: str, count: int = 2, **more: Any) -> AsyncIterator[Proxy]:
    async with process(text, further=("--workers", str(count)), python=STRICT, **more) as proxy:
        yield proxy


def pids(proxy: Proxy) -> dict[int, int]:
    """Return which process is which worker."""
    return {line["worker"]: line["pid"] for line in proxy.events("worker_started")}


async def status(proxy: Proxy) -> dict[str, Any]:
    got = await call(proxy.port, path="/status", method="GET")
    assert got.status == 200, got.raw
    found: dict[str, Any] = got.json()
    return found


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def both_have(proxy: Proxy, streams: int) -> dict[str, int]:
    """Wait until so many streams are running; return which worker has which."""
    found: dict[str, int] = {}

    async def running() -> bool:
        sessions = (await status(proxy))["sessions"]
        found.update({one["id"]: one["worker"] for one in sessions if one["bytes_out"]})
        return len(found) >= streams

    await until(running)
    return found


def secured(directory: Path) -> tuple[str, ssl.SSLContext]:
    """Return how a server speaks TLS, with files in *directory*, and what its clients trust."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    key, pem = directory / "key", directory / "pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(pem))
    context = ssl.create_default_context()
    ca.configure_trust(context)
    tls = f'tls = {{ certificate = "{pem}", key = "{key}" }}'
    return f'listen = "127.0.0.1:0"\n{tls}', context


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for thread in threads for one in thread.read_text().split()]
