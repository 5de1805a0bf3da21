"""What an upstream's table may hold: URLs, headers, secrets."""

import os
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from proxy.config.problems import dotted
from tests.config.files import (
    ROUTES,
    Node,
    _upstream,
    changed,
    file_of,
    read,
    route_of,
    told,
)


@pytest.mark.parametrize(
    "url",
    [
        "x",
        "h/v1",
        "//h/v1",
        "ftp://h/v1",
        "file:///etc/passwd",
        "https://",
        "https:///v1",
        "https://:443/v1",
        "https:h/v1",
        "https://h:99999/v1",
        "https://h:-1/v1",
        "https://h:x/v1",
        "https://h:0/v1",
        "https://user@h/v1",
        "https://user:pw@h/v1",
        "https://@h/v1",
        "https://h/v1?key=x",
        "https://h/v1?",
        "https://h/v1#x",
        "https://h/v1#",
        "https://[::1/v1",
        "https://[x]/v1",
        "https://h/v 1",
        "https://h/v1 ",
        " https://h/v1",
        "https://h h/v1",
        "https://h\\x/v1",
        "https://h<x>/v1",
        "https://h^/v1",
        "https://h/v1\n",
        "https://h/v\n1",
        "https://h\r\nX-Evil: 1/v1",
        "https://h\t/v1",
        "https://h/v1\x00",
        "https://h/ü/v1",
        "https://" + "a" * 70 + "/v1",
        "https://a..b/v1",
        "https://h/v1/chat/completions",
        "https://h/v1/chat/completions/",
        "https://h/v1/embeddings",
        "https://h/v1/messages/count_tokens",
    ],
)
@pytest.mark.parametrize("where", ["upstream", "paths", "route"])
def test_bad_urls(url: str, where: str) -> None:
    """A base URL is a scheme, a host, perhaps a port and a path, and nothing else."""
    tree: dict[str, Any] = {"routes": {"m": "x/y"}, "upstreams": {"x": {"base_url": "http://h"}}}
    if where == "upstream":
        path: Node = ("upstreams", "x", "base_url")
    elif where == "paths":
        tree["upstreams"]["x"]["paths"] = {}
        path = ("upstreams", "x", "paths", "messages")
    else:
        tree["routes"]["m"] = {}
        path = ("routes", "m", "base_url")
    assert list(told(file_of(changed(tree, path, url)))) == [dotted(path)]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h", "http://h/x"),
        ("http://h/", "http://h/x"),
        ("HTTP://H/v1/", "http://h/v1/x"),
        ("https://h:443/v1", "https://h/v1/x"),
        ("http://h:443/v1", "http://h:443/v1/x"),
        ("http://10.0.0.1:8000/v1", "http://10.0.0.1:8000/v1/x"),
        ("http://[fd00::1]:8000", "http://[fd00::1]:8000/x"),
        ("https://münchen.example/v1", "https://xn--mnchen-3ya.example/v1/x"),
        ("https://h/a%20b/v1", "https://h/a%20b/v1/x"),
        ("http://my_service/v1", "http://my_service/v1/x"),
        ("https://h/openai/deployments/gpt-4", "https://h/openai/deployments/gpt-4/x"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    """What precedes the endpoint's path is kept as written, less a final slash and a usual port."""
    tree = {"upstreams": {"x": {"base_url": url}}, "routes": {"m": "x/y"}}
    assert _upstream(read(file_of(tree))).base.url("x") == shown


def test_empty_url_is_none() -> None:
    """An empty base URL is a mistake, and never means the one that is known already."""
    for upstream in ("openai", "mine"):
        tree = {"upstreams": {upstream: {"base_url": ""}}, "routes": {"m": f"{upstream}/y"}}
        assert told(file_of(tree))
    assert told(file_of({"routes": {"m": {"base_url": ""}}}))


def test_full_url_names_what_to_cut() -> None:
    """Who writes the endpoint's path into the base URL is told where it must end."""
    tree = {
        "upstreams": {"x": {"base_url": "https://h/v1/chat/completions"}},
        "routes": {"m": "x/y"},
    }
    message = told(file_of(tree))["upstreams.x.base_url"]
    assert "must end before `/chat/completions`" in message


@pytest.mark.parametrize("key", ["/messages", "messages/", "", "mesages", "v1/messages", "*"])
def test_paths_that_never_match(key: str) -> None:
    """An entry of `paths` that no endpoint lies below would be ignored, and so is refused."""
    tree = {"upstreams": {"openai": {"paths": {key: "http://h/v1"}}}, "routes": {"m": "openai/y"}}
    assert list(told(file_of(tree))) == [dotted(("upstreams", "openai", "paths", key))]


@pytest.mark.parametrize("url", ["", "egress", "egress:3128", "https://e:1", "socks5://e:1", "http://", "http://e:x", "http://e e:1", "http://e:1\n"])  # fmt: skip
def test_bad_proxies(url: str) -> None:
    """An egress proxy is an http URL."""
    tree = {"upstreams": {"openai": {"proxy": url}}, "routes": {"m": "openai/y"}}
    assert list(told(file_of(tree))) == ["upstreams.openai.proxy"]


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])  # fmt: skip
def test_bad_ca(content: bytes | None, tmp_path: Path) -> None:
    """A `ca` must be there and hold certificates."""
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    tree = {"upstreams": {"openai": {"ca": str(tmp_path / "ca.pem")}}, "routes": {"m": "openai/y"}}
    assert list(told(file_of(tree))) == ["upstreams.openai.ca"]


