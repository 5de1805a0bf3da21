"""Which headers pass, in both directions."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.headers import EDGE, Headers, Names, Pair, find, folded, inbound, lines, outbound
from tests.harness.client import Client, chat, request
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream

HOP_BY_HOP = [
    b"Connection",
    b"Keep-Alive",
    b"Proxy-Connection",
    b"Proxy-Authenticate",
    b"Proxy-Authorization",
    b"TE",
    b"Trailer",
    b"Transfer-Encoding",
    b"Upgrade",
]
CREDENTIALS = [b"Authorization", b"X-Api-Key", b"Api-Key", b"ApiKey", b"X-Goog-Api-Key"]
REQUEST_ONLY = [b"Host", b"Content-Length", b"Expect", b"Forwarded", b"Via", b"Cookie"]
FORWARDED = [b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto", b"X-Forwarded-Anything"]
ANSWER_ONLY = [b"Set-Cookie", b"Alt-Svc"]
CASES: list[Callable[[bytes], bytes]] = [bytes, bytes.lower, bytes.upper, bytes.swapcase]
NEIGHBOUR: Pair = (b"X-Neighbour", b"stays")


def out(*pairs: Pair, passthrough: bool = False) -> list[Pair]:
    return outbound(Headers(pairs), drop=frozenset(), passthrough=passthrough)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [*HOP_BY_HOP, *CREDENTIALS, *REQUEST_ONLY, *FORWARDED])
def test_removed_from_requests(name: bytes, case: Callable[[bytes], bytes]) -> None:
    """What the request's edit list names is removed, in any case and every time it comes."""
    pair = (case(name), b"x")
    assert out(pair, NEIGHBOUR, pair) == [NEIGHBOUR]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [*HOP_BY_HOP, *ANSWER_ONLY])
def test_removed_from_answers(name: bytes, case: Callable[[bytes], bytes]) -> None:
    """What the answer's edit list names is removed, in any case and every time it comes."""
    pair = (case(name), b"x")
    assert inbound(Headers([pair, NEIGHBOUR, pair])) == [NEIGHBOUR]


ALL = [*HOP_BY_HOP, *CREDENTIALS, *REQUEST_ONLY, *FORWARDED]


@pytest.mark.parametrize("name", [name for name in ALL if b"-" in name])
def test_removed_with_underscores(name: bytes) -> None:
    """A name that is one of them to who cannot tell `_` from `-` is removed from requests, whichever of
    its dashes is one; answers keep theirs.
    """
    for count in range(1, name.count(b"-") + 1):
        pair = (name.replace(b"-", b"_", count), b"x")
        assert out(pair, NEIGHBOUR, pair) == [NEIGHBOUR]
        assert inbound(Headers([pair])) == [pair]
    assert outbound(Headers([(b"x_team", b"x")]), drop=frozenset({b"x-team"})) == []
    assert out((b"Connection", b"x_a, x-b"), (b"X-A", b"1"), (b"X_B", b"2"), NEIGHBOUR) == [
        NEIGHBOUR
    ]
    assert out((b"x_custom", b"1"), (b"_", b"2")) == [(b"x_custom", b"1"), (b"_", b"2")]


EDGES = [
    b"CF-Connecting-IP", b"CF-Ray", b"cdn-loop", b"True-Client-IP", b"X-Real-IP", b"X-Client-IP",
    b"Fly-Client-IP", b"X-Azure-ClientIP", b"X-Azure-Ref", b"X-Original-Forwarded-For",
    b"X-Envoy-External-Address", b"X-Amzn-Trace-Id", b"x_real_ip", b"CF_Connecting_IP",
]  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_what_an_edge_says(name: bytes) -> None:
    """What an edge says of its visitor stays here, on a passthrough surface too, unless it is to be kept."""
    pair = (name, b"203.0.113.9")
    assert out(pair, NEIGHBOUR) == [NEIGHBOUR]
    assert out(pair, NEIGHBOUR, passthrough=True) == [NEIGHBOUR]
    kept = frozenset({folded(name)})
    assert outbound(Headers([pair, NEIGHBOUR]), drop=frozenset(), keep=kept) == [pair, NEIGHBOUR]
    assert inbound(Headers([pair])) == [pair]


