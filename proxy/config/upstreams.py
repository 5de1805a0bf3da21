"""From `[upstreams]` and presets to upstreams: what the file says, over what is known of a vendor."""

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from proxy import dialects
from proxy.config.certificates import Unfit, load_chain
from proxy.config.draft import FRAMING, TOKEN, Draft
from proxy.config.files import Unreadable, check_regular
from proxy.config.live import Live
from proxy.config.presets import Preset
from proxy.config.problems import Path, dotted, suggest
from proxy.config.reading import Unset
from proxy.config.snapshot import TIMEOUT_NAMES
from proxy.config.tables import (
    CredentialTable,
    RetryTable,
    TimeoutTable,
    TlsTable,
    UpstreamTable,
)
from proxy.credentials import FORMS, Credential, Form, LiveSecret, Secret
from proxy.headers import Pair
from proxy.routes import Base, Origin, Retry, Timeouts, Upstream

SANDBOX = "sandbox://sandbox/v1"
"""What stands for an address where there is none; only the preset can say it."""
Layer = tuple[str, TimeoutTable]
"""A table of timeouts, and where it stands."""

_FIELD_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]*")
_PART = re.compile(r"\{(\w+)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PART_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


class Upstreams:
    """The upstreams of *draft*, made when somebody names them."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.made: dict[str, Upstream] = {}

    def known(self) -> list[str]:
        """Return every name that an upstream can have here."""
        return [*self._draft.file.upstreams, *self._draft.presets]

    def layers(self, name: str | None) -> list[Layer]:
        """Return the timeouts that hold at the upstream *name*, the later over the earlier."""
        file = self._draft.file
        layers: list[Layer] = [("defaults", file.defaults.timeout)]
        own = file.upstreams.get(name) if name is not None else None
        if name is not None and own is not None:
            layers.append((dotted(("upstreams", name)), own.timeout))
        return layers

    def find(self, name: str) -> Upstream | None:
        """Return the upstream *name*: its table, its preset, or one over the other."""
        if name in self.made:
            return self.made[name]
        table = self._draft.file.upstreams.get(name)
        path: Path = ("upstreams", name)
        if table is None and name not in self._draft.presets:
            return None
        if not name or "/" in name or not name.isprintable():
            self._draft.problem(path, "an upstream's name must be printable and without a slash")
        upstream = self.make(name, table or UpstreamTable(), path)
        if upstream is not None:
            self.made[name] = upstream
        return upstream

    def make(
        self, name: str, table: UpstreamTable, path: Path, *, inline: bool = False
    ) -> Upstream | None:
        """Make the upstream *name* of its *table*, which stands at *path*: in a route, if *inline*."""
        draft = self._draft
        preset = self._preset(name, table, path, inline)
        base_url = preset.base_url if table.base_url is None else table.base_url
        if table.base_url == SANDBOX:
            draft.problem((*path, "base_url"), "must begin with http:// or https://")
        if base_url is None:
            if table.preset is None:
                hint = suggest(name, draft.presets)
                draft.problem(path, f'needs a `base_url`: no preset is called "{name}"{hint}')
            return None
        self._check_dialects(table, path)
        parts, unplaced = self._parts(table, preset, path)
        base = self._base(base_url, parts, table, (*path, "base_url"))
        further = {
            prefix: self._base(url, parts, table, (*path, "paths", prefix))
            for prefix, url in {**_paths_of(preset, table), **table.paths}.items()
        }
        if table.proxy is not None:
            self._proxy(table.proxy, (*path, "proxy"))
        if table.ca is not None:
            self._ca(table.ca, (*path, "ca"))
        if table.client_certificate is not None:
            self._certificate(table.client_certificate, (*path, "client_certificate"))
        others = len(draft.live)
        credentials, missing = self._credentials(table, preset, path)
        draft.live[others:] = [replace(live, upstream=name) for live in draft.live[others:]]
        headers = self._headers(table.headers, (*path, "headers"))
        by_dialect = {
            dialect: self._headers(pairs, (*path, "defaults", dialect))
            for dialect, pairs in {**preset.defaults, **table.defaults}.items()
        }
        signed = {header for credential in credentials for header in credential.headers()}
        for header in table.headers:
            if header.lower() in signed:
                draft.problem((*path, "headers", header), "is where the credential goes")
        if base is None or None in further.values():
            return None
        spoken = preset.speaks if table.speaks is None else table.speaks
        return Upstream(
            name=name,
            base=base,
            credentials=tuple(credentials),
            headers=headers,
            public=frozenset(
                pair
                for at, pairs in (
                    (("headers",), headers),
                    *((("defaults", dialect), pairs) for dialect, pairs in by_dialect.items()),
                )
                for pair in pairs
                if "$" not in str(draft.at((*path, *at, pair[0].decode())))
            ),
            defaults=by_dialect,
            paths=tuple(
                sorted(
                    ((prefix, found) for prefix, found in further.items() if found),
                    key=lambda item: -len(item[0]),
                )
            ),
            dated=_dated(base) if preset.dated else None,
            spoken=None if spoken is None or spoken == "all" else tuple(spoken),
            inferred=table.speaks is None and "speaks" in preset.inferred,
            terminal=table.terminal or preset.terminal,
            billed=preset.billed if table.billed is None else table.billed,
            passthrough=table.passthrough,
            forward=frozenset(self._names(table.forward, (*path, "forward"))),
            unplaced=unplaced,
            missing=missing,
            timeouts=timeouts_of(self.layers(None if inline else name))[0],
            retry=Retry(**{**said(draft.file.defaults.retry), **said(table.retry)}),
        )

    def _preset(self, name: str, table: UpstreamTable, path: Path, inline: bool) -> Preset:
        presets = self._draft.presets
        wanted = table.preset if table.preset is not None else None if inline else name
        if wanted is None:
            return Preset()
        if table.preset is not None and wanted not in presets:
            here = (*path, "preset")
            hint = self._draft.hint(here, wanted, presets)
            self._draft.problem(here, f"there is no preset {self._draft.quoted(here)}{hint}")
        return presets.get(wanted, Preset())

    def _check_dialects(self, table: UpstreamTable, path: Path) -> None:
        """Check that what goes by dialect, or by path, names one that there is."""
        for field, names in (
            ("forms", table.forms),
            ("defaults", table.defaults),
            ("speaks", [] if table.speaks in (None, "all") else table.speaks or []),
        ):
            for index, name in enumerate(names):
                if name not in dialects.DIALECTS:
                    at = index if field == "speaks" else name
                    hint = suggest(name, dialects.DIALECTS)
                    self._draft.problem((*path, field, at), f"is not a dialect{hint}")
        places = [*dialects.ENDPOINTS, "gemini", "models", *self._draft.file.unrouted]
        places = [place for place in places if place != "*"]
        for prefix in table.paths:
            if not any(place == prefix or place.startswith(prefix + "/") for place in places):
                hint = suggest(prefix, places)
                self._draft.problem((*path, "paths", prefix), f"no endpoint's path begins so{hint}")

    # Where it is

    def _parts(
        self, table: UpstreamTable, preset: Preset, path: Path
    ) -> tuple[dict[str, str], str | None]:
        """Return what stands for the `{parts}` of URLs, and the variable that is lacking."""
        draft, values, unplaced = self._draft, {}, None
        own = [((*path, "base_url"), table.base_url)]
        own += [((*path, "paths", prefix), url) for prefix, url in table.paths.items()]
        urls = [url for at, url in own if url is not None and self._has_parts(at)]
        urls += [] if table.base_url is not None else [preset.base_url or ""]
        further = _paths_of(preset, table)
        urls += [url for prefix, url in further.items() if prefix not in table.paths]
        wanted = {name for url in urls for name in _PART.findall(url)}
        for name in table.vars:
            if name not in wanted:
                hint = suggest(name, wanted)
                draft.problem(
                    (*path, "vars", name), f"no URL of this upstream has such a part{hint}"
                )
        for name in sorted(wanted):
            here: Path = (*path, "vars", name)
            variable = preset.vars.get(name)
            value = table.vars.get(name)
            said = "" if value is not None or variable is None else f"{variable} "
            if value is None and variable is not None:
                try:
                    value = draft.filler.variable(variable)
                except Unset as unset:
                    draft.problem(here, str(unset))
            if value is None and variable is None:
                draft.problem(here, "is missing")
            if value is None:
                unplaced = unplaced or variable
                value = f"unset-{name.replace('_', '-')}"
            value = re.sub(r"^https?://|/+$", "", value)  # of a host, people bring the whole URL
            if not _PART_VALUE.fullmatch(value):
                draft.problem(
                    here,
                    f"{said}must be letters, digits, dots and dashes: it becomes part of a URL",
                )
                value = f"wrong-{name.replace('_', '-')}"
            values[name] = value
        return values, unplaced

    def _has_parts(self, path: Path) -> bool:
        """Return whether `{parts}` may stand in the URL at *path*: not where a variable fills it in,
        whose value no message may quote.
        """
        return "$" not in str(self._draft.at(path))

    def _base(
        self, url: str, parts: Mapping[str, str], table: UpstreamTable, path: Path
    ) -> Base | None:
        """Return the base that *url* names: scheme, host, perhaps a port and a path, no more."""
        draft = self._draft
        split = _split(_PART.sub(lambda part: parts.get(part[1], part[0]), url))
        if split is None:
            draft.problem(path, "is not a URL")
            return None
        wrong = None
        if split.scheme not in ("http", "https") and url != SANDBOX:
            wrong = "must begin with http:// or https://"
        elif not split.host:
            wrong = "names no host"
        elif "@" in split.netloc:
            wrong = "must not hold a user or password; use `credential`"
        elif "?" in url or "#" in url:
            wrong = "must not have a query or a fragment"
        elif not re.fullmatch(r"[\x21-\x7e]*", split.path):
            wrong = "has a character that must be percent-encoded"
        else:
            tail = split.path.rstrip("/").removeprefix("/")
            ends = [e for e in dialects.ENDPOINTS if tail == e or tail.endswith("/" + e)]
            if ends:
                wrong = f"must end before `/{max(ends, key=len)}`: it is all that precedes it"
        if wrong is not None:
            draft.problem(path, wrong)
            return None
        usual = 443 if split.scheme == "https" else 80
        shown = table.client_certificate
        certificate = None if shown is None else (shown.certificate, shown.key)
        port = split.port or usual
        origin = Origin(split.scheme, split.host, port, table.proxy, table.ca, certificate)
        return Base(origin, split.path.rstrip("/"))

    def _proxy(self, url: str, path: Path) -> None:
        parts = _split(url)
        if parts is None or parts.scheme != "http" or not parts.host or parts.path not in ("", "/"):
            self._draft.problem(path, 'must be a URL such as "http://egress.example:3128"')

    def _ca(self, file: str, path: Path) -> None:
        try:
            check_regular(file)
            ssl.create_default_context(cafile=file)
        except (OSError, Unreadable):  # ssl.SSLError among them
            self._draft.problem(path, "is not a readable file of PEM certificates")

    def _certificate(self, table: TlsTable, path: Path) -> None:
        """Check that *table* names a certificate and its key."""
        try:
            load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), table.certificate, table.key)
        except Unfit as unfit:
            self._draft.problem(path, str(unfit))

    # What is presented there

    def _credentials(
        self, table: UpstreamTable, preset: Preset, path: Path
    ) -> tuple[list[Credential], str | None]:
        """Return the credentials, and the variable that is waited for where there is none."""
        draft = self._draft
        here = (*path, "credential")
        form = FORMS[table.form or preset.form]
        forms = {name: FORMS[one] for name, one in {**preset.forms, **table.forms}.items()}
        forms = {name: one for name, one in forms.items() if one != form}
        if table.credential is not None:
            listed = isinstance(draft.at(here), list)
            if not table.credential:
                draft.problem(here, "must not be an empty list")
            made = [
                self._own(one, (*here, index) if listed else here, form, forms)
                for index, one in enumerate(table.credential)
            ]
            found = [credential for credential in made if credential is not None]
            texts = [one.secret.reveal() for one in found if one.secret.known]
            if len(set(texts)) < len(texts):
                draft.problem(here, "holds the same secret twice")
            return found, None
        env = preset.env if table.env is None else table.env
        for index, variable in enumerate(env):
            if not _VARIABLE.fullmatch(variable):
                draft.problem((*path, "env", index), "is not the name of a variable")
        try:
            secret = self._first_set(env)
        except Unset as unset:
            draft.problem(here, str(unset))
            return [], None
        if secret is None:
            optional = preset.optional if table.optional is None else table.optional
            return [], env[0] if env and not optional else None
        return [Credential(draft.checked(secret, here), form, forms)], None

    def _own(
        self, table: CredentialTable, here: Path, form: Form, forms: Mapping[str, Form]
    ) -> Credential | None:
        """Return the credential that the file itself names at *here*."""
        secret = self._own_secret(table, here)
        if table.header is None:
            return Credential(secret, form, forms) if secret else None
        if not TOKEN.fullmatch(table.header) or table.header.lower() in FRAMING:
            self._draft.problem((*here, "header"), "is not the name of a header that can be set")
            return None
        return Credential(secret, (table.header, "")) if secret else None

    def _own_secret(self, table: CredentialTable, here: Path) -> Secret | None:
        """Return the secret that the file itself names: as it is, or as what prints it."""
        draft = self._draft
        if (table.secret is None) == (table.command is None):
            draft.problem(here, "needs either a `secret` or a `command`")
            return None
        if table.secret is not None:
            if "refresh" in table.model_fields_set:
                draft.problem((*here, "refresh"), "belongs to a `command`")
            short = isinstance(draft.at(here), str)
            return draft.living(table.secret, here if short else (*here, "secret"))
        command = tuple(table.command or ())
        if not command or not command[0] or any("\0" in word for word in command):
            draft.problem((*here, "command"), "must begin with the name of a program")
            return None
        source = f"the command {command[0].rpartition('/')[2]}"
        secret = LiveSecret("", source, known_as=command)
        draft.live.append(Live(secret, command=command, refresh=table.refresh))
        return secret

    def _first_set(self, variables: Iterable[str]) -> Secret | None:
        filler = self._draft.filler
        for variable in variables:
            value = filler.variable(variable)
            if not value:
                continue
            secret = Secret(value, variable)
            pointer = filler.pointer(variable)
            if pointer is None:
                return secret
            return self._draft.follow(secret, (pointer,), partial(self._reread, variable))
        return None

    def _reread(self, variable: str) -> str:
        return self._draft.filler.variable(variable) or ""

    def _names(self, names: Iterable[str], path: Path) -> Iterable[bytes]:
        """Read the names of headers at *path*."""
        for index, name in enumerate(names):
            if not TOKEN.fullmatch(name) or name.lower() in FRAMING:
                self._draft.problem((*path, index), "is not the name of a header that can be sent")
            else:
                yield name.lower().encode("ascii")

    def _headers(self, table: Mapping[str, str], path: Path) -> tuple[Pair, ...]:
        pairs = []
        for name, value in table.items():
            if not TOKEN.fullmatch(name) or name.lower() in FRAMING:
                self._draft.problem((*path, name), "is not the name of a header that can be set")
            elif not _FIELD_VALUE.fullmatch(value):
                self._draft.problem((*path, name), "has a character that no header can hold")
            else:
                pairs.append((name.encode("ascii"), value.encode("latin-1")))
        names = [name.lower() for name in table]
        for name in table:
            if names.count(name.lower()) > 1:
                self._draft.problem((*path, name), "stands there twice; its case does not matter")
        return tuple(pairs)


def _dated(base: Base) -> Base | None:
    """Return where requests in Azure's older form go, of whose later one *base* is."""
    path = base.path.removesuffix("/v1")
    return Base(base.origin, path) if path.endswith("/openai") else None


def _paths_of(preset: Preset, table: UpstreamTable) -> Mapping[str, str]:
    """Return the preset's other bases: none where the table says where it all goes, credential and all."""
    return preset.paths if table.base_url is None else {}


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


def said(table: RetryTable) -> dict[str, Any]:
    """Return what *table* itself says, and leaves not to the tables below it."""
    found = {name: getattr(table, name) for name in table.model_fields_set}
    return {name: tuple(one) if isinstance(one, list) else one for name, one in found.items()}


def timeouts_of(layers: Iterable[Layer]) -> tuple[Timeouts, dict[str, str]]:
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
