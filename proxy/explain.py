"""What would happen to a request, said before it is sent: from the same tables the hot path uses."""

from dataclasses import dataclass

from proxy import dialects
from proxy.config import Snapshot
from proxy.config.snapshot import TIMEOUT_NAMES
from proxy.outbound import address
from proxy.routes import Route
from proxy.surfaces import Surface


@dataclass(frozen=True, slots=True)
class Explanation:
    """The road of one model string, as pairs of a label and a text, and whether it leads anywhere."""

    lines: tuple[tuple[str, str], ...]
    works: bool


def explain(snapshot: Snapshot, surface: Surface, model: str, path: str) -> Explanation:
    """Say what happens to a request for *model* at *path* of *surface*. Secrets are masked."""
    lines = [("model", model), ("surface", f"{surface.name}, auth {surface.auth}")]
    located = surface.locate(path)
    if located is not None and located.dialect is None:
        lines.append(("path", f"{path}: the list of models, answered here"))
        return Explanation(tuple(lines), works=True)
    if located is None or located.dialect is None:
        known = ", ".join(sorted(dialects.ENDPOINTS))
        lines.append(("path", f"{path} → 404 not_found; the endpoints are {known}"))
        return Explanation(tuple(lines), works=False)
    dialect, suffix = located.dialect, located.suffix
    lines.append(("path", f"{path}, dialect {dialect.name}"))
    route = snapshot.routes.match(model)
    if route is None or not surface.shows(model):
        near = snapshot.routes.nearest(model, surface.shows)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        why = "is not visible on this surface" if route else "no route matches"
        lines.append(("route", f"404 model_not_found: {why}{hint}"))
        return Explanation(tuple(lines), works=False)
    lines += _route(snapshot, route, model)
    upstream = route.upstream
    passthrough = surface.auth == "passthrough"
    if passthrough and not upstream.passthrough:
        why = f"{upstream.name} does not say `passthrough = true`"
        lines.append(("upstream", f"403 model_not_allowed: {why}"))
        return Explanation(tuple(lines), works=False)
    to = address(upstream, dialect, suffix, "")
    lines.append(("upstream", upstream.name))
    lines.append(("url", f"POST {to.base.url(suffix)}"))
    if to.base.origin.proxy is not None:
        lines.append(("proxy", to.base.origin.proxy.rpartition("@")[2]))
    lines.append(("upstream model", route.model_sent(model)))
    if passthrough:
        lines.append(("header", "the caller's own credential, as it came"))
    elif to.credential is not None:
        source = to.credential.secret.source
        lines.append(("header", f"{to.credential.masked()}  (from {source})"))
    for name, value in upstream.headers:
        shown = value.decode("latin-1") if name in upstream.public else "…"
        lines.append(("header", f"{name.decode()}: {shown}  (set for {upstream.name})"))
    for name, value in upstream.defaults.get(dialect.name, ()):
        lines.append(
            ("header", f"{name.decode()}: {value.decode()}  (preset, if the client sends none)")
        )
    for timeout in TIMEOUT_NAMES:
        seconds = getattr(route.timeouts, timeout)
        limit = "none" if seconds is None else f"{seconds:g} s"
        lines.append(("timeout", f"{timeout} {limit}  ({snapshot.origins[route.name][timeout]})"))
    dormant = upstream.missing is not None and not passthrough
    if dormant:
        lines.append(("dormant", f"503 not_configured: {upstream.missing} is not set"))
    return Explanation(tuple(lines), works=not dormant)


def _route(snapshot: Snapshot, route: Route, model: str) -> list[tuple[str, str]]:
    kind = "longest prefix" if route.pattern.prefix else "exact name"
    via = "".join(f" → {name}" for name in route.via)
    others = [other.name for other in snapshot.routes.candidates(model) if other is not route]
    lines = [("route", f'"{route.name}"{via}, {kind}')]
    if others:
        lines.append(("rejected", ", ".join(f'"{name}"' for name in others) + " (less exact)"))
    return lines
