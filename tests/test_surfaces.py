"""Surfaces: what a raw path means, whose Host is ours, and which paths nobody may ask for."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import dialects
from proxy.patterns import Pattern
from proxy.surfaces import Address, Surface, host_name, is_loopback, is_unsafe

BASES = ("/api/v1", "/v1", "")


def surface(
    *bases: str,
    models: str = "list",
    endpoints: tuple[str, ...] | None = None,
    routes: tuple[str, ...] | None = None,
    hosts: tuple[str, ...] = (),
    listen: str = "127.0.0.1",
) -> Surface:
    return Surface(
        name="main",
        listen=(Address(listen, 8080),),
        base_paths=bases or BASES,
        auth="none",
        routes=None if routes is None else tuple(map(Pattern.parse, routes)),
        models="hidden" if models == "hidden" else "list",
        endpoints=None if endpoints is None else frozenset(endpoints),
        hosts=frozenset(hosts),
    )


# Where a path leads


@pytest.mark.parametrize(("base", "endpoint"), list(product(BASES, dialects.ENDPOINTS)))
def test_every_endpoint_below_every_base(base: str, endpoint: str) -> None:
    """Each known endpoint is found below each base path, the bare one included, and nothing is cut off it."""
    located = surface().locate(f"{base}/{endpoint}")
    assert located is not None
    assert located.dialect is dialects.ENDPOINTS[endpoint]
    assert located.suffix == endpoint


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("below", ["resp_1", "resp_1/cancel", "compact", "a%2Fb"])
def test_below_responses(base: str, below: str) -> None:
    """What lies below `responses` speaks the dialect of `responses`."""
    located = surface().locate(f"{base}/responses/{below}")
    assert located is not None
    assert located.dialect is dialects.RESPONSES
    assert located.suffix == f"responses/{below}"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", ["models", "models/gpt-4o", "models/openai/gpt", "models/a%2Fb"])
def test_models(base: str, path: str) -> None:
    """The list of models and what lies below it is found, and carries no dialect."""
    located = surface().locate(f"{base}/{path}")
    assert located is not None
    assert located.dialect is None
    assert located.suffix == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/.env",
        "/admin",
        "/v2/chat/completions",
        "/v1/v1/chat/completions",
        "/v1/chat",
        "/v1/chat/completions/",
        "/v1/chat/completions/x",
        "/v1/Chat/Completions",
        "/V1/chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1x/chat/completions",
        "/xv1/chat/completions",
        "v1/chat/completions",
        "chat/completions",
        "/v1/responses/",
        "/v1/messages/count_tokens/x",
        "/v1/modelsx",
        "/v1/files",
        "/v1/chat/completions\n",
    ],
)
def test_nothing_there(path: str) -> None:
    """A path that is not exactly an endpoint's means nothing."""
    assert surface().locate(path) is None


@pytest.mark.parametrize("path", ["/chat/completions", "/api/v1/chat/completions", "/models"])
def test_only_its_own_bases(path: str) -> None:
    """A surface with base paths of its own has no others, not even the bare one."""
    assert surface("/v1").locate(path) is None


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o", "/models", "/api/v1/models/x"])
def test_hidden_models(path: str) -> None:
    """Where models are hidden, their paths are as unknown as any other."""
    assert surface(models="hidden").locate(path) is None


def test_listed_endpoints() -> None:
    """A list of endpoints shuts all others."""
    only = surface("/v1", endpoints=("chat/completions",))
    assert only.locate("/v1/chat/completions") is not None
    assert only.locate("/v1/embeddings") is None
    assert only.locate("/v1/messages") is None


@pytest.mark.parametrize(
    ("routes", "model", "shown"),
    [
        (None, "anything", True),
        ((), "anything", False),
        (("default", "qwen/*"), "default", True),
        (("default", "qwen/*"), "qwen/turbo", True),
        (("default", "qwen/*"), "openai/gpt", False),
    ],
)
def test_visible_routes(routes: tuple[str, ...] | None, model: str, shown: bool) -> None:
    """A surface shows all models, or those its patterns match."""
    assert surface(routes=routes).shows(model) is shown


# Whose Host

OURS = [
    "localhost",
    "localhost:8080",
    "LOCALHOST:1",
    "my.localhost",
    "127.0.0.1",
    "127.0.0.1:65535",
    "127.8.9.10:80",
    "[::1]",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]:8080",
    "gpu.lan",
    "gpu.lan:8080",
    "GPU.lan",
    "10.1.2.3:8080",
]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "evil-localhost",
    "xlocalhost",
    "localhost.evil",
    "gpu.lan.evil.example",
    "xgpu.lan",
    "10.1.2.4",
    "0.0.0.0",
    "[::]",
    "[fe80::1]",
    "[2001:db8::1]:8080",
    "192.168.0.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
]
JUNK = [
    "",
    " ",
    ":8080",
    "localhost:",
    "localhost:x",
    "localhost:123456",
    "localhost:80:80",
    "localhost/?",
    "localhost/",
    "localhost?",
    "localhost#",
    "x/?",
    "localhost:8080/?",
    "localhost\\",
    "localhost,evil.example",
    "localhost evil",
    " localhost",
    "localhost ",
    "localhost\t",
    "localhost\n",
    "localhost\r\nX: y",
    "localhost\x00",
    "user@localhost",
    "user:pw@localhost",
    "::1",
    "[::1",
    "::1]",
    "[::1]x",
    "[[::1]]",
    "[]",
    "[localhost]",
    "locälhost",
    "localhost%00",
    "*",
    "null",
    "http://localhost",
]


