"""What would happen to a request, said before it is sent: it is led through the hot path's own steps, and what
they find is printed.
"""

import json  # noqa: TID251 - writes a model that is no text too, as a client might
from dataclasses import dataclass
from urllib.parse import unquote

from proxy import dialects
from proxy.config import Snapshot
from proxy.config.snapshot import TIMEOUT_NAMES
from proxy.dialects import REALTIME, Dialect
from proxy.errors import NOT_CONFIGURED, ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers, Pair
from proxy.matching import Matched, Matcher, asked_for, check_taken, find
from proxy.model.body import BodyError, Found, find_model
from proxy.model.target import by_model
from proxy.outbound import Addressed
from proxy.routes import Group, Route, Target, Upstream
from proxy.surfaces import Surface, is_unsafe
from proxy.upstream.asked import Asked
from proxy.upstream.balance import Choice, Scores
from proxy.upstream.clocks import bounds
from proxy.upstream.places import Places

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
    works = _Road(snapshot, surface, path, headers, lines).go(model)
    return Explanation(tuple(lines), works)


class _Road:
    """The road of one request: each of its steps adds to *lines*, and returns whether it leads anywhere."""

    def __init__(
        self,
        snapshot: Snapshot,
        surface: Surface,
        target: str,
        headers: tuple[Pair, ...],
        lines: Lines,
    ) -> None:
        path, _, query = target.partition("?")
        self._snapshot = snapshot
        self._surface = surface
        self._passthrough = surface.auth == "passthrough"
        self._matcher = Matcher(snapshot)
        self._lines = lines
        self._exchange = Exchange(
            "", surface.name, "POST", path, query, Headers(headers), False, None, 0.0
        )

    def go(self, model: str | None) -> bool:
        """Find what answers at the path, and what that makes of *model*."""
        exchange, surface = self._exchange, self._surface
        if is_unsafe(exchange.path):
            return self._no(
                "path", f"{exchange.path} → 400 bad_request: it could mean another place"
            )
        located = surface.locate(exchange.path)
        if located is None or not located.suffix:
            return self._nothing()
        exchange.dialect, exchange.suffix = located.dialect, located.suffix
        exchange.azure = located.azure
        upstream = None
        if surface.serves(located.suffix):
            upstream = self._snapshot.unrouted.match(located.base, located.suffix)
        if located.dialect is not None:
            return self._carries(located.dialect, model, upstream)
        if surface.models == "list" and f"{located.suffix}/".startswith("models/"):
            return self._models()
        return self._nothing() if upstream is None else self._kept(upstream)

    def _models(self) -> bool:
        """The list of models: ours, but for that of an upstream whose name the query says."""
        exchange = self._exchange
        parts = exchange.query.split("&")
        asked = next((part for part in parts if part.startswith("upstream=")), None)
        if asked is None:
            self._lines.append(("path", f"{exchange.path}: the list of models, answered here"))
            return True
        parts.remove(asked)
        exchange.query = "&".join(parts)
        return self._kept(self._snapshot.upstreams.get(unquote(asked.removeprefix("upstream="))))

    def _carries(self, dialect: Dialect, model: str | None, upstream: Upstream | None) -> bool:
        """What carries a model, or might: where it names none, a WebSocket goes to *upstream*, if there is one."""
        exchange, surface = self._exchange, self._surface
        self._lines.append(("path", f"{exchange.path}, dialect {dialect.name}"))
        body = (
            b"{}" if model is None else json.dumps({"model": model}).encode()
        )  # be it text or not
        try:
            found = self._found(dialect, model, body)
            asked = asked_for(exchange, found)
        except ProxyError as error:
            return self._refused("model", error)
        if dialect is REALTIME and asked is None and upstream is not None:
            return self._kept(upstream, "WebSocket")
        try:
            matched = self._matcher.lead(exchange, surface, asked)
        except ProxyError as error:
            return self._unled(asked, error)
        return self._led(dialect, matched, found, body)

    def _found(self, dialect: Dialect, model: str | None, body: bytes) -> Found:
        """The model where *dialect* says it, unless one was given for it."""
        exchange = self._exchange
        if dialect is REALTIME and exchange.azure is not None:
            exchange.query = by_model(exchange.query)
        if model is None or dialect.carries == "body":
            return find(exchange, body)
        try:
            return find_model(body)
        except BodyError as error:
            raise error.told() from None

    def _unled(self, asked: str | None, error: ProxyError) -> bool:
        """The model leads nowhere: there is no route, or one whose header does not say where to."""
        route = self._exchange.route
        if route is None or route.switch is None:
            return self._refused("route", error)
        self._lines += self._way(route, asked)
        values = ", ".join(value.decode("utf-8", "replace") for value in route.switch.to)
        self._refused("header", error)
        return self._no("header", f"{route.switch.name} may be {values}")

    def _led(self, dialect: Dialect, matched: Matched, found: Found, body: bytes) -> bool:
        """Where a model leads, whoever takes it."""
        exchange, surface, route = self._exchange, self._surface, matched.route
        if matched.name is None:
            self._lines.append(("keys", "those without a `models` list, or with `*` in it"))
        self._lines += self._way(route, matched.name)
        if route.switch is not None:
            self._lines.append(("chosen", f"by the header {route.switch.name}"))
        try:
            check_taken(matched, exchange, surface)
        except ProxyError as error:
            if error.kind is not NOT_CONFIGURED:  # which is said of each place
                return self._refused("upstream", error)
        what = Asked(
            exchange,
            matched.groups,
            self._passthrough,
            route,
            matched.name,
            found,
            body,
            strip=surface.strip,
        )
        method = "WebSocket" if dialect is REALTIME else "POST"
        return self._placed(what, matched, method)

    def _placed(self, what: Asked, matched: Matched, method: str) -> bool:
        """The places that the request may go to, in their order in the file."""
        places, works = Places(what, Scores(), lambda: 0.0), False
        targets = [target for group in matched.groups for target in group.targets]
        targets = targets[: 1 if self._passthrough else None]
        for group in matched.groups[: 1 if self._passthrough else None]:
            if not self._passthrough:
                self._lines += _policy(group, matched.route, matched.name)
            for target in group.targets[: len(targets)]:
                if len(targets) > 1:
                    place = f"{targets.index(target) + 1} of {len(targets)}"
                    self._lines.append(("place", place))
                sent = matched.route.model_sent(target, matched.name)
                self._lines.append(("upstream model", "none, as asked" if sent is None else sent))
                works = self._place(what, places, target, method) or works
        return works

    def _place(self, what: Asked, places: Places, target: Target, method: str) -> bool:
        if places.bar(target) == "dialect":
            why = f"{target.upstream.name} does not speak {what.dialect.name}"
            return self._no("skipped", why)
        works = self._sent(what, places, target, method)
        if works:
            self._lines += self._bounds(target)
        return works

    def _kept(self, upstream: Upstream | None, method: str = "any method") -> bool:
        """What carries no model: it goes to *upstream*, whole."""
        exchange, surface = self._exchange, self._surface
        dialect = exchange.dialect = dialects.family(exchange.suffix)
        self._lines.append(("path", f"{exchange.path}, carries no model, dialect {dialect.name}"))
        try:
            groups = self._matcher.whole(exchange, surface, upstream)
        except ProxyError as error:
            return self._refused("upstream", error)
        self._lines.append(("keys", "those without a `models` list"))
        what = Asked(exchange, groups, self._passthrough, strip=surface.strip)
        places = Places(what, Scores(), lambda: 0.0)
        return self._sent(what, places, groups[0].targets[0], method)

    def _sent(self, what: Asked, places: Places, target: Target, method: str) -> bool:
        """What is sent to *target*, and for how long it is waited for; whether it is configured."""
        upstream, choices = target.upstream, places.choices(target)
        try:
            to, _ = what.write(choices[0])
        except ProxyError as error:
            return self._refused("upstream", error)
        self._lines.append(("upstream", upstream.name))
        self._lines.append(("url", f"{method} {_url(to)}"))
        if to.base.origin.proxy is not None:
            self._lines.append(("proxy", to.base.origin.proxy.rpartition("@")[2]))
        self._lines += self._headers(upstream, what.dialect, choices)
        for timeout in TIMEOUT_NAMES:
            seconds = getattr(target.timeouts, timeout)
            limit = "none" if seconds is None else f"{seconds:g} s"
            origin = f"  ({target.origins[timeout]})" if target.origins else ""
            self._lines.append(("timeout", f"{timeout} {limit}{origin}"))
        variable = upstream.lacks(passthrough=self._passthrough)
        if variable is not None:
            self._lines.append(("dormant", f"503 not_configured: {variable} is not set"))
        return variable is None

    def _headers(self, upstream: Upstream, dialect: Dialect, choices: list[Choice]) -> Lines:
        """What is put into the head for *upstream*: secrets masked, and with whose they are."""
        lines: Lines = []
        if self._passthrough:
            lines.append(("header", "the caller's own credential, as it came"))
        else:
            for index, choice in enumerate(choices):
                if choice.credential is not None:
                    turn = f", {index + 1} of {len(choices)}" if index else ""
                    source = choice.credential.secret.source
                    masked = choice.credential.masked(dialect.name)
                    lines.append(("header", f"{masked}  (from {source}{turn})"))
        lines += [
            ("header", f"{n.decode()}: as it came, if it did") for n in sorted(upstream.forward)
        ]
        set_for, unless = f"set for {upstream.name}", "if the client sends none"
        added = [(set_for, upstream.headers), (unless, upstream.defaults.get(dialect.name, ()))]
        for why, pairs in added:
            for name, value in pairs:
                shown = value.decode("latin-1") if (name, value) in upstream.public else "…"
                lines.append(("header", f"{name.decode()}: {shown}  ({why})"))
        return lines

    def _bounds(self, target: Target) -> Lines:
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
        told = self._exchange.headers.first
        first = min(bounds(target.timeouts, told), key=lambda bound: bound.seconds, default=None)
        wait = "nothing: the answer is waited for without end"
        if first is not None:
            since = "it was sent" if first.since == "sent" else f"its {first.since} came in"
            wait = f"{first.name}: the answer must have begun {first.seconds:g} s after {since}"
        return [("retry", said), ("cuts first", wait)]

    def _way(self, route: Route, model: str | None) -> Lines:
        kind = "longest prefix" if route.pattern.prefix else "exact name"
        if model is None:
            kind = "takes any name, and none"
        via = "".join(f" → {name}" for name in route.via)
        candidates = [] if model is None else self._snapshot.routes.candidates(model)
        others = [other.name for other in candidates if other is not route]
        lines = [("route", f'"{route.name}"{via}, {kind}')]
        if others:
            lines.append(("rejected", ", ".join(f'"{name}"' for name in others) + " (less exact)"))
        return lines

    def _nothing(self) -> bool:
        known = ", ".join(sorted(dialects.ENDPOINTS))
        return self._no("path", f"{self._exchange.path} → 404 not_found; the endpoints are {known}")

    def _refused(self, label: str, error: ProxyError) -> bool:
        return self._no(label, f"{error.kind.status} {error.kind.code}: {error.message}")

    def _no(self, label: str, text: str) -> bool:
        self._lines.append((label, text))
        return False


def _url(to: Addressed) -> str:
    origin = to.base.origin
    return f"{origin.scheme}://{origin.authority}{to.target}"


def _policy(group: Group, route: Route, name: str | None) -> Lines:
    """Return how one of *group* is chosen, where there is a choice, and who of it gets nothing."""
    lines: Lines = []
    if len(group.targets) > 1:
        stick = f", sticky by {group.sticky.decode()}" if group.sticky else ""
        lines.append(("policy", f"{group.policy} among {len(group.targets)}{stick}"))
    for target in group.idle:
        place = f"{target.upstream.name}/{route.model_sent(target, name)}"
        lines.append(("idle", f"{place} gets nothing new: its weight is 0"))
    return lines
