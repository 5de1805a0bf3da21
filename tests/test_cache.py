"""What is kept of what strangers say: found as in any dictionary, and never more than its bound."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.cache import ENTRY_BYTES, Cache


def test_oldest_give_way() -> None:
    """What was kept first goes first, and only as much of it as the next one needs."""
    cache: Cache[str, int] = Cache(3 * (ENTRY_BYTES + 100))
    for number, name in enumerate("abcd"):
        cache.keep(name, number, 100)
    assert dict(cache) == {"b": 1, "c": 2, "d": 3}
    cache.keep("e", 4, 200)
    assert dict(cache) == {"d": 3, "e": 4}


def test_too_large() -> None:
    """What is too much by itself is not kept, and drives nothing else out."""
    cache: Cache[str, int] = Cache(1000)
    cache.keep("a", 1, 100)
    cache.keep("b", 2, 1000)
    assert dict(cache) == {"a": 1}
    cache.keep("a", 3, 1000)  # nor does its former value stay
    assert (dict(cache), cache.total) == ({}, 0)


def test_again() -> None:
    """What is kept again is the newest, and counted once."""
    cache: Cache[str, int] = Cache(2 * (ENTRY_BYTES + 10))
    for name, number in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        cache.keep(name, number, 10)
    assert dict(cache) == {"a": 3, "c": 4}
    cache.clear()
    assert (dict(cache), cache.total) == ({}, 0)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 600)), max_size=60),
    st.integers(0, 3000),
)
def test_never_more(kept: list[tuple[int, int]], limit: int) -> None:
    """However much is kept of whatever size, the bound holds, and the count is that of what is there."""
    cache: Cache[int, int] = Cache(limit)
    for key, size in kept:
        cache.keep(key, size, size)
        assert cache.total <= limit
        assert cache.total == sum(size + ENTRY_BYTES for size in cache.values())
        assert (key in cache) == (size + ENTRY_BYTES <= limit)
