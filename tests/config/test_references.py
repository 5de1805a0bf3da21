"""`${NAME}` and `${file:…}`: where values come from that are not in the file."""

from pathlib import Path
from typing import Any

import pytest

from proxy.config.problems import dotted
from tests.config.files import ROUTES, SECRET_FILE, _upstream, file_of, read, told


@pytest.mark.parametrize(
    ("text", "env", "value"),
    [
        ("${VAR}", {"VAR": "x"}, "x"),
        ("a${VAR}b${VAR}", {"VAR": "x"}, "axbx"),
        ("${A}${B}", {"A": "1", "B": "2"}, "12"),
        ("${_a1}", {"_a1": "x"}, "x"),
        ("${VAR}", {"VAR": "${OTHER}"}, "${OTHER}"),
        ("${VAR}", {"VAR": "$$"}, "$$"),
        ("${VAR:-d}", {}, "d"),
        ("${VAR:-d}", {"VAR": ""}, "d"),
        ("${VAR:-d}", {"VAR": "x"}, "x"),
        ("${VAR:-a:-b}", {}, "a:-b"),
        ("${VAR:-a b/c}", {}, "a b/c"),
        ("x${VAR:-}", {}, "x"),
        ("$$", {}, "$"),
        ("${NO:-a$$b}", {}, "a$b"),
        ("${NO:-$$}", {}, "$"),
        ("${VAR}", {"VAR": "$NAME"}, "$NAME"),
        ("pa$word", {}, "pa$word"),
        ("pa$WORD!", {}, "pa$WORD!"),
        ("$", {}, "$"),
        ("a $ b", {}, "a $ b"),
        ("$5", {}, "$5"),
        ("$x^2$", {}, "$x^2$"),
        ("US$A", {}, "US$A"),
        ("$$NAME", {}, "$NAME"),
        ("Bearer $$TEAM_KEY", {}, "Bearer $TEAM_KEY"),
        ("http://me:pa$WO:x", {}, "http://me:pa$WO:x"),
        ("$${VAR}", {"VAR": "x"}, "${VAR}"),
        ("$$$$", {}, "$$"),
        ("$$${VAR}", {"VAR": "x"}, "$x"),
        ("a$b", {}, "a$b"),
        ("a$", {}, "a$"),
        ("}${VAR}{", {"VAR": "x"}, "}x{"),
        ("${file:@}", {}, SECRET_FILE),
        ("<${file:@}>", {}, f"<{SECRET_FILE}>"),
        ("${VAR}", {"VAR_FILE": "@"}, SECRET_FILE),
        ("${VAR}", {"VAR": "", "VAR_FILE": "@"}, SECRET_FILE),
        ("${VAR:-d}", {"VAR_FILE": "@"}, SECRET_FILE),
        ("${VAR}", {"VAR": "x", "VAR_FILE": "@"}, "x"),
        ("${VAR}", {"VAR": "x", "VAR_FILE": "/nowhere"}, "x"),
        ("${VAR_FILE}", {"VAR_FILE": "x"}, "x"),
    ],
)
def test_references(text: str, env: dict[str, str], value: str, secret: Path) -> None:
    """Variables, defaults, files and `$$` stand for their values, and values are not looked at again."""
    env = {name: told_.replace("@", str(secret)) for name, told_ in env.items()}
    tree = {"routes": {"m": {"upstream": "sandbox", "model": text.replace("@", str(secret))}}}
    route = read(file_of(tree), env).routes.match("m")
    assert route is not None
    assert route.first.model == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$TEAM_KEY", "${TEAM_KEY}"),
        ("$KEY_2", "${KEY_2}"),
        ("Bearer $TEAM_KEY", "${TEAM_KEY}"),
        ("a $AB b", "${AB}"),
        ("pa$WORD", "${WORD}"),
        ("${NO:-$TEAM_KEY}", "${TEAM_KEY}"),
        ("${HOME_OF:-x} $TEAM_KEY", "${TEAM_KEY}"),
        ("$$$TEAM_KEY", "${TEAM_KEY}"),
        ("$team_key", "${NAME}"),
        ("$eCRET5", "${NAME}"),
        ("$A1B2C3D4E5", "${NAME}"),
    ],
)
@pytest.mark.parametrize(
    "path", [("keys", "k"), ("routes", "m", "model"), ("upstreams", "openai", "credential")]
)
def test_variable_without_braces(text: str, shown: str, path: tuple[str, ...]) -> None:
    """A variable without its braces would be a secret that everybody can read: it is refused, with both
    ways to write what may be meant; a name that may be a password is not repeated.
    """
    tree: dict[str, Any] = {"routes": {"m": {"upstream": "openai", "model": "x"}}}
    table = tree
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = text
    problems = told(file_of(tree), {"TEAM_KEY": "sk-CANARY-0123456789"})
    assert list(problems) == [dotted(path)]
    assert shown in problems[dotted(path)]
    assert "`$$`" in problems[dotted(path)]
    assert "eCRET5" not in problems[dotted(path)]
    assert "A1B2C3" not in problems[dotted(path)]


