"""How often a whole request is sent, and where: the matrix of failures and settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults import scenarios
from tests.faults.house import At, House
from tests.faults.places import Place, Spot
from tests.faults.tls import BAD
from tests.harness.upstream import Step, answer, close, event, hang, raw, reset, stream

OK = b'{"ok":true}'
BAD_KEY = b'{"error":{"message":"no"}}'
LONG = b'{"error":{"code":"context_length_exceeded"}}'
ERROR_EVENT = event(b'{"error":{"message":"overloaded","type":"overloaded_error"}}')


def retry_after(seconds: str, status: int = 429, *, no: bool = False) -> Step:
    headers = [(b"Content-Type", b"application/json"), (b"Retry-After", seconds.encode())]
    if no:
        headers.append((b"x-should-retry", b"false"))
    return answer(status, b"{}", headers)


HTTP = Spot()


@dataclass(frozen=True)
class Failure:
    """What goes wrong at A: its *step*, or what stands there; *expected* is who gets whole requests in
    which setting; *warm*: on a connection that has been used. *route* is what its route says besides.
    """

    expected: Mapping[str, str]
    step: Step | None = None
    spot: Spot = HTTP
    warm: bool = False
    route: str = ""
    events: tuple[str, ...] = ()


def _in(alone: str, fallback: str, keys: str, unbilled: str) -> dict[str, str]:
    return {"alone": alone, "fallback": fallback, "two keys": keys, "unbilled": unbilled}


_FAST = 'timeout = { connect = "200ms", first_byte = "200ms", idle = "200ms" }'
_LATE = ("connect timeout", "no answer in time", "silent in the middle")
"""Where a time must run out; elsewhere none may, however slow the machine is."""
FAILURES: dict[str, Failure] = {
    "refused": Failure(_in("-", "B", "-", "B"), spot=Spot("closed")),
    "connect timeout": Failure(_in("-", "B", "-", "B"), spot=Spot("deaf")),
    "no such host": Failure(
        _in("-", "B", "-", "B"), spot=Spot("url", url="http://nowhere.fault/v1")
    ),
    "name server busy": Failure(
        _in("-", "B", "-", "B"), spot=Spot("url", url="http://busy.fault/v1")
    ),
    "bad certificate": Failure(
        _in("-", "B", "-", "B"),
        spot=Spot("tls", name="localhost", tls=BAD["expired"]),
        events=("upstream_certificate",),
    ),
    "closed, fresh connection": Failure(_in("A", "A", "A", "A B"), close()),
    "reset, fresh connection": Failure(_in("A", "A", "A", "A B"), reset()),
    "closed, used connection": Failure(_in("A A", "A A", "A A", "A A B"), close(), warm=True),
    "no answer in time": Failure(_in("A", "A", "A", "A B"), hang()),
    "not HTTP": Failure(_in("A", "A", "A", "A"), raw(b"hello world\r\n\r\n")),
    "429": Failure(_in("A", "A B", "A A", "A B"), answer(429, b"{}")),
    "429, in 1 s": Failure(_in("A A", "A B", "A A A", "A B"), retry_after("1")),
    "429, in 30 s": Failure(_in("A", "A B", "A A", "A B"), retry_after("30")),
    "408": Failure(_in("A A", "A B", "A A", "A B"), answer(408, b"{}")),
    "503": Failure(_in("A A", "A B", "A A", "A B"), answer(503, b"{}")),
    "503, not again": Failure(_in("A", "A B", "A", "A B"), retry_after("0", 503, no=True)),
    "529": Failure(_in("A A", "A B", "A A", "A B"), answer(529, b"{}")),
    "500": Failure(_in("A", "A B", "A", "A B"), answer(500, b"{}")),
    "502": Failure(_in("A", "A B", "A", "A B"), answer(502, b"{}")),
    "504": Failure(_in("A", "A B", "A", "A B"), answer(504, b"{}")),
    "524": Failure(_in("A", "A B", "A", "A B"), answer(524, b"{}")),
    "501": Failure(_in("A", "A", "A", "A"), answer(501, b"{}")),
    "401": Failure(
        _in("A", "A B", "A A", "A B"), answer(401, BAD_KEY), events=("credential_refused",)
    ),
    "400": Failure(_in("A", "A", "A", "A"), answer(400, LONG)),
    "400, too long": Failure(
        _in("A", "A B", "A", "A B"), answer(400, LONG), route="on_context_length = true"
    ),
    "403": Failure(_in("A", "A", "A", "A"), answer(403, b"{}")),
    "404": Failure(_in("A", "A", "A", "A"), answer(404, b"{}")),
    "redirect": Failure(_in("A", "A", "A", "A"), answer(307, b"{}")),
    "error event": Failure(_in("A", "A", "A", "A"), stream(ERROR_EVENT)),
    "error event, peek": Failure(
        _in("A A", "A B", "A A", "A B"), stream(ERROR_EVENT), route="peek = true"
    ),
    "cut in the middle": Failure(
        _in("A", "A", "A", "A"), scenarios.cut(scenarios.WHOLE, len(scenarios.HELLO))
    ),
    "silent in the middle": Failure(
        _in("A", "A", "A", "A"), scenarios.events(scenarios.HELLO, end="none")
    ),
}


def name_of(failure: str, setting: str) -> str:
    """Return the name of the route of one cell."""
    return f"{failure}.{setting}".replace(" ", "_").replace(",", "")


def _spots() -> tuple[dict[str, Spot], list[str]]:
    spots: dict[str, Spot] = {}
    routes = []
    for failure, what in FAILURES.items():
        for setting in what.expected:
            name = name_of(failure, setting)
            extra = [_FAST] if failure in _LATE else []
            if setting == "unbilled":
                extra.append("billed = false")
            fields: dict[str, Any] = {
                "kind": what.spot.kind,
                "url": what.spot.url,
                "name": what.spot.name,
                "tls": what.spot.tls,
                "credentials": 2 if setting == "two keys" else 1,
            }
            if what.spot.kind == "tls":
                extra.append('ca = "<CA>"')
            table = "\n".join(extra)
            spots[f"{name}-A"] = Spot(extra=table, **fields)
            spots[f"{name}-B"] = Spot()
            route = f'"{name}" = {{ upstream = "{name}-A"'
            if setting in ("fallback", "unbilled"):
                route += f', fallback = "{name}-B/{name}"'
            routes.append(f"{route}{', ' if what.route else ''}{what.route} }}")
    return spots, routes


SPOTS, ROUTES = _spots()


def places_of(house: House, failure: str, setting: str) -> dict[str, Place]:
    """Return A, where there is one, and B."""
    name = name_of(failure, setting)
    found = {place: house.places.get(f"{name}-{place}") for place in "AB"}
    return {place: one for place, one in found.items() if one is not None}


async def run(at: At, failure: str, setting: str) -> str:
    """Let A fail once at one request; return who got it whole, in order."""
    what = FAILURES[failure]
    at.events |= set(what.events)
    a, b = at.places.get("A"), at["B"]
    b.will(answer())
    skip = 0
    if a is not None:
        if what.warm:
            a.will(answer())
            assert (await at.call()).status == 200
            skip = 1
        if what.step is not None:
            a.will(what.step)
    expected = what.expected[setting]
    at.sends = len(expected.split())
    got = (
        await at.call(stream=True) if "event" in failure or "middle" in failure else await at.call()
    )
    assert got.status != 500 or failure == "500"
    heard = [(one.begun, "A") for one in (a.heard[skip:] if a else [])]
    heard += [(one.begun, "B") for one in b.heard]
    if heard and heard[-1][1] == "B":
        assert (got.status, got.body) == (200, OK)
    bodies = {one.request.body for one in [*(a.heard[skip:] if a else []), *b.heard]}
    assert len(bodies) <= 1, "what was sent again is not what was sent"
    if setting == "two keys" and a is not None and expected == "A A" and what.events:
        assert len({one.request.value(b"authorization") for one in a.heard}) == 2
    return " ".join(place for _, place in sorted(heard)) or "-"
