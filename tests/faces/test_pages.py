"""No sentence of a page is left out: each is quoted by the test that holds it, or said to be none."""

import importlib
import inspect
import re

import pytest

from tests.faces.files import FACES
from tests.faces.model import page

_QUOTE = re.compile(r"“(.*?)”", re.DOTALL)


def squeezed(text: str) -> str:
    """Return *text* without its spaces, and without what a table is drawn with."""
    return re.sub(r"[\s|•]+", "", text)


@pytest.mark.parametrize("face", FACES)
def test_sentence_by_sentence(face: str) -> None:
    """What a page says stands in the docstring of a test, or is an example that a test runs."""
    module = importlib.import_module(f"tests.faces.test_{face}")
    tests = [test for name, test in inspect.getmembers(module) if name.startswith("test_")]
    quotes = [quote for test in tests for quote in _QUOTE.findall(inspect.getdoc(test) or "")]
    left = squeezed(page(face))
    parts = [(part, "a snippet") for part in module.SNIPPETS]
    parts += [(quote, "a quote") for quote in quotes]
    for part, kind in sorted(parts, key=lambda part: -len(part[0])):
        assert squeezed(part) in squeezed(page(face)), f"{kind} that the page has not: {part}"
        left = left.replace(squeezed(part), "\n")
    for part in sorted(module.NOTHING_TO_TEST, key=len, reverse=True):
        assert squeezed(part) in left, f"it is tested, or not on the page: {part}"
        left = left.replace(squeezed(part), "\n")
    assert [line for line in left.split("\n") if re.search(r"\w", line)] == []
