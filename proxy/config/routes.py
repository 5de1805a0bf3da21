"""From `[routes]` and `[unrouted]` to which upstream serves what."""

import re
from collections.abc import Set
from dataclasses import replace
from functools import partial

from proxy import dialects
from proxy.config.draft import FRAMING, TOKEN, Draft
from proxy.config.instead import MISPLACED, is_route
from proxy.config.problems import Path, dotted
from proxy.config.tables import RouteTable
from proxy.config.upstreams import Layer, Upstreams, said, timeouts_of
from proxy.credentials import is_presentable
from proxy.patterns import Pattern
from proxy.routes import Group, Route, Switch, Target, Unrouted, Upstream
from proxy.surfaces import is_unsafe

_UPSTREAMS_OWN = {
    "preset", "vars", "env", "optional", "credential", "form", "forms", "defaults", "headers",
    "paths", "speaks", "proxy", "ca", "client_certificate", "terminal", "billed", "passthrough", "forward",
}  # fmt: skip

_CARRY = {dialect.name for dialect in dialects.ENDPOINTS.values()} | {"gemini"}
"""The dialects that a route can be asked in."""

_KEPT = {"chat/completions", "messages", "realtime", "responses", "videos"}
"""Endpoints that carry a model where something is asked for, and none where it is fetched later."""


