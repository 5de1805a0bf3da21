"""What answers at which path of a surface: the table that `frame` asks."""

from collections.abc import Mapping

from proxy.frame import Endpoint, Find
from proxy.surfaces import Located, Surface


def table(surface: Surface, llm: Endpoint, models: Endpoint, fixed: Mapping[str, Endpoint]) -> Find:
    """Return the look-up of *surface*: *fixed* paths first, then what lies below its base paths."""

    def find(path: str) -> tuple[Endpoint, Located | None] | None:
        endpoint = fixed.get(path)
        if endpoint is not None:
            return endpoint, None
        located = surface.locate(path)
        if located is None:
            return None
        return (models if located.dialect is None else llm), located

    return find
