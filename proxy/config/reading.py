"""Read `routes.toml`: TOML, then `${…}` in its values. The only part of Trunkline that reads files.

Two trees come out, of the same form: the *values*, and the text as *written*. Messages only ever
quote the second, so that what an environment variable holds cannot appear in one.
"""

import re
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from proxy.config.files import ROUTES_BYTES, SECRET_BYTES, Unreadable, read_regular
from proxy.config.instead import of_line
from proxy.config.problems import ConfigError, Path, Problem

_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
# What a shell would take for a variable: a whole value, or a word's end in capitals. A `$` elsewhere
# is one, in a password say.
_BARE = re.compile(r"(\$\$)|\A\$([A-Za-z_][A-Za-z0-9_]*)\Z|\$([A-Z][A-Z0-9_]+)(?!\S)")
_NAMED = re.compile(r"[A-Z_]{1,40}[0-9]{0,2}")


class Unset(Exception):
    """A reference that has no value; the message says which, and what would give it one."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a snapshot is made of: the *content* of the file, and *variables* beside the environment's.

    *keyed* says that keys were in force in this process before: a file that says nothing of keys
    must not open then what they had closed.
    """

    content: bytes
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    keyed: bool = False


def fetch(file: FilePath) -> bytes:
    """Return what *file* holds. Raises `ConfigError`."""
    try:
        return read_regular(file, ROUTES_BYTES)
    except Unreadable as error:
        raise ConfigError(str(file), [Problem((), f"cannot be read: {error}")]) from None


def parse(file: FilePath, content: bytes) -> dict[str, Any]:
    """Return the *content* of *file*, parsed, as it is written. Raises `ConfigError`."""
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # Windows puts a BOM before it
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text (byte {error.start})"
        if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            message = "is UTF-16 text; save it as UTF-8"
        raise ConfigError(str(file), [Problem((), message)]) from None
    except RecursionError:
        raise ConfigError(str(file), [Problem((), "is nested too deeply")]) from None
    except ValueError as error:  # tomllib.TOMLDecodeError, and what its parts raise
        message = f"is not TOML: {error}{of_line(content, str(error))}"
        raise ConfigError(str(file), [Problem((), message)]) from None


class Filler:
    """Fills in `${VAR}`, `${VAR:-default}`, `${file:PATH}` and `$$` from *environ*.

    What could not be filled is kept in *problems*; its value is then left as it is written.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []

    def fill(self, value: Any, path: Path = ()) -> Any:
        """Return *value*, a piece of a parsed file that stands at *path*, with its references filled."""
        if isinstance(value, dict):
            return {name: self.fill(item, (*path, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value
        try:
            if path[:1] != ("hooks",) or path[2:] != ("system",):  # a prompt may speak of money
                _refuse_bare(value)
            return self.text(value)
        except Unset as unset:
            self.problems.append(Problem(path, str(unset)))
            return value

    def text(self, written: str) -> str:
        """Return *written* with its references filled. Raises `Unset`."""
        return _REFERENCE.sub(self._reference, written)

    def variable(self, name: str) -> str | None:
        """Return the value of the variable *name*, or of the file that `NAME_FILE` names.

        Raises `Unset` where there is one that cannot be read.
        """
        value = self._own(name)
        if value:
            if not _is_text(value):
                raise Unset(f"the environment variable {name} is not UTF-8 text")
            return value
        pointer = self.pointer(name)
        return _read_secret(pointer, f"the file that {name}_FILE names") if pointer else None

    def pointer(self, name: str) -> str | None:
        """Return the file that stands in for the variable *name*, if one does."""
        return None if self._own(name) else self._environ.get(name + "_FILE") or None

    def _own(self, name: str) -> str:
        """Return the value of the variable itself: white space around it is nobody's secret."""
        return self._environ.get(name, "").strip()

    def files(self, written: object) -> tuple[str, ...]:
        """Return the files that the value *written* comes from."""
        if not isinstance(written, str):
            return ()
        names = [match[1] for match in _REFERENCE.finditer(written) if match[1]]
        found = [name[5:] if name.startswith("file:") else self._behind(name) for name in names]
        return tuple(file for file in found if file)

    def _behind(self, reference: str) -> str | None:
        parsed = _VARIABLE.fullmatch(reference)
        return self.pointer(parsed[1]) if parsed else None

    def _reference(self, match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            raise Unset("has a `${` without its `}`; write `$$` for a plain dollar sign")
        if match[1].startswith("file:"):
            return _read_secret(match[1][5:], f"the file {match[1][5:]}")
        parsed = _VARIABLE.fullmatch(match[1])
        if parsed is None:
            raise Unset(
                f"`{match[0]}` is not a reference: write ${{NAME}}, ${{NAME:-default}} "
                "or ${file:PATH}"
            )
        value = self.variable(parsed[1])
        if value is None and parsed[2] is not None:
            _refuse_bare(parsed[2])
            value = parsed[2].replace("$$", "$")
        if value is None:
            raise Unset(f"the environment variable {parsed[1]} is not set")
        return value


def source_of(written: object, path: str) -> str:
    """Return where an operator finds the value that is *written* at *path*: a variable, or the file."""
    if isinstance(written, str):
        match = _REFERENCE.fullmatch(written)
        if match is not None and match[1]:
            return match[1].split(":-")[0]
    return path


def _read_secret(path: str, what: str) -> str:
    """Return what the file at *path* holds; *what* is how a message calls it, perhaps not its path:
    who puts a secret where a path belongs must not read it there.
    """
    try:
        return read_regular(path, SECRET_BYTES).decode("utf-8-sig").strip()
    except Unreadable as error:
        raise Unset(f"{what} cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise Unset(f"{what} is not UTF-8 text") from None


def _refuse_bare(written: str) -> None:
    """Refuse a variable that is *written* without its braces. Raises `Unset`."""
    for found in _BARE.finditer(_REFERENCE.sub(_blank, written)):
        name = found[2] or found[3]
        if name is None:  # `$$`
            continue
        shown = name if _NAMED.fullmatch(name) else "NAME"  # else it may well be a password
        raise Unset(
            f"a variable is written ${{{shown}}}, with braces; for a plain dollar sign write `$$`"
        )


def _blank(reference: re.Match[str]) -> str:
    """Return what stands for a *reference* where only the text around it matters."""
    return reference[0] if reference[0] == "$$" else "." * len(reference[0])


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
