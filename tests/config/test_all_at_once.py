"""Everything that is wrong is told at once."""

import tempfile
from pathlib import Path

import pytest

from proxy.config import ConfigError, load
from tests.config.files import told


def test_every_problem_at_once() -> None:
    """All that is wrong with a file is told in one go, each with its key path."""
    toml = """
[server]
listen = "nowhere"
max_body = "huge"
lisen = 1
workers = 0
[defaults]
timeout = { idle = "soon" }
[upstreams.corp]
base_url = "ftp://corp"
headers = { "bad name" = "x" }
credential = "${UNSET_VARIABLE}"
[routes]
a = "b"
b = "a"
c = "nowhere/x"
"d*e" = "openai/x"
[keys]
k = { hash = "md5:x" }
[log]
format = "xml"
"""
    assert set(told(toml)) == {
        "server.listen", "server.max_body", "server.lisen", "server.workers",
        "defaults.timeout.idle", "upstreams.corp.base_url", 'upstreams.corp.headers."bad name"',
        "upstreams.corp.credential", "routes.a", "routes.c", 'routes."d*e"', "keys.k.hash",
        "log.format",
    }  # fmt: skip


def test_message_names_file_and_place() -> None:
    """Each problem is one line: file, key path, what is wrong and what would be right."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "mine.toml")
        file.write_text('[routes."gpt-4o"]\nupstrem = "x"\n[keys."a\\"b"]\nsecret = 5\n')
        with pytest.raises(ConfigError) as caught:
            load(file, {})
    lines = str(caught.value).splitlines()
    assert f'{file}: routes.gpt-4o.upstrem: unknown key; did you mean "upstream"?' in lines
    assert f'{file}: keys."a\\"b".secret: must be text, in quotes' in lines
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("toml", "only"),
    [
        ('[upstreams]\ncorp = 5\n[routes]\nm = "corp/x"', "upstreams.corp"),
        ("[routes]\nm = 5", "routes.m"),
        ('[routes]\na = 5\nb = "a"', "routes.a"),
        ('[upstreams.corp]\nbase_url = 5\n[routes]\nm = "corp/x"', "upstreams.corp.base_url"),
        ('[upstreams.corp]\nbase_url = "x"\n[routes]\nm = "corp/x"', "upstreams.corp.base_url"),
        ('[upstreams.corp]\nbase_url = "${U}"\n[routes]\nm = "corp/x"', "upstreams.corp.base_url"),
        ('[routes]\na = "b"\nb = "c"\nc = "nowhere/x"', "routes.c"),
        ("routes = 5", "routes"),
    ],
)
def test_no_problem_is_told_twice(toml: str, only: str) -> None:
    """What is only wrong because something else is wrong is not told."""
    assert list(told(toml)) == [only]
