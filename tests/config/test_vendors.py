"""What an upstream's table says of a vendor."""

from pathlib import Path
from typing import Any

import pytest

from proxy import dialects
from tests.config.files import ROUTES, _upstream, file_of, read, told


@pytest.mark.parametrize(
    ("line", "place", "word"),
    [
        ('speaks = ["chat", "chatt"]', "speaks[1]", 'did you mean "chat"?'),
        ('speaks = ["chat/completions"]', "speaks[0]", "is not a dialect"),
        ('speaks = ["all"]', "speaks[0]", "is not a dialect"),
        ('speaks = [""]', "speaks[0]", "is not a dialect"),
        ('speaks = "any"', "speaks", '"all"'),
        ('speaks = "chat"', "speaks", '"all"'),
        ('forms = { mesages = "bearer" }', "forms.mesages", 'did you mean "messages"?'),
        ('forms = { messages = "basic" }', "forms.messages", '"x-api-key"'),
        ('forms = { messages = { header = "x" } }', "forms.messages", "must be"),
        ('form = "Bearer"', "form", 'did you mean "bearer"?'),
        ('form = ""', "form", "must be"),
        ('defaults = { mesages = { a = "b" } }', "defaults.mesages", 'did you mean "messages"?'),
        ('defaults = { messages = { "a b" = "c" } }', 'defaults.messages."a b"', "header"),
        ('defaults = { messages = { Host = "c" } }', "defaults.messages.Host", "header"),
        ('defaults = { messages = { Upgrade = "c" } }', "defaults.messages.Upgrade", "header"),
        ('defaults = { messages = { a = "b\\nc" } }', "defaults.messages.a", "character"),
        ('defaults = { messages = { a = "日本" } }', "defaults.messages.a", "character"),
        ('defaults = { messages = { a = "b", A = "b" } }', "defaults.messages.a", "twice"),
        ('defaults = { messages = "a" }', "defaults.messages", "table"),
        ('billed = "no"', "billed", "boolean"),
        ("optional = 1", "optional", "boolean"),
        ('env = { a = "b" }', "env", "list"),
        ('preset = "opnai"', "preset", 'did you mean "openai"?'),
        ('preset = ""', "preset", "there is no preset"),
        ('vars = { region = "x" }', "vars.region", "no URL of this upstream has such a part"),
        ("vars = { region = 5 }", "vars.region", "text"),
    ],
)
def test_bad_words_about_a_vendor(line: str, place: str, word: str) -> None:
    """What a table says of a vendor names dialects, forms, headers and presets that there are."""
    problems = told(f'[upstreams.up]\nbase_url = "http://h/v1"\n{line}\n{ROUTES}')
    expected = f"upstreams.up.{place}"
    assert set(problems) in ({expected}, {expected, expected.replace(".a", ".A")})
    assert word in problems[expected]


@pytest.mark.parametrize("place", ["forms", "defaults", "speaks"])
@pytest.mark.parametrize("dialect", sorted(dialects.DIALECTS))
def test_every_dialect_may_be_named(place: str, dialect: str) -> None:
    """Whatever goes by dialect takes every dialect that there is."""
    value: Any = {"forms": {dialect: "apikey"}, "defaults": {dialect: {"a": "b"}}, "speaks": [dialect]}  # fmt: skip
    tree = {"upstreams": {"up": {"base_url": "http://h/v1", "credential": "sk-1", place: value[place]}}, "routes": {"m": "up/x"}}  # fmt: skip
    upstream = _upstream(read(file_of(tree)))
    (credential,) = upstream.credentials
    assert {
        "forms": credential.line(dialect) == (b"apikey", b"sk-1"),
        "defaults": upstream.defaults.get(dialect) == ((b"a", b"b"),),
        "speaks": upstream.spoken == (dialect,),
    }[place]


def test_speaks_all() -> None:
    """Who says that a vendor speaks all has nothing refused, whatever its preset says."""
    upstream = _upstream(read('[upstreams.xai]\nspeaks = "all"\n[routes]\nm = "xai/x"'))
    assert all(upstream.speaks(dialect) for dialect in dialects.DIALECTS.values())


def test_speaks_nothing() -> None:
    """An empty list is one: the upstream is then for nothing that carries a model."""
    upstream = _upstream(read('[upstreams.xai]\nspeaks = []\n[routes]\nm = "xai/x"'))
    assert not any(upstream.speaks(dialect) for dialect in dialects.DIALECTS.values())


