"""`trunkline explain MODEL`: what would happen to a request, without sending it."""

import argparse
import os
import sys
from typing import Any

from proxy.cli.environment import environ
from proxy.config import load
from proxy.describe.explain import explain
from proxy.headers import Pair


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "explain", parents=[common], help="say what would happen to a request for a model"
    )
    parser.add_argument("model", nargs="?", help="the model asked for (default: none is)")
    parser.add_argument(
        "--path", default=None, help="the request's path, perhaps with its query (default: chat)"
    )
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        type=_header,
        default=[],
        metavar="'NAME: VALUE'",
        help="a header of the request, for routes that go by one",
    )
    parser.add_argument("--surface", default=None, help="the surface (default: the first)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Explain; 1 if the request would be refused."""
    snapshot = load(options.config, environ(options))
    surfaces = {surface.name: surface for surface in snapshot.surfaces}
    surface = surfaces.get(options.surface) if options.surface else snapshot.surfaces[0]
    if surface is None:
        sys.stderr.write(f"there is no surface {options.surface}; there is {', '.join(surfaces)}\n")
        return 2
    base = "/v1" if "/v1" in surface.base_paths else surface.base_paths[0]
    path = options.path or f"{base}/chat/completions"
    told = explain(snapshot, surface, options.model, path, tuple(options.header))
    width = max(len(label) for label, _ in told.lines)
    for label, text in told.lines:
        print(f"{label:>{width}}  {text}")
    return 0 if told.works else 1


def _header(text: str) -> Pair:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError("write it as 'Name: value'")
    return os.fsencode(name.strip()), os.fsencode(value.strip())
