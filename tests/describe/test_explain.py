"""`explain`: what it says before a request is what happens to the request."""

import re

import pytest

from proxy.config import Snapshot, load
from proxy.describe.explain import Explanation, explain
from proxy.headers import Pair
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream, answer

SECRETS = {
    "OPENAI_API_KEY": "sk-openai-CANARY-0123456789",
    "CORP_KEY": "ck-CANARY",
    "PAGE_TOKEN": "CANARY",
    "PROXY_URL": "http://user:CANARY@egress.example:3128",
    "TEAM_KEY": "tk-CANARY-0123456789",
}
TOML = """
[defaults]
timeout = { first_byte = "20s" }
[upstreams.corp]
base_url = "https://llm.corp.example:8443/v1"
credential = { header = "apikey", secret = "${CORP_KEY}" }
headers = { "x-team" = "search" }
paths = { messages = "https://msg.corp.example/anthropic/v1" }
proxy = "${PROXY_URL}"
timeout = { idle = "7s", total = "none" }
[upstreams.page]
base_url = "http://page.example"
headers = { "x-token" = "${PAGE_TOKEN}", "x-auth" = "Basic ${PAGE_TOKEN}" }
[routes]
page = "page/x"
gpt-4o = "openai/gpt-4o"
default = "gpt-4o"
"gpt-*" = { upstream = "openai" }
"*" = { upstream = "corp", model = "any-*" }
"openai/*" = { upstream = "openai" }
claude = "anthropic/claude-x"
slow = { upstream = "corp", model = "big", timeout = { total = "90s" } }
[keys]
team = "${TEAM_KEY}"
"""


@pytest.fixture
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return read(tmp_path_factory, TOML)


def read(factory: pytest.TempPathFactory, toml: str) -> Snapshot:
    file = factory.mktemp("explain") / "routes.toml"
    file.write_text(toml)
    return load(file, SECRETS)


def asked(
    snapshot: Snapshot,
    model: str | None,
    path: str = "/v1/chat/completions",
    headers: tuple[Pair, ...] = (),
) -> Explanation:
    told = explain(snapshot, snapshot.surfaces[0], model, path, headers)
    assert all("CANARY" not in text for pair in told.lines for text in pair)
    assert "CANARY" not in str(told), "a secret is shown"
    return told


def shown(told: Explanation, label: str) -> list[str]:
    return [text for name, text in told.lines if name == label]


@pytest.mark.parametrize(
    ("model", "route", "rejected", "url", "sent"),
    [
        ("gpt-4o", '"gpt-4o", exact name', '"gpt-*", "*"', "https://api.openai.com/v1", "gpt-4o"),
        ("gpt-5", '"gpt-*", longest prefix', '"*"', "https://api.openai.com/v1", "gpt-5"),
        ("default", '"default" → gpt-4o, exact', '"*"', "https://api.openai.com/v1", "gpt-4o"),
        ("openai/openai/x", '"openai/*", longest', '"*"', "https://api.openai.com/v1", "openai/x"),
        ("zzz", '"*", longest prefix', "", "https://llm.corp.example:8443/v1", "any-zzz"),
        ("slow", '"slow", exact', '"*"', "https://llm.corp.example:8443/v1", "big"),
    ],
)
def test_route(
    snapshot: Snapshot, model: str, route: str, rejected: str, url: str, sent: str
) -> None:
    """It names the rule that wins and those that lose, the final URL, and the model sent."""
    told = asked(snapshot, model)
    assert told.works
    assert shown(told, "route")[0].startswith(route)
    assert " ".join(shown(told, "rejected")).startswith(rejected)
    assert shown(told, "url") == [f"POST {url}/chat/completions"]
    assert shown(told, "upstream model") == [sent]


