"""Surfaces: where we listen, and for whom."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest

from proxy.config import ConfigError
from proxy.surfaces import Address
from tests.config.files import FULL, ROUTES, file_of, read, told


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:80", "[::]:80", "192.168.0.1:80", "example.org:80", ["127.0.0.1:1", "0.0.0.0:1"]],
)
def test_exposed_without_auth(listen: str | list[str]) -> None:
    """An address that others reach needs keys, or the operator's word that it may be open."""
    server: dict[str, Any] = {"listen": listen}
    tree: dict[str, Any] = {"server": server, "routes": {"m": "openai/x"}}
    (message,) = told(file_of(tree)).values()
    assert "open = true" in message
    server["open"] = True
    assert read(file_of(tree)).surfaces[0].auth == "none"
    del server["open"]
    keys = {"keys": {"k": "tk-0123456789abcdef"}}
    assert read(file_of({**tree, **keys})).surfaces[0].auth == "keys"
    server["auth"] = "passthrough"
    assert read(file_of(tree)).surfaces[0].auth == "passthrough"
    server["auth"] = "none"
    assert told(file_of({**tree, **keys}))


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:8080", Address("::1", 8080)),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
        ("unix:x.sock", Address(path="x.sock")),
    ],
)
def test_listen(listen: str, address: Address) -> None:
    """A surface listens on TCP or on a unix socket, and without keys only where nobody else comes."""
    assert read(f'[server]\nlisten = "{listen}"\n{ROUTES}').surfaces[0].listen == (address,)


