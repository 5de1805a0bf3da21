"""What a case is, and all that there are."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults.house import At, house_of
from tests.faults.places import Spot

Run = Callable[..., Awaitable[None]]
HTTP = Spot()


@dataclass(frozen=True)
class Case:
    """One failure: the *spots* that its route leads to, and what is done and must come of it.

    *id* is that of the catalogue, with a letter where there is more than one. *forms* are what is
    passed to *run* one after the other, each a test of its own. An *alone* one has no part in the
    house that the others share: it builds its own.
    """

    id: str
    run: Run
    spots: Mapping[str, Spot] = field(default_factory=dict)
    routes: str = ""
    more: str = ""
    forms: Mapping[str, Any] | None = None
    long: bool = False
    alone: bool = False
    needs: str = ""

    @property
    def places(self) -> dict[str, Spot]:
        """Return the spots by the names of their upstreams."""
        return {f"{self.id}-{name}": spot for name, spot in self.spots.items()}


CASES: list[Case] = []


def case(
    name: str,
    *,
    spots: Mapping[str, Spot] | Spot = HTTP,
    route: str = "",
    routes: str | None = None,
    more: str = "",
    forms: Mapping[str, Any] | None = None,
    long: bool = False,
    needs: str = "",
) -> Callable[[Run], Run]:
    """Make a case of a function. *route* stands in its route's table, behind `upstream = …`; in it and in
    *routes* and *more* `@` stands for the case's id. *needs* is a program without which there is no
    such case.
    """
    standing = {"A": spots} if isinstance(spots, Spot) else spots
    if routes is None:
        routes = f'"@" = {{ upstream = "@-A"{", " if route else ""}{route} }}'

    def add(run: Run) -> Run:
        CASES.append(
            Case(
                name,
                run,
                standing,
                routes.replace("@", name),
                more.replace("@", name),
                forms,
                long,
                needs=needs,
            )
        )
        return run

    return add


def alone(
    name: str, *, forms: Mapping[str, Any] | None = None, long: bool = False, needs: str = ""
) -> Callable[[Run], Run]:
    """Make a case of a function that builds a house of its own."""

    def add(run: Run) -> Run:
        CASES.append(Case(name, run, forms=forms, long=long, alone=True, needs=needs))
        return run

    return add


@asynccontextmanager
async def apart(
    spots: Mapping[str, Spot] | Spot = HTTP,
    route: str = "",
    *,
    routes: str | None = None,
    settles: bool = True,
    check: bool = True,
    **kwargs: Any,
) -> AsyncIterator[At]:
    """Build a house for one case. With *settles* false the proxy does not outlive it."""
    standing = {"A": spots} if isinstance(spots, Spot) else spots
    if routes is None:
        routes = f'"m" = {{ upstream = "A"{", " if route else ""}{route} }}'
    async with house_of(standing, routes, check=check, **kwargs) as house:
        at = house.at("m")
        try:
            yield at
        finally:
            at.leave()
        if settles:
            await house.settle(at)