def test_dollars_in_a_prompt() -> None:
    """What a hook's model is told may speak of any variable."""
    hook = {"route": "m", "system": "$PATH"}
    snapshot = read(file_of({"routes": {"m": "openai/x"}, "hooks": {"a": hook}}))
    assert snapshot.hooks["a"].system == "$PATH"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_line_end_of_a_secret_file(end: str, tmp_path: Path) -> None:
    """The line end that an editor puts behind a secret is not part of it."""
    (tmp_path / "s").write_bytes(f"sk-1{end}".encode())
    tree = {
        "upstreams": {"openai": {"credential": f"${{file:{tmp_path}/s}}"}},
        "routes": {"m": "openai/x"},
    }
    (credential,) = _upstream(read(file_of(tree))).credentials
    assert credential.secret.reveal() == "sk-1"


def test_references_stand_in_values_only() -> None:
    """A key is what it is: nothing in it is replaced."""
    table = read('[routes]\n"${VAR}" = "openai/x"', {"VAR": "filled"}).routes
    assert table.match("${VAR}") is not None
    assert table.match("filled") is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("${UNSET}", "UNSET is not set"),
        ("${EMPTY}", "EMPTY is not set"),
        ("x${UNSET}y${EMPTY}", "UNSET is not set"),
        ("${", "without its `}`"),
        ("a${b", "without its `}`"),
        ("${A:-${B}}", "without its `}`"),
        ("${}", "is not a reference"),
        ("${ VAR }", "is not a reference"),
        ("${1A}", "is not a reference"),
        ("${A-b}", "is not a reference"),
        ("${A:b}", "is not a reference"),
        ("${A:?b}", "is not a reference"),
        ("${env:A}", "is not a reference"),
        ("${FILE:/x}", "is not a reference"),
        ("${file:}", "cannot be read"),
        ("${file:/nowhere/at/all}", "no such file"),
        ("${file:/}", "is a directory"),
        ("${file:a\0b}", "cannot be read"),
        ("${DIR}", "is a directory"),
        ("${LOST}", "no such file"),
        ("${BINARY}", "not UTF-8"),
    ],
)
def test_bad_references(text: str, hint: str, tmp_path: Path) -> None:
    """A reference that stands for nothing is an error at its place, saying why."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    env = {
        "EMPTY": "",
        "DIR_FILE": str(tmp_path),
        "LOST_FILE": str(tmp_path / "lost"),
        "BINARY_FILE": str(tmp_path / "binary"),
    }
    problems = told(file_of({"routes": {"m": {"upstream": "openai", "model": text}}}), env)
    assert list(problems) == ["routes.m.model"]
    assert hint in problems["routes.m.model"]


def test_references_in_lists_and_tables() -> None:
    """A bad reference is told by the place where it stands, however deep."""
    toml = (
        '[server]\nhosts = ["a", "${NO}"]\n[routes]\nm = "${NO}"\n[keys]\nk = { secret = "${NO}" }'
    )
    assert set(told(toml)) == {"server.hosts[1]", "routes.m", "keys.k.secret"}


@pytest.mark.parametrize("used", [True, False])
def test_secret_file_of_a_preset(used: bool, secret: Path, tmp_path: Path) -> None:
    """`VAR_FILE` stands in for a vendor's variable; one that cannot be read matters where it is used."""
    toml = f'[routes]\nm = "{"openai" if used else "sandbox"}/x"'
    snapshot = read(toml, {"OPENAI_API_KEY_FILE": str(secret)})
    if used:
        (credential,) = _upstream(snapshot).credentials
        assert credential.secret.reveal() == SECRET_FILE
        problems = told(toml, {"OPENAI_API_KEY_FILE": str(tmp_path / "lost")})
        assert "OPENAI_API_KEY_FILE" in problems["upstreams.openai.credential"]
    else:
        assert read(toml, {"OPENAI_API_KEY_FILE": str(tmp_path / "lost")}).routes.match("m")


@pytest.mark.parametrize("toml", ['[routes]\nm = "openai/x"', ROUTES + '[keys]\nk = "${K}"'])
def test_key_where_its_file_should_be_named(toml: str) -> None:
    """Who puts a secret itself into `VAR_FILE` does not find it in the message."""
    env = {"OPENAI_API_KEY_FILE": "sk-proj-0123456789", "K_FILE": "tk-0123456789abcdef"}
    assert told(toml, env)


def test_secret_knows_its_source(secret: Path) -> None:
    """A secret says where it is written: a variable, a file, or the place in the routes file."""
    for text, source in (
        ("${MY_KEY}", "MY_KEY"),
        ("${MY_KEY:-x}", "MY_KEY"),
        (f"${{file:{secret}}}", f"file:{secret}"),
        ("sk-plain", "upstreams.openai.credential"),
        ("sk-${MY_KEY}", "upstreams.openai.credential"),
    ):
        tree = {"upstreams": {"openai": {"credential": text}}, "routes": {"m": "openai/x"}}
        (credential,) = _upstream(read(file_of(tree), {"MY_KEY": "sk-1"})).credentials
        assert credential.secret.source == source
