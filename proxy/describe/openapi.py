"""What a surface says of itself, first of all as OpenAPI 3.1: made from the live routes and the table
of endpoints, so that it cannot drift.

A caller is shown the models that it may ask for and no other name. Nothing here says where a model
leads. What is forwarded is described loosely: what we do not know of it passes all the same.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import orjson

from proxy import __version__, dialects, errors
from proxy.config import Snapshot
from proxy.describe.directory import (
    ANSWERED,
    BODY,
    CALLS,
    FIXED,
    HEAD,
    KEPT,
    MODEL,
    TOLD,
    Call,
    Fixed,
    fields,
)
from proxy.dialects import GEMINI, REALTIME, Dialect
from proxy.errors import Kind, ProxyError, Shape, render
from proxy.keys import Key
from proxy.routes import Route
from proxy.sight import Sight
from proxy.surfaces import Surface

Json = dict[str, Any]

ABOUT = (
    "A reverse proxy for language-model APIs. Point an SDK here by its base URL and key: what it asks "
    "goes to whoever serves the model, and the answer comes back as it was given."
)
UNKNOWN_MODEL = "default"
"""Ask for this in examples where no name may be shown."""


class View:
    """A *surface* of a *snapshot*, as one caller sees it: who holds *key*, or somebody who was told a
    *refusal*, and is shown no model.
    """

    def __init__(
        self,
        surface: Surface,
        snapshot: Snapshot,
        key: Key | None = None,
        refusal: str | None = None,
    ) -> None:
        self.surface = surface
        self.snapshot = snapshot
        self.sight = Sight(surface, key, snapshot.routes)
        self.refusal = refusal

    @property
    def base(self) -> str:
        """Return the base path that clients are told; the others lead to the same endpoints."""
        bases = self.surface.base_paths
        return "/v1" if "/v1" in bases else bases[0]

    @property
    def stem(self) -> str | None:
        """Return what Anthropic's SDKs take for a base URL, as they add the `/v1`; None where there
        is none.
        """
        return next(
            (base[:-3] for base in (self.base, *self.surface.base_paths) if _v1(base)), None
        )

    @property
    def native(self) -> str:
        """Return what Gemini's own paths stand below."""
        return self.base.removesuffix("/v1") + "/v1beta"

    @cached_property
    def models(self) -> dict[str, Route]:
        """Return the routes of all names that this caller may see, in the order of the file."""
        if self.refusal is not None or self.surface.models == "hidden":
            return {}
        return self.sight.models()

    def speakers(self, dialect: Dialect) -> list[str]:
        """Return the names that answer in *dialect*; those that lack nothing come first."""
        passthrough = self.surface.auth == "passthrough"
        ready, dormant = [], []
        for name, route in self.models.items():
            speaking = [t.upstream for t in route.targets() if t.upstream.speaks(dialect)]
            if any(upstream.lacks(passthrough=passthrough) is None for upstream in speaking):
                ready.append(name)
            elif speaking:
                dormant.append(name)
        return ready + dormant

    @property
    def dialects(self) -> dict[str, Dialect]:
        """Return the endpoints of this surface that carry a model, by their path below the base."""
        found = {p: d for p, d in dialects.ENDPOINTS.items() if self.surface.serves(p)}
        return found | ({"gemini": GEMINI} if self.surface.serves("gemini") else {})

    @property
    def kept(self) -> list[str]:
        """Return the paths below the base that carry no model and that this caller may use."""
        if not self.sight.whole:
            return []
        known = (path for path in self.snapshot.unrouted.upstreams if path != "*")
        return [path for path in known if self.surface.serves(path)]


def _v1(base: str) -> bool:
    return base.endswith("/v1")


# The document


