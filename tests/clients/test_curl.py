"""curl through the proxy, as the README and the docs show it."""

import asyncio
import re
import shlex
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from tests.clients.team import CHAT_EVENT, ECHO, ENV, KEY, STRICT, settled
from tests.harness.proxy import Proxy, process
from tests.harness.upstream import DONE, SSE, Conn, Received, Upstream, chunk, head, stream

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")

AUTHORIZATION = f"Authorization: Bearer {KEY}"


def arguments(proxy: Proxy, model: str, *options: str, body: str = "") -> list[str]:
    """Return a command that asks *model*."""
    said = body or f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    if "-N" in options:
        said = said[:-1] + ', "stream": true}'
    url = f"{proxy.url}/v1/chat/completions"
    json = "Content-Type: application/json"
    return ["curl", "-sS", *options, url, "-H", AUTHORIZATION, "-H", json, "-d", said]


def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=20, check=False)


def documented(file: str, holds: str, proxy: Proxy) -> list[str]:
    """Return the curl command of *file* that *holds* this text, to be run with a key at *proxy*."""
    shell = re.findall(r"```sh\n(curl .*?)```", Path(file).read_text(), re.DOTALL)
    (command,) = (text for text in shell if holds in text)
    words = shlex.split(command.replace("http://127.0.0.1:8080", proxy.url).replace("\\\n", " "))
    return [*words, "-sS", "-H", AUTHORIZATION]


def test_plain(team: Proxy) -> None:
    """A plain chat is one JSON object."""
    done = run(arguments(team, "default"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert orjson.loads(done.stdout)["choices"][0]["message"]["content"] == "You said: Hello"


def test_documented_stream(team: Proxy) -> None:
    """The stream that the sandbox's page shows streams."""
    done = run(documented("docs/sandbox.md", '"stream": true', team))
    assert (done.returncode, done.stderr) == (0, b"")
    events = done.stdout.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert len(events) == 8  # the role, four words, the reason, the end, and nothing behind it


def test_offers_http_2(team: Proxy) -> None:
    """`curl --http2` offers h2c on its first request: that is answered as it stands, and so is the next."""
    both = arguments(team, "default", "--http2")
    done = run([*both, "--next", *both[1:]])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"You said: Hello") == 2


def test_documented_error(team: Proxy) -> None:
    """The error that the sandbox's page shows comes with its status and its hint."""
    done = run(documented("docs/sandbox.md", "sandbox/429", team))
    first, _, rest = done.stdout.partition(b"\r\n")
    assert first == b"HTTP/1.1 429 Too Many Requests"
    assert b"\r\nRetry-After: 1\r\n" in rest


async def test_readme_failure() -> None:
    """What the README says a failure looks like is what it looks like, with the README's own routes."""
    readme = Path("README.md").read_text()
    toml = re.search(r"```toml\n(.*?)```", readme, re.DOTALL)
    shown = re.search(r"```console\n\$ (curl .*)\n(.*)\n```", readme)
    assert toml is not None
    assert shown is not None
    async with process(toml[1], ENV, python=STRICT) as proxy:
        command = re.sub(r"http://trunkline:8080", proxy.url, shown[1]).replace("$TEAM_KEY", KEY)
        done = await asyncio.to_thread(run, shlex.split(command))
    assert done.stdout.decode() == shown[2]


async def test_events_one_by_one(team: Proxy) -> None:
    """With -N every event is seen when it is sent, a quarter of a second after the one before."""
    curl = await asyncio.create_subprocess_exec(
        *arguments(team, "sandbox/slow", "-N"), stdout=asyncio.subprocess.PIPE
    )
    assert curl.stdout is not None
    lines = [(line, time.monotonic()) async for line in curl.stdout]
    assert await curl.wait() == 0
    seen = [moment for line, moment in lines if line.startswith(b"data: ")]
    assert len(seen) == 6  # the role, three words, the reason, the end
    assert seen[-1] - seen[0] > 5 * 0.25 * 0.8
    assert sum(later - sooner > 0.1 for sooner, later in pairwise(seen)) >= 4


async def test_no_event_waits_for_the_next(proxy: Proxy, upstream: Upstream) -> None:
    """An event is seen before the upstream has sent another byte."""
    seen = asyncio.Semaphore(0)

    async def one_by_one(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, (b"Transfer-Encoding", b"chunked")]))
        for event in (CHAT_EVENT, CHAT_EVENT, DONE):
            await conn.send(chunk(event))
            async with asyncio.timeout(5):
                await seen.acquire()
        await conn.send(b"0\r\n\r\n")

    upstream.will(one_by_one)
    curl = await asyncio.create_subprocess_exec(
        *arguments(proxy, "m", "-N"), stdout=asyncio.subprocess.PIPE
    )
    assert curl.stdout is not None
    lines = []
    async for line in curl.stdout:
        lines.append(line)
        if line == b"\n":
            seen.release()
    assert await curl.wait() == 0
    assert b"".join(lines) == CHAT_EVENT + CHAT_EVENT + DONE
    assert (await proxy.record())["outcome"] == "ok"


