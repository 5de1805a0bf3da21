"""The proxy as a team runs it: the shipped routes behind one key, with two lines more."""

import asyncio
from pathlib import Path
from typing import Any

from tests.harness.proxy import Proxy

KEY = "tl-of-the-team"
ENV = {"TEAM_KEY": KEY}
STRICT = ("-W", "error")
"""Every warning an error; not `-X dev`, which also complains of a machine that is busy."""
ECHO = "sandbox/echo"
HELLO: dict[str, Any] = {"model": ECHO, "messages": [{"role": "user", "content": "one two three"}]}
SAID = "You said: one two three"

CHAT_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
)
MESSAGE_EVENT = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message",'
    b'"role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
)
"""The first events of an answer, as a scripted upstream may send them."""

_MORE = """
[keys]
team = "${TEAM_KEY}"

[routes.impatient]
upstream = "sandbox"
model    = "hang"
timeout  = { first_byte = "200ms" }

[routes.stalling]
upstream = "sandbox"
model    = "stall"
timeout  = { idle = "200ms" }
"""


def routes_file() -> str:
    """Return the shipped file, with a key that the environment holds, and two impatient routes."""
    return Path("routes.toml").read_text() + _MORE


async def settled(proxy: Proxy, request_id: str, seconds: float = 5.0) -> dict[str, Any]:
    """Wait for the record of the exchange *request_id* (our `x-trunkline-id`); return it."""
    async with asyncio.timeout(seconds):
        while True:
            for record in proxy.records():
                if record["request_id"] == request_id:
                    return record
            await asyncio.sleep(0.02)
