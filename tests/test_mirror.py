"""Every module has a test file of its own name, so that who changes one knows where to look."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TOGETHER = {"cli": "test_cli.py", "config": "test_config.py", "endpoints": "test_endpoints.py"}
"""Packages whose modules are tested in one file, because they are reached in one way."""


def modules() -> list[Path]:
    """Return every module, by its path below the package."""
    found = sorted(path.relative_to(ROOT / "proxy") for path in (ROOT / "proxy").rglob("*.py"))
    return [path for path in found if path.name not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_mirror(module: Path) -> None:
    """A module's tests stand in `tests/test_` and its name; a package's that is one thing, in one file."""
    name = TOGETHER.get(module.parts[0], f"test_{module.name}")
    file = ROOT / "tests" / name
    assert file.is_file(), f"proxy/{module} has no tests/{name}"
    assert "def test_" in file.read_text("utf-8")


def test_there_are_modules() -> None:
    """The mirror has something to show."""
    assert {Path("routes.py"), Path("config/upstreams.py"), Path("cli/serve.py")} <= set(modules())
