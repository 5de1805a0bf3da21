"""What `serve --welcome` says to somebody who has just started the proxy for the first time."""

from proxy import __version__
from proxy.config import Snapshot
from proxy.surfaces import Address, Surface

_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - addresses to show, not to listen on


def welcome(snapshot: Snapshot, address: Address) -> str:
    """Return two lines to try, a page to open, and which model strings work with the variables that are set."""
    surface = snapshot.surfaces[0]
    lines = [
        f"Trunkline {__version__} serves {snapshot.file} on {_url(surface, address)}",
        "",
        "Try it:",
        "",
        _curl("curl -s", surface, address, ""),
        "",
        _curl("curl -sN", surface, address, ', "stream": true'),
        "",
        *_pages(surface, address),
        *_vendors(snapshot),
    ]
    return "\n".join(lines) + "\n"


def _pages(surface: Surface, address: Address) -> list[str]:
    if not surface.docs or address.path:
        return []
    return ["Or in a browser:", "", f"  {_url(surface, address)}/docs", ""]


def _curl(command: str, surface: Surface, address: Address, more: str) -> str:
    base = "/v1" if "/v1" in surface.base_paths else surface.base_paths[0]
    key = ' -H "Authorization: Bearer $KEY"' if surface.auth == "keys" else ""
    socket = f" --unix-socket {address.path}" if address.path else ""
    body = f'{{"model": "default", "messages": [{{"role": "user", "content": "Hello"}}]{more}}}'
    json = "-H 'Content-Type: application/json'"
    return f"  {command}{socket} {_url(surface, address)}{base}/chat/completions{key} {json} -d '{body}'"


def _url(surface: Surface, address: Address) -> str:
    scheme = "http" if surface.tls is None else "https"
    if address.path:
        return f"{scheme}://localhost"
    host = "127.0.0.1" if address.host in _ANYWHERE else address.host
    return f"{scheme}://{Address(host, address.port)}"


def _vendors(snapshot: Snapshot) -> list[str]:
    """Return a line for each upstream: what makes it work, and the model strings that lead there."""
    works: dict[str, list[str]] = {}
    waits: dict[str, list[str]] = {}
    for route in snapshot.routes.routes:
        upstream = route.first.upstream
        variable = upstream.lacks(passthrough=False)
        if variable is not None:
            waits.setdefault(variable, []).append(route.name)
            continue
        sources = [credential.secret.source for credential in upstream.credentials]
        why = f"{', '.join(sources)} found" if sources else "needs no variable"
        works.setdefault(f"{upstream.name} ({why})", []).append(route.name)
    lines = ["These model strings work:"]
    lines += [f"  {', '.join(names)}  → {where}" for where, names in works.items()]
    if waits:
        lines += ["", "These come alive when you set the variable and start again:"]
        lines += [f"  {variable}: {', '.join(names)}" for variable, names in waits.items()]
    return lines
