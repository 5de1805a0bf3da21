"""What is known by heart of where models lead; `test_forward` and `test_routes` have where that is."""

import gc

import pytest

from proxy.matching import MATCHED_CHARS, Matcher
from tests.harness.client import Client, call, chat, request
from tests.harness.proxy import Proxy


async def test_long_names_are_not_kept(proxy: Proxy) -> None:
    """A model's name may be as long as a body; only short ones are known by heart."""
    for size in (MATCHED_CHARS, 1_000_000):
        for _ in range(2):
            got = await call(proxy.port, chat("x" * size))
            assert got.status == 200
    kept = [name for one in gc.get_objects() if isinstance(one, Matcher) for name, *_ in one._known]
    assert max(len(name) for name in kept if name is not None) == MATCHED_CHARS


async def test_many_names(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many models somebody asks for, what is kept of them stays within its bound, and the name
    that came last is kept.
    """
    monkeypatch.setattr("proxy.matching.MATCHED_BYTES", 20_000)
    assert proxy.running is not None
    await proxy.running.apply(proxy.running.snapshot)
    async with await Client.connect(proxy.port) as client:
        for number in range(100):
            await client.send(request(chat(f"{number:03}" + "ж" * 200)))
            assert (await client.answer()).status == 200
    (known,) = [
        one._known
        for one in gc.get_objects()
        if isinstance(one, Matcher) and any(name and "ж" in name for name, *_ in one._known)
    ]
    names = [name for name, *_ in known]
    assert known.total <= 20_000
    assert 5 < len(names) < 50
    assert (names[-1] or "").startswith("099")