async def test_interrupted(proxy: Proxy, upstream: Upstream) -> None:
    """Interrupting curl in the middle of a stream closes the upstream's connection."""
    upstream.will(stream(CHAT_EVENT, end="hang"))
    curl = await asyncio.create_subprocess_exec(
        *arguments(proxy, "m", "-N"), stdout=asyncio.subprocess.PIPE
    )
    assert curl.stdout is not None
    assert (await curl.stdout.readline()).startswith(b"data: ")
    curl.terminate()
    await curl.wait()
    async with asyncio.timeout(1):
        await upstream.connections[0].gone.wait()
    assert (await proxy.record())["outcome"] == "client_gone"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("sandbox/incomplete", "upstream_incomplete"),
        ("stalling", "upstream_idle_timeout"),
    ],
)
def test_broken_stream(team: Proxy, model: str, code: str) -> None:
    """A stream that breaks ends with an error event, no [DONE], and curl's exit 18: not all came."""
    done = run(arguments(team, model, "-N"))
    assert done.returncode == 18
    last = done.stdout.split(b"\n\n")[-2]
    assert orjson.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert b"[DONE]" not in done.stdout


def test_stream_cut_inside_an_event(team: Proxy) -> None:
    """A stream that breaks off inside an event stays as it was cut; that not all came is curl's to say."""
    done = run(arguments(team, "sandbox/cut", "-N"))
    assert done.returncode == 18
    assert not done.stdout.endswith(b"\n\n")
    assert b'"error"' not in done.stdout


async def test_old_http(team: Proxy) -> None:
    """A client of HTTP/1.0 gets its stream too, ended by the end of the connection."""
    done = run(arguments(team, ECHO, "-N", "--http1.0", "-i"))
    answer_head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert done.returncode == 0
    assert b"transfer-encoding" not in answer_head.lower()
    assert body.endswith(DONE)
    found = re.search(rb"x-trunkline-id: (\S+)", answer_head)
    assert found is not None
    assert (await settled(team, found[1].decode()))["outcome"] == "ok"


def test_big_body(team: Proxy, tmp_path: Path) -> None:
    """A body so big that curl asks first (Expect: 100-continue) is asked for, and taken."""
    file = tmp_path / "body.json"
    words = "x" * 1_200_000
    file.write_bytes(
        orjson.dumps({"model": ECHO, "messages": [{"role": "user", "content": words}]})
    )
    done = run(arguments(team, ECHO, "-v", body=f"@{file}"))
    assert done.returncode == 0
    assert b"> Expect: 100-continue" in done.stderr
    assert b"< HTTP/1.1 100 Continue" in done.stderr
    assert orjson.loads(done.stdout)["choices"][0]["message"]["content"] == f"You said: {words}"
