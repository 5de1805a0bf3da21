"""From `[routes]` and `[unrouted]` to which upstream serves what."""

from collections.abc import Mapping
from dataclasses import replace

from proxy import dialects
from proxy.config.draft import Draft
from proxy.config.problems import Path, dotted
from proxy.config.tables import RouteTable
from proxy.config.upstreams import Layer, Upstreams, timeouts_of
from proxy.patterns import Pattern
from proxy.routes import Route, Unrouted, Upstream
from proxy.surfaces import is_unsafe

_UPSTREAMS_OWN = {
    "preset", "vars", "env", "optional", "credential", "form", "forms", "defaults", "headers",
    "paths", "speaks", "proxy", "ca", "terminal", "billed", "passthrough",
}  # fmt: skip

_KEPT = {"chat/completions", "messages", "realtime", "responses", "videos"}
"""Endpoints that carry a model where something is asked for, and none where it is fetched later."""


class Routes:
    """The routes of *draft*, made one after the other; *origins* says where their timeouts were set."""

    def __init__(self, draft: Draft, upstreams: Upstreams) -> None:
        self._draft = draft
        self._upstreams = upstreams
        self.origins: dict[str, dict[str, str]] = {}

    def make(self) -> list[Route]:
        """Return every route."""
        if not self._draft.written.get("routes"):
            self._draft.problem(("routes",), "there is none: no model string leads anywhere")
        made: dict[str, Route | None] = {}
        for name in self._draft.file.routes:
            self._follow(name, made)
        in_order = (made[name] for name in self._draft.file.routes)
        return [route for route in in_order if route is not None]

    def _follow(self, name: str, made: dict[str, Route | None]) -> None:
        """Make the route *name*, and before it those that it is an alias through."""
        tables = self._draft.file.routes
        chain: list[str] = []
        while name not in made:
            if name in chain:
                circle = " → ".join([*chain[chain.index(name) :], name])
                self._draft.problem(("routes", name), f"leads back to itself: {circle}")
                made.update(dict.fromkeys(chain))
                return
            chain.append(name)
            to = tables[name].short
            if to is None or to not in tables or (to == name and "/" in to):
                made[name] = self._direct(name)
            else:
                name = to
        for alias in reversed(chain):
            if alias not in made:
                made[alias] = self._alias(alias, made)

    def _direct(self, name: str) -> Route | None:
        """Make a route that leads to an upstream itself."""
        path: Path = ("routes", name)
        self._draft.check_pattern(name, path)
        table = self._draft.file.routes[name]
        if table.short is None:
            return self._long(name, table, path)
        return self._short(name, table.short, path)

    def _alias(self, name: str, made: Mapping[str, Route | None]) -> Route | None:
        """Make a route that is another one's second name."""
        path: Path = ("routes", name)
        self._draft.check_pattern(name, path)
        to = self._draft.file.routes[name].short or ""
        target = made[to]
        if target is None:
            return None
        if target.pattern.prefix:
            self._draft.problem(path, f'"{to}" is a pattern; name a model that it matches')
            return None
        self.origins[name] = self.origins[to]
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
        draft = self._draft
        upstream_name, slash, model = to.partition("/")
        upstream = self._upstreams.find(upstream_name) if slash and model else None
        if upstream is not None:
            return self._finish(name, path, upstream, model, RouteTable())
        told = model and draft.is_told("upstreams", upstream_name)
        if not told and not draft.is_told("routes", to):
            known = [f"{upstream}/{model}" for upstream in self._upstreams.known()]
            hint = draft.hint(path, to, known if slash else [*draft.file.routes][:200])
            shown = draft.quoted(path)
            draft.problem(path, f"{shown} is neither a route nor `upstream/model`{hint}")
        return None

    def _long(self, name: str, table: RouteTable, path: Path) -> Route | None:
        """Make the route *name* that is written as a table."""
        draft = self._draft
        if table.base_url is not None:
            if table.upstream is not None:
                draft.problem(path, "has both `upstream` and `base_url`; one says where it goes")
            upstream = self._upstreams.make(name, table, path, inline=True)
        elif table.upstream is None:
            draft.problem(path, "needs an `upstream` or a `base_url`")
            return None
        else:
            for field in sorted(_UPSTREAMS_OWN & table.model_fields_set):
                where = dotted(("upstreams", table.upstream))
                draft.problem((*path, field), f"belongs to the upstream: set it in [{where}]")
            upstream = self._upstreams.find(table.upstream)
            if upstream is None and not draft.is_told("upstreams", table.upstream):
                here = (*path, "upstream")
                hint = draft.hint(here, table.upstream, self._upstreams.known())
                draft.problem(here, f"there is no upstream {draft.quoted(here)}{hint}")
        if upstream is None:
            return None
        return self._finish(name, path, upstream, table.model, table)

    def _finish(
        self, name: str, path: Path, upstream: Upstream, model: str | None, table: RouteTable
    ) -> Route:
        draft = self._draft
        pattern = Pattern.parse(name)
        where = (*path, "model") if table.model is not None else path
        if model is not None and model.count("*") > pattern.prefix:
            draft.problem(
                where, "`*` in a model stands, once, for what the route's own `*` matched"
            )
        if model == "":
            draft.problem(where, "must not be empty")
        listed = []
        for index, shown in enumerate(table.list_):
            if "*" in shown or not shown or (not pattern.prefix and shown != name):
                draft.problem((*path, "list", index), "must be a name that the route's `*` matches")
            listed.append(shown if pattern.matches(shown) else pattern.literal + shown)
        own = None if table.base_url is not None else upstream.name
        layers: list[Layer] = [*self._upstreams.layers(own), (dotted(path), table.timeout)]
        timeouts, self.origins[name] = timeouts_of(layers)
        return Route(name, pattern, upstream, model, timeouts, tuple(listed))


def unrouted_of(draft: Draft, upstreams: Upstreams) -> Unrouted:
    """Return which upstream serves which path that carries no model."""
    made: dict[str, Upstream] = {}
    for prefix, to in draft.file.unrouted.items():
        path: Path = ("unrouted", prefix)
        upstream = upstreams.find(to)
        if upstream is None:
            if not draft.is_told("upstreams", to):
                hint = draft.hint(path, to, upstreams.known())
                draft.problem(path, f"there is no upstream {draft.quoted(path)}{hint}")
            continue
        if prefix in dialects.ENDPOINTS and prefix not in _KEPT:
            draft.problem(path, "carries a model: it is [routes] that say where it goes")
        elif prefix != "*" and (
            not prefix
            or prefix.startswith("/")
            or prefix.endswith("/")
            or "*" in prefix
            or "//" in prefix
            or "?" in prefix
            or "#" in prefix
            or is_unsafe(prefix)
            or not prefix.isprintable()
        ):
            draft.problem(path, 'must be a path below the base path, such as "files", or "*"')
        made[prefix] = upstream
    return Unrouted(made)
