"""Signals that come while a process starts."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from proxy.process.signals import came
from tests.harness.client import call, chat
from tests.harness.proxy import Proxy, complaints

GOOD = '[routes]\nm = "sandbox/echo"\n'


def caught(pid: int) -> set[int]:
    """Return which signals the process *pid* has something of its own to do about."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which signals are caught")
@pytest.mark.parametrize("program", ["proxy", "trunkline"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_while_starting(tmp_path: Path, program: str, workers: str) -> None:
    """SIGHUP and SIGUSR2 do not end a process that is starting; the file is read anew when it has started."""
    file, log, errors = tmp_path / "routes.toml", tmp_path / "log", tmp_path / "errors"
    file.write_text(GOOD)
    python = [sys.executable, "-X", "dev", "-W", "error", "-m", program]
    serve = ["serve", "-c", str(file), "--listen", "127.0.0.1:0", "--workers", workers]
    with log.open("wb") as out, errors.open("wb") as err:
        child = await asyncio.create_subprocess_exec(*python, *serve, stdout=out, stderr=err)
    proxy = Proxy(0, log, file, process=child)
    try:
        async with asyncio.timeout(20):
            while signal.SIGHUP not in caught(child.pid):
                await asyncio.sleep(0.001)
            assert not proxy.events("ready")
            while not proxy.events("ready"):
                for number in (signal.SIGHUP, signal.SIGUSR2):
                    os.kill(child.pid, number)
                await asyncio.sleep(0.02)
        ready = await proxy.event("ready")
        await proxy.event("reloaded")
        proxy.port = int(ready["listen"][0].rpartition(":")[2])
        assert (await call(proxy.port, chat("m"))).status == 200
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()
    assert (child.returncode, complaints(errors)) == (0, "")


def test_nothing_came() -> None:
    """Where nobody noted signals, none has come."""
    assert not came(signal.SIGHUP)