def document(view: View, root: str) -> Json:
    """Return the OpenAPI document of *view*, to be read where *root* leads back to the proxy."""
    paths: dict[str, Json] = {}
    used: dict[str, Json] = {}
    for path, method, operation, statuses in _operations(view):
        shape = dialects.shape_of(path)
        relays = "default" in operation["responses"]
        for status in statuses:
            name = f"{shape}-{status}" + ("-relayed" if relays else "")
            if name not in used:
                known_as = view.surface.errors.get(status)
                used[name] = _refusal(status, shape, known_as, relays=relays)
            operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
        operation["responses"] = dict(sorted(operation["responses"].items()))
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Trunkline", "version": __version__, "description": _description(view)},
        "servers": [{"url": root}],
        "tags": [{"name": tag} for tag in _tags(paths)],
        "paths": paths,
        "components": {
            "securitySchemes": _schemes(view.surface, hooked=bool(view.snapshot.hooks)),
            "schemas": _SCHEMAS,
            "headers": HEADERS,
            "responses": dict(sorted(used.items())),
        },
        "x-trunkline": {
            **summary(view, root),
            "errors": {
                code: {"what": kind.meaning, "do": kind.remedy} for code, kind in TOLD.items()
            },
        },
    }


def summary(view: View, root: str) -> Json:
    """Say what a client must know: where to point, how to present a key, which models there are."""
    has, stem = view.dialects, view.stem
    bases = {
        "openai": root + view.base,
        "anthropic": root + stem if stem is not None and "messages" in has else None,
        "gemini": root + view.base.removesuffix("/v1") if "gemini" in has else None,
    }
    return {
        "base_urls": {name: url for name, url in bases.items() if url is not None},
        "auth": _auth(view.surface),
        "caller": {
            "known": view.refusal is None,
            "key": view.sight.key.name if view.sight.key is not None else None,
            "message": view.refusal,
        },
        "models_listed": view.surface.models == "list",
        "models": _models(view),
    }


def _auth(surface: Surface) -> Json:
    """Say in which headers a key is taken, any of which is enough."""
    asked = surface.auth != "none"
    headers = [name.decode() for name in surface.accept] if asked else []
    return {
        "required": asked,
        "whose": "vendor" if surface.auth == "passthrough" else "proxy",
        "headers": headers,
        "forms": [
            "Authorization: Bearer KEY" if name == "authorization" else f"{name}: KEY"
            for name in headers
        ],
    }


def _models(view: View) -> list[Json]:
    """Return the models that *view* shows, and which dialects each answers in."""
    spoken: dict[str, list[str]] = {name: [] for name in view.models}
    for dialect in dict.fromkeys(view.dialects.values()):
        for name in view.speakers(dialect):
            spoken[name].append(dialect.name)
    return [{"id": name, "speaks": sorted(speaks)} for name, speaks in spoken.items()]


def _description(view: View) -> str:
    others = [base or "the bare paths" for base in view.surface.base_paths if base != view.base]
    also = f"\n\nThe same endpoints answer below {' and '.join(others)}." if others else ""
    return f"{ABOUT}{also}"


def _tags(paths: Mapping[str, Json]) -> Iterable[str]:
    found = (op["tags"][0] for methods in paths.values() for op in methods.values())
    return dict.fromkeys(found)


Row = tuple[str, str, Json, set[int]]
"""A path, a method, the operation, and the statuses of the errors it may answer."""


def _operations(view: View) -> Iterator[Row]:
    for suffix, dialect in sorted(view.dialects.items(), key=lambda item: _rank(item[0])):
        if dialect is GEMINI:
            yield from _native(view)
        elif dialect is REALTIME:
            yield _realtime(view, f"{view.base}/{suffix}")
        else:
            yield _carrying(view, f"{view.base}/{suffix}", suffix, dialect)
    if view.surface.models == "list":
        yield from _listing(view)
    for path in view.kept:
        yield from _keeping(view, path)
    for fixed in FIXED:
        if fixed.here(view.surface, view.snapshot):
            yield _fixed(view, fixed)


def _native(view: View) -> Iterator[Row]:
    for name in CALLS:
        if name.startswith("gemini:"):
            path = f"{view.native}/models/{{model}}:{name.removeprefix('gemini:')}"
            yield _carrying(view, path, name, GEMINI)