_DEEPEST = 50
_WAYS = {"upstream", "base_url", "model", "targets", "policy", "sticky", "fallback"}
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Routes:
    """The routes of *draft*, made one after the other."""

    def __init__(self, draft: Draft, upstreams: Upstreams) -> None:
        self._draft = draft
        self._upstreams = upstreams
        self._made: dict[str, Route | None] = {}
        self._making: list[str] = []

    def make(self) -> list[Route]:
        """Return every route."""
        if not self._draft.written.get("routes"):
            self._draft.problem(("routes",), "there is none: no model string leads anywhere")
        made = [self._route(name) for name in self._draft.file.routes]
        return [route for route in made if route is not None]

    def _route(self, name: str) -> Route | None:
        """Return the route *name*, made when it is first asked for, by itself or by another one."""
        if name in self._made:
            return self._made[name]
        if name in self._making:
            circle = " → ".join([*self._making[self._making.index(name) :], name])
            self._draft.problem(("routes", name), f"leads back to itself: {circle}")
            return None
        if len(self._making) >= _DEEPEST:
            self._draft.problem(("routes", name), f"is reached through over {_DEEPEST} others")
            return None
        self._making.append(name)
        route = self._build(name)
        self._making.pop()
        self._made[name] = route
        return route

    def _build(self, name: str) -> Route | None:
        path: Path = ("routes", name)
        self._draft.check_pattern(name, path)
        table = self._draft.file.routes[name]
        switch = None
        if table.short is not None:
            groups = self._place(name, table.short, RouteTable(), path, alias=True)
        elif table.header is not None or table.to:
            switch = self._switch(name, table, path)
            groups = _all(switch)
        else:
            groups = self._groups(name, table, path)
        if not groups:
            return None
        pattern = Pattern.parse(name)
        other = self._meant(name, table)
        if other is not None:
            if len(other.via) >= _DEEPEST - 1:
                self._draft.problem(path, f"is an alias through over {_DEEPEST} routes")
                return None
            via = (other.name, *other.via)
            if other.switch is not None:
                switch = other.switch.through(partial(_through, other, other.name))
                groups = _all(switch)
            return replace(
                other,
                name=name,
                pattern=pattern,
                groups=groups,
                listed=(),
                via=via,
                switch=switch,
            )
        keepalive = self._draft.file.defaults.keepalive
        if "keepalive" in table.model_fields_set:
            keepalive = table.keepalive
        return Route(
            name=name,
            pattern=pattern,
            groups=groups,
            listed=self._listed(name, pattern, table, path),
            on_context_length=table.on_context_length,
            peek=table.peek,
            comment_after=keepalive,
            switch=switch,
        )

    def _meant(self, name: str, table: RouteTable) -> Route | None:
        """Return the route that *name*, whose *table* it is, is an alias of."""
        to = table.short
        return self._made.get(to) if to is not None and self._is_route(name, to) else None

    def _is_route(self, name: str, to: str) -> bool:
        """Return whether *to*, in the route *name*, is meant to be another route: its own name, where
        it has a slash, is the upstream's and the model's.
        """
        return to in self._draft.file.routes and not (to == name and "/" in to)

    def _place(
        self, name: str, to: str, table: RouteTable, path: Path, *, alias: bool = False
    ) -> tuple[Group, ...]:
        """Return where *to* leads, which is written at *path* in the route *name*: through all the
        groups of another route, or to an upstream. Only an *alias* may lead to one by header.
        """
        if self._is_route(name, to):
            return self._lead(to, path, alias=alias)
        upstream_name, slash, model = to.partition("/")
        upstream = self._upstreams.find(upstream_name) if slash and model else None
        if upstream is not None:
            return (Group((self._target(name, path, upstream, model, table),)),)
        told = model and self._draft.is_told("upstreams", upstream_name)
        if not told and not self._draft.is_told("routes", to):
            self._nowhere(to, path)
        return ()

    def _lead(self, to: str, path: Path, *, alias: bool) -> tuple[Group, ...]:
        """Return where the other route *to* leads."""
        other = self._route(to)
        if other is None:
            return ()
        if other.pattern.prefix:
            self._draft.problem(path, f'"{to}" is a pattern; {self._instead(other, None)}')
            return ()
        if other.switch is not None and not alias:
            self._draft.problem(path, f'"{to}" goes by a header; name one place')
            return ()
        return tuple(_through(other, to, group) for group in other.groups)

    def _nowhere(self, to: str, path: Path) -> None:
        """Say of *to*, which leads nowhere, what may have been meant."""
        draft, (_, slash, model) = self._draft, to.partition("/")
        known = [f"{upstream}/{model}" for upstream in self._upstreams.known()]
        hint = draft.hint(path, to, known if slash else [*draft.file.routes][:200])
        shown, pattern = draft.quoted(path), self._matching(to)
        if pattern is not None and (pattern.pattern.literal or not hint):
            asked = to if draft.at(path) == to else None  # what a variable holds is not told
            which = f'has no line of its own: only "{pattern.name}" matches it'
            draft.problem(path, f"{shown} {which}; {self._instead(pattern, asked)}")
        else:
            draft.problem(path, f"{shown} is neither a route nor `upstream/model`{hint}")

    def _matching(self, asked: str) -> Route | None:
        """Return the route whose pattern is the longest that matches *asked*, if it can be told."""
        patterns = [Pattern.parse(name) for name in self._draft.file.routes if name.endswith("*")]
        fitting = [pattern for pattern in patterns if pattern.matches(asked)]
        if not fitting:
            return None
        name = max(fitting, key=lambda pattern: len(pattern.literal)).literal + "*"
        return None if name in self._making else self._route(name)

    def _instead(self, pattern: Route, asked: str | None) -> str:
        """Say what to write in the place of what leads to *pattern*: for the model *asked*, if it is known."""
        target = pattern.first
        if target.upstream.name not in self._upstreams.known():  # it stands in the route itself
            return "give the model a line of its own, with that `base_url`"
        model = "MODEL" if asked is None else pattern.model_sent(target, asked)
        return f'write "{target.upstream.name}/{model}", the place itself'

    def _switch(self, name: str, table: RouteTable, path: Path) -> Switch:
        """Return where the route *name* leads by the value of a header."""
        draft = self._draft
        self._refuse(_WAYS, table, path, "says where to go; here a header does: name it under `to`")
        self._refuse(_UPSTREAMS_OWN, table, path, "belongs to the upstreams that `to` leads to")
        if not table.to:
            draft.problem(
                path, "needs a table `to`: the values of the header, and where each leads"
            )
        header = table.header or ""
        if not TOKEN.fullmatch(header) or header.lower() in FRAMING:
            draft.problem((*path, "header"), "is not the name of a header")
        for field, code in (("missing", table.missing), ("unknown", table.unknown)):
            if not _CODE.fullmatch(code):
                draft.problem(
                    (*path, field), "must be a word of letters, digits, `_`, `-` and dots"
                )
        to: dict[bytes, tuple[Group, ...]] = {}
        for value, place in table.to.items():
            here: Path = (*path, "to", value)
            if not value or value != value.strip() or not is_presentable(value):
                draft.problem(here, "is not a value that a header can have")
            to[value.encode("utf-8", "replace")] = self._place(name, place, table, here)
        return Switch(header, table.missing, table.unknown, to)

    def _groups(self, name: str, table: RouteTable, path: Path) -> tuple[Group, ...]:
        """Return where the route *name* leads that is written as a table."""
        draft = self._draft
        self._refuse({"missing", "unknown"}, table, path, "goes with a `header`")
        ways = [table.base_url, table.upstream, table.targets or None]
        if sum(way is not None for way in ways) > 1:
            draft.problem(path, "has more than one of `upstream`, `base_url` and `targets`")
        groups: list[Group] = []
        if table.targets:
            groups += self._spread(name, table, path)
        else:
            several = "says which of several `targets`; there are none"
            self._refuse({"policy", "sticky"}, table, path, several)
            upstream = self._upstream(name, table, path)
            if upstream is not None:
                groups.append(Group((self._target(name, path, upstream, table.model, table),)))
        for index, to in enumerate(table.fallback):
            listed = isinstance(draft.at((*path, "fallback")), list)
            here: Path = (*path, "fallback", index) if listed else (*path, "fallback")
            if to == name and self._is_route(name, to):
                draft.problem(here, "leads back to itself")
            else:
                groups += self._place(name, to, table, here)
        self._check_shared(groups, path)
        return tuple(groups)

    def _spread(self, name: str, table: RouteTable, path: Path) -> list[Group]:
        """Return the group of the `targets` of the route *name*."""
        draft = self._draft
        if table.model is not None:
            draft.problem((*path, "model"), "belongs into each of the `targets`, behind its slash")
        self._refuse(_UPSTREAMS_OWN, table, path, "belongs to the upstreams of the `targets`")
        targets: list[Target] = []
        idle: list[Target] = []
        for index, one in enumerate(table.targets):
            at: Path = (*path, "targets", index)
            here = at if isinstance(draft.at(at), str) else (*at, "to")
            places = self._place(name, one.to, table, here)
            if len(places) > 1 or (places and len(places[0].targets) > 1):
                draft.problem(here, "is a route with several targets; name one place")
            elif places:
                target = replace(places[0].targets[0], weight=one.weight)
                (targets if one.weight else idle).append(target)
        if idle and not targets:
            draft.problem((*path, "targets"), "have all the weight 0: none of them gets anything")
        sticky = self._sticky(table, (*path, "sticky"))
        group = Group(tuple(targets), table.policy or "ordered", sticky, tuple(idle))
        return [group] if targets else []

    def _sticky(self, table: RouteTable, path: Path) -> bytes | None:
        """Return the header whose value sends a request where the last with the same went."""
        if table.sticky is None:
            return None
        if table.policy != "weighted":
            self._draft.problem(path, 'goes with `policy = "weighted"`')
        if not TOKEN.fullmatch(table.sticky):
            self._draft.problem(path, "is not the name of a header")
        return table.sticky.lower().encode("utf-8", "replace")

    def _refuse(self, fields: Set[str], table: RouteTable, path: Path, why: str) -> None:
        """Say of each of *fields* that *table* has *why* it is out of place."""
        for field in sorted(fields & table.model_fields_set):
            self._draft.problem((*path, field), why)

    def _upstream(self, name: str, table: RouteTable, path: Path) -> Upstream | None:
        """Return the one upstream of a route that is written as a table."""
        draft = self._draft
        if table.base_url is not None:
            return self._upstreams.make(name, table, path, inline=True)
        if table.upstream is None:
            draft.problem(path, "needs an `upstream`, a `base_url` or `targets`")
            return None
        where = dotted(("upstreams", table.upstream))
        own = f"belongs to the upstream: set it in [{where}]"
        self._refuse(_UPSTREAMS_OWN, table, path, own)
        upstream = self._upstreams.find(table.upstream)
        if upstream is None and not draft.is_told("upstreams", table.upstream):
            here = (*path, "upstream")
            hint = draft.hint(here, table.upstream, self._upstreams.known())
            draft.problem(here, f"there is no upstream {draft.quoted(here)}{hint}")
        return upstream

    def _check_shared(self, groups: list[Group], path: Path) -> None:
        """Check that all the places of a chain have one dialect in common that carries a model."""
        if sum(len(group.targets) for group in groups) < 2:
            return
        spoken = [
            _CARRY & set(target.upstream.spoken)
            for group in groups
            for target in group.targets
            if target.upstream.spoken is not None and not target.upstream.inferred
        ]
        if spoken and not set.intersection(*spoken):
            self._draft.problem(path, "leads to upstreams that have no dialect in common")

    def _target(
        self, name: str, path: Path, upstream: Upstream, model: str | None, table: RouteTable
    ) -> Target:
        """Return the target *model* at *upstream*, with what *table*, the route *name*, says of it."""
        draft = self._draft
        where = (*path, "model") if table.model is not None and len(path) == 2 else path
        if model is not None and model.count("*") > Pattern.parse(name).prefix:
            draft.problem(
                where, "`*` in a model stands, once, for what the route's own `*` matched"
            )
        if model == "":
            draft.problem(where, "must not be empty")
        own = None if table.base_url is not None else upstream.name
        layers: list[Layer] = [
            *self._upstreams.layers(own),
            (dotted(("routes", name)), table.timeout),
        ]
        timeouts, origins = timeouts_of(layers)
        retry = replace(upstream.retry, **said(table.retry))
        return Target(upstream, model, 1.0, timeouts, retry, origins)

    def _listed(
        self, name: str, pattern: Pattern, table: RouteTable, path: Path
    ) -> tuple[str, ...]:
        listed = []
        for index, shown in enumerate(table.list_):
            if "*" in shown or not shown or (not pattern.prefix and shown != name):
                self._draft.problem(
                    (*path, "list", index), "must be a name that the route's `*` matches"
                )
            listed.append(shown if pattern.matches(shown) else pattern.literal + shown)
        return tuple(listed)


