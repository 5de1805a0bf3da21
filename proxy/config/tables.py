"""The tables of `routes.toml`, as pydantic models: names, types, bounds, and nothing else.

What one table means beside another is checked where the snapshot is built. What the design has
and this version does not is named here too, so that it is refused and never silently accepted.
"""

from datetime import date
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from proxy.config import units

Duration = Annotated[float | None, BeforeValidator(units.seconds)]
Pause = Annotated[float, BeforeValidator(units.pause)]
Span = Annotated[float, BeforeValidator(units.span)]
Size = Annotated[int, BeforeValidator(units.size)]
PeerTimeout = Annotated[float | None, BeforeValidator(units.peer_timeout)]
Workers = Annotated[int | None, BeforeValidator(units.workers)]
SHORT: Final = "\0"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_listed)]


class Table(BaseModel):
    """What all tables have in common: an unknown key is an error, and nothing is coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TimeoutTable(Table):
    """How long each phase may take."""

    connect: Duration = None
    first_byte: Duration = None
    idle: Duration = None
    write: Duration = None
    total: Duration = None


class RetryTable(Table):
    """What may be tried again."""

    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    deadline: Duration = None
    stale: bool = True
    failover_5xx: bool = True
    ambiguous: bool = False
    next: bool = True
    also: list[Annotated[int, Field(ge=400, le=599)]] = []


class TlsTable(Table):
    """The certificate of a surface, or the one that is shown to an upstream."""

    certificate: str
    key: str


class SurfaceTable(Table):
    """`[[surface]]`."""

    name: str = "main"
    listen: Texts = ["127.0.0.1:8080"]
    mode: str | None = None
    group: str | None = None
    base_paths: list[str] | None = None
    auth: Literal["none", "keys", "passthrough"] | None = None
    accept: (
        list[Literal["authorization", "x-api-key", "api-key", "apikey", "x-goog-api-key"]] | None
    ) = None
    routes: list[str] | None = None
    models: Literal["list", "hidden"] = "list"
    endpoints: Literal["all"] | list[str] = "all"
    docs: bool = True
    echo_model: bool = False
    errors: dict[str, str] = {}
    cors: list[str] = []
    trusted_proxies: Texts = []
    strip: Texts = []
    tls: TlsTable | None = None
    hosts: list[str] = []
    open: bool = False


class ServerTable(SurfaceTable):
    """`[server]`: what holds for the process, and the keys of the one surface."""

    max_body: Size = 64 * 2**20
    max_inflight: Annotated[int, Field(ge=1)] = 4096
    max_held: Size = 2**30
    drain: Duration = 120.0
    lame_duck: Pause = 0.0
    keepalive_idle: Span = 620.0
    workers: Workers = 1
    worker_timeout: Duration = 30.0
    peer_timeout: PeerTimeout = 100.0


class DefaultsTable(Table):
    """`[defaults]`."""

    timeout: TimeoutTable = TimeoutTable()
    retry: RetryTable = RetryTable()
    keepalive: Duration = None


class CredentialTable(Table):
    """A credential: a *secret*, or a *command* that prints one; not a Bearer token where *header*
    says where it goes.
    """

    header: str | None = None
    secret: str | None = None
    command: list[str] | None = None
    refresh: Duration = 3000.0


def _credentials(value: Any) -> Any:
    """Read one credential, or a list of them, as a list of tables."""
    several = value if isinstance(value, list) else [value]
    return [{"secret": one} if isinstance(one, str) else one for one in several]


Form = Literal["bearer", "x-api-key", "api-key", "apikey", "x-goog-api-key"]


class UpstreamTable(Table):
    """`[upstreams.NAME]`, and the upstream half of a route with a `base_url` of its own."""

    preset: str | None = None
    base_url: str | None = None
    vars: dict[str, str] = {}
    env: Texts | None = None
    optional: bool | None = None
    credential: Annotated[list[CredentialTable] | None, BeforeValidator(_credentials)] = None
    form: Form | None = None
    forms: dict[str, Form] = {}
    defaults: dict[str, dict[str, str]] = {}
    headers: dict[str, str] = {}
    paths: dict[str, str] = {}
    speaks: Literal["all"] | list[str] | None = None
    proxy: str | None = None
    ca: str | None = None
    client_certificate: TlsTable | None = None
    terminal: Literal["auto", "done", "none"] | None = None
    billed: bool | None = None
    passthrough: bool = False
    forward: Texts = []
    timeout: TimeoutTable = TimeoutTable()
    retry: RetryTable = RetryTable()


class TargetTable(Table):
    """One of a route's `targets`; a plain string is where it leads *to*."""

    to: str
    weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0


def _targets(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [{"to": one} if isinstance(one, str) else one for one in value]


class RouteTable(UpstreamTable):
    """`[routes.NAME]`; a plain string stands under `SHORT`, a name that nobody can write."""

    short: str | None = Field(default=None, alias="\0")
    upstream: str | None = None
    model: str | None = None
    targets: Annotated[list[TargetTable], BeforeValidator(_targets)] = []
    policy: Literal["ordered", "weighted", "least-busy", "fastest"] | None = None
    sticky: str | None = None
    fallback: Texts = []
    header: str | None = None
    missing: str = "missing_header"
    unknown: str = "unknown_header"
    to: dict[str, str] = {}
    on_context_length: bool = False
    peek: bool = False
    keepalive: Duration = None
    list_: list[str] = Field(default=[], alias="list")


class KeyTable(Table):
    """`[keys.NAME]`; a plain string is its *secret*."""

    secret: str | None = None
    hash: str | None = None
    models: list[str] | None = None
    expires: date | None = None


class HookTable(Table):
    """`[hooks.NAME]`."""

    route: str
    system: str | None = None
    secret: str | None = None


class LogTable(Table):
    """`[log]`."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["info", "debug"] = "info"


def _routes(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: {SHORT: to} if isinstance(to, str) else _unforged(to) for name, to in value.items()
    }


def _unforged(table: Any) -> Any:
    """Make a `SHORT` that somebody did write an unknown key like any other."""
    if not isinstance(table, dict) or SHORT not in table:
        return table
    return {SHORT + name if name == SHORT else name: item for name, item in table.items()}


def _keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: {"secret": key} if isinstance(key, str) else key for name, key in value.items()}


class File(Table):
    """The whole of `routes.toml`."""

    server: ServerTable = ServerTable()
    defaults: DefaultsTable = DefaultsTable()
    surface: list[SurfaceTable] = []
    upstreams: dict[str, UpstreamTable] = {}
    routes: Annotated[dict[str, RouteTable], BeforeValidator(_routes)] = {}
    unrouted: dict[str, str] = {}
    keys: Annotated[dict[str, KeyTable], BeforeValidator(_keys)] = {}
    hooks: dict[str, HookTable] = {}
    log: LogTable = LogTable()


LATER: dict[type[Table], set[str]] = {
    File: {"store", "test", "prices", "metrics", "otel"},
    ServerTable: {"control"},
    KeyTable: {"limits"},
}
"""What the design has and this version refuses, table by table."""

BROUGHT: dict[str, str] = {
    "api_key": "credential",
    "apikey": "credential",
    "key": "credential",
    "token": "credential",
    "api_base": "base_url",
    "url": "base_url",
    "endpoint": "base_url",
    "provider": "upstream",
    "model_name": "model",
    "model_list": "routes",
    "providers": "upstreams",
    "timeouts": "timeout",
    "port": "listen",
    "host": "listen",
    "bind": "listen",
    "rename": "model",
    "virtual_keys": "keys",
}
"""The words that people bring along from elsewhere, and what they are called here."""
