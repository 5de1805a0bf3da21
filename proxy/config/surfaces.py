"""From `[[surface]]`, or the surface half of `[server]`, to where we listen and what is there."""

import re
import ssl
from collections.abc import Iterable, Mapping
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
    tables: list[tuple[SurfaceTable, Path]] = [
        (table, ("surface", index)) for index, table in enumerate(draft.file.surface)
    ]
    server = draft.file.server
    if not tables:
        tables = [(server, ("server",))]
    else:
        for field in sorted(set(SurfaceTable.model_fields) & server.model_fields_set):
            draft.problem(("server", field), "belongs to a [[surface]], since there is one")
    known = {**dialects.ENDPOINTS, "gemini": None, "hooks": None, **dict.fromkeys(unrouted)}
    known.pop("*", None)
    surfaces = [_surface(draft, table, path, known) for table, path in tables]
    for what, values in (
        ("name", [surface.name for surface in surfaces]),
        ("listen", [str(address) for surface in surfaces for address in surface.listen]),
    ):
        for value in sorted({value for value in values if values.count(value) > 1}):
            draft.problem(("surface",), f'two have the {what} "{value}"')
    return tuple(surfaces)


def _surface(draft: Draft, table: SurfaceTable, path: Path, known: Mapping[str, object]) -> Surface:
    listen = _shared(draft, table, tuple(_addresses(draft, table.listen, (*path, "listen"))), path)
    exposed = not all(address.loopback for address in listen)
    auth = table.auth or _unsaid(draft, table, path)
    if auth == "none" and exposed and not table.open:
        draft.problem(
            path,
            "whoever reaches this address could spend your money: add [keys], listen on "
            "127.0.0.1, or say `open = true`",
        )
    for field in ("listen", "base_paths", "accept", "endpoints"):
        if getattr(table, field) == []:
            draft.problem((*path, field), "must not be empty")
    bases = table.base_paths
    for index, base in enumerate(bases or ()):
        if base and (not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", base) or is_unsafe(base)):
            draft.problem((*path, "base_paths", index), 'must be such as "/v1", or ""')
    endpoints: frozenset[str] | None = None
    if table.endpoints != "all":
        endpoints = frozenset(table.endpoints)
        for index, endpoint in enumerate(table.endpoints):
            if endpoint not in known:
                hint = suggest(endpoint, known)
                draft.problem((*path, "endpoints", index), f"is not a known endpoint{hint}")
    for index, host in enumerate(table.hosts):
        if host_name(host) is None or host_name(host) != host.lower().strip("[]"):
            draft.problem((*path, "hosts", index), "must be a host name, without port")
    for index, origin in enumerate(table.cors):
        if not _ORIGIN.fullmatch(origin):
            draft.problem((*path, "cors", index), _NO_ORIGIN)
    errors: dict[int, str] = {}
    for status, name in table.errors.items():
        if not re.fullmatch(r"[45][0-9]{2}", status) or not re.fullmatch(r"[\w.-]{1,64}", name):
            draft.problem((*path, "errors", status), 'must be such as 401 = "Unauthorized"')
        else:
            errors[int(status)] = name
    trusted = []
    for index, network in enumerate(table.trusted_proxies):
        try:
            trusted.append(_unmapped(ip_network(network)))
        except ValueError:
            here: Path = (*path, "trusted_proxies", index)
            draft.problem(here, 'must be an address or a network, such as "10.0.0.0/8"')
    tls = None
    if table.tls is not None:
        tls = Tls(table.tls.certificate, table.tls.key)
        _check_tls(draft, tls, (*path, "tls"))
    routes = None
    if table.routes is not None:
        routes = draft.patterns(table.routes, (*path, "routes"))
    accept = ACCEPT if table.accept is None else tuple(name.encode() for name in table.accept)
    return Surface(
        name=table.name,
        listen=listen,
        base_paths=tuple(sorted(bases, key=len, reverse=True)) if bases else DEFAULT_BASE_PATHS,
        auth=auth,
        accept=accept,
        routes=routes,
        models=table.models,
        endpoints=endpoints,
        docs=table.docs,
        echo_model=table.echo_model,
        errors=errors,
        hosts=frozenset(host.lower().strip("[]") for host in table.hosts),
        cors=frozenset(table.cors),
        trusted=tuple(trusted),
        tls=tls,
        strip=_strip(draft, table.strip, (*path, "strip")),
    )


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


def _check_tls(draft: Draft, tls: Tls, path: Path) -> None:
    try:
        load_chain(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tls.certificate, tls.key)
    except Unfit as unfit:
        draft.problem(path, str(unfit))


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
    mode, gid = 0o600, None
    if table.mode is not None:
        if _MODE.fullmatch(table.mode) is None:
            draft.problem((*path, "mode"), 'must be such as "0660": the owner reads and writes')
        else:
            mode = int(table.mode, 8)
    if table.group is not None:
        try:
            gid = int(table.group) if table.group.isdecimal() else getgrnam(table.group).gr_gid
        except (KeyError, ValueError):
            draft.problem((*path, "group"), "is not a group of this machine, nor the number of one")
    return tuple(
        replace(address, mode=mode, gid=gid) if address.path else address for address in listen
    )


def address_of(text: str) -> Address | None:
    """Read where a surface listens, as the file writes it; None where it is no address."""
    if text.startswith("unix:") and len(text) > len("unix:") and "\0" not in text:
        return Address(path=text.removeprefix("unix:"))
    match = _ADDRESS.fullmatch(text)
    if match is not None and int(match[3]) <= 65535:
        return Address(match[1] or match[2], int(match[3]))
    return None