def _rank(suffix: str) -> int:
    known = [*CALLS]
    return known.index(suffix) if suffix in known else len(known)


def _carrying(view: View, path: str, name: str, dialect: Dialect) -> Row:
    call = CALLS.get(name, Call(name, tag="Other"))
    model = next(iter([*view.speakers(dialect), *view.models, UNKNOWN_MODEL]))
    example = dict(call.example)
    parameters = [_parameter("header", name, value) for name, value in call.headers.items()]
    properties = {key: _schema(value) for key, value in example.items()}
    parameters += _switches(view, model, dialect)
    if dialect.carries == "body":
        example = {"model": model, **example}
        properties["model"] = {"type": "string", "description": "Whom to ask."}
    else:
        parameters.insert(0, _parameter("path", "model", model))
    if name == "gemini:streamGenerateContent":
        parameters.append(_parameter("query", "alt", "sse"))
    if call.files:
        properties |= {file: {"type": "string", "format": "binary"} for file in call.files}
    schema: Json = {"type": "object", "properties": properties, "additionalProperties": True}
    if call.required:
        schema["required"] = [*call.required]
    media = "multipart/form-data" if call.files else "application/json"
    answers: Json = {call.answer: {"schema": _ANYTHING}}
    if call.streams:
        answers["text/event-stream"] = {}
    operation: Json = {
        **_named(call.summary, call.tag, name),
        "security": _security(view.surface, native=dialect is GEMINI),
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {media: {"schema": schema, "example": example}},
        },
        "responses": {
            "200": _answer("The answer, as it was given.", answers),
            "429": _answer("Whoever serves the model limits the rate.", {"*/*": {}}),
            "default": _answer("Whatever else the upstream answers, as it came.", {"*/*": {}}),
        },
        "x-dialect": dialect.name,
    }
    return path, "post", operation, _statuses(view, BODY)


def _switches(view: View, model: str, dialect: Dialect) -> Iterator[Json]:
    """Yield the headers that choose where one of the models leads, with a value where *model* does."""
    found: dict[str, dict[str, str]] = {}
    for name in view.speakers(dialect):
        switch = view.models[name].switch
        if switch is not None:
            values = found.setdefault(switch.name.lower(), {"": switch.name})
            values |= {value.decode("latin-1"): name for value in switch.to}
    for values in found.values():
        header = values.pop("")
        mine = [value for value, name in values.items() if name == model]
        parameter = _parameter("header", header, mine[0] if mine else "")
        parameter["schema"]["examples"] = [*values]
        yield parameter


def _realtime(view: View, path: str) -> Row:
    model = next(iter([*view.speakers(REALTIME), *view.models, UNKNOWN_MODEL]))
    operation = {
        **_named("Realtime, over a WebSocket", "Audio", "realtime"),
        "security": _security(view.surface),
        "parameters": [_parameter("query", "model", model)],
        "responses": {
            "101": {"description": "The WebSocket."},
            "default": _answer("Whatever else the upstream answers, as it came.", {"*/*": {}}),
        },
        "x-dialect": REALTIME.name,
        "x-websocket": True,
    }
    return path, "get", operation, _statuses(view, MODEL) | {426}


def _listing(view: View) -> Iterator[Row]:
    native = view.native if "gemini" in view.dialects else None
    one = next(iter([*view.models, UNKNOWN_MODEL]))
    listing = {"type": "object", "required": ["object", "data"], "properties": _LIST}
    for base, whole, single in (
        (view.base, listing, fields(id="string", object="string")),
        (native, fields(models="array"), fields(name="string")),
    ):
        if base is None:
            continue
        tag, name = ("Gemini", "gemini:models") if base == native else ("Models", "models")
        security = _security(view.surface, native=base == native)
        statuses = _statuses(view, (errors.MODEL_NOT_FOUND,))
        for path, summary, schema, parameters in (
            (f"{base}/models", "The models you may ask for", whole, []),
            (f"{base}/models/{{model}}", "One of them", single, [_parameter("path", "model", one)]),
        ):
            operation = {
                **_named(summary, tag, name if schema is whole else f"{name}/one"),
                "security": security,
                "parameters": parameters,
                "responses": {"200": _answer(summary, {"application/json": {"schema": schema}})},
            }
            yield path, "get", operation, statuses - ({404} if schema is whole else set())


