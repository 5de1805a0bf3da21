"""What is wrong with a configuration: all of it at once, each with the place where it stands."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

Path = tuple[str | int, ...]
"""A place in the file: `("routes", "gpt-4o", "upstream")`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong at *path*, told to the operator as *message*."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """The configuration *file* cannot be used; *problems* says everything that is wrong with it."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{file}: {problem}" for problem in self.problems))


def dotted(path: Path) -> str:
    """Write *path* as TOML would: `routes."gpt-4o".upstream`, `surface[0].listen`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        bare = part.replace("-", "").replace("_", "")
        quoted = part if bare.isascii() and bare.isalnum() else '"' + part.replace('"', '\\"') + '"'
        text += f".{quoted}" if text else quoted
    return text


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return `, did you mean "…"?` for the *valid* name nearest to *name*, or nothing."""
    folded = {candidate.casefold(): candidate for candidate in valid}
    close = get_close_matches(name.casefold()[:128], folded, n=1, cutoff=0.6)
    return f'; did you mean "{folded[close[0]]}"?' if close else ""
