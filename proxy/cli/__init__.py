"""The command line: one verb a file. Each verb returns the exit status; 2 is for wrong usage."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from proxy import __version__
from proxy.cli import bench, check, environment, explain, health, keys, presets, routes, serve
from proxy.config import ConfigError
from proxy.process.lifecycle import CannotStart

DEFAULT_FILE = "routes.toml"
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Take these for a stdout that cannot be written: every other file is looked after where it is used."""


def _occupy_standard_streams() -> None:
    """Open /dev/null where stdin, stdout or stderr are closed: else the next file takes their number,
    and what is printed goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # as Python has it where it finds one closed
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - to the process's end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. What goes wrong is said in one line a problem, without a traceback; so is that
    nobody reads what is printed any more, or that there is no room for it.
    """
    _occupy_standard_streams()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where what is left goes when Python ends
        if isinstance(error, BrokenPipeError):
            return 1
        reason = (error.strerror or type(error).__name__).lower()
        return _complain(f"trunkline: the output cannot be written: {reason}")


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="trunkline",
        description="One key in front, every vendor behind, one file between.",
    )
    parser.add_argument("--version", action="version", version=f"trunkline {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False, parents=[environment.option()])
    common.add_argument(
        "-c",
        "--config",
        type=Path,
        default=None,
        metavar="FILE",
        help="the routes file (default: $TRUNKLINE_CONFIG, else routes.toml here)",
    )
    for verb in (serve, check, explain, routes, presets, keys, health, bench):
        verb.add(verbs, common)
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know every character we write
            stream.reconfigure(errors="backslashreplace")
    if options.config is None:
        options.config = Path(os.environ.get("TRUNKLINE_CONFIG") or DEFAULT_FILE)
    try:
        status: int = options.run(options)
    except ConfigError as error:
        return _complain(str(error))
    except CannotStart as error:
        return _complain(f"trunkline: {error}")
    except KeyboardInterrupt:
        return 130
    return status


def _complain(message: str) -> int:
    with suppress(OSError):  # then there is nobody to hear it
        sys.stderr.write(message + "\n")
    return 1
