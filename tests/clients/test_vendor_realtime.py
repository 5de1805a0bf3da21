"""OpenAI's realtime API over WebSocket, at a vendor and at the proxy in front of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.clients.answers import SAID
from tests.clients.front import Access, Front, alike
from tests.clients.vendor import SECRETS, Vendor

Case = Callable[[Access], Awaitable[Any]]
BIG = bytes(range(256)) * 4096


def dial(at: Access, model: str = "gpt-realtime", query: str = "", **options: Any) -> connect:
    """Call with a plain client, which shows its key where servers do."""
    signed = {"additional_headers": {"Authorization": f"Bearer {at.keys['oai']}"}}
    url = f"{at.url.replace('http', 'ws', 1)}/v1/realtime?model={model}{query}"
    return connect(url, proxy=None, max_size=None, **{**signed, **options})


async def heard(connection: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = orjson.loads(await connection.recv())
    return event


async def answer(at: Access) -> Any:
    async with dial(at) as connection:
        created = await heard(connection)
        await connection.send('{"type":"response.create"}')
        events = [await heard(connection) for _ in range(6)]
    assert created["session"]["model"] == "gpt-realtime"
    assert "".join(event.get("delta", "") for event in events) == SAID
    return connection.close_code


async def browser(at: Access) -> Any:
    """A browser can set no header: it shows its key as a subprotocol."""
    shown = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{at.keys['oai']}")]
    async with dial(at, additional_headers={}, subprotocols=shown) as connection:
        await heard(connection)
    assert connection.subprotocol == "realtime"


async def big(at: Access) -> Any:
    """Megabytes pass both ways, as text, as bytes, in one frame and in many."""
    async with dial(at) as connection:
        await heard(connection)
        await connection.send(BIG)
        assert await connection.recv() == BIG
        await connection.send([BIG[:7], BIG[7:90000], BIG[90000:]])
        assert await connection.recv() == BIG
        said = orjson.dumps({"type": "test.echo", "text": "ä€" * 400_000}).decode()
        await connection.send(said)
        assert await connection.recv() == said


async def uncompressed(at: Access) -> Any:
    """What a client does not offer is not agreed on for it."""
    async with dial(at, compression=None) as connection:
        await heard(connection)
        await connection.send(BIG)
        assert await connection.recv() == BIG
    return connection.protocol.extensions


async def ping(at: Access) -> Any:
    async with dial(at, "gpt-realtime", "&intent=transcription", ping_interval=None) as connection:
        await heard(connection)
        await (await connection.ping(b"are you there"))


async def vendor_closes(at: Access) -> Any:
    """A vendor's code and reason are what the client sees."""
    async with dial(at) as connection:
        await heard(connection)
        await connection.send('{"type":"test.close","code":4001,"reason":"session expired"}')
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    seen = (closed.value.rcvd.code, closed.value.rcvd.reason)
    assert seen == (4001, "session expired")


CASES = (answer, browser, big, uncompressed, ping, vendor_closes)
REALTIME = pytest.mark.parametrize("call", CASES, ids=[call.__name__ for call in CASES])


@REALTIME
async def test_direct(call: Case, vendor: Vendor) -> None:
    """The vendor speaks WebSocket."""
    await call(Access(vendor.origin, SECRETS))


@REALTIME
async def test_proxied(call: Case, front: Front) -> None:
    """A client and the vendor see each other through the proxy as they do without it."""
    await front.same(call)


async def ended(vendor: Vendor, seconds: float = 5.0) -> int | None:
    """Wait until the vendor has seen its only WebSocket end; return the code it was told."""
    async with asyncio.timeout(seconds):
        while not vendor.closed:
            await asyncio.sleep(0.005)
    return vendor.closed.pop()


@pytest.mark.parametrize("code", [1000, 1001, 4002])
async def test_client_closes(front: Front, code: int) -> None:
    """A client's own code reaches the vendor, and the exchange has ended well."""
    front.vendor.closed.clear()
    async with dial(front.proxied) as connection:
        await heard(connection)
        await connection.close(code, "enough")
    assert await ended(front.vendor) == code
    assert connection.close_code == code
    await front.logged(front.vendor.take()[-1:])


async def test_client_gone(front: Front) -> None:
    """A client that goes without a word is closed at the vendor within a second."""
    front.vendor.closed.clear()
    async with dial(front.proxied) as connection:
        await heard(connection)
        connection.transport.abort()
        assert await ended(front.vendor, 1.0) is None
    (record,) = await front.records(1)
    assert record["outcome"] == "client_gone"


async def test_renamed(front: Front) -> None:
    """A route's model is what the vendor is asked for, and nothing else in the query changes."""
    front.vendor.take()
    async with dial(front.direct, query="&intent=a%2Fb") as connection:
        await heard(connection)
    sent = front.vendor.take()
    async with dial(front.proxied, "my-realtime", "&intent=a%2Fb") as connection:
        assert (await heard(connection))["session"]["model"] == "gpt-realtime"
    alike(sent, arrived := front.vendor.take())
    await front.logged(arrived)


@pytest.mark.parametrize(
    ("model", "key", "status", "code"),
    [
        ("gpt-realtime", "tl-another", 401, "invalid_api_key"),
        ("no-such-model", None, 404, "model_not_found"),
    ],
)
async def test_refused(front: Front, model: str, key: str | None, status: int, code: str) -> None:
    """What may not pass is refused before it becomes a WebSocket, in the words of any refusal."""
    at = front.proxied
    front.vendor.take()
    with pytest.raises(InvalidStatus) as refused:
        async with dial(Access(at.url, {"oai": key or at.keys["oai"]}), model):
            pass
    assert refused.value.response.status_code == status
    assert orjson.loads(refused.value.response.body or b"{}")["error"]["code"] == code
    (record,) = await front.records(1)
    assert record["status"] == status
    assert front.vendor.take() == []
