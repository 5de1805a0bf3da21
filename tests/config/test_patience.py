"""How often, how long: `retry` and `timeout`, from the file down to a target."""

from typing import Any

import pytest

from proxy.routes import Retry, Timeouts
from tests.config.files import ROUTES, file_of, read, route_of, told


@pytest.mark.parametrize("table", ["defaults", "upstreams.openai", "routes.m"])
@pytest.mark.parametrize(
    ("line", "key", "word"),
    [
        ("attempts = 0", "attempts", "greater than or equal to 1"),
        ("attempts = -1", "attempts", "greater than or equal to 1"),
        ("attempts = 11", "attempts", "less than or equal to 10"),
        ("attempts = 2.5", "attempts", "integer"),
        ("attempts = true", "attempts", "integer"),
        ('attempts = "3"', "attempts", "integer"),
        ('attempts = "${N}"', "attempts", "integer"),
        ('deadline = "0s"', "deadline", "duration"),
        ("deadline = 600", "deadline", "duration"),
        ('deadline = "never"', "deadline", "duration"),
        ("stale = 1", "stale", "boolean"),
        ('failover_5xx = "no"', "failover_5xx", "boolean"),
        ("ambiguous = []", "ambiguous", "boolean"),
        ("next = 1", "next", "boolean"),
        ("also = 404", "also", "list"),
        ('also = ["404"]', "also[0]", "integer"),
        ("also = [404, 200]", "also[1]", "greater than or equal to 400"),
        ("also = [600]", "also[0]", "less than or equal to 599"),
        ("also = [404.5]", "also[0]", "integer"),
        ("attempt = 3", "attempt", 'did you mean "attempts"?'),
        ("failover = false", "failover", "unknown key"),
    ],
)
def test_bad_retry(table: str, line: str, key: str, word: str) -> None:
    """What may be tried again is said with keys that there are, within their bounds."""
    more = 'upstream = "openai"\n' if table == "routes.m" else ""
    routes = "" if more else ROUTES
    problems = told(f"{routes}[{table}]\n{more}retry = {{ {line} }}\n", {"N": "3000000"})
    assert list(problems) == [f"{table}.retry.{key}"]
    assert word in problems[f"{table}.retry.{key}"]


@pytest.mark.parametrize("table", ["defaults", "upstreams.openai", "routes.m"])
def test_retry_also(table: str) -> None:
    """`also` is taken wherever `retry` stands, and the list nearest to the route counts, whole."""
    more = 'upstream = "openai"\n' if table == "routes.m" else ""
    toml = (
        f"{'' if more else ROUTES}[{table}]\n{more}retry = {{ also = [404, 424], next = false }}\n"
    )
    retry = route_of(toml).first.retry
    assert (retry.also, retry.next) == ((404, 424), False)


@pytest.mark.parametrize("value", ["3", "true", '"3"', "[3]"])
@pytest.mark.parametrize("table", ["defaults", "upstreams.openai", "routes.m"])
def test_retry_is_a_table(table: str, value: str) -> None:
    """How often something is tried is one key of several."""
    more = 'upstream = "openai"\n' if table == "routes.m" else ""
    problems = told(f"{'' if more else ROUTES}[{table}]\n{more}retry = {value}\n")
    wanted = "must be a table, such as retry = { attempts = 3 }"
    assert problems == {f"{table}.retry": wanted}


@pytest.mark.parametrize("attempts", [1, 10])
@pytest.mark.parametrize("deadline", ["none", "250ms"])
def test_retry_bounds(attempts: int, deadline: str) -> None:
    """One attempt is none again, ten are the most, and a deadline need not be."""
    toml = f'[routes.m]\nupstream = "openai"\nretry = {{ attempts = {attempts}, deadline = "{deadline}" }}'
    retry = route_of(toml).first.retry
    assert retry == Retry(attempts, None if deadline == "none" else 0.25)


def test_retry_as_built_in() -> None:
    """Where nothing is said, what may be billed twice is not tried again, and the rest three times."""
    assert route_of(ROUTES).first.retry == Retry(
        attempts=3, deadline=600, stale=True, failover_5xx=True, ambiguous=False
    )