@pytest.mark.parametrize(
    ("path", "url", "dialect"),
    [
        ("/v1/embeddings", "https://llm.corp.example:8443/v1/embeddings", "embeddings"),
        (
            "/v1/audio/transcriptions",
            "https://llm.corp.example:8443/v1/audio/transcriptions",
            "audio",
        ),
        ("/images/edits", "https://llm.corp.example:8443/v1/images/edits", "images"),
        ("/responses/compact", "https://llm.corp.example:8443/v1/responses/compact", "responses"),
        ("/api/v1/messages", "https://msg.corp.example/anthropic/v1/messages", "messages"),
        (
            "/v1/messages/count_tokens",
            "https://msg.corp.example/anthropic/v1/messages/count_tokens",
            "count_tokens",
        ),
    ],
)
def test_path(snapshot: Snapshot, path: str, url: str, dialect: str) -> None:
    """The URL is that of the endpoint asked about, below the base of its dialect."""
    told = asked(snapshot, "slow", path)
    assert shown(told, "url") == [f"POST {url}"]
    assert shown(told, "path") == [f"{path}, dialect {dialect}"]


@pytest.mark.parametrize(
    ("model", "path", "header"),
    [
        ("gpt-4o", "chat/completions", "Authorization: Bearer …6789  (from OPENAI_API_KEY)"),
        ("slow", "chat/completions", "apikey: …  (from CORP_KEY)"),
    ],
)
def test_credential(snapshot: Snapshot, model: str, path: str, header: str) -> None:
    """The credential is shown masked, in its form, with where it comes from."""
    assert header in shown(asked(snapshot, model, f"/v1/{path}"), "header")


def test_headers(snapshot: Snapshot) -> None:
    """A header that the file sets is named, with whose it is."""
    headers = shown(asked(snapshot, "slow"), "header")
    assert any(re.fullmatch(r"x-team: (search|…)  \(set for corp\)", text) for text in headers)


def test_headers_from_variables(snapshot: Snapshot) -> None:
    """Of a header that a variable is part of, the name is shown and the value is not, however short."""
    names = [header.split(":")[0] for header in shown(asked(snapshot, "page"), "header")]
    assert names == ["x-token", "x-auth"]


def test_egress_proxy(snapshot: Snapshot) -> None:
    """An egress proxy is shown without its user and password."""
    assert shown(asked(snapshot, "slow"), "proxy") == ["egress.example:3128"]


def test_timeouts(snapshot: Snapshot) -> None:
    """Each timeout is shown with the table that set it."""
    assert shown(asked(snapshot, "slow"), "timeout") == [
        "connect 5 s  (built in)",
        "first_byte 20 s  (defaults.timeout)",
        "idle 7 s  (upstreams.corp.timeout)",
        "write 60 s  (built in)",
        "total 90 s  (routes.slow.timeout)",
    ]
    assert "total none  (upstreams.corp.timeout)" in shown(asked(snapshot, "x"), "timeout")


def test_dormant(snapshot: Snapshot) -> None:
    """A dormant route is explained to its end, and then said to be refused, and why."""
    told = asked(snapshot, "claude", "/v1/messages")
    assert not told.works
    assert shown(told, "url") == ["POST https://api.anthropic.com/v1/messages"]
    assert "ANTHROPIC_API_KEY is not set" in shown(told, "dormant")[0]
    assert any("anthropic-version: 2023-06-01" in header for header in shown(told, "header"))


@pytest.mark.parametrize("path", ["/v1/files", "/v1/chat", "/x/chat/completions", "/health"])
def test_unknown_path(snapshot: Snapshot, path: str) -> None:
    """A path that carries no model is said to lead nowhere."""
    told = asked(snapshot, "gpt-4o", path)
    assert not told.works
    assert shown(told, "url") == []


SURFACES = """
[[surface]]
name = "first"
listen = "127.0.0.1:1"
routes = ["seen*"]
[[surface]]
name = "second"
listen = "127.0.0.1:2"
auth = "passthrough"
[upstreams.theirs]
base_url = "http://h/v1"
credential = "sk-CANARY-0123456789"
passthrough = true
[upstreams.anthropic]
passthrough = true
[routes]
seen-1 = "openai/x"
hidden-1 = "openai/x"
pass = "theirs/x"
pass-dormant = "anthropic/x"
"""


@pytest.mark.parametrize("model", ["seen-2", "hidden-1", "hidden-2"])
def test_refused_model(tmp_path_factory: pytest.TempPathFactory, model: str) -> None:
    """A model that no route matches, or that the surface does not show, is said to be refused."""
    told = asked(read(tmp_path_factory, SURFACES), model)
    assert not told.works
    assert "404 model_not_found" in shown(told, "route")[0]
    assert shown(told, "url") == []
    if model == "seen-2":
        assert "seen-1" in shown(told, "route")[0]


