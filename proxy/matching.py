"""Match: which model a request asks for, wherever it says so, and where that leads (step 4).

What was matched before is known by heart, as long as the snapshot holds. A `Matched` is all that the
road goes by from here on, and all that is ever said about where a model leads.
"""

from dataclasses import dataclass
from sys import getsizeof

from proxy.cache import Cache
from proxy.config import Snapshot
from proxy.dialects import MODELS
from proxy.errors import (
    ENDPOINT_NOT_SUPPORTED,
    INVALID_MODEL,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    NOT_FOUND,
    ProxyError,
    printable,
)
from proxy.exchange import Exchange
from proxy.keys import Key
from proxy.model.body import Body, BodyError, Found, find_model
from proxy.model.form import boundary_of
from proxy.model.form import find_model as find_in_form
from proxy.model.target import (
    model_in_deployment,
    model_in_path,
    model_in_query,
    streams,
    without_model,
)
from proxy.routes import Group, Route, Target, Upstream, check_able
from proxy.sight import Sight
from proxy.surfaces import Surface

MATCHED_BYTES = 1024 * 1024
"""Keep this much of what is known of models."""
MATCHED_CHARS = 256
"""Keep a model's name of up to this length: a body's worth of it is a name too."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Where a request goes: by *route*, which leads to *groups*, there asked for by *name*, None where it
    names none. *model* is how that is shown, *sent* what the first target, *upstream*'s, calls it.
    """

    route: Route
    groups: tuple[Group, ...]
    name: str | None
    model: str | None
    sent: str | None
    upstream: Upstream