def _keeping(view: View, name: str) -> Iterator[Row]:
    """Describe what is kept at an upstream below *name*: a collection, and what is in it."""
    item = [_parameter("path", "id", "id_1")]
    for path, methods, parameters in (
        (f"{view.base}/{name}", ("get", "post"), []),
        (f"{view.base}/{name}/{{id}}", ("get", "post", "delete"), item),
    ):
        for method in methods:
            operation: Json = {
                **_named(
                    f"{method.upper()} {path}",
                    "Kept upstream",
                    f"{method}-{name}/{len(parameters)}",
                ),
                "security": _security(view.surface),
                "parameters": parameters,
                "responses": {
                    "200": _answer("The answer, as it was given.", {"*/*": {}}),
                    "default": _answer("Whatever else the upstream answers.", {"*/*": {}}),
                },
                "x-dialect": dialects.family(name).name,
            }
            if method == "post":
                operation["requestBody"] = {"content": {"*/*": {"schema": {}}}}
            yield path, method, operation, _statuses(view, KEPT)


def _fixed(view: View, fixed: Fixed) -> Row:
    path = fixed.path.replace("{base}", view.base or "/v1")
    content = {fixed.media: {"schema": {**fixed.answer}}}
    if fixed.streams:
        content["text/event-stream"] = {}
    responses = {"200": _answer(fixed.summary, content)}
    for status, text in fixed.statuses.items():
        responses[str(status)] = _answer(text, {fixed.media: {"schema": _ANYTHING}})
    operation: Json = {
        **_named(fixed.summary, fixed.tag, fixed.path.replace("{base}/", "")),
        "security": _asked(view.surface, fixed.asks),
        "parameters": [_parameter("path", name, name) for name in _HOLES.findall(path)],
        "responses": responses,
    }
    if fixed.takes is not None:
        body = {"schema": {**fixed.takes}, "example": fixed.example}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    return path, fixed.method, operation, _refusals(view, fixed) - {*fixed.statuses}


def _refusals(view: View, fixed: Fixed) -> set[int]:
    """Return the statuses with which *fixed* may refuse."""
    statuses = {kind.status for kind in (*HEAD, *fixed.kinds)}
    if view.surface.auth == "none" and not fixed.open:
        statuses.add(errors.ORIGIN_NOT_ALLOWED.status)
    if fixed.asks == "secret" or (fixed.asks == "key" and view.surface.auth == "keys"):
        statuses.add(errors.INVALID_KEY.status)
    return statuses


_HOLES = re.compile(r"\{(\w+)\}")


def _asked(surface: Surface, what: str) -> list[Json]:
    """Return what an endpoint of our own asks for."""
    if what == "secret":
        return [{_HOOKED: []}]
    if what == "nothing" or surface.auth != "keys":
        return []
    return [{}, *_security(surface)] if what == "told" else _security(surface)


# Its parts


def _named(summary: str, tag: str, name: str) -> Json:
    words = re.sub(r"\W+", "_", name).strip("_")
    return {"operationId": words, "summary": summary, "tags": [tag]}


def _parameter(place: str, name: str, example: str) -> Json:
    needed = place == "path"
    return {
        "name": name,
        "in": place,
        "required": needed,
        "schema": {"type": "string", **({"minLength": 1} if needed else {})},
        "example": example,
    }