@pytest.mark.parametrize(
    ("model", "works"), [("pass", True), ("pass-dormant", True), ("hidden-1", False)]
)
def test_passthrough(tmp_path_factory: pytest.TempPathFactory, model: str, works: bool) -> None:
    """Where the caller's own credential goes up, ours is not shown, and only willing upstreams are asked."""
    snapshot = read(tmp_path_factory, SURFACES)
    told = explain(snapshot, snapshot.surfaces[1], model, "/v1/chat/completions")
    assert told.works is works
    assert not any("Bearer …" in header for header in shown(told, "header"))
    assert works or "model_not_allowed" in str(told.lines)


VENDORS = """
[upstreams.openai]
defaults = { chat = { x-shown = "search", x-hidden = "${PAGE_TOKEN}" } }
[upstreams.vertex]
vars = { location = "europe-west1", project = "acme" }
credential = { command = ["gcloud", "auth", "print-access-token"] }
[upstreams.corp]
base_url = "https://llm.corp.example/v1"
speaks = ["chat"]
[routes]
default = "openai/gpt-4o"
gpt-4o = "openai/gpt-4o"
rt = "openai/gpt-realtime"
claude = "anthropic/claude-x"
corp = "corp/x"
moai = "humiris/x"
"gem/*" = { upstream = "gemini", model = "*" }
flash = "vertex/gemini-2.5-flash"
eu = "azure/gpt"
[unrouted]
files = "openai"
"*" = "corp"
"""


@pytest.fixture
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return read(tmp_path_factory, VENDORS)


@pytest.mark.parametrize(
    ("model", "path", "url"),
    [
        ("rt", "/v1/realtime", "WebSocket https://api.openai.com/v1/realtime?model=gpt-realtime"),
        ("rt", "/v1/realtime?model=rt&a=%20", "WebSocket https://api.openai.com/v1/realtime?model=gpt-realtime&a=%20"),
        (None, "/openai/deployments/rt/chat/completions?api-version=1&a=2", "POST https://api.openai.com/v1/chat/completions?a=2"),
        ("gpt-4o", "/openai/deployments/rt/chat/completions?api-version=1", "POST https://api.openai.com/v1/chat/completions"),
        (None, "/openai/realtime?api-version=1&deployment=rt", "WebSocket https://api.openai.com/v1/realtime?model=gpt-realtime"),
        (None, "/v1/realtime?model=rt", "WebSocket https://api.openai.com/v1/realtime?model=gpt-realtime"),
        (None, "/v1/realtime", "WebSocket https://llm.corp.example/v1/realtime"),
        ("gem/x", "/v1beta/models/y:generateContent", "POST https://generativelanguage.googleapis.com/v1beta/models/x:generateContent"),
        (None, "/v1beta/models/gem/x:streamGenerateContent?alt=sse", "POST https://generativelanguage.googleapis.com/v1beta/models/x:streamGenerateContent?alt=sse"),
        (None, "/v1beta/models/gem%2Fx:countTokens", "POST https://generativelanguage.googleapis.com/v1beta/models/x:countTokens"),
        ("flash", "/v1beta/models/flash:generateContent", "POST https://europe-west1-aiplatform.googleapis.com/v1/projects/acme/locations/europe-west1/publishers/google/models/gemini-2.5-flash:generateContent"),
        (None, "/v1/chat/completions", "POST https://api.openai.com/v1/chat/completions"),
        ("gpt-4o", "//v1/v1//audio/transcriptions", "POST https://api.openai.com/v1/audio/transcriptions"),
        ("gpt-4o", "/v1/responses?stream=true", "POST https://api.openai.com/v1/responses?stream=true"),
        (None, "/v1/files/abc", "any method https://api.openai.com/v1/files/abc"),
        (None, "/v1/files?limit=2", "any method https://api.openai.com/v1/files?limit=2"),
        ("gpt-4o", "/v1/files/abc", "any method https://api.openai.com/v1/files/abc"),
        (None, "/v1/batches", "any method https://llm.corp.example/v1/batches"),
        (None, "/v1/models?upstream=openai", "any method https://api.openai.com/v1/models"),
        (None, "/v1/models?limit=5&upstream=openai", "any method https://api.openai.com/v1/models?limit=5"),
        (None, "/v1/models?upstream=open%61i", "any method https://api.openai.com/v1/models"),
    ],
)  # fmt: skip
def test_any_path(vendors: Snapshot, model: str | None, path: str, url: str) -> None:
    """Wherever a request carries its model, or none, the URL is shown that it would go to; a model that
    is not said is the one that the path or its query names.
    """
    assert shown(asked(vendors, model, path), "url") == [url]


