"""What goes upstream: the target and the head, byte for byte."""

import pytest

from proxy import dialects
from proxy.credentials import FORMS, Credential, Secret
from proxy.headers import Headers, Pair
from proxy.outbound import (
    CHUNKED,
    WEBSOCKET,
    address,
    head,
    length,
    sign,
)
from proxy.routes import Base, Origin, Upstream

ORIGIN = Origin("http", "up.example", 8000)
SECRET = Secret("sk-ours", "UP_KEY")
BEARER = Credential(SECRET)


def written(
    *client: Pair,
    upstream: Upstream | None = None,
    stream: bool = False,
    passthrough: bool = False,
    dialect: dialects.Dialect = dialects.CHAT,
    query: str = "",
    method: str = "POST",
    framing: bytes = b"Content-Length: 12\r\n",
) -> bytes:
    upstream = upstream or Upstream("up", Base(ORIGIN, "/v1"), (BEARER,))
    signature = sign(
        upstream,
        upstream.credentials[0] if upstream.credentials else None,
        dialect,
        stream=stream,
        passthrough=passthrough,
    )
    to = address(upstream, dialect, "chat/completions", query)
    return head(method, to, signature, Headers(client)) + framing + b"\r\n"


def values(text: bytes, name: bytes) -> list[bytes]:
    pairs = (line.split(b": ", 1) for line in text.split(b"\r\n")[1:-2])
    return [value for key, value in pairs if key.lower() == name.lower()]


def test_the_whole_head() -> None:
    """A head is our host, the client's headers as they came, what we set, and the length."""
    client: tuple[Pair, ...] = (
        (b"hOST", b"proxy.example"),
        (b"ACCEPT", b"*/*"),
        (b"Authorization", b"Bearer client"),
        (b"x-Dup", b"1"),
        (b"Content-Length", b"99"),
        (b"X-Dup", b"\xff 2"),
        (b"Cookie", b"a=b"),
    )
    assert written(*client, query="a=%20b&c") == (
        b"POST /v1/chat/completions?a=%20b&c HTTP/1.1\r\n"
        b"Host: up.example:8000\r\n"
        b"ACCEPT: */*\r\n"
        b"x-Dup: 1\r\n"
        b"X-Dup: \xff 2\r\n"
        b"Authorization: Bearer sk-ours\r\n"
        b"Content-Length: 12\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin("http", "up.example", 80), b"up.example"),
        (Origin("https", "up.example", 443), b"up.example"),
        (Origin("http", "up.example", 443), b"up.example:443"),
        (Origin("https", "up.example", 80), b"up.example:80"),
        (Origin("http", "::1", 8000), b"[::1]:8000"),
        (Origin("http", "::1", 80), b"[::1]"),
    ],
)
def test_host(origin: Origin, host: bytes) -> None:
    """The host is the configured one; its port is said where it is not the usual one."""
    text = written((b"Host", b"evil.example"), upstream=Upstream("up", Base(origin, "")))
    assert values(text, b"host") == [host]


def test_nominating_our_own_headers() -> None:
    """A client's `Connection` takes away its own headers, never what we set afterwards."""
    names = b"host, authorization, content-length, accept-encoding, x-team"
    text = written(
        (b"Connection", names),
        upstream=Upstream("up", Base(ORIGIN, ""), (BEARER,), headers=((b"x-team", b"search"),)),
        stream=True,
    )
    for name in names.split(b", "):
        assert len(values(text, name)) == 1


def test_streams_are_not_compressed() -> None:
    """On a stream `Accept-Encoding: identity` stands in place of the client's, elsewhere never."""
    gzip: Pair = (b"accept-ENCODING", b"gzip")
    assert values(written(gzip, gzip, stream=True), b"accept-encoding") == [b"identity"]
    assert values(written(gzip, gzip), b"accept-encoding") == [b"gzip", b"gzip"]
    assert values(written(), b"accept-encoding") == []


