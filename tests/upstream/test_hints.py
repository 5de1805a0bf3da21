"""How long an answer asks to wait: every way to write it, what comes before what, and nonsense."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from math import isfinite

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.headers import Pair
from proxy.upstream.hints import LONGEST, retry_after, should_retry

NOW = 1_750_000_000.0
"""Sunday, 15 June 2025, 15:06:40 UTC."""

RESETS = [
    (b"x-ratelimit-reset-requests", b"x-ratelimit-remaining-requests"),
    (b"x-ratelimit-reset-tokens", b"x-ratelimit-remaining-tokens"),
    (b"x-ratelimit-reset", b"x-ratelimit-remaining"),
    (b"ratelimit-reset", b"ratelimit-remaining"),
    (b"anthropic-ratelimit-requests-reset", b"anthropic-ratelimit-requests-remaining"),
    (b"anthropic-ratelimit-tokens-reset", b"anthropic-ratelimit-tokens-remaining"),
    (b"anthropic-ratelimit-input-tokens-reset", b"anthropic-ratelimit-input-tokens-remaining"),
    (b"anthropic-ratelimit-output-tokens-reset", b"anthropic-ratelimit-output-tokens-remaining"),
]
"""The headers that say when a limit is reset, each with the one that says what remains of it."""
EVERY = [
    b"Retry-After",
    b"retry-after-ms",
    b"x-ms-retry-after-ms",
    b"x-should-retry",
    *(name for pair in RESETS for name in pair),
]


def said(*pairs: Pair) -> float | None:
    return retry_after(pairs, NOW)


def written(text: str) -> float | None:
    """Return what `Retry-After: text` asks for."""
    return said((b"Retry-After", text.encode("latin-1")))


# Forms

FORMS = {
    "0": 0,
    "5": 5,
    "0.5": 0.5,
    "1.25": 1.25,
    " 7\t": 7,
    "007": 7,
    "86400": 86400,
    "6ms": 0.006,
    "250us": 0.00025,
    "100µs": 0.0001,
    "80ns": 8e-8,
    "1s": 1,
    "7.66s": 7.66,
    "1m30s": 90,
    "1m30.951s": 90.951,
    "2m59.56s": 179.56,
    "1h0m0s": 3600,
    "1h2m3.5s": 3723.5,
    "1d12h": 129600,
    "1750000030": 30,
    "1750000030.5": 30.5,
    "1750000030000": 30,
    "1749999999": 0,
    "1749999999000": 0,
    "Sun, 15 Jun 2025 15:07:00 GMT": 20,
    "Sunday, 15-Jun-25 15:07:00 GMT": 20,
    "Sun Jun 15 15:07:00 2025": 20,
    "Sun, 15 Jun 2025 17:07:00 +0200": 20,
    "Sun, 15 Jun 2025 15:07:00 -0000": 20,
    "Sun, 15 Jun 2025 15:00:00 GMT": 0,
    "Mon, 16 Jun 2025 00:00:00 GMT": 32000,
    "2025-06-15T15:07:00Z": 20,
    "2025-06-15T15:07:00.250Z": 20.25,
    "2025-06-15T17:07:00+02:00": 20,
    "2025-06-15T10:07:00-05:00": 20,
    "2025-06-15T15:07:00": 20,
    "2025-06-15 15:07:00": 20,
    "2024-06-15T15:07:00Z": 0,
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    """Seconds, Go durations, epochs in seconds and milliseconds, HTTP dates and ISO dates are read."""
    assert written(text) == pytest.approx(FORMS[text], abs=1e-5)


@pytest.mark.parametrize("name", [reset for reset, _ in RESETS], ids=bytes.decode)
def test_resets_take_every_form(name: bytes) -> None:
    """A limit's reset is written in all the ways in which `Retry-After` is."""
    for text, seconds in FORMS.items():
        assert said((name, text.encode("latin-1"))) == pytest.approx(seconds, abs=1e-5), text


@pytest.mark.parametrize("name", [b"retry-after-ms", b"x-ms-retry-after-ms"], ids=bytes.decode)
@pytest.mark.parametrize(("text", "seconds"), [(b"0", 0), (b"1500", 1.5), (b"62.5", 0.0625)])
def test_milliseconds(name: bytes, text: bytes, seconds: float) -> None:
    """Headers whose name says milliseconds are read as milliseconds."""
    assert said((name, text)) == pytest.approx(seconds)


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this machine stand in Kiritimati, which is fourteen hours ahead."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("text", ["Sun Jun 15 15:07:00 2025", "2025-06-15T15:07:00"])
def test_a_date_without_a_zone(text: str) -> None:
    """A date that names no zone is UTC, wherever this machine stands."""
    assert datetime.fromtimestamp(NOW).hour == 5  # noqa: DTZ006 - the machine's own hour is meant
    assert written(text) == 20


