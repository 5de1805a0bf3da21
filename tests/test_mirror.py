"""Every module's tests are found by its path, so that who changes one knows where to look."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROXY, TESTS = ROOT / "proxy", ROOT / "tests"

TOGETHER = {"cli", "config", "endpoints"}
"""Packages whose modules are tested as one thing, because they are reached in one way."""


def modules() -> list[Path]:
    """Return every module, by its path below the package."""
    found = sorted(path.relative_to(PROXY) for path in PROXY.rglob("*.py"))
    return [path for path in found if path.name not in ("__init__.py", "__main__.py")]


def places(module: Path) -> Iterator[Path]:
    """Yield where the tests of *module* may stand: of `a/b.py`, `a/test_b.py`, or by theme in `a/b/`; of what
    belongs `TOGETHER`, in `test_a.py`, or by theme in `a/`.
    """
    one = Path(module.parts[0]) if module.parts[0] in TOGETHER else module.with_suffix("")
    yield TESTS / one.parent / f"test_{one.name}.py"
    yield from sorted((TESTS / one).glob("test_*.py"))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_mirror(module: Path) -> None:
    """A module's tests stand where its path says, in a file of its name or by theme in a directory of it."""
    found = [place for place in places(module) if place.is_file()]
    assert found, f"proxy/{module} has no tests/{module.parent / f'test_{module.name}'}"
    for place in found:
        assert "def test_" in place.read_text("utf-8"), f"{place} has no tests"


@pytest.mark.parametrize(
    ("module", "first"),
    [
        ("routes.py", "test_routes.py"),
        ("client/edge.py", "client/test_edge.py"),
        ("config/upstreams.py", "test_config.py"),
        ("cli/serve.py", "test_cli.py"),
    ],
)
def test_places(module: str, first: str) -> None:
    """Tests stand beside each other as modules do, but for packages that are one thing."""
    assert next(places(Path(module))) == TESTS / first


def test_there_are_modules() -> None:
    """The mirror has something to show, and themes count as tests of their module."""
    assert {Path("routes.py"), Path("config/upstreams.py"), Path("cli/serve.py")} <= set(modules())
    assert TESTS / "config/test_upstreams.py" in places(Path("config/upstreams.py"))
