"""Everything runs on the loop that production runs on."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import hypothesis
import pytest
import uvloop

from tests.harness import figures
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import Upstream

pytest_plugins = ["tests.faces.report"]

TESTS = Path(__file__).parent

THOROUGH = {
    "bench", "clients", "config/test_any_file.py", "config/test_canaries.py", "faces", "faults", "fuzz",
    "test_bench.py", "test_children.py", "test_cli.py", "test_descriptors.py", "test_docs.py",
    "test_exchange.py", "test_faces_surfaces.py", "test_form.py", "test_heads_differential.py", "test_hooks.py",
    "test_keys_verb.py", "test_lifecycle.py", "test_live.py", "test_load.py", "test_openapi.py", "test_opening.py",
    "test_pages.py", "test_recordings.py", "test_relay_endings.py", "test_relay_shapes.py", "test_reload.py",
    "test_secrets.py", "test_server.py", "test_signals.py", "test_smuggling.py", "test_status.py",
    "test_supervisor.py", "test_transparency.py", "test_tunnel.py", "test_unrouted.py", "test_vendor_paths.py",
    "test_worker.py",
}  # fmt: skip
"""Directories and files, by name or by path, that `--quick` leaves out: what takes long, and what tries the clients more than us.

What is left tries what may differ from Python to Python: the loop and TLS (`test_transport.py`, `test_edge.py`), reading
of files, heads, bodies and streams, patterns, threads, and one exchange from end to end (`test_relay.py`).
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the slow tests too")
    parser.addoption("--quick", action="store_true", help="run what takes two minutes, all in all")
    parser.addoption("--no-skips", action="store_true", help="let a skipped test fail the run")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    names = {collection_path.name, str(collection_path.relative_to(TESTS))}
    return True if config.getoption("--quick") and names & THOROUGH else None


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("here", deadline=None)
    hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")
    config.addinivalue_line("markers", "long: too slow for every run; only with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out, rather than skip them: a skip means that something is missing."""
    if config.getoption("--long"):
        return
    slow = [item for item in items if item.get_closest_marker("long")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = _skipped(reporter) if reporter else 0
    if skipped and session.config.getoption("--no-skips") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures.tell(terminalreporter)
    skipped = _skipped(terminalreporter)
    if skipped:
        terminalreporter.write_line(f"{skipped} skipped: something they need is not installed")


def _skipped(reporter: pytest.TerminalReporter) -> int:
    """Return how many were skipped for want of what could be installed: recordings cannot, they are others'."""
    skipped = [report.nodeid for report in reporter.stats.get("skipped", ())]
    return len(skipped) - skipped.count("tests/test_recordings.py")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as scripted:
        yield scripted


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy without keys whose model `m` leads to the scripted upstream, under the same name."""
    async with serving(routes_to(upstream)) as running:
        yield running


def routes_to(upstream: Upstream, extra: str = "") -> str:
    """Return a routes file that leads every model to *upstream*, with a credential."""
    return f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
{extra}
[routes]
"*" = {{ upstream = "up", model = "*" }}
"""
