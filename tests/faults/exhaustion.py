"""J: nothing is left of something. Each of these has a proxy of its own, but for the last ones."""

import asyncio
import os
import re
import resource
import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic

from tests.faults.case import alone, apart, case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.harness.client import request
from tests.harness.proxy import complaints
from tests.harness.upstream import JSON, answer, hang

OK = b'{"ok":true}'


def resident(at: At) -> float:
    """Return how much memory the proxy has, in MB."""
    status = Path(f"/proc/{at.house.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+([0-9]+)", status)[1]) / 1024  # type: ignore[index]  # it is there


def cpu(at: At) -> float:
    """Return how many seconds of CPU the proxy has used."""
    fields = Path(f"/proc/{at.house.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@alone("J01")
async def no_descriptors() -> None:
    """Without descriptors connections wait or are refused in order; nothing spins, and all is well after."""
    async with apart(Spot()) as at:
        at.events |= {"loop_error", "out_of_descriptors"}
        resource.prlimit(at.house.pid, resource.RLIMIT_NOFILE, (64, 256))
        socks = []
        try:
            for _ in range(120):
                sock = socket.socket()
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", at.port))
                socks.append(sock)
            await asyncio.sleep(0.3)
            used, begun = cpu(at), monotonic()
            await asyncio.sleep(1.0)
            assert (cpu(at) - used) / (monotonic() - begun) < 0.5, "it spins"
        finally:
            for sock in socks:
                sock.close()
        async with asyncio.timeout(10):
            while True:
                try:
                    got = await at.call(seconds=2)
                    if got.status == 200:
                        break
                except (OSError, TimeoutError):
                    at.lines -= 1
                await asyncio.sleep(0.1)


INJECTIONS = {
    "connect: EADDRNOTAVAIL": ("connect", "connect:error=EADDRNOTAVAIL", "upstream_connect"),
    "socket: EMFILE": ("socket", "socket:error=EMFILE", "overloaded"),
}


@alone("J02", forms=INJECTIONS, needs="strace")
async def no_addresses(what: tuple[str, str, str]) -> None:
    """Without a descriptor or an address for the upstream's side the caller is told; later it works again."""
    call, injection, code = what
    async with apart(Spot(extra="retry = { attempts = 1 }")) as at:
        at.events |= {"out_of_descriptors"} if code == "overloaded" else set()
        tracer = await _trace(at, call, injection)
        try:
            got = await at.call()
            assert (got.status, got.code) == (503 if code == "overloaded" else 502, code)
        finally:
            await _let_go(tracer)
        async with asyncio.timeout(10):
            while (await at.call()).status != 200:
                await asyncio.sleep(0.2)


@alone("J03", forms={"ENOSPC": "ENOSPC", "EPIPE": "EPIPE", "EIO": "EIO"}, needs="strace")
async def no_log(error: str) -> None:
    """A log that cannot be written costs lines, and no request; stderr is told once."""
    async with apart(Spot(), settles=False, check=False) as at:
        assert (await at.call()).body == OK
        tracer = await _trace(at, "write", f"write:error={error}", only=at.house.proxy.log)
        try:
            for _ in range(5):
                assert (await at.call()).body == OK
                await asyncio.sleep(0.06)
        finally:
            await _let_go(tracer)
        for _ in range(2):
            assert (await at.call()).body == OK
        async with asyncio.timeout(5):
            while len(at.records()) < 1:
                await asyncio.sleep(0.02)
        assert at.house.proxy.stderr is not None
        assert complaints(at.house.proxy.stderr).count("the log cannot be written") == 1


async def _trace(
    at: At, call: str, injection: str, *, only: Path | None = None
) -> asyncio.subprocess.Process:
    """Let a system call of the proxy fail from now on."""
    where = ["-P", str(only)] if only else []
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-q", "-e", f"trace={call}", "-e", f"inject={injection}", *where,
        "-p", str(at.house.pid),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    status = Path(f"/proc/{at.house.pid}/status")
    async with asyncio.timeout(10):
        while f"TracerPid:\t{tracer.pid}" not in status.read_text():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # until it has all of its threads
    return tracer


async def _let_go(tracer: asyncio.subprocess.Process) -> None:
    tracer.terminate()
    await tracer.wait()


@alone("J04")
async def no_memory() -> None:
    """Big bodies at once are held up to a bound, and refused beyond it."""
    async with apart(Spot(), server='max_held = "40MiB"\nmax_body = "24MiB"') as at:
        before = resident(at)
        at["A"].will(hang())
        busy = [await at.connect() for _ in range(6)]
        for caller in busy:
            await caller.send(at.request(at.body(text="x" * 19_000_000)))
        refused = [await caller.answer() for caller in busy[2:]]
        assert {got.code for got in refused} == {"overloaded"}
        assert resident(at) - before < 160
        for caller in busy[:2]:
            caller.close()
        await at["A"].idle()


@case("J05")
async def bogus(at: At) -> None:
    """Hundreds of keys, models and paths that nobody knows leave nothing behind."""
    caller = await at.connect()

    async def ask(number: int) -> None:
        kind = number % 3
        if kind == 0:
            text = request(b'{"model":"m%d"}' % number, headers=[at.key])
        elif kind == 1:
            text = request(b"{}", headers=[(b"Authorization", b"Bearer nobody-%d" % number)])
        else:
            text = request(path=f"/nothing/{number}", method="GET", headers=[at.key])
        at.lines += 1
        await caller.send(text)
        assert (await caller.answer()).status in (401, 404)

    for number in range(300):
        await ask(number)
    before = resident(at)
    for number in range(300, 700):
        await ask(number)
    assert resident(at) - before < 5


JSONS: dict[str, bytes] = {
    "deep lists": b'{"model":' + b"[" * 500_000,
    "deep objects": b'{"a":' * 200_000,
    "deep, and closed": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"J06"}',
    "many keys": b"{" + b",".join(b'"k%d":1' % n for n in range(100_000)) + b',"model":"J06"}',
    "escapes": b'{"model":"' + b"\\u0041" * 100_000 + b'"}',
    "backslashes": b'{"x":"' + b"\\\\" * 500_000 + b'","model":"J06"}',
    "a long number": b'{"x":' + b"9" * 1_000_000 + b',"model":"J06"}',
    "blanks": b" " * 1_000_000 + b'{"model":"J06"}',
    "open string": b'{"model":"' + b"x" * 1_000_000,
}


