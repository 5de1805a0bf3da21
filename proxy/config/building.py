"""Make a `Snapshot` of the parsed tables: what one table means beside another.

Every problem is collected, none stops the next one from being found.
"""

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from proxy import dialects
from proxy.config import presets as preset_file
from proxy.config.presets import Preset
from proxy.config.problems import Path, Problem, dotted, suggest
from proxy.config.reading import Filler, Unset, source_of
from proxy.config.snapshot import TIMEOUT_NAMES, Settings, Snapshot
from proxy.config.tables import (
    CredentialTable,
    File,
    KeyTable,
    RouteTable,
    SurfaceTable,
    TimeoutTable,
    UpstreamTable,
)
from proxy.credentials import Credential, Secret, present
from proxy.headers import HOP_BY_HOP, Pair
from proxy.keys import Key, KeyRing
from proxy.patterns import Pattern
from proxy.routes import Base, Origin, Route, Timeouts, Upstream
from proxy.routes import RouteTable as Routes
from proxy.surfaces import Address, Surface, host_name, is_unsafe

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]*")
_ADDRESS = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_FRAMING = {"host", "content-length", "expect"} | {name.decode() for name in HOP_BY_HOP}
SANDBOX = "sandbox://sandbox/v1"
"""What stands for an address where there is none; only the preset can say it."""
DEFAULT_BASE_PATHS = ("/api/v1", "/v1", "")