@pytest.mark.parametrize(
    ("offered", "sent"),
    [
        ([b"gzip, deflate, br, zstd"], [b"gzip, deflate"]),
        ([b"br, gzip"], [b"gzip"]),
        ([b"gzip;q=0.5,BR;q=1 , x"], [b"gzip;q=0.5, x"]),
        ([b"zstd ;q=1", b"gzip"], [b"gzip"]),
        ([b"br", b"zstd"], [b"identity"]),
        ([b"br,"], [b"identity"]),
        ([b"gzip , deflate"], [b"gzip , deflate"]),
        ([b"*", b"brotli", b"x-br", b""], [b"*", b"brotli", b"x-br", b""]),
        ([], []),
    ],
)
def test_codings_that_cannot_be_read(offered: list[bytes], sent: list[bytes]) -> None:
    """`br` and `zstd` are not asked for, since an error in them could not be understood."""
    text = written(*[(b"accept-Encoding", value) for value in offered])
    assert values(text, b"accept-encoding") == sent


def test_streams_are_not_compressed_by_the_table() -> None:
    """An upstream's table cannot ask for a second encoding of a stream."""
    upstream = Upstream("up", Base(ORIGIN, ""), headers=((b"Accept-Encoding", b"gzip"),))
    assert len(values(written(upstream=upstream, stream=True), b"accept-encoding")) == 1


def test_the_table_sets_headers() -> None:
    """Headers of the upstream's table replace the client's of the same name."""
    upstream = Upstream("up", Base(ORIGIN, ""), headers=((b"X-Team", b"search"), (b"A", b"\xe9")))
    text = written((b"x-team", b"mine"), (b"X-TEAM", b"mine"), upstream=upstream)
    assert values(text, b"x-team") == [b"search"]
    assert values(text, b"a") == [b"\xe9"]


VERSION: Pair = (b"anthropic-version", b"2023-06-01")


def test_defaults_of_a_preset() -> None:
    """A header that a dialect needs is added where neither the client nor the table sets it."""
    preset = {"messages": (VERSION,)}
    upstream = Upstream("up", Base(ORIGIN, ""), defaults=preset)
    newer = (b"Anthropic-Version", b"2099-01-01")
    for client, expected in (([], VERSION[1]), ([newer], newer[1])):
        text = written(*client, upstream=upstream, dialect=dialects.MESSAGES)
        assert values(text, b"anthropic-version") == [expected]
    assert values(written(upstream=upstream), b"anthropic-version") == []
    table = Upstream("up", Base(ORIGIN, ""), defaults=preset, headers=(newer,))
    text = written(upstream=table, dialect=dialects.MESSAGES)
    assert values(text, b"anthropic-version") == [newer[1]]


def test_credential_by_dialect() -> None:
    """A dialect that wants the credential in another form gets it in that one alone."""
    credential = Credential(SECRET, forms={"messages": FORMS["x-api-key"]})
    upstream = Upstream("up", Base(ORIGIN, ""), (credential,))
    client: Pair = (b"authorization", b"Bearer client")
    messages = written(client, upstream=upstream, dialect=dialects.MESSAGES)
    assert values(messages, b"x-api-key") == [b"sk-ours"]
    assert values(messages, b"authorization") == []
    chat = written((b"X-API-Key", b"client"), upstream=upstream)
    assert values(chat, b"authorization") == [b"Bearer sk-ours"]
    assert values(chat, b"x-api-key") == []


def test_credential_in_a_header_of_its_own() -> None:
    """A client cannot add a second value to the header that carries our credential."""
    own = Credential(SECRET, ("X-Corp-Key", ""))
    text = written((b"x-corp-key", b"client"), upstream=Upstream("up", Base(ORIGIN, ""), (own,)))
    assert values(text, b"x-corp-key") == [b"sk-ours"]


def test_no_credential() -> None:
    """An upstream without a credential is sent none, the client's least of all."""
    text = written((b"Authorization", b"Bearer client"), upstream=Upstream("up", Base(ORIGIN, "")))
    assert values(text, b"authorization") == []


def test_passthrough() -> None:
    """With passthrough the caller's credential goes up as it came, and ours does not."""
    text = written((b"authorization", b"Bearer own"), (b"X-Api-Key", b"own"), passthrough=True)
    assert b"authorization: Bearer own\r\nX-Api-Key: own\r\n" in text
    assert b"sk-ours" not in text


