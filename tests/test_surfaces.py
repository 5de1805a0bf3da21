"""Surfaces: what a raw path means, whose Host is ours, and which paths nobody may ask for."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import dialects
from proxy.patterns import Pattern
from proxy.surfaces import Address, Located, Surface, host_name, is_loopback, is_unsafe
from tests.harness.client import call
from tests.harness.proxy import serving

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
@pytest.mark.parametrize(
    "path",
    [
        "models", "models/gpt-4o", "models/openai/gpt", "models/a%2Fb",
        "responses/resp_1", "responses/resp_1/cancel", "responses/a%2Fb",
        "files", "files/f_1/content", "batches",
    ],
)  # fmt: skip
def test_what_carries_no_model(base: str, path: str) -> None:
    """What stands below a base path and carries no model is located there, and has no dialect."""
    assert surface().locate(f"{base}/{path}") == Located(base, path, None)


@pytest.mark.parametrize(
    ("path", "base", "suffix"),
    [
        ("/v1//chat/completions", "/v1", "chat/completions"),
        ("//v1/chat/completions", "/v1", "chat/completions"),
        ("///api//v1///chat////completions", "/api/v1", "chat/completions"),
        ("//chat/completions", "", "chat/completions"),
        ("/v1/v1/chat/completions", "/v1", "chat/completions"),
        ("/v1/v1/v1/v1/messages", "/v1", "messages"),
        ("/v1//v1/messages", "/v1", "messages"),
        ("/api/v1/v1/messages", "/api/v1", "messages"),
        ("/v1/v1/files/v1/x", "/v1", "files/v1/x"),
        ("/v1/v1", "/v1", "v1"),
        ("/v1/v1/", "/v1", ""),
        ("/v1/v1x/messages", "/v1", "v1x/messages"),
        ("/v1/v1%2Fmessages", "/v1", "v1%2Fmessages"),
        ("/v1/api/v1/messages", "/v1", "api/v1/messages"),
        ("/v1/messages/v1/messages", "/v1", "messages/v1/messages"),
        ("/v1/V1/messages", "/v1", "V1/messages"),
    ],
)
def test_joined_by_hand(path: str, base: str, suffix: str) -> None:
    """A slash too many, and a base path's end said twice, mean what was meant."""
    assert surface().locate(path) == Located(base, suffix, dialects.ENDPOINTS.get(suffix))


def test_own_base_said_twice() -> None:
    """What may be said twice is the last segment of the base path that the surface has."""
    own = surface("/llm/openai")
    assert own.locate("/llm/openai/openai/messages") == Located(
        "/llm/openai", "messages", dialects.MESSAGES
    )
    twice = own.locate("/llm/openai/v1/messages")
    assert twice == Located("/llm/openai", "v1/messages", None)
    assert own.locate("/openai/messages") is None


NATIVE = "models/gemini-2.5-pro:streamGenerateContent"


@pytest.mark.parametrize(
    ("bases", "path", "base"),
    [
        (BASES, "/v1beta/", "/v1beta"),
        (BASES, "/v1alpha/", "/v1alpha"),
        (BASES, "/api/v1beta/", "/api/v1beta"),
        (BASES, "/v1/", "/v1"),
        (BASES, "/v1/v1beta/", None),
        (BASES, "/", ""),
        (BASES, "//v1beta//", "/v1beta"),
        (BASES, "/v1beta1/", None),
        (BASES, "/x/v1beta/", None),
        (BASES, "/V1beta/", None),
        (("/v1",), "/v1beta/", "/v1beta"),
        (("/v1",), "/api/v1beta/", None),
        (("",), "/v1beta/", "/v1beta"),
        (("/api/v1",), "/api/v1beta/", "/api/v1beta"),
        (("/api/v1",), "/v1beta/", None),
        (("/llm",), "/llm/v1beta/", "/llm/v1beta"),
        (("/llm",), "/llm/", "/llm"),
        (("/llm",), "/v1beta/", None),
        (("/v1beta",), "/v1beta/", "/v1beta"),
    ],
)
def test_gemini(bases: tuple[str, ...], path: str, base: str | None) -> None:
    """Gemini's own paths stand beside a base path that ends in `/v1`, and below any other."""
    located = surface(*bases).locate(path + NATIVE)
    if base is None:
        assert located is None or located.dialect is None
    else:
        assert located == Located(base, NATIVE, dialects.GEMINI)


@pytest.mark.parametrize(
    "path", ["models", "models/", "models/gemini-2.5-pro", "models/a%2Fb", "models/a/b"]
)
def test_gemini_list(path: str) -> None:
    """Gemini's list of models, and one of them, are located and name no verb, so carry no dialect."""
    assert surface().locate(f"/v1beta/{path}") == Located("/v1beta", path, None)


