"""From `[[surface]]`, or the surface half of `[server]`, to where we listen and what is there."""

import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from grp import getgrnam
from ipaddress import IPv4Network, IPv6Network, ip_network

from proxy import dialects
from proxy.config.certificates import Unfit, load_chain
from proxy.config.draft import Draft
from proxy.config.problems import Path, suggest
from proxy.config.tables import SurfaceTable
from proxy.headers import Names
from proxy.surfaces import (
    ACCEPT,
    Address,
    Auth,
    Network,
    Surface,
    Tls,
    host_name,
    is_unsafe,
)

_MODE = re.compile(r"0?[67][0-7][0-7]")
_ADDRESS = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")
_BASE = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+\*?")
_ORIGIN = re.compile(
    r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
    r"|(?:app|capacitor|chrome-extension|ionic|moz-extension|safari-web-extension|tauri"
    r"|vscode-webview)://[A-Za-z0-9._-]+"  # of programs that are made of pages, and of a browser's own
)
_NO_ORIGIN = 'must be such as "https://app.example.com" or "chrome-extension://abcdefgh"'
DEFAULT_BASE_PATHS = ("/api/v1", "/v1", "")


def surfaces_of(draft: Draft, unrouted: Iterable[str]) -> tuple[Surface, ...]:
    """Return every surface of *draft*; *unrouted* are paths that are endpoints there too."""
    known = {**dialects.ENDPOINTS, "gemini": None, "hooks": None, **dict.fromkeys(unrouted)}
    known.pop("*", None)
    surfaces = [_surface(draft, table, path, known) for table, path in _tables(draft)]
    for what, values in (
        ("name", [surface.name for surface in surfaces]),
        ("listen", [str(address) for surface in surfaces for address in surface.listen]),
    ):
        for value in sorted({value for value in values if values.count(value) > 1}):
            draft.problem(("surface",), f'two have the {what} "{value}"')
    return tuple(surfaces)


def _tables(draft: Draft) -> list[tuple[SurfaceTable, Path]]:
    """Return every table that is a surface: `[server]`, where there is no other."""
    server = draft.file.server
    if not draft.file.surface:
        return [(server, ("server",))]
    for field in sorted(set(SurfaceTable.model_fields) & server.model_fields_set):
        draft.problem(("server", field), "belongs to a [[surface]], since there is one")
    return [(table, ("surface", index)) for index, table in enumerate(draft.file.surface)]


def _surface(draft: Draft, table: SurfaceTable, path: Path, known: Mapping[str, object]) -> Surface:
    listen = _shared(draft, table, tuple(_addresses(draft, table.listen, (*path, "listen"))), path)
    _check_lists(draft, table, path)
    bases = table.base_paths
    routes = None
    if table.routes is not None:
        routes = draft.patterns(table.routes, (*path, "routes"))
    accept = ACCEPT if table.accept is None else tuple(name.encode() for name in table.accept)
    return Surface(
        name=table.name,
        listen=listen,
        base_paths=tuple(sorted(bases, key=len, reverse=True)) if bases else DEFAULT_BASE_PATHS,
        auth=_auth(draft, table, listen, path),
        accept=accept,
        routes=routes,
        models=table.models,
        endpoints=_endpoints(draft, table, path, known),
        docs=table.docs,
        echo_model=table.echo_model,
        errors=_errors(draft, table, (*path, "errors")),
        hosts=frozenset(host.lower().strip("[]") for host in table.hosts),
        cors=frozenset(table.cors),
        trusted=tuple(_trusted(draft, table, (*path, "trusted_proxies"))),
        tls=_tls(draft, table, (*path, "tls")),
        strip=_strip(draft, table.strip, (*path, "strip")),
    )


def _is_base(path: str) -> bool:
    return not path or (_BASE.fullmatch(path) is not None and not is_unsafe(path))


def _is_host(name: str) -> bool:
    return host_name(name) is not None and host_name(name) == name.lower().strip("[]")


def _is_origin(text: str) -> bool:
    return _ORIGIN.fullmatch(text) is not None


_ITEMS = (
    ("base_paths", _is_base, 'must be such as "/v1", or ""'),
    ("hosts", _is_host, "must be a host name, without port"),
    ("cors", _is_origin, _NO_ORIGIN),
)
"""Of which lists every item must be what, and what is said of one that is not."""


def _check_lists(draft: Draft, table: SurfaceTable, path: Path) -> None:
    for field in ("listen", "base_paths", "accept", "endpoints"):
        if getattr(table, field) == []:
            draft.problem((*path, field), "must not be empty")
    for field, fits, message in _ITEMS:
        for index, text in enumerate(getattr(table, field) or ()):
            if not fits(text):
                draft.problem((*path, field, index), message)