def _through(route: Route, asked: str, group: Group) -> Group:
    """Return *group* of *route* as another route sees it, which asks for *asked* there."""
    targets = [replace(one, model=route.model_sent(one, asked)) for one in group.targets]
    return replace(group, targets=tuple(targets))


def _all(switch: Switch) -> tuple[Group, ...]:
    return tuple(group for groups in switch.to.values() for group in groups)


def _is_path(text: str) -> bool:
    """Return whether *text* is a path below a base path, without query."""
    parts = text.split("/")  # none of which is empty
    clean = text.isprintable() and not is_unsafe(text)
    return all(parts) and clean and not any(sign in text for sign in "*?#")


def unrouted_of(draft: Draft, upstreams: Upstreams) -> Unrouted:
    """Return which upstream serves which path that carries no model."""
    made: dict[str, Upstream] = {}
    for prefix, to in draft.file.unrouted.items():
        path: Path = ("unrouted", prefix)
        upstream = upstreams.find(to)
        if upstream is None:
            if not draft.is_told("upstreams", to):
                hint = draft.hint(path, to, upstreams.known())
                if is_route(draft.at(path), upstreams.known()):
                    hint = f"; it {MISPLACED}"
                draft.problem(path, f"there is no upstream {draft.quoted(path)}{hint}")
            continue
        if prefix in dialects.ENDPOINTS and prefix not in _KEPT:
            draft.problem(path, "carries a model: it is [routes] that say where it goes")
        elif prefix != "*" and not _is_path(prefix):
            draft.problem(path, 'must be a path below the base path, such as "files", or "*"')
        made[prefix] = upstream
    return Unrouted(made)
