"""Several credentials of one upstream."""

from pathlib import Path

import pytest

from tests.config.files import SECRET_FILE, _upstream, read, told


def test_several_credentials(secret: Path) -> None:
    """A list holds credentials of any kind, each of which knows where it is written."""
    toml = f"""
[upstreams.up]
base_url = "http://h/v1"
form = "x-api-key"
forms = {{ chat = "bearer" }}
credential = [
  "sk-plain", "${{ONE}}", {{ secret = "${{TWO}}" }}, "${{file:{secret}}}", "x${{ONE}}", "${{THREE}}",
  {{ header = "x-own", secret = "sk-own" }}, {{ command = ["token", "CANARY"], refresh = "90s" }},
]
[routes]
m = "up/x"
"""
    env = {"ONE": "sk-one", "TWO": "sk-two", "THREE_FILE": str(secret.with_name("three"))}
    secret.with_name("three").write_text("sk-three\n")
    snapshot = read(toml, env)
    upstream = _upstream(snapshot)
    assert [(one.line("chat")[0], one.line("messages")[0]) for one in upstream.credentials] == [
        *[(b"Authorization", b"x-api-key")] * 6,
        (b"x-own", b"x-own"),
        (b"Authorization", b"x-api-key"),
    ]
    assert [(one.secret.reveal(), one.secret.source) for one in upstream.credentials] == [
        ("sk-plain", "upstreams.up.credential[0]"),
        ("sk-one", "ONE"),
        ("sk-two", "TWO"),
        (SECRET_FILE, f"file:{secret}"),
        ("xsk-one", "upstreams.up.credential[4]"),
        ("sk-three", "THREE"),
        ("sk-own", "upstreams.up.credential[6].secret"),
        ("", "the command token"),
    ]
    assert len({one.secret.identity() for one in upstream.credentials}) == 8
    assert [(live.files, live.command) for live in snapshot.live] == [
        ((str(secret),), ()),
        ((str(secret.with_name("three")),), ()),
        ((), ("token", "CANARY")),
    ]
    assert "CANARY" not in repr(upstream)


def test_one_credential_in_a_list() -> None:
    """A list of one is that one."""
    for text in ('"sk-1"', '["sk-1"]', '{ secret = "sk-1" }', '[{ secret = "sk-1" }]'):
        toml = f'[routes]\nm = {{ base_url = "http://h", credential = {text} }}'
        (credential,) = _upstream(read(toml)).credentials
        assert credential.line("chat") == (b"Authorization", b"Bearer sk-1")


def test_commands_are_told_apart() -> None:
    """Two credentials that one program prints, asked for different things, are two credentials: each
    rests by itself.
    """
    toml = """
[upstreams.up]
base_url = "http://h/v1"
credential = [{ command = ["vault", "read", "one"] }, { command = ["vault", "read", "two"] }]
[routes]
m = "up/x"
"""
    one, other = _upstream(read(toml)).credentials
    assert one.secret.identity() != other.secret.identity()
    again, _ = _upstream(read(toml)).credentials
    assert one.secret.identity() == again.secret.identity()


@pytest.mark.parametrize("place", ["upstreams.up", "routes.r"])
@pytest.mark.parametrize(
    ("value", "at", "word"),
    [
        ("[]", "", "empty"),
        ('["sk-1", "sk-1"]', "", "twice"),
        ('["${ONE}", "sk-2", { secret = "${ONE}" }]', "", "twice"),
        ('["${ONE}", "${SAME}"]', "", "twice"),
        ('["${file:FILE}", "from-a-file"]', "", "twice"),
        ('["sk-1", ""]', "[1]", "empty"),
        ('["sk-1", "  "]', "[1]", "empty"),
        ('["sk-1", "${NOT_SET}"]', "[1]", "NOT_SET is not set"),
        ('["sk-1", "a\\nb"]', "[1]", "character"),
        ('["sk-1", 5]', "[1]", "table"),
        ('["sk-1", ["sk-2"]]', "[1]", "table"),
        ('["sk-1", {}]', "[1]", "needs either"),
        ('["sk-1", { secret = "sk-2", command = ["a"] }]', "[1]", "needs either"),
        ('["sk-1", { header = "Host", secret = "sk-2" }]', "[1].header", "header"),
        ('[{ header = 5, secret = "sk-2" }]', "[0].header", "text"),
        ('["sk-1", { command = [] }]', "[1].command", "program"),
        ('["sk-1", { command = ["a", 5] }]', "[1].command[1]", "text"),
        ('[{ command = ["a"], refresh = "soon" }]', "[0].refresh", "duration"),
        ('["sk-1", { secret = "sk-2", refresh = "5m" }]', "[1].refresh", "belongs to a `command`"),
        ('["sk-1", { secrt = "sk-2" }]', "[1].secrt", 'did you mean "secret"?'),
        ('["sk-1", { token = "sk-2" }]', "[1].token", "unknown key"),
        ("5", "", "table"),
        ("true", "", "table"),
    ],
)  # fmt: skip
def test_bad_lists_of_credentials(place: str, value: str, at: str, word: str, secret: Path) -> None:
    """Each credential of a list is one, differs from the others, and is told by its number."""
    route = "" if place == "routes.r" else '[routes]\nr = "up/x"\n'
    text = value.replace("FILE", str(secret))
    toml = f'{route}[{place}]\nbase_url = "http://h/v1"\ncredential = {text}\n'
    problems = told(toml, {"ONE": "sk-0123456789-one", "SAME": "sk-0123456789-one"})
    assert list(problems) == [f"{place}.credential{at}"]
    assert word in problems[f"{place}.credential{at}"]
    assert "from-a-file" not in problems[f"{place}.credential{at}"]


def test_a_header_where_any_of_the_credentials_goes() -> None:
    """A header that the table sets is not where any of its credentials goes."""
    toml = """
[upstreams.up]
base_url = "http://h/v1"
credential = ["sk-1", { header = "X-Own", secret = "sk-2" }]
headers = { x-own = "a", x-api-key = "b" }
[routes]
m = "up/x"
"""
    assert list(told(toml)) == ["upstreams.up.headers.x-own"]