def test_near_an_edge() -> None:
    """What clients themselves say of themselves, and vendors want, passes, however near its name is."""
    names = [
        b"X-Amzn-Bedrock-Trace", b"X-MS-Client-Request-Id", b"X-Request-Id", b"Traceparent", b"CF",
        b"X-Stainless-Lang", b"X-Client-Name", b"X-Title", b"X-Goog-Api-Client", b"X-Goog-User-Project",
        b"Openai-Organization", b"X-Vercel-Ai-Gateway", b"X-Originator", b"Anthropic-Beta", b"Accept",
    ]  # fmt: skip
    pairs = [(name, b"x") for name in names]
    assert out(*pairs) == pairs


def test_keep_is_for_edges_only() -> None:
    """Nothing that frames a message, belongs to one hop, or holds a key can be kept, nor what we replace."""
    everything = frozenset([name.lower() for name in ALL] + [b"x-team"])
    for name in [*HOP_BY_HOP, *CREDENTIALS, b"Host", b"Content-Length", b"Cookie", b"X-Team"]:
        assert outbound(Headers([(name, b"x")]), drop=frozenset({b"x-team"}), keep=everything) == []


def test_strip() -> None:
    """What a surface strips stays here, exact names and beginnings, in any case, with `_` or `-`."""
    strip = Names.parse(["X-Visitor", "x_corp-*", "X*"])
    assert strip.exact == {b"x-visitor"}
    pairs: list[Pair] = [(b"x_VISITOR", b"1"), (b"X-Corp_Team", b"2"), (b"Y-Corp-", b"4")]
    strip = Names.parse(["X-Visitor", "x_corp-*"])
    assert outbound(Headers([*pairs, NEIGHBOUR]), drop=frozenset(), strip=strip) == [
        pairs[2],
        NEIGHBOUR,
    ]
    kept = frozenset({b"x-visitor"})
    assert outbound(Headers(pairs), drop=frozenset(), strip=strip, keep=kept) == [
        pairs[0],
        pairs[2],
    ]


def test_every_beginning_is_found() -> None:
    """No beginning of the list is so short that it would be missed."""
    for beginning in EDGE.beginnings:
        for name in (beginning, beginning + b"x", beginning.upper() + b"9"):
            assert out((name, b"x")) == []


async def test_strip_and_forward(upstream: Upstream) -> None:
    """Each surface strips its own, of heads that came before too, and an upstream may want one all the same."""
    routes = f"""
[[surface]]
name = "one"
listen = "127.0.0.1:0"
strip = ["X-Visitor", "x-corp-*"]
[[surface]]
name = "other"
listen = "127.0.0.2:0"
[upstreams.up]
base_url = "{upstream.url}"
forward = ["cf-aig-metadata", "X-Corp-Cost"]
[routes]
"m" = "up/m"
"""
    headers: list[Pair] = [
        (b"X-Visitor", b"1"), (b"x_corp_team", b"2"), (b"X-Corp-Cost", b"3"), (b"cf-aig-metadata", b"4"),
        (b"CF-Ray", b"5"), (b"X-Mine", b"6"),
    ]  # fmt: skip
    async with serving(routes) as proxy:
        assert proxy.running is not None
        addresses = proxy.running.addresses
        for _ in range(3):
            for name, wanted in (("one", [3, 4, 6]), ("other", [1, 2, 3, 4, 6])):
                address = addresses[name][0]
                async with await Client.connect(address.port, address.host) as client:
                    await client.send(request(chat(), headers=headers))
                    assert (await client.answer()).status == 200
                seen = [
                    int(value)
                    for name, value in upstream.requests[-1].headers
                    if (name, value) in headers
                ]
                assert seen == wanted


# What passes


@pytest.mark.parametrize("name", ANSWER_ONLY)
def test_only_answers_lose_these(name: bytes) -> None:
    """What is removed from answers only, passes in a request."""
    assert out((name, b"x")) == [(name, b"x")]


@pytest.mark.parametrize("name", [*CREDENTIALS, *REQUEST_ONLY, *FORWARDED])
def test_only_requests_lose_these(name: bytes) -> None:
    """What is removed from requests only, passes in an answer."""
    assert inbound(Headers([(name, b"x")])) == [(name, b"x")]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_passthrough(name: bytes) -> None:
    """A caller's own credential passes where passthrough is meant, and only what is one."""
    assert out((name, b"x"), passthrough=True) == [(name, b"x")]
    for other in (b"Cookie", b"Proxy-Authorization", b"X-Forwarded-For"):
        assert out((other, b"x"), passthrough=True) == []


