"""From `routes.toml` to a frozen `Snapshot`: parse, fill in, validate all, freeze.

`load` is the one way in. Whatever is wrong with a file is told at once and by its key path; no
message quotes what a variable or a secret file holds.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path as FilePath
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.config import instead, presets
from proxy.config.advice import advise
from proxy.config.draft import Draft
from proxy.config.hooks import hooks_of
from proxy.config.keys import keys_of
from proxy.config.live import Live, Refresher
from proxy.config.problems import ConfigError, Path, Problem, suggest
from proxy.config.reach import never_asked
from proxy.config.reading import Filler, Source, fetch, parse
from proxy.config.routes import Routes, unrouted_of
from proxy.config.snapshot import Settings, Snapshot, takes_restart
from proxy.config.surfaces import address_of, surfaces_of
from proxy.config.tables import BROUGHT, LATER, SHORT, File, SurfaceTable, Table
from proxy.config.upstreams import Upstreams
from proxy.routes import RouteTable
from proxy.surfaces import Address

__all__ = [
    "ConfigError",
    "Live",
    "Problem",
    "Refresher",
    "Settings",
    "Snapshot",
    "Source",
    "address_of",
    "fetch",
    "first_address",
    "load",
    "takes_restart",
]


def load(
    file: FilePath,
    environ: Mapping[str, str],
    *,
    listen: str | None = None,
    content: bytes | None = None,
    keyed: bool = False,
) -> Snapshot:
    """Read *file*, filling in references from *environ*. Raises `ConfigError` with every problem.

    *listen* takes the place of what the one surface, or the first one, listens on; *content* that of
    what the file holds by now. *keyed* says that keys were in force before, see `Source`.
    """
    if content is None:
        content = fetch(file)
    written = parse(file, content)
    if listen is not None:
        _listen_on(written, listen)
    filler = Filler(environ)
    try:
        values = filler.fill(written)
    except RecursionError:
        raise ConfigError(str(file), [Problem((), "is nested too deeply")]) from None
    problems = list(filler.problems)
    tables, found = _validate(values, written)
    problems += found
    told = [problem.path for problem in problems]
    draft = Draft(tables, written, filler, presets.load(), keyed=keyed)
    snapshot = _build(draft, str(file), content)
    problems += [problem for problem in draft.problems if not _follows(problem.path, told)]
    if problems:
        raise ConfigError(str(file), dict.fromkeys(problems))
    return snapshot


def first_address(file: FilePath, environ: Mapping[str, str]) -> Address:
    """Return where the first surface of *file* listens, whatever else is wrong with the file, and whichever
    variables are not set. Raises `ConfigError`.
    """
    written = parse(file, fetch(file))
    tables = written.get("surface") or [written.get("server", {})]
    table = tables[0] if isinstance(tables, list) else None
    told = table.get("listen", SurfaceTable().listen) if isinstance(table, dict) else []
    text = Filler(environ).fill(told[0] if isinstance(told, list) and told else told)
    address = address_of(text) if isinstance(text, str) else None
    if address is None:
        raise ConfigError(str(file), [Problem(("server", "listen"), "says no address")])
    return address


def _build(draft: Draft, name: str, content: bytes) -> Snapshot:
    """Return the snapshot of *draft*; it is to be used only if no problem was found."""
    file = draft.file
    upstreams = Upstreams(draft)
    for upstream in file.upstreams:
        upstreams.find(upstream)
    table = RouteTable(Routes(draft, upstreams).make())
    unrouted = unrouted_of(draft, upstreams)
    surfaces = surfaces_of(draft, file.unrouted)
    advise(draft, table.routes, unrouted, surfaces)
    for route in table.routes:
        for message in never_asked(route, surfaces, hooked=bool(file.hooks)):
            draft.note(("routes", route.name), message)
    return Snapshot(
        file=name,
        digest=sha256(content).hexdigest(),
        loaded=datetime.now(UTC),
        settings=Settings(
            max_body=file.server.max_body,
            max_inflight=file.server.max_inflight,
            max_held=file.server.max_held,
            drain=file.server.drain,
            lame_duck=file.server.lame_duck,
            keepalive_idle=file.server.keepalive_idle,
            workers=file.server.workers,
            worker_timeout=file.server.worker_timeout,
            peer_timeout=file.server.peer_timeout,
            log_format=file.log.format,
            log_level=file.log.level,
        ),
        surfaces=surfaces,
        upstreams=upstreams.made,
        routes=table,
        keys=keys_of(draft, surfaces),
        unrouted=unrouted,
        hooks=hooks_of(draft, table, surfaces),
        live=tuple(draft.live),
        notes=tuple(dict.fromkeys(draft.notes)),
        keyed=draft.keyed or any(surface.auth == "keys" for surface in surfaces),
        closed=tuple(draft.closed),
    )


def _listen_on(written: dict[str, Any], listen: str) -> None:
    surfaces = written.get("surface")
    if isinstance(surfaces, list) and surfaces and isinstance(surfaces[0], dict):
        surfaces[0]["listen"] = listen
        return
    server = written.setdefault("server", {})
    if isinstance(server, dict):
        server["listen"] = listen


def _validate(values: dict[str, Any], written: Mapping[str, Any]) -> tuple[File, list[Problem]]:
    """Return the tables of *values* and what is wrong with them: what is wrong is left out, so
    that the rest can still be checked.
    """
    problems: list[Problem] = []
    while True:
        try:
            return File.model_validate(values), problems
        except ValidationError as error:
            places, upstreams = [], _upstreams(written)
            for details in error.errors(include_url=False):
                places.append(_standing(details["loc"], values))
                problem = _problem(details, places[-1], written, upstreams)
                if not _follows(problem.path, [told.path for told in problems]):
                    problems.append(problem)
            for place in places:
                _remove(values, place)


def _remove(values: Any, path: Path) -> None:
    """Leave what stands at *path* out of *values*; what it stands in was a table or a list."""
    if _standing(path, values) != path:
        return  # it went with another one
    for part in path[:-1]:
        values = values[part]
    if isinstance(values, dict):
        del values[path[-1]]
    else:  # the items behind it would move up, and must keep their numbers: they go too
        del values[path[-1] :]


def _follows(path: Path, told: list[Path]) -> bool:
    """Return whether a problem at *path* only repeats one of *told*: the same place, one inside it,
    or the table it stands in.
    """
    return any(
        path[: len(other)] == other or (len(path) > 1 and other[: len(path)] == path)
        for other in told
    )


def _problem(
    details: ErrorDetails, path: Path, written: Mapping[str, Any], upstreams: set[str]
) -> Problem:
    """Put what pydantic found into our words, without the value, which may be a secret."""
    kind = details["type"]
    if kind == "extra_forbidden":
        return Problem(path, _unknown(path, written, upstreams))
    if kind == "missing":
        return Problem((*path, details["loc"][-1]), "is missing")
    if kind in _KINDS:
        return Problem(path, _of_kind(kind, path, written, upstreams) or _KINDS[kind])
    if kind.startswith("date"):
        return Problem(path, instead.of_date(path, written))
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "literal_error":
        message = message.replace("should", "must").replace("'", '"')
        return Problem(path, message + suggest(str(instead.at(written, path)), _options(details)))
    return Problem(path, message[0].lower() + message[1:])


_KINDS = {
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "string_type": "must be text, in quotes",
    "list_type": "must be a list",
}


def _of_kind(kind: str, path: Path, written: Mapping[str, Any], upstreams: set[str]) -> str | None:
    """Say what may have been meant at *path*, where a value of this *kind* was wanted."""
    if kind in ("dict_type", "model_type"):
        return instead.of_table(path, written, upstreams)
    return instead.of_text(path, written)


def _standing(place: tuple[str | int, ...], written: Any) -> Path:
    """Return as much of *place* as stands in the file: pydantic adds parts for what it tried, and
    an index where what may be a list is not one.
    """
    path: list[str | int] = []
    for part in place:
        if isinstance(part, int) and isinstance(written, Mapping):
            continue
        within = range(len(written)) if isinstance(written, list) else ()
        if part not in (written if isinstance(written, Mapping) else within):
            break
        path.append(part)
        written = written[part]
    return tuple(path)


def _options(details: ErrorDetails) -> list[str]:
    expected = str(details.get("ctx", {}).get("expected", ""))
    return [option.strip("'") for option in expected.replace(" or ", ", ").split(", ")]


def _unknown(path: Path, written: Mapping[str, Any], upstreams: set[str]) -> str:
    """Say of the unknown key at *path* what its table would have understood."""
    name = str(path[-1])
    table = _table_at(path[:-1])
    if any(name in LATER.get(base, ()) for base in table.__mro__ if issubclass(base, Table)):
        return "not supported yet"
    fields = [field.alias or name for name, field in table.model_fields.items()]
    brought = BROUGHT.get(name)
    if brought in fields:
        return f'unknown key; it is called "{brought}" here'
    home = instead.home(path)  # nearer than the nearest word: `timeout` is no `peer_timeout`
    if home is not None:
        return f"unknown key; it belongs below {home}"
    hint = suggest(name, (field for field in fields if field != SHORT))
    said = instead.of_unknown(path, written, frozenset(fields), upstreams)
    return f"unknown key{hint}" if hint or said is None else said


def _upstreams(written: Mapping[str, Any]) -> set[str]:
    """Return every name that an upstream can have in a file."""
    own = written.get("upstreams")
    return {*presets.load(), *(own if isinstance(own, Mapping) else ())}


def _table_at(path: Path) -> type[Table]:
    """Return the model of the table that stands at *path*."""
    table: type[Table] = File
    parts = iter(path)
    for part in parts:
        fields = table.model_fields.items()
        field = next(field for name, field in fields if part in (name, field.alias))
        inside = _unfold(field.annotation)
        table = next((kind for kind in inside if _is_table(kind)), table)
        if any(get_origin(kind) in (dict, list) for kind in inside):
            next(parts, None)  # the name or the index of one of several
    return table


def _unfold(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [annotation] + [inner for argument in arguments for inner in _unfold(argument)]


def _is_table(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
