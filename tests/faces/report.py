"""The report at the end of a run: the rows of the design's table, and the clients that kept them."""

from collections.abc import Iterable

import pytest

TITLES = {
    "aihummer": "AiHummer",
    "aihubspot": "AIHubSpot",
    "gateway": "the gateway on 18888",
    "humiris": "Humiris",
}
ROWS = (
    *("surface", "chat", "keys", "model strings", "models", "system", "docs", "hooks", "errors"),
    "answers",
)
CLIENTS = ("curl", "OpenAI Python", "OpenAI Node", "requests", "node-fetch", "fetch", "bytes")
FILES = ("own", "all")
_MARKS = {"passed": "✓", "skipped": "–"}

Told = dict[tuple[str, str, str, str], str]
"""What became of it, by system, row, client and file."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name, client): the row of the table that a test keeps")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told: Told = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, place in getattr(report, "user_properties", ()):
                if name == "face":
                    face, row, client, file = place
                    mark = _MARKS.get(outcome, "✗")
                    told[face, row, client, file] = worse(told.get((face, row, client, file)), mark)
    if told:
        terminalreporter.section("four faces: each cell is its own file, then all.toml")
        for line in lines(told):
            terminalreporter.write_line(line)


def worse(one: str | None, other: str) -> str:
    return other if one is None else max(one, other, key="–✓✗".index)


def lines(told: Told) -> Iterable[str]:
    """Write the report."""
    for face, title in TITLES.items():
        found = {place for place in told if place[0] == face}
        if not found:
            continue
        clients = [client for client in CLIENTS if any(place[2] == client for place in found)]
        yield f"{title:<22}" + "".join(f"{client:<15}" for client in clients)
        for row in ROWS:
            if any(place[1] == row for place in found):
                cells = (
                    " ".join(told.get((face, row, client, file), "·") for file in FILES)
                    for client in clients
                )
                yield f"  {row:<20}" + "".join(f"{cell:<15}" for cell in cells).rstrip()
        yield ""
