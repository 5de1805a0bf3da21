"""`explain`: what it says before a request is what happens to the request."""

import re

import pytest

from proxy.config import Snapshot, load
from proxy.explain import Explanation, explain
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream

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


def asked(snapshot: Snapshot, model: str, path: str = "/v1/chat/completions") -> Explanation:
    told = explain(snapshot, snapshot.surfaces[0], model, path)
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
