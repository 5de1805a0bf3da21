"""What a caller may see: which models, upstreams and names of keys, in lists, pages, `/status` and hints alike."""

from dataclasses import dataclass
from functools import cached_property

from proxy.keys import Key
from proxy.patterns import Pattern
from proxy.routes import Route, RouteTable
from proxy.surfaces import Surface

_ALL = (Pattern("", True),)


@dataclass(frozen=True)
class Sight:
    """What is shown to whom asks with *key* on *surface*: all, where neither is for some models only; else
    the models that both are for, the upstreams that those lead to by *routes*, and its own key.
    """

    surface: Surface | None = None
    key: Key | None = None
    routes: RouteTable | None = None

    @property
    def whole(self) -> bool:
        """Return whether there is nothing that is not shown."""
        return self._limits == (None, None)

    def shows(self, model: str | None) -> bool:
        """Return whether the *model*, or the route of that name, is shown."""
        if model is None:
            return False
        if self.surface is not None and not self.surface.shows(model):
            return False
        return self.key is None or self.key.may_ask(model)

    def sees(self, upstream: str | None) -> bool:
        """Return whether the *upstream* is shown."""
        return self.whole or upstream in self._upstreams

    def names(self, key: str | None) -> bool:
        """Return whether the name of the *key* is shown: its own; the others' to who sees all, and has
        presented a key itself, or sits at this machine.
        """
        if self.key is not None and self.key.name == key:
            return True
        here = self.surface is None or all(one.loopback for one in self.surface.listen)
        return self.whole and (self.key is not None or here)

    def models(self) -> dict[str, Route]:
        """Return the routes of all names that are shown, in the order of the file: where a name stands in a
        pattern's list and is a route of its own, what it leads to counts.
        """
        routes = self.routes or RouteTable(())
        names = dict.fromkeys(name for route in routes.routes for name in routes.names(route))
        found = {name: routes.match(name) for name in names if self.shows(name)}
        return {name: route for name, route in found.items() if route is not None}

    @property
    def _limits(self) -> tuple[tuple[Pattern, ...] | None, tuple[Pattern, ...] | None]:
        return (
            None if self.surface is None else self.surface.routes,
            None if self.key is None else self.key.models,
        )

    @cached_property
    def _upstreams(self) -> set[str]:
        here, theirs = (_ALL if limit is None else limit for limit in self._limits)
        both = [one.meet(other) for one in here for other in theirs]
        routes = () if self.routes is None else self.routes.reached(one for one in both if one)
        return {target.upstream.name for route in routes for target in route.targets()}
