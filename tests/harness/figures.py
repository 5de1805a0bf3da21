"""What the tests measure: shown at the terminal, and what it is made of."""

import os
from itertools import combinations
from pathlib import Path
from statistics import median, quantiles

import pytest

PAGE = os.sysconf("SC_PAGE_SIZE")


def show(request: pytest.FixtureRequest, text: str) -> None:
    """Keep *text* to be shown at the end of the run."""
    request.node.user_properties.append(("figures", text))


def tell(reporter: pytest.TerminalReporter) -> None:
    """Show what the tests that were run have measured."""
    reports = [one for kind in ("passed", "failed") for one in reporter.stats.get(kind, ())]
    texts = [text for one in reports for name, text in one.user_properties if name == "figures"]
    if texts:
        reporter.section("figures")
    for text in texts:
        reporter.write_line(text)


def resident(pid: int) -> float:
    """Return how much memory the process *pid* has in use, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def peak(pid: int) -> float:
    """Return how much memory the process *pid* has ever had in use, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(pid)


def descriptors(pid: int) -> int:
    """Return how many descriptors the process *pid* has."""
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def slope(points: list[tuple[float, float]]) -> float:
    """Return how steeply *points* rise: the median over all pairs (Theil and Sen)."""
    pairs = combinations(points[:: max(1, len(points) // 400)], 2)
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if a[0] != b[0])


def percentile(values: list[float], which: int) -> float:
    """Return the *which*th percentile of *values*."""
    return quantiles(values, n=100)[which - 1]
