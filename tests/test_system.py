"""`/v1/ping` and `/v1/time`: always open, in front of everything, and nobody else is asked."""

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.client.edge import Request
from proxy.endpoints import system
from proxy.exchange import Exchange
from proxy.headers import Headers
from tests.harness.client import Client, Pair, call, request
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream

KEYED = """
[server]
base_paths = ["/llm/v1", "/api/v1"]
endpoints = ["chat/completions"]
models = "hidden"
routes = ["m"]
[keys]
team = "tk-0123456789"
[log]
level = "debug"
[unrouted]
"*" = "up"
[upstreams.up]
base_url = "{url}"
[routes]
m = {{ upstream = "up" }}
"""
PATHS = ["/v1/ping", "/v1/time", "/api/v1/ping", "/api/v1/time", "/llm/v1/ping", "/llm/v1/time"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers", [[], [(b"Authorization", b"Bearer wrong")], [(b"Origin", b"https://evil.example")]]
)
async def test_open(path: str, headers: list[Pair], upstream: Upstream) -> None:
    """Both answer below each base path, and always at `/v1`: to whoever asks, without an upstream."""
    async with serving(KEYED.format(url=upstream.url)) as proxy:
        got = await call(proxy.port, b"", path, headers, "GET", host=b"other.example")
        assert got.status == 200
        assert got.value(b"content-type") == b"application/json"
        assert got.value(b"x-trunkline-id") == got.value(b"x-request-id")
        if path.endswith("ping"):
            assert got.json() == {"status": "ok"}
        else:
            assert set(got.json()) == {"time", "epoch", "epoch_ms"}
        record = await proxy.record()
        assert (record["level"], record["outcome"], record["status"]) == ("debug", "ok", 200)
        assert (record["attempts"], record["upstream"], record["key"]) == ([], None, None)
    assert upstream.connections == []


async def test_open_surface() -> None:
    """They answer on a surface without keys too, whatever the Host and the Origin."""
    async with serving('[routes]\nm = "sandbox/echo"\n') as proxy:
        for path in ("/v1/ping", "/v1/time"):
            headers = [(b"Origin", b"https://evil.example")]
            got = await call(proxy.port, b"", path, headers, "GET", host=b"evil.example")
            assert got.status == 200
            assert got.value(b"access-control-allow-origin") is None


@pytest.mark.parametrize("path", ["/v1/ping", "/v1/time"])
async def test_methods(path: str) -> None:
    """HEAD is answered with the head alone, other methods with the ones that are taken."""
    async with serving('[routes]\nm = "sandbox/echo"\n') as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(path=path, method="HEAD"))
            head = await client.answer(head_only=True)
            assert head.status == 200
            await client.send(request(path=path, method="GET"))
            full = await client.answer()
            assert full.status == 200
            assert int(head.value(b"content-length") or 0) == len(full.body)
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            got = await call(proxy.port, b"", path, method=method)
            assert (got.status, got.code) == (405, "method_not_allowed")
            assert got.value(b"allow") == b"GET, HEAD"


async def test_not_below_nothing() -> None:
    """There is no `/ping` without a base path, and nothing below `/v1/ping`."""
    async with serving('[routes]\nm = "sandbox/echo"\n') as proxy:
        for path in ("/ping", "/time", "/v1/ping/", "/v1/pings", "/v1/time/zone", "/v1/Ping"):
            got = await call(proxy.port, b"", path, method="GET")
            assert (got.status, got.code) == (404, "not_found"), path


async def test_time_is_now() -> None:
    """The time told is the time it is: UTC, in ISO 8601, and as seconds since 1970."""
    before = datetime.now(UTC)
    async with serving('[routes]\nm = "sandbox/echo"\n') as proxy:
        told = (await call(proxy.port, b"", "/v1/time", method="GET")).json()
    after = datetime.now(UTC)
    assert told["time"].endswith("Z")
    moment = datetime.fromisoformat(told["time"])
    assert before - timedelta(milliseconds=1) <= moment <= after
    assert int(before.timestamp()) <= told["epoch"] <= after.timestamp()
    assert type(told["epoch"]) is type(told["epoch_ms"]) is int


class Transport:
    """What an answer is written to."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class Asking:
    """As much of a request as an answer of our own needs."""

    keep_alive = True
    waiting = False

    def __init__(self) -> None:
        self.transport = Transport()


MOMENTS = st.integers(1_600_000_000_000_000, 4_000_000_000_000_000).map(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
)


@given(moment=MOMENTS)
def test_all_three_say_the_same(moment: datetime) -> None:
    """The three ways in which the time is told are of one moment, to the millisecond."""
    asking = Asking()
    exchange = Exchange("req_1", "main", "GET", "/v1/time", "", Headers(), False, None, 0.0)
    request: Request = asking  # type: ignore[assignment]  # as much of it as is used
    with pytest.raises(StopIteration):
        system.time(lambda: moment).handle(exchange, request).send(None)  # type: ignore[attr-defined]  # a coroutine
    told = orjson.loads(asking.transport.data.partition(b"\r\n\r\n")[2])
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    whole = (moment - epoch) // timedelta(milliseconds=1)
    assert told["epoch_ms"] == whole
    assert told["epoch"] == whole // 1000
    shown = datetime.fromisoformat(told["time"])
    assert (shown - epoch) // timedelta(milliseconds=1) == whole
    assert shown.utcoffset() == timedelta(0)