def _endpoints(
    draft: Draft, table: SurfaceTable, path: Path, known: Mapping[str, object]
) -> frozenset[str] | None:
    if table.endpoints == "all":
        return None
    for index, endpoint in enumerate(table.endpoints):
        if endpoint not in known:
            hint = suggest(endpoint, known)
            draft.problem((*path, "endpoints", index), f"is not a known endpoint{hint}")
    return frozenset(table.endpoints)


def _errors(draft: Draft, table: SurfaceTable, path: Path) -> dict[int, str]:
    errors: dict[int, str] = {}
    for status, name in table.errors.items():
        if re.fullmatch(r"[45][0-9]{2}", status) and re.fullmatch(r"[\w.-]{1,64}", name):
            errors[int(status)] = name
        else:
            draft.problem((*path, status), 'must be such as 401 = "Unauthorized"')
    return errors


def _trusted(draft: Draft, table: SurfaceTable, path: Path) -> Iterator[Network]:
    for index, network in enumerate(table.trusted_proxies):
        try:
            yield _unmapped(ip_network(network))
        except ValueError:
            message = 'must be an address or a network, such as "10.0.0.0/8"'
            draft.problem((*path, index), message)


def _tls(draft: Draft, table: SurfaceTable, path: Path) -> Tls | None:
    if table.tls is None:
        return None
    tls = Tls(table.tls.certificate, table.tls.key)
    try:
        load_chain(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tls.certificate, tls.key)
    except Unfit as unfit:
        draft.problem(path, str(unfit))
    return tls


def _strip(draft: Draft, texts: Iterable[str], path: Path) -> Names:
    """Read the names of headers that stay here."""
    for index, text in enumerate(texts):
        if not _NAME.fullmatch(text):
            here: Path = (*path, index) if isinstance(draft.at(path), list) else path
            draft.problem(here, 'must be a header\'s name, such as "x-visitor", or "x-visitor-*"')
    return Names.parse(texts)


def _unmapped(network: Network) -> Network:
    """Return *network*, as IPv4 where it is one that is mapped into IPv6: so are addresses compared."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _auth(draft: Draft, table: SurfaceTable, listen: Iterable[Address], path: Path) -> Auth:
    auth = table.auth or _unsaid(draft, table, path)
    exposed = not all(address.loopback for address in listen)
    if auth == "none" and exposed and not table.open:
        draft.problem(
            path,
            "whoever reaches this address could spend your money: add [keys], listen on "
            "127.0.0.1, or say `open = true`",
        )
    return auth


def _unsaid(draft: Draft, table: SurfaceTable, path: Path) -> Auth:
    """Return the auth of a surface whose *table* says nothing of it. That keys are absent never opens
    what they had closed.
    """
    if "keys" in draft.written:  # also an empty table
        return "keys"
    if draft.keyed:
        draft.closed.append(table.name)
        return "keys"
    draft.note(
        path,
        "asks for no key. A process that had keys when it reloads this file asks for keys all the "
        'same, and none is valid: it is `auth = "none"` that opens',
    )
    return "none"


def _addresses(draft: Draft, texts: Iterable[str], path: Path) -> Iterable[Address]:
    for text in texts:
        address = address_of(text)
        if address is not None:
            yield address
        else:
            draft.problem(
                path, 'must be "HOST:PORT", such as "127.0.0.1:8080", "[IPV6]:PORT" or "unix:/PATH"'
            )


def _shared(
    draft: Draft, table: SurfaceTable, listen: tuple[Address, ...], path: Path
) -> tuple[Address, ...]:
    """Return *listen* with who may connect to the unix sockets among it."""
    for name in ("mode", "group"):
        if getattr(table, name) is not None and not any(address.path for address in listen):
            draft.problem((*path, name), "is for a unix socket, and there is none in `listen`")
    mode = 0o600 if table.mode is None else _mode(draft, table.mode, (*path, "mode"))
    gid = None if table.group is None else _group(draft, table.group, (*path, "group"))
    return tuple(
        replace(address, mode=mode, gid=gid) if address.path else address for address in listen
    )


def _mode(draft: Draft, text: str, path: Path) -> int:
    if _MODE.fullmatch(text) is None:
        draft.problem(path, 'must be such as "0660": the owner reads and writes')
        return 0
    return int(text, 8)


def _group(draft: Draft, group: str, path: Path) -> int | None:
    """Return the number of *group*, which its name may say."""
    try:
        return int(group) if group.isdecimal() else getgrnam(group).gr_gid
    except (KeyError, ValueError):
        draft.problem(path, "is not a group of this machine, nor the number of one")
        return None


def address_of(text: str) -> Address | None:
    """Read where a surface listens, as the file writes it; None where it is no address."""
    if text.startswith("unix:") and len(text) > len("unix:") and "\0" not in text:
        return Address(path=text.removeprefix("unix:"))
    match = _ADDRESS.fullmatch(text)
    if match is not None and int(match[3]) <= 65535:
        return Address(match[1] or match[2], int(match[3]))
    return None