def test_ca(pem: Path) -> None:
    """A file of certificates is taken, and makes the origin another one."""
    tree = {"upstreams": {"openai": {"ca": str(pem)}}, "routes": {"m": "openai/y"}}
    assert _upstream(read(file_of(tree))).base.origin.ca == str(pem)


def a_pair(directory: Path) -> tuple[str, str]:
    """Write a certificate and its key; return the two files."""
    made = trustme.CA().issue_cert("trunkline.example")
    made.cert_chain_pems[0].write_to_path(directory / "client.pem")
    made.private_key_pem.write_to_path(directory / "client.key")
    return str(directory / "client.pem"), str(directory / "client.key")


def showing(certificate: str, key: str) -> str:
    table = {"client_certificate": {"certificate": certificate, "key": key}}
    return file_of({"upstreams": {"openai": table}, "routes": {"m": "openai/y"}})


def test_client_certificate(tmp_path: Path) -> None:
    """What is shown to an upstream makes its origin another one; a route's own upstream may have one too."""
    pair = a_pair(tmp_path)
    assert _upstream(read(showing(*pair))).base.origin.certificate == pair
    files = f'{{ certificate = "{pair[0]}", key = "{pair[1]}" }}'
    own = f'[routes]\nm = {{ base_url = "https://h/v1", client_certificate = {files} }}'
    assert route_of(own).first.upstream.base.origin.certificate == pair


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("no certificate", "`certificate` cannot be read: no such file"),
        ("no key", "`key` cannot be read: no such file"),
        ("a directory", "`certificate` cannot be read: is a directory"),
        ("a device", "`key` cannot be read: is a device"),
        ("a nought", "`certificate` cannot be read: its name is not a path"),
        ("another's key", "`key` does not belong to `certificate`"),
        ("a key under a password", "`key` has a passphrase"),
        ("no PEM", "`certificate` is not a certificate in PEM form"),
    ],
)
def test_bad_client_certificates(what: str, why: str, tmp_path: Path) -> None:
    """A certificate and its key are two files that can be read and belong together; what is wrong with
    either quotes neither.
    """
    certificate, key = a_pair(tmp_path)
    (tmp_path / "other").mkdir()
    if what == "no certificate":
        certificate += "x"
    elif what == "no key":
        key += "x"
    elif what == "a directory":
        certificate = str(tmp_path)
    elif what == "a device":
        key = "/dev/zero"
    elif what == "a nought":
        certificate += "\0"
    elif what == "another's key":
        key = a_pair(tmp_path / "other")[1]
    elif what == "a key under a password":
        made = serialization.load_pem_private_key(Path(key).read_bytes(), None)
        secret = serialization.BestAvailableEncryption(b"CANARY")
        pkcs8 = serialization.PrivateFormat.PKCS8
        Path(key).write_bytes(made.private_bytes(serialization.Encoding.PEM, pkcs8, secret))
    else:
        Path(certificate).write_text("CANARY")
    problems = told(showing(certificate, key))
    assert list(problems) == ["upstreams.openai.client_certificate"]
    assert why in problems["upstreams.openai.client_certificate"]
    assert "CANARY" not in str(problems)