BAD_LISTENS = ["", "8080", ":8080", "localhost", "localhost:", "localhost:x", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:²", "127.0.0.1:8 0", "unix:", "unix:/a\x00b", "http://127.0.0.1:80", "127.0.0.1:80/", "local host:80", "local\nhost:80", "[::1:80", "tcp://localhost:80"]  # fmt: skip


@pytest.mark.parametrize("listen", BAD_LISTENS)
def test_bad_listen(listen: str) -> None:
    """What is not an address is refused at the key that holds it, from the command line too."""
    tree = {"server": {"listen": listen, "open": True}, "routes": {"m": "openai/x"}}
    assert list(told(file_of(tree))) == ["server.listen"]
    assert list(told("[server]\nopen = true\n" + ROUTES, listen=listen)) == ["server.listen"]


@pytest.mark.parametrize(
    ("key", "value"), [("listen", []), ("base_paths", []), ("accept", []), ("endpoints", [])]
)
def test_empty_lists(key: str, value: list[str]) -> None:
    """A surface that listens nowhere, or on which nothing can be asked, is a mistake."""
    tree = {"server": {key: value}, "keys": {"k": "x"}, "routes": {"m": "openai/x"}}
    assert list(told(file_of(tree))) == [f"server.{key}"]


@pytest.mark.parametrize(
    "base",
    ["v1", "/v1/", "/", "//", "/v1?x", "/v 1", "/v1#", "/ü", "/a//b", "/%2e", "/..", "/v1/.."],
)
def test_bad_base_paths(base: str) -> None:
    """A base path is a path such as `/v1`, or empty."""
    tree = {"server": {"base_paths": ["/ok", base]}, "routes": {"m": "openai/x"}}
    assert list(told(file_of(tree))) == ["server.base_paths[1]"]


def test_listen_override() -> None:
    """The command line's address replaces the one surface's, or the first one's."""
    there = (Address("127.0.0.1", 9),)
    assert read(ROUTES, listen="127.0.0.1:9").surfaces[0].listen == there
    over = read(f'[server]\nlisten = "nonsense"\n{ROUTES}', listen="127.0.0.1:9")
    assert over.surfaces[0].listen == there
    first, second = read(file_of(FULL), listen="127.0.0.1:9").surfaces
    assert first.listen == there
    assert second.listen != there


@pytest.mark.parametrize("keys", ["[keys]\n", "[keys]\n\n", "keys = {}\n"])
@pytest.mark.parametrize("auth", ["", 'auth = "keys"\n'])
@pytest.mark.parametrize("listen", ["127.0.0.1:80", "0.0.0.0:80"])
def test_empty_keys_are_keys(keys: str, auth: str, listen: str) -> None:
    """A table of keys means keys though none is in it: nobody is let in, on any address."""
    first, then = (keys, "") if keys.startswith("keys") else ("", keys)
    text = f'{first}[server]\nlisten = "{listen}"\n{auth}{then}{ROUTES}'
    snapshot = read(text)
    assert (snapshot.surfaces[0].auth, len(snapshot.keys)) == ("keys", 0)
    assert (snapshot.keyed, snapshot.closed, snapshot.notes) == (True, (), ())


def test_auth_keys_without_a_table() -> None:
    """Who says `auth = "keys"` has keys, and none of them is valid."""
    snapshot = read(f'[server]\nlisten = "0.0.0.0:80"\nauth = "keys"\n{ROUTES}')
    assert (snapshot.surfaces[0].auth, len(snapshot.keys), snapshot.closed) == ("keys", 0, ())


KEYLESS = """
[[surface]]
name = "new"
listen = ["0.0.0.0:1", "unix:/tmp/x"]
[[surface]]
name = "free"
listen = "127.0.0.1:2"
auth = "none"
[[surface]]
name = "kept"
listen = "127.0.0.1:3"
open = true
[hooks.a]
route = "m"
"""


def test_absence_closes_where_keys_were() -> None:
    """After keys were in force, a surface that says nothing of keys asks for them, wherever it listens;
    only the word `none` opens it.
    """
    with pytest.raises(ConfigError, match="open = true"):
        read(KEYLESS + ROUTES)
    snapshot = read(KEYLESS + ROUTES, keyed=True)
    assert [surface.auth for surface in snapshot.surfaces] == ["keys", "none", "keys"]
    assert snapshot.closed == ("new", "kept")
    assert set(snapshot.hooks) == {"a"}  # as long as a surface on loopback is open by its own word
    shut = read(KEYLESS.replace('auth = "none"', "") + ROUTES, keyed=True)
    assert shut.closed == ("new", "free", "kept")
    assert not shut.hooks
    assert read(ROUTES, keyed=True).keyed


def test_keys_in_force() -> None:
    """Counted are the keys that open something today."""
    now = datetime(2027, 7, 1, tzinfo=UTC)
    keys = f'[keys]\na = "{"a" * 20}"\nb = {{ secret = "{"b" * 20}", expires = 2027-06-30 }}\n'
    assert read(keys + ROUTES).keys_in_force(now) == 1
    assert read(f'[server]\nauth = "none"\n{keys}{ROUTES}').keys_in_force(now) == 0


def test_no_keys_is_noted() -> None:
    """A file that opens only where no process had keys before says so to who checks it."""
    (note,) = read(ROUTES).notes
    assert str(note).startswith("server: asks for no key")
    assert 'auth = "none"' in note.message
    assert not read('[server]\nauth = "none"\n' + ROUTES).notes
    assert not read('[server]\nauth = "passthrough"\n' + ROUTES).notes


GUESSABLE = [
    "changeme",
    "sk-1234",
    "fifteen-letters",
    "AH_SMKRPA_00000000000000000000000000000000",
    "ah-00000000000000000000000000000000",
    "humiris-00000000000000000000000000000000",
]


@pytest.mark.parametrize("text", GUESSABLE)
@pytest.mark.parametrize("where", ["key", "table", "hash", "variable", "hook"])
def test_guessable(text: str, where: str) -> None:
    """What opens the proxy and can be guessed is refused by name where strangers reach it, noted where
    only this machine does; of a hash it is known where the text is one that all know.
    """
    opens, path, env = {
        "key": (f'[keys]\nk = "{text}"\n', "keys.k", {}),
        "table": (f'[keys.k]\nsecret = "{text}"\n', "keys.k", {}),
        "hash": (
            f'[keys.k]\nhash = "sha256:{sha256(text.encode()).hexdigest()}"\n', "keys.k", {},
        ),
        "variable": ('[keys]\nk = "${K}"\n', "keys.k", {"K": text}),
        "hook": (
            f'[keys]\n[hooks.a]\nroute = "m"\nsecret = "{text}"\n', "hooks.a.secret", {},
        ),
    }[where]  # fmt: skip
    if where == "hash" and text == "fifteen-letters":
        assert not read(f'[server]\nlisten = "0.0.0.0:1"\n{opens}{ROUTES}', env).notes
        return
    for listen in ("127.0.0.1:1", "[::1]:1", "unix:/tmp/x"):
        (note,) = read(f'[server]\nlisten = "{listen}"\n{opens}{ROUTES}', env).notes
        assert str(note).startswith(f"{path}: ")
    exposed = f'[server]\nlisten = ["127.0.0.1:1", "0.0.0.0:1"]\n{opens}{ROUTES}'
    problems = told(exposed, env)
    assert list(problems) == [path]
    assert text not in problems[path]
    assert "trunkline keys new" in problems[path]


def test_guessable_where_no_key_is_asked_for() -> None:
    """A weak key is not refused for the sake of a surface that asks for none; a hook's secret is, since
    hooks answer on every surface.
    """
    keys = '[keys]\nk = "weak"\n'
    text = f'[[surface]]\nname = "a"\nlisten = "127.0.0.1:1"\n[[surface]]\nname = "b"\nlisten = "0.0.0.0:1"\nauth = "none"\nopen = true\n{ROUTES}'
    assert len(read(text + keys).notes) == 1
    assert set(told(text + keys + '[hooks.a]\nroute = "m"\nsecret = "weak"\n')) == {
        "hooks.a.secret"
    }


@pytest.mark.parametrize("text", ["sixteen-letters!", "sk-mobile-0123456789abcdef"])
def test_not_guessable(text: str) -> None:
    """Sixteen characters that stand in no list are a key."""
    keys = f'[server]\nlisten = "0.0.0.0:1"\n[keys]\nk = "{text}"\n[hooks.a]\nroute = "m"\nsecret = "{text}"\n'
    assert not read(keys + ROUTES).notes


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"server": {"listen": "127.0.0.1:1"}, "surface": [{}]}, {"server.listen"}),
        (
            {"server": {"auth": "none", "hosts": []}, "surface": [{}]},
            {"server.auth", "server.hosts"},
        ),
        ({"surface": [{}, {"listen": "127.0.0.1:1"}]}, {"surface"}),
        ({"surface": [{"name": "a"}, {"name": "b"}]}, {"surface"}),
        ({"server": {"endpoints": ["chat/completions", "files"]}}, {"server.endpoints[1]"}),
        ({"server": {"endpoints": "chat/completions"}}, {"server.endpoints"}),
        ({"surface": [{"listen": "nowhere"}, 5]}, {"surface[0].listen", "surface[1]"}),
        ({"surface": {"name": "a"}}, {"surface"}),
    ],
)
def test_bad_surfaces(tree: dict[str, Any], paths: set[str]) -> None:
    """Surfaces differ in name and address, and leave [server] its own."""
    assert set(told(file_of({**tree, "routes": {"m": "openai/x"}}))) == paths
