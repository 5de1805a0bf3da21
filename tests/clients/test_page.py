"""OpenAI's SDK in a page of another origin: what `cors` lets it see decides what it does."""

import asyncio
import socket
import sys

import orjson
import pytest

from tests.harness.proxy import process
from tests.harness.upstream import Upstream, answer, raw
from tests.test_pages import CHROMIUM, HERE, MISSING, NODE

KEY = "sk-team-0123456789abcdef"
SAID = b'{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}'
LIMITS = [
    (b"Content-Type", b"application/json"),
    (b"x-ratelimit-remaining-requests", b"7"),
    (b"anthropic-ratelimit-tokens-remaining", b"9"),
    (b"retry-after-ms", b"5"),
    (b"openai-processing-ms", b"3"),
    (b"request-id", b"theirs"),
]


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.timeout(180)
async def test_sdk_in_a_page(upstream: Upstream) -> None:
    """A page's SDK does not ask again for what may have been billed, heeds a wait of milliseconds, and sees
    the vendor's limits and every id.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    toml = f"""
    [server]
    cors = ["http://127.0.0.1:{port}"]
    [keys]
    team = "{KEY}"
    [upstreams.up]
    base_url = "{upstream.url}"
    [routes]
    "*" = {{ upstream = "up", retry = {{ attempts = 1 }} }}
    """
    upstream.will(
        answer(200, SAID, LIMITS),
        raw(b""),  # closed without an answer: it may have been billed
        answer(429, b'{"error":{"message":"slow"}}', LIMITS),
        answer(200, SAID, LIMITS),
    )
    async with process(toml) as proxy:
        asked = {
            "proxy": proxy.url, "port": port, "key": KEY, "chromium": CHROMIUM,
            "models": ["plain", "cut", "limited"],
        }  # fmt: skip
        node = await asyncio.create_subprocess_exec(
            NODE or "node",
            str(HERE / "pages/origin.mjs"),
            orjson.dumps(asked).decode(),
            stdout=asyncio.subprocess.PIPE,
            stderr=sys.stderr,
        )
        out, _ = await node.communicate()
        assert node.returncode == 0
        seen = orjson.loads(out)
        models = [record["model"] for record in proxy.records() if record["method"] == "POST"]
    assert models == ["plain", "cut", "limited", "limited"]
    assert seen["plain"]["said"] == seen["limited"]["said"] == "Hi"
    for name, value in LIMITS:
        assert seen["plain"]["headers"][name.decode().lower()] == value.decode(), name
    assert seen["plain"]["headers"]["x-trunkline-id"].startswith("req_")
    assert seen["cut"]["status"] == 502
    assert seen["cut"]["code"] == "upstream_disconnected"
    assert seen["cut"]["headers"]["x-should-retry"] == "false"
    assert {"request-id", "x-request-id", "x-trunkline-id"} <= {*seen["cut"]["headers"]}
