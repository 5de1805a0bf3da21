"""The words and tables of the documentation: nothing is left out, nothing stands there in vain."""

import re
from pathlib import Path

from proxy import errors
from proxy.dialects import ENDPOINTS
from proxy.directory import FIXED, FORMS, KINDS, MEANINGS
from proxy.errors import Kind

ROOT = Path(__file__).parents[1]


def kinds() -> list[Kind]:
    """Return all errors that a caller may be told of with a status."""
    found = [value for value in vars(errors).values() if isinstance(value, Kind)]
    return [kind for kind in found if kind.status not in (200, 499)]


def test_endpoints() -> None:
    """Every endpoint that carries a model has words of its own, and an example of what it needs."""
    known = {name for name in FORMS if not name.startswith("gemini:")}
    assert {*ENDPOINTS} - {"realtime"} == known
    for name, form in FORMS.items():
        assert {*form.required} <= {*form.example}, name
    assert len({row.path for row in FIXED}) == len(FIXED)


def test_errors() -> None:
    """Every error has words of its own, and stands under its status."""
    assert {kind.code for kind in kinds()} == {*MEANINGS}
    told = {kind for kinds in KINDS.values() for kind in kinds}
    streams = {kind for name, kind in vars(errors).items() if name.startswith("STREAM_")}
    assert {*kinds()} - streams <= told
    page = (ROOT / "docs/errors.md").read_text("utf-8")
    assert {*MEANINGS} <= {*re.findall(r"`([a-z_]+)`", page)}
