"""Routes: which upstream serves which model string, and under which name.

Match: the exact name, else the longest literal prefix before a final `*`. Case-sensitive, and the
slash is part of the name.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal, overload

from proxy.credentials import Credential
from proxy.dialects import GEMINI, Dialect
from proxy.errors import (
    ENDPOINT_NOT_SUPPORTED,
    HEADER_MISSING,
    HEADER_UNKNOWN,
    NOT_CONFIGURED,
    ProxyError,
    printable,
)
from proxy.headers import Pair
from proxy.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go: what two upstreams must have in common to be the same place."""

    scheme: str
    host: str
    port: int
    proxy: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: tuple[str, str] | None = None
    """The files of the certificate that we show, and of its key."""
    authority: str = field(init=False, compare=False, repr=False)
    """The `Host` header's value (RFC 9110 section 7.2)."""
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}.get(self.scheme)
        authority = host if self.port == usual else f"{host}:{self.port}"
        object.__setattr__(self, "authority", authority)
        place = self.scheme, self.host, self.port, self.proxy, self.ca, self.certificate
        object.__setattr__(self, "_hash", hash(place))

    def __hash__(self) -> int:
        return self._hash  # it is asked for with each request


@dataclass(frozen=True, slots=True)
class Base:
    """A base URL: an *origin*, and the *path* that precedes `/chat/completions`."""

    origin: Origin
    path: str

    def url(self, suffix: str) -> str:
        """Return the URL of *suffix* below this base, for people to read."""
        return f"{self.origin.scheme}://{self.origin.authority}{self.path}/{suffix}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each phase may take, in seconds; None is for ever."""

    connect: float | None = 5.0
    first_byte: float | None = 600.0
    idle: float | None = 600.0
    write: float | None = 60.0
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """What may be tried again: at most *attempts* times at one place (a target, and one credential), and
    as often in all where it may have been billed; nothing is begun after *deadline* seconds, waits
    included.

    *next*: whether another place is asked at all. *stale*: a request that was sent on a used
    connection which died at once. *failover_5xx*: one that another upstream answered with 500, 502, 504
    or 520 to 524. *ambiguous*: one that may have been executed, and billed. *also*: further statuses
    after which another place is asked.
    """

    attempts: int = 3
    deadline: float | None = 600.0
    stale: bool = True
    failover_5xx: bool = True
    ambiguous: bool = False
    next: bool = True
    also: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Upstream:
    """A base URL, the credentials that are presented there, and policy.

    Of several *credentials* one rests while the others work. *defaults* are the headers a dialect
    needs where the client sent none; *headers* are always set. *public* are those of both whose
    value the file or a preset states, so that it is no secret.
    *paths* maps a prefix of the path below the base path to another base, longest first; *dated* is the
    one, of Azure's, where requests with an `api-version` go.
    *spoken* are the dialects that it is known to speak, None where nothing is known, and *inferred*
    says that this rests on less than its documentation. *forward* names, in lower case, the
    headers that chose a route and go there all the same. *unplaced* names the variable that its URL
    lacks, *missing* the one that its credential lacks. *timeouts* and *retry* hold where no route
    says more.
    """

    name: str
    base: Base
    credentials: tuple[Credential, ...] = ()
    headers: tuple[Pair, ...] = field(default=(), repr=False)
    public: frozenset[Pair] = field(default=frozenset(), repr=False)
    defaults: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict, repr=False)
    paths: tuple[tuple[str, Base], ...] = ()
    dated: Base | None = None
    spoken: tuple[str, ...] | None = None
    inferred: bool = False
    terminal: str = "auto"
    billed: bool = True
    passthrough: bool = False
    forward: frozenset[bytes] = frozenset()
    unplaced: str | None = None
    missing: str | None = None
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()

    def base_of(self, dialect: Dialect, suffix: str) -> Base:
        """Return the base that *suffix*, in *dialect*, belongs below: the longest of `paths` that
        it begins with, where Gemini's own paths go by the name `gemini`; else the base.
        """
        place = dialect.name if dialect is GEMINI else suffix
        for prefix, base in self.paths:
            if place == prefix or place.startswith(prefix + "/"):
                return base
        return self.base

    def speaks(self, dialect: Dialect) -> bool:
        """Return whether a request in *dialect* may be sent there.

        Of a vendor whose list is inferred, only the big forms are refused: where it may just as
        well speak a small one, it is the vendor that should say no.
        """
        if self.spoken is None or dialect.name in self.spoken:
            return True
        return self.inferred and not dialect.conversation

    def lacks(self, *, passthrough: bool) -> str | None:
        """Return the variable without which nothing can be sent there, if there is one."""
        return self.unplaced or (None if passthrough else self.missing)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One place that a route leads to, and what holds there.

    *model* is the name sent: None for the asked-for string, less the upstream's own `name/` where the
    route's own pattern begins with it, else a text in which `*` stands for what the route's own `*` matched. *origins* says where each of
    the *timeouts* was set.
    """

    upstream: Upstream
    model: str | None = None
    weight: float = 1.0
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)


Policy = Literal["ordered", "weighted", "least-busy", "fastest"]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Targets of which any will do, in the order that *policy* says; *sticky* names a header, in lower
    case: requests with the same value of it go to the same target. *idle* are those of weight 0, which
    get nothing new.
    """

    targets: tuple[Target, ...]
    policy: Policy = "ordered"
    sticky: bytes | None = None
    idle: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Switch:
    """A request header that chooses where a route leads: *name* as it is written, its case does not
    matter; *to* the groups by its value, whose case does. *missing* and *unknown* are the codes of
    the errors for a request without it, and for a value that leads nowhere.
    """

    name: str
    missing: str
    unknown: str
    to: Mapping[bytes, tuple[Group, ...]]

    def choose(self, headers: Iterable[Pair]) -> tuple[Group, ...]:
        """Return where a request with *headers* goes. Raises `ProxyError`."""
        name = self.name.lower().encode("ascii")
        values = [value for header, value in headers if header.lower() == name]
        if not values or not values[0]:
            kind = replace(HEADER_MISSING, code=self.missing)
            raise ProxyError(kind, f"The header {self.name} is missing.", param=self.name)
        groups = self.to.get(values[0]) if len(set(values)) == 1 else None
        if groups is None:
            kind = replace(HEADER_UNKNOWN, code=self.unknown)
            shown = printable(values[0].decode("latin-1"))
            raise ProxyError(kind, f'Nothing is called "{shown}" in {self.name}.', param=self.name)
        return groups

    def through(self, change: Callable[[Group], Group]) -> "Switch":
        """Return this with each group *change*d."""
        to = {value: tuple(map(change, groups)) for value, groups in self.to.items()}
        return replace(self, to=to)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One line of `[routes]`: *name* as it is written, and where it leads.

    *groups* are tried in their order: the route's own targets, then what it falls back to. Where a
    *switch* chooses among several lists of them, they are all of these.
    *listed* are the names that `/v1/models` shows beside the route's own. *via* are the routes it
    is an alias through. *on_context_length* goes on after a 400 that says the context is too long;
    *peek* looks at the first event of a stream before it passes, and goes on where that is an
    error. *comment_after* is how many seconds a stream may be silent before a comment is put in.
    """

    name: str
    pattern: Pattern
    groups: tuple[Group, ...]
    listed: tuple[str, ...] = ()
    via: tuple[str, ...] = ()
    on_context_length: bool = False
    peek: bool = False
    comment_after: float | None = None
    switch: Switch | None = None

    @property
    def first(self) -> Target:
        """Return the target that is tried first, if all are well."""
        return self.groups[0].targets[0]

    def targets(self) -> Iterator[Target]:
        """Yield every target, in the order of the file."""
        for group in self.groups:
            yield from group.targets

    @overload
    def model_sent(self, target: Target, asked: str) -> str: ...

    @overload
    def model_sent(self, target: Target, asked: None) -> None: ...

    def model_sent(self, target: Target, asked: str | None) -> str | None:
        """Return what *target* is asked for when a client asks for *asked*. Who names no model, and is not
        led to `default`, leaves it to the upstream: nothing is put in.
        """
        if asked is None:
            return None
        if target.model is None:
            own = target.upstream.name + "/"
            return asked[len(own) :] if self.pattern.literal.startswith(own) else asked
        if not self.pattern.prefix:
            return target.model
        return target.model.replace("*", asked[len(self.pattern.literal) :], 1)


class Unrouted:
    """Which upstream serves a path that carries no model: the longest prefix, cut at a slash, says."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._anything = upstreams.get("*")
        self.upstreams = dict(upstreams)

    def names(self) -> dict[str, Upstream]:
        """Return every upstream that serves such paths, by its own name."""
        return {upstream.name: upstream for upstream in self.upstreams.values()}

    def match(self, base: str, suffix: str) -> Upstream | None:
        """Return the upstream of *suffix*, which follows the base path *base*.

        `*` is for what stands below a base path: not for every path there is, of scanners say.
        """
        path = suffix
        while path:
            upstream = self.upstreams.get(path) if path != "*" else None
            if upstream is not None:
                return upstream
            path = path.rpartition("/")[0]
        return self._anything if base and suffix else None


