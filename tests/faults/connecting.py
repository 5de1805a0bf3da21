"""C: on the way to an upstream."""

import asyncio
import tempfile
from pathlib import Path
from time import monotonic

from tests.faults.case import alone, apart, case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.faults.tls import AUTHORITY, BAD, certified
from tests.harness.upstream import answer, hang

OK = b'{"ok":true}'
CA = 'ca = "<CA>"'


@case("C01", spots=Spot("closed"))
async def refused(at: At) -> None:
    """Nobody listens: told within a second, after at most two more tries."""
    begun = monotonic()
    got = await at.call()
    assert (got.status, got.code) == (502, "upstream_connect")
    assert monotonic() - begun < 2
    record = await at.record()
    assert 1 <= len(record["attempts"]) <= 3
    assert not any(attempt["maybe_billed"] for attempt in record["attempts"])


@case("C01b", spots={"A": Spot("closed"), "B": Spot()}, route='fallback = "@-B/@"')
async def refused_with_a_fallback(at: At) -> None:
    """Nobody listens, and there is a fallback: it is asked at once."""
    assert (await at.call()).body == OK
    first, *_, last = (await at.record())["attempts"]
    assert (first["phase"], first["error"], last["status"]) == ("unsent", "upstream_connect", 200)
    assert at["B"].sends == 1


@case("C02", spots={"A": Spot("deaf", 'timeout = { connect = "300ms" }'), "B": Spot()}, route='fallback = "@-B/@"')  # fmt: skip
async def black_hole(at: At) -> None:
    """Nobody answers a connect: its time is bounded, and then the fallback is asked."""
    begun = monotonic()
    assert (await at.call()).body == OK
    assert 0.2 < monotonic() - begun < 3
    (first, second) = (await at.record())["attempts"]
    assert (first["error"], first["phase"]) == ("upstream_connect", "unsent")
    assert second["status"] == 200


@case("C02b", spots=Spot("deaf", 'timeout = { connect = "200ms" }\nretry = { attempts = 2 }'))
async def black_hole_alone(at: At) -> None:
    """Nobody answers a connect, and there is nowhere else to go."""
    assert (await at.call()).code == "upstream_connect"


FAST = 'timeout = { connect = "400ms" }\nretry = { attempts = 2 }'
NAMES = {
    "unknown": ("C03u", "upstream_dns"),
    "busy": ("C03b", "upstream_dns"),
    "empty": ("C03n", None),
    "slow": ("C03s", "upstream_connect"),
}


@case(
    "C03",
    spots={
        "u": Spot("url", FAST, url="http://nobody.fault/v1"),
        "b": Spot("url", FAST, url="http://busy.fault/v1"),
        "n": Spot("url", FAST, url="http://none.fault/v1"),
        "s": Spot("url", FAST, url="http://slow.fault:9/v1"),
        "up": Spot(name="up.fault"),
    },
    routes="\n".join(f'"@{n}" = {{ upstream = "@-{n}" }}' for n in ("u", "b", "n", "s", "up")),
    forms=NAMES,
)
async def names(at: At, what: tuple[str, str | None]) -> None:
    """A name that leads nowhere is told in time, and its look-up delays nobody else's."""
    model, code = what
    begun = monotonic()
    late = asyncio.create_task(at.call(model=model))
    assert (await at.call(model="C03up")).body == OK
    assert monotonic() - begun < 0.7 or not late.done()
    got = await late
    assert got.status == 502
    assert code is None or got.code == code
    assert monotonic() - begun < 5
    if model == "C03s":
        await asyncio.sleep(3)  # until the look-up itself is over, as it has a descriptor


@case("C04", spots={"A": Spot(name="dual.fault"), "B": Spot(host="::1")}, routes='"@" = { upstream = "@-A" }\n"@6" = { upstream = "@-B" }')  # fmt: skip
async def two_families(at: At) -> None:
    """A dead address in front of a living one costs less than half a second; an IPv6 address will do."""
    begun = monotonic()
    assert (await at.call()).body == OK
    assert monotonic() - begun < 1
    assert (await at.call(model="C046")).body == OK


