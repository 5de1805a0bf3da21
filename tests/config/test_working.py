"""Files that work, and what comes of them."""

from datetime import date
from hashlib import sha256

import pytest

from proxy import dialects
from proxy.config.tables import SHORT, Table
from proxy.headers import Names
from proxy.routes import Retry, Timeouts
from proxy.surfaces import Address
from tests.config.files import FULL, ROUTES, file_of, nodes, place, read, tables


@pytest.mark.parametrize("table", list(tables()))
def test_full_is_full(table: type[Table]) -> None:
    """The file that these tests change piece by piece has every key that there is."""
    keys = {key for path, _ in nodes(FULL) for key in path}
    names = {field.alias or name for name, field in table.model_fields.items()}
    files = {"ca", "tls", "client_certificate", "certificate", "key"}
    assert names - {SHORT, *files} <= keys


SMALLEST = """
[server]
listen = "0.0.0.0:8080"
[keys]
team = "${TEAM_KEY}"
[routes]
"gpt-4o"            = "openai/gpt-4o"               # the preset's credential: OPENAI_API_KEY
"claude-3-5-sonnet" = "anthropic/claude-sonnet-4-5" # an old name outlives the model behind it
"claude-*"          = { upstream = "anthropic" }    # /v1/chat/completions and /v1/messages alike
"corp/*"            = { base_url = "https://llm.corp.example/v1", credential = "${CORP_KEY}", model = "*" }
"""


def test_smallest_useful_file() -> None:
    """Two vendors behind one key take ten lines."""
    env = {"TEAM_KEY": "tk-0123456789abcdef", "CORP_KEY": "ck-1", "OPENAI_API_KEY": "ok-1"}
    snapshot = read(SMALLEST, env)
    (surface,) = snapshot.surfaces
    assert surface.listen == (Address("0.0.0.0", 8080),)
    assert surface.auth == "keys"
    assert surface.base_paths == ("/api/v1", "/v1", "")
    assert snapshot.keys.find(b"tk-0123456789abcdef") is not None
    sent = {}
    for asked in ("gpt-4o", "claude-3-5-sonnet", "claude-opus", "corp/m"):
        route = snapshot.routes.match(asked)
        assert route is not None
        upstream = route.first.upstream
        secrets = [credential.secret.reveal() for credential in upstream.credentials]
        sent[asked] = (
            upstream.base.url("x"),
            route.model_sent(route.first, asked),
            secrets,
            upstream.missing,
        )
    assert sent == {
        "gpt-4o": ("https://api.openai.com/v1/x", "gpt-4o", ["ok-1"], None),
        "claude-3-5-sonnet": (
            "https://api.anthropic.com/v1/x", "claude-sonnet-4-5", [], "ANTHROPIC_API_KEY",
        ),
        "claude-opus": ("https://api.anthropic.com/v1/x", "claude-opus", [], "ANTHROPIC_API_KEY"),
        "corp/m": ("https://llm.corp.example/v1/x", "m", ["ck-1"], None),
    }  # fmt: skip


def test_one_line_file() -> None:
    """One route is enough: the rest has defaults, and they are not stricter than the SDKs'."""
    snapshot = read(ROUTES)
    assert snapshot.surfaces[0].listen == (Address("127.0.0.1", 8080),)
    assert snapshot.surfaces[0].auth == "none"
    assert snapshot.settings.max_body == 64 * 2**20
    assert snapshot.settings.max_inflight == 4096
    assert snapshot.settings.max_held == 2**30
    assert snapshot.settings.drain == 120
    route = snapshot.routes.match("m")
    assert route is not None
    assert route.first.timeouts == Timeouts(5, 600, 600, 60, None)