BAD_NAMES = ["", " ", "a b", "a:", "a\n", "a\r\nb", "ä", "a(b)", "host", "Host", "Content-Length", "transfer-encoding", "Connection", "a\x00"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_header_names(name: str) -> None:
    """A header that is no token, or that frames the message, cannot be set."""
    tree: dict[str, Any] = {"upstreams": {"openai": {"headers": {name: "x"}}}, "routes": {"m": "openai/y"}}  # fmt: skip
    assert list(told(file_of(tree))) == [dotted(("upstreams", "openai", "headers", name))]
    if name:
        tree["upstreams"]["openai"] = {"credential": {"header": name, "secret": "sk-1"}}
        assert list(told(file_of(tree))) == ["upstreams.openai.credential.header"]


@pytest.mark.parametrize("value", ["a\nb", "a\r\nX: y", "\x00", "a\x1b", "\x7f", "日本"])
def test_bad_header_values(value: str) -> None:
    """A header's value holds no line end, no other control character, and no character without a byte."""
    toml = file_of(
        {"upstreams": {"openai": {"headers": {"x-a": "${V}"}}}, "routes": {"m": "openai/y"}}
    )
    assert list(told(toml, {"V": f"CANARY{value}"})) == ["upstreams.openai.headers.x-a"]  # fmt: skip


@pytest.mark.parametrize("text", ["sk\nX: y", "sk\rx", "sk\x00", "sk\x7f", "sk\tx", "schlüssel", "sk\udcff"])  # fmt: skip
@pytest.mark.parametrize("where", ["upstreams.openai.credential", "keys.k", "header", "preset"])
def test_bad_characters_in_secrets(text: str, where: str) -> None:
    """A secret that no header can hold is refused, without being shown."""
    toml, place = {
        "header": (
            '[upstreams.openai]\ncredential = { header = "x", secret = "${V}" }',
            "upstreams.openai.credential.secret",
        ),
        "preset": ("", "upstreams.openai.credential"),
        "keys.k": ('[keys]\nk = "${V}"', where),
    }.get(where, ('[upstreams.openai]\ncredential = "${V}"', where))
    name = "OPENAI_API_KEY" if where == "preset" else "V"
    problems = told(f"{toml}\n{ROUTES}", {name: f"CANARY{text}CANARY" if text.strip() == text else text})  # fmt: skip
    assert list(problems) == [place]
    assert name in problems[place]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_secrets(text: str) -> None:
    """An empty secret is none."""
    for tree, path in (
        ({"upstreams": {"openai": {"credential": text}}}, "upstreams.openai.credential"),
        ({"keys": {"k": text}}, "keys.k"),
        ({"keys": {"k": {"secret": text}}}, "keys.k.secret"),
    ):
        assert path in told(file_of({**tree, "routes": {"m": "openai/x"}}))


def test_value_that_is_not_unicode() -> None:
    """A variable that is not UTF-8 cannot become part of a request's JSON, and is refused."""
    toml = '[routes]\nm = { upstream = "openai", model = "${V}" }'
    assert list(told(toml, {"V": os.fsdecode(b"model-\xff")})) == ["routes.m.model"]
