"""Places that a route names and nobody can ever be sent to: what `check` notes, and hinders nobody."""

from collections.abc import Iterator, Sequence

from proxy import dialects
from proxy.dialects import GEMINI, Dialect
from proxy.routes import Route, Target
from proxy.surfaces import Surface


def never_asked(route: Route, surfaces: Sequence[Surface], *, hooked: bool) -> Iterator[str]:
    """Yield, for each place of *route* that can never be asked, which it is, and why. *hooked*: there are
    hooks, whose requests of our own carry nobody's credential but ours.
    """
    if route.via:
        return  # it is told of the route that is meant
    lists = [route.groups] if route.switch is None else [*route.switch.to.values()]
    served = _served(surfaces)
    through = not hooked and all(surface.auth == "passthrough" for surface in surfaces)
    for groups in filter(None, lists):  # of one that leads nowhere more is told elsewhere
        seen: set[tuple[str, str | None]] = set()
        first = groups[0].targets[0]
        for group in groups:
            places = [(target.upstream.name, target.model) for target in group.targets]
            for target, place in zip(group.targets, places, strict=True):
                beyond = through and target is not first
                why = _why(target, served, seen=place in seen, beyond=beyond)
                if why is not None:
                    yield f"{_shown(target)} can never be asked: {why}"
                if group.policy == "ordered":
                    seen.add(place)
            seen.update(places)


def _why(target: Target, served: Sequence[Dialect], *, seen: bool, beyond: bool) -> str | None:
    """Say why *target* is never asked, None where it may be."""
    if seen:
        return "it stands further ahead already, and is asked once"
    if not any(target.upstream.speaks(dialect) for dialect in served):
        return "no surface has an endpoint that it speaks"
    return "callers' own credentials go to the first place only" if beyond else None


def _served(surfaces: Sequence[Surface]) -> list[Dialect]:
    """Return the dialects of all endpoints that carry a model and that a surface has."""
    endpoints = dialects.ENDPOINTS.items()
    found = [one for suffix, one in endpoints if any(each.serves(suffix) for each in surfaces)]
    native = any(surface.endpoints is None or "gemini" in surface.endpoints for surface in surfaces)
    return [*found, GEMINI] if native else found


def _shown(target: Target) -> str:
    """Return *target* as the file names places."""
    return (
        f'"{target.upstream.name}/{target.model}"' if target.model else f'"{target.upstream.name}"'
    )
