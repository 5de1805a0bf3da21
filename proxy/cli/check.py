"""`trunkline check`: every problem of a routes file at once, and what is dormant."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proxy.cli.environment import environ
from proxy.config import load
from proxy.routes import Route, Upstream


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("check", parents=[common], help="check a routes file")
    parser.add_argument("file", nargs="?", type=Path, help="the file, instead of -c")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check; problems are raised, and so told, as everywhere."""
    snapshot = load(options.file or options.config, environ(options))
    lacking = {route.name: _lacking(route) for route in snapshot.routes.routes}
    for note in (*snapshot.notes, *_notes(lacking, snapshot.unrouted.upstreams)):
        print(f"{snapshot.file}: note: {note}")
    dormant = sum(None not in needed for needed in lacking.values())
    print(
        f"{snapshot.file}: ok: {len(lacking)} routes ({dormant} dormant), "
        f"{len(snapshot.keys)} keys, {len(snapshot.surfaces)} surfaces"
    )
    return 0


def _lacking(route: Route) -> list[str | None]:
    """Return the variable that each target of *route* waits for, None for one that lacks nothing."""
    return [target.upstream.lacks(passthrough=False) for target in route.targets()]


def _notes(
    lacking: Mapping[str, list[str | None]], unrouted: Mapping[str, Upstream]
) -> Iterator[str]:
    """Yield what is dormant of routes, which are *lacking* variables, and of *unrouted* paths."""
    for name, needed in lacking.items():
        if None not in needed:
            yield f'"{name}" is dormant: {needed[0]} is not set'
        for variable in dict.fromkeys(one for one in needed if one and None in needed):
            yield f'"{name}" leaves out what needs {variable}'
    for path, upstream in unrouted.items():
        lacks = upstream.lacks(passthrough=False)
        if lacks is not None:
            yield f'unrouted "{path}" is dormant: {lacks} is not set'
