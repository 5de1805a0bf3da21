"""What to write instead, where a file says what people often write and no table understands."""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import date
from typing import Any

from proxy.config import units
from proxy.config.problems import Path

_NAMED: dict[object, tuple[type, ...]] = {
    "routes": (str, Mapping),
    "keys": (str, Mapping),
    "upstreams": (Mapping,),
    "hooks": (Mapping,),
}
"""Tables whose names the operator makes up, and what may stand behind one."""
_PLACES = {"upstream", "base_url", "targets", "fallback"}
_TABLES = {
    "timeout": 'timeout = {{ first_byte = "{}" }}',
    "retry": "retry = {{ attempts = 3 }}",
    "tls": 'tls = {{ certificate = "/etc/tls/crt.pem", key = "/etc/tls/key.pem" }}',
}
_SINGLE = {"server", "defaults", "log"}
_HOMES = {"timeout": "[defaults]", "retry": "[defaults]", "listen": "[server]", "auth": "[server]"}
"""Where the keys belong that are most often put elsewhere, or before every table."""
_BARE = re.compile(rb"""[ \t]*[^\s"'=#\[]*[.:/*][^\s"'=]*[ \t]*(?:=|$)""")
_PORT = range(1, 65536)
MISPLACED = "looks like a route: it belongs below [routes], before the next [table] begins"
QUOTES = "a name with a dot, colon, slash or star stands in quotes"


def is_route(value: object, upstreams: Collection[str]) -> bool:
    """Return whether *value* is what stands for a route: `upstream/model`, or a table that says where."""
    if isinstance(value, Mapping):
        return not _PLACES.isdisjoint(value)
    return isinstance(value, str) and value.partition("/")[0] in upstreams and "/" in value


def of_unknown(
    path: Path, written: Any, known: frozenset[str], upstreams: Collection[str]
) -> str | None:
    """Say what an unknown key at *path* of the file may be meant to be, where its table has *known* ones."""
    value, entry = at(written, path), at(written, path[:-1])
    if path[0] not in ("routes", "upstreams") and len(path) > 1 and is_route(entry, upstreams):
        return f"unknown key; this {MISPLACED}"
    kinds = _NAMED.get(path[0])
    if kinds and len(path) == 3 and isinstance(value, kinds) and known.isdisjoint(entry):
        return f"unknown key; {_quoted(path, value, known)}"
    return f"unknown key; it {MISPLACED}" if is_route(_within(value)[1], upstreams) else None


def home(path: Path) -> str | None:
    """Return the table that the unknown key at *path* belongs to, where another one of one name is likely."""
    return _HOMES.get(str(path[-1])) if len(path) == 1 or path[0] in _SINGLE else None


def of_table(path: Path, written: Any, upstreams: Collection[str]) -> str | None:
    """Say what to write where a table is wanted at *path*."""
    value = at(written, path)
    if len(path) == 1 and isinstance(value, list):
        return f"must be a table: write [{path[0]}], in single brackets"
    if len(path) == 2 and path[0] in ("upstreams", "hooks") and is_route(value, upstreams):
        return f"must be a table; it {MISPLACED}"
    example = _TABLES.get(str(path[-1]))
    if example is None:
        return None
    try:
        units.seconds(value)
        shown = value
    except ValueError:
        shown = "30s"
    return f"must be a table, such as {example.format(shown)}"


def of_text(path: Path, written: Any) -> str | None:
    """Say what to write where a text, or a list of texts, is wanted at *path*."""
    value = at(written, path)
    if path[-1] == "listen":
        port = value if isinstance(value, int) and value in _PORT else 8080
        return f'must be an address and a port in quotes, such as listen = "127.0.0.1:{port}"'
    if path == ("surface",):
        return "must be a list: write [[surface]], in double brackets"
    if path[0] == "unrouted" and len(path) == 2 and isinstance(value, Mapping):
        return f"must be text, in quotes; {_quoted(path, value)}"
    return None


def of_date(path: Path, written: Any) -> str:
    """Say how the date at *path* is written."""
    value = at(written, path)
    shown = "2027-06-30"
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        with suppress(ValueError):
            shown = date.fromisoformat(value).isoformat()
    return f"must be a date without quotes and without a time, such as {path[-1]} = {shown}"


def of_line(content: bytes, error: str) -> str:
    """Return what to add to the *error* of a parser that names a line of *content*, or nothing."""
    if "overwrite" in error:  # `gpt-4.1` below `gpt-4`
        return f"; {QUOTES}"
    place = re.search(r"at line ([0-9]+)", error)
    lines = content.splitlines()
    number = int(place[1]) if place else 0
    if not 0 < number <= len(lines) or _BARE.match(lines[number - 1]) is None:
        return ""
    return f"; {QUOTES}"


def at(tree: Any, path: Path) -> Any:
    """Return what stands at *path* of *tree*, an empty text where nothing does."""
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return ""
    return tree


def _quoted(path: Path, value: Any, known: Collection[str] = ()) -> str:
    """Say how the name is written whose dots have made tables of it, down to one with a *known* key."""
    parts = [*map(str, path[1:]), *_within(value, known)[0]]
    return f'a name with a dot stands in quotes: "{".".join(parts)}"'


def _within(value: Any, known: Collection[str] = ()) -> tuple[list[str], Any]:
    """Return the names of the tables around what dots in a name have put into *value*, and that."""
    parts: list[str] = []
    while isinstance(value, Mapping) and len(value) == 1 and _PLACES.isdisjoint(value):
        part, inner = next(iter(value.items()))
        if part in known:
            break
        parts.append(part)
        value = inner
    return parts, value
