"""Surfaces: one listening address each, with its own paths, its own auth, its own view of the routes.

`locate` decides by exact raw path, before any key is read; `admits_host` is what stands between a
surface without keys and every web page its operator opens.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

from proxy import dialects
from proxy.dialects import GEMINI, Azure, Dialect
from proxy.headers import NO_NAMES, Names, Pair
from proxy.patterns import Pattern

ACCEPT = (b"authorization", b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key")
"""Look for keys in these headers, unless the surface says where."""

Network = IPv4Network | IPv6Network
Auth = Literal["none", "keys", "passthrough"]

_HOST = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")
_HOP = re.compile(
    r"(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3})|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)"
)
_NATIVE = re.compile(r"(.*)(/v1beta|/v1alpha)/(models(?:/.*)?)")
_AZURE = re.compile(r"(.*?)/openai(/v1)?/(.+)")
_SLASHES = re.compile(r"/{2,}")
_UNSAFE = re.compile(
    r"\\|[\x00-\x20\x7f]|%00|%5c|(?:^|/|%2f)(?:\.|%2e){1,2}(?:/|%2f|;|%3b|$)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a surface listens: *host* and *port*, or a unix socket at *path*, whose *mode* and group
    (*gid*, None for the process's own) say who may connect.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    mode: int = field(default=0o600, compare=False)
    gid: int | None = field(default=None, compare=False)

    @property
    def loopback(self) -> bool:
        """Return whether nobody outside this machine can connect here."""
        return bool(self.path) or is_loopback(self.host)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a certificate chain and its key, in PEM."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class Located:
    """Where a path stands on a surface: *suffix* is what follows *base*, one of its base paths, and
    *dialect* what is spoken there, if it is the path of an endpoint that carries a model; *azure* says
    how it is asked for, where it is in Azure's way.
    """

    base: str
    suffix: str
    dialect: Dialect | None
    azure: Azure | None = None


@dataclass(frozen=True, slots=True)
class Surface:
    """One face of the proxy. *accept* are the headers that may hold a key, in lower case; *errors* the
    names that its clients know, by status; *cors* the origins of pages that may call it; *trusted*
    the proxies in front whose word on the client's address counts; *strip* what of the headers that they
    send stays here.
    """

    name: str
    listen: tuple[Address, ...]
    base_paths: tuple[str, ...]
    auth: Auth
    accept: tuple[bytes, ...] = ACCEPT
    routes: tuple[Pattern, ...] | None = None
    models: Literal["list", "hidden"] = "list"
    endpoints: frozenset[str] | None = None
    docs: bool = True
    echo_model: bool = False
    errors: Mapping[int, str] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    cors: frozenset[str] = frozenset()
    trusted: tuple[Network, ...] = ()
    tls: Tls | None = None
    strip: Names = NO_NAMES

    @property
    def exposed(self) -> bool:
        """Return whether somebody who is not on this machine can connect here."""
        return not all(address.loopback for address in self.listen)

    def shows(self, model: str) -> bool:
        """Return whether *model* may be seen and called here."""
        return self.routes is None or any(pattern.matches(model) for pattern in self.routes)

    def shows_anything(self) -> bool:
        """Return whether every model may be called here, so that none need be named."""
        return self.routes is None or any(pattern.anything for pattern in self.routes)

    def locate(self, path: str) -> Located | None:
        """Return where *path* (raw, without query) stands here, None where it stands nowhere.

        A slash too many (`//`) and a base path's end said twice (`/v1/v1`) are what comes of joining
        URLs by hand, and mean nothing else.
        """
        if "//" in path:
            path = _SLASHES.sub("/", path)
        native = _NATIVE.fullmatch(path)
        if native is not None and self._stands_on(native[1]):
            return Located(native[1] + native[2], native[3], self._spoken(native[3]))
        azure = _AZURE.fullmatch(path)
        if azure is not None and self._stands_on(azure[1]):
            return self._as_azure(azure[1] + "/openai", azure[2] is None, azure[3])
        for base in self.base_paths:  # longest first
            if path.startswith(base + "/"):
                suffix = path[len(base) + 1 :]
                again = base[base.rfind("/") + 1 :] + "/"
                while base and suffix.startswith(again):
                    suffix = suffix[len(again) :]
                return Located(base, suffix, self._spoken(suffix))
        return None

    def _stands_on(self, stem: str) -> bool:
        return any(stem == _stem(base) for base in self.base_paths)

    def _as_azure(self, base: str, dated: bool, suffix: str) -> Located:
        deployed = dialects.deployed(suffix) if dated else None
        if deployed is None:
            return Located(base, suffix, self._spoken(suffix), Azure(dated))
        deployment, suffix = deployed
        return Located(base, suffix, self._spoken(suffix), Azure(dated, deployment))

    def _spoken(self, suffix: str) -> Dialect | None:
        """Return the dialect of *suffix*, if this surface has that endpoint."""
        dialect = dialects.find(suffix)
        return dialect if self.serves(dialect.name if dialect is GEMINI else suffix) else None

    def serves(self, suffix: str) -> bool:
        """Return whether *suffix* is, or stands below, one of the endpoints of this surface."""
        if self.endpoints is None or suffix in self.endpoints:
            return True
        return any(suffix.startswith(endpoint + "/") for endpoint in self.endpoints)

    def trusts(self, address: str) -> bool:
        """Return whether *address* is a proxy in front of us."""
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self.trusted)

    def client_ip(self, peer: object, headers: Iterable[Pair]) -> str | None:
        """Return the address of the client of a connection from *peer*, None over a unix socket: the last one
        in X-Forwarded-For that is not a proxy in front of us, if *peer* is one.
        """
        address = peer[0] if isinstance(peer, tuple) else None
        if not self.trusted or (address is not None and not self.trusts(address)):
            return address
        hops = b",".join([value for name, value in headers if name.lower() == b"x-forwarded-for"])
        for hop in reversed(hops.decode("latin-1").split(",")):
            before = _hop_address(hop.strip())
            if before is None:
                break
            address = before
            if not self.trusts(before):
                break
        return address

    def admits_host(self, host: str, local: str) -> bool:
        """Return whether a request for *host* that arrived at the address *local* is meant for us.

        A web page that rebinds its own name to this machine says that name here (DNS rebinding).
        """
        name = host_name(host)
        if name is None:
            return False
        return (
            is_loopback(name)
            or name == local
            or name in self.hosts
            or any(name == address.host.lower() for address in self.listen)
        )


def _stem(base: str) -> str:
    """Return what Gemini's own paths, and Azure's, stand below, where *base* is a base path."""
    return base.removesuffix("/v1")


def host_name(host: str) -> str | None:
    """Return the name in a `Host` header, lower case and without port, None if it is malformed."""
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    return (match[1] or match[2]).lower()


def _hop_address(hop: str) -> str | None:
    """Return the address in *hop*, a piece of `X-Forwarded-For`, perhaps in brackets, perhaps with a
    port; None where it holds none (`unknown`, a name that hides it).
    """
    match = _HOP.fullmatch(hop)
    parsed = None if match is None else _parsed(match[1] or match[2] or match[3])
    return None if parsed is None else str(parsed)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address; one of IPv4 that is mapped into IPv6, as sockets for both say it, is one of IPv4
    (RFC 4291 section 2.5.5.2).
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Return whether *host*, a name or an address, is this machine's loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    parsed = _parsed(host)
    return parsed is not None and parsed.is_loopback


def is_unsafe(path: str) -> bool:
    """Return whether *path* could mean another place to whoever reads it next: dot segments, encoded
    or not, backslashes, control characters.
    """
    return _UNSAFE.search(path) is not None
