"""What people write, and what to write instead."""

from pathlib import Path

import pytest

from tests.config.files import ROUTES, file_of, read, told

BOM = b"\xef\xbb\xbf"


def test_byte_order_mark(tmp_path: Path) -> None:
    """What an editor on Windows puts before a text is no part of a file, nor of a secret."""
    (tmp_path / "s").write_bytes(BOM + b"sk-0123456789abcdef\r\n")
    text = f'[upstreams.openai]\ncredential = "${{file:{tmp_path}/s}}"\n{ROUTES}'
    snapshot = read(BOM + text.encode())
    (credential,) = snapshot.upstreams["openai"].credentials
    assert credential.secret.reveal() == "sk-0123456789abcdef"
    assert told("\ufeff" + ROUTES.replace("openai", "nope"))  # once only
    assert "not TOML" in told(BOM + BOM + ROUTES.encode())[""]


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_utf16(coding: str) -> None:
    """A file in the text form of Windows' own tools is told to be saved in another."""
    text = ROUTES if coding == "utf-16" else "\ufeff" + ROUTES
    assert "save it as UTF-8" in told(text.encode(coding))[""]


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{} \r\n", "\n{}\n\n", "\xa0{}\u2003"])
@pytest.mark.parametrize("source", ["literal", "variable", "file", "pointer", "default"])
def test_white_space_around_a_secret(around: str, source: str, tmp_path: Path) -> None:
    """White space around a secret is no part of it, wherever it comes from: in a key, a hook's secret and
    a credential alike.
    """
    bare = "sk-0123456789abcdef"
    text = around.format(bare)
    (tmp_path / "s").write_text(text, "utf-8")
    written, env = {
        "literal": (text, {}),
        "variable": ("${S}", {"S": text}),
        "file": (f"${{file:{tmp_path}/s}}", {}),
        "pointer": ("${S}", {"S_FILE": f"{tmp_path}/s"}),
        "default": (f"${{NO:-{text}}}", {}),
    }[source]  # fmt: skip
    snapshot = read(
        file_of(
            {
                "keys": {"k": written},
                "hooks": {"a": {"route": "m", "secret": written}},
                "upstreams": {"openai": {"credential": written}},
                "routes": {"m": "openai/x"},
            }
        ),
        env,
    )
    assert snapshot.keys.find(bare.encode()) is not None
    hook = snapshot.hooks["a"].secret
    assert hook is not None
    assert hook.reveal() == bare
    (credential,) = snapshot.upstreams["openai"].credentials
    assert credential.secret.reveal() == bare
    for live in snapshot.live:
        assert live.read is not None
        assert live.read() == bare
    assert (
        read(ROUTES, {"OPENAI_API_KEY": text}).upstreams["openai"].credentials[0].secret.reveal()
        == bare
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"sk-0123456789abcdef"', "quotes"),
        ("'sk-0123456789abcdef'", "quotes"),
        ("Bearer sk-0123456789abcdef", "Bearer"),
        ("bearer sk-0123456789abcdef", "Bearer"),
        ("sk-0123456789abcdef", None),
        ("bearer-0123456789abcdef", None),
        ("it's-0123456789abcdef'", None),
    ],
)
@pytest.mark.parametrize("where", ["key", "credential", "preset"])
def test_dressed_secrets(text: str, said: str | None, where: str) -> None:
    """A secret in quotes, or behind `Bearer`, is noted by where it comes from: it is sent as it is."""
    more, path = {
        "key": ('[keys]\nk = "${S}"\n', "keys.k"),
        "credential": ('[keys]\n[upstreams.openai]\ncredential = "${S}"\n', "upstreams.openai.credential"),
        "preset": ("[keys]\n", "upstreams.openai.credential"),
    }[where]  # fmt: skip
    env = {"OPENAI_API_KEY" if where == "preset" else "S": text}
    notes = [str(note) for note in read(more + ROUTES, env).notes]
    assert not any(text in note for note in notes)
    if said is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith(f"{path}: ")
        assert said in note
        assert "leave" in note


def test_header_of_its_own() -> None:
    """A credential that says its header is sent as it is, so `Bearer` may well belong to it."""
    own = '{ header = "Authorization", secret = "Bearer ${S}" }'
    text = f"[keys]\n[upstreams.openai]\ncredential = {own}\n{ROUTES}"
    assert not read(text, {"S": "sk-0123456789abcdef"}).notes