@pytest.mark.parametrize("model", [None, ""])
def test_no_model(tmp_path_factory: pytest.TempPathFactory, model: str | None) -> None:
    """A request that names no model is explained as it is served: by `default`, else by what takes any
    name and with none put in, else not at all.
    """
    up = '"*" = { base_url = "https://up.example/v1", model = "x" }\n'
    default = 'default = "openai/gpt-4o"\n'
    path = "/v1/chat/completions"
    told = asked(read(tmp_path_factory, f"[routes]\n{up}{default}"), model, path)
    assert shown(told, "upstream model") == ["gpt-4o"]
    told = asked(read(tmp_path_factory, f"[routes]\n{up}"), model, path)
    assert (shown(told, "upstream model"), told.works) == (["none, as asked"], True)
    assert shown(told, "keys")
    for server, code in (('routes = ["m"]', "404"), ("", "400")):
        lines = f"[server]\n{server}\n[routes]\n" + (up if code == "404" else "m = 'sandbox/echo'")
        told = asked(read(tmp_path_factory, lines), model, path)
        assert not told.works
        assert shown(told, "route")[0].startswith(code)


def test_model_in_the_query(vendors: Snapshot) -> None:
    """A model that the query says again is left out of the URL; another one is refused."""
    told = asked(vendors, "gpt-4o", "/v1/chat/completions?a=b&model=gpt-4o")
    assert shown(told, "url") == ["POST https://api.openai.com/v1/chat/completions?a=b"]
    told = asked(vendors, "gpt-4o", "/v1/chat/completions?model=o1")
    assert not told.works
    assert shown(told, "model")[-1].startswith("400 invalid_model")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o", "/v1beta/models", "/models"])
def test_own_list(vendors: Snapshot, path: str) -> None:
    """The list of models is answered here."""
    told = asked(vendors, None, path)
    assert told.works
    assert "answered here" in shown(told, "path")[0]
    assert shown(told, "url") == []


@pytest.mark.parametrize(
    ("model", "path", "why"),
    [
        (
            "gpt-4o",
            "/v1/messages",
            '404 endpoint_not_supported: The upstream "openai" of the model "gpt-4o" does not',
        ),
        (
            "corp",
            "/v1/embeddings",
            '404 endpoint_not_supported: The upstream "corp" of the model "corp" does not',
        ),
        (
            "claude",
            "/v1/responses",
            '404 endpoint_not_supported: The upstream "anthropic" of the model "claude" does',
        ),
        (None, "/v1/models?upstream=moai", "404 not_found"),
        (None, "/v1/models?upstream=", "404 not_found"),
        (None, "/v1/models?upstream=humiris", "404 endpoint_not_supported"),
        (None, "/.env", "404 not_found"),
        (None, "/v1/files/../x", "400 bad_request"),
        (None, "/v1", "404 not_found"),
        (None, "", "404 not_found"),
        ("nothing", "/v1/realtime", "404 model_not_found"),
        (None, "/v1/realtime?model=a&model=b", "400 invalid_model"),
        (None, "/v1beta/models/%ff:generateContent", "400 invalid_model"),
        ("eu", "/v1/messages", "AZURE_RESOURCE_NAME is not set"),
    ],
)
def test_refused(vendors: Snapshot, model: str | None, path: str, why: str) -> None:
    """What would be refused is said to be, with the error that it would get."""
    told = asked(vendors, model, path)
    assert not told.works
    assert any(why in text for _, text in told.lines)


