"""The frame around every exchange; most of what it refuses is in `test_edge` and `test_errors`."""

import pytest

from proxy.client.frame import PATH_CHARS, PATHS_BYTES
from proxy.matching import Matcher
from tests.harness.client import Client, call, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import Upstream, answer


async def test_our_own_fault(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours is 500 with our id and no word more; the traceback is in the log, once."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("canary-0123456789")

    with monkeypatch.context() as patch:
        patch.setattr(Matcher, "match", broken)
        got = await call(proxy.port, chat())
    assert (got.status, got.code) == (500, "internal_error")
    assert b"canary" not in got.raw
    assert b"ZeroDivision" not in got.raw
    record = await proxy.record()
    faults = [line for line in proxy.lines() if line["event"] == "internal_error"]
    assert [fault["request_id"] for fault in faults] == [record["request_id"]]
    assert "ZeroDivisionError" in faults[0]["exception"]
    assert proxy.running is not None
    assert (proxy.running.gate.inflight, proxy.running.gate.held) == (0, 0)
    upstream.will(answer())
    assert (await call(proxy.port, chat())).status == 200


async def test_one_line_each(proxy: Proxy, upstream: Upstream) -> None:
    """Whatever becomes of a request, it leaves one line, with the id that its caller has."""
    ids = []
    for path in ("/v1/chat/completions", "/nowhere", "/v1/models/none"):
        got = await call(proxy.port, chat(), path)
        ids.append((got.value(b"x-trunkline-id") or b"").decode())
    await proxy.record(3)
    assert [record["request_id"] for record in proxy.records()] == ids


async def test_paths_of_strangers() -> None:
    """However many paths a stranger without a key makes up, what is kept of them stays within its bound,
    no long one is among it, and what is asked for after them all is.
    """
    toml = '[routes]\nm = "sandbox/echo"\n[unrouted]\nfiles = "sandbox"\n[keys]\nteam = "sk-team-0123456789"\n'
    async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
        assert proxy.running is not None
        ((_, face),) = proxy.running._listeners.values()
        known = face.frame._paths
        longest = f"/v1/files/{'y' * (PATH_CHARS - len('/v1/files/'))}"
        paths = [f"/v1/files/{number:04}{'x' * 400}" for number in range(600)]
        for path in [*paths, longest + "y", longest, "/v1/chat/completions"]:
            await client.send(request(chat(), path=path))
            assert (await client.answer()).status == 401
            assert known.total <= PATHS_BYTES
        kept = [path for _, path in known]
        assert len(kept) > 100
        assert paths[0] not in kept
        assert longest + "y" not in kept
        assert kept[-2:] == [longest, "/v1/chat/completions"]
