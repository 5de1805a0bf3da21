"""The variables that a verb sees: the process's own, and those of `--env-file`."""

from collections.abc import Mapping
from pathlib import Path

from proxy.lifecycle import CannotStart


def environ(process: Mapping[str, str], file: str | None) -> Mapping[str, str]:
    """Return *process* over the variables of *file*. Raises `CannotStart`."""
    if file is None:
        return process
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise CannotStart(f"{file} cannot be read") from None
    values: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise CannotStart(f"{file}:{number} is not NAME=VALUE")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        values[name.strip()] = value
    return {**values, **process}
