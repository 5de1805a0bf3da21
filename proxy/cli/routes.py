"""`trunkline routes`: every route and where it leads, as a table."""

import argparse
import os
from typing import Any

from proxy.config import load


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("routes", parents=[common], help="list the routes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the routes, in the order of the file."""
    rows = [("ROUTE", "UPSTREAM", "MODEL SENT", "STATE")]
    for route in load(options.config, os.environ).routes.routes:
        upstream = route.upstream
        variable = upstream.lacks(passthrough=False)
        state = f"dormant: {variable} is not set" if variable else "ready"
        rows.append((route.name, upstream.name, route.model or "as asked", state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [f"{row[column]:<{widths[column]}}" for column in range(3)]
        print("  ".join([*cells, row[3]]).rstrip())
    return 0
