"""One proxy for the whole file, in a process of its own, and every place that its routes lead to."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from tests.faults import report
from tests.faults.shared import Shared, shared_house


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """The house that cases share, on a loop of its own; in the end the proxy must leave in order."""
    directory: Path = tmp_path_factory.mktemp("faults")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        building = shared_house(directory)
        yield Shared(runner, runner.run(building.__aenter__()))
        runner.run(building.__aexit__(None, None, None))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    with suppress(AttributeError):
        report.tell(terminalreporter)
