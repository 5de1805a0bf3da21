"""What answers at which path of a surface: the table that `frame` asks."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from proxy.client.frame import Endpoint, Find
from proxy.dialects import REALTIME
from proxy.dialects import find as find_dialect
from proxy.routes import Unrouted, Upstream
from proxy.surfaces import Located, Surface


def table(
    surface: Surface,
    unrouted: Unrouted,
    *,
    llm: Endpoint,
    realtime: Callable[[Upstream | None], Endpoint],
    models: Endpoint,
    kept: Callable[[Upstream], Endpoint],
    hooks: Endpoint,
    root: Endpoint,
    fixed: Mapping[str, Endpoint],
) -> Find:
    """Return the look-up of *surface*: *fixed* paths first, then what stands below its base paths.

    *kept* makes the endpoint of what is kept at an upstream, *realtime* that of sessions, which go to an
    upstream, if there is one, where they name no model; *root* answers at the base paths
    themselves, where clients look whether anybody is there, and people what.
    """
    at_upstreams = {name: kept(upstream) for name, upstream in unrouted.names().items()}
    sessions = {name: realtime(upstream) for name, upstream in unrouted.names().items()}
    by_model = realtime(None)
    bases = {base + slash for base in ("", *surface.base_paths) for slash in ("", "/")}

    def find(method: str, path: str) -> tuple[Endpoint, Located | None] | None:
        endpoint = fixed.get(path)
        if endpoint is not None:
            return endpoint, None
        if path.startswith("/hooks/") and surface.serves("hooks"):
            return hooks, None
        if method in root.methods and path in bases:
            return root, None
        located = surface.locate(path)
        return _below(method, located) if located is not None and located.suffix else None

    def _below(method: str, located: Located) -> tuple[Endpoint, Located] | None:
        if located.suffix == "models/":
            located = replace(located, suffix="models")
        dialect, suffix = located.dialect, located.suffix
        upstream = unrouted.match(located.base, suffix) if surface.serves(suffix) else None
        carries = llm
        if dialect is REALTIME:
            carries = by_model if upstream is None else sessions[upstream.name]
        if dialect is not None and method in carries.methods:
            return carries, located
        listing = suffix == "models" or suffix.startswith("models/")
        if listing and surface.models == "hidden":
            return None
        if listing and method in models.methods:
            return models, replace(located, dialect=None)
        if upstream is not None:
            return at_upstreams[upstream.name], replace(located, dialect=None)
        if dialect is not None:
            return carries, located  # which says what it takes
        if find_dialect(suffix) is not None:
            return None  # one that this surface leaves out
        return (models, located) if listing else None

    return find
