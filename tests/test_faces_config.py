"""What a surface says of its clients, and how a header chooses a route, in `routes.toml`."""

import itertools
import os
import pty
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.config import Snapshot, load
from proxy.config.tables import LATER, RouteTable, SurfaceTable, UpstreamTable
from proxy.routes import Route
from proxy.surfaces import Surface, Tls
from tests.config.files import read, told

ROOT = Path(__file__).parents[1]
M = '[routes]\nm = "sandbox/x"\n'
SWITCH = """
[routes.h]
header = "mixTuningId"
[routes.h.to]
fast = "sandbox/x"
deep = "sandbox/y"
"""


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two certificates and their keys: `a.crt`, `a.key`, `b.crt`, `b.key`."""
    directory = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    for name in ("a", "b"):
        made = ca.issue_cert("localhost")
        made.private_key_pem.write_to_path(str(directory / f"{name}.key"))
        for part in made.cert_chain_pems:
            part.write_to_path(str(directory / f"{name}.crt"), append=True)
    (directory / "junk").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    (directory / "empty").touch()
    lines = (directory / "a.key").read_text().splitlines(keepends=True)
    (directory / "cut").write_text("".join([*lines[:1], *lines[2:]]))
    os.mkfifo(directory / "pipe")
    return directory


def surface(keys: str) -> Surface:
    """Return the surface that *keys* make, which must say the same in `[server]` and `[[surface]]`."""
    one, other = (
        read(f"{table}\n{keys}\n{M}").surfaces[0] for table in ("[server]", "[[surface]]")
    )
    assert one == other
    return one


def wrong(keys: str) -> dict[str, str]:
    """Return what is wrong with the *keys* of a surface, the same in `[server]` and `[[surface]]`."""
    one = told(f"[server]\n{keys}\n{M}")
    other = told(f"[[surface]]\n{keys}\n{M}")
    assert one == {path.replace("surface[0]", "server"): what for path, what in other.items()}
    return one


def test_supported_now() -> None:
    """None of these keys is refused as not built yet."""
    later = {key for keys in LATER.values() for key in keys}
    for table, keys in (
        (SurfaceTable, {"docs", "echo_model", "errors", "cors", "trusted_proxies", "tls"}),
        (UpstreamTable, {"forward"}),
        (RouteTable, {"header", "missing", "unknown", "to"}),
    ):
        assert keys <= set(table.model_fields)
        assert not keys & later


# Surfaces


def test_nothing_said() -> None:
    """A surface that says nothing has docs, puts nothing into answers, and trusts nobody."""
    (found,) = read(M).surfaces
    assert (found.docs, found.echo_model, dict(found.errors)) == (True, False, {})
    assert (found.cors, found.trusted, found.tls) == (frozenset(), (), None)


def test_all_said(pem: Path) -> None:
    """Each key of a surface arrives where it belongs."""
    tls = f'tls = {{ certificate = "{pem}/a.crt", key = "{pem}/a.key" }}'
    found = surface(
        "docs = false\necho_model = true\n"
        'errors = { 401 = "Unauthorized", 404 = "Not_Found.x", 599 = "y" }\n'
        'cors = ["https://app.example.com", "http://localhost:3000", "http://[::1]:5173", '
        '"app://obsidian.md", "chrome-extension://abcdefghijklmnop", "moz-extension://0b1c-2d", '
        '"vscode-webview://0b1c2d", "capacitor://localhost", "tauri://localhost"]\n'
        f'trusted_proxies = ["10.0.0.0/8", "::ffff:192.0.2.1", "2001:db8::/32"]\n{tls}'
    )
    assert (found.docs, found.echo_model) == (False, True)
    assert dict(found.errors) == {401: "Unauthorized", 404: "Not_Found.x", 599: "y"}
    assert found.cors == {
        "https://app.example.com", "http://localhost:3000", "http://[::1]:5173", "app://obsidian.md",
        "chrome-extension://abcdefghijklmnop", "moz-extension://0b1c-2d", "vscode-webview://0b1c2d",
        "capacitor://localhost", "tauri://localhost",
    }  # fmt: skip
    assert found.trusted == tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32")))
    assert found.tls == Tls(f"{pem}/a.crt", f"{pem}/a.key")


def test_one_proxy() -> None:
    """One trusted proxy needs no list."""
    assert surface('trusted_proxies = "10.1.2.3"').trusted == (ip_network("10.1.2.3/32"),)


def test_each_its_own() -> None:
    """What one surface says does not hold on another."""
    first = '[[surface]]\nname = "a"\nlisten = "127.0.0.1:1"\necho_model = true\ndocs = false\n'
    second = '[[surface]]\nname = "b"\nlisten = "127.0.0.1:2"\nerrors = { 401 = "U" }\n'
    one, other = read(first + second + M).surfaces
    assert (one.echo_model, one.docs, dict(one.errors)) == (True, False, {})
    assert (other.echo_model, other.docs, dict(other.errors)) == (False, True, {401: "U"})


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ('docs = "yes"', "docs"),
        ("docs = 1", "docs"),
        ('echo_model = "true"', "echo_model"),
        ("echo_model = 0", "echo_model"),
        ('errors = "Unauthorized"', "errors"),
        ("errors = { 401 = 5 }", "errors.401"),
        ('errors = { 401 = "" }', "errors.401"),
        ('errors = { 401 = "two words" }', "errors.401"),
        ('errors = { 401 = "q\\"" }', "errors.401"),
        ('errors = { 200 = "Fine" }', "errors.200"),
        ('errors = { 301 = "Moved" }', "errors.301"),
        ('errors = { 600 = "X" }', "errors.600"),
        ('errors = { 4010 = "X" }', "errors.4010"),
        ('errors = { 4xx = "X" }', "errors.4xx"),
        ('errors = { "" = "X" }', 'errors.""'),
        ('cors = "https://app.example.com"', "cors"),
        ('cors = ["*"]', "cors[0]"),
        ('cors = ["null"]', "cors[0]"),
        ('cors = [""]', "cors[0]"),
        ('cors = ["app.example.com"]', "cors[0]"),
        ('cors = ["https://app.example.com/"]', "cors[0]"),
        ('cors = ["https://app.example.com/x"]', "cors[0]"),
        ('cors = ["https://App.example.com"]', "cors[0]"),
        ('cors = ["https://*.example.com"]', "cors[0]"),
        ('cors = ["ftp://app.example.com"]', "cors[0]"),
        ('cors = ["file://"]', "cors[0]"),
        ('cors = ["app://*"]', "cors[0]"),
        ('cors = ["chrome-extension://"]', "cors[0]"),
        ('cors = ["capacitor://localhost/"]', "cors[0]"),
        ('cors = ["app://x\\r\\nX: y"]', "cors[0]"),
        ('cors = ["https://u@app.example.com"]', "cors[0]"),
        ('cors = ["https://a.example", "https://b.example\\r\\nX: y"]', "cors[1]"),
        ("cors = [5]", "cors[0]"),
        ('trusted_proxies = ["proxy.example.com"]', "trusted_proxies[0]"),
        ('trusted_proxies = ["10.0.0.1/8"]', "trusted_proxies[0]"),
        ('trusted_proxies = ["10.0.0.0/33"]', "trusted_proxies[0]"),
        ('trusted_proxies = ["10.0.0.0/8", ""]', "trusted_proxies[1]"),
        ('trusted_proxies = "*"', "trusted_proxies"),
        ("trusted_proxies = 10", "trusted_proxies"),
        ("strip = [5]", "strip[0]"),
        ('strip = ""', "strip"),
        ('strip = "*"', "strip"),
        ('strip = ["x-a", "x a"]', "strip[1]"),
        ('strip = ["x-*-a"]', "strip[0]"),
        ('strip = ["x-a:"]', "strip[0]"),
        ('strip = ["é"]', "strip[0]"),
        ('tls = "auto"', "tls"),
        ('tls = { certificate = "/x" }', "tls.key"),
        ('tls = { key = "/x" }', "tls.certificate"),
        ('tls = { certificate = "/x", key = "/x", ca = "/x" }', "tls.ca"),
        ('tls = { certificate = "/no/such", key = "/no/such" }', "tls"),
        ('tls = { certificate = "", key = "" }', "tls"),
        ('tls = { certificate = "a\\u0000b", key = "/x" }', "tls"),
    ],
)
def test_bad_surface(keys: str, path: str) -> None:
    """A value that a surface cannot have is told by its path."""
    problems = wrong(keys)
    assert len(problems) == 1
    (found,) = problems
    assert found.removesuffix("[0]") == f"server.{path}".removesuffix("[0]")


NOT_ONE = "`certificate` is not a certificate in PEM form"
NO_KEY = "`key` is not a private key in PEM form"


@pytest.mark.parametrize(
    ("certificate", "key", "why"),
    [
        ("none", "a.key", "`certificate` cannot be read: no such file or directory"),
        ("a.crt", "none", "`key` cannot be read: no such file or directory"),
        ("", "a.key", "`certificate` cannot be read: is a directory"),
        ("a.crt", "pipe", "`key` cannot be read: is a named pipe, not a regular file"),
        ("a.key", "a.crt", NOT_ONE),
        ("junk", "a.key", NOT_ONE),
        ("empty", "a.key", NOT_ONE),
        ("a.crt", "junk", NO_KEY),
        ("a.crt", "a.crt", NO_KEY),
        ("a.crt", "b.key", "`key` does not belong to `certificate`"),
        ("a.crt", "cut", "`key` cannot be used with `certificate`: "),
    ],
)
def test_bad_certificate(pem: Path, certificate: str, key: str, why: str) -> None:
    """What is wrong with a certificate or its key is told before anybody needs it: which of the two it is,
    and whether it cannot be read, is none, or does not fit.
    """
    keys = f'tls = {{ certificate = "{pem}/{certificate}", key = "{pem}/{key}" }}'
    problems = wrong(keys)
    assert list(problems) == ["server.tls"]
    assert problems["server.tls"].startswith(why)


def test_a_key_in_the_place_of_its_file(pem: Path) -> None:
    """Who puts the key itself where its file belongs does not read it in a message."""
    text = (pem / "a.key").read_text()
    toml = f'[server]\ntls = {{ certificate = "{pem}/a.crt", key = "${{KEY}}" }}\n{M}'
    problems = told(toml, {"KEY": text})
    assert "`key` cannot be read" in problems["server.tls"]
    assert text[40:60] not in str(problems)


def test_certificate_among_words(pem: Path, tmp_path: Path) -> None:
    """What people write around a certificate does not matter, in whatever script."""
    file = tmp_path / "chain"
    file.write_text("Bag Attributes\n friendlyName: Müller\n" + (pem / "a.crt").read_text())
    found = surface(f'tls = {{ certificate = "{file}", key = "{pem}/a.key" }}')
    assert found.tls == Tls(str(file), f"{pem}/a.key")


def test_locked_key(pem: Path, tmp_path: Path) -> None:
    """A key that is locked with a passphrase is told like any other that cannot be used, and nobody is
    asked for it: where `check` and the server run, there may be nobody.
    """
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", pem / "a.key", "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    file = tmp_path / "routes.toml"
    file.write_text(f'[server]\ntls = {{ certificate = "{pem}/a.crt", key = "{locked}" }}\n{M}')
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "proxy", "check", str(file)])
    said = b""
    try:
        while b"Enter" not in said:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # it has ended
                break
            said += piece
    finally:
        os.close(terminal)  # which hangs up on whoever still asks
        _, status = os.waitpid(pid, 0)
    assert b"server.tls" in said
    assert b"has a passphrase, and there is nobody to ask for it" in said.replace(b"\r\n", b" ")
    assert b"Enter" not in said
    assert os.waitstatus_to_exitcode(status) == 1


# Routes by header


def route(toml: str, name: str = "h") -> Route:
    found = read(toml).routes.match(name)
    assert found is not None
    return found


def places(found: Route) -> dict[bytes, list[list[str]]]:
    """Return where each value of the header leads: a list of groups, each of `upstream/model`."""
    assert found.switch is not None
    return {
        value: [[f"{one.upstream.name}/{one.model}" for one in group.targets] for group in groups]
        for value, groups in found.switch.to.items()
    }


def test_switch() -> None:
    """Each value of the header leads where it says; the codes have names of their own unless given."""
    found = route(SWITCH)
    assert found.switch is not None
    assert found.switch.name == "mixTuningId"
    assert (found.switch.missing, found.switch.unknown) == ("missing_header", "unknown_header")
    assert places(found) == {b"fast": [["sandbox/x"]], b"deep": [["sandbox/y"]]}
    assert [target.model for target in found.targets()] == ["x", "y"]


def test_switch_with_codes() -> None:
    """What a missing header and an unknown value are called is the file's to say."""
    codes = 'missing = "BadRequest"\nunknown = "MixTuningNotFound"\n[routes.h.to]'
    found = route(SWITCH.replace("[routes.h.to]", codes))
    assert found.switch is not None
    assert (found.switch.missing, found.switch.unknown) == ("BadRequest", "MixTuningNotFound")


