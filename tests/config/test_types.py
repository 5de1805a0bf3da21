"""Values of the wrong type, wherever they stand."""

from datetime import date, datetime
from typing import Any

import pytest

from proxy.config import ConfigError
from proxy.config.problems import dotted
from tests.config.files import FULL, ROUTES, Node, changed, file_of, nodes, read, told, toml_of

JUNK: list[Any] = [
    5,
    True,
    1.5,
    datetime(2027, 6, 30, 1, 2, 3),  # noqa: DTZ001 - a local time, as TOML has them
    {"x": 1},
    [5],
    ["x", 5],
    [{"x": 1}, 5],
]
FITS: dict[Node, tuple[type, ...]] = {
    ("server", "max_body"): (int,),
    ("server", "max_held"): (int,),
    ("server", "max_inflight"): (int,),
    ("server", "workers"): (int,),
    ("defaults", "retry", "attempts"): (int,),
    ("defaults", "retry", "stale"): (bool,),
    ("defaults", "retry", "failover_5xx"): (bool,),
    ("defaults", "retry", "ambiguous"): (bool,),
    ("defaults", "retry", "next"): (bool,),
    ("defaults", "retry", "also", 0): (int,),
    ("defaults", "retry", "also", 1): (int,),
    ("surface", 0, "docs"): (bool,),
    ("surface", 0, "echo_model"): (bool,),
    ("surface", 1, "open"): (bool,),
    ("upstreams", "openai", "retry", "attempts"): (int,),
    ("upstreams", "corp", "passthrough"): (bool,),
    ("upstreams", "eu", "optional"): (bool,),
    ("upstreams", "eu", "billed"): (bool,),
    ("routes", "fast/*", "targets", 1, "weight"): (int, float),
    ("routes", "fast/*", "retry", "attempts"): (int,),
    ("routes", "fast/*", "on_context_length"): (bool,),
    ("routes", "fast/*", "peek"): (bool,),
    ("keys", "mobile", "expires"): (date,),
}


@pytest.mark.parametrize(("written", "count"), [("1", 1), ("256", 256), ('"auto"', None)])
def test_workers(written: str, count: int | None) -> None:
    """There are so many workers, or one per core."""
    snapshot = read(f"[server]\nworkers = {written}\n{ROUTES}")
    assert snapshot.settings.workers == count


@pytest.mark.parametrize("written", ["0", "257", "-1", "true", "2.0", '"2"', '"many"'])
def test_no_number_of_workers(written: str) -> None:
    """What is no number of workers is refused, with what would be one."""
    problems = told(f"[server]\nworkers = {written}\n{ROUTES}")
    assert problems == {"server.workers": 'must be a number from 1 to 256, or "auto"'}


@pytest.mark.parametrize("path", [path for path, _ in nodes(FULL)], ids=dotted)
def test_wrong_types(path: Node) -> None:
    """A value of another type is refused at its place: nothing is coerced, nothing taken for a list."""
    for junk in JUNK:
        if type(junk) in FITS.get(path, ()):
            continue
        with pytest.raises(ConfigError) as caught:
            read(file_of(changed(FULL, path, junk)))
        places = [problem.path for problem in caught.value.problems]
        assert any(path[: len(p)] == p or p[: len(path)] == path for p in places), (junk, places)


@pytest.mark.parametrize("path", [p for p, v in nodes(FULL) if not isinstance(v, str)], ids=dotted)
def test_text_in_place_of_another_type(path: Node) -> None:
    """Text is not read as a number, a date, a list or a table, but where the file says it may be."""
    short = {
        ("upstreams", "corp", "credential"), ("upstreams", "vertex", "credential"),
        ("upstreams", "openai", "credential"), ("upstreams", "openai", "credential", 1),
        ("keys", "mobile"), ("keys", "long"),
    }  # fmt: skip
    lists = {
        ("surface", 1, "listen"), ("upstreams", "eu", "env"), ("upstreams", "corp", "forward"),
        ("surface", 0, "strip"),
    }  # fmt: skip
    if path not in short | lists:
        assert told(file_of(changed(FULL, path, "text")))


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("1", 1), ("5B", 5), ("1KiB", 1024), ("1KB", 1000), ("1.5K", 1500), ("64MiB", 2**26),
     ("10 MB", 10**7), ("2GiB", 2**31), ("1G", 10**9)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    """A size is a number of bytes, with a decimal or a binary unit."""
    assert read(f"[server]\nmax_body = {toml_of(text)}\n{ROUTES}").settings.max_body == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        0,
        -1,
        "-1",
        "64MIB",
        "64mib",
        "MiB",
        "1e3",
        "1TB",
        "64 M B",
        "1,000",
        "0.1B",
        "none",
    ],
)
def test_bad_sizes(text: str | int) -> None:
    """What is not a size of at least one byte is refused, saying how one is written."""
    problems = told(f"[server]\nmax_body = {toml_of(text)}\n{ROUTES}")
    assert "64MiB" in problems["server.max_body"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("250ms", 0.25), ("1m30s", 90), ("1h", 3600), ("0.5s", 0.5), ("2h5m", 7500),
     ("none", None)],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    """A duration is a number with a unit, several of them, or `none`."""
    assert read(f"[server]\ndrain = {toml_of(text)}\n{ROUTES}").settings.drain == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "0", "30", 30, 1.5, "-5s", "30 s", "s", "30sec", "1d", "None", "1e3s", "inf", "5s "]
)  # fmt: skip
def test_bad_durations(text: str | float) -> None:
    """What is not a positive duration is refused, saying how one is written."""
    problems = told(f"[server]\ndrain = {toml_of(text)}\n{ROUTES}")
    assert "1m30s" in problems["server.drain"]


@pytest.mark.parametrize("unit", ["s", "h", "B", "GiB", ""])
@pytest.mark.parametrize("key", ["drain", "max_body"])
def test_astronomical_numbers(key: str, unit: str) -> None:
    """A number beyond all measure is refused like any other mistake."""
    assert told(f'[server]\n{key} = "{"9" * 400}{unit}"\n{ROUTES}')


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_bad_counts(number: float) -> None:
    """At least one exchange must be let in."""
    assert "server.max_inflight" in told(f"[server]\nmax_inflight = {number}\n{ROUTES}")
