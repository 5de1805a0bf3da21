"""What measures is held to its word: it measures what it says, and shows nothing where it cannot."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
import pytest

from proxy.bench import Way, measure, rows
from proxy.config import load
from tests.bench import report
from tests.bench.canned import AT_ONCE, BURST, EVENT, EVENTS, PIECES, PLAIN, Canned, Pace
from tests.bench.figures import FIGURES
from tests.bench.load import CannotMeasure, Streams, body
from tests.bench.measure import MEASURES, shapes
from tests.bench.processes import Child
from tests.bench.profile import top
from tests.bench.report import Result, Results
from tests.bench.subjects import MODEL, Place, Variant, routes
from tests.harness.client import call, request
from tests.harness.proxy import process, serving
from tests.harness.upstream import Upstream, answer, hang, stream
from tests.harness.workers import alive, children

ROOT = Path(__file__).parents[1]

SANDBOX = '[routes]\n"*" = { upstream = "sandbox", model = "*" }\n'


# scripts/bench


def bench(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the bench where nothing is installed but wrk."""
    wrk = shutil.which("wrk")
    assert wrk is not None, "apt-get install wrk"
    tools = directory / "tools"
    tools.mkdir()
    (tools / "wrk").symlink_to(wrk)
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", "--cache", str(directory / "cache"), *arguments],
        cwd=ROOT,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.timeout(180)