WRITTEN = [
    # names with dots
    ('[routes]\ngpt-4.1 = "openai/gpt-4.1"', "routes.gpt-4.1", '"gpt-4.1"'),
    ('[routes]\ngpt-4.1.2 = "openai/x"', "routes.gpt-4.1", '"gpt-4.1.2"'),
    ('[routes]\nclaude-3.5-sonnet = { upstream = "anthropic" }', "routes.claude-3.5-sonnet", '"claude-3.5-sonnet"'),
    ('[routes.gpt-4.1]\nupstream = "openai"', "routes.gpt-4.1", '"gpt-4.1"'),
    ('[keys]\nmobile.app = "tk-0123456789abcdef"\n' + ROUTES, "keys.mobile.app", '"mobile.app"'),
    ('[upstreams]\ngpu.local = { base_url = "http://x/v1" }\n' + ROUTES, "upstreams.gpu.local", '"gpu.local"'),
    ('[unrouted]\nfiles.x = "openai"\n' + ROUTES, "unrouted.files", '"files.x"'),
    (f'[keys.team.v1]\nhash = "sha256:{"1f" * 32}"\n' + ROUTES, "keys.team.v1", '"team.v1"'),
    ('[routes.gpt-4.1]\nlist = ["x"]', "routes.gpt-4.1", '"gpt-4.1"'),
    ('[routes]\ngpt-4 = "openai/gpt-4"\ngpt-4.1 = "openai/gpt-4.1"', "", "stands in quotes"),
    ('[routes]\nllama3:8b = "openai/x"', "", "stands in quotes"),
    ('[routes]\nopenai/* = { upstream = "openai" }', "", "stands in quotes"),
    # a route below another table
    (ROUTES + '[server]\nname = "x"\n"gpt-4o" = "openai/gpt-4o"', "server.gpt-4o", "below [routes]"),
    ('"gpt-4o" = "openai/gpt-4o"\n' + ROUTES, "gpt-4o", "below [routes]"),
    (ROUTES + '[log]\n"gpt-4o" = { upstream = "openai" }', "log.gpt-4o", "below [routes]"),
    (ROUTES + '[keys]\n"gpt-4o" = "openai/gpt-4o"', "keys.gpt-4o", "below [routes]"),
    (ROUTES + '[log]\ngpt-4.1 = "openai/gpt-4.1"', "log.gpt-4", "below [routes]"),
    (ROUTES + '[keys]\n"gpt-4o" = { upstream = "openai" }', "keys.gpt-4o.upstream", "below [routes]"),
    (ROUTES + '[unrouted]\n"gpt-4o" = "openai/gpt-4o"', "unrouted.gpt-4o", "below [routes]"),
    (ROUTES + '[upstreams]\n"gpt-4o" = "openai/gpt-4o"', "upstreams.gpt-4o", "below [routes]"),
    (ROUTES + '[hooks.a]\nroute = "m"\n"x" = "openai/gpt-4o"', "hooks.a.x", "below [routes]"),
    (ROUTES + '[routes.n]\nupstream = "openai"\n"x" = "openai/gpt-4o"', "routes.n.x", "below [routes]"),
    (ROUTES + '[upstreams.g]\nbase_url = "http://x/v1"\n"x" = { upstream = "g" }', "upstreams.g.x", "below [routes]"),
    # other keys below another table, and the wrong brackets
    ('[server]\ntimeout = "30s"\n' + ROUTES, "server.timeout", "below [defaults]"),
    ('[log]\nretry = 3\n' + ROUTES, "log.retry", "below [defaults]"),
    ('listen = "127.0.0.1:8080"\n' + ROUTES, "listen", "below [server]"),
    ('[surface]\nlisten = "127.0.0.1:8080"\n' + ROUTES, "surface", "[[surface]]"),
    ('[[server]]\nlisten = "127.0.0.1:8080"\n' + ROUTES, "server", "[server]"),
    # values
    ('[keys.k]\nsecret = "tk-0123456789abcdef"\nexpires = "2027-06-30"\n' + ROUTES, "keys.k.expires", "expires = 2027-06-30"),
    ('[keys.k]\nsecret = "tk-0123456789abcdef"\nexpires = "soon"\n' + ROUTES, "keys.k.expires", "expires = 2027-06-30"),
    ('[keys.k]\nsecret = "tk-0123456789abcdef"\nexpires = 2028-01-01T00:00:00Z\n' + ROUTES, "keys.k.expires", "without a time"),
    ("[server]\nlisten = 9000\n" + ROUTES, "server.listen", 'listen = "127.0.0.1:9000"'),
    ('[server]\nlisten = "9000"\n' + ROUTES, "server.listen", '"127.0.0.1:8080"'),
    ('[server]\nlisten = ":9000"\n' + ROUTES, "server.listen", '"127.0.0.1:8080"'),
    ('[[surface]]\nlisten = 9000\n' + ROUTES, "surface[0].listen", 'listen = "127.0.0.1:9000"'),
    ('[defaults]\ntimeout = "20s"\n' + ROUTES, "defaults.timeout", 'timeout = { first_byte = "20s" }'),
    ('[routes.m]\nupstream = "openai"\ntimeout = "20s"', "routes.m.timeout", '{ first_byte = "20s" }'),
    ('[upstreams.openai]\ntimeout = 30\n' + ROUTES, "upstreams.openai.timeout", '{ first_byte = "30s" }'),
    ("[defaults]\nretry = 3\n" + ROUTES, "defaults.retry", "retry = { attempts = 3 }"),
    ('[server]\ntls = true\n' + ROUTES, "server.tls", "certificate ="),
]  # fmt: skip


@pytest.mark.parametrize(("toml", "path", "said"), WRITTEN)
def test_what_to_write_instead(toml: str, path: str, said: str) -> None:
    """Of what people often write, the message says what to write instead, and nothing else is told."""
    problems = told(toml)
    found = {place.replace('"', ""): message for place, message in problems.items()}
    assert list(found) == [path]
    assert said in found[path]


@pytest.mark.parametrize(
    ("toml", "path"),
    [
        ('[routes.m]\nupstrem = "openai"', "routes.m.upstrem"),
        ('[keys.k]\nsecret = "tk-0123456789abcdef"\nmodel = ["x"]\n' + ROUTES, "keys.k.model"),
        ('[server]\nfoo = "a/b"\n' + ROUTES, "server.foo"),
    ],
)
def test_a_slip_is_a_slip(toml: str, path: str) -> None:
    """What is only misspelt gets the nearest word, and no lesson."""
    message = told(toml)[path]
    assert "quotes" not in message
    assert "[routes]" not in message
