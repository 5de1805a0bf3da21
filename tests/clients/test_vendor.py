"""The scripted vendor itself: what it refuses, and what is told apart behind a proxy."""

from collections.abc import Sequence

import pytest

from tests.clients.front import alike
from tests.clients.team import KEY
from tests.clients.vendor import SECRETS, Vendor
from tests.harness.client import call, chat
from tests.harness.upstream import Pair, Received

OAI: Pair = (b"Authorization", b"Bearer " + SECRETS["oai"].encode())
CLAUDE: Pair = (b"x-api-key", SECRETS["claude"].encode())
GOOGLE: Pair = (b"x-goog-api-key", SECRETS["google"].encode())
VERSION: Pair = (b"anthropic-version", b"2026-10-21")
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages?beta=true"
GENERATE = "/v1beta/models/m:generateContent"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (CHAT, [OAI], 200),
        (CHAT, [], 401),
        (CHAT, [(b"Authorization", b"Bearer " + KEY.encode())], 401),
        (CHAT, [(b"Authorization", SECRETS["oai"].encode())], 401),
        (CHAT, [OAI, CLAUDE], 401),
        (CHAT + "?key=another", [OAI], 401),
        ("/v1/files/none/content", [(b"x-api-key", SECRETS["oai"].encode())], 401),
        ("/v1/realtime?model=m", [(b"Sec-WebSocket-Protocol", b"realtime")], 401),
        (MESSAGES, [CLAUDE, VERSION], 200),
        (MESSAGES, [CLAUDE], 401),
        (MESSAGES, [OAI, VERSION], 401),
        (MESSAGES, [CLAUDE, VERSION, OAI], 401),
        (GENERATE, [GOOGLE], 200),
        (GENERATE, [(b"Authorization", b"Bearer " + SECRETS["google"].encode())], 401),
        ("/v1/models/m:generateContent", [OAI], 401),
    ],
)
async def test_refusal(vendor: Vendor, path: str, headers: list[Pair], status: int) -> None:
    """A request gets in with the one credential that its vendor takes, and with no other beside it."""
    assert (await call(vendor.port, chat(), path, headers)).status == status


REST = [(b"Accept", b"a"), (b"X-One", b"1"), (b"X-One", b"2"), (b"Accept-Encoding", b"gzip")]


def received(
    target: str = CHAT, headers: Sequence[Pair] = (OAI, *REST), body: bytes = b'{"a": 1}'
) -> list[Received]:
    """Write down one request."""
    lines = [b"POST %b HTTP/1.1" % target.encode(), *(b"%b: %b" % pair for pair in headers)]
    return [Received(b"\r\n".join([*lines, b"", b""]), body, 0)]


def test_alike() -> None:
    """A request differs only in what belongs to the hop, in how streams are encoded, and in who signs."""
    headers: list[Pair] = [(b"Host", b"another"), *REST[:3], (b"accept-encoding", b"identity"), OAI]
    key: Pair = (b"Authorization", b"Bearer " + KEY.encode())
    alike(received(headers=[key, *REST]), received(headers=headers))


@pytest.mark.parametrize(
    "arrived",
    [
        [],
        received(CHAT + "?a=b"),
        received(headers=[OAI, (b"accept", b"a"), *REST[1:]]),
        received(headers=[OAI, *REST[:2], REST[3]]),
        received(headers=[OAI, REST[0], REST[2], REST[1], REST[3]]),
        received(headers=[OAI, *REST, (b"Via", b"1.1 proxy")]),
        received(headers=[OAI, *REST[:3], (b"Accept-Encoding", b"br")]),
        received(headers=[*REST]),
        received(headers=[OAI, CLAUDE, *REST]),
        received(body=b'{"a":1}'),
        received() * 2,
    ],
)
def test_unlike(arrived: list[Received]) -> None:
    """Whatever else is lost, added, or written otherwise is seen."""
    with pytest.raises(AssertionError):
        alike(received(), arrived)


def test_leak() -> None:
    """The proxy's key is found wherever it stands, even where both sides have it."""
    leaking = received(headers=[OAI, (b"X-User", b"my " + KEY.encode())])
    with pytest.raises(AssertionError):
        alike(leaking, leaking)
