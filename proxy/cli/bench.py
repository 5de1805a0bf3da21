"""`trunkline bench`: what the way through a proxy of its own adds at an upstream of yours."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import orjson

from proxy.bench import CannotMeasure, Way, measure, rows, spread
from proxy.cli.environment import environ, option

VARIABLE = "TRUNKLINE_BENCH_KEY"
SECONDS = 20.0


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    del common  # it reads no routes file
    parser = verbs.add_parser(
        "bench",
        parents=[option()],
        help="measure what the proxy adds at an upstream of yours",
        description="Start a proxy, and ask the upstream for answers with and without it, in turn. "
        "These are real requests: a vendor bills them.",
    )
    parser.add_argument("--url", required=True, help="all that precedes /chat/completions")
    parser.add_argument("--model", required=True, help="the model, as the upstream calls it")
    parser.add_argument("--key", help=f"the upstream's key (default: ${VARIABLE})")
    parser.add_argument(
        "--requests", type=_number, default=20, help="pairs of each kind (default: 20)"
    )
    parser.add_argument("--max-tokens", type=_number, default=32, help="of an answer (default: 32)")
    parser.set_defaults(run=run, config=None)


def run(options: argparse.Namespace) -> int:
    """Measure and print; 1 if something does not answer."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # not without ending the proxy
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    url: str = options.url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        sys.stderr.write("the URL must begin with http:// or https://\n")
        return 2
    if "@" in urlsplit(url).netloc:
        sys.stderr.write("the URL must not hold a user or password; use --key\n")
        return 2
    key: str | None = options.key or environ(options).get(VARIABLE)
    headers = {"Content-Type": "application/json"}
    total = 4 * (options.requests + 1)
    print(f"{total} requests to {url}, half of them through a proxy on this machine", flush=True)
    direct = Way(url, {**headers, "Authorization": f"Bearer {key}"} if key else headers)
    try:
        with _proxy(url, key) as port:
            through = Way(f"http://127.0.0.1:{port}/v1", headers)
            try:
                measure(direct, through, options.model, options.requests, options.max_tokens)
            finally:
                direct.close()
                through.close()
    except CannotMeasure as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _show(direct, through)
    return 0


def _show(direct: Way, through: Way) -> None:
    print(f"{'milliseconds':36}{'direct':>10}{'through':>10}{'added':>10}")
    for row in rows(direct, through):
        print(f"{row.title:36}{row.direct:10.2f}{row.through:10.2f}{row.added:+10.2f}")
    print(
        f"the middle half of the direct answers lies {spread(direct.plain):.2f} ms apart: "
        "a difference much smaller than that is noise"
    )


@contextmanager
def _proxy(url: str, key: str | None) -> Iterator[int]:
    """Run a proxy whose every model leads to *url*; yield its port."""
    address = orjson.dumps(url.replace("$", "$$")).decode()
    credential = f'credential = "${{{VARIABLE}}}"\n' if key else ""
    toml = (
        '[server]\nlisten = "127.0.0.1:0"\n'
        f"[upstreams.measured]\nbase_url = {address}\n{credential}"
        '[routes]\n"*" = { upstream = "measured", model = "*" }\n'
    )
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as directory:
        file, log, said = (Path(directory, name) for name in ("routes.toml", "log", "said"))
        file.write_text(toml)
        env = {**os.environ, **({VARIABLE: key} if key else {})}
        command = [sys.executable, "-m", "proxy", "serve", "-c", str(file)]
        with log.open("wb") as out, said.open("wb") as err:
            child = subprocess.Popen(command, stdout=out, stderr=err, env=env)  # noqa: S603 - ourselves
        try:
            yield _port(child, log, said)
        finally:
            child.terminate()
            try:
                child.wait(SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _port(child: "subprocess.Popen[bytes]", log: Path, said: Path) -> int:
    """Wait until the proxy says where it listens."""
    over = monotonic() + SECONDS
    while monotonic() < over and child.poll() is None:
        for line in log.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n") and (told := orjson.loads(line))["event"] == "ready":
                return int(told["listen"][0].rpartition(":")[2])
        sleep(0.01)
    raise CannotMeasure(f"the proxy did not start: {said.read_text().strip()}")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, at least 1")
    return int(text)
