"""Find the model in a request's target, and put another in its place: where no body carries it.

Gemini's own paths name it (`models/gemini-2.5-pro:generateContent`), a WebSocket's query does
(`?model=gpt-realtime`). All else of the target stays as it is written. A `model` in the query of
what carries one in its body says the same, and goes, or the request is refused.
"""

from urllib.parse import quote, unquote_to_bytes

from proxy.dialects import native
from proxy.model.body import BodyError, in_lower_case, meant

_SAFE = "/@:"


def model_in_path(path: str) -> str:
    """Return the model that a Gemini-native *path* names. Raises `BodyError`."""
    return _decoded(native(path)[0])


def streams(path: str) -> bool:
    """Return whether the verb of a Gemini-native *path* asks for a stream."""
    return native(path)[1].startswith("stream")


def path_for(path: str, model: str) -> str:
    """Return a Gemini-native *path* with *model* in the place of the one it names.

    Raises `BodyError` where *model* would lead out of it.
    """
    spliced = f"models/{quote(model, safe=_SAFE, errors='surrogateescape')}:{native(path)[1]}"
    if not {".", ".."}.isdisjoint(spliced.split("/")):
        raise BodyError("`model` must not have dot segments", "model")
    return spliced


def model_in_query(query: str) -> str | None:
    """Return the model that *query* names, if it names one. Raises `BodyError` for two of them, in
    whatever case, and for a `deployment`, which Azure takes for one.
    """
    parts = query.split("&")
    found = [part for part in parts if _may_name_model(part)]
    if any(map(_hides_model, parts)):
        raise _behind_semicolon()
    if any(_name(part).casefold() == "deployment" for part in parts):
        raise BodyError("the query names a `deployment`; write `model`", "model")
    if not found:
        return None
    if len(found) > 1:
        raise BodyError("the query has two `model` parameters", "model")
    if not _names_model(found[0]):
        raise in_lower_case(_name(found[0]))
    return _value(found[0]) or None


def without_model(query: str, asked: str | None) -> str:
    """Return *query* less each `model` that says what the body says, where *asked* stands: it has said it.

    Raises `BodyError` for one, in whatever case, that says another: an upstream might obey it.
    """
    kept = []
    for part in query.split("&"):
        if _may_name_model(part):
            if asked is None or _value(part) != asked:
                raise BodyError("the query names another `model` than the body does", "model")
        elif any(map(_may_name_model, part.split(";"))):  # which some readers take for an `&`
            raise _behind_semicolon()
        else:
            kept.append(part)
    return "&".join(kept)


def _behind_semicolon() -> BodyError:
    """Return the refusal of what some readers take for an `&`."""
    return BodyError("the query names a `model` behind a semicolon", "model")


def model_in_deployment(deployment: str) -> str:
    """Return the model that *deployment*, as a path has it, names. Raises `BodyError`."""
    return _decoded(deployment)


def deployment_path(suffix: str, model: str) -> str:
    """Return the path of *suffix* in Azure's way, with *model* as the deployment. Raises `BodyError`
    where that would lead out of it.
    """
    if model in (".", ".."):
        raise BodyError("`model` must not be a dot segment", "model")
    return f"deployments/{quote(model, safe='', errors='surrogateescape')}/{suffix}"


def is_dated(query: str) -> bool:
    """Return whether *query* says an `api-version`, as Azure's does."""
    return any(_is_version(part) for part in query.split("&"))


def without_version(query: str) -> str:
    """Return *query* less its `api-version`, which says something to Azure alone."""
    return "&".join(part for part in query.split("&") if not _is_version(part))


def by_model(query: str) -> str:
    """Return *query* with `model` in place of `deployment`, as Azure's SDK names it."""
    parts = query.split("&")
    if any(_name(part) == "deployment" for part in parts):
        parts = [part for part in parts if not _names_model(part)]
    return "&".join(
        "model=" + part.partition("=")[2] if _name(part) == "deployment" else part for part in parts
    )


def names_no_model(query: str) -> bool:
    """Return whether *query* asks for a kind of session that has no model in its query: one that only
    transcribes, whose model is said later, or one that joins a call, which has its own.
    """
    names = {_name(part) for part in query.split("&")}
    return not names.isdisjoint({"intent", "call_id"})


def query_for(query: str, model: str) -> str:
    """Return *query* with *model* in the place of the one it names, at its end if it names none."""
    ours = f"model={quote(model, safe=_SAFE, errors='surrogateescape')}"
    parts = query.split("&") if query else []
    if not any(_names_model(part) for part in parts):
        return "&".join([*parts, ours])
    return "&".join(ours if _names_model(part) else part for part in parts)


def _is_version(part: str) -> bool:
    return _name(part) == "api-version"


def _names_model(part: str) -> bool:
    return _name(part) == "model"


def _may_name_model(part: str) -> bool:
    return meant(_name(part)) == "model"


def _hides_model(part: str) -> bool:
    return any(map(_may_name_model, part.split(";")[1:]))


def _name(part: str) -> str:
    name = part.partition("=")[0].replace("+", " ")
    return unquote_to_bytes(name.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


def _value(part: str) -> str:
    return _decoded(part.partition("=")[2].replace("+", " "))


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise BodyError("`model` must be UTF-8 text", "model") from None