@pytest.mark.parametrize(
    "path", ["modelsx", "files", "tunedModels/x:generateContent", "openai/models", ""]
)
def test_not_gemini(path: str) -> None:
    """What else stands beside Gemini's models is no path of its own here."""
    assert surface("/v1").locate(f"/v1beta/{path}") is None


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
        "/v1/models/x:",
        "/v1beta/models/:generateContent",
    ],
)
def test_nothing_there(path: str) -> None:
    """A path that is not exactly an endpoint's carries no model."""
    located = surface().locate(path)
    assert located is None or located.dialect is None


@pytest.mark.parametrize("path", ["", "v1/chat/completions", "chat/completions", "\\v1\\messages"])
def test_no_path(path: str) -> None:
    """What does not begin with a slash is no path."""
    assert surface().locate(path) is None


PIECES = ["/", "//", "v1", "v1beta", "v1alpha", "api", "models", "messages", "x", ":", "%2F", "..", "*", "\n", "é", "\udcff"]  # fmt: skip
PATHS = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(PATHS, st.sampled_from([BASES, ("/v1",), ("/api/v1",), ("",), ("/llm",)]))
def test_any_path(path: str, bases: tuple[str, ...]) -> None:
    """Whatever the path, it stands nowhere, or below one base path with a suffix of its own."""
    located = surface(*bases).locate(path)
    if located is None:
        return
    assert located.dialect is dialects.find(located.suffix)
    collapsed = re.sub("/+", "/", path)
    assert collapsed.startswith(located.base + "/")
    assert collapsed.endswith(located.suffix)
    stems = {base.removesuffix("/v1") for base in bases}
    native = {stem + version for stem in stems for version in ("/v1beta", "/v1alpha")}
    assert located.base in native | set(bases)
    if located.base in native - set(bases):
        assert located.suffix.startswith("models")


@given(st.text("v1abet/models:x", max_size=40))
def test_slashes_never_matter(path: str) -> None:
    """Doubled slashes locate what single ones do."""
    single = re.sub("/+", "/", path)
    assert surface().locate(single.replace("/", "//")) == surface().locate(single)


@pytest.mark.parametrize("path", ["/chat/completions", "/api/v1/chat/completions", "/models"])
def test_only_its_own_bases(path: str) -> None:
    """A surface with base paths of its own has no others, not even the bare one."""
    assert surface("/v1").locate(path) is None


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o", "/v1beta/models", "/models"])
async def test_hidden_models(path: str) -> None:
    """Where models are hidden, their paths are as unknown as any other, but for the id in the answer."""
    toml = '[server]\nmodels = "hidden"\n[routes]\nm = "sandbox/echo"\n'
    async with serving(toml) as proxy:
        hidden = await call(proxy.port, path=path, method="GET")
        other = await call(proxy.port, path=path.replace("models", "xodels"), method="GET")
    assert hidden.status == other.status == 404
    assert hidden.json() == other.json()
    assert len(hidden.head) == len(other.head)


LISTED = [
    (("chat/completions",), {"chat/completions"}),
    (("messages",), {"messages", "messages/count_tokens"}),
    (("messages/count_tokens",), {"messages/count_tokens"}),
    (("responses", "realtime"), {"responses", "responses/compact", "responses/input_tokens", "realtime"}),
    (("gemini",), {NATIVE}),
    (("files",), set[str]()),
]  # fmt: skip


@pytest.mark.parametrize(("endpoints", "open_"), LISTED)
def test_listed_endpoints(endpoints: tuple[str, ...], open_: set[str]) -> None:
    """A list of endpoints shuts all others; what stands below one of the list is open with it."""
    only = surface("/v1", endpoints=endpoints)
    found = set()
    for path in [*dialects.ENDPOINTS, NATIVE]:
        located = only.locate(f"/v1/{path}")
        assert located is not None
        if located.dialect is not None:
            found.add(path)
    assert found == open_


def test_listed_gemini() -> None:
    """Gemini's own paths are one endpoint of the list, wherever they stand."""
    for path in (f"/v1beta/{NATIVE}", f"/v1alpha/{NATIVE}", f"/v1/{NATIVE}"):
        for endpoints, dialect in ((("gemini",), dialects.GEMINI), (("messages",), None)):
            located = surface("/v1", endpoints=endpoints).locate(path)
            assert located is not None
            assert located.dialect is dialect


@pytest.mark.parametrize(
    ("endpoints", "suffix", "serves"),
    [
        (None, "anything", True),
        (("files",), "files", True),
        (("files",), "files/f_1", True),
        (("files",), "filesx", False),
        (("files",), "file", False),
        (("files/f_1",), "files", False),
        (("chat/completions", "files"), "files/x", True),
        ((), "files", False),
    ],
)
def test_serves(endpoints: tuple[str, ...] | None, suffix: str, serves: bool) -> None:
    """A surface has the endpoints of its list, and what stands below them, at slashes."""
    assert surface("/v1", endpoints=endpoints).serves(suffix) is serves


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
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.168.1.1", False),
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
        "/v1//../chat/completions",
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
    """Backslashes, NULs, spaces and control characters are unsafe, raw or encoded."""
    assert is_unsafe(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions//",
        "/v1beta/models/gemini-2.5-pro:generateContent",
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