class Builder:
    """Turns one parsed *file* into a snapshot, collecting *problems* on the way.

    *written* is the file as it is written, for what messages quote and where secrets come from.
    """

    def __init__(self, file: File, written: Mapping[str, Any], filler: Filler) -> None:
        self._file = file
        self._written = written
        self._filler = filler
        self._presets = preset_file.load()
        self._upstreams: dict[str, Upstream] = {}
        self._origins: dict[str, dict[str, str]] = {}
        self.problems: list[Problem] = []

    def build(self, name: str, content: bytes, now: datetime) -> Snapshot:
        """Return the snapshot; it is to be used only if no problem was found."""
        file = self._file
        for upstream in file.upstreams:
            self._upstream(upstream)
        routes = Routes(self._routes())
        keys = self._keys()
        surfaces = self._surfaces(bool(file.keys))
        settings = Settings(
            max_body=file.server.max_body,
            max_inflight=file.server.max_inflight,
            max_held=file.server.max_held,
            drain=file.server.drain,
            log_format=file.log.format,
            log_level=file.log.level,
        )
        return Snapshot(
            file=name,
            digest=sha256(content).hexdigest(),
            loaded=now,
            settings=settings,
            surfaces=surfaces,
            upstreams=self._upstreams,
            routes=routes,
            keys=keys,
            origins=self._origins,
        )

    # Upstreams

    def _upstream(self, name: str) -> Upstream | None:
        """Return the upstream *name*: its table, its preset, or one over the other."""
        if name in self._upstreams:
            return self._upstreams[name]
        preset = self._presets.get(name)
        table = self._file.upstreams.get(name)
        path: Path = ("upstreams", name)
        if table is None and preset is None:
            return None
        if not name or "/" in name or not name.isprintable():
            self._problem(path, "an upstream's name must be printable and without a slash")
        upstream = self._make(name, table or UpstreamTable(), preset, path)
        if upstream is not None:
            self._upstreams[name] = upstream
        return upstream

    def _make(
        self, name: str, table: UpstreamTable, preset: Preset | None, path: Path
    ) -> Upstream | None:
        base_url = table.base_url
        if base_url is None and preset is not None:
            base_url = preset.base_url
        elif base_url == SANDBOX:
            self._problem((*path, "base_url"), "must begin with http:// or https://")
        if base_url is None:
            valid = suggest(name, self._presets)
            self._problem(path, f'needs a `base_url`: no preset is called "{name}"{valid}')
            return None
        where = (*path, "base_url")
        base = self._base(base_url, table, where)
        paths = {**(preset.paths if preset else {}), **table.paths}
        for prefix in table.paths:
            below = [e for e in dialects.ENDPOINTS if e == prefix or e.startswith(prefix + "/")]
            if not below:
                hint = suggest(prefix, dialects.ENDPOINTS)
                self._problem((*path, "paths", prefix), f"no endpoint's path begins so{hint}")
        further = {
            prefix: self._base(url, table, (*path, "paths", prefix))
            for prefix, url in paths.items()
        }
        if table.proxy is not None:
            self._proxy(table.proxy, (*path, "proxy"))
        if table.ca is not None:
            self._ca(table.ca, (*path, "ca"))
        credential, forms, missing = self._credential(table.credential, preset, path)
        headers = self._headers(table.headers, (*path, "headers"))
        signed = {one.header.lower() for one in (credential, *forms.values()) if one is not None}
        for header in table.headers:
            if header.lower() in signed:
                self._problem((*path, "headers", header), "is where the credential goes")
        if base is None or None in further.values():
            return None
        return Upstream(
            name=name,
            base=base,
            credential=credential,
            forms=forms,
            headers=headers,
            public=frozenset(
                name.encode()
                for name in table.headers
                if "$" not in str(self._at((*path, "headers", name)))
            ),
            defaults=_defaults(preset),
            paths=tuple(
                sorted(
                    ((prefix, found) for prefix, found in further.items() if found),
                    key=lambda item: -len(item[0]),
                )
            ),
            terminal=table.terminal or "auto",
            passthrough=table.passthrough,
            missing=missing,
        )

    def _base(self, url: str, table: UpstreamTable, path: Path) -> Base | None:
        """Return the base that *url* names: scheme, host, perhaps a port and a path, no more."""
        parts = _split(url)
        if parts is None:
            self._problem(path, "is not a URL")
            return None
        wrong = None
        if parts.scheme not in ("http", "https") and url != SANDBOX:
            wrong = "must begin with http:// or https://"
        elif not parts.host:
            wrong = "names no host"
        elif "@" in parts.netloc:
            wrong = "must not hold a user or password; use `credential`"
        elif "?" in url or "#" in url:
            wrong = "must not have a query or a fragment"
        elif not re.fullmatch(r"[\x21-\x7e]*", parts.path):
            wrong = "has a character that must be percent-encoded"
        else:
            tail = parts.path.rstrip("/").removeprefix("/")
            ends = [e for e in dialects.ENDPOINTS if tail == e or tail.endswith("/" + e)]
            if ends:
                wrong = f"must end before `/{max(ends, key=len)}`: it is all that precedes it"
        if wrong is not None:
            self._problem(path, wrong)
            return None
        usual = 443 if parts.scheme == "https" else 80
        origin = Origin(parts.scheme, parts.host, parts.port or usual, table.proxy, table.ca)
        return Base(origin, parts.path.rstrip("/"))

    def _proxy(self, url: str, path: Path) -> None:
        parts = _split(url)
        if parts is None or parts.scheme != "http" or not parts.host or parts.path not in ("", "/"):
            self._problem(path, 'must be a URL such as "http://egress.example:3128"')

    def _ca(self, file: str, path: Path) -> None:
        try:
            ssl.create_default_context(cafile=file)
        except (OSError, ssl.SSLError):
            self._problem(path, "is not a readable file of PEM certificates")

    def _credential(
        self, table: CredentialTable | None, preset: Preset | None, path: Path
    ) -> tuple[Credential | None, dict[str, Credential], str | None]:
        """Return the credential, its other forms by dialect, and the variable it still waits for."""
        here = (*path, "credential")
        if table is not None and table.header:
            secret = self._secret(table.secret, (*here, "secret"))
            if not _TOKEN.fullmatch(table.header) or table.header.lower() in _FRAMING:
                self._problem((*here, "header"), "is not the name of a header that can be set")
                return None, {}, None
            return Credential(table.header, "", secret), {}, None
        if table is not None:
            secret = self._secret(table.secret, here)
        elif preset is None or not preset.env:
            return None, {}, None
        else:
            try:
                found = self._first_set(preset)
            except Unset as unset:
                self._problem(here, str(unset))
                return None, {}, None
            if found is None:
                return None, {}, preset.env[0]
            secret = self._checked(found, here)
        form = preset.form if preset else "bearer"
        forms = preset.forms if preset else {}
        return (
            present(form, secret),
            {dialect: present(other, secret) for dialect, other in forms.items()},
            None,
        )

    def _first_set(self, preset: Preset) -> Secret | None:
        for variable in preset.env:
            value = self._filler.variable(variable)
            if value:
                return Secret(value, variable)
        return None

    def _secret(self, text: str, path: Path) -> Secret:
        return self._checked(Secret(text, source_of(self._at(path), dotted(path))), path)

    def _checked(self, secret: Secret, path: Path) -> Secret:
        text = secret.reveal()
        if not text.strip():
            self._problem(path, f"the secret from {secret.source} is empty")
        elif not re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", text):
            self._problem(
                path, f"the secret from {secret.source} has a character no header can hold"
            )
        return secret

    def _headers(self, table: dict[str, str], path: Path) -> tuple[Pair, ...]:
        pairs = []
        for name, value in table.items():
            if not _TOKEN.fullmatch(name) or name.lower() in _FRAMING:
                self._problem((*path, name), "is not the name of a header that can be set")
            elif not _FIELD_VALUE.fullmatch(value):
                self._problem((*path, name), "has a character that no header can hold")
            else:
                pairs.append((name.encode("ascii"), value.encode("latin-1")))
        names = [name.lower() for name in table]
        for name in table:
            if names.count(name.lower()) > 1:
                self._problem((*path, name), "stands there twice; its case does not matter")
        return tuple(pairs)

    # Routes

    def _routes(self) -> list[Route]:
        if not self._written.get("routes"):
            self._problem(("routes",), "there is none: no model string leads anywhere")
        made: dict[str, Route | None] = {}
        for name in self._file.routes:
            self._follow(name, made)
        in_order = (made[name] for name in self._file.routes)
        return [route for route in in_order if route is not None]

    def _follow(self, name: str, made: dict[str, Route | None]) -> None:
        """Make the route *name*, and before it those that it is an alias through."""
        chain: list[str] = []
        while name not in made:
            if name in chain:
                circle = " → ".join([*chain[chain.index(name) :], name])
                self._problem(("routes", name), f"leads back to itself: {circle}")
                made.update(dict.fromkeys(chain))
                return
            chain.append(name)
            to = self._file.routes[name].short
            if to is None or to not in self._file.routes or (to == name and "/" in to):
                made[name] = self._direct(name)
            else:
                name = to
        for alias in reversed(chain):
            if alias not in made:
                made[alias] = self._alias(alias, made)

    def _direct(self, name: str) -> Route | None:
        """Make a route that leads to an upstream itself."""
        path: Path = ("routes", name)
        self._check_pattern(name, path)
        table = self._file.routes[name]
        if table.short is None:
            return self._long(name, table, path)
        return self._short(name, table.short, path)

    def _alias(self, name: str, made: Mapping[str, Route | None]) -> Route | None:
        """Make a route that is another one's second name."""
        path: Path = ("routes", name)
        self._check_pattern(name, path)
        to = self._file.routes[name].short or ""
        target = made[to]
        if target is None:
            return None
        if target.pattern.prefix:
            self._problem(path, f'"{to}" is a pattern; name a model that it matches')
            return None
        self._origins[name] = self._origins[to]
        return replace(
            target,
            name=name,
            pattern=Pattern.parse(name),
            model=target.model_sent(to),
            via=(to, *target.via),
            listed=(),
        )

    def _short(self, name: str, to: str, path: Path) -> Route | None:
        """Make the route *name* that is written as `upstream/model`."""
        upstream_name, slash, model = to.partition("/")
        upstream = self._upstream(upstream_name) if slash and model else None
        if upstream is not None:
            return self._finish(name, path, upstream, model, RouteTable())
        if not (model and self._is_told("upstreams", upstream_name)) and not self._is_told(
            "routes", to
        ):
            known = [f"{upstream}/{model}" for upstream in self._known_upstreams()]
            hint = self._hint(path, to, known if slash else [*self._file.routes][:200])
            shown = self._quoted(path)
            self._problem(path, f"{shown} is neither a route nor `upstream/model`{hint}")
        return None

    def _long(self, name: str, table: RouteTable, path: Path) -> Route | None:
        """Make the route *name* that is written as a table."""
        if table.base_url is not None:
            if table.upstream is not None:
                self._problem(path, "has both `upstream` and `base_url`; one says where it goes")
            upstream = self._make(name, table, None, path)
        elif table.upstream is None:
            self._problem(path, "needs an `upstream` or a `base_url`")
            return None
        else:
            only_inline = {
                "credential",
                "headers",
                "paths",
                "proxy",
                "ca",
                "terminal",
                "passthrough",
            }
            for field in sorted(only_inline & table.model_fields_set):
                where = dotted(("upstreams", table.upstream))
                self._problem((*path, field), f"belongs to the upstream: set it in [{where}]")
            upstream = self._upstream(table.upstream)
            if upstream is None and not self._is_told("upstreams", table.upstream):
                here = (*path, "upstream")
                hint = self._hint(here, table.upstream, self._known_upstreams())
                self._problem(here, f"there is no upstream {self._quoted(here)}{hint}")
        if upstream is None:
            return None
        return self._finish(name, path, upstream, table.model, table)

    def _finish(
        self, name: str, path: Path, upstream: Upstream, model: str | None, table: RouteTable
    ) -> Route:
        pattern = Pattern.parse(name)
        where = (*path, "model") if table.model is not None else path
        if model is not None and model.count("*") > pattern.prefix:
            self._problem(
                where, "`*` in a model stands, once, for what the route's own `*` matched"
            )
        if model == "":
            self._problem(where, "must not be empty")
        listed = []
        for index, shown in enumerate(table.list_):
            if "*" in shown or not shown or (not pattern.prefix and shown != name):
                self._problem((*path, "list", index), "must be a name that the route's `*` matches")
            listed.append(shown if pattern.matches(shown) else pattern.literal + shown)
        own = self._file.upstreams.get(upstream.name)
        layers: list[tuple[str, TimeoutTable]] = [("defaults", self._file.defaults.timeout)]
        if own is not None and table.base_url is None:
            layers.append((dotted(("upstreams", upstream.name)), own.timeout))
        layers.append((dotted(path), table.timeout))
        timeouts, self._origins[name] = _timeouts(layers)
        return Route(name, pattern, upstream, model, timeouts, tuple(listed))

    def _known_upstreams(self) -> list[str]:
        return [*self._file.upstreams, *self._presets]

    def _check_pattern(self, name: str, path: Path) -> None:
        if not name or "*" in name[:-1] or not name.isprintable():
            self._problem(path, "must be a model string; a `*` may only end it")

    def _patterns(self, texts: Iterable[str], path: Path) -> tuple[Pattern, ...]:
        for index, text in enumerate(texts):
            self._check_pattern(text, (*path, index))
        return tuple(map(Pattern.parse, texts))

    # Keys

    def _keys(self) -> KeyRing:
        keys: dict[bytes, Key] = {}
        for name, table in self._file.keys.items():
            digest = self._digest(name, table)
            if digest is None:
                continue
            if digest in keys:
                self._problem(("keys", name), f'is the same key as "{keys[digest].name}"')
            models = None
            if table.models is not None:
                models = self._patterns(table.models, ("keys", name, "models"))
            keys[digest] = Key(name, digest, models, table.expires)
        return KeyRing(tuple(keys.values()))

    def _digest(self, name: str, table: KeyTable) -> bytes | None:
        path: Path = ("keys", name)
        if (table.secret is None) == (table.hash is None):
            self._problem(path, 'needs either the key itself or `hash = "sha256:…"`')
        elif table.hash is not None:
            if _HASH.fullmatch(table.hash):
                return bytes.fromhex(table.hash.removeprefix("sha256:"))
            self._problem(
                (*path, "hash"), "must be `sha256:` and 64 hexadecimal digits, lower case"
            )
        elif table.secret is not None:
            short = isinstance(self._at(path), str)
            if _HASH.fullmatch(table.secret):
                self._problem(path, 'would be a key itself; write `{ hash = "sha256:…" }`')
            secret = self._secret(table.secret, path if short else (*path, "secret"))
            return sha256(secret.reveal().encode("utf-8", "surrogateescape")).digest()
        return None

    # Surfaces

    def _surfaces(self, keyed: bool) -> tuple[Surface, ...]:
        tables: list[tuple[SurfaceTable, Path]] = [
            (table, ("surface", index)) for index, table in enumerate(self._file.surface)
        ]
        server = self._file.server
        if not tables:
            tables = [(server, ("server",))]
        else:
            for field in sorted(set(SurfaceTable.model_fields) & server.model_fields_set):
                self._problem(("server", field), "belongs to a [[surface]], since there is one")
        surfaces = [self._surface(table, keyed, path) for table, path in tables]
        for what, values in (
            ("name", [surface.name for surface in surfaces]),
            ("listen", [str(address) for surface in surfaces for address in surface.listen]),
        ):
            for value in sorted({value for value in values if values.count(value) > 1}):
                self._problem(("surface",), f'two have the {what} "{value}"')
        return tuple(surfaces)

    def _surface(self, table: SurfaceTable, keyed: bool, path: Path) -> Surface:
        listen = tuple(self._addresses(table.listen, (*path, "listen")))
        auth = table.auth or ("keys" if keyed else "none")
        exposed = not all(address.loopback for address in listen)
        if auth == "none" and exposed and not table.open:
            self._problem(
                path,
                "whoever reaches this address could spend your money: add [keys], listen on "
                "127.0.0.1, or say `open = true`",
            )
        for field in ("listen", "base_paths", "accept", "endpoints"):
            if getattr(table, field) == []:
                self._problem((*path, field), "must not be empty")
        if auth == "keys" and not keyed:
            self._problem((*path, "auth"), "is `keys`, and there are no [keys]")
        bases = table.base_paths
        for index, base in enumerate(bases or ()):
            if base and (not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", base) or is_unsafe(base)):
                self._problem((*path, "base_paths", index), 'must be such as "/v1", or ""')
        endpoints: frozenset[str] | None = None
        if table.endpoints != "all":
            endpoints = frozenset(table.endpoints)
            for index, endpoint in enumerate(table.endpoints):
                if dialects.find(endpoint) is None:
                    hint = suggest(endpoint, dialects.ENDPOINTS)
                    self._problem((*path, "endpoints", index), f"is not a known endpoint{hint}")
        for index, host in enumerate(table.hosts):
            if host_name(host) is None or host_name(host) != host.lower().strip("[]"):
                self._problem((*path, "hosts", index), "must be a host name, without port")
        surface = Surface(
            name=table.name,
            listen=listen,
            base_paths=tuple(sorted(bases, key=len, reverse=True)) if bases else DEFAULT_BASE_PATHS,
            auth=auth,
            routes=None
            if table.routes is None
            else self._patterns(table.routes, (*path, "routes")),
            models=table.models,
            endpoints=endpoints,
            hosts=frozenset(host.lower().strip("[]") for host in table.hosts),
        )
        if table.accept is not None:
            surface = replace(surface, accept=tuple(name.encode() for name in table.accept))
        return surface

    def _addresses(self, texts: Iterable[str], path: Path) -> Iterable[Address]:
        for text in texts:
            if text.startswith("unix:") and len(text) > len("unix:") and "\0" not in text:
                yield Address(path=text.removeprefix("unix:"))
                continue
            match = _ADDRESS.fullmatch(text)
            if match is not None and int(match[3]) <= 65535:
                yield Address(match[1] or match[2], int(match[3]))
                continue
            self._problem(path, 'must be "HOST:PORT", "[IPV6]:PORT" or "unix:/PATH"')

    # Problems

    def _problem(self, path: Path, message: str) -> None:
        self.problems.append(Problem(path, message))

    def _at(self, path: Path) -> object:
        """Return what is written at *path*."""
        value: Any = self._written
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def _is_told(self, table: str, name: str) -> bool:
        """Return whether *name* is in *table* of the file, so that its own problem is told there."""
        tables = self._written.get(table)
        return isinstance(tables, Mapping) and name in tables

    def _hint(self, path: Path, name: str, valid: Iterable[str]) -> str:
        """Suggest one of *valid* for what stands at *path*, unless that came from a variable."""
        return suggest(name, valid) if self._at(path) == name else ""

    def _quoted(self, path: Path) -> str:
        return f'"{self._at(path)}"'


@dataclass(frozen=True, slots=True)
class _Url:
    scheme: str
    netloc: str
    host: str
    port: int | None
    path: str


def _split(url: str) -> _Url | None:
    """Return the parts of *url*, None if it is none. What `urlsplit` lets pass is looked at here."""
    if not url.isprintable() or any(character in ' <>"{}|^`\\' for character in url):
        return None
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
        if ":" in host:
            ip_address(host)
    except (ValueError, UnicodeError):
        return None
    if port == 0 or not re.fullmatch(r"[A-Za-z0-9._:-]*", host):
        return None
    return _Url(parts.scheme, parts.netloc, host, port, parts.path)


def _defaults(preset: Preset | None) -> dict[str, tuple[Pair, ...]]:
    if preset is None:
        return {}
    return {
        dialect: tuple((name.encode(), value.encode()) for name, value in headers.items())
        for dialect, headers in preset.defaults.items()
    }


def _timeouts(layers: list[tuple[str, TimeoutTable]]) -> tuple[Timeouts, dict[str, str]]:
    """Return the timeouts that hold when each of *layers* overrides those before it, and whose
    word each one is.
    """
    values: dict[str, float | None] = {}
    origins = dict.fromkeys(TIMEOUT_NAMES, "built in")
    for origin, table in layers:
        for name in table.model_fields_set:
            values[name] = getattr(table, name)
            origins[name] = f"{origin}.timeout"
    return Timeouts(**values), origins
