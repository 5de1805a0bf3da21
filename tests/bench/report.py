"""What a run found: kept round by round, shown as a table, as JSON, as Markdown."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.figures import FIGURES


@dataclass
class Result:
    """What was found of one subject: each figure as often as it was taken, or why there is none."""

    name: str
    title: str
    ours: bool
    version: str = ""
    error: str = ""
    taken: dict[str, dict[int, float]] = field(default_factory=dict)
    """Each figure, by the round in which it was taken."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why a measure could not be taken."""
    limited: dict[str, str] = field(default_factory=dict)
    """Why a measure was thrown away, in one round at least: the load was its limit."""
    done: set[str] = field(default_factory=set)

    def take(self, measured: dict[str, float], turn: int | None = None) -> None:
        """Keep what was *measured* in the round *turn*, or in the one behind the last."""
        for name, value in measured.items():
            rounds = self.taken.setdefault(name, {})
            rounds[len(rounds) if turn is None else turn] = value

    def figure(self, name: str) -> float | None:
        """Return the median of a figure."""
        values = self.taken.get(name)
        return median(values.values()) if values else None


class Results:
    """What was found of all; the first is what the others are compared with."""

    def __init__(self) -> None:
        self.all: dict[str, Result] = {}
        self.limits: dict[str, float] = {}
        self.about: dict[str, object] = {}

    def add(self, result: Result) -> Result:
        """Have one more."""
        self.all[result.name] = result
        return result

    def __getitem__(self, name: str) -> Result:
        return self.all[name]

    @property
    def first(self) -> Result:
        """What the others are compared with."""
        return next(iter(self.all.values()))

    def ratio(self, name: str, of: Result, to: Result) -> float | None:
        """Return how often *of*'s figure holds *to*'s: the median of the ratios of rounds that have both."""
        ours, theirs = of.taken.get(name, {}), to.taken.get(name, {})
        both = ours.keys() & theirs.keys()
        ratios = [ours[turn] / theirs[turn] for turn in both if theirs[turn] > 0]
        return median(ratios) if ratios else None

    def told(self) -> dict[str, object]:
        """Return all of it, as it is written to a file."""
        return {
            "about": self.about,
            "limits": self.limits,
            "subjects": {name: self._told(result) for name, result in self.all.items()},
            "goals": [goal.told() for goal in goals(self)],
        }

    def _told(self, result: Result) -> dict[str, object]:
        figures = {
            name: {
                "unit": FIGURES[name].unit,
                "median": median(values.values()),
                "rounds": [*values.values()],
                "ratio": self.ratio(name, result, self.first),
            }
            for name, values in result.taken.items()
        }
        return {
            "title": result.title,
            "version": result.version,
            "error": result.error or None,
            "figures": figures,
            "notes": {**result.limited, **result.notes},
        }


@dataclass(frozen=True)
class Goal:
    """One goal, and what was found."""

    title: str
    wanted: str
    found: str
    met: bool

    def told(self) -> dict[str, object]:
        """Return it for JSON."""
        return {"title": self.title, "wanted": self.wanted, "found": self.found, "met": self.met}


PEER_GOALS = {"ferrogw": 1 / 3, "portkey": 1 / 15, "litellm": 1 / 100}
"""Ours must not cost more than so much of theirs, per plain request."""


def goals(results: Results) -> Iterator[Goal]:
    """Yield the goals of which something was measured."""
    ours = results.first
    for name, figure in FIGURES.items():
        value = ours.figure(name)
        if figure.goal is not None and value is not None:
            yield Goal(
                figure.title,
                f"≤ {figure.goal:g} {figure.unit}",
                f"{value:.{figure.digits}f} {figure.unit}",
                value <= figure.goal,
            )
        envoy = results.all.get("envoy")
        if figure.envoy is not None and envoy is not None:
            ratio = results.ratio(name, ours, envoy)
            if ratio is not None:
                wanted = f"≤ {figure.envoy:.1f} × Envoy"
                yield Goal(figure.title, wanted, f"{ratio:.2f} ×", ratio <= figure.envoy)
    for peer, most in PEER_GOALS.items():
        if peer in results.all:
            ratio = results.ratio("plain64", ours, results[peer])
            if ratio is not None:
                title = f"request beside {results[peer].title}"
                yield Goal(title, f"≤ 1/{1 / most:.0f}", f"1/{1 / ratio:.1f}", ratio <= most)
    for name in ("routes", "keys", "workers"):
        if name in results.all:
            ratio = results.ratio("plain64", results[name], ours)
            if ratio is not None:
                title = f"request, {results[name].title}"
                yield Goal(title, "≤ 1.10 ×", f"{ratio:.2f} ×", ratio <= 1.1)


def rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the table's head and its rows: a figure a row, a subject a column."""
    shown = [result for result in results.all.values() if not result.error]
    head = ["", *(f"{r.title} {r.version}".strip() if not r.ours else r.title for r in shown)]
    body = []
    for name, figure in FIGURES.items():
        if not any(name in result.taken for result in shown):
            continue
        cells = [f"{figure.title}, {figure.unit}"]
        for result in shown:
            value = result.figure(name)
            cell = "–" if value is None else f"{value:,.{figure.digits}f}"
            ratio = None if result is results.first else results.ratio(name, result, results.first)
            cells.append(cell if ratio is None else f"{cell} ({ratio:.2f} ×)")
        body.append(cells)
    return head, body


def remarks(results: Results) -> Iterator[str]:
    """Yield what must be said beside the table."""
    about = results.about
    yield (
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, Python {about['python']}; "
        f"{about['time']}, load {about['load']} before; {about['rounds']} rounds, "
        f"{about['seconds']} s each; in brackets: the median of the rounds' ratios to Trunkline"
    )
    if about.get("shared"):
        yield "proxy, upstream and load shared one core: latencies and rates tell about all of them"
    if results.limits:
        alone = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in results.limits.items())
        yield f"upstream and load alone: {alone}"
    if results.limits.keys() & {"pieces", "burst"}:
        yield (
            "many writes keep the upstream busier than a fast proxy, which then reads them one by one: "
            "with 12 and 103 writes the costs of fast ones swing"
        )
    for result in results.all.values():
        if result.error:
            yield f"{result.title}: not measured: {result.error}"
        limited = {n: f"in some rounds {why}" for n, why in result.limited.items()}
        for name, note in {**limited, **result.notes}.items():
            yield f"{result.title}, {name}: {note}"


def markdown(results: Results) -> str:
    """Return the table, the goals and the remarks as Markdown."""
    head, body = rows(results)
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1)), *map(_row, body), ""]
    found = [*goals(results)]
    if found:
        lines += [_row(["goal", "wanted", "found", ""]), _row(["---"] * 4)]
        lines += [
            _row([g.title, g.wanted, g.found, "met" if g.met else "**missed**"]) for g in found
        ]
        lines.append("")
    lines += [f"- {remark}" for remark in remarks(results)]
    return "\n".join(lines) + "\n"


def write(file: Path, results: Results, mark: str) -> None:
    """Write the Markdown to *file*: between its marks of this name if it has them, else all of it."""
    page = file.read_text("utf-8") if file.exists() else ""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    table = markdown(results)
    if begun and ended:
        table = f"{before}{begun}\n{table}\n{ended}{after}"
    file.write_text(table, "utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def show(results: Results) -> None:
    """Print the table, with rich if it is there and somebody looks."""
    head, body = rows(results)
    if not (sys.stdout.isatty() and _rich(head, body)):
        widths = [max(len(row[at]) for row in [head, *body]) for at in range(len(head))]
        for row in [head, *body]:
            others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            print(row[0].ljust(widths[0]), *others, sep="  ")
    for goal in goals(results):
        print(
            f"{'met   ' if goal.met else 'MISSED'} {goal.title}: {goal.found}, wanted {goal.wanted}"
        )
    for remark in remarks(results):
        print(remark)


def _rich(head: list[str], body: list[list[str]]) -> bool:
    """Print a table with rich; return whether it is there."""
    try:
        from rich.console import Console  # not required
        from rich.table import Table
    except ImportError:
        return False
    table = Table(*head)
    for column in table.columns[1:]:
        column.justify = "right"
    for cells in body:
        table.add_row(*cells)
    Console().print(table)
    return True
