"""`trunkline check`: every problem of a routes file at once, and what is dormant."""

import argparse
import os
from pathlib import Path
from typing import Any

from proxy.config import load


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("check", parents=[common], help="check a routes file")
    parser.add_argument("file", nargs="?", type=Path, help="the file, instead of -c")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check; problems are raised, and so told, as everywhere."""
    snapshot = load(options.file or options.config, os.environ)
    routes = snapshot.routes.routes
    waiting = [(route.name, route.upstream.lacks(passthrough=False)) for route in routes]
    dormant = [(name, variable) for name, variable in waiting if variable is not None]
    for name, variable in dormant:
        print(f'{snapshot.file}: note: "{name}" is dormant: {variable} is not set')
    for path, upstream in snapshot.unrouted.upstreams.items():
        lacking = upstream.lacks(passthrough=False)
        if lacking is not None:
            print(f'{snapshot.file}: note: unrouted "{path}" is dormant: {lacking} is not set')
    print(
        f"{snapshot.file}: ok: {len(routes)} routes ({len(dormant)} dormant), "
        f"{len(snapshot.keys)} keys, {len(snapshot.surfaces)} surfaces"
    )
    return 0
