"""Processes that are started, and those that are left to the first one: in a PID namespace of their own."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import which

import pytest

from proxy.children import Children
from tests.harness.client import call, chat
from tests.harness.proxy import Proxy

OWN = ["--user", "--map-root-user"] if os.getuid() else []
NAMESPACE = ["unshare", *OWN, "--pid", "--fork", "--mount-proc"]


def permitted() -> bool:
    """Return whether a PID namespace can be made here."""
    if which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


alone = pytest.mark.skipif(not permitted(), reason="no PID namespace can be made here")


def children_of(pid: int) -> dict[int, str]:
    """Return the children of the process *pid*, and the state of each: `Z` is one that nobody has waited for."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            stat = Path(f"/proc/{child}/stat").read_text()
            found[int(child)] = stat.rpartition(")")[2].split()[0]
    return found


@asynccontextmanager
async def first(directory: Path, toml: str, *further: str) -> AsyncIterator[tuple[Proxy, int]]:
    """Serve *toml* in a process that is the first one of its namespace; the value's second is its pid here."""
    file, log = directory / "routes.toml", directory / "log"
    file.write_text(toml)
    command = [*NAMESPACE, sys.executable, "-X", "dev", "-W", "error", "-m", "proxy"]
    with log.open("wb") as out:
        outer = await asyncio.create_subprocess_exec(
            *command, "serve", "-c", str(file), "--listen", "127.0.0.1:0", *further, stdout=out
        )
    proxy = Proxy(0, log, file, process=outer)
    inner = None
    try:
        ready = await proxy.event("ready", seconds=30)
        proxy.port = int(ready["listen"][0].rpartition(":")[2])
        (inner,) = children_of(outer.pid)
        yield proxy, inner
    finally:
        if inner is not None:
            os.kill(inner, signal.SIGTERM)
        else:
            outer.kill()
        async with asyncio.timeout(20):
            await outer.wait()
    assert outer.returncode == 0


def commands(*scripts: str) -> str:
    """Return a routes file whose upstreams have what these shell *scripts* print for a credential."""
    upstreams = ""
    for number, script in enumerate(scripts):
        upstreams += f"""
            [upstreams.up{number}]
            base_url = "http://127.0.0.1:9/v1"
            credential = {{ command = ["sh", "-c", "{script}"] }}
            """
    routes = "".join(f'm{number} = "up{number}/m"\n' for number in range(len(scripts)))
    return f"{upstreams}\n[routes]\n{routes}"


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


@alone
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_orphan(tmp_path: Path, workers: str) -> None:
    """What loses its parent below the first process of a container does not stay there when it has ended."""
    script = "(sleep 1.5; exit 4) >/dev/null 2>&1 & (sleep 1.7) >/dev/null 2>&1 & echo sk-good-0123456789"
    async with first(tmp_path, commands(script), "--workers", workers) as (_, pid):
        own = 0 if workers == "1" else 2
        await until(lambda: len(children_of(pid)) > own)  # they have come to us
        await until(lambda: len(children_of(pid)) == own)
        assert "Z" not in children_of(pid).values()


@alone
async def test_a_failed_command_stays_refused(tmp_path: Path) -> None:
    """How a command of ours has ended is told to who waits for it, though it has ended long before: what
    has failed is no credential.
    """
    # The second one holds the pipe, so that nobody looks after the first one for a while.
    script = "echo sk-wrong-0123456789; sleep 3 & exit 3"
    async with first(tmp_path, commands("echo sk-good-0123456789")) as (proxy, pid):
        proxy.write(commands(script, script))
        os.kill(pid, signal.SIGHUP)
        await until(lambda: "Z" in children_of(pid).values())
        await asyncio.sleep(2.5)  # so that it would be taken away
        await proxy.event("reloaded", seconds=20)
        good, *others = proxy.events("credential_kept", "credential_changed")
        assert good["event"] == "credential_changed"
        assert len(others) == 2
        for event in others:
            assert event["event"] == "credential_kept"
            assert event["reason"] == "the command sh failed with status 3"
        got = await call(proxy.port, chat("m0"))
        assert (got.status, got.code) == (503, "not_configured")
        await until(lambda: not children_of(pid))


async def test_not_the_first() -> None:
    """A process that is not the first one looks after nobody."""
    loop = asyncio.get_running_loop()
    child = subprocess.Popen(["true"])
    Children().look_after(loop)
    await asyncio.sleep(1.2)
    assert "Z" in children_of(os.getpid()).values()
    assert child.wait() == 0


async def test_own_are_left_alone() -> None:
    """One of ours that has ended is left to who waits for it, until it is done; one that is nobody's is not."""
    children = Children()
    ours = children.start(["sh", "-c", "exit 3"])
    await until(lambda: children_of(os.getpid()).get(ours.pid) == "Z")
    children._reap()
    assert ours.wait() == 3
    children.done(ours)
    other = subprocess.Popen(["sh", "-c", "exit 3"])
    await until(lambda: children_of(os.getpid()).get(other.pid) == "Z")
    children._reap()
    assert other.pid not in children_of(os.getpid())
    other.wait()
