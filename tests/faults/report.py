"""What the suite says of itself at its end: how many cases there are, and what was sent how often."""

from collections.abc import Iterable

import pytest

SETTINGS = ("alone", "fallback", "two keys", "unbilled")


def tell(reporter: pytest.TerminalReporter) -> None:
    """Print the count of cases and the matrix of failures and sends, of the tests that were run."""
    reports = [one for kind in ("passed", "failed") for one in reporter.stats.get(kind, ())]
    facts = [fact for one in reports for name, fact in one.user_properties if name == "fault"]
    if not facts:
        return
    cases = {fact["case"] for fact in facts}
    seconds = sum(
        one.duration for one in reports if any(n == "fault" for n, _ in one.user_properties)
    )
    reporter.section("faults")
    reporter.write_line(f"{len(cases)} cases in {len(facts)} tests, {seconds:.0f} s")
    for line in matrix([fact for fact in facts if "sends" in fact]):
        reporter.write_line(line)


def matrix(facts: Iterable[dict[str, str]]) -> list[str]:
    """Return the lines of the table failure × setting → sends in full, by upstream."""
    cells = {(fact["failure"], fact["setting"]): fact["sends"] for fact in facts}
    failures = list(dict.fromkeys(failure for failure, _ in cells))
    if not failures:
        return []
    width = max(len(failure) for failure in failures)
    lines = [
        "",
        "whole requests seen by upstreams (A: the route's own, B: the fallback), by failure",
    ]
    lines.append(f"{'':{width}}  " + "  ".join(f"{setting:10}" for setting in SETTINGS))
    for failure in failures:
        row = (cells.get((failure, setting), "") for setting in SETTINGS)
        lines.append(f"{failure:{width}}  " + "  ".join(f"{cell:10}" for cell in row).rstrip())
    return lines
