"""What a proxy makes of peers that vanish: to be run in a network of its own, of which it cuts off some.

Says as JSON, by who has vanished, how it ended and after how many seconds.
"""

import asyncio
import subprocess
import sys
import time
from typing import Any

import orjson
import uvloop

from tests.harness.client import Client, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import CHUNKED, SSE, Conn, Received, Upstream, chunk, event, head


def cut_off(port: int) -> None:
    """Let no packet from or to *port* arrive any more."""
    for way in ("--dport", "--sport"):
        rule = ["iptables", "-A", "INPUT", "-p", "tcp", way, str(port), "-j", "DROP"]
        subprocess.run(rule, check=True)


async def begun(conn: Conn, seen: Received) -> None:
    """Begin a stream, and say nothing more."""
    await conn.send(head(200, [SSE, CHUNKED]) + chunk(event(b'{"choices":[]}')))
    await conn.left(300)
    conn.keep = False


async def vanish(proxy: Proxy, who: str, upstream: Upstream) -> tuple[str, float]:
    """Let *who* vanish while a stream is silent."""
    async with await Client.connect(proxy.port) as client:
        known = len(proxy.records())
        await client.send(request(chat("a", stream=True)))
        async with asyncio.timeout(10):
            while not upstream.requests:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        port = client.writer.get_extra_info("sockname")[1] if who == "client" else upstream.port
        before = time.monotonic()
        cut_off(port)
        record: dict[str, Any] = await proxy.record(known + 1, 200)
        return record["outcome"], time.monotonic() - before


async def main(seconds: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    async def one(who: str) -> tuple[str, float]:
        async with Upstream() as upstream:
            upstream.will(begun)
            toml = f'[server]\npeer_timeout = "{seconds}"\n[upstreams.a]\n'
            toml += f'base_url = "{upstream.url}"\ntimeout = {{ write = "{seconds}" }}\n'
            toml += '[routes]\na = "a/m"'
            async with serving(toml) as proxy:
                return await vanish(proxy, who, upstream)

    both = await asyncio.gather(one("client"), one("upstream"))
    print(orjson.dumps(dict(zip(("client", "upstream"), both, strict=True))).decode())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