def test_switch_to_routes() -> None:
    """A value may lead to a route, with all its targets and fallbacks, and is as case-sensitive as it."""
    found = route(
        """
[routes]
fast = { targets = [{ to = "sandbox/a", weight = 3 }, "sandbox/b"], policy = "weighted", fallback = ["sandbox/c"] }
alias = "fast"
[routes.h]
header = "mixTuningId"
to = { "f/a st" = "fast", "F/a st" = "alias", "9" = "sandbox/z" }
"""
    )
    through = [["sandbox/a", "sandbox/b"], ["sandbox/c"]]
    assert places(found) == {b"f/a st": through, b"F/a st": through, b"9": [["sandbox/z"]]}
    assert found.switch is not None
    assert found.switch.to[b"f/a st"][0].policy == "weighted"


def test_switch_of_a_pattern() -> None:
    """Where the route is a pattern, `*` in a place stands for what it matched."""
    found = route(
        '[routes."h/*"]\nheader = "x-mix"\nto = { a = "sandbox/*" }\nlist = ["one"]\n', "h/one"
    )
    assert places(found) == {b"a": [["sandbox/*"]]}
    assert found.model_sent(found.first, "h/one") == "one"
    assert found.listed == ("h/one",)


def test_switch_has_a_routes_other_keys() -> None:
    """The keys that say how, and not where, hold beside a header as anywhere."""
    found = route(
        '[routes.h]\nheader = "x"\nto = { a = "sandbox/x" }\ntimeout = { total = "5s" }\n'
        'keepalive = "3s"\npeek = true\non_context_length = true\nretry = { attempts = 1 }\n'
    )
    assert (found.comment_after, found.peek, found.on_context_length) == (3, True, True)
    assert found.first.timeouts.total == 5
    assert found.first.retry.attempts == 1