@pytest.mark.parametrize("name", [b"X-Api-Keys", b"Authorization2", b"XForwarded-For", b"X-Via"])
def test_near_misses_pass(name: bytes) -> None:
    """A name that only resembles one of the list passes."""
    assert out((name, b"x")) == [(name, b"x")]
    assert inbound(Headers([(name, b"x")])) == [(name, b"x")]


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-secret"],
        [b"X-SECRET"],
        [b"close, X-Secret"],
        [b"X-Secret,close"],
        [b" \tx-secret\t , keep-alive"],
        [b"", b"x-secret"],
        [b"keep-alive", b"x-secret"],
        [b",,x-secret,,"],
    ],
)
def test_nominated(connection: list[bytes]) -> None:
    """A header that any `Connection` line names is for one hop only, wherever it stands."""
    secret: Pair = (b"X-Secret", b"1")
    named = [(b"Connection", value) for value in connection]
    for pairs in ([secret, *named, NEIGHBOUR], [*named, secret, NEIGHBOUR, secret]):
        assert out(*pairs) == [NEIGHBOUR]
        assert inbound(Headers(pairs)) == [NEIGHBOUR]


def test_a_connection_names_no_part_of_a_name() -> None:
    """`Connection` names whole headers, not what merely contains the word."""
    pairs: list[Pair] = [(b"Connection", b"x-sec"), (b"X-Secret", b"1"), (b"sec", b"2")]
    assert out(*pairs) == pairs[1:]


def test_dropped_because_they_are_replaced() -> None:
    """Headers that will be set by us are taken out first, whatever their case."""
    pairs: list[Pair] = [(b"Accept-ENCODING", b"gzip"), NEIGHBOUR]
    assert outbound(Headers(pairs), drop=frozenset({b"accept-encoding"})) == [NEIGHBOUR]
    assert inbound(Headers(pairs), drop=frozenset({b"accept-encoding"})) == [NEIGHBOUR]


NAMES = st.text("abcXYZ019-_.!", min_size=1, max_size=6).map(str.encode) | st.sampled_from(
    [b"Accept", b"accept", b"User-Agent", b"anthropic-beta", b"Content-Type", b"Date", b"Server"]
)
VALUES = st.binary(max_size=8) | st.sampled_from([b"", b"a, b", b"\xe9\xff", b"a  b", b"\t"])
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
LISTED = {n.lower() for n in [*HOP_BY_HOP, *CREDENTIALS, *REQUEST_ONLY, *ANSWER_ONLY]}


@settings(deadline=None)
@given(PAIRS.map(lambda pairs: [p for p in pairs if p[0].lower() not in LISTED]))
def test_what_is_not_named_passes(pairs: list[Pair]) -> None:
    """Order, case, number and bytes of every other header survive, in both directions."""
    assert out(*pairs) == pairs
    assert inbound(Headers(pairs)) == pairs
    assert lines(pairs) == b"".join(name + b": " + value + b"\r\n" for name, value in pairs)


MIXED = st.lists(
    st.tuples(NAMES | st.sampled_from([*HOP_BY_HOP, *CREDENTIALS, *REQUEST_ONLY]), VALUES)
    | st.tuples(st.just(b"Connection"), st.lists(NAMES, max_size=3).map(b" ,".join)),
    max_size=10,
)


@settings(deadline=None)
@given(MIXED, st.sampled_from(CASES))
def test_what_is_for_one_hop_never_passes(
    pairs: list[Pair], case: Callable[[bytes], bytes]
) -> None:
    """Of any headers those for one hop, listed or named by `Connection`, stay; the rest pass in order."""
    pairs = [(case(name), value) for name, value in pairs]
    named = {
        word.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for word in value.split(b",")
    }
    hop = {name.lower() for name in HOP_BY_HOP} | named
    ours = {name.lower() for name in [*CREDENTIALS, *REQUEST_ONLY]} | {*map(folded, named)}
    assert inbound(Headers(pairs)) == [pair for pair in pairs if pair[0].lower() not in hop]
    assert out(*pairs) == [pair for pair in pairs if folded(pair[0]) not in hop | ours]


def test_find() -> None:
    """The first header of a name is found, in any case, also an empty one."""
    pairs: list[Pair] = [(b"A", b""), (b"a", b"2"), (b"B", b"3")]
    assert find(pairs, b"a") == b""
    assert find(pairs, b"b") == b"3"
    assert find(pairs, b"c") is None