@pytest.mark.parametrize("host", OURS)
def test_own_hosts(host: str) -> None:
    """Loopback, the address a request came in at, and the names in `hosts` are ours, with any port."""
    assert surface(hosts=("gpu.lan",)).admits_host(host, "10.1.2.3")


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_hosts(host: str) -> None:
    """A name that a web page was loaded from is not ours, whatever it resolves to."""
    assert not surface(hosts=("gpu.lan",)).admits_host(host, "10.1.2.3")


@pytest.mark.parametrize("host", JUNK)
def test_junk_is_nobodys_host(host: str) -> None:
    """What is not a name or address with perhaps a port is refused, however it begins."""
    assert not surface(hosts=("gpu.lan",)).admits_host(host, "")
    assert host == "null" or host_name(host) is None


@pytest.mark.parametrize("listen", ["gpu.lan", "GPU.lan", "10.1.2.3", "fd00::1", "FD00::1"])
def test_listen_address_is_ours(listen: str) -> None:
    """The address that the file says to listen on is ours, in any case of its letters."""
    ours = surface(listen=listen)
    name = f"[{listen.lower()}]" if ":" in listen else listen.lower()
    assert ours.admits_host(name, "")
    assert ours.admits_host(f"{name}:8080", "")


@given(st.text(max_size=40))
def test_any_host(text: str) -> None:
    """Whatever stands in a Host header, the answer is yes or no, and junk behind a name is no."""
    assert surface().admits_host(text, "") in (True, False)
    if not text.isalnum() and not text.startswith((":", ".", "-", "_")):
        assert not surface().admits_host("localhost/" + text, "")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Loopback is what only this machine reaches; every unix socket is."""
    assert is_loopback(host) is loopback
    assert Address(host, 80).loopback is loopback
    assert Address(path="/run/x.sock").loopback


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("127.0.0.1", 8080), "127.0.0.1:8080"),
        (Address("::1", 8080), "[::1]:8080"),
        (Address(path="/run/x.sock"), "unix:/run/x.sock"),
    ],
)
def test_address_as_written(address: Address, text: str) -> None:
    """An address is shown as the file writes it."""
    assert str(address) == text


# Paths that could mean another place

DOTS = [".", "..", "%2e", "%2E", "%2e%2e", "%2E%2e", ".%2e", "%2E."]
BEFORE = ["/v1/", "/", "/v1/responses/x/", "/v1/responses/x%2f", "/v1/responses/x%2F"]
AFTER = ["", "/", "/admin", "%2fadmin", "%2Fadmin", "/../x", "/chat/completions"]


@pytest.mark.parametrize("before", BEFORE)
def test_dot_segments(before: str) -> None:
    """A dot segment is unsafe, encoded or not, in any case, whichever slash stands around it."""
    paths = [before + dots + after for dots, after in product(DOTS, AFTER)]
    assert [path for path in paths if not is_unsafe(path)] == []


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example/v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions//",
        "/v1\\chat\\completions",
        "/\\evil.example/",
        "/v1/x%5cy",
        "/v1/x%5Cy",
        "/v1/x%00y",
        "/v1/x%00",
        "/v1/x\x00y",
        "/v1/x y",
        "/v1/x\ty",
        "/v1/x\r\ny",
        "/v1/x\x1fy",
        "/v1/x\x7fy",
    ],
)
def test_unsafe(path: str) -> None:
    """Empty segments, backslashes, NULs, spaces and control characters are unsafe, raw or encoded."""
    assert is_unsafe(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/chat/completions",
        "/v1/models/openai%2Fgpt-4o",
        "/v1/models/openai%2fgpt-4o",
        "/v1/models/qwen2.5-72b",
        "/v1/models/a..b",
        "/v1/models/...",
        "/v1/models/.hidden",
        "/v1/models/x.",
        "/v1/models/x..",
        "/v1/models/a%2Eb",
        "/v1/models/gpt-4o:free",
        "/v1/models/a%20b",
        "/v1/models/%252e%252e",
        "/v1/models/日本",
        "/v1/responses/resp_0123456789abcdef/cancel",
        "/.env",
        "/v1/models/a%2F%2Ehidden",
    ],
)
def test_safe(path: str) -> None:
    """Dots inside a segment and an encoded slash in an id are nothing unusual."""
    assert not is_unsafe(path)


@given(st.lists(st.sampled_from([".", "..", "a", "b%2Fc", "%2e", "..."]), max_size=6))
def test_unsafe_is_what_normalises(segments: list[str]) -> None:
    """A path is unsafe exactly when a reader that resolves dot segments would go somewhere else."""
    path = "/" + "/".join(segments)
    assert is_unsafe(path) == any(s in (".", "..", "%2e") for s in segments)
