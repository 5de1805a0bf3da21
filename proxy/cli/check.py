"""`trunkline check`: every problem of a routes file at once, and what is dormant."""

import argparse
from pathlib import Path
from typing import Any

from proxy.cli.environment import environ
from proxy.config import load


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("check", parents=[common], help="check a routes file")
    parser.add_argument("file", nargs="?", type=Path, help="the file, instead of -c")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check; problems are raised, and so told, as everywhere."""
    snapshot = load(options.file or options.config, environ(options))
    for note in snapshot.notes:
        print(f"{snapshot.file}: note: {note}")
    routes = snapshot.routes.routes
    dormant = []
    for route in routes:
        lacking = [target.upstream.lacks(passthrough=False) for target in route.targets()]
        if None not in lacking:
            dormant.append(route)
            print(f'{snapshot.file}: note: "{route.name}" is dormant: {lacking[0]} is not set')
        for variable in dict.fromkeys(one for one in lacking if one and None in lacking):
            print(f'{snapshot.file}: note: "{route.name}" leaves out what needs {variable}')
    for path, upstream in snapshot.unrouted.upstreams.items():
        needed = upstream.lacks(passthrough=False)
        if needed is not None:
            print(f'{snapshot.file}: note: unrouted "{path}" is dormant: {needed} is not set')
    print(
        f"{snapshot.file}: ok: {len(routes)} routes ({len(dormant)} dormant), "
        f"{len(snapshot.keys)} keys, {len(snapshot.surfaces)} surfaces"
    )
    return 0
