"""Every case of the catalogue, one test id each, and what must hold after each of them."""

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from tests.faults import sends
from tests.faults.case import CASES, Case
from tests.faults.shared import SECTIONS, Shared

assert SECTIONS


def parameters() -> Iterator[Any]:
    """Yield every case that can be had on this machine, by its id and the name of its form."""
    for one in CASES:
        if one.needs and shutil.which(one.needs) is None:
            continue  # the README says which they are
        marks = [pytest.mark.long] if one.long else []
        for form in one.forms or [""]:
            name = f"{one.id}-{form}" if form else one.id
            yield pytest.param(one, form, id=name, marks=marks)


@pytest.mark.parametrize(("one", "form"), list(parameters()))
def test_case(one: Case, form: str, request: pytest.FixtureRequest) -> None:
    """After a failure the caller knows what happened, and nothing is left of it."""
    request.node.user_properties.append(("fault", {"case": one.id}))
    given = () if one.forms is None else (one.forms[form],)
    if one.alone:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(one.run(*given))  # type: ignore[arg-type]  # it is a coroutine
        return
    shared: Shared = request.getfixturevalue("shared")
    house = shared.house

    async def run() -> None:
        places = {
            name: house.places[f"{one.id}-{name}"]
            for name in one.spots
            if f"{one.id}-{name}" in house.places
        }
        at = house.at(one.id, places)
        try:
            await one.run(at, *given)
        finally:
            at.leave()
        await house.settle(at)

    shared.runner.run(run())


@pytest.mark.parametrize(
    ("failure", "setting"),
    [
        pytest.param(failure, setting, id=f"{failure}-{setting}")
        for failure in sends.FAILURES
        for setting in sends.FAILURES[failure].expected
    ],
)
def test_sends(shared: Shared, failure: str, setting: str, request: pytest.FixtureRequest) -> None:
    """Whole requests reach upstreams as often as the table says, and where it says: nothing is billed twice
    that it does not allow.
    """
    house = shared.house

    async def run() -> str:
        at = house.at(sends.name_of(failure, setting), sends.places_of(house, failure, setting))
        seen = await sends.run(at, failure, setting)
        await house.settle(at)
        return seen

    seen = shared.runner.run(run())
    fact = {"case": "sends", "failure": failure, "setting": setting, "sends": seen}
    request.node.user_properties.append(("fault", fact))
    assert seen == sends.FAILURES[failure].expected[setting]


def test_ids() -> None:
    """No case hides another one."""
    ids = [one.id for one in CASES]
    assert len(set(ids)) == len(ids)