@case("J06", forms=JSONS)
async def pathological(at: At, body: bytes) -> None:
    """No body costs more than a reading of it."""
    begun, used = monotonic(), cpu(at)
    caller = await at.connect()
    await caller.send(at.request(body))
    got = await caller.answer()
    assert got.status in (200, 400, 404)
    assert cpu(at) - used < 1.0
    assert monotonic() - begun < 5


@case("J07", spots={"A": Spot(), **{f"s{n}": Spot("url", 'timeout = { connect = "300ms" }\nretry = { attempts = 1 }', url=f"http://slow{n}.fault:9/v1") for n in range(12)}}, routes="\n".join(['"@" = { upstream = "@-A" }', *(f'"@s{n}" = {{ upstream = "@-s{n}" }}' for n in range(12))]))  # fmt: skip
async def slow_look_ups(at: At) -> None:
    """Look-ups that take their time delay nobody who goes elsewhere."""
    late = [asyncio.create_task(at.call(model=f"J07s{number}")) for number in range(12)]
    await asyncio.sleep(0.05)
    for _ in range(10):
        begun = monotonic()
        assert (await at.call()).body == OK
        assert monotonic() - begun < 0.5
    assert {got.code for got in await asyncio.gather(*late)} == {"upstream_connect"}


@case("J08")
async def strange_answers(at: At) -> None:
    """Headers and cookies that are never the same twice leave nothing behind."""
    caller = await at.connect()

    async def ask(number: int) -> None:
        headers = [JSON, (b"Set-Cookie", b"c%d=1" % number), (b"X-H-%d" % number, b"1")]
        at["A"].will(answer(headers=headers))
        await caller.send(at.request())
        assert (await caller.answer()).status == 200

    for number in range(200):
        await ask(number)
    before = resident(at)
    for number in range(200, 500):
        await ask(number)
    assert resident(at) - before < 5
