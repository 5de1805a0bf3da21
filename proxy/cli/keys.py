"""`trunkline keys new NAME`, `trunkline keys hash`: keys for clients, and what the file keeps of them.

It stands in for an admin UI: the key is printed once, and only its digest is kept anywhere.
"""

import argparse
import re
import secrets
import string
import sys
from codecs import BOM_UTF8
from datetime import date
from getpass import getpass
from hashlib import sha256
from typing import Any

from proxy.cli.environment import option

LENGTH = 32
_ALPHABET = string.ascii_letters + string.digits
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{0,32}")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("keys", help="make a key for a client, or the hash of one")
    below = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    new = below.add_parser("new", parents=[option()], help="make a key, and the TOML to paste")
    new.add_argument("name", help="what the key is called in routes.toml and in the log")
    new.add_argument("--prefix", default="tl-", help="what the key begins with (default: tl-)")
    new.add_argument("--models", nargs="+", metavar="MODEL", help="the models it may ask for")
    new.add_argument(
        "--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help="its last day"
    )
    new.set_defaults(run=_new, config=None)
    digest = below.add_parser(
        "hash", parents=[option()], help="say the hash of a key that is typed or piped in"
    )
    digest.set_defaults(run=_hash, config=None)


def _new(options: argparse.Namespace) -> int:
    mistake = _mistake(options)
    if mistake is not None:
        sys.stderr.write(mistake + "\n")
        return 2
    key = options.prefix + "".join(secrets.choice(_ALPHABET) for _ in range(LENGTH))
    print(key)
    sys.stdout.flush()
    print("\n# the key is shown this once; routes.toml keeps what recognises it:")
    print(f"[keys.{_key(options.name)}]")
    print(f'hash    = "{hash_of(key.encode())}"')
    if options.models:
        models = ", ".join(_quoted(model) for model in options.models)
        print(f"models  = [{models}]")
    if options.expires:
        print(f"expires = {options.expires.isoformat()}")
    return 0


def _mistake(options: argparse.Namespace) -> str | None:
    """Say what is wrong with what was asked for, if anything."""
    if not options.name.isprintable() or not options.name:
        return "the name must be printable"
    if not _PREFIX.fullmatch(options.prefix):
        return "the prefix must be at most 32 letters, digits, dots, dashes, underscores"
    for model in options.models or ():
        if not model or "*" in model[:-1] or not model.isprintable():
            return "a model must be a model string; a `*` may only end it"
    return None


def _hash(options: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        key = getpass("key: ").encode("utf-8", "surrogateescape")
    else:
        key = sys.stdin.buffer.readline().removeprefix(BOM_UTF8)
    key = key.strip()  # as it is around a secret wherever one is read
    if not key:
        sys.stderr.write("no key was given\n")
        return 2
    print(hash_of(key))
    return 0


def hash_of(key: bytes) -> str:
    """Return what `hash` in `[keys.NAME]` says of *key*."""
    return "sha256:" + sha256(key).hexdigest()


def _key(name: str) -> str:
    """Return *name* as a TOML key."""
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
    return name if bare else _quoted(name)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