class RouteTable:
    """All routes of a snapshot. Ten thousand cost per lookup what ten do."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact = {r.pattern.literal: r for r in self.routes if not r.pattern.prefix}
        self._prefixed = {r.pattern.literal: r for r in self.routes if r.pattern.prefix}
        self._lengths = sorted({len(literal) for literal in self._prefixed}, reverse=True)
        names = sorted({name for route in self.routes for name in self.names(route)})
        self._sorted = names
        self._by_ending = sorted(name[::-1] for name in names)

    def match(self, model: str) -> Route | None:
        """Return the route of *model*: exact name, else longest literal prefix."""
        return self._exact.get(model) or self._of_prefix(model)

    def _of_prefix(self, model: str) -> Route | None:
        for length in self._lengths:
            if length <= len(model):
                route = self._prefixed.get(model[:length])
                if route is not None:
                    return route
        return None

    def reached(self, patterns: Iterable[Pattern]) -> set[Route]:
        """Return the routes that some name which one of *patterns* matches leads to."""
        found: set[Route | None] = set()
        for pattern in patterns:
            if pattern.prefix:
                within = pattern.literal
                found |= {one for one in self.routes if one.pattern.literal.startswith(within)}
                found.add(self._of_prefix(within))
            else:
                found.add(self.match(pattern.literal))
        return {route for route in found if route is not None}

    def unnamed(self) -> Route | None:
        """Return the route of a request that names no model: `default`, else what takes any name."""
        return self._exact.get("default") or self._prefixed.get("")

    def candidates(self, model: str) -> list[Route]:
        """Return every route that fits *model*, the one `match` picks first."""
        fitting = [route for route in self.routes if route.pattern.matches(model)]
        return sorted(fitting, key=lambda r: (r.pattern.prefix, -len(r.pattern.literal)))

    @staticmethod
    def names(route: Route) -> tuple[str, ...]:
        """Return the model names that *route* can be shown under; of a pattern, its `list`."""
        if route.pattern.prefix:
            return route.listed
        return (route.pattern.literal, *route.listed)

    def nearest(self, model: str, visible: Callable[[str], bool]) -> list[str]:
        """Return up to three *visible* names that *model* may have been meant to be.

        Only the neighbours of *model* in two sorted lists are compared, so that the work does not
        grow with the number of routes.
        """
        model = model[:128]
        near = _around(self._sorted, model)
        near += [name[::-1] for name in _around(self._by_ending, model[::-1])]
        near = [name for name in dict.fromkeys(near) if visible(name)]
        folded = {name.casefold(): name for name in near}
        close = get_close_matches(model.casefold(), folded, n=3, cutoff=0.5)
        return [folded[name] for name in close]


def _around(names: list[str], model: str, span: int = 16) -> list[str]:
    at = bisect_left(names, model)
    return names[max(0, at - span) : at + span]


def check_able(
    targets: Sequence[Target], dialect: Dialect | None, what: str, *, passthrough: bool
) -> None:
    """Refuse a request of *dialect*, None for one that carries no model, which none of *targets* can take:
    they do not speak it, or those that do lack something still. *what* leads there. Raises `ProxyError`.
    """
    able = [one for one in targets if dialect is None or one.upstream.speaks(dialect)]
    if not able:
        upstream = targets[0].upstream
        assert dialect is not None
        message = (
            f'The upstream "{upstream.name}" of the model "{what}" does not speak '
            f'"{dialect.name}". It speaks {", ".join(upstream.spoken or ())}.'
        )
        raise ProxyError(ENDPOINT_NOT_SUPPORTED, message)
    lacking = [target.upstream.lacks(passthrough=passthrough) for target in able]
    if None not in lacking:
        message = f'"{what}" is not configured: the environment variable {lacking[0]} is not set.'
        raise ProxyError(NOT_CONFIGURED, message)