SOON = st.datetimes(
    datetime(2025, 6, 15, 15, 6, 40),  # noqa: DTZ001 - the zone is added where it is written
    datetime(2026, 6, 15),  # noqa: DTZ001
)
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(SOON, ZONES)
def test_a_date_is_a_moment(moment: datetime, zone: timezone) -> None:
    """A date means the same moment however it is written, and in whichever zone."""
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    seconds = moment.timestamp() - NOW
    local = moment.astimezone(zone)
    ways = [
        format_datetime(moment, usegmt=True),
        format_datetime(local),
        moment.strftime("%a %b %e %H:%M:%S %Y"),
        moment.isoformat().replace("+00:00", "Z"),
        local.isoformat(),
        f"{moment.timestamp():.0f}",
        f"{moment.timestamp() * 1000:.0f}",
    ]
    assert [written(way) for way in ways] == [pytest.approx(seconds)] * len(ways)


@given(st.integers(0, 300), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, thousandths: int) -> None:
    """A Go duration is the sum of its parts."""
    total = hours * 3600 + minutes * 60 + seconds + thousandths / 1000
    assert written(f"{hours}h{minutes}m{seconds}.{thousandths:03}s") == pytest.approx(total)


# What comes before what


def test_precedence() -> None:
    """Milliseconds count before `Retry-After`, and that before the resets of limits."""
    pairs: list[Pair] = [
        (b"x-ratelimit-reset-requests", b"40s"),
        (b"Retry-After", b"30"),
        (b"x-ms-retry-after-ms", b"20000"),
        (b"retry-after-ms", b"10000"),
    ]
    heard = []
    while pairs:
        heard.append(said(*pairs))
        pairs.pop()
    assert heard == [10, 20, 30, 40]


def test_precedence_is_not_order() -> None:
    """In which order the headers stand does not matter."""
    assert said((b"retry-after-ms", b"10"), (b"Retry-After", b"30")) == 0.01
    assert said((b"Retry-After", b"30"), (b"retry-after-ms", b"10")) == 0.01


@pytest.mark.parametrize("nonsense", [b"", b"soon", b"-1", b"nan", b"1e3", b"1s", b"9" * 15])
def test_nonsense_does_not_hide_sense(nonsense: bytes) -> None:
    """What makes no sense counts as nothing said: what comes after it in rank is heard."""
    for name in (b"retry-after-ms", b"x-ms-retry-after-ms"):
        assert said((name, nonsense), (b"Retry-After", b"3")) == 3
        assert said((name, nonsense), (b"x-ratelimit-reset", b"4")) == 4


@pytest.mark.parametrize("nonsense", [b"", b"soon", b"-1", b"nan", b"1e3", b"9" * 9])
def test_nonsense_does_not_hide_a_reset(nonsense: bytes) -> None:
    """A senseless `Retry-After` leaves the word to the limits, a senseless limit to other limits."""
    assert said((b"Retry-After", nonsense), (b"x-ratelimit-reset-tokens", b"6ms")) == 0.006
    assert said((b"ratelimit-reset", nonsense), (b"x-ratelimit-reset-tokens", b"6ms")) == 0.006


def test_the_first_of_a_repeated_header_counts() -> None:
    """Of a header that stands there twice, the first is heard."""
    assert said((b"Retry-After", b"2"), (b"retry-after", b"9")) == 2
    assert said((b"Retry-After", b"9"), (b"retry-after", b"2")) == 9


@pytest.mark.parametrize("name", [*EVERY[:3], *(reset for reset, _ in RESETS)], ids=bytes.decode)
def test_case_of_names(name: bytes) -> None:
    """The case of a header's name does not matter."""
    seconds = 0.002 if name.endswith(b"-ms") else 2
    for spelt in (name.lower(), name.upper(), name.title()):
        assert said((spelt, b"2")) == seconds


# Limits


@pytest.mark.parametrize(("reset", "remaining"), RESETS, ids=lambda name: name.decode())
def test_only_a_limit_that_is_used_up_counts(reset: bytes, remaining: bytes) -> None:
    """A limit's reset counts where nothing remains of it, or nobody says what does."""
    assert said((reset, b"8s")) == 8
    for used_up in (b"0", b"0.0", b" 0 "):
        assert said((reset, b"8s"), (remaining, used_up)) == 8
    for left in (b"1", b"59", b"149984", b"0.5"):
        assert said((reset, b"8s"), (remaining.upper(), left)) is None


def test_the_longest_reset_counts() -> None:
    """Of several limits that are used up, the one that is reset last says how long; the others do not."""
    pairs = [
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"x-ratelimit-reset-requests", b"1m30.951s"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"6ms"),
        (b"x-ratelimit-remaining", b"12"),
        (b"x-ratelimit-reset", b"3600"),
    ]
    assert said(*pairs) == pytest.approx(90.951)