def test_it_measures(tmp_path: Path) -> None:
    """A short run ends with a table, with each figure of each round in JSON, and with a table in Markdown; a
    peer that cannot be had is said to be so, and why.
    """
    told, page = tmp_path / "told.json", tmp_path / "page.md"
    chosen = ["--only", "plain", "--only", "idle", "--seconds", "2", "--rounds", "2"]
    done = bench(
        tmp_path, *chosen, "--peers", "ferrogw", "--json", str(told), "--markdown", str(page)
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = orjson.loads(told.read_bytes())
    assert results.keys() == {"about", "limits", "subjects", "goals"}
    figures = results["subjects"]["trunkline"]["figures"]
    assert figures.keys() == {"ready", "rss_idle", "plain64", "rate64"}
    assert [len(figures[name]["rounds"]) for name in ("plain64", "rss_idle")] == [2, 1]
    assert 0 < figures["plain64"]["median"] < 100_000
    assert results["limits"]["plain"] > figures["rate64"]["median"]
    assert results["subjects"]["ferrogw"]["error"] == "Go is not installed"
    assert "Ferro Labs: not measured: Go is not installed" in done.stdout
    assert FIGURES["plain64"].title in done.stdout
    assert f"| {FIGURES['plain64'].title}" in page.read_text()


@pytest.mark.timeout(180)
def test_it_refuses(tmp_path: Path) -> None:
    """Where the upstream is the limit there is no figure, and the exit status says so."""
    told = tmp_path / "told.json"
    slow = ["--only", "plain", "--seconds", "3", "--think", "0.25", "--json", str(told)]
    done = bench(tmp_path, *slow)
    assert (done.returncode, done.stdout) == (3, "")
    assert "all that upstream and load can do" in done.stderr
    assert not told.exists()


# Its parts


async def answered(sent: bytes, wanted: bytes, *, cut: int = 0) -> bool:
    """Send a request to the canned upstream, perhaps in two parts; return whether *wanted* comes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Canned, Pace(), 0.0), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in (sent[:cut], sent[cut:]):
            writer.write(part)
            await asyncio.sleep(0.02)
        async with asyncio.timeout(10):
            came = await reader.readexactly(len(wanted))
        writer.transport.abort()
    return came == wanted


@pytest.mark.parametrize("cut", [0, 20, 150])
@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (request(body(MODEL, stream=False)), PLAIN),
        (request(body(MODEL, stream=True)), AT_ONCE),
        (request(body(MODEL, "pieces", stream=True)), AT_ONCE),
        (request(body(MODEL, "burst", stream=True)), AT_ONCE),
        (request(b"x" * 300_000), PLAIN),
        (
            request(
                b"2\r\n{}\r\n0\r\n\r\n", headers=[(b"Transfer-Encoding", b"chunked")], length=False
            ),
            PLAIN,
        ),
    ],
    ids=["plain", "stream", "pieces", "burst", "large", "chunked"],
)
async def test_canned(sent: bytes, wanted: bytes, cut: int) -> None:
    """The canned upstream answers what is asked for, however the request is cut."""
    assert await answered(sent, wanted, cut=cut)


def test_streams_are_alike() -> None:
    """However a stream is written, it has the same 103 events of about 210 bytes."""
    assert b"".join(BURST) == b"".join(PIECES) == AT_ONCE
    assert AT_ONCE.count(b"data: ") == EVENTS == 103
    assert 200 < len(EVENT) < 220


async def test_paced() -> None:
    """Streams are counted by their events, and one that is cut leaves no figure."""
    loop = asyncio.get_running_loop()
    pace = Pace()
    canned: list[Canned] = []

    def make() -> Canned:
        canned.append(Canned(pace, 0.0))
        return canned[-1]

    server = await loop.create_server(make, "127.0.0.1", 0)
    beating = loop.create_task(pace.run())
    streams = Streams()
    async with server:
        port = server.sockets[0].getsockname()[1]
        await streams.open(port, body(MODEL, "paced", stream=True), {}, 10)
        events, seconds = await streams.count(0.5)
        assert 100 < events / seconds < 1000
        canned[3]._transport.abort()
        with pytest.raises(CannotMeasure, match="1 streams were cut"):
            await streams.count(0.1)
        streams.close()
    beating.cancel()


def test_cpu_of_descendants(tmp_path: Path) -> None:
    """What a descendant of a process uses is counted with it, while it lives and afterwards."""
    burn = (
        "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True); time.sleep(60)"
    )
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    child = Child([sys.executable, "-c", spawn], tmp_path, min(os.sched_getaffinity(0)))
    try:
        while not child.out.read_bytes():
            assert child.status is None
        assert len(child.all()) == 2
        assert child.cpu() >= 0.28
        assert child.resident() > 5
    finally:
        below = child.all()
        child.end()
    assert not any(Path(f"/proc/{pid}").exists() for pid in below[:1])


@pytest.mark.parametrize(
    "variant",
    [
        Variant(),
        Variant(routes=500, keys=500),
        Variant(keys=0, rename=False, retry=False, echo=True),
    ],
    ids=["usual", "many", "bare"],
)
def test_routes_file(variant: Variant, tmp_path: Path) -> None:
    """Each variant's routes file passes the check, and has as many routes and keys as it says."""
    file = tmp_path / "routes.toml"
    file.write_text(routes(Place(tmp_path, 1, 2, 3, tmp_path, tmp_path), variant))
    snapshot = load(file, {})
    assert len(file.read_text().partition("[routes]\n")[2].splitlines()) == variant.routes
    assert file.read_text().count('"tk-') == variant.keys
    assert snapshot.routes.match(MODEL) is not None


def test_shapes() -> None:
    """A large body is JSON of the size that is asked for, and its model comes last."""
    for name, sent in shapes(100_000).items():
        assert [*orjson.loads(sent)][-1] == "model", name
        assert 95_000 < len(sent) < 105_000


def results() -> Results:
    """Return what a run of four rounds beside Envoy may have found: in the second, its load was the limit."""
    found = Results()
    found.about = dict.fromkeys(("cpu", "cores", "kernel", "python", "time", "load"), "?")
    found.about |= {"rounds": 4, "seconds": 1}
    ours = found.add(Result("trunkline", "Trunkline", True))
    ours.taken = {"plain64": {0: 60.0, 1: 70.0, 2: 90.0, 3: 70.0}, "added_p50": {0: 100.0}}
    envoy = found.add(Result("envoy", "Envoy", False, version="1"))
    envoy.taken = {"plain64": {0: 50.0, 2: 50.0, 3: 70.0}}
    envoy.notes = {"stream": "could not"}
    found.add(Result("litellm", "LiteLLM", False, error="no network"))
    return found


def test_ratios() -> None:
    """A ratio is the median of the rounds' ratios, not the ratio of the medians."""
    found = results()
    assert found.ratio("plain64", found["trunkline"], found["envoy"]) == 1.2
    assert found.ratio("added_p50", found["envoy"], found["trunkline"]) is None
    told: Any = found.told()
    assert told["subjects"]["envoy"]["figures"]["plain64"]["ratio"] == pytest.approx(5 / 6)


def test_goals() -> None:
    """Of each goal that was measured the table says whether it is met; of none that was not."""
    found = [(goal.title, goal.found, goal.met) for goal in report.goals(results())]
    assert found == [
        ("request, 64 connections", "1.20 ×", True),
        ("added latency, p50", "100 µs", True),
    ]


def test_markdown() -> None:
    """The page has a row a figure, a column each that was measured, and says what was not."""
    page = report.markdown(results()).splitlines()
    assert page[0] == "|  | Trunkline | Envoy 1 |"
    assert page[2] == "| request, 64 connections, µs CPU | 70 | 50 (0.83 ×) |"
    assert page[3] == "| added latency, p50, µs | 100 | – |"
    assert "- Envoy, stream: could not" in page
    assert "- LiteLLM: not measured: no network" in page


def test_markdown_between_marks(tmp_path: Path) -> None:
    """A page that has the marks keeps all that stands around them, however often it is written."""
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- table: begin -->\nold\n<!-- table: end -->\nbelow\n")
    for _ in range(2):
        report.write(page, results(), "table")
    text = page.read_text()
    assert text.startswith("above\n<!-- table: begin -->\n\n|  | Trunkline")
    assert text.endswith("\n<!-- table: end -->\nbelow\n")
    assert text.count("| request, 64 connections, µs CPU |") == 1
    assert "old" not in text


def test_every_measure_is_told() -> None:
    """Every measure's name is on the page that says how to repeat it."""
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert [name for name in MEASURES if f"`{name}`" not in page] == []


def test_top() -> None:
    """Of a profile it is told which functions took most, alone and with what they called."""
    lines = top("a (x.py:1);b (x.py:2) 3\na (x.py:5) 1\n").splitlines()
    assert lines[0] == "4 samples"
    assert lines[2:] == [" 75.0%  75.0%  b (x.py", " 25.0% 100.0%  a (x.py"]


# trunkline bench


def test_rows() -> None:
    """What is added is the median of the pairs' differences, so that an upstream's drift is not."""
    direct = Way("http://d/v1", {}, plain=[0.010, 0.020, 0.030], first=[0.1], gaps=[0.01, 0.03])
    through = Way("http://t/v1", {}, plain=[0.011, 0.021, 0.041], first=[0.3], gaps=[0.02, 0.05])
    found = {row.title: row for row in rows(direct, through)}
    assert found["plain answer, p50"].added == pytest.approx(1.0)
    assert found["plain answer, slowest"].added == pytest.approx(11.0)
    assert found["first bytes of a stream, p50"].added == pytest.approx(200.0)
    assert found["between bytes of a stream, p50"].added == pytest.approx(15.0)


async def test_ways(upstream: Upstream) -> None:
    """Both ways are asked the same in turn, each with its own key, one to begin with not counted."""
    plain, streamed = answer(), stream(b"data: 1\n\n", b"data: [DONE]\n\n", pause=0.01)
    upstream.will(*[plain, plain, streamed, streamed] * 3)
    direct, through = (Way(upstream.url, {"Authorization": w}) for w in ("direct", "through"))
    await asyncio.to_thread(measure, direct, through, "m", 2, 7)
    for way in (direct, through):
        way.close()
        assert (len(way.plain), len(way.first)) == (2, 2)
        assert min(way.plain + way.first) > 0
        assert len(way.gaps) >= 2
    assert [r.value(b"authorization") for r in upstream.requests] == [
        *[b"direct", b"through"] * 2,
        *[b"through", b"direct"] * 2,
        *[b"direct", b"through"] * 2,
    ]
    assert {orjson.loads(r.body)["max_tokens"] for r in upstream.requests} == {7}


async def test_way_whose_connection_was_closed() -> None:
    """An upstream that closes a connection which it has kept for a while is asked again on another one."""
    asked = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    way = Way(url, {})
    async with server:
        for _ in range(3):
            ask = partial(way.ask, b"{}", perf_counter, stream=False, count=True)
            await asyncio.to_thread(ask)
    way.close()
    assert (asked, len(way.plain)) == (3, 3)


async def command(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the verb; return its status and what it said."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", "bench", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **(env or {})},
    )
    out, err = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def test_verb() -> None:
    """`trunkline bench` says what a proxy adds at an upstream, here the sandbox, and what is only noise."""
    async with process(SANDBOX) as proxy:
        status, out, err = await command(
            "--url", f"{proxy.url}/v1/", "--model", "echo", "--requests", "5"
        )
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == (
            f"24 requests to {proxy.url}/v1, half of them through a proxy on this machine"
        )
        for title in ("plain answer, p50", "first bytes of a stream, p50", "between bytes"):
            assert any(line.startswith(title) for line in lines), out
        assert "is noise" in lines[-1]
        await proxy.record(24)


