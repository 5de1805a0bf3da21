"""`trunkline routes`: every route and where it leads, as a table."""

import argparse
from typing import Any

from proxy.cli.environment import environ
from proxy.config import load


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("routes", parents=[common], help="list the routes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the routes, in the order of the file."""
    rows = [("ROUTE", "UPSTREAM", "MODEL SENT", "STATE")]
    for route in load(options.config, environ(options)).routes.routes:
        upstream = route.first.upstream
        lacking = [target.upstream.lacks(passthrough=False) for target in route.targets()]
        more = len(lacking) - 1
        state = "ready" if None in lacking else f"dormant: {lacking[0]} is not set"
        state += f", and {more} more place{'s' * (more > 1)}" if more else ""
        rows.append((route.name, upstream.name, route.first.model or "as asked", state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [f"{row[column]:<{widths[column]}}" for column in range(3)]
        print("  ".join([*cells, row[3]]).rstrip())
    return 0