def test_defaults_of_the_table(vendors: Snapshot) -> None:
    """A header that the table adds is shown with its value, unless a variable is a part of that."""
    headers = shown(asked(vendors, "gpt-4o"), "header")
    assert any(header.startswith("x-shown: search") for header in headers)
    assert any(header.startswith("x-hidden: …") for header in headers)


def test_byte_in_a_header(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A header's value is bytes, of which each is shown, UTF-8 or not."""
    toml = '[upstreams.openai]\ndefaults = { chat = { x-a = "é" } }\nheaders = { x-b = "é" }\n'
    told = asked(read(tmp_path_factory, toml + '[routes]\nm = "openai/x"\n'), "m")
    assert [h[:6] for h in shown(told, "header") if h.startswith("x-")] == ["x-b: é", "x-a: é"]


def test_command(vendors: Snapshot) -> None:
    """Of a credential that a command prints, the command is named, and it is not run."""
    headers = shown(asked(vendors, "flash"), "header")
    assert headers == ["Authorization: Bearer …  (from the command gcloud)"]


def test_keys_for_what_carries_no_model(vendors: Snapshot) -> None:
    """It says which keys may ask for what carries no model."""
    assert shown(asked(vendors, None, "/v1/files"), "keys") == ["those without a `models` list"]


def test_surface_with_routes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where a surface shows some models only, what carries none is said to be refused."""
    snapshot = read(tmp_path_factory, '[server]\nroutes = ["default"]\n' + VENDORS)
    told = asked(snapshot, None, "/v1/files")
    assert not told.works
    assert "404 not_found" in shown(told, "upstream")[0]


def test_listed_endpoints(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An endpoint that a surface does not have is said not to be there."""
    snapshot = read(tmp_path_factory, '[server]\nendpoints = ["chat/completions"]\n' + VENDORS)
    assert asked(snapshot, "gpt-4o").works
    for path in ("/v1/embeddings", "/v1/files"):
        assert "404 not_found" in shown(asked(snapshot, "gpt-4o", path), "path")[0]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/files/abc?limit=2", b""),
        ("DELETE", "/v1/files/abc", b""),
        ("POST", "/v1/files?a=%20", b"x"),
        ("GET", "/v1/models?a=b&upstream=up", b""),
        ("POST", "/v1beta/models/pre/x:generateContent?alt=sse", b"{}"),
        ("POST", "//v1/v1/embeddings", b'{"model":"plain"}'),
    ],
)
async def test_says_what_happens_elsewhere(
    upstream: Upstream, method: str, path: str, body: bytes
) -> None:
    """Of what carries no model, or carries it in its path, the URL is the one that the upstream gets."""
    toml = f"""
[upstreams.up]
base_url = "{upstream.url}/base"
paths = {{ files = "{upstream.url}/store", gemini = "{upstream.url}/native" }}
[routes]
plain = "up/real"
"pre/*" = {{ upstream = "up", model = "a-*" }}
[unrouted]
files = "up"
"""
    async with serving(toml) as proxy:
        assert proxy.running is not None
        snapshot = proxy.running.snapshot
        model = "plain" if b"plain" in body else None
        told = explain(snapshot, snapshot.surfaces[0], model, path)
        assert (await call(proxy.port, body, path, method=method)).status == 200
    (request,) = upstream.requests
    (url,) = shown(told, "url")
    assert url.rpartition(" ")[2] == f"http://{upstream.authority}{request.target}"
    assert told.works