def _schema(value: object) -> Json:
    """Describe *value*, the field of an example, no closer than by its type."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer"}
    if isinstance(value, list | str):  # what may be one may be several
        return {"type": ["array", "string"]} if isinstance(value, str) else {"type": "array"}
    return _ANYTHING


def _answer(description: str, content: Json) -> Json:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-trunkline-id",)}
    return {"description": description, "headers": headers, "content": content}


def _refusal(status: int, shape: Shape, known_as: str | None, *, relays: bool) -> Json:
    """Describe our own errors of *status* in *shape*; where we relay, an upstream may say it, too."""
    kinds = [kind for kind in ANSWERED.values() if kind.status == status]
    examples = {kind.code: {"value": _example(kind, shape, known_as)} for kind in kinds}
    ref: Json = {"$ref": f"#/components/schemas/{_SHAPES[shape]}"}
    schema = {"anyOf": [ref, _ANYTHING]} if relays else ref
    content: Json = {"application/json": {"schema": schema, "examples": examples}}
    if relays:
        content["*/*"] = {}
    answer = _answer(" ".join(kind.meaning for kind in kinds), content)
    for name, statuses in _HINTS.items():
        if status in statuses:
            answer["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    return answer


def _example(kind: Kind, shape: Shape, known_as: str | None) -> Any:
    error = ProxyError(kind, kind.meaning)
    return orjson.loads(render(error, shape, "req_1", name=known_as).partition(b"\r\n\r\n")[2])


def _statuses(view: View, kinds: Iterable[Kind]) -> set[int]:
    auth = view.surface.auth
    found = {kind.status for kind in (*HEAD, *kinds)}
    if auth == "keys":
        found.add(errors.INVALID_KEY.status)
    elif auth == "none":
        found.add(errors.ORIGIN_NOT_ALLOWED.status)
    return found


def _schemes(surface: Surface, *, hooked: bool = False) -> Json:
    schemes: Json = {}
    if hooked:
        secret = {"type": "http", "scheme": "bearer", "description": "The hook's own secret."}
        schemes[_HOOKED] = secret
    if surface.auth == "none":
        return schemes
    whose = "Your own key at the vendor." if surface.auth == "passthrough" else "Your key."
    for name in (name.decode() for name in surface.accept):
        if name == "authorization":
            schemes["bearer"] = {"type": "http", "scheme": "bearer", "description": whose}
        else:
            schemes[name] = {"type": "apiKey", "in": "header", "name": name, "description": whose}
    if b"x-goog-api-key" in surface.accept:
        schemes["key"] = {"type": "apiKey", "in": "query", "name": "key", "description": whose}
    return schemes


def _security(surface: Surface, *, native: bool = False) -> list[Json]:
    """Return the forms in which a key is taken, any of which is enough."""
    return [{name: []} for name in _schemes(surface) if name != "key" or native]


_HOOKED = "hook"
_ANYTHING: Json = {"type": "object", "additionalProperties": True}
_LIST = {"object": {"const": "list"}, "data": {"type": "array", "items": fields(id="string")}}
_SHAPES: Mapping[Shape, str] = {
    "openai": "Error",
    "responses": "Error",
    "anthropic": "AnthropicError",
    "gemini": "GeminiError",
}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_SCHEMAS: Json = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": _TEXT_OR_NULL,
                    "code": _TEXT_OR_NULL,
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "properties": {
            "type": {"const": "error"},
            "error": fields(type="string", message="string"),
            "request_id": {"type": "string"},
        },
    },
    "GeminiError": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": fields(code="integer", message="string", status="string")},
    },
}
_HINTS: Mapping[str, frozenset[int]] = {
    "Retry-After": frozenset({429, 503}),
    "x-should-retry": frozenset({408, 502, 504}),
    "WWW-Authenticate": frozenset({401}),
    "Allow": frozenset({405}),
}
HEADERS: Json = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in {
        "x-trunkline-id": "The exchange's id, which stands in the log, too.",
        "Retry-After": "After how many seconds to come back.",
        "x-should-retry": "Whether to send it again: `false` where it may have been billed.",
        "WWW-Authenticate": "How to present a key.",
        "Allow": "The methods that the path takes.",
    }.items()
}
