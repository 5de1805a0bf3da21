"""H: starting, changing, leaving. Each of these has a proxy of its own."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from time import monotonic

from tests.faults.case import alone, apart
from tests.faults.house import At
from tests.faults.places import Spot
from tests.faults.scenarios import HELLO, STOP, Held
from tests.harness.client import Client, request
from tests.harness.proxy import process, told
from tests.harness.upstream import DONE, Upstream, answer

OK = b'{"ok":true}'


def tell(at: At, number: signal.Signals) -> None:
    assert at.house.proxy.process is not None
    at.leaving = number != signal.SIGHUP
    at.house.proxy.process.send_signal(number)


async def ends(at: At, seconds: float = 10.0) -> float:
    """Wait for the end of the process, in order; return how long that took."""
    assert at.house.proxy.process is not None
    begun = monotonic()
    async with asyncio.timeout(seconds):
        assert await at.house.proxy.process.wait() == 0
    return monotonic() - begun


def file_of(at: At) -> Path:
    """Return the routes file that the proxy reads."""
    line = Path(f"/proc/{at.house.pid}/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(line[line.index(b"-c") + 1]))


@alone("H01")
async def drains() -> None:
    """Fifty streams that end within the drain end as if nothing was; then the process ends, too."""
    async with apart(Spot(), server='drain = "20s"', settles=False) as at:
        held = Held()
        at["A"].will(held)
        calls = [asyncio.create_task(at.call(stream=True)) for _ in range(50)]
        async with asyncio.timeout(10):
            while at["A"].busy < 50:
                await asyncio.sleep(0.01)
        tell(at, signal.SIGTERM)
        await at.sees("draining")
        held.released.set()
        for got in await asyncio.gather(*calls):
            assert (got.body, got.whole) == (HELLO + STOP + DONE, True)
        assert await ends(at) < 5
        await at.record()


@alone("H02")
async def drain_is_over() -> None:
    """A stream that outlasts the drain is told so, and cannot be taken for a whole one."""
    async with apart(Spot(), server='drain = "300ms"', settles=False) as at:
        held = Held()
        at["A"].will(held)
        call = asyncio.create_task(at.call(stream=True))
        await held.begun.wait()
        tell(at, signal.SIGTERM)
        got = await call
        assert b"proxy_shutdown" in got.body
        assert not got.whole
        assert await ends(at) < 3
        assert (await at.record())["outcome"] == "shutdown"


@alone("H03", forms={"TERM": signal.SIGTERM, "INT": signal.SIGINT})
async def told_twice(number: signal.Signals) -> None:
    """A second signal ends everything at once, and in order."""
    async with apart(Spot(), server='drain = "60s"', settles=False) as at:
        held = Held()
        at["A"].will(held)
        call = asyncio.create_task(at.call(stream=True))
        await held.begun.wait()
        tell(at, signal.SIGTERM)
        await at.sees("draining")
        tell(at, number)
        assert await ends(at) < 3
        assert b"proxy_shutdown" in (await call).body


@alone("H04")
async def idle_connections() -> None:
    """While we leave, idle connections are closed, and nothing new is taken."""
    async with apart(Spot(), server='drain = "20s"', settles=False) as at:
        at["A"].will(answer(), held := Held())
        idle = await at.connect()
        await idle.send(at.request())
        assert (await idle.answer()).body == OK
        call = asyncio.create_task(at.call(stream=True))
        await held.begun.wait()
        tell(at, signal.SIGTERM)
        assert await idle.closed() == b""
        try:
            await Client.connect(at.port)
            raise AssertionError("somebody listens still")
        except ConnectionRefusedError:
            pass
        held.released.set()
        got = await call
        assert got.whole
        await ends(at)


@alone("H06")
async def killed() -> None:
    """A proxy that is killed leaves broken transfers, no lock, and a log of whole lines."""
    async with apart(Spot(), settles=False, check=False) as at:
        held = Held()
        at["A"].will(held)
        caller = await at.connect()
        await caller.send(at.request(at.body(stream=True)))
        await held.begun.wait()
        await caller.reader.readuntil(HELLO)
        tell(at, signal.SIGKILL)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert b"0\r\n\r\n" not in await caller.reader.read()
        assert at.house.proxy.process is not None
        await at.house.proxy.process.wait()
        assert at.house.proxy.log.read_bytes().endswith(b"\n")


@alone("H07")
async def reloads() -> None:
    """Twenty reloads under forty streams cut and alter nothing; each request has one whole file."""
    async with apart(
        {"A": Spot(), "B": Spot()}, routes='"m" = { upstream = "A", model = "a" }'
    ) as at:
        file = file_of(at)
        first = file.read_text()
        second = first.replace('upstream = "A", model = "a"', 'upstream = "B", model = "b"')
        assert first != second
        held = Held()
        for name in "AB":
            at[name].will(held)
        calls = [asyncio.create_task(at.call(stream=True)) for _ in range(40)]
        async with asyncio.timeout(10):
            while at["A"].busy < 40:
                await asyncio.sleep(0.01)
        at["A"].will(answer())
        at["B"].will(answer())
        for turn in range(20):
            file.write_text(second if turn % 2 == 0 else first)
            tell(at, signal.SIGHUP)
            async with asyncio.timeout(5):
                while sum(line["event"] == "reloaded" for line in at.log()) <= turn:
                    assert (await at.call()).body == OK
        at.events.add("reloaded")
        held.released.set()
        for got in await asyncio.gather(*calls):
            assert got.whole
        for name, model in (("A", b'"a"'), ("B", b'"b"')):
            for heard in at[name].heard:
                assert b'"model":' + model in heard.request.body
        assert at["B"].heard


@alone("H08")
async def bad_file() -> None:
    """A file that cannot be used changes nothing, and the log says why."""
    async with apart(Spot()) as at:
        file_of(at).write_text("[routes]\nm = {")
        tell(at, signal.SIGHUP)
        await at.sees("reload_failed")
        assert (await at.call()).body == OK


@alone("H09")
async def rotates() -> None:
    """A credential is changed under load without a failed request; then the old one is not sent again."""
    async with apart(Spot()) as at:
        file = file_of(at)
        old = at["A"].secrets[0]
        new = "sk-up-" + old[6:][::-1]
        at["A"].secrets.append(new)
        done = asyncio.Event()

        async def load() -> None:
            while not done.is_set():
                assert (await at.call()).body == OK

        tasks = [asyncio.create_task(load()) for _ in range(4)]
        await asyncio.sleep(0.1)
        file.write_text(file.read_text().replace(old, new))
        tell(at, signal.SIGHUP)
        await at.sees("reloaded")
        swapped = len(at["A"].heard) + 4
        await asyncio.sleep(0.3)
        done.set()
        await asyncio.gather(*tasks)
        later = at["A"].heard[swapped:]
        assert later
        assert all(new.encode() in heard.request.head for heard in later)


@alone("H10")
async def model_removed() -> None:
    """A stream of a model that is removed meanwhile ends in order; the next request finds it gone."""
    async with apart(Spot(), routes='"m" = { upstream = "A" }\n"n" = { upstream = "A" }') as at:
        held = Held()
        at["A"].will(held)
        call = asyncio.create_task(at.call(stream=True))
        await held.begun.wait()
        file = file_of(at)
        file.write_text(file.read_text().replace('"m" = { upstream = "A" }', ""))
        tell(at, signal.SIGHUP)
        await at.sees("reloaded")
        assert (await at.call()).code == "model_not_found"
        held.released.set()
        assert (await call).whole


BAD: dict[str, str] = {
    "CR LF in a header": 'headers = { "x-a" = "b\\r\\nx-c: d" }',
    "NUL in a credential": 'credential = "a\\u0000b"',
    "line end in a credential": 'credential = "a\\nb"',
    "line end in a URL": 'base_url = "http://h\\n/v1"',
    "a header's name": 'headers = { "x a" = "b" }',
}


async def _starts(toml: str, directory: str, *arguments: str) -> tuple[int, str]:
    file = Path(directory, "routes.toml")
    file.write_text(toml)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", "-c", str(file), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    async with asyncio.timeout(20):
        _, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, errors.decode()


@alone("H12", forms=BAD)
async def bad_values(line: str) -> None:
    """What would inject a header is refused at the start, in a line, without a traceback."""
    import tempfile

    base = "" if line.startswith("base_url") else 'base_url = "http://h/v1"\n'
    toml = f'[upstreams.up]\n{base}{line}\n[routes]\n"m" = {{ upstream = "up" }}\n'
    with tempfile.TemporaryDirectory() as directory:
        status, errors = await _starts(toml, directory)
    assert status == 1
    assert "Traceback" not in errors
    assert "upstreams.up" in errors


@alone("H13")
async def port_in_use() -> None:
    """Where the port is taken there is no start, and one line says so."""
    import tempfile

    async with Upstream() as other:
        with tempfile.TemporaryDirectory() as directory:
            toml = f'[server]\nlisten = "127.0.0.1:{other.port}"\n[routes]\n"m" = "sandbox/echo"\n'
            status, errors = await _starts(toml, directory)
    assert status == 1
    assert len(errors.splitlines()) == 1


READ = """
import os, sys, time
child = os.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
time.sleep(60)
"""


@alone("H14", forms={"stalled": False, "closed": True})
async def log_reader(closes: bool) -> None:
    """Nobody who asks waits for who reads the log: it may stall, or go away."""
    import tempfile

    async with Upstream() as upstream:
        upstream.will(answer(headers=[(b"x-request-id", b"x" * 4000)]))
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "routes.toml")
            toml = f'[upstreams.up]\nbase_url = "{upstream.url}"\n[routes]\n"*" = {{ upstream = "up" }}\n'
            file.write_text(toml)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", "serve", "-c", str(file),
                "--listen", "127.0.0.1:0",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}, limit=1024,
            )  # fmt: skip
            assert child.stdout is not None
            try:
                async with asyncio.timeout(20):
                    ready = await child.stdout.readline()
                port = int(ready.split(b'"listen":["127.0.0.1:')[1].split(b'"')[0])
                pipe = child._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
                if closes:
                    pipe.close()
                else:
                    pipe.pause_reading()
                body = b'{"model":"m","messages":[]}'
                async with await Client.connect(port) as client:
                    for _ in range(300):
                        await client.send(request(body, headers=[(b"X-Pad", b"x" * 500)]))
                        assert (await client.answer(seconds=5)).status == 200
                child.send_signal(signal.SIGTERM)
                if not closes:
                    pipe.resume_reading()
                async with asyncio.timeout(15):
                    _, errors = await child.communicate()
                assert child.returncode == 0
                said = "trunkline: the log cannot be written: broken pipe; /status counts what is lost\n"
                assert told(errors.decode()) == (said if closes else "")
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()


@alone("H16")
async def optimised() -> None:
    """With assertions compiled away it works as it does with them."""
    async with Upstream() as upstream:
        toml = (
            f'[upstreams.up]\nbase_url = "{upstream.url}"\n[routes]\n"*" = {{ upstream = "up" }}\n'
        )
        async with process(toml, {"PYTHONOPTIMIZE": "2"}) as proxy:
            async with await Client.connect(proxy.port) as client:
                for _ in range(5):
                    await client.send(request(b'{"model":"m"}'))
                    assert (await client.answer()).body == OK
                await client.send(request(b'{"model":'))
                assert (await client.answer()).code == "invalid_json"
            await proxy.record(6)