def test_full_file() -> None:
    """Every value of a file arrives where it belongs."""
    snapshot = read(file_of(FULL))
    s = snapshot.settings
    assert (s.max_body, s.max_inflight, s.max_held, s.drain) == (2**20, 10, 2**21, 5)
    assert (s.log_format, s.log_level, s.lame_duck) == ("json", "debug", 0.25)
    assert s.keepalive_idle == 90
    apps, local = snapshot.surfaces
    assert (apps.name, apps.auth, apps.models) == ("apps", "keys", "list")
    assert apps.base_paths == ("/api/v1", "/v1")
    assert apps.accept == (b"authorization", b"apikey")
    assert apps.endpoints == frozenset({"chat/completions", "responses"})
    assert apps.strip == Names(frozenset({b"x-visitor"}), (b"x-corp-",))
    assert apps.shows("qwen/x")
    assert not apps.shows("team")
    assert (local.name, local.auth, local.models, local.endpoints) == (
        "local", "none", "hidden", None,
    )  # fmt: skip
    assert [str(address) for address in local.listen] == FULL["surface"][1]["listen"]
    assert local.hosts == {"gpu.lan"}
    corp = snapshot.upstreams["corp"]
    assert corp.base.url("x") == "https://llm.corp.example:8443/v1/x"
    assert corp.base_of(dialects.COUNT_TOKENS, "messages/count_tokens").url("y") == (
        "https://llm.corp.example/anthropic/v1/y"
    )
    assert corp.base.origin.proxy == "http://egress.corp.example:3128"
    assert corp.headers == ((b"x-team", b"search"),)
    (credential,) = corp.credentials
    assert credential.line("chat") == (b"apikey", b"sk-corp-0123456789")
    assert (corp.terminal, corp.passthrough, corp.billed, corp.spoken) == ("done", True, True, None)
    europe = snapshot.upstreams["eu"]
    assert europe.base.url("x") == "https://acme-eu.openai.azure.com/openai/v1/x"
    assert (europe.spoken, europe.inferred, europe.billed) == (("chat", "messages"), False, False)
    assert (europe.credentials, europe.lacks(passthrough=False)) == ((), None)
    assert europe.defaults["messages"] == ((b"anthropic-version", b"2024-01-01"),)
    (live,) = snapshot.live
    assert (live.command, live.refresh) == (("gcloud", "auth", "print-access-token"), 3000)
    assert {p: u.name for p, u in snapshot.unrouted.upstreams.items()} == FULL["unrouted"]
    assert [route.name for route in snapshot.routes.routes] == list(FULL["routes"])
    assert [snapshot.routes.names(route) for route in snapshot.routes.routes] == [
        ("default",), ("qwen/qwen-turbo",), ("alias",), ("team",), (), ("mix",), (),
    ]  # fmt: skip
    fast = snapshot.routes.match("fast/x")
    assert fast is not None
    assert [[place(fast, one, "fast/x") for one in group.targets] for group in fast.groups] == [
        ["openai/gpt-4o-mini", "corp/small-x", "openai/gpt-4o"], ["corp/big"], ["openai/gpt-x"],
    ]  # fmt: skip
    assert [one.weight for one in fast.groups[0].targets] == [1, 2.5, 1]
    assert (fast.groups[0].policy, fast.groups[0].sticky) == ("weighted", b"x-session-id")
    assert (fast.on_context_length, fast.peek, fast.comment_after) == (True, True, 5)
    retry = fast.groups[2].targets[0].retry
    assert retry == Retry(9, None, False, False, True, next=False, also=(404, 410))
    assert [one.secret.reveal() for one in snapshot.upstreams["openai"].credentials] == [
        "sk-openai-0123456789", "sk-openai-9876543210",
    ]  # fmt: skip
    own = snapshot.routes.match("own/x")
    assert own is not None
    assert own.first.upstream.base.url("x") == "http://[::1]:8000/v1/x"
    mobile = snapshot.keys.find(b"mobile")
    assert mobile is not None
    assert mobile.expires == date(2027, 6, 30)
    assert mobile.may_ask("openai/x")
    assert not mobile.may_ask("qwen/x")
    assert snapshot.keys.find(b"tk-9876543210abcdef") is not None


def test_timeouts_say_who_set_them() -> None:
    """The route's word goes before the upstream's, that before the defaults', timeout by timeout."""
    snapshot = read(file_of(FULL))
    route = snapshot.routes.match("team")
    assert route is not None
    assert route.first.timeouts == Timeouts(connect=1, first_byte=20, idle=7, write=0.25, total=60)
    assert route.first.origins == {
        "connect": "defaults.timeout",
        "first_byte": "defaults.timeout",
        "idle": "upstreams.corp.timeout",
        "write": "defaults.timeout",
        "total": "routes.team.timeout",
    }
    plain = read(ROUTES).routes.match("m")
    assert plain is not None
    assert set(plain.first.origins.values()) == {"built in"}


def test_digest_is_of_the_file() -> None:
    """A snapshot knows which text it was made of."""
    assert read(ROUTES).digest == sha256(ROUTES.encode()).hexdigest()
    assert read(ROUTES).digest != read(ROUTES + "\n").digest


def test_line_ends_and_comments_do_not_matter() -> None:
    """A file written on another system means the same."""
    assert read(
        SMALLEST.replace("\n", "\r\n"), {"TEAM_KEY": "tk-0123456789abcdef", "CORP_KEY": "b"}
    ).routes.match("claude-x")