def test_alias_of_a_switch() -> None:
    """Another name of a route by header is one by header too: an alias opens no way round it."""
    found = route(SWITCH + '[routes.alias]\nupstream = "sandbox"\n', "h")
    other = route('[routes]\nalias = "h"\nagain = "alias"\n' + SWITCH, "alias")
    assert places(other) == places(found)
    again = route('[routes]\nalias = "h"\nagain = "alias"\n' + SWITCH, "again")
    assert places(again) == places(found)
    assert again.switch is not None
    assert again.switch.name == "mixTuningId"


@pytest.mark.parametrize(
    ("toml", "path"),
    [
        ('[routes.r]\nupstream = "sandbox"\nfallback = ["h"]', "routes.r.fallback[0]"),
        ('[routes.r]\nupstream = "sandbox"\nfallback = "h"', "routes.r.fallback"),
        ('[routes.r]\ntargets = ["h", "sandbox/z"]', "routes.r.targets[0]"),
        ('[routes.r]\ntargets = [{ to = "h" }]', "routes.r.targets[0].to"),
        ('[routes.r]\nheader = "x"\nto = { v = "h" }', "routes.r.to.v"),
    ],
)
@pytest.mark.parametrize("values", [1, 2])
def test_a_switch_is_no_place(toml: str, path: str, values: int) -> None:
    """A route by header cannot be a target, a fallback or a value: there would be no one header to ask."""
    switch = SWITCH if values == 2 else SWITCH.replace('deep = "sandbox/y"\n', "")
    assert list(told(toml + switch)) == [path]


