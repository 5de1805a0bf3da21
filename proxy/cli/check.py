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
    dormant = [route for route in routes if route.upstream.missing]
    for route in dormant:
        print(
            f'{snapshot.file}: note: "{route.name}" is dormant: {route.upstream.missing} is not set'
        )
    print(
        f"{snapshot.file}: ok: {len(routes)} routes ({len(dormant)} dormant), "
        f"{len(snapshot.keys)} keys, {len(snapshot.surfaces)} surfaces"
    )
    return 0