class Matcher:
    """Finds where requests go, by *snapshot*, and pins that to their exchanges."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._routes = snapshot.routes
        self._known: Cache[tuple[str | None, str, str], Matched] = Cache(MATCHED_BYTES)
        self._whole: dict[Upstream, tuple[Group, ...]] = {}

    def match(self, exchange: Exchange, surface: Surface, asked: str | None) -> Matched:
        """Return where the model *asked* for leads: by `default` where none is asked for, by no name where
        there is no such route. Raises `ProxyError`; what is known by then is pinned all the same.
        """
        dialect, key = exchange.dialect, exchange.key
        assert dialect is not None
        question = asked, surface.name, dialect.name
        known = self._known.get(question)
        if known is not None and (key is None or key.models is None):
            exchange.model, exchange.model_sent = known.model, known.sent
            exchange.upstream, exchange.route = known.upstream, known.route
            return known
        found = self.lead(exchange, surface, asked)
        check_taken(found, exchange, surface)
        if found.route.switch is None and (asked is None or len(asked) <= MATCHED_CHARS):
            size = getsizeof(asked) + getsizeof(found.model) + getsizeof(found.sent)
            self._known.keep(question, found, size)
        return found

    def unrouted(
        self, exchange: Exchange, surface: Surface, upstream: Upstream | None
    ) -> tuple[Group, ...]:
        """Return where *exchange* goes, which carries no model: to *upstream*, whole. Raises `ProxyError`."""
        groups = self.whole(exchange, surface, upstream)
        target = groups[0].targets[0]
        passthrough = surface.auth == "passthrough"
        check_able((target,), None, target.upstream.name, passthrough=passthrough)
        return groups

    def whole(
        self, exchange: Exchange, surface: Surface, upstream: Upstream | None
    ) -> tuple[Group, ...]:
        """Do what `unrouted` does, but for looking whether *upstream* is configured."""
        upstream = exchange.upstream = _may_use(exchange, surface, upstream)
        groups = self._whole.get(upstream)
        if groups is None:
            whole = Target(upstream, timeouts=upstream.timeouts, retry=upstream.retry)
            groups = self._whole[upstream] = (Group((whole,)),)
        return groups

    def lead(self, exchange: Exchange, surface: Surface, asked: str | None) -> Matched:
        """Do what `match` does, but for looking whether anybody there takes it (`check_taken`)."""
        route = exchange.route = self._route(exchange, surface, asked)
        name = None if asked is None and route.pattern.prefix else asked or route.name
        groups = route.groups if route.switch is None else route.switch.choose(exchange.headers)
        first = groups[0].targets[0]
        upstream = exchange.upstream = first.upstream
        sent = exchange.model_sent = route.model_sent(first, name)
        return Matched(route, groups, name, exchange.model, sent, upstream)

    def _route(self, exchange: Exchange, surface: Surface, asked: str | None) -> Route:
        if asked is None:
            return self._unnamed(exchange, surface)
        key = exchange.key
        shown = exchange.model = printable(asked)
        route = self._routes.match(asked) if surface.shows(asked) else None
        if route is None:
            raise ProxyError(MODEL_NOT_FOUND, self._not_found(asked, surface, key), param="model")
        if key is not None and not key.may_ask(asked):
            message = f'The key "{key.name}" may not use the model "{shown}".'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        return route

    def _unnamed(self, exchange: Exchange, surface: Surface) -> Route:
        """Return the route of a request that names no model: where none need be named, if not `default`,
        since nobody can look at which one the upstream takes.
        """
        key, route = exchange.key, self._routes.unnamed()
        if route is not None and not route.pattern.prefix and surface.shows(route.name):
            return self._route(exchange, surface, route.name)
        if route is None or not route.pattern.prefix:
            message = "The request names no model, and there is no default one."
            raise ProxyError(INVALID_MODEL, message, param="model")
        if not surface.shows_anything():
            message = "The request names no model, and not every model is here."
            raise ProxyError(MODEL_NOT_FOUND, message, param="model")
        if key is not None and not key.may_ask_anything():
            message = f'The request names no model, and the key "{key.name}" may not use every one.'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        return route

    def _not_found(self, asked: str, surface: Surface, key: Key | None) -> str:
        message = f'No route leads to the model "{printable(asked)}".'
        if surface.models == "hidden":
            return message
        near = self._routes.nearest(asked, Sight(surface, key).shows)
        if near:
            message += " Did you mean " + " or ".join(f'"{name}"' for name in near) + "?"
        return message + " See GET /v1/models."


def check_taken(matched: Matched, exchange: Exchange, surface: Surface) -> None:
    """Refuse *exchange* where nobody whom it was *matched* to can take it. Raises `ProxyError`."""
    passthrough, shown = surface.auth == "passthrough", matched.model or matched.route.name
    targets = [target for group in matched.groups for target in group.targets]
    if passthrough:
        targets = targets[:1]
        _check_passthrough(matched.upstream, f'The model "{shown}"', "model")
    check_able(targets, exchange.dialect, shown, passthrough=passthrough)


def find(exchange: Exchange, body: Body) -> Found:
    """Find the model where *exchange*'s dialect says it: in *body*, the path, or the query, from which
    what says the same again is taken. Raises `ProxyError`.
    """
    dialect, suffix = exchange.dialect, exchange.suffix
    assert dialect is not None
    try:
        if dialect.carries == "path":
            return Found(model_in_path(suffix), 0, 0, streams(suffix))
        if dialect.carries == "query":
            return Found(model_in_query(exchange.query), 0, 0, stream=False)
        boundary = boundary_of(exchange.headers.first.get(b"content-type", b""))
        found = find_model(body) if boundary is None else find_in_form(body, boundary)
        if exchange.query or exchange.azure is not None:
            exchange.query = without_model(exchange.query, asked_for(exchange, found))
        return found
    except BodyError as error:
        raise error.told() from None


def asked_for(exchange: Exchange, found: Found) -> str | None:
    """Return the model asked for: what was *found*, but for Azure's paths, which say it themselves. Raises
    `BodyError`.
    """
    azure = exchange.azure
    if azure is None or azure.deployment is None:
        return found.model
    return model_in_deployment(azure.deployment)


def _may_use(exchange: Exchange, surface: Surface, upstream: Upstream | None) -> Upstream:
    """Return *upstream*, if *exchange* may go there whatever the model: it does not say any."""
    key, dialect = exchange.key, exchange.dialect
    assert dialect is not None
    if surface.routes is not None:
        raise ProxyError(NOT_FOUND, "There is nothing at this path.")
    if key is not None and key.models is not None:
        message = f'The key "{key.name}" is for some models only, and this request names none.'
        raise ProxyError(MODEL_NOT_ALLOWED, message)
    if upstream is None:
        raise ProxyError(NOT_FOUND, "There is no such upstream.")
    if surface.auth == "passthrough":
        _check_passthrough(upstream, "This path")
    if dialect is MODELS and not upstream.speaks(dialect):
        message = f'The upstream "{upstream.name}" has no list of models.'
        raise ProxyError(ENDPOINT_NOT_SUPPORTED, message)
    return upstream


def _check_passthrough(upstream: Upstream, what: str, param: str | None = None) -> None:
    """Refuse *what* leads to *upstream* if that wants a credential of ours."""
    if not upstream.passthrough:
        message = f"{what} does not take a caller's own credential."
        raise ProxyError(MODEL_NOT_ALLOWED, message, param=param)