def said(keys: str, values: str = 'a = "sandbox/x"') -> dict[str, str]:
    """Return what is wrong with the route `r` by header, beside *keys*."""
    return told(f"[routes.r]\n{keys}\nto = {{ {values} }}\n{M}")


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ('header = ""', "header"),
        ('header = "two words"', "header"),
        ('header = "x:"', "header"),
        ('header = "ü"', "header"),
        ('header = "Host"', "header"),
        ('header = "Content-Length"', "header"),
        ('header = "transfer-encoding"', "header"),
        ('header = "Connection"', "header"),
        ("header = 5", "header"),
        ('header = ["x"]', "header"),
        ('header = "x"\nmissing = ""', "missing"),
        ('header = "x"\nmissing = "two words"', "missing"),
        ('header = "x"\nunknown = "\\""', "unknown"),
        ('header = "x"\nunknown = "é"', "unknown"),
        ('header = "x"\nmissing = 400', "missing"),
        ('header = "x"\nupstream = "sandbox"', "upstream"),
        ('header = "x"\nbase_url = "http://h/v1"', "base_url"),
        ('header = "x"\nmodel = "y"', "model"),
        ('header = "x"\ntargets = ["sandbox/y"]', "targets"),
        ('header = "x"\npolicy = "weighted"', "policy"),
        ('header = "x"\nsticky = "x-user"', "sticky"),
        ('header = "x"\nfallback = ["sandbox/y"]', "fallback"),
        ('header = "x"\ncredential = "sk-1"', "credential"),
        ('header = "x"\nforward = ["x"]', "forward"),
        ('header = "x"\npreset = "openai"', "preset"),
        ('header = "x"\nheaders = { a = "b" }', "headers"),
        ('header = "x"\npassthrough = true', "passthrough"),
        ('header = "x"\nbilled = false', "billed"),
    ],
)
def test_bad_switch(keys: str, path: str) -> None:
    """A key that a route by header cannot have, or a value it cannot have, is told and never ignored."""
    problems = said(keys)
    assert list(problems) == [f"routes.r.{path}"], problems


