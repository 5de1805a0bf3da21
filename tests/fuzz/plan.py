"""The routes files under which everything happens, and how long a proxy that serves one may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

CONNECT, FIRST_BYTE, IDLE, WRITE, DEADLINE, KEEPALIVE = 5, 30, 20, 10, 100, 7
"""What is written into the file, in seconds."""
BEGINS = DEADLINE + CONNECT + 2 * WRITE + FIRST_BYTE
"""How long it may take until an answer begins: an attempt that was begun in time has all of its own."""
STALE, GRACE, LEAVING = 0.5, 2.0, 1.0
"""How soon a used connection is closed that was not read, how long a stream may stay open behind its
marker, and a vendor work for a caller who has left.
"""
SLACK = 1.0
"""How much later than the file says something may happen."""


@dataclass(frozen=True)
class Plan:
    """A routes file: what it allows, whose *secrets* go where, and which vendors a route leads to."""

    attempts: int = 3
    stale: bool = True
    failover_5xx: bool = True
    ambiguous: bool = False
    keepalive: bool = False
    peek: bool = False
    policy: str = "ordered"
    secrets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"one": ("a-1", "a-2"), "two": ("b-1",), "free": ("c-1",)}
    )
    routes: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "solo": ("two",),
            "chain": ("one", "two"),
            "cheap": ("free", "two"),
            "any": ("one", "free", "two"),
        }
    )

    def toml(self, places: Mapping[str, str]) -> str:
        """Write the file, of which the vendors are at *places*."""
        lines = [
            "[defaults]",
            f'timeout = {{ connect = "{CONNECT}s", first_byte = "{FIRST_BYTE}s", idle = "{IDLE}s",'
            f' write = "{WRITE}s" }}',
            f'retry = {{ attempts = {self.attempts}, deadline = "{DEADLINE}s",'
            f" stale = {_said(self.stale)}, failover_5xx = {_said(self.failover_5xx)},"
            f" ambiguous = {_said(self.ambiguous)} }}",
            f'keepalive = "{KEEPALIVE}s"' if self.keepalive else "",
            "[unrouted]",
            '"files" = "two"',
        ]
        for name, secrets in self.secrets.items():
            lines += [f"[upstreams.{name}]", f'base_url = "{places[name]}"']
            lines += [f"credential = {_said(secrets)}", f"billed = {_said(name != 'free')}"]
        lines.append("[routes]")
        for route, vendors in self.routes.items():
            first, *others = [f"{name}/x" for name in vendors]
            where = f'upstream = "{vendors[0]}", model = "*", fallback = {_said(others)}'
            if route == "any":
                targets = ", ".join(f'{{ to = "{to}" }}' for to in (first, *others))
                where = f'targets = [{targets}], policy = "{self.policy}"'
            lines.append(f'"{route}/*" = {{ {where}, peek = {_said(self.peek)} }}')
        return "\n".join(lines)


def _said(value: object) -> str:
    """Write *value*, of which TOML and JSON think alike."""
    return orjson.dumps(value).decode()


PLANS = (
    Plan(),
    Plan(
        attempts=2,
        stale=False,
        failover_5xx=False,
        keepalive=True,
        peek=True,
        routes={
            "solo": ("one",),
            "chain": ("two", "one"),
            "cheap": ("free",),
            "any": ("one", "two"),
        },
    ),
    Plan(
        attempts=5,
        ambiguous=True,
        policy="least-busy",
        secrets={"one": ("a-2", "a-3"), "two": ("b-2",), "free": ("c-1",)},
    ),
)
