"""Keys: found by their text alone, each with its rights and its last day."""

from datetime import UTC, date, datetime, timedelta, timezone
from hashlib import sha256
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.keys import Key, KeyRing
from proxy.patterns import Pattern


def key(text: bytes, name: str = "team", *models: str, expires: date | None = None) -> Key:
    patterns = tuple(map(Pattern.parse, models)) or None
    return Key(name, sha256(text).digest(), patterns, expires)


def test_found_by_text() -> None:
    """A key is found by its whole text, to the byte."""
    ring = KeyRing((key(b"one", "a"), key(b"two", "b")))
    found = ring.find(b"two")
    assert found is not None
    assert found.name == "b"
    assert len(ring) == 2


@pytest.mark.parametrize(
    "presented",
    [b"", b"secre", b"secrets", b"Secret", b" secret", b"secret ", b"secret\n", b"\x00secret"],
)
def test_nearly_is_not_enough(presented: bytes) -> None:
    """Nothing but the exact text is the key: no prefix, no other case, no white space around it."""
    assert KeyRing((key(b"secret"),)).find(presented) is None


def test_digest_is_not_the_key() -> None:
    """Who has read the hash in the file does not have the key."""
    digest = sha256(b"secret")
    ring = KeyRing((key(b"secret"),))
    for presented in (digest.digest(), digest.hexdigest(), f"sha256:{digest.hexdigest()}"):
        text = presented if isinstance(presented, bytes) else presented.encode()
        assert ring.find(text) is None


@given(st.binary())
def test_any_bytes_may_be_presented(presented: bytes) -> None:
    """Whatever bytes a client presents, the answer is a key or none."""
    found = KeyRing((key("schlüssel".encode()),)).find(presented)
    assert (found is not None) == (presented == "schlüssel".encode())


def test_empty_ring() -> None:
    """Without keys, nothing is one, and the empty text least of all."""
    assert KeyRing(()).find(b"") is None


@pytest.mark.parametrize(
    ("models", "model", "may"),
    [
        ((), "anything", True),
        (("default", "openai/*"), "default", True),
        (("default", "openai/*"), "openai/gpt-4o", True),
        (("default", "openai/*"), "openai", False),
        (("default", "openai/*"), "Default", False),
        (("default", "openai/*"), "anthropic/claude", False),
        (("*",), "anthropic/claude", True),
    ],
)
def test_models(models: tuple[str, ...], model: str, may: bool) -> None:
    """A key without `models` may ask for all; one with them, for what its patterns match."""
    assert key(b"x", "a", *models).may_ask(model) is may


def test_no_models_at_all() -> None:
    """An empty list of models is a list: such a key may ask for none."""
    assert not Key("a", b"", ()).may_ask("default")


TOKYO, AUCKLAND, HONOLULU = (timezone(timedelta(hours=h)) for h in (9, 13, -10))
DAY = date(2027, 6, 30)


@pytest.mark.parametrize(
    ("now", "expired"),
    [
        (datetime(2027, 6, 29, 12, 0, 0, tzinfo=UTC), False),
        (datetime(2027, 6, 30, 0, 0, 0, tzinfo=UTC), False),
        (datetime(2027, 6, 30, 23, 59, 59, 999999, tzinfo=UTC), False),
        (datetime(2027, 7, 1, 0, 0, 0, tzinfo=UTC), True),
        (datetime(2028, 1, 1, 0, 0, 0, tzinfo=UTC), True),
        (datetime(2027, 7, 1, 8, 59, 59, tzinfo=TOKYO), False),
        (datetime(2027, 7, 1, 9, 0, 0, tzinfo=TOKYO), True),
        (datetime(2027, 7, 1, 12, 59, 59, tzinfo=AUCKLAND), False),
        (datetime(2027, 6, 30, 14, 0, 0, tzinfo=HONOLULU), True),
    ],
)
def test_expires_with_its_day(now: datetime, expired: bool) -> None:
    """A key's last day counts to its end, in UTC, wherever the machine stands."""
    assert key(b"x", expires=DAY).expired(now) is expired


def test_never_expires() -> None:
    """A key without a last day has none."""
    assert not key(b"x").expired(datetime.max.replace(tzinfo=UTC))


def test_ten_thousand() -> None:
    """Ten thousand keys cost per look-up about what one does."""
    ring = KeyRing(tuple(key(b"key-%d" % n, f"k{n}") for n in range(10_000)))
    started = perf_counter()
    for n in range(0, 10_000, 10):
        found = ring.find(b"key-%d" % n)
        assert found is not None
        assert found.name == f"k{n}"
        assert ring.find(b"nokey-%d" % n) is None
    assert (perf_counter() - started) / 2000 < 0.001
