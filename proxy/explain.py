"""What would happen to a request, said before it is sent: from the same tables the hot path uses."""

from dataclasses import dataclass
from urllib.parse import unquote

from proxy import dialects
from proxy.body import BodyError
from proxy.clocks import bounds
from proxy.config import Snapshot
from proxy.config.snapshot import TIMEOUT_NAMES
from proxy.dialects import GEMINI, MODELS, REALTIME, Azure, Dialect
from proxy.errors import ProxyError
from proxy.headers import Pair
from proxy.outbound import address, from_azure
from proxy.routes import Base, Route, Target, Upstream
from proxy.surfaces import Located, Surface, is_unsafe
from proxy.target import (
    model_in_deployment,
    model_in_path,
    model_in_query,
    path_for,
    query_for,
    without_model,
)

Lines = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The road of one model string, as pairs of a label and a text, and whether it leads anywhere."""

    lines: tuple[tuple[str, str], ...]
    works: bool


def explain(
    snapshot: Snapshot,
    surface: Surface,
    model: str | None,
    path: str,
    headers: tuple[Pair, ...] = (),
) -> Explanation:
    """Say what happens to a request for *model* (None: it names none) at *path* of *surface*, with
    *headers* that may choose where it goes.

    Secrets are masked.
    """
    model = model or None  # as in a request
    lines: Lines = [] if model is None else [("model", model)]
    lines.append(("surface", f"{surface.name}, auth {surface.auth}"))
    path, _, query = path.partition("?")
    works = _explain(snapshot, surface, model, path, query, headers, lines)
    return Explanation(tuple(lines), works)


def _explain(
    snapshot: Snapshot,
    surface: Surface,
    model: str | None,
    path: str,
    query: str,
    headers: tuple[Pair, ...],
    lines: Lines,
) -> bool:
    """Add to *lines* what happens; return whether it leads anywhere."""
    if is_unsafe(path):
        lines.append(("path", f"{path} → 400 bad_request: it could mean another place"))
        return False
    located = surface.locate(path)
    if located is None or not located.suffix:
        return _nothing(path, lines)
    suffix, dialect = located.suffix, located.dialect
    if dialect is not None:
        lines.append(("path", f"{path}, dialect {dialect.name}"))
        try:
            model = model or _named(dialect, suffix, query, located.azure)
            if dialect is REALTIME and model is None and surface.serves(suffix):
                upstream = snapshot.unrouted.match(located.base, suffix)
                if upstream is not None:
                    return _kept(surface, located, path, query, upstream, lines, "WebSocket")
            if dialect.carries == "body" and query:
                query = without_model(query, model)
            return _routed(snapshot, surface, model, dialect, located, query, headers, lines)
        except BodyError as error:
            lines.append(("model", f"400 invalid_model: {error.message}"))
            return False
    if surface.models == "list" and (suffix == "models" or suffix.startswith("models/")):
        parts = query.split("&")
        asked = next((part for part in parts if part.startswith("upstream=")), None)
        if asked is None:
            lines.append(("path", f"{path}: the list of models, answered here"))
            return True
        parts.remove(asked)
        upstream = snapshot.upstreams.get(unquote(asked.removeprefix("upstream=")))
        return _kept(surface, located, path, "&".join(parts), upstream, lines)
    upstream = snapshot.unrouted.match(located.base, suffix) if surface.serves(suffix) else None
    if upstream is None:
        return _nothing(path, lines)
    return _kept(surface, located, path, query, upstream, lines)


def _named(dialect: Dialect, suffix: str, query: str, azure: Azure | None) -> str | None:
    """Return the model that the target itself names. Raises `BodyError`."""
    if azure is not None and azure.deployment is not None:
        return model_in_deployment(azure.deployment)
    if dialect is GEMINI:
        return model_in_path(suffix)
    return model_in_query(query) if dialect is REALTIME else None


def _nothing(path: str, lines: Lines) -> bool:
    known = ", ".join(sorted(dialects.ENDPOINTS))
    lines.append(("path", f"{path} → 404 not_found; the endpoints are {known}"))
    return False


def _kept(
    surface: Surface,
    located: Located,
    path: str,
    query: str,
    upstream: Upstream | None,
    lines: Lines,
    method: str = "any method",
) -> bool:
    """Say what happens to what carries no model."""
    dialect = dialects.family(located.suffix)
    lines.append(("path", f"{path}, carries no model, dialect {dialect.name}"))
    if upstream is None or surface.routes is not None:
        why = "there is no such upstream" if upstream is None else "the surface shows some models"
        lines.append(("upstream", f"404 not_found: {why}"))
        return False
    if dialect is MODELS and not upstream.speaks(dialect):
        why = f"{upstream.name} has no list of models"
        lines.append(("upstream", f"404 endpoint_not_supported: {why}"))
        return False
    lines.append(("keys", "those without a `models` list"))
    target = Target(upstream, timeouts=upstream.timeouts)
    base, suffix = None, located.suffix
    if located.azure is not None:
        base, suffix, query = from_azure(upstream, located.azure, dialect, suffix, query, None)
    return _sent(surface, target, dialect, method, suffix, query, lines, base)


def _routed(
    snapshot: Snapshot,
    surface: Surface,
    model: str | None,
    dialect: Dialect,
    located: Located,
    query: str,
    headers: tuple[Pair, ...],
    lines: Lines,
) -> bool:
    """Say what happens to what carries a model, or might."""
    unnamed = snapshot.routes.unnamed()
    route = unnamed if model is None else snapshot.routes.match(model)
    if model is None and route is not None and not route.pattern.prefix:
        model = route.name if surface.shows(route.name) else None
        route = route if model else None
    if model is None:
        if not _led(surface, route, lines):
            return False
    elif route is None or not surface.shows(model):
        near = snapshot.routes.nearest(model, surface.shows)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        why = "is not visible on this surface" if route else "no route matches"
        lines.append(("route", f"404 model_not_found: {why}{hint}"))
        return False
    assert route is not None
    lines += _route(snapshot, route, model)
    groups = route.groups
    if route.switch is not None:
        try:
            groups = route.switch.choose(headers)
        except ProxyError as error:
            lines.append(("header", f"{error.kind.status} {error.kind.code}: {error.message}"))
            values = ", ".join(value.decode("utf-8", "replace") for value in route.switch.to)
            lines.append(("header", f"{route.switch.name} may be {values}"))
            return False
        lines.append(("chosen", f"by the header {route.switch.name}"))
    targets = [target for group in groups for target in group.targets]
    targets = targets[: 1 if surface.auth == "passthrough" else None]
    if not any(target.upstream.speaks(dialect) for target in targets):
        upstream = targets[0].upstream
        spoken = ", ".join(upstream.spoken or ())
        lines.append(("upstream", f"404 endpoint_not_supported: {upstream.name} speaks {spoken}"))
        return False
    works = False
    for group in groups:
        if len(group.targets) > 1 and surface.auth != "passthrough":
            stick = f", sticky by {group.sticky.decode()}" if group.sticky else ""
            lines.append(("policy", f"{group.policy} among {len(group.targets)}{stick}"))
        for target in group.idle:
            place = f"{target.upstream.name}/{route.model_sent(target, model)}"
            lines.append(("idle", f"{place} gets nothing new: its weight is 0"))
        for target in group.targets:
            if target not in targets:
                continue
            if len(targets) > 1:
                lines.append(("place", f"{targets.index(target) + 1} of {len(targets)}"))
            placed = _placed(surface, route, target, model, dialect, located, query, lines)
            if placed:
                lines += _bounds(target, headers)
            works = placed or works
    return works


def _led(surface: Surface, route: Route | None, lines: Lines) -> bool:
    """Return whether *route* leads on *surface* what names no model, and whom."""
    if route is None:
        lines.append(
            ("route", "400 invalid_model: the request names none, and none is the default")
        )
        return False
    if not surface.shows_anything():
        lines.append(("route", "404 model_not_found: not every model is visible on this surface"))
        return False
    lines.append(("keys", "those without a `models` list, or with `*` in it"))
    return True


def _placed(
    surface: Surface,
    route: Route,
    target: Target,
    model: str | None,
    dialect: Dialect,
    located: Located,
    query: str,
    lines: Lines,
) -> bool:
    """Say what is sent to *target*, one of the places that *route* leads to."""
    sent, method = route.model_sent(target, model), "POST"
    suffix, base = located.suffix, None
    lines.append(("upstream model", "none, as asked" if sent is None else sent))
    if not target.upstream.speaks(dialect):
        lines.append(("skipped", f"{target.upstream.name} does not speak {dialect.name}"))
        return False
    if dialect is GEMINI and sent is not None:
        suffix = path_for(suffix, sent)
    elif dialect is REALTIME:
        method = "WebSocket"
        query = query if sent is None else query_for(query, sent)
    if located.azure is not None:
        base, suffix, query = from_azure(
            target.upstream, located.azure, dialect, suffix, query, sent
        )
    return _sent(surface, target, dialect, method, suffix, query, lines, base)


def _bounds(target: Target, headers: tuple[Pair, ...]) -> Lines:
    """Say what may follow when *target* fails, and what ends it, of all that bounds the wait for its answer:
    what the SDK says among it, if *headers* have it.
    """
    retry = target.retry
    tries = "1 try" if retry.attempts == 1 else f"{retry.attempts} tries"
    said = f"{tries} at a place, and no more in all that may be billed"
    if not retry.next:
        said += "; no other place"
    elif retry.deadline is not None:
        said += f"; nothing is begun after {retry.deadline:g} s"
    if retry.also and retry.next:
        said += f"; {', '.join(map(str, retry.also))} lead on too"
    told = {name.lower(): value for name, value in headers}
    first = min(bounds(target.timeouts, told), key=lambda bound: bound.seconds, default=None)
    wait = "nothing: the answer is waited for without end"
    if first is not None:
        since = "it was sent" if first.since == "sent" else f"its {first.since} came in"
        wait = f"{first.name}: the answer must have begun {first.seconds:g} s after {since}"
    return [("retry", said), ("cuts first", wait)]


def _sent(
    surface: Surface,
    target: Target,
    dialect: Dialect,
    method: str,
    suffix: str,
    query: str,
    lines: Lines,
    base: Base | None,
) -> bool:
    """Say what is sent to *target*, and for how long it is waited for."""
    upstream = target.upstream
    passthrough = surface.auth == "passthrough"
    if passthrough and not upstream.passthrough:
        why = f"{upstream.name} does not say `passthrough = true`"
        lines.append(("upstream", f"403 model_not_allowed: {why}"))
        return False
    to = address(upstream, dialect, suffix, "", base)
    lines.append(("upstream", upstream.name))
    lines.append(("url", f"{method} {to.base.url(suffix)}{'?' + query if query else ''}"))
    if to.base.origin.proxy is not None:
        lines.append(("proxy", to.base.origin.proxy.rpartition("@")[2]))
    if passthrough:
        lines.append(("header", "the caller's own credential, as it came"))
    else:
        for index, credential in enumerate(upstream.credentials):
            source = credential.secret.source
            turn = f", {index + 1} of {len(upstream.credentials)}" if index else ""
            lines.append(("header", f"{credential.masked(dialect.name)}  (from {source}{turn})"))
    for name in sorted(upstream.forward):
        lines.append(("header", f"{name.decode()}: as it came, if it did"))
    for name, value in upstream.headers:
        shown = value.decode("latin-1") if (name, value) in upstream.public else "…"
        lines.append(("header", f"{name.decode()}: {shown}  (set for {upstream.name})"))
    for name, value in upstream.defaults.get(dialect.name, ()):
        shown = value.decode("latin-1") if (name, value) in upstream.public else "…"
        lines.append(("header", f"{name.decode()}: {shown}  (if the client sends none)"))
    for timeout in TIMEOUT_NAMES:
        seconds = getattr(target.timeouts, timeout)
        limit = "none" if seconds is None else f"{seconds:g} s"
        origin = f"  ({target.origins[timeout]})" if target.origins else ""
        lines.append(("timeout", f"{timeout} {limit}{origin}"))
    variable = upstream.lacks(passthrough=passthrough)
    if variable is not None:
        lines.append(("dormant", f"503 not_configured: {variable} is not set"))
    return variable is None


def _route(snapshot: Snapshot, route: Route, model: str | None) -> Lines:
    kind = "longest prefix" if route.pattern.prefix else "exact name"
    if model is None:
        kind = "takes any name, and none"
    via = "".join(f" → {name}" for name in route.via)
    candidates = [] if model is None else snapshot.routes.candidates(model)
    others = [other.name for other in candidates if other is not route]
    lines = [("route", f'"{route.name}"{via}, {kind}')]
    if others:
        lines.append(("rejected", ", ".join(f'"{name}"' for name in others) + " (less exact)"))
    return lines
