"""Run a command line as the documentation prints it: in a network of its own, where each host that it
names is this machine, and what it asks is there.

    unshare --net --mount python -m tests.printed LINE

The directory is the operator's: `routes.toml` lies there. `trunkline` is the installed one.
"""

import fcntl
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

SECONDS = 100  # for a machine that has much else to do
SANDBOX = """
[server]
listen = "127.0.0.1:8000"
hosts = ["{host}"]
[routes]
"*" = {{ upstream = "sandbox", model = "echo" }}
"""
_IFF_UP, _SIOCSIFFLAGS = 1, 0x8914


def host_in(line: str) -> str:
    """Return the host that *line* names."""
    url = re.search(r"http://[^\s'\"]+", line)
    return (url and urlsplit(url[0]).hostname) or "localhost"


def settle_in(host: str) -> None:
    """Bring up this network's loopback, and have *host* stand for it."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    with tempfile.NamedTemporaryFile("w", prefix="hosts") as hosts:
        hosts.write(f"127.0.0.1 localhost {host}\n")
        hosts.flush()
        subprocess.run(["mount", "--bind", hosts.name, "/etc/hosts"], check=True)


@contextmanager
def served(line: str) -> Iterator[list[str]]:
    """Have *line* serve, in the same directory; yield the addresses, and see it end in order."""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(["sh", "-c", f"exec {line}"], stdout=out)
        try:
            ends = time.monotonic() + SECONDS
            ready = None
            while ready is None:
                assert child.poll() is None, f"{line}: left with {child.returncode}"
                assert time.monotonic() < ends, f"{line}: is not ready"
                time.sleep(0.02)
                out.seek(0)
                ready = re.search(rb'"event":"ready".*?"listen":\[([^]]*)\]', out.read())
            yield re.findall(r'"([^"]+)"', ready[1].decode())
        finally:
            child.send_signal(signal.SIGTERM)
            status = child.wait(SECONDS)
        assert status == 0, f"{line}: {status}"


def run(line: str) -> None:
    """Run *line*; beside it whatever it asks. Raises where it does not what it should."""
    words = shlex.split(line, comments=True)
    verb = words[words.index("trunkline") + 1]
    if verb == "serve":
        with served(line) as addresses:
            for address in addresses:
                url = f"http://{address.replace('0.0.0.0', '127.0.0.1')}/health"
                with urlopen(url, timeout=SECONDS) as answer:
                    assert answer.status == 200
        return
    if verb == "health":
        with served("trunkline serve"):
            _finish(line)
    elif verb == "bench":
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "sandbox.toml")
            file.write_text(SANDBOX.format(host=host_in(line)))
            with served(f"trunkline serve -c {file}"):
                _finish(line)
    else:
        _finish(line)


def _finish(line: str) -> None:
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stdout != "", f"{line}: says nothing"
    assert "Traceback" not in done.stderr, done.stderr


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settle_in(host_in(sys.argv[1]))
    run(sys.argv[1])
