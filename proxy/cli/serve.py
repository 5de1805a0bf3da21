"""`trunkline serve`: serve until told to stop."""

import argparse
import os
from typing import Any

from proxy import lifecycle
from proxy.cli.environment import environ
from proxy.cli.welcome import welcome
from proxy.config import Snapshot, load
from proxy.server import Running


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("serve", parents=[common], help="serve until told to stop")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="listen here instead (the one or first surface)"
    )
    parser.add_argument("--welcome", action="store_true", help="say first how to try it")
    parser.add_argument("--env-file", metavar="FILE", help="variables, one NAME=VALUE a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve; returns when a signal has ended it."""

    def read() -> Snapshot:
        values = environ(os.environ, options.env_file)
        return load(options.config, values, listen=options.listen)

    snapshot = read()

    def greet(running: Running) -> None:
        if options.welcome:
            first = running.addresses[snapshot.surfaces[0].name][0]
            print(welcome(snapshot, first), flush=True)

    lifecycle.run(snapshot, read, greet)
    return 0