@pytest.mark.parametrize("model", ["plain", "alias", "pre/fix", "up/cut", "up/up/cut"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/responses/compact", "/v1/messages"])
async def test_says_what_happens(upstream: Upstream, model: str, path: str) -> None:
    """The URL, the model and the credential that are explained are those that the upstream gets."""
    toml = f"""
[upstreams.up]
base_url = "{upstream.url}/base"
credential = {{ header = "x-mine", secret = "sk-0123456789-6789" }}
paths = {{ messages = "{upstream.url}/other" }}
[routes]
plain = "up/real"
alias = "plain"
"pre/*" = {{ upstream = "up", model = "x-*" }}
"up/*" = {{ upstream = "up" }}
"""
    async with serving(toml) as proxy:
        assert proxy.running is not None
        snapshot = proxy.running.snapshot
        told = explain(snapshot, snapshot.surfaces[0], model, path)
        assert (await call(proxy.port, chat(model), path)).status == 200
    (request,) = upstream.requests
    assert shown(told, "url") == [f"POST http://{upstream.authority}{request.target}"]
    assert f'"model":"{shown(told, "upstream model")[0]}"'.encode() in request.body
    assert request.value(b"x-mine") == b"sk-0123456789-6789"
    assert "x-mine: …6789  (from upstreams.up.credential.secret)" in shown(told, "header")


# Several places

CHAINS = """
[defaults]
retry = { attempts = 5, deadline = "50s" }
[upstreams.corp]
base_url = "https://llm.corp.example/v1"
credential = ["${CORP_KEY}", { header = "x-own", secret = "sk-CANARY-0123456789" }, { command = ["token", "CANARY"] }]
speaks = ["chat", "embeddings"]
retry = { deadline = "none" }
passthrough = true
[upstreams.chatty]
base_url = "https://chat.example/v1"
speaks = ["chat"]
[routes]
m = { upstream = "corp", model = "big", retry = { attempts = 2 }, fallback = ["fast", "chatty/small", "openai/gpt"] }
fast = { targets = ["groq/llama", { to = "openai/gpt", weight = 3 }], policy = "weighted", sticky = "X-Session-Id" }
busy = { targets = ["openai/gpt", "corp/big"], policy = "least-busy" }
plain = { targets = ["openai/gpt", "corp/big"] }
alias = "m"
"p-*" = { upstream = "corp", model = "a-*", fallback = "openai/*" }
asleep = { upstream = "groq", fallback = "mistral/x" }
one = "openai/gpt"
"""


@pytest.fixture
def chains(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return read(tmp_path_factory, CHAINS)


def outline(told: Explanation) -> list[str]:
    """Return what is said of each place: its number and what it is asked for, and whether it serves."""
    labels = ("policy", "place", "upstream model", "skipped", "dormant", "retry")
    return [f"{label}: {text}" for label, text in told.lines if label in labels]


@pytest.mark.parametrize("model", ["m", "alias"])
def test_every_place(chains: Snapshot, model: str) -> None:
    """Every place is shown in the order in which they are tried, with the policy of those of which
    any will do, what each is asked for, and how often: a dormant one too.
    """
    told = asked(chains, model)
    assert told.works
    dormant = next(text for label, text in told.lines if label == "dormant")
    assert "GROQ_API_KEY is not set" in dormant
    assert outline(told) == [
        "place: 1 of 5",
        "upstream model: big",
        "retry: 2 tries at a place, and no more in all that may be billed",
        "policy: weighted among 2, sticky by x-session-id",
        "place: 2 of 5",
        "upstream model: llama",
        f"dormant: {dormant}",
        "place: 3 of 5",
        "upstream model: gpt",
        "retry: 5 tries at a place, and no more in all that may be billed; nothing is begun after 50 s",
        "place: 4 of 5",
        "upstream model: small",
        "retry: 2 tries at a place, and no more in all that may be billed; nothing is begun after 50 s",
        "place: 5 of 5",
        "upstream model: gpt",
        "retry: 2 tries at a place, and no more in all that may be billed; nothing is begun after 50 s",
    ]
    assert shown(told, "upstream") == ["corp", "groq", "openai", "chatty", "openai"]
    assert [url.split("/")[2] for url in shown(told, "url")] == [
        "llm.corp.example", "api.groq.com", "api.openai.com", "chat.example", "api.openai.com",
    ]  # fmt: skip
    assert len(shown(told, "timeout")) == 5 * 5


BOUNDS = """
[upstreams.a]
base_url = "http://a/v1"
timeout = { first_byte = "1800s" }
[upstreams.b]
base_url = "http://b/v1"
retry = { attempts = 1, next = false }
timeout = { first_byte = "none" }
[upstreams.c]
base_url = "http://c/v1"
retry = { also = [404, 424], deadline = "none" }
[routes]
a = "a/m"
b = "b/m"
c = { upstream = "c", timeout = { total = "30s" } }
w = { targets = ["a/m", { to = "b/old", weight = 0 }], policy = "weighted" }
"""


@pytest.mark.parametrize(
    ("model", "headers", "retry", "cut"),
    [
        ("a", (), "3 tries at a place, and no more in all that may be billed; nothing is begun after 600 s",
         "first_byte: the answer must have begun 1800 s after it was sent"),
        ("a", ((b"X-Stainless-Read-Timeout", b"60"), (b"x-stainless-timeout", b"0")), "",
         "x-stainless-read-timeout: the answer must have begun 59 s after its body came in"),
        ("a", ((b"x-stainless-timeout", b"10"),), "",
         "x-stainless-timeout: the answer must have begun 9.5 s after its head came in"),
        ("b", (), "1 try at a place, and no more in all that may be billed; no other place",
         "nothing: the answer is waited for without end"),
        ("c", (), "3 tries at a place, and no more in all that may be billed; 404, 424 lead on too",
         "total: the answer must have begun 30 s after its head came in"),
    ],
)  # fmt: skip
def test_what_cuts_first(
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    headers: tuple[Pair, ...],
    retry: str,
    cut: str,
) -> None:
    """What ends the wait for an answer first is said, by name, and what may follow a failure: the deadline
    cuts no attempt that runs.
    """
    told = asked(read(tmp_path_factory, BOUNDS), model, headers=headers)
    assert shown(told, "cuts first") == [cut]
    assert not retry or shown(told, "retry") == [retry]


def test_who_gets_nothing_new(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A target of weight 0 is shown, and is no place."""
    told = asked(read(tmp_path_factory, BOUNDS), "w")
    assert shown(told, "idle") == ["b/old gets nothing new: its weight is 0"]
    assert shown(told, "upstream") == ["a"]


def test_places_that_are_skipped(chains: Snapshot) -> None:
    """A place that does not speak the dialect is shown as skipped, and nothing is sent there."""
    told = asked(chains, "m", "/v1/embeddings")
    assert told.works
    assert "chatty does not speak embeddings" in shown(told, "skipped")
    assert "chatty" not in shown(told, "upstream")
    assert outline(told)[:3] == [
        "place: 1 of 5", "upstream model: big", "retry: 2 tries at a place, and no more in all that may be billed",
    ]  # fmt: skip
    last = asked(chains, "m", "/v1/responses")
    assert last.works
    assert shown(last, "skipped") == [
        "corp does not speak responses", "chatty does not speak responses",
    ]  # fmt: skip


def test_no_place_speaks_it(chains: Snapshot) -> None:
    """Where no place speaks the dialect, that is the answer."""
    told = asked(chains, "m", "/v1/messages")
    assert not told.works
    (said,) = shown(told, "upstream")
    assert said.startswith("404 endpoint_not_supported: ")
    assert said.endswith("It speaks chat, embeddings.")
    assert shown(told, "place") == []


def test_no_place_is_ready(chains: Snapshot) -> None:
    """Where all places sleep, each says what it lacks, and the request would be refused."""
    told = asked(chains, "asleep")
    assert not told.works
    assert [text.split("not_configured: ")[-1] for text in shown(told, "dormant")] == [
        "GROQ_API_KEY is not set", "MISTRAL_API_KEY is not set",
    ]  # fmt: skip
    assert shown(told, "retry") == []


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("busy", ["least-busy among 2"]),
        ("plain", ["ordered among 2"]),
        ("one", []),
        ("p-1", []),
    ],
)
def test_policy(chains: Snapshot, model: str, policy: list[str]) -> None:
    """A policy is shown where there is a choice, even the built-in one."""
    assert shown(asked(chains, model), "policy") == policy


def test_one_place_has_no_number(chains: Snapshot) -> None:
    """Where there is one place only, it is not numbered."""
    told = asked(chains, "one")
    assert outline(told) == [
        "upstream model: gpt",
        "retry: 5 tries at a place, and no more in all that may be billed; nothing is begun after 50 s",
    ]


def test_names_along_a_chain(chains: Snapshot) -> None:
    """What a `*` stands for is filled in at every place."""
    assert shown(asked(chains, "p-1"), "upstream model") == ["a-1", "1"]


def test_credentials(chains: Snapshot) -> None:
    """Each of several credentials is shown, masked, with where it comes from and its turn."""
    headers = shown(asked(chains, "m"), "header")
    assert headers[:3] == [
        "Authorization: Bearer …  (from CORP_KEY)",
        "x-own: …6789  (from upstreams.corp.credential[1].secret, 2 of 3)",
        "Authorization: Bearer …  (from the command token, 3 of 3)",
    ]


@pytest.mark.parametrize(("model", "works"), [("m", True), ("busy", False), ("fast", False)])
def test_passthrough_goes_to_one_place(
    tmp_path_factory: pytest.TempPathFactory, model: str, works: bool
) -> None:
    """The caller's own credential is for the first place: no other one is shown, nor how it is chosen."""
    toml = '[server]\nauth = "passthrough"\n' + CHAINS
    told = asked(read(tmp_path_factory, toml), model)
    assert told.works is works
    assert len(shown(told, "url")) == works
    assert (shown(told, "place"), shown(told, "policy")) == ([], [])


async def test_chain_says_what_happens(upstream: Upstream) -> None:
    """The places, and the order in which they are explained, are those that a failing request sees."""
    toml = f"""
[upstreams.a]
base_url = "{upstream.url}/a"
credential = "sk-0123456789-aaaa"
[upstreams.b]
base_url = "{upstream.url}/b"
speaks = ["chat"]
[upstreams.c]
base_url = "{upstream.url}/c"
credential = ["sk-0123456789-bbbb", "sk-0123456789-cccc"]
[routes]
m = {{ upstream = "a", model = "one", fallback = ["b/two", "openai/gpt", "n"] }}
n = {{ upstream = "c", model = "three", fallback = "a/four" }}
"""
    upstream.will(answer(401), answer(401), answer(401), answer())
    async with serving(toml) as proxy:
        assert proxy.running is not None
        snapshot = proxy.running.snapshot
        told = explain(snapshot, snapshot.surfaces[0], "m", "/v1/responses")
        assert (await call(proxy.port, chat("m"), "/v1/responses")).code == "upstream_auth"
    served = [url for url in shown(told, "url") if "openai" not in url]
    assert [f"POST http://{upstream.authority}{seen.target}" for seen in upstream.requests] == [
        served[0], served[1], served[1],
    ]  # fmt: skip
    assert [url.split("/")[4] for url in served] == ["a", "c", "a"]
    assert shown(told, "skipped") == ["b does not speak responses"]
    assert len(shown(told, "dormant")) == 1
    sent = [request.body.split(b'"model":"')[1].split(b'"')[0] for request in upstream.requests]
    assert sent == [b"one", b"three", b"three"]
    assert [seen.value(b"authorization") for seen in upstream.requests[1:]] == [
        b"Bearer sk-0123456789-bbbb", b"Bearer sk-0123456789-cccc",
    ]  # fmt: skip


MIX = """
[upstreams.deep]
base_url = "https://deep.example/v1"
forward = ["X-Mix"]
[routes.mix]
header = "X-Mix"
missing = "BadRequest"
unknown = "MixNotFound"
[routes.mix.to]
fast = "openai/gpt-4o-mini"
deep = "deep/big"
[routes]
other = "mix"
"""


@pytest.mark.parametrize("model", ["mix", "other"])
@pytest.mark.parametrize(
    ("header", "label", "said"),
    [
        ((b"x-mix", b"fast"), "url", "POST https://api.openai.com/v1/chat/completions"),
        ((b"X-Mix", b"deep"), "url", "POST https://deep.example/v1/chat/completions"),
        ((b"X-Mix", b"deep"), "header", "x-mix: as it came, if it did"),
        ((b"X-Mix", b"FAST"), "header", '404 MixNotFound: Nothing is called "FAST" in X-Mix.'),
        ((b"X-Other", b"fast"), "header", "400 BadRequest: The header X-Mix is missing."),
    ],
)
def test_header(
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    header: tuple[bytes, bytes],
    label: str,
    said: str,
) -> None:
    """Where a header chooses, its value says which place is explained: its name in any case."""
    snapshot = read(tmp_path_factory, MIX)
    told = explain(snapshot, snapshot.surfaces[0], model, "/v1/chat/completions", (header,))
    assert said in shown(told, label)
    assert told.works == (label == "url" or said.startswith("x-mix"))
    assert len(shown(told, "url")) == told.works