LAYERS = """
[defaults]
retry = { attempts = 5, deadline = "50s", stale = false }
timeout = { connect = "50s", idle = "51s" }
[upstreams.a]
base_url = "http://a/v1"
retry = { attempts = 4, ambiguous = true }
timeout = { connect = "40s", write = "41s" }
[upstreams.b]
base_url = "http://b/v1"
retry = { deadline = "none" }
timeout = { total = "30s" }
[routes]
plain = "a/x"
m = { upstream = "a", retry = { attempts = 2 }, timeout = { connect = "20s" }, fallback = ["b/x", "other", "plain"] }
other = { upstream = "b", retry = { failover_5xx = false }, timeout = { idle = "10s" } }
spread = { targets = ["a/x", "b/x", "other"], retry = { attempts = 1 }, timeout = { connect = "1s" } }
alias = "m"
"""
PLAIN = (Retry(4, 50, False, True, True), Timeouts(40, 600, 51, 41, None))
OTHER = (Retry(5, None, False, False, False), Timeouts(50, 600, 10, 60, 30))
CHAIN = [
    (Retry(2, 50, False, True, True), Timeouts(20, 600, 51, 41, None)),
    (Retry(2, None, False, True, False), Timeouts(20, 600, 51, 60, 30)),
    OTHER,
    PLAIN,
]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("plain", [PLAIN]),
        ("other", [OTHER]),
        ("m", CHAIN),
        ("alias", CHAIN),
        (
            "spread",
            [
                (Retry(1, 50, False, True, True), Timeouts(1, 600, 51, 41, None)),
                (Retry(1, None, False, True, False), Timeouts(1, 600, 51, 60, 30)),
                OTHER,
            ],
        ),
    ],
)
def test_layers_hold_place_by_place(model: str, expected: list[tuple[Retry, Timeouts]]) -> None:
    """Key by key the route's word goes before the upstream's, that before the defaults': at each
    place those of its own upstream, and of the route that names it.
    """
    found = [(one.retry, one.timeouts) for one in route_of(LAYERS, model).targets()]
    assert found == expected


def test_each_place_says_who_set_its_timeouts() -> None:
    """Each place of a chain knows whose word its timeouts are."""
    first, second, third, _ = route_of(LAYERS, "alias").targets()
    assert [one.origins["connect"] for one in (first, second, third)] == [
        "routes.m.timeout", "routes.m.timeout", "defaults.timeout",
    ]  # fmt: skip
    assert [one.origins["idle"] for one in (first, second, third)] == [
        "defaults.timeout", "defaults.timeout", "routes.other.timeout",
    ]  # fmt: skip
    assert [one.origins["total"] for one in (first, second)] == ["built in", "upstreams.b.timeout"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("0ms", 0), ("5s", 5), ("250ms", 0.25), ("1m30s", 90)]
)
def test_lame_duck(text: str, seconds: float) -> None:
    """How long nothing changes after the word to leave is a duration, and may be none at all."""
    assert read(f'[server]\nlame_duck = "{text}"\n{ROUTES}').settings.lame_duck == seconds
    assert read(ROUTES).settings.lame_duck == 0


@pytest.mark.parametrize("text", ["none", "", "0", "5", "-1s", "soon", 0, 5, 1.5, True, ["5s"]])
def test_bad_lame_duck(text: Any) -> None:
    """Nobody waits for ever to leave; the message shows what may be written, and no more."""
    problems = told(file_of({"server": {"lame_duck": text}, "routes": {"m": "openai/x"}}))
    assert list(problems) == ["server.lame_duck"]
    assert '"0s"' in problems["server.lame_duck"]
    assert '"none"' not in problems["server.lame_duck"]


@pytest.mark.parametrize(("text", "seconds"), [("620s", 620), ("1h10m", 4200), ("500ms", 0.5)])
def test_keepalive_idle(text: str, seconds: float) -> None:
    """How long a connection may be idle is a duration; unless set, longer than balancers keep theirs."""
    assert read(f'[server]\nkeepalive_idle = "{text}"\n{ROUTES}').settings.keepalive_idle == seconds
    assert read(ROUTES).settings.keepalive_idle == 620


@pytest.mark.parametrize("text", ["none", "0s", "-1s", "620", "", 620, True, ["1s"]])
def test_bad_keepalive_idle(text: Any) -> None:
    """It is some time, and not for ever."""
    problems = told(file_of({"server": {"keepalive_idle": text}, "routes": {"m": "openai/x"}}))
    assert list(problems) == ["server.keepalive_idle"]
    assert '"620s"' in problems["server.keepalive_idle"]
    assert '"none"' not in problems["server.keepalive_idle"]


def test_lame_duck_is_the_process_s() -> None:
    """It stays in [server] where there are surfaces, and is no key of theirs."""
    surface = '[[surface]]\nname = "a"\n'
    assert read(f'[server]\nlame_duck = "5s"\n{surface}{ROUTES}').settings.lame_duck == 5
    assert list(told(f'{surface}lame_duck = "5s"\n{ROUTES}')) == ["surface[0].lame_duck"]
