"""One process for each file of the examples, and one scripted upstream behind them all."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from tests.faces.face import Face
from tests.faces.files import FACES, Prepared, keys, listens, port_of, prepare, surface
from tests.faces.model import Model, in_a_thread
from tests.harness.proxy import process

STRICT = ("-W", "error")
"""Every warning an error; not `-X dev`, which also complains of a machine that is busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note of each test which cell of the report it fills."""
    here = Path(__file__).parent
    for item in items:
        mark = item.get_closest_marker("row")
        if mark is None or here not in item.path.parents:
            continue
        parameters = getattr(item, "callspec", None)
        file = parameters.params.get("file", "own") if parameters else "own"
        rows = mark.args[0] if isinstance(mark.args[0], tuple) else (mark.args[0],)
        for row in rows:
            place = (item.path.stem.removeprefix("test_"), row, mark.args[1], file)
            item.user_properties.append(("face", place))


@pytest.fixture(scope="session")
def known() -> dict[str, str]:
    """The key of each system's clients."""
    return keys()


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    with in_a_thread() as running:
        yield running


def _serve(prepared: Prepared) -> Iterator[Prepared]:
    """Serve a file; at its end, it must have said nothing on stderr, and nothing secret in its log."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        running = process(prepared.toml, prepared.env, listen=None, python=STRICT)
        proxy = runner.run(running.__aenter__())
        try:
            yield prepared
            log = proxy.log.read_text("utf-8")
        finally:
            runner.run(running.__aexit__(None, None, None))
        assert not any(secret in log for secret in prepared.secrets)


@pytest.fixture(scope="session")
def together(model: Model, known: dict[str, str]) -> Iterator[Prepared]:
    """All four systems in one process."""
    yield from _serve(prepare("all", model.origin, known))


@pytest.fixture(scope="module")
def alone(
    request: pytest.FixtureRequest, model: Model, known: dict[str, str]
) -> Iterator[Prepared]:
    """The system of a module of tests, by itself."""
    yield from _serve(prepare(name_of(request), model.origin, known))


def name_of(request: pytest.FixtureRequest) -> str:
    name = request.path.stem.removeprefix("test_")
    assert name in FACES
    return name


@pytest.fixture(params=["own", "all"])
def file(request: pytest.FixtureRequest) -> str:
    """Which file it is that runs: the system's own, or the one of all four."""
    return str(request.param)


@pytest.fixture
def face(
    request: pytest.FixtureRequest, file: str, model: Model, known: dict[str, str]
) -> Iterator[Face]:
    """The system of a module of tests, by itself and among the others."""
    name = name_of(request)
    prepared: Prepared = request.getfixturevalue("together" if file == "all" else "alone")
    listen = listens(surface("all" if file == "all" else name, name))
    model.stands_behind(name)
    yield Face(name, file, prepared.ports[port_of(listen[0])], known[name], model)
    assert model.errors == []
