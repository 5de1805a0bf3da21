"""What a file says that works, and may not be what is meant: notes for `check`."""

from collections.abc import Iterable, Iterator

from proxy.config.draft import Draft
from proxy.config.presets import Preset
from proxy.config.problems import Path
from proxy.routes import Origin, Route, Unrouted, Upstream
from proxy.surfaces import Address, Surface, is_loopback

_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - it is looked for, not listened on


def advise(
    draft: Draft, routes: Iterable[Route], unrouted: Unrouted, surfaces: tuple[Surface, ...]
) -> None:
    """Note in *draft* what should be thought of twice."""
    led: dict[Upstream, Path] = {}
    for route in routes:
        for target in route.targets():
            led.setdefault(target.upstream, ("routes", route.name))
            if target.model is None:
                _own_name(draft, route, target.upstream)
    for prefix, upstream in unrouted.upstreams.items():
        led.setdefault(upstream, ("unrouted", prefix))
    for upstream, path in led.items():
        for surface in surfaces:
            if any(_is(surface, origin) for origin in _origins(upstream)):
                draft.note(
                    path,
                    f'"{upstream.name}" is at an address of this proxy itself (surface '
                    f'"{surface.name}"): a request that goes round asks another one, until '
                    "`max_inflight` is reached",
                )


def _own_name(draft: Draft, route: Route, upstream: Upstream) -> None:
    """Note where a name that begins with that of its *upstream* goes there otherwise than some expect."""
    name, literal = upstream.name, route.pattern.literal
    table = draft.file.upstreams.get(name)
    preset = draft.presets.get((table.preset if table is not None else None) or name, Preset())
    own = name + "/"
    known = preset.own.startswith(own)
    if literal.startswith(own) and known:
        draft.note(
            ("routes", route.name),
            f'"{own}" is cut off, and {preset.title} has ids that begin so: "{preset.own}" is asked '
            f'for as "{own}{preset.own}", or with a route of its own, '
            f'"{preset.own}" = "{own}{preset.own}"',
        )
    elif route.pattern.prefix and own.startswith(literal) and literal != own and not known:
        draft.note(
            ("routes", route.name),
            f'what is asked for as "{own}…" goes to {name} as it is; for it to be cut, add '
            f'"{own}*" = {{ upstream = "{name}" }}',
        )


def _origins(upstream: Upstream) -> Iterator[Origin]:
    yield upstream.base.origin
    for _, base in upstream.paths:
        yield base.origin


def _is(surface: Surface, origin: Origin) -> bool:
    """Return whether *surface* is at *origin*, as far as the file shows it."""
    host = origin.host.lower()
    return host in surface.hosts or any(_meets(address, origin) for address in surface.listen)


def _meets(address: Address, origin: Origin) -> bool:
    host, own = origin.host.lower(), address.host.lower()
    if address.path or address.port != origin.port:
        return False
    if host == own or (own in _ANYWHERE and (is_loopback(host) or host in _ANYWHERE)):
        return True
    return "localhost" in (host, own) and {host, own} <= {"localhost", "127.0.0.1", "::1"}
