"""`trunkline serve`: serve until told to stop."""

import argparse
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

from proxy.cli.environment import variables
from proxy.cli.welcome import welcome
from proxy.config import Snapshot, Source, fetch, load
from proxy.config.units import workers
from proxy.process import lifecycle, supervisor, worker
from proxy.surfaces import Address


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("serve", parents=[common], help="serve until told to stop")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="listen here instead (the one or first surface)"
    )
    parser.add_argument(
        "--workers", metavar="N", type=_workers, help="so many processes; `auto`: one per core"
    )
    parser.add_argument("--welcome", action="store_true", help="say first how to try it")
    parser.add_argument("--seat", type=worker.Seat.of, help=argparse.SUPPRESS)  # of a worker
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve; returns when a signal has ended it."""

    def read() -> Source:
        return Source(fetch(options.config), variables(options.env_file))

    def make(source: Source) -> Snapshot:
        values = {**source.variables, **os.environ}
        return load(
            options.config,
            values,
            listen=options.listen,
            content=source.content,
            keyed=source.keyed,
        )

    if options.seat is not None:
        worker.run(options.seat, make)
        return 0
    source = read()
    snapshot = make(source)

    def greet(first: Address) -> None:
        if options.welcome:
            _greet(welcome(snapshot, first))

    count = options.workers or snapshot.settings.workers or _cores()
    if count == 1:
        lifecycle.run(snapshot, lambda keyed: make(replace(read(), keyed=keyed)), greet)
    else:
        command = (sys.executable, *sys.orig_argv[1:])  # with the interpreter's options
        supervisor.run(supervisor.Plan(count, command, read, make), source, snapshot, greet)
    return 0


def _greet(text: str) -> None:
    """Print *text*; where nobody reads it, or there is no room for it, we serve all the same."""
    data = f"{text}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace")
    with suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def _workers(text: str) -> int:
    try:
        return workers(int(text) if text.isdecimal() else text) or _cores()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