@pytest.mark.parametrize("place", ["upstreams.up", "routes.r"])
@pytest.mark.parametrize(
    ("table", "at"),
    [
        ("{}", ""),
        ('{ header = "x-a" }', ""),
        ('{ secret = "sk-1", command = ["a"] }', ""),
        ('{ refresh = "5m" }', ""),
        ("{ command = [] }", ".command"),
        ('{ command = [""] }', ".command"),
        ('{ command = ["", "a"] }', ".command"),
        ('{ command = ["a\\u0000b"] }', ".command"),
        ('{ command = ["a", "\\u0000"] }', ".command"),
        ('{ command = "gcloud auth" }', ".command"),
        ('{ command = { a = "b" } }', ".command"),
        ('{ command = ["a", 5] }', ".command[1]"),
        ('{ command = [["a"]] }', ".command[0]"),
        ('{ command = ["a"], refresh = "0s" }', ".refresh"),
        ('{ command = ["a"], refresh = "soon" }', ".refresh"),
        ('{ command = ["a"], refresh = 5 }', ".refresh"),
        ('{ command = ["a"], header = "Host" }', ".header"),
        ('{ command = ["a"], header = "" }', ".header"),
        ('{ command = ["a"], form = "bearer" }', ".form"),
        ('{ command = ["a"], shell = true }', ".shell"),
        ('{ secret = "sk-1", refresh = "5m" }', ".refresh"),
    ],
)
def test_bad_credentials(place: str, table: str, at: str) -> None:
    """A credential is one secret or one command, and what is said of it belongs to that one."""
    route = "" if place == "routes.r" else '[routes]\nr = "up/x"\n'
    toml = f'{route}[{place}]\nbase_url = "http://h/v1"\ncredential = {table}\n'
    assert list(told(toml)) == [f"{place}.credential{at}"]


@pytest.mark.parametrize(
    ("table", "header", "refresh"),
    [
        ('{ command = ["gcloud", "a b", ""] }', b"Authorization", 3000),
        ('{ command = ["gcloud"], refresh = "none" }', b"Authorization", None),
        ('{ command = ["gcloud"], refresh = "90s" }', b"Authorization", 90),
        ('{ command = ["gcloud"], header = "x-goog-token" }', b"x-goog-token", 3000),
    ],
)
def test_credential_of_a_command(table: str, header: bytes, refresh: float | None) -> None:
    """A command's credential is none until the command has run, and is presented like any other."""
    toml = f'[upstreams.up]\nbase_url = "http://h/v1"\ncredential = {table}\n[routes]\nm = "up/x"'
    snapshot = read(toml)
    upstream = _upstream(snapshot)
    (live,) = snapshot.live
    (credential,) = upstream.credentials
    assert live.secret is credential.secret
    assert live.command[0] == "gcloud"
    assert (live.refresh, live.read) == (refresh, None)
    assert (upstream.missing, live.secret.known) == (None, False)
    live.secret.replace("ya29-1")
    name, value = credential.line("chat")
    assert (name, value.rpartition(b" ")[2]) == (header, b"ya29-1")


def test_command_of_a_path() -> None:
    """A command is called by its name, not by its arguments or its place, wherever it is told."""
    toml = '[routes.m]\nbase_url = "http://h"\ncredential = { command = ["/opt/x/token", "--key=CANARY"] }'
    snapshot = read(toml)
    (credential,) = _upstream(snapshot).credentials
    assert credential.secret.source == "the command token"
    assert "CANARY" not in repr(_upstream(snapshot))


def test_references_in_a_command() -> None:
    """The words of a command are filled in like any value."""
    toml = '[routes.m]\nbase_url = "http://h"\ncredential = { command = ["token", "${REALM}"] }'
    assert read(toml, {"REALM": "corp; rm"}).live[0].command == ("token", "corp; rm")
    assert list(told(toml)) == ["routes.m.credential.command[1]"]


@pytest.mark.parametrize(
    ("text", "env", "files"),
    [
        ("${file:@}", {}, ("@",)),
        ("Basic ${file:@}", {}, ("@",)),
        ("${A}", {"A_FILE": "@"}, ("@",)),
        ("${A:-x}", {"A_FILE": "@"}, ("@",)),
        ("${A}", {"A": "x", "A_FILE": "@"}, ()),
        ("sk-1", {}, ()),
    ],
)
def test_credential_of_a_file(
    text: str, env: dict[str, str], files: tuple[str, ...], secret: Path
) -> None:
    """A credential that a file holds follows that file; one that a variable holds stays."""
    at = str(secret)
    tree = {
        "upstreams": {"openai": {"credential": text.replace("@", at)}},
        "routes": {"m": "openai/x"},
    }
    snapshot = read(file_of(tree), {name: value.replace("@", at) for name, value in env.items()})
    assert [live.files for live in snapshot.live] == [(at,)] * len(files)
    for live in snapshot.live:
        secret.write_text("changed\n")
        assert live.read is not None
        assert live.read() == text.replace("${file:@}", "changed").replace("${A}", "changed").replace("${A:-x}", "changed")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "sk-proj-0123456789", "a b", "1A", "A-B", "${SECRET}", "$OPENAI_API_KEY", "A\\n"],
)
def test_secret_where_its_variable_should_be_named(text: str) -> None:
    """`env` holds names of variables: what cannot be one may be a secret, and callers would be told
    that "it" is not set.
    """
    toml = f'[upstreams.openai]\nenv = ["OK", "{text}"]\n{ROUTES}'
    assert list(told(toml, {"SECRET": "sk-proj-0123456789"})) == ["upstreams.openai.env[1]"]