@pytest.mark.parametrize(
    "value", ["", " ", "a ", "\\ta", "a\\u0000", "a\\r\\nb", "a\\tb", "\\u007f"]
)
def test_bad_value(value: str) -> None:
    """A value that no header can have is told."""
    (path,) = said('header = "x"', f'"{value}" = "sandbox/x"')
    assert path.startswith("routes.r.to.")


def test_bad_place() -> None:
    """A value that leads nowhere is told, with what may have been meant."""
    problems = said('header = "x"', 'a = "sandbx/x", b = "nowhere", c = "r"')
    assert set(problems) == {"routes.r", "routes.r.to.a", "routes.r.to.b"}
    assert "sandbox/x" in problems["routes.r.to.a"]
    assert "leads back to itself" in problems["routes.r"]


@pytest.mark.parametrize(
    ("toml", "path"),
    [
        ('[routes.r]\nheader = "x"', "routes.r"),
        ('[routes.r]\nheader = "x"\nto = {}', "routes.r"),
        ('[routes.r]\nto = { a = "sandbox/x" }', "routes.r.header"),
        ('[routes.r]\nupstream = "sandbox"\nmissing = "X"', "routes.r.missing"),
        ('[routes.r]\nupstream = "sandbox"\nunknown = "X"', "routes.r.unknown"),
    ],
)
def test_half_a_switch(toml: str, path: str) -> None:
    """A header without values, values without a header, and codes without either are told."""
    assert list(told(f"{toml}\n{M}")) == [path]


