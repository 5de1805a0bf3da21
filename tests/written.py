"""Write the tables of `docs/` anew that are made from what the program knows: `scripts/docs`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from proxy import errors
from proxy.cli import presets
from proxy.config.presets import load
from proxy.errors import Kind

DOCS = Path(__file__).parents[1] / "docs"
WHOSE = {
    "caller": "the caller's",
    "proxy": "ours",
    "operator": "the operator's",
    "upstream": "the upstream's",
}
OTHERWISE = {"stream": "in a stream", "log": "in the log"}
"""Where an error is told that has no status any more."""


def of_errors(kinds: Iterable[Kind] = errors.KINDS) -> str:
    """Return the table of `docs/errors.md`: a row for each code, by status."""
    by_code: dict[str, list[Kind]] = {}
    for kind in kinds:
        by_code.setdefault(kind.code, []).append(kind)
    rows = sorted(by_code.values(), key=lambda same: _place(same[0]))
    lines = [
        "| status | code | whose | what happened | what to do | with |",
        "|---|---|---|---|---|---|",
    ]
    for same in rows:
        kind = same[0]
        where = ", ".join(OTHERWISE.get(one.step, str(one.status)) for one in same)
        cells = (where, f"`{kind.code}`", WHOSE[kind.fault], kind.meaning, kind.remedy, _with(kind))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _place(kind: Kind) -> tuple[bool, bool, int]:
    return kind.step == "log", kind.step == "stream", kind.status


def _with(kind: Kind) -> str:
    hints = []
    if kind.retry is not None:
        hints.append(f"`x-should-retry: {'true' if kind.retry else 'false'}`")
    if kind.close:
        hints.append("`Connection: close`")
    return ", ".join(hints)


def of_vendors() -> str:
    """Return the table of `docs/vendors.md`."""
    return presets.markdown(load())


PAGES: Mapping[str, Callable[[], str]] = {"errors.md": of_errors, "vendors.md": of_vendors}


def renewed(page: str, table: str) -> str:
    """Return *page* with *table* in the place of the one there that has the same first line."""
    head = table.partition("\n")[0] + "\n"
    before, found, after = page.partition(head)
    if not found or head in after:
        raise ValueError(f"the page has not one table that begins with {head}")
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        del rest[0]
    return before + table + "".join(rest)


def main() -> None:
    """Write them."""
    for name, table in PAGES.items():
        file = DOCS / name
        file.write_text(renewed(file.read_text("utf-8"), table()), "utf-8")


if __name__ == "__main__":
    main()