def test_anthropic() -> None:
    """The limits of Anthropic, in the form in which it writes them, are read."""
    pairs = [
        (b"anthropic-ratelimit-requests-limit", b"50"),
        (b"anthropic-ratelimit-requests-remaining", b"49"),
        (b"anthropic-ratelimit-requests-reset", b"2025-06-15T15:09:00Z"),
        (b"anthropic-ratelimit-input-tokens-limit", b"30000"),
        (b"anthropic-ratelimit-input-tokens-remaining", b"0"),
        (b"anthropic-ratelimit-input-tokens-reset", b"2025-06-15T15:07:10Z"),
    ]
    assert said(*pairs) == 30


# Nonsense

NONSENSE = [
    "",
    " ",
    "-1",
    "+1",
    "-0",
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "-inf",
    "1e9",
    "1e-3",
    "0x10",
    "1_000",
    "1,5",
    "1.",
    ".5",
    "1.5.5",
    "5 s",
    "1s 2s",
    "1m-3s",
    "1w",
    "s",
    "ms",
    "1x",
    "soon",
    "9" * 15,
    "9" * 35,
    "1." + "9" * 35,
    "31622401",
    "999999999d",
    "9" * 35 + "s",
    "Sun, 15 Jun 100000 15:07:00 GMT",
    "Sun, 15 Jun 2999 15:07:00 GMT",
    "Sun, 45 Jun 2025 15:07:00 GMT",
    "Sun, 15 Jun 2025 15:07:00 +999999999",
    "Sun, 15 Jun 2025 15:07:00 +9999",
    "100000-01-01T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "2025-13-01T00:00:00Z",
    "2025-06-15T15:07:00+99:00",
    "----------",
    ", , , , , , ",
    "\xb2\xb3",
    "\xb9",
    "\xbd",
    "5\x00",
    "5\xff",
    "\xff" * 30,
]


@pytest.mark.parametrize("text", NONSENSE, ids=ascii)
def test_nonsense(text: str) -> None:
    """What makes no sense, or asks for more than a year, counts as nothing said."""
    assert written(text) is None
    assert said((b"x-ratelimit-reset", text.encode("latin-1"))) is None
    if text != "31622401":  # as milliseconds it makes sense
        assert said((b"retry-after-ms", text.encode("latin-1"))) is None


@pytest.mark.parametrize("digits", ["٥", "५", "\uff15", "²", "①"])
def test_digits_of_other_scripts_are_none(digits: str) -> None:
    """Digits are the ten of ASCII."""
    assert said((b"Retry-After", digits.encode())) is None
    assert said((b"Retry-After", f"{digits}s".encode())) is None


def test_silence() -> None:
    """An answer that says nothing about waiting asks for nothing."""
    assert said() is None
    assert said((b"Content-Type", b"text/event-stream"), (b"x-retry-after", b"5")) is None


LIKELY = st.text("0123456789.:-+eE, TZGMhmsudµnJuSf", max_size=40).map(
    lambda s: s.encode("latin-1")
)
VALUES = (
    st.binary(max_size=70) | LIKELY | st.sampled_from([text.encode("latin-1") for text in FORMS])
)
HEADERS = st.lists(st.tuples(st.sampled_from(EVERY) | st.binary(max_size=20), VALUES), max_size=6)
MOMENTS = st.floats(0, 1e11)


@given(HEADERS, MOMENTS)
@example([(b"retry-after", b"Sun, 15 Jun 2025 15:07:00 +99999999999999999999")], NOW)
@example([(b"retry-after", b"0001-01-01T00:00:00+23:59")], NOW)
def test_any_bytes(headers: list[Pair], now: float) -> None:
    """Whatever an upstream sends is no error, and asks for nothing or for a wait of up to 366 days."""
    wait = retry_after(headers, now)
    assert wait is None or (isfinite(wait) and 0 <= wait <= LONGEST == 366 * 86400)
    assert should_retry(headers) in (None, True, False)


# x-should-retry


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"true", True),
        (b"false", False),
        (b"False", False),
        (b" TRUE ", True),
        (b"", None),
        (b"1", None),
        (b"no", None),
        (b"\xff", None),
    ],
)
def test_should_retry(value: bytes, says: bool | None) -> None:
    """`x-should-retry` says true or false; anything else is nothing said."""
    assert should_retry([(b"Retry-After", b"1"), (b"X-Should-Retry", value)]) is says


def test_should_retry_silence() -> None:
    """An answer without `x-should-retry` says nothing; of two the first is heard."""
    assert should_retry([(b"x-should-retry-not", b"false")]) is None
    assert should_retry([(b"x-should-retry", b"false"), (b"x-should-retry", b"true")]) is False
