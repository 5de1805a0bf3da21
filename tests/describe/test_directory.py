"""The words and tables of the documentation: nothing is left out, nothing stands there in vain."""

from proxy.describe.directory import ANSWERED, BODY, CALLS, FIXED, HEAD, HOOK, KEPT, TOLD
from proxy.dialects import ENDPOINTS
from proxy.errors import KINDS


def test_endpoints() -> None:
    """Every endpoint that carries a model has words of its own, and an example of what it needs."""
    known = {name for name in CALLS if not name.startswith("gemini:")}
    assert {*ENDPOINTS} - {"realtime"} == known
    for name, call in CALLS.items():
        assert {*call.required} <= {*call.example}, name
    assert len({row.path for row in FIXED}) == len(FIXED)


def test_errors() -> None:
    """Every error that is told with its status may come at some endpoint; one that comes later has words, too."""
    somewhere = {*HEAD, *BODY, *KEPT, *HOOK}
    by_themselves = {kind for kind in KINDS if kind.step in ("key", "path")}
    assert {*ANSWERED.values()} == somewhere | by_themselves
    assert {*TOLD} == {kind.code for kind in KINDS if kind.step != "log"}
    assert {code for code in TOLD if code not in ANSWERED} == {
        "upstream_incomplete",
        "upstream_idle_timeout",
    }
