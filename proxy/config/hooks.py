"""From `[hooks]` to hooks."""

import re
from hashlib import sha256

from proxy.config.draft import Draft
from proxy.config.problems import Path
from proxy.hooks import Hook
from proxy.routes import Route, RouteTable
from proxy.surfaces import Surface

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def hooks_of(draft: Draft, routes: RouteTable, surfaces: tuple[Surface, ...]) -> dict[str, Hook]:
    """Return every hook of *draft*."""
    open_somewhere = any(surface.auth == "none" and not surface.exposed for surface in surfaces)
    exposed = any(surface.exposed for surface in surfaces)
    hooks: dict[str, Hook] = {}
    for name, table in draft.file.hooks.items():
        path: Path = ("hooks", name)
        if not _NAME.fullmatch(name):
            draft.problem(path, "must be letters, digits, dashes and underscores: it is in a path")
        route = _route(draft, table.route, routes, (*path, "route"))
        secret = None
        if table.secret is not None:
            secret = draft.secret(table.secret, (*path, "secret"))
            text = secret.reveal()
            digest = sha256(text.encode("utf-8", "surrogateescape")).digest()
            draft.weigh((*path, "secret"), text, digest, exposed=exposed)
        elif not open_somewhere and draft.closed:
            continue  # it vanishes with the surfaces that it was open on
        elif not open_somewhere:
            draft.problem(path, "needs a `secret`: there is no surface without keys on loopback")
        if route is not None:
            hooks[name] = Hook(name, table.route, route, table.system, secret)
    return hooks


def _route(draft: Draft, model: str, routes: RouteTable, path: Path) -> Route | None:
    """Return the route of the *model* that a hook asks for."""
    route = routes.match(model)
    if route is None and not draft.is_told("routes", model):
        hint = draft.hint(path, model, [route.name for route in routes.routes[:200]])
        draft.problem(path, f"no route leads to {draft.quoted(path)}{hint}")
    elif route is not None and route.switch is not None:
        draft.problem(path, "is a route by header, which a hook has not")
    return route