def test_egress_proxy() -> None:
    """Through an egress proxy a plain request names the whole URL, an encrypted one the path."""
    http = Origin("http", "up.example", 8000, proxy="http://egress:3128")
    text = written(upstream=Upstream("up", Base(http, "/v1")), query="a=b")
    line = (
        b"POST http://up.example:8000/v1/chat/completions?a=b HTTP/1.1\r\nHost: up.example:8000\r\n"
    )
    assert text.startswith(line)
    https = Origin("https", "up.example", 443, proxy="http://egress:3128")
    text = written(upstream=Upstream("up", Base(https, "/v1")))
    assert text.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: up.example\r\n")


def test_paths() -> None:
    """The path below the base path is appended to the base, or to the longest entry of `paths`."""
    base, other, longer = (Base(ORIGIN, path) for path in ("/v1", "/anthropic/v1", "/count"))
    upstream = Upstream("up", base, paths=(("messages/count_tokens", longer), ("messages", other)))

    def target(suffix: str) -> str:
        return address(upstream, dialects.CHAT, suffix, "").target

    assert target("chat/completions") == "/v1/chat/completions"
    assert target("messages") == "/anthropic/v1/messages"
    assert target("messages/batches") == "/anthropic/v1/messages/batches"
    assert target("messages/count_tokens") == "/count/messages/count_tokens"
    assert target("messagesx") == "/v1/messagesx"


@pytest.mark.parametrize(
    ("framing", "lines"),
    [
        (length(0), b"Content-Length: 0\r\n"),
        (length(10**12), b"Content-Length: 1000000000000\r\n"),
        (CHUNKED, b"Transfer-Encoding: chunked\r\n"),
        (WEBSOCKET, b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        (b"", b""),
    ],
)
def test_framing(framing: bytes, lines: bytes) -> None:
    """What says where the request ends is ours, said once, and comes last."""
    client = [
        (b"content-length", b"99"), (b"transfer-encoding", b"gzip"), (b"upgrade", b"h2c"),
        (b"connection", b"upgrade, keep-alive"), (b"x-last", b"1"),
    ]  # fmt: skip
    text = written(
        *client, framing=framing, method="DELETE", upstream=Upstream("up", Base(ORIGIN, ""))
    )
    assert text == (
        b"DELETE /chat/completions HTTP/1.1\r\nHost: up.example:8000\r\nx-last: 1\r\n"
        + lines
        + b"\r\n"
    )


# A key that is offered as a subprotocol

PROTOCOL = b"Sec-WebSocket-Protocol"


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        ([], []),
        ([b"realtime"], [b"realtime"]),
        ([b"realtime,json"], [b"realtime,json"]),
        ([b"realtime, openai-insecure-api-key.tk-1"], [b"realtime"]),
        ([b"openai-insecure-api-key.tk-1,realtime"], [b"realtime"]),
        ([b"realtime,openai-insecure-api-key.tk-1, openai-beta.realtime-v1"],
         [b"realtime, openai-beta.realtime-v1"]),
        ([b"openai-insecure-api-key.tk-1"], []),
        ([b"realtime", b"openai-insecure-api-key.tk-1"], [b"realtime"]),
        ([b"openai-insecure-api-key.tk-1", b"openai-insecure-api-key.tk-2"], []),
        ([b"openai-insecure-api-key."], []),
        ([b"x-openai-insecure-api-key.tk-1"], [b"x-openai-insecure-api-key.tk-1"]),
    ],
)  # fmt: skip
def test_key_as_a_subprotocol(offered: list[bytes], kept: list[bytes]) -> None:
    """A browser's key among the subprotocols is not offered to the upstream: our credential goes into the
    header. What else is offered stays.
    """
    client = [(PROTOCOL, value) for value in offered]
    text = written(*client, dialect=dialects.REALTIME, framing=WEBSOCKET)
    assert values(text, PROTOCOL) == kept
    assert values(text, b"authorization") == [b"Bearer sk-ours"]


def test_subprotocols_of_other_dialects() -> None:
    """A key that is offered as a subprotocol stays here whatever the dialect, as a WebSocket may be opened
    at any path of [unrouted]; where the caller's own credential goes up, so does this one.
    """
    offer: Pair = (PROTOCOL, b"realtime, openai-insecure-api-key.own")
    assert values(written(offer), PROTOCOL) == [b"realtime"]
    text = written(offer, dialect=dialects.REALTIME, passthrough=True)
    assert values(text, PROTOCOL) == [offer[1]]