async def test_verb_sends_the_key_to_the_upstream_alone(upstream: Upstream) -> None:
    """The key goes to the upstream both ways, and is not said."""
    upstream.will(answer())
    key = "ck-CANARY-0123456789"
    arguments = ("--url", upstream.url, "--model", "m$x", "--requests", "1")
    status, out, err = await command(*arguments, env={"TRUNKLINE_BENCH_KEY": key})
    assert status == 0
    assert "CANARY" not in out + err
    sent = [(r.value(b"authorization"), orjson.loads(r.body)["model"]) for r in upstream.requests]
    assert sent == [(f"Bearer {key}".encode(), "m$x")] * 8


async def test_verb_takes_no_password_in_the_url() -> None:
    """A URL with a user and a password is refused, and not repeated: what is said may go into a log."""
    status, said, complaint = await command(
        "--url", "http://u:CANARY@127.0.0.1:1/v1", "--model", "m"
    )
    assert (status, said) == (2, "")
    assert "must not hold a user or password" in complaint
    assert "CANARY" not in complaint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_verb_that_is_ended(upstream: Upstream, number: signal.Signals) -> None:
    """Ended by a signal, it leaves no proxy behind: that one would send on what anybody here asks."""
    upstream.will(answer(), hang())
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "bench", "--url", upstream.url, "--model", "m"),
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    async with asyncio.timeout(30):
        while len(upstream.requests) < 2:
            await asyncio.sleep(0.02)
        below = children(child.pid)
        assert len(below) == 1
        child.send_signal(number)
        assert await child.wait() == 128 + number
    assert not any(map(alive, below))


@pytest.mark.parametrize("model", ["500", "429"])
async def test_verb_says_what_fails(model: str) -> None:
    """Of an upstream that refuses it is said what it answered, and there is no figure."""
    async with serving(SANDBOX) as proxy:
        status, out, err = await command("--url", f"{proxy.url}/v1", "--model", model)
        assert status == 1
        assert f"answered {model}: " in err
        assert len(out.splitlines()) == 1
        assert (await call(proxy.port, method="GET", path="/health")).status == 200


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("http://127.0.0.1:1/v1", 1, "http://127.0.0.1:1/v1: "),
        ("ftp://x/v1", 2, "http:// or https://"),
    ],
)
async def test_verb_refuses(url: str, status: int, said: str) -> None:
    """A URL that leads nowhere is said to."""
    found, _, err = await command("--url", url, "--model", "m")
    assert found == status
    assert said in err
    assert "Traceback" not in err