async def _plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def _break(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.transport.abort()


_ONCE = CA + "\nretry = { attempts = 2 }"
TLS = {
    "expired": Spot("tls", _ONCE, name="localhost", tls=BAD["expired"]),
    "self-signed": Spot("tls", _ONCE, name="localhost", tls=BAD["self-signed"]),
    "wrong host": Spot("tls", _ONCE, name="localhost", tls=BAD["wrong host"]),
    "plain": Spot("bare tls", _ONCE, serve=_plain),
    "broken off": Spot("bare tls", _ONCE, serve=_break),
}


@case(
    "C05",
    spots=TLS,
    routes="\n".join(f'"@/{name}" = {{ upstream = "@-{name}" }}' for name in TLS),
    forms={name: name for name in TLS},
)
async def bad_tls(at: At, name: str) -> None:
    """Without a certificate that holds nothing is sent: never again to the same, and the operator is told."""
    certificate = name not in ("plain", "broken off")
    got = await at.call(model=f"C05/{name}")
    assert (got.status, got.code) == (502, "upstream_tls")
    attempts = (await at.record())["attempts"]
    assert len(attempts) == (1 if certificate else 2)
    assert at.has("upstream_certificate") == certificate
    if name in at.places:
        assert at[name].heard == []


@alone("C05b")
async def old_tls() -> None:
    """An upstream that only speaks TLS 1.1 is not spoken to."""

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(
            b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02" + b"\x00" * 32 + b"\x00\x00\x35\x00"
        )
        await writer.drain()
        await reader.read(65536)
        writer.close()

    async with apart(Spot("bare tls", "retry = { attempts = 1 }", serve=hello)) as at:
        assert (await at.call()).code == "upstream_tls"


@case("C06")
async def environment(at: At) -> None:
    """What the environment says of proxies, and a .netrc, count for nothing: the house stands in such a one."""
    assert (await at.call()).body == OK
    environ = Path(f"/proc/{at.house.pid}/environ").read_bytes()
    assert b"HTTPS_PROXY=" in environ
    assert b"netrc" not in at["A"].heard[0].request.head


@alone("C07")
async def full() -> None:
    """Where there is no more room the caller is told at once, and can come back."""
    async with apart(Spot(), server="max_inflight = 2") as at:
        at["A"].will(hang())
        busy = [await at.connect() for _ in range(2)]
        for caller in busy:
            await caller.send(at.request())
        async with asyncio.timeout(5):
            while at["A"].busy < 2:
                await asyncio.sleep(0.01)
        begun = monotonic()
        got = await at.call()
        assert (got.status, got.code) == (503, "overloaded")
        assert got.value(b"retry-after") is not None
        assert monotonic() - begun < 1
        for caller in busy:
            caller.close()
        await at["A"].idle()
        at["A"].will(answer())
        async with asyncio.timeout(5):
            while (await at.call()).status != 200:
                await asyncio.sleep(0.05)


async def _deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket it is one that can
    await asyncio.sleep(15)
    writer.transport.abort()


@case("C08", spots=Spot("bare", 'timeout = { write = "400ms", first_byte = "20s" }', serve=_deaf, name="127.0.0.1"))  # fmt: skip
async def zero_window(at: At) -> None:
    """An upstream that takes not a byte of a big request is given up, and holds up nobody."""
    begun = monotonic()
    late = asyncio.create_task(at.call(text="x" * 20_000_000))
    assert (await at.call(model="C06")).status == 200
    got = await late
    assert (got.status, got.code) == (504, "upstream_timeout")
    assert monotonic() - begun < 14


_SAME = certified()


@alone("C10")
async def shares_nothing() -> None:
    """One place under two names is two places: credentials, trust and connections are never shared."""
    with tempfile.TemporaryDirectory() as directory:
        ca = Path(directory, "ca.pem")
        AUTHORITY.cert_pem.write_to_path(ca)
        more = f"""
            [upstreams.trusting]
            base_url = "<A>"
            ca = "{ca}"
            [upstreams.wary]
            base_url = "<A>"
            """
        routes = (
            '"t" = { upstream = "trusting" }\n"w" = { upstream = "wary" }\n"m" = { upstream = "A" }'
        )
        spot = Spot("tls", CA, name="localhost", tls=_SAME)
        async with apart(spot, routes=routes, more=more, ca=ca) as at:
            for model in ("t", "m", "t", "m"):
                assert (await at.call(model=model)).body == OK
            got = await at.call(model="w")
            assert got.code == "upstream_tls"
            at.events.add("upstream_certificate")
            used = [heard.request.connection for heard in at["A"].heard]
            assert used[0] == used[2] != used[1] == used[3]