def test_only_some_values_may_be_dormant() -> None:
    """A value whose vendor has no credential here does not keep the others from working."""
    found = route('[routes.h]\nheader = "x"\nto = { a = "openai/gpt-4o", b = "sandbox/x" }\n')
    lacking = [target.upstream.lacks(passthrough=False) for target in found.targets()]
    assert lacking == ["OPENAI_API_KEY", None]


# Upstreams


@pytest.mark.parametrize(("value", "names"), [('"MixTuningId"', {b"mixtuningid"}),
    ('["mixTuningId", "X-B"]', {b"mixtuningid", b"x-b"}), ("[]", set())])  # fmt: skip
def test_forward(value: str, names: set[bytes]) -> None:
    """An upstream names the headers that go there all the same; their case does not matter."""
    found: Snapshot = read(f"[upstreams.sandbox]\nforward = {value}\n{M}")
    assert found.upstreams["sandbox"].forward == names


@pytest.mark.parametrize(
    "name", ["", "two words", "Host", "content-length", "Connection", "é", "a:"]
)
def test_bad_forward(name: str) -> None:
    """What is no header that can be sent cannot be forwarded."""
    problems: dict[str, Any] = told(f'[upstreams.sandbox]\nforward = ["{name}"]\n{M}')
    assert list(problems) == ["upstreams.sandbox.forward[0]"]


# The page that shows it all

PAGE = (ROOT / "docs" / "faces.md").read_text("utf-8")
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))


def test_all_examples_are_there() -> None:
    """Each of four systems has a file, and all together have one."""
    names = ["aihubspot", "aihummer", "all", "gateway", "humiris"]
    assert [file.stem for file in EXAMPLES] == names
    assert all(f"examples/{name}.toml" in PAGE for name in names)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_needs_nothing(file: Path) -> None:
    """An example works with no variable set, and without a network: the sandbox stands behind each route."""
    snapshot = load(file, {})
    assert snapshot.routes.routes
    for found in snapshot.routes.routes:
        for target in found.targets():
            assert target.upstream.name == "sandbox"
            assert target.upstream.lacks(passthrough=False) is None


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example_is_on_the_page(file: Path) -> None:
    """The page shows each file as it is, but for the words at its top; the last one repeats the others."""
    lines = file.read_text("utf-8").splitlines(keepends=True)
    shown = "".join(itertools.dropwhile(lambda line: line[0] in "#\n", lines))
    assert (f"```toml\n{shown}```\n" in PAGE) == (file.stem != "all")


def test_all_is_the_sum() -> None:
    """The surfaces of the one file for all are those of the four, but for which routes they show."""
    single = [load(file, {}).surfaces[0] for file in EXAMPLES if file.stem != "all"]
    together = load(ROOT / "docs" / "examples" / "all.toml", {}).surfaces
    assert {one.name for one in together} == {one.name for one in single}
    for one in single:
        (other,) = (found for found in together if found.name == one.name)
        assert replace(one, routes=None) == replace(other, routes=None)
