"""Files that are no files of ours: not there, not text, not TOML."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.config import ConfigError, load
from tests.config.files import ROUTES, told


def test_not_utf8() -> None:
    """A file that is not UTF-8 is refused, saying at which byte."""
    (message,) = told(b'[routes]\nm = "\xff"').values()
    assert "UTF-8" in message
    assert "14" in message


@pytest.mark.parametrize(
    ("toml", "place"),
    [
        ("[routes\n", "line 1, column 8"),
        ('[routes]\nm = "openai/x\n', "line 2"),
        ("[routes]\nm = openai/x\n", "line 2, column 5"),
        ('[routes]\nm = "a"\nm = "b"\n', "line 3"),
        ("[routes]\n[routes]\n", "line 2"),
        ("{}", "line 1, column 1"),
        ('{"routes": {}}', "line 1, column 1"),
        ("routes:\n  m: openai/x\n", "line 1, column 7"),
        ("[keys]\nk = sk-CANARY-0123456789\n", "line 2, column 5"),
        ('[keys]\nk = "sk-CANARY-0123456789\n', "line 2"),
        ("a = 2027-13-45\n", "line 1"),
        ("a = 0x\n", "line 1"),
        ("a = '\x01'\n", "line 1"),
    ],
)
def test_not_toml(toml: str, place: str) -> None:
    """A file that is not TOML is refused with line and column, quoting nothing that may be a secret."""
    (message,) = told(toml).values()
    assert "is not TOML" in message
    assert place in message
    assert "CANARY" not in message


@pytest.mark.parametrize(
    "toml",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{a = " * 5000 + "1" + "}" * 5000,
        ".".join(["a"] * 3000) + " = 1",
        "[" + ".".join(["a"] * 3000) + "]",
        "a = " + "9" * 5000,
        "a = -" + "9" * 5000,
        "a = 0x" + "f" * 50_000,
        "a = 1e999999",
        "a = nan",
    ],
    ids=[
        "arrays",
        "inline tables",
        "dotted key",
        "header",
        "integer",
        "negative",
        "hex",
        "inf",
        "nan",
    ],
)
def test_monstrous_toml(toml: str) -> None:
    """What breaks a parser is refused like everything else that is wrong."""
    assert told(f"{toml}\n")


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _forbidden(path: Path) -> None:
    path.write_text(ROUTES)
    path.chmod(0)


def _missing(path: Path) -> None:
    assert not path.exists()


UNREADABLE: list[tuple[Callable[[Path], None], str]] = [
    (_missing, "no such file"),
    (_directory, "is a directory"),
    (_loop, "symbolic links"),
]
if os.geteuid() != 0:  # nothing is forbidden to root
    UNREADABLE.append((_forbidden, "permission denied"))


@pytest.mark.parametrize(("make", "why"), UNREADABLE)
def test_unreadable(make: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    """A file that cannot be read is named, with the reason."""
    file = tmp_path / "routes.toml"
    make(file)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}: cannot be read: ")
    assert why in str(caught.value)
