"""The variables of `--env-file`, which a verb sees behind the process's own."""

import argparse
import os
from collections.abc import Mapping

from proxy.config.files import SECRET_BYTES, Unreadable, read_regular
from proxy.process.lifecycle import CannotStart


def option() -> argparse.ArgumentParser:
    """Return the parent of every verb's parser, which knows `--env-file`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--env-file", metavar="FILE", help="further variables, one NAME=VALUE a line"
    )
    return parser


def environ(options: argparse.Namespace) -> Mapping[str, str]:
    """Return all variables that a verb sees: the process's own go before those of `--env-file`. Raises
    `CannotStart`.
    """
    return {**variables(options.env_file), **os.environ}


def variables(file: str | None) -> Mapping[str, str]:
    """Return the variables of *file*, if there is one. Raises `CannotStart`."""
    if file is None:
        return {}
    values: dict[str, str] = {}
    for number, line in enumerate(_lines(file), 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise CannotStart(f"{file}:{number} is not NAME=VALUE")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        values[name.strip()] = value
    return values


def _lines(file: str) -> list[str]:
    try:
        return read_regular(file, SECRET_BYTES).decode("utf-8-sig").splitlines()
    except Unreadable as error:
        raise CannotStart(f"{file} cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise CannotStart(f"{file} cannot be read: it is not UTF-8 text") from None
