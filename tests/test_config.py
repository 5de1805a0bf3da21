"""`routes.toml`: what it may say, and how everything that is wrong with it is told, at once."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, date, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from time import process_time
from typing import Any

import orjson
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy import dialects
from proxy.config import ConfigError, Snapshot, load
from proxy.config.problems import dotted
from proxy.config.tables import SHORT, Table
from proxy.headers import Names
from proxy.routes import Retry, Route, Target, Timeouts, Upstream
from proxy.surfaces import Address

Node = tuple[str | int, ...]

ROUTES = '[routes]\nm = "openai/x"\n'
"""What a file needs to be valid, when all else is about something else."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when the body takes more than *seconds* of processor time, though it be an endless loop."""

    def overdue(*_: object) -> None:
        raise AssertionError(f"takes over {seconds} s")

    before = signal.signal(signal.SIGVTALRM, overdue)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def read(
    toml: str | bytes,
    env: Mapping[str, str] | None = None,
    *,
    listen: str | None = None,
    keyed: bool = False,
) -> Snapshot:
    """Load *toml* from a file, quickly."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "routes.toml")
        file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        with within(3):
            return load(file, env or {}, listen=listen, keyed=keyed)


def told(
    toml: str | bytes, env: Mapping[str, str] | None = None, *, listen: str | None = None
) -> dict[str, str]:
    """Return what is wrong with *toml*, by key path; no word of it may quote a value of *env*."""
    with pytest.raises(ConfigError) as caught:
        read(toml, env, listen=listen)
    error = caught.value
    everything = "".join(traceback.format_exception(error)) + repr(error) + repr(error.problems)
    for name, value in (env or {}).items():
        assert len(value) < 4 or value not in everything, f"the value of {name} is told"
    assert all("\n" not in problem.message for problem in error.problems)
    return {dotted(problem.path): problem.message for problem in error.problems}


def toml_of(value: Any) -> str:
    """Write a tree as TOML, its tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)} = {toml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, date) else str(value)


def _text(text: str) -> str:
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def file_of(tree: Mapping[str, Any]) -> str:
    return "".join(f"{_text(key)} = {toml_of(value)}\n" for key, value in tree.items())


def changed(tree: Mapping[str, Any], path: Node, value: Any) -> dict[str, Any]:
    """Return a copy of *tree* that has *value* at *path*."""
    copy: Any = deepcopy(tree)
    inner = copy
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    whole: dict[str, Any] = copy
    return whole


def nodes(tree: Any, path: Node = ()) -> Iterator[tuple[Node, Any]]:
    """Yield every place in *tree* below its root, and what stands there."""
    items: Any = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*path, key), value
        yield from nodes(value, (*path, key))


HASH = "sha256:" + sha256(b"mobile").hexdigest()

FULL: dict[str, Any] = {
    "server": {
        "max_body": "1MiB", "max_inflight": 10, "max_held": 2**21, "drain": "5s", "lame_duck": "250ms",
        "keepalive_idle": "90s",
        "workers": 2, "worker_timeout": "20s", "peer_timeout": "50s",
    },
    "defaults": {
        "timeout": {"connect": "1s", "first_byte": "20s", "idle": "1m30s", "write": "250ms", "total": "none"},
        "retry": {
            "attempts": 4, "deadline": "60s", "stale": False, "failover_5xx": False, "ambiguous": True,
            "next": False, "also": [404, 410],
        },
        "keepalive": "15s",
    },
    "surface": [
        {
            "name": "apps",
            "listen": "0.0.0.0:8765",
            "base_paths": ["/v1", "/api/v1"],
            "auth": "keys",
            "accept": ["authorization", "apikey"],
            "routes": ["default", "qwen/*"],
            "models": "list",
            "endpoints": ["chat/completions", "responses"],
            "hosts": [],
            "docs": False,
            "echo_model": True,
            "errors": {"401": "Unauthorized"},
            "cors": ["https://app.example.com"],
            "trusted_proxies": ["10.0.0.0/8"],
            "strip": ["X-Visitor", "x_corp-*"],
        },
        {
            "name": "local",
            "mode": "0660",
            "group": "0",
            "listen": ["127.0.0.1:8766", "[::1]:8766", "unix:/run/trunkline.sock"],
            "auth": "none",
            "models": "hidden",
            "endpoints": "all",
            "hosts": ["GPU.lan"],
            "open": False,
        },
    ],
    "upstreams": {
        "openai": {
            "credential": [
                "sk-openai-0123456789", {"header": "x-second", "secret": "sk-openai-9876543210"},
            ],
            "retry": {"attempts": 2},
        },
        "corp": {
            "base_url": "https://llm.corp.example:8443/v1/",
            "credential": {"header": "apikey", "secret": "sk-corp-0123456789"},
            "headers": {"x-team": "search"},
            "paths": {"messages": "https://llm.corp.example/anthropic/v1"},
            "proxy": "http://egress.corp.example:3128",
            "terminal": "done",
            "passthrough": True,
            "forward": ["x-mix"],
            "timeout": {"idle": "7s"},
        },
        "eu": {
            "preset": "azure",
            "vars": {"resource": "acme-eu"},
            "env": ["EU_KEY", "EU_KEY_2"],
            "optional": True,
            "form": "apikey",
            "forms": {"messages": "x-api-key"},
            "defaults": {"messages": {"anthropic-version": "2024-01-01"}},
            "speaks": ["chat", "messages"],
            "billed": False,
        },
        "vertex": {
            "vars": {"location": "europe-west1", "project": "acme"},
            "credential": {
                "command": ["gcloud", "auth", "print-access-token"],
                "refresh": "50m",
            },
        },
    },
    "unrouted": {"files": "openai", "fine_tuning/jobs": "openai", "*": "corp"},
    "routes": {
        "default": "openai/gpt-4o",
        "qwen/*": {"upstream": "dashscope-intl", "list": ["qwen/qwen-turbo"]},
        "alias": "default",
        "team": {"upstream": "corp", "model": "big", "timeout": {"total": "60s"}},
        "fast/*": {
            "targets": [
                "openai/gpt-4o-mini", {"to": "corp/small-*", "weight": 2.5}, {"to": "alias"},
            ],
            "policy": "weighted",
            "sticky": "X-Session-Id",
            "fallback": ["team", "openai/gpt-*"],
            "retry": {"attempts": 9, "deadline": "none"},
            "on_context_length": True,
            "peek": True,
            "keepalive": "5s",
        },
        "mix": {"header": "x-mix", "missing": "NoMix", "unknown": "BadMix", "to": {"a": "openai/x"}},
        "own/*": {"base_url": "http://[::1]:8000/v1", "credential": "sk-own-0123456789", "model": "*"},
    },
    "keys": {
        "team": "tk-0123456789abcdef",
        "mobile": {"hash": HASH, "models": ["default", "openai/*"], "expires": date(2027, 6, 30)},
        "long": {"secret": "tk-9876543210abcdef"},
    },
    "hooks": {"alerts": {"route": "default", "system": "Be brief.", "secret": "hk-0123456789abcdef"}},
    "log": {"format": "json", "level": "debug"},
}  # fmt: skip
"""Every table and every key that there is, with a value other than the built-in one; but for `ca`, `tls`
and `client_certificate`, which name files that must be there.
"""


def tables(table: type[Table] = Table) -> Iterator[type[Table]]:
    """Yield every kind of table that there is."""
    for kind in table.__subclasses__():
        yield kind
        yield from tables(kind)


@pytest.mark.parametrize("table", list(tables()))
def test_full_is_full(table: type[Table]) -> None:
    """The file that these tests change piece by piece has every key that there is."""
    keys = {key for path, _ in nodes(FULL) for key in path}
    names = {field.alias or name for name, field in table.model_fields.items()}
    files = {"ca", "tls", "client_certificate", "certificate", "key"}
    assert names - {SHORT, *files} <= keys


# Files that work

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
    assert (fast.on_context_length, fast.peek, fast.keepalive) == (True, True, 5)
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


def place(route: Route, target: Target, asked: str = "m") -> str:
    """Write where *target* of *route* leads, as the file does."""
    return f"{target.upstream.name}/{route.model_sent(target, asked)}"


def _upstream(snapshot: Snapshot, model: str = "m") -> Upstream:
    route = snapshot.routes.match(model)
    assert route is not None
    return route.first.upstream


# Not built yet

LATER: list[tuple[str, str]] = [
    ('[server]\ncontrol = "unix:/run/c"', "server.control"),
    ('[keys.k]\nsecret = "x"\nlimits = { rpm = 600 }', "keys.k.limits"),
    ('[store]\nurl = "memory://"', "store"),
    ('[[test]]\nrequest = { model = "m" }', "test"),
]


@pytest.mark.parametrize(("toml", "path"), LATER, ids=[path for _, path in LATER])
def test_not_built_yet(toml: str, path: str) -> None:
    """What the design has and this version does not is refused by name, never ignored."""
    problems = told(f"{toml}\n{ROUTES}")
    assert "not supported yet" in problems[path]
    assert list(problems) == [path]


DESIGN = """
#:schema ./routes.schema.json
[server]
max_body = "64MiB"
max_inflight = 4096
max_held = "1GiB"
drain    = "120s"
workers  = 1
[defaults]
timeout  = { connect = "5s", first_byte = "600s", idle = "600s", write = "60s", total = "none" }
retry    = { attempts = 3, deadline = "600s", stale = true, failover_5xx = true, ambiguous = false }
[[surface]]
name       = "apps"
listen     = "0.0.0.0:8765"
base_paths = ["/v1", "/api/v1"]
auth       = "keys"
accept     = ["authorization", "x-api-key", "api-key", "apikey"]
routes     = ["default", "qwen/*"]
models     = "list"
endpoints  = "all"
docs       = true
echo_model = false
errors     = { 401 = "Unauthorized" }
hosts      = []
cors       = []
[upstreams.openai]
credential = ["${OPENAI_API_KEY}", "${file:SECOND}"]
[upstreams.azure]
vars       = { resource = "acme-eu" }
[upstreams.deepseek]
paths      = { "messages" = "https://api.deepseek.com/anthropic/v1" }
[upstreams.corp]
base_url   = "https://llm.corp.example/v1"
credential = { header = "apikey", secret = "${CORP_KEY}" }
headers    = { "x-team" = "search" }
proxy      = "http://egress.corp.example:3128"
ca         = "FILE"
terminal   = "auto"
[routes]
"default"   = "openai/gpt-4o"
"qwen/*"    = { upstream = "dashscope-intl", list = ["qwen/qwen-turbo"] }
"fast"      = { targets = [{ to = "groq/llama-3.3-70b-versatile", weight = 3 }, { to = "cerebras/llama-3.3-70b" }], policy = "weighted" }
[routes."Humiris/humiris-moai"]
header  = "mixTuningId"
missing = "BadRequest"
unknown = "MixTuningNotFound"
[routes."Humiris/humiris-moai".to]
"mix-fast" = "fast"
"mix-deep" = "anthropic/claude-sonnet-4-5"
[unrouted]
"files"   = "openai"
"batches" = "openai"
[keys]
team    = "${TEAM_KEY}"
[keys.mobile]
hash    = "HASH"
models  = ["default", "openai/*"]
limits  = { rpm = 600, tpm = 400_000, concurrent = 50 }
expires = 2027-06-30
[hooks.alerts]
route   = "default"
system  = "You are the on-call assistant. Answer in two sentences."
secret  = "${HOOK_ALERTS_SECRET}"
[store]
url     = "memory://"
[log]
format  = "auto"
[[test]]
request = { model = "claude-3-5-sonnet" }
expect  = { upstream = "anthropic", model = "claude-sonnet-4-5" }
"""


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one certificate."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def test_all_of_the_design(pem: Path, secret: Path) -> None:
    """Of the file that shows everything, each key is understood or refused as not built yet."""
    toml = DESIGN.replace("FILE", str(pem)).replace("SECOND", str(secret)).replace("HASH", HASH)
    names = ("OPENAI_API_KEY", "CORP_KEY", "TEAM_KEY", "HOOK_ALERTS_SECRET")
    problems = told(toml, {name: f"{name}-secret-0123" for name in names})
    assert set(problems) == {
        "keys.mobile.limits", "store", "test",
    }  # fmt: skip
    assert all("not supported yet" in message for message in problems.values())


def test_local_server_with_fallback() -> None:
    """The file that shows a fallback leads to a local server first, then to a vendor."""
    toml = """
[upstreams.gpu]
base_url = "http://gpu-1:8000/v1"
billed   = false
[routes.llama]
upstream = "gpu"
model    = "meta-llama/Llama-3.3-70B-Instruct"
fallback = ["openai/gpt-4o-mini"]
timeout  = { first_byte = "20s" }
"""
    route = route_of(toml, "llama")
    here, there = (group.targets[0] for group in route.groups)
    assert here.upstream.base.url("x") == "http://gpu-1:8000/v1/x"
    assert not here.upstream.billed
    assert place(route, there) == "openai/gpt-4o-mini"
    assert there.upstream.billed
    assert (here.timeouts.first_byte, there.timeouts.first_byte) == (20, 20)


def test_list_as_the_design_writes_it() -> None:
    """A pattern's `list` may hold the names that its `*` stands for, as the design's file has it."""
    toml = '[routes]\n"qwen/*" = { upstream = "dashscope-intl", list = ["qwen-turbo"] }'
    table = read(toml).routes
    assert [table.names(route) for route in table.routes] == [("qwen/qwen-turbo",)]


# Unknown keys

NEAREST = [
    ('[servr]\nlisten = "x"', "servr", "server"),
    ('[server]\nlisen = "127.0.0.1:1"', "server.lisen", "listen"),
    ("[server]\nmax_inflights = 5", "server.max_inflights", "max_inflight"),
    ("[server]\nMax_Body = 5", "server.Max_Body", "max_body"),
    ('[default.timeout]\nidle = "5s"', "default", "defaults"),
    ('[defaults.timeout]\nfirstbyte = "5s"', "defaults.timeout.firstbyte", "first_byte"),
    ('[[surfaces]]\nname = "x"', "surfaces", "surface"),
    ("[[surface]]\nbasepaths = []", "surface[0].basepaths", "base_paths"),
    ('[upstream.x]\nbase_url = "http://h"', "upstream", "upstreams"),
    ('[upstreams.openai]\nbaseurl = "http://h"', "upstreams.openai.baseurl", "base_url"),
    ('[upstreams.openai]\ncredentials = "x"', "upstreams.openai.credentials", "credential"),
    ('[upstreams.openai.credential]\nheaders = "x"', "upstreams.openai.credential.headers", "header"),
    ('[routes.r]\nupstrem = "openai"', "routes.r.upstrem", "upstream"),
    ('[routes.r]\nupstream = "openai"\nmodell = "x"', "routes.r.modell", "model"),
    ('[keys.k]\nsecret = "x"\nexpire = 2027-01-01', "keys.k.expire", "expires"),
    ('[key]\nk = "x"', "key", "keys"),
    ('[log]\nformats = "json"', "log.formats", "format"),
]  # fmt: skip


@pytest.mark.parametrize(("toml", "path", "near"), NEAREST, ids=[path for _, path, _ in NEAREST])
def test_nearest_key(toml: str, path: str, near: str) -> None:
    """An unknown key is refused with the valid name that comes nearest to it."""
    message = told(f"{toml}\n{ROUTES}")[path]
    assert message.startswith("unknown key")
    assert f'"{near}"' in message


@pytest.mark.parametrize("toml", ["xyzzy = 1", "[server]\nxyzzy = 1", "[upstreams.openai]\nq = 1"])
def test_nothing_near(toml: str) -> None:
    """An unknown key that resembles nothing is refused without a guess."""
    (message,) = told(f"{toml}\n{ROUTES}").values()
    assert message == "unknown key"


@pytest.mark.parametrize(
    ("toml", "near"),
    [
        ('[server]\nauth = "key"', "keys"),
        ('[server]\nauth = "passthru"', "passthrough"),
        ('[server]\nmodels = "hide"', "hidden"),
        ('[server]\naccept = ["authorisation"]', "authorization"),
        ('[server]\nendpoints = ["chat/completion"]', "chat/completions"),
        ('[log]\nformat = "jsonl"', "json"),
        ('[upstreams.opena]\ncredential = "x"', "openai"),
        ('[routes.r]\nupstream = "antropic"', "anthropic"),
        ('[routes]\nr = "opnai/gpt-4o"', "openai/gpt-4o"),
        ('[routes]\ngpt-4o = "openai/gpt-4o"\nr = "gpt-4"', "gpt-4o"),
        ('[upstreams.gpu]\nbase_url = "http://h"\n[routes]\nr = "gpus/x"', "gpu/x"),
    ],
)
def test_nearest_value(toml: str, near: str) -> None:
    """A value out of a known set is refused with the valid one that comes nearest to it."""
    problems = told(toml if "[routes" in toml else f"{toml}\n{ROUTES}")
    assert f'did you mean "{near}"?' in "; ".join(problems.values())


BROUGHT = [
    ('[upstreams.openai]\napi_key = "x"', "upstreams.openai.api_key", "credential"),
    ('[upstreams.openai]\nkey = "x"', "upstreams.openai.key", "credential"),
    ('[upstreams.openai]\ntoken = "x"', "upstreams.openai.token", "credential"),
    ('[upstreams.openai]\napi_base = "http://h"', "upstreams.openai.api_base", "base_url"),
    ('[upstreams.openai]\nurl = "http://h"', "upstreams.openai.url", "base_url"),
    ('[upstreams.openai]\nendpoint = "http://h"', "upstreams.openai.endpoint", "base_url"),
    ('[routes.r]\napi_base = "http://h"', "routes.r.api_base", "base_url"),
    ('[routes.r]\nbase_url = "http://h"\napi_key = "x"', "routes.r.api_key", "credential"),
    ('[routes.r]\nprovider = "openai"', "routes.r.provider", "upstream"),
    ('[routes.r]\nupstream = "openai"\nmodel_name = "x"', "routes.r.model_name", "model"),
    ('[[model_list]]\nmodel_name = "x"', "model_list", "routes"),
    ('[providers.openai]\napi_key = "x"', "providers", "upstreams"),
    ("[server]\nport = 8080", "server.port", "listen"),
    ('[server]\nhost = "0.0.0.0"', "server.host", "listen"),
    ('[server]\nbind = "0.0.0.0:80"', "server.bind", "listen"),
    ("[defaults]\ntimeouts = {}", "defaults.timeouts", "timeout"),
    ('[routes.timeout]\nupstream = "openai"\nmodel_name = "x"', "routes.timeout.model_name", "model"),
]  # fmt: skip


@pytest.mark.parametrize(("toml", "path", "ours"), BROUGHT, ids=[path for _, path, _ in BROUGHT])
def test_words_people_bring_along(toml: str, path: str, ours: str) -> None:
    """A word from another proxy's file is answered with what it is called here."""
    assert told(f"{toml}\n{ROUTES}")[path] == f'unknown key; it is called "{ours}" here'


# All at once


def test_every_problem_at_once() -> None:
    """All that is wrong with a file is told in one go, each with its key path."""
    toml = """
[server]
listen = "nowhere"
max_body = "huge"
lisen = 1
workers = 0
[defaults]
timeout = { idle = "soon" }
[upstreams.corp]
base_url = "ftp://corp"
headers = { "bad name" = "x" }
credential = "${UNSET_VARIABLE}"
[routes]
a = "b"
b = "a"
c = "nowhere/x"
"d*e" = "openai/x"
[keys]
k = { hash = "md5:x" }
[log]
format = "xml"
"""
    assert set(told(toml)) == {
        "server.listen", "server.max_body", "server.lisen", "server.workers",
        "defaults.timeout.idle", "upstreams.corp.base_url", 'upstreams.corp.headers."bad name"',
        "upstreams.corp.credential", "routes.a", "routes.c", 'routes."d*e"', "keys.k.hash",
        "log.format",
    }  # fmt: skip


def test_message_names_file_and_place() -> None:
    """Each problem is one line: file, key path, what is wrong and what would be right."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "mine.toml")
        file.write_text('[routes."gpt-4o"]\nupstrem = "x"\n[keys."a\\"b"]\nsecret = 5\n')
        with pytest.raises(ConfigError) as caught:
            load(file, {})
    lines = str(caught.value).splitlines()
    assert f'{file}: routes.gpt-4o.upstrem: unknown key; did you mean "upstream"?' in lines
    assert f'{file}: keys."a\\"b".secret: must be text, in quotes' in lines
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("toml", "only"),
    [
        ('[upstreams]\ncorp = 5\n[routes]\nm = "corp/x"', "upstreams.corp"),
        ("[routes]\nm = 5", "routes.m"),
        ('[routes]\na = 5\nb = "a"', "routes.a"),
        ('[upstreams.corp]\nbase_url = 5\n[routes]\nm = "corp/x"', "upstreams.corp.base_url"),
        ('[upstreams.corp]\nbase_url = "x"\n[routes]\nm = "corp/x"', "upstreams.corp.base_url"),
        ('[upstreams.corp]\nbase_url = "${U}"\n[routes]\nm = "corp/x"', "upstreams.corp.base_url"),
        ('[routes]\na = "b"\nb = "c"\nc = "nowhere/x"', "routes.c"),
        ("routes = 5", "routes"),
    ],
)
def test_no_problem_is_told_twice(toml: str, only: str) -> None:
    """What is only wrong because something else is wrong is not told."""
    assert list(told(toml)) == [only]


# References

SECRET_FILE = "from-a-file"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET_FILE}\n")
    return file


@pytest.mark.parametrize(
    ("text", "env", "value"),
    [
        ("${VAR}", {"VAR": "x"}, "x"),
        ("a${VAR}b${VAR}", {"VAR": "x"}, "axbx"),
        ("${A}${B}", {"A": "1", "B": "2"}, "12"),
        ("${_a1}", {"_a1": "x"}, "x"),
        ("${VAR}", {"VAR": "${OTHER}"}, "${OTHER}"),
        ("${VAR}", {"VAR": "$$"}, "$$"),
        ("${VAR:-d}", {}, "d"),
        ("${VAR:-d}", {"VAR": ""}, "d"),
        ("${VAR:-d}", {"VAR": "x"}, "x"),
        ("${VAR:-a:-b}", {}, "a:-b"),
        ("${VAR:-a b/c}", {}, "a b/c"),
        ("x${VAR:-}", {}, "x"),
        ("$$", {}, "$"),
        ("${NO:-a$$b}", {}, "a$b"),
        ("${NO:-$$}", {}, "$"),
        ("${VAR}", {"VAR": "$NAME"}, "$NAME"),
        ("pa$word", {}, "pa$word"),
        ("pa$WORD!", {}, "pa$WORD!"),
        ("$", {}, "$"),
        ("a $ b", {}, "a $ b"),
        ("$5", {}, "$5"),
        ("$x^2$", {}, "$x^2$"),
        ("US$A", {}, "US$A"),
        ("$$NAME", {}, "$NAME"),
        ("Bearer $$TEAM_KEY", {}, "Bearer $TEAM_KEY"),
        ("http://me:pa$WO:x", {}, "http://me:pa$WO:x"),
        ("$${VAR}", {"VAR": "x"}, "${VAR}"),
        ("$$$$", {}, "$$"),
        ("$$${VAR}", {"VAR": "x"}, "$x"),
        ("a$b", {}, "a$b"),
        ("a$", {}, "a$"),
        ("}${VAR}{", {"VAR": "x"}, "}x{"),
        ("${file:@}", {}, SECRET_FILE),
        ("<${file:@}>", {}, f"<{SECRET_FILE}>"),
        ("${VAR}", {"VAR_FILE": "@"}, SECRET_FILE),
        ("${VAR}", {"VAR": "", "VAR_FILE": "@"}, SECRET_FILE),
        ("${VAR:-d}", {"VAR_FILE": "@"}, SECRET_FILE),
        ("${VAR}", {"VAR": "x", "VAR_FILE": "@"}, "x"),
        ("${VAR}", {"VAR": "x", "VAR_FILE": "/nowhere"}, "x"),
        ("${VAR_FILE}", {"VAR_FILE": "x"}, "x"),
    ],
)
def test_references(text: str, env: dict[str, str], value: str, secret: Path) -> None:
    """Variables, defaults, files and `$$` stand for their values, and values are not looked at again."""
    env = {name: told_.replace("@", str(secret)) for name, told_ in env.items()}
    tree = {"routes": {"m": {"upstream": "sandbox", "model": text.replace("@", str(secret))}}}
    route = read(file_of(tree), env).routes.match("m")
    assert route is not None
    assert route.first.model == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$TEAM_KEY", "${TEAM_KEY}"),
        ("$KEY_2", "${KEY_2}"),
        ("Bearer $TEAM_KEY", "${TEAM_KEY}"),
        ("a $AB b", "${AB}"),
        ("pa$WORD", "${WORD}"),
        ("${NO:-$TEAM_KEY}", "${TEAM_KEY}"),
        ("${HOME_OF:-x} $TEAM_KEY", "${TEAM_KEY}"),
        ("$$$TEAM_KEY", "${TEAM_KEY}"),
        ("$team_key", "${NAME}"),
        ("$eCRET5", "${NAME}"),
        ("$A1B2C3D4E5", "${NAME}"),
    ],
)
@pytest.mark.parametrize(
    "path", [("keys", "k"), ("routes", "m", "model"), ("upstreams", "openai", "credential")]
)
def test_variable_without_braces(text: str, shown: str, path: tuple[str, ...]) -> None:
    """A variable without its braces would be a secret that everybody can read: it is refused, with both
    ways to write what may be meant; a name that may be a password is not repeated.
    """
    tree: dict[str, Any] = {"routes": {"m": {"upstream": "openai", "model": "x"}}}
    table = tree
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = text
    problems = told(file_of(tree), {"TEAM_KEY": "sk-CANARY-0123456789"})
    assert list(problems) == [dotted(path)]
    assert shown in problems[dotted(path)]
    assert "`$$`" in problems[dotted(path)]
    assert "eCRET5" not in problems[dotted(path)]
    assert "A1B2C3" not in problems[dotted(path)]


def test_dollars_in_a_prompt() -> None:
    """What a hook's model is told may speak of any variable."""
    hook = {"route": "m", "system": "$PATH"}
    snapshot = read(file_of({"routes": {"m": "openai/x"}, "hooks": {"a": hook}}))
    assert snapshot.hooks["a"].system == "$PATH"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_line_end_of_a_secret_file(end: str, tmp_path: Path) -> None:
    """The line end that an editor puts behind a secret is not part of it."""
    (tmp_path / "s").write_bytes(f"sk-1{end}".encode())
    tree = {
        "upstreams": {"openai": {"credential": f"${{file:{tmp_path}/s}}"}},
        "routes": {"m": "openai/x"},
    }
    (credential,) = _upstream(read(file_of(tree))).credentials
    assert credential.secret.reveal() == "sk-1"


def test_references_stand_in_values_only() -> None:
    """A key is what it is: nothing in it is replaced."""
    table = read('[routes]\n"${VAR}" = "openai/x"', {"VAR": "filled"}).routes
    assert table.match("${VAR}") is not None
    assert table.match("filled") is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("${UNSET}", "UNSET is not set"),
        ("${EMPTY}", "EMPTY is not set"),
        ("x${UNSET}y${EMPTY}", "UNSET is not set"),
        ("${", "without its `}`"),
        ("a${b", "without its `}`"),
        ("${A:-${B}}", "without its `}`"),
        ("${}", "is not a reference"),
        ("${ VAR }", "is not a reference"),
        ("${1A}", "is not a reference"),
        ("${A-b}", "is not a reference"),
        ("${A:b}", "is not a reference"),
        ("${A:?b}", "is not a reference"),
        ("${env:A}", "is not a reference"),
        ("${FILE:/x}", "is not a reference"),
        ("${file:}", "cannot be read"),
        ("${file:/nowhere/at/all}", "no such file"),
        ("${file:/}", "is a directory"),
        ("${file:a\0b}", "cannot be read"),
        ("${DIR}", "is a directory"),
        ("${LOST}", "no such file"),
        ("${BINARY}", "not UTF-8"),
    ],
)
def test_bad_references(text: str, hint: str, tmp_path: Path) -> None:
    """A reference that stands for nothing is an error at its place, saying why."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    env = {
        "EMPTY": "",
        "DIR_FILE": str(tmp_path),
        "LOST_FILE": str(tmp_path / "lost"),
        "BINARY_FILE": str(tmp_path / "binary"),
    }
    problems = told(file_of({"routes": {"m": {"upstream": "openai", "model": text}}}), env)
    assert list(problems) == ["routes.m.model"]
    assert hint in problems["routes.m.model"]


def test_references_in_lists_and_tables() -> None:
    """A bad reference is told by the place where it stands, however deep."""
    toml = (
        '[server]\nhosts = ["a", "${NO}"]\n[routes]\nm = "${NO}"\n[keys]\nk = { secret = "${NO}" }'
    )
    assert set(told(toml)) == {"server.hosts[1]", "routes.m", "keys.k.secret"}


@pytest.mark.parametrize("used", [True, False])
def test_secret_file_of_a_preset(used: bool, secret: Path, tmp_path: Path) -> None:
    """`VAR_FILE` stands in for a vendor's variable; one that cannot be read matters where it is used."""
    toml = f'[routes]\nm = "{"openai" if used else "sandbox"}/x"'
    snapshot = read(toml, {"OPENAI_API_KEY_FILE": str(secret)})
    if used:
        (credential,) = _upstream(snapshot).credentials
        assert credential.secret.reveal() == SECRET_FILE
        problems = told(toml, {"OPENAI_API_KEY_FILE": str(tmp_path / "lost")})
        assert "OPENAI_API_KEY_FILE" in problems["upstreams.openai.credential"]
    else:
        assert read(toml, {"OPENAI_API_KEY_FILE": str(tmp_path / "lost")}).routes.match("m")


@pytest.mark.parametrize("toml", ['[routes]\nm = "openai/x"', ROUTES + '[keys]\nk = "${K}"'])
def test_key_where_its_file_should_be_named(toml: str) -> None:
    """Who puts a secret itself into `VAR_FILE` does not find it in the message."""
    env = {"OPENAI_API_KEY_FILE": "sk-proj-0123456789", "K_FILE": "tk-0123456789abcdef"}
    assert told(toml, env)


def test_secret_knows_its_source(secret: Path) -> None:
    """A secret says where it is written: a variable, a file, or the place in the routes file."""
    for text, source in (
        ("${MY_KEY}", "MY_KEY"),
        ("${MY_KEY:-x}", "MY_KEY"),
        (f"${{file:{secret}}}", f"file:{secret}"),
        ("sk-plain", "upstreams.openai.credential"),
        ("sk-${MY_KEY}", "upstreams.openai.credential"),
    ):
        tree = {"upstreams": {"openai": {"credential": text}}, "routes": {"m": "openai/x"}}
        (credential,) = _upstream(read(file_of(tree), {"MY_KEY": "sk-1"})).credentials
        assert credential.secret.source == source


# Types

JUNK: list[Any] = [
    5,
    True,
    1.5,
    datetime(2027, 6, 30, 1, 2, 3),  # noqa: DTZ001 - a local time, as TOML has them
    {"x": 1},
    [5],
    ["x", 5],
    [{"x": 1}, 5],
]
FITS: dict[Node, tuple[type, ...]] = {
    ("server", "max_body"): (int,),
    ("server", "max_held"): (int,),
    ("server", "max_inflight"): (int,),
    ("server", "workers"): (int,),
    ("defaults", "retry", "attempts"): (int,),
    ("defaults", "retry", "stale"): (bool,),
    ("defaults", "retry", "failover_5xx"): (bool,),
    ("defaults", "retry", "ambiguous"): (bool,),
    ("defaults", "retry", "next"): (bool,),
    ("defaults", "retry", "also", 0): (int,),
    ("defaults", "retry", "also", 1): (int,),
    ("surface", 0, "docs"): (bool,),
    ("surface", 0, "echo_model"): (bool,),
    ("surface", 1, "open"): (bool,),
    ("upstreams", "openai", "retry", "attempts"): (int,),
    ("upstreams", "corp", "passthrough"): (bool,),
    ("upstreams", "eu", "optional"): (bool,),
    ("upstreams", "eu", "billed"): (bool,),
    ("routes", "fast/*", "targets", 1, "weight"): (int, float),
    ("routes", "fast/*", "retry", "attempts"): (int,),
    ("routes", "fast/*", "on_context_length"): (bool,),
    ("routes", "fast/*", "peek"): (bool,),
    ("keys", "mobile", "expires"): (date,),
}


@pytest.mark.parametrize(("written", "count"), [("1", 1), ("256", 256), ('"auto"', None)])
def test_workers(written: str, count: int | None) -> None:
    """There are so many workers, or one per core."""
    snapshot = read(f"[server]\nworkers = {written}\n{ROUTES}")
    assert snapshot.settings.workers == count


@pytest.mark.parametrize("written", ["0", "257", "-1", "true", "2.0", '"2"', '"many"'])
def test_no_number_of_workers(written: str) -> None:
    """What is no number of workers is refused, with what would be one."""
    problems = told(f"[server]\nworkers = {written}\n{ROUTES}")
    assert problems == {"server.workers": 'must be a number from 1 to 256, or "auto"'}


@pytest.mark.parametrize("path", [path for path, _ in nodes(FULL)], ids=dotted)
def test_wrong_types(path: Node) -> None:
    """A value of another type is refused at its place: nothing is coerced, nothing taken for a list."""
    for junk in JUNK:
        if type(junk) in FITS.get(path, ()):
            continue
        with pytest.raises(ConfigError) as caught:
            read(file_of(changed(FULL, path, junk)))
        places = [problem.path for problem in caught.value.problems]
        assert any(path[: len(p)] == p or p[: len(path)] == path for p in places), (junk, places)


@pytest.mark.parametrize("path", [p for p, v in nodes(FULL) if not isinstance(v, str)], ids=dotted)
def test_text_in_place_of_another_type(path: Node) -> None:
    """Text is not read as a number, a date, a list or a table, but where the file says it may be."""
    short = {
        ("upstreams", "corp", "credential"), ("upstreams", "vertex", "credential"),
        ("upstreams", "openai", "credential"), ("upstreams", "openai", "credential", 1),
        ("keys", "mobile"), ("keys", "long"),
    }  # fmt: skip
    lists = {
        ("surface", 1, "listen"), ("upstreams", "eu", "env"), ("upstreams", "corp", "forward"),
        ("surface", 0, "strip"),
    }  # fmt: skip
    if path not in short | lists:
        assert told(file_of(changed(FULL, path, "text")))


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("1", 1), ("5B", 5), ("1KiB", 1024), ("1KB", 1000), ("1.5K", 1500), ("64MiB", 2**26),
     ("10 MB", 10**7), ("2GiB", 2**31), ("1G", 10**9)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    """A size is a number of bytes, with a decimal or a binary unit."""
    assert read(f"[server]\nmax_body = {toml_of(text)}\n{ROUTES}").settings.max_body == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        0,
        -1,
        "-1",
        "64MIB",
        "64mib",
        "MiB",
        "1e3",
        "1TB",
        "64 M B",
        "1,000",
        "0.1B",
        "none",
    ],
)
def test_bad_sizes(text: str | int) -> None:
    """What is not a size of at least one byte is refused, saying how one is written."""
    problems = told(f"[server]\nmax_body = {toml_of(text)}\n{ROUTES}")
    assert "64MiB" in problems["server.max_body"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("250ms", 0.25), ("1m30s", 90), ("1h", 3600), ("0.5s", 0.5), ("2h5m", 7500),
     ("none", None)],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    """A duration is a number with a unit, several of them, or `none`."""
    assert read(f"[server]\ndrain = {toml_of(text)}\n{ROUTES}").settings.drain == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "0", "30", 30, 1.5, "-5s", "30 s", "s", "30sec", "1d", "None", "1e3s", "inf", "5s "]
)  # fmt: skip
def test_bad_durations(text: str | float) -> None:
    """What is not a positive duration is refused, saying how one is written."""
    problems = told(f"[server]\ndrain = {toml_of(text)}\n{ROUTES}")
    assert "1m30s" in problems["server.drain"]


@pytest.mark.parametrize("unit", ["s", "h", "B", "GiB", ""])
@pytest.mark.parametrize("key", ["drain", "max_body"])
def test_astronomical_numbers(key: str, unit: str) -> None:
    """A number beyond all measure is refused like any other mistake."""
    assert told(f'[server]\n{key} = "{"9" * 400}{unit}"\n{ROUTES}')


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_bad_counts(number: float) -> None:
    """At least one exchange must be let in."""
    assert "server.max_inflight" in told(f"[server]\nmax_inflight = {number}\n{ROUTES}")


# URLs, headers, secrets


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


# What an upstream's table says of a vendor


@pytest.mark.parametrize(
    ("line", "place", "word"),
    [
        ('speaks = ["chat", "chatt"]', "speaks[1]", 'did you mean "chat"?'),
        ('speaks = ["chat/completions"]', "speaks[0]", "is not a dialect"),
        ('speaks = ["all"]', "speaks[0]", "is not a dialect"),
        ('speaks = [""]', "speaks[0]", "is not a dialect"),
        ('speaks = "any"', "speaks", '"all"'),
        ('speaks = "chat"', "speaks", '"all"'),
        ('forms = { mesages = "bearer" }', "forms.mesages", 'did you mean "messages"?'),
        ('forms = { messages = "basic" }', "forms.messages", '"x-api-key"'),
        ('forms = { messages = { header = "x" } }', "forms.messages", "must be"),
        ('form = "Bearer"', "form", 'did you mean "bearer"?'),
        ('form = ""', "form", "must be"),
        ('defaults = { mesages = { a = "b" } }', "defaults.mesages", 'did you mean "messages"?'),
        ('defaults = { messages = { "a b" = "c" } }', 'defaults.messages."a b"', "header"),
        ('defaults = { messages = { Host = "c" } }', "defaults.messages.Host", "header"),
        ('defaults = { messages = { Upgrade = "c" } }', "defaults.messages.Upgrade", "header"),
        ('defaults = { messages = { a = "b\\nc" } }', "defaults.messages.a", "character"),
        ('defaults = { messages = { a = "日本" } }', "defaults.messages.a", "character"),
        ('defaults = { messages = { a = "b", A = "b" } }', "defaults.messages.a", "twice"),
        ('defaults = { messages = "a" }', "defaults.messages", "table"),
        ('billed = "no"', "billed", "boolean"),
        ("optional = 1", "optional", "boolean"),
        ('env = { a = "b" }', "env", "list"),
        ('preset = "opnai"', "preset", 'did you mean "openai"?'),
        ('preset = ""', "preset", "there is no preset"),
        ('vars = { region = "x" }', "vars.region", "no URL of this upstream has such a part"),
        ("vars = { region = 5 }", "vars.region", "text"),
    ],
)
def test_bad_words_about_a_vendor(line: str, place: str, word: str) -> None:
    """What a table says of a vendor names dialects, forms, headers and presets that there are."""
    problems = told(f'[upstreams.up]\nbase_url = "http://h/v1"\n{line}\n{ROUTES}')
    expected = f"upstreams.up.{place}"
    assert set(problems) in ({expected}, {expected, expected.replace(".a", ".A")})
    assert word in problems[expected]


@pytest.mark.parametrize("place", ["forms", "defaults", "speaks"])
@pytest.mark.parametrize("dialect", sorted(dialects.DIALECTS))
def test_every_dialect_may_be_named(place: str, dialect: str) -> None:
    """Whatever goes by dialect takes every dialect that there is."""
    value: Any = {"forms": {dialect: "apikey"}, "defaults": {dialect: {"a": "b"}}, "speaks": [dialect]}  # fmt: skip
    tree = {"upstreams": {"up": {"base_url": "http://h/v1", "credential": "sk-1", place: value[place]}}, "routes": {"m": "up/x"}}  # fmt: skip
    upstream = _upstream(read(file_of(tree)))
    (credential,) = upstream.credentials
    assert {
        "forms": credential.line(dialect) == (b"apikey", b"sk-1"),
        "defaults": upstream.defaults.get(dialect) == ((b"a", b"b"),),
        "speaks": upstream.spoken == (dialect,),
    }[place]


def test_speaks_all() -> None:
    """Who says that a vendor speaks all has nothing refused, whatever its preset says."""
    upstream = _upstream(read('[upstreams.xai]\nspeaks = "all"\n[routes]\nm = "xai/x"'))
    assert all(upstream.speaks(dialect) for dialect in dialects.DIALECTS.values())


def test_speaks_nothing() -> None:
    """An empty list is one: the upstream is then for nothing that carries a model."""
    upstream = _upstream(read('[upstreams.xai]\nspeaks = []\n[routes]\nm = "xai/x"'))
    assert not any(upstream.speaks(dialect) for dialect in dialects.DIALECTS.values())


@pytest.mark.parametrize("place", ["upstreams.up", "routes.r"])
@pytest.mark.parametrize(
    ("table", "at"),
    [
        ("{}", ""),
        ('{ header = "x-a" }', ""),
        ('{ secret = "sk-1", command = ["a"] }', ""),
        ('{ refresh = "5m" }', ""),
        ("{ command = [] }", ".command"),
        ('{ command = [""] }', ".command"),
        ('{ command = ["", "a"] }', ".command"),
        ('{ command = ["a\\u0000b"] }', ".command"),
        ('{ command = ["a", "\\u0000"] }', ".command"),
        ('{ command = "gcloud auth" }', ".command"),
        ('{ command = { a = "b" } }', ".command"),
        ('{ command = ["a", 5] }', ".command[1]"),
        ('{ command = [["a"]] }', ".command[0]"),
        ('{ command = ["a"], refresh = "0s" }', ".refresh"),
        ('{ command = ["a"], refresh = "soon" }', ".refresh"),
        ('{ command = ["a"], refresh = 5 }', ".refresh"),
        ('{ command = ["a"], header = "Host" }', ".header"),
        ('{ command = ["a"], header = "" }', ".header"),
        ('{ command = ["a"], form = "bearer" }', ".form"),
        ('{ command = ["a"], shell = true }', ".shell"),
        ('{ secret = "sk-1", refresh = "5m" }', ".refresh"),
    ],
)
def test_bad_credentials(place: str, table: str, at: str) -> None:
    """A credential is one secret or one command, and what is said of it belongs to that one."""
    route = "" if place == "routes.r" else '[routes]\nr = "up/x"\n'
    toml = f'{route}[{place}]\nbase_url = "http://h/v1"\ncredential = {table}\n'
    assert list(told(toml)) == [f"{place}.credential{at}"]


@pytest.mark.parametrize(
    ("table", "header", "refresh"),
    [
        ('{ command = ["gcloud", "a b", ""] }', b"Authorization", 3000),
        ('{ command = ["gcloud"], refresh = "none" }', b"Authorization", None),
        ('{ command = ["gcloud"], refresh = "90s" }', b"Authorization", 90),
        ('{ command = ["gcloud"], header = "x-goog-token" }', b"x-goog-token", 3000),
    ],
)
def test_credential_of_a_command(table: str, header: bytes, refresh: float | None) -> None:
    """A command's credential is none until the command has run, and is presented like any other."""
    toml = f'[upstreams.up]\nbase_url = "http://h/v1"\ncredential = {table}\n[routes]\nm = "up/x"'
    snapshot = read(toml)
    upstream = _upstream(snapshot)
    (live,) = snapshot.live
    (credential,) = upstream.credentials
    assert live.secret is credential.secret
    assert live.command[0] == "gcloud"
    assert (live.refresh, live.read) == (refresh, None)
    assert (upstream.missing, live.secret.known) == (None, False)
    live.secret.replace("ya29-1")
    name, value = credential.line("chat")
    assert (name, value.rpartition(b" ")[2]) == (header, b"ya29-1")


def test_command_of_a_path() -> None:
    """A command is called by its name, not by its arguments or its place, wherever it is told."""
    toml = '[routes.m]\nbase_url = "http://h"\ncredential = { command = ["/opt/x/token", "--key=CANARY"] }'
    snapshot = read(toml)
    (credential,) = _upstream(snapshot).credentials
    assert credential.secret.source == "the command token"
    assert "CANARY" not in repr(_upstream(snapshot))


def test_references_in_a_command() -> None:
    """The words of a command are filled in like any value."""
    toml = '[routes.m]\nbase_url = "http://h"\ncredential = { command = ["token", "${REALM}"] }'
    assert read(toml, {"REALM": "corp; rm"}).live[0].command == ("token", "corp; rm")
    assert list(told(toml)) == ["routes.m.credential.command[1]"]


@pytest.mark.parametrize(
    ("text", "env", "files"),
    [
        ("${file:@}", {}, ("@",)),
        ("Basic ${file:@}", {}, ("@",)),
        ("${A}", {"A_FILE": "@"}, ("@",)),
        ("${A:-x}", {"A_FILE": "@"}, ("@",)),
        ("${A}", {"A": "x", "A_FILE": "@"}, ()),
        ("sk-1", {}, ()),
    ],
)
def test_credential_of_a_file(
    text: str, env: dict[str, str], files: tuple[str, ...], secret: Path
) -> None:
    """A credential that a file holds follows that file; one that a variable holds stays."""
    at = str(secret)
    tree = {
        "upstreams": {"openai": {"credential": text.replace("@", at)}},
        "routes": {"m": "openai/x"},
    }
    snapshot = read(file_of(tree), {name: value.replace("@", at) for name, value in env.items()})
    assert [live.files for live in snapshot.live] == [(at,)] * len(files)
    for live in snapshot.live:
        secret.write_text("changed\n")
        assert live.read is not None
        assert live.read() == text.replace("${file:@}", "changed").replace("${A}", "changed").replace("${A:-x}", "changed")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "sk-proj-0123456789", "a b", "1A", "A-B", "${SECRET}", "$OPENAI_API_KEY", "A\\n"],
)
def test_secret_where_its_variable_should_be_named(text: str) -> None:
    """`env` holds names of variables: what cannot be one may be a secret, and callers would be told
    that "it" is not set.
    """
    toml = f'[upstreams.openai]\nenv = ["OK", "{text}"]\n{ROUTES}'
    assert list(told(toml, {"SECRET": "sk-proj-0123456789"})) == ["upstreams.openai.env[1]"]


# Unrouted


@pytest.mark.parametrize(
    "prefix",
    [
        "", "/", "/files", "files/", "//", "a//b", "files*", "files/*", "**", "*/x",
        ".", "..", "../x", "a/../b", "a/./b", "%2e%2e", "a/%2E./b", "a\\b", "a%5cb", "a b", "a\tb",
        "a\nb", "a\x00", "a\x7f", "a%00b", "files?x", "files#x", "files?",
    ],
)  # fmt: skip
def test_bad_unrouted_paths(prefix: str) -> None:
    """A path of [unrouted] is one below a base path, and could mean no other place."""
    problems = told(file_of({"routes": {"m": "openai/x"}, "unrouted": {prefix: "openai"}}))
    assert list(problems) == [dotted(("unrouted", prefix))]
    assert 'such as "files"' in problems[dotted(("unrouted", prefix))]


@pytest.mark.parametrize("prefix", sorted({*dialects.ENDPOINTS} - {"chat/completions", "messages", "realtime", "responses", "videos"}))  # fmt: skip
def test_unrouted_endpoints(prefix: str) -> None:
    """An endpoint that carries a model, and below which nothing is kept, is a matter of [routes]."""
    problems = told(file_of({"routes": {"m": "openai/x"}, "unrouted": {prefix: "openai"}}))
    assert "carries a model" in problems[dotted(("unrouted", prefix))]


@pytest.mark.parametrize(
    "prefix",
    [
        "files", "batches", "fine_tuning", "fine_tuning/jobs", "vector_stores", "*", "responses",
        "chat/completions", "messages", "messages/batches", "videos", "realtime", "realtime/sessions",
        "a.b", "...", "models", "a%2Fb", "ü",
    ],
)  # fmt: skip
def test_unrouted_paths(prefix: str) -> None:
    """What is kept at a vendor may be named, below the endpoints that made it too."""
    table = read(file_of({"routes": {"m": "sandbox/x"}, "unrouted": {prefix: "openai"}})).unrouted
    assert {path: upstream.name for path, upstream in table.upstreams.items()} == {prefix: "openai"}
    assert set(table.names()) == {"openai"}


@pytest.mark.parametrize(
    ("to", "hint"),
    [
        ("opnai", '; did you mean "openai"?'),
        ("gpus", '; did you mean "gpu"?'),
        ("OpenAI", '; did you mean "openai"?'),
        ("q0q0", ""),
        ("", ""),
        ("m", ""),
        ("${TO}", ""),
    ],
)
def test_unrouted_to_nowhere(to: str, hint: str) -> None:
    """A path of [unrouted] leads to an upstream that exists; the nearest one is suggested."""
    tree = {
        "upstreams": {"gpu": {"base_url": "http://h/v1"}},
        "routes": {"m": "sandbox/x"},
        "unrouted": {"files": to},
    }
    problems = told(file_of(tree), {"TO": "opnai" if to.startswith("$") else ""})
    assert problems == {"unrouted.files": f'there is no upstream "{to}"{hint}'}


def test_unrouted_needs_no_route() -> None:
    """An upstream that only [unrouted] names is made, with its preset, and may be dormant."""
    snapshot = read('[routes]\nm = "sandbox/x"\n[unrouted]\nfiles = "mistral"\n')
    assert snapshot.upstreams["mistral"].missing == "MISTRAL_API_KEY"


@pytest.mark.parametrize("value", [5, True, ["openai"], {"upstream": "openai"}])
def test_unrouted_types(value: Any) -> None:
    """Where a path leads is an upstream's name, and nothing else yet."""
    tree = {"routes": {"m": "openai/x"}, "unrouted": {"files": value}}
    assert list(told(file_of(tree))) == ["unrouted.files"]


@pytest.mark.parametrize(
    ("prefix", "fits"),
    [
        ("files", True),
        ("files/content", False),
        ("fine_tuning", True),
        ("fine_tuning/jobs", True),
        ("file", False),
        ("gemini", True),
        ("models", True),
        ("responses", True),
        ("audio", True),
        ("audi", False),
        ("*", False),
    ],
)
def test_paths_of_what_is_unrouted(prefix: str, fits: bool) -> None:
    """A path of [unrouted] may live on another base too, as may Gemini's own and the list of models."""
    tree: dict[str, Any] = {
        "upstreams": {"openai": {"paths": {prefix: "http://h/v1"}}},
        "routes": {"m": "openai/y"},
        "unrouted": {"files": "openai", "fine_tuning/jobs": "openai", "*": "openai"},
    }
    if fits:
        paths = read(file_of(tree)).upstreams["openai"].paths
        assert [path for path, _ in paths] == [prefix]
    else:
        assert list(told(file_of(tree))) == [dotted(("upstreams", "openai", "paths", prefix))]


@pytest.mark.parametrize(
    ("endpoint", "fits"),
    [
        ("files", True),
        ("fine_tuning/jobs", True),
        ("fine_tuning", False),
        ("file", False),
        ("gemini", True),
        ("responses", True),
        ("images/edits", True),
        ("images", False),
        ("batches", False),
        ("models/x:generateContent", False),
        ("*", False),
    ],
)
def test_endpoints(endpoint: str, fits: bool) -> None:
    """A surface's endpoints are those that carry a model, Gemini's own by that name, and the paths of
    [unrouted].
    """
    tree: dict[str, Any] = {
        "server": {"endpoints": ["messages", endpoint]},
        "routes": {"m": "openai/y"},
        "unrouted": {"files": "openai", "fine_tuning/jobs": "openai", "*": "openai"},
    }
    if fits:
        assert read(file_of(tree)).surfaces[0].endpoints == frozenset({"messages", endpoint})
    else:
        assert list(told(file_of(tree))) == ["server.endpoints[1]"]


def test_accept_what_google_sends() -> None:
    """Google's header may be among those that hold a key, alone too; by default all are."""
    toml = f'[server]\naccept = ["x-goog-api-key"]\n[keys]\nk = "tk-0123456789abcdef"\n{ROUTES}'
    assert read(toml).surfaces[0].accept == (b"x-goog-api-key",)
    assert set(read(ROUTES).surfaces[0].accept) == {
        b"authorization", b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key",
    }  # fmt: skip


# Routes


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ('a = "a"', "a"),
        ('a = "b"\nb = "a"', "a"),
        ('a = "b"\nb = "c"\nc = "b"', "b"),
        ('"x/y" = "z"\nz = "x/y"', '"x/y"'),
    ],
)
def test_circles(lines: str, path: str) -> None:
    """Aliases that lead back to where they began are told once, with the way round."""
    problems = told(f"[routes]\n{lines}")
    assert list(problems) == [f"routes.{path}"]
    assert "leads back to itself" in problems[f"routes.{path}"]


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ('a = "nowhere/x"', "a"),
        ('a = "nowhere"', "a"),
        ('a = ""', "a"),
        ('a = "/"', "a"),
        ('a = "openai"', "a"),
        ('a = "openai/"', "a"),
        ('a = "/gpt"', "a"),
        ('a = "OpenAI/gpt"', "a"),
        ('a = { upstream = "nowhere" }', "a.upstream"),
        ('a = { upstream = "" }', "a.upstream"),
        ('a = { upstream = "openai/x" }', "a.upstream"),
        ("a = {}", "a"),
        ('a = { model = "x" }', "a"),
        ('a = { upstream = "openai", base_url = "http://h" }', "a"),
        ('a = { upstream = "openai", model = "" }', "a.model"),
        ('a = { upstream = "openai", credential = "x" }', "a.credential"),
        ('a = { upstream = "openai", headers = { x = "y" } }', "a.headers"),
        ('a = { upstream = "openai", preset = "azure" }', "a.preset"),
        ('a = { upstream = "openai", billed = false }', "a.billed"),
        ('a = { upstream = "openai", speaks = "all" }', "a.speaks"),
        ('a = { upstream = "azure", vars = { resource = "x" } }', "a.vars"),
        ('a = { preset = "openai" }', "a"),
        ('a = "b*"\n"b*" = "openai/x"', "a"),
    ],
)
def test_routes_to_nowhere(lines: str, path: str) -> None:
    """A route that leads to no place that exists is an error."""
    assert list(told(f"[routes]\n{lines}")) == [f"routes.{path}"]


@pytest.mark.parametrize("lines", ["", "[routes]", "[server]", "# nothing"])
def test_no_routes(lines: str) -> None:
    """A file without a route is a mistake."""
    assert list(told(lines)) == ["routes"]


@pytest.mark.parametrize(
    "name", ["a*b", "**", "*a", "a**", "a*/b*", "", "a\nb", "a\x00", "a\x1b[31m"]
)
def test_bad_route_names(name: str) -> None:
    """A route's name is a model string of printable characters, and only its end may be a `*`."""
    assert list(told(file_of({"routes": {name: "openai/x"}}))) == [dotted(("routes", name))]


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"routes": {"a": "openai/*"}}, "routes.a"),
        ({"routes": {"a": {"upstream": "openai", "model": "x*"}}}, "routes.a.model"),
        ({"routes": {"a*": {"upstream": "openai", "model": "*/*"}}}, 'routes."a*".model'),
        ({"keys": {"k": {"secret": "x", "models": ["ok*", "a*b"]}}}, "keys.k.models[1]"),
        ({"keys": {"k": {"secret": "x", "models": ["**"]}}}, "keys.k.models[0]"),
        ({"server": {"routes": ["*/x"]}}, "server.routes[0]"),
        ({"routes": {"q/*": {"upstream": "openai", "list": ["q/*"]}}}, 'routes."q/*".list[0]'),
    ],
)
def test_star_in_the_wrong_place(tree: dict[str, Any], path: str) -> None:
    """A `*` stands at the end of a pattern, or once in the model of one; elsewhere it is a mistake."""
    problems = told(file_of({"routes": {"m": "openai/x"}, **tree}))
    assert list(problems) in ([path], [path.removesuffix(".model")])
    assert "*" in next(iter(problems.values()))


@pytest.mark.parametrize("name", ["a/b", "", "a\nb", "/"])
def test_bad_upstream_names(name: str) -> None:
    """An upstream's name is printable and without a slash, or no route could name it."""
    tree = {"upstreams": {name: {"base_url": "http://h"}}, "routes": {"m": "openai/x"}}
    assert list(told(file_of(tree))) == [dotted(("upstreams", name))]


@pytest.mark.parametrize("order", [1, -1], ids=["downwards", "upwards"])
def test_long_chain_of_aliases(order: int) -> None:
    """A chain of up to 50 routes is followed to its end; a longer one is a mistake, however it is
    written down, and however long.
    """

    def chain(count: int) -> str:
        lines = [f'a{n} = "a{n + 1}"' for n in range(count - 1)] + [f'a{count - 1} = "openai/x"']
        return "[routes]\n" + "\n".join(lines[::order])

    route = route_of(chain(50), "a0")
    assert (place(route, route.first), len(route.via)) == ("openai/x", 49)
    for count in (52, 3000):
        assert all("50" in message for message in told(chain(count)).values())


def test_ten_thousand_routes_load() -> None:
    """A file of ten thousand routes is read within a second or two."""
    lines = "".join(f'"vendor/model-{n}" = "openai/model-{n}"\n' for n in range(10_000))
    assert len(read(f"[routes]\n{lines}").routes.routes) == 10_000


@pytest.mark.parametrize("line", [
    'm{n} = {{ upstream = "openai", fallback = ["groq/a", "default"] }}',
    'm{n} = {{ targets = ["openai/a", {{ to = "default", weight = 2 }}], policy = "weighted" }}',
    'm{n} = "default"',
    'm{n} = {{ base_url = "http://h/v1", credential = ["a{n}", "b{n}"], retry = {{ attempts = 2 }} }}',
])  # fmt: skip
def test_many_routes_cost_what_few_cost(line: str) -> None:
    """Where each of many routes names several places, four times as many take about four times as long."""

    def seconds(count: int) -> float:
        lines = "\n".join(line.format(n=n) for n in range(count))
        started = process_time()
        assert len(read(f'[routes]\ndefault = "openai/x"\n{lines}\n').routes.routes) == count + 1
        return process_time() - started

    few = min(seconds(400) for _ in range(3))
    assert seconds(1600) < 14 * few  # sixteen would be the square


def test_many_mistakes_are_quick() -> None:
    """One mistake made in a thousand lines is told a thousand times, without thinking long each time."""
    lines = "".join(f'"vendor/model-{n}" = "opneai/model-{n}"\n' for n in range(1000))
    assert len(told(f"[routes]\n{lines}")) == 1000


def test_no_key_stands_for_a_short_route() -> None:
    """A route that is a table names its upstream by a key of this page, and by no other."""
    assert told('[routes.m]\n"\\u0000" = "openai/x"\nupstream = "openai"')


# Where else to go

PLACES_TO_GO = """
[upstreams.corp]
base_url = "http://h/v1"
[routes]
default = "openai/gpt"
alias = "default"
asked = { upstream = "corp" }
"q/*" = { upstream = "corp", model = "*" }
safe = { upstream = "corp", model = "big", fallback = ["openai/gpt", "groq/llama"] }
fast = { targets = ["groq/llama", { to = "cerebras/llama", weight = 3 }], policy = "weighted" }
safe-alias = "safe"
"""


def route_of(toml: str, model: str = "m", env: Mapping[str, str] | None = None) -> Route:
    """Return the route of *model*."""
    route = read(toml, env).routes.match(model)
    assert route is not None
    return route


def test_an_alias_of_what_a_pattern_matches() -> None:
    """Who names a model that only a pattern matches is told what to write: where it leads, under the name that
    is sent there; but not what a variable holds, nor a place that stands in the route itself.
    """
    routes = """
"gpt-*" = { upstream = "openai", model = "prefix-*" }
"gpt-4*" = { upstream = "corp" }
"own-*" = { base_url = "http://own/v1" }
"""
    cases = {
        "gpt-3": '"openai/prefix-3"',
        "gpt-4o": '"corp/gpt-4o"',
        "own-a": "`base_url`",
        "own-*": "`base_url`",
        "${GPT}": '"openai/MODEL"',
    }
    for to, word in cases.items():
        problems = told(f'{PLACES_TO_GO}{routes}m = "{to}"', {"GPT": "gpt-CANARY"})
        assert list(problems) == ["routes.m"]
        assert word in problems["routes.m"]
        assert "CANARY" not in problems["routes.m"]
    for text in ('m = "fst"\n"*" = "openai/*"', 'm = "opnai/gpt"\n"*" = "openai/*"'):
        assert "did you mean" in told(PLACES_TO_GO + text)["routes.m"]
    assert list(told('[routes]\n"a*" = "abc"')) == ['routes."a*"']


def groups(line: str, model: str = "m") -> list[list[str]]:
    """Return where a route written as *line* leads, among `PLACES_TO_GO`."""
    route = route_of(PLACES_TO_GO + line, model)
    return [[place(route, one, model) for one in group.targets] for group in route.groups]


@pytest.mark.parametrize(
    ("fallback", "after"),
    [
        ('"groq/x"', [["groq/x"]]),
        ('["groq/x"]', [["groq/x"]]),
        ('["groq/x", "corp/y/z"]', [["groq/x"], ["corp/y/z"]]),
        ("[]", []),
        ('"default"', [["openai/gpt"]]),
        ('"alias"', [["openai/gpt"]]),
        ('"asked"', [["corp/asked"]]),
        ('"safe"', [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        ('"safe-alias"', [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        ('["fast", "default"]', [["groq/llama", "cerebras/llama"], ["openai/gpt"]]),
        ('"q/x"', None),
    ],
)
def test_fallback(fallback: str, after: list[list[str]] | None) -> None:
    """A route falls back to places and to other routes, whose own fallbacks go along, in the order
    in which they stand there.
    """
    line = f'm = {{ upstream = "corp", model = "own", fallback = {fallback} }}'
    if after is None:
        assert list(told(PLACES_TO_GO + line)) == ["routes.m.fallback"]
    else:
        assert groups(line) == [["corp/own"], *after]


@pytest.mark.parametrize(
    ("line", "asked", "expected"),
    [
        ('m = "safe"', "m", [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        ('m = "fast"', "m", [["groq/llama", "cerebras/llama"]]),
        ('m = "asked"', "m", [["corp/asked"]]),
        ('"m-*" = "safe-alias"', "m-1", [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        (
            '"m-*" = { upstream = "corp", model = "*", fallback = ["openai/gpt-*", "default"] }',
            "m-4",
            [["corp/4"], ["openai/gpt-4"], ["openai/gpt"]],
        ),
        (
            '"m-*" = { targets = ["corp/*", "openai/gpt-*"], fallback = "groq/*" }',
            "m-4",
            [["corp/4", "openai/gpt-4"], ["groq/4"]],
        ),
        ('"m-*" = { upstream = "corp", fallback = "default" }', "m-4", [["corp/m-4"], ["openai/gpt"]]),
        ('m = { base_url = "http://own/v1", fallback = "default" }', "m", [["m/m"], ["openai/gpt"]]),
        (
            '"groq/x" = { upstream = "corp", fallback = "groq/x" }',
            "groq/x",
            [["corp/groq/x"], ["groq/x"]],
        ),
        ('"groq/x" = { targets = ["groq/x", "corp/x"] }', "groq/x", [["groq/x", "corp/x"]]),
    ],
)  # fmt: skip
def test_names_along_a_chain(line: str, asked: str, expected: list[list[str]]) -> None:
    """Each place is asked for the model that is written for it: an alias carries its route's places
    along, a `*` is filled in at each, and where none is written it is the name asked for. A route
    that is called what its upstream and model are called leads there.
    """
    assert groups(line, asked) == expected


@pytest.mark.parametrize(
    ("lines", "path", "way"),
    [
        ('m = { upstream = "corp", fallback = "m" }', "m.fallback", ""),
        ('m = { upstream = "corp", fallback = ["groq/x", "m"] }', "m.fallback[1]", ""),
        ('m = { upstream = "corp", fallback = "n" }\nn = "m"', "m", "m → n → m"),
        (
            'm = { upstream = "corp", fallback = "n" }\nn = { upstream = "corp", fallback = ["m"] }',
            "m",
            "m → n → m",
        ),
        ('m = { targets = ["n", "groq/x"] }\nn = { targets = ["m"] }', "m", "m → n → m"),
        ('m = { targets = ["groq/x"], fallback = "n" }\nn = "o"\no = { targets = ["m"] }', "m", "m → n → o → m"),
        ('m = { targets = ["m", "groq/x"] }', "m", "m → m"),
        ('m = "n"\nn = { upstream = "corp", fallback = ["o"] }\no = "n"', "n", "n → o → n"),
    ],
)  # fmt: skip
def test_circles_through_fallbacks(lines: str, path: str, way: str) -> None:
    """A chain that leads back to where it began, however it goes on there, is told once, with the
    way round.
    """
    problems = told(PLACES_TO_GO + lines)
    assert list(problems) == [f"routes.{path}"]
    assert problems[f"routes.{path}"].removesuffix(f": {way}") == "leads back to itself"


WAYS = ['upstream = "corp", fallback = "{}"', 'upstream = "corp", model = "x", fallback = ["groq/x", "{}"]', 'targets = ["groq/x", "{}"]', 'targets = [{{ to = "{}" }}, "groq/x"]']  # fmt: skip
PLACE = ["fallback", "fallback[1]", "targets[1]", "targets[0].to"]


@pytest.mark.parametrize(("way", "at"), [*zip(WAYS, PLACE, strict=True)], ids=PLACE)
@pytest.mark.parametrize(
    ("to", "word"),
    [
        ("fst", 'did you mean "fast"?'),
        ("Default", 'did you mean "default"?'),
        ("opnai/gpt", 'did you mean "openai/gpt"?'),
        ("q0q0q0", "is neither a route nor `upstream/model`"),
        ("", "is neither a route nor `upstream/model`"),
        ("/", "is neither a route nor `upstream/model`"),
        ("openai", "is neither a route nor `upstream/model`"),
        ("openai/", "is neither a route nor `upstream/model`"),
        ("/gpt", "is neither a route nor `upstream/model`"),
        ("q/x", '"q/x" has no line of its own: only "q/*" matches it; write "corp/x"'),
        ("q/*", '"q/*" is a pattern; write "corp/MODEL", the place itself'),
        ("openai/*", "`*` in a model"),
        ("${TO}", '"${TO}" is neither a route nor `upstream/model`'),
    ],
)
def test_places_that_do_not_exist(way: str, at: str, to: str, word: str) -> None:
    """Wherever a place is named it exists, and is one place; the nearest name is suggested, unless
    a variable wrote it.
    """
    lines = f"m = {{ {way.format(to)} }}"
    problems = told(PLACES_TO_GO + lines, {"TO": "opnai/gpt"} if "$" in to else {})
    assert list(problems) == [f"routes.m.{at}"]
    assert word in problems[f"routes.m.{at}"]
    assert "${" not in to or problems[f"routes.m.{at}"].endswith("`upstream/model`")


def test_a_mistake_at_the_end_of_a_chain_is_told_there() -> None:
    """Who falls back to a route that is wrong is not told of it too."""
    toml = """
[routes]
a = { upstream = "openai", fallback = ["b", "c"] }
b = { upstream = "openai", fallback = ["nowhere/x"] }
c = { targets = ["d"] }
d = { upstream = 5 }
e = "a"
"""
    assert list(told(toml)) == ["routes.d.upstream", "routes.b.fallback[0]"]


@pytest.mark.parametrize(
    ("line", "path", "word"),
    [
        ('upstream = "corp", fallback = 5', "fallback", "list"),
        ('upstream = "corp", fallback = true', "fallback", "list"),
        ('upstream = "corp", fallback = { to = "x" }', "fallback", "list"),
        ('upstream = "corp", fallback = ["groq/x", 5]', "fallback[1]", "text"),
        ('upstream = "corp", fallback = [["groq/x"]]', "fallback[0]", "text"),
        ('upstream = "corp", fallbacks = ["groq/x"]', "fallbacks", 'did you mean "fallback"?'),
        ('targets = "groq/x"', "targets", "list"),
        ('targets = { to = "groq/x" }', "targets", "list"),
        ("targets = [5]", "targets[0]", "table"),
        ('targets = ["groq/x", ["groq/x"]]', "targets[1]", "table"),
        ('targets = ["groq/x", {}]', "targets[1].to", "is missing"),
        ("targets = [{ weight = 3 }]", "targets[0].to", "is missing"),
        ("targets = [{ to = 5 }]", "targets[0].to", "text"),
        ('targets = [{ to = "groq/x", weigth = 3 }]', "targets[0].weigth", 'did you mean "weight"?'),
        ('targets = [{ to = "groq/x", model = "x" }]', "targets[0].model", "unknown key"),
        ("targets = []", "", "needs an `upstream`, a `base_url` or `targets`"),
        ('targets = ["groq/x"], upstream = "corp"', "", "more than one of"),
        ('targets = ["groq/x"], base_url = "http://h"', "", "more than one of"),
        ('upstream = "corp", base_url = "http://h"', "", "more than one of"),
        ('targets = ["groq/x"], model = "x"', "model", "belongs into each of the `targets`"),
        ('targets = ["groq/x", "fast"]', "targets[1]", "is a route with several targets"),
        ('targets = [{ to = "safe" }]', "targets[0].to", "is a route with several targets"),
        ('targets = ["groq/x", "safe-alias"]', "targets[1]", "is a route with several targets"),
        ('targets = ["groq/x", "corp/y"], policy = "weigthed"', "policy", 'did you mean "weighted"?'),
        ('targets = ["groq/x", "corp/y"], policy = "least_busy"', "policy", 'did you mean "least-busy"?'),
        ('targets = ["groq/x", "corp/y"], policy = ""', "policy", "must be"),
        ('targets = ["groq/x", "corp/y"], policy = ["ordered"]', "policy", "must be"),
        ('upstream = "corp", policy = "ordered"', "policy", "there are none"),
        ('upstream = "corp", fallback = "groq/x", policy = "fastest"', "policy", "there are none"),
        ('upstream = "corp", sticky = "x-session-id"', "sticky", "there are none"),
        ('targets = ["groq/x", "corp/y"], sticky = "x-id"', "sticky", 'goes with `policy = "weighted"`'),
        ('targets = ["groq/x"], policy = "fastest", sticky = "x-id"', "sticky", 'goes with `policy = "weighted"`'),
        ('targets = ["groq/x"], policy = "weighted", sticky = ""', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = "a b"', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = "ü"', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = "x:"', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = ["x"]', "sticky", "text"),
        ('targets = ["groq/x"], credential = "sk-1"', "credential", "belongs to the upstream"),
        ('targets = ["groq/x"], headers = { a = "b" }', "headers", "belongs to the upstream"),
        ('targets = ["groq/x"], billed = false', "billed", "belongs to the upstream"),
        ('upstream = "corp", on_context_length = 1', "on_context_length", "boolean"),
        ('upstream = "corp", peek = "yes"', "peek", "boolean"),
        ('upstream = "corp", keepalive = 15', "keepalive", "duration"),
        ('upstream = "corp", keepalive = "0s"', "keepalive", "duration"),
        ('upstream = "corp", keepalive = true', "keepalive", "duration"),
    ],
)  # fmt: skip
def test_bad_ways_on(line: str, path: str, word: str) -> None:
    """What a route says of where else it leads, and how, is well formed and means something."""
    problems = told(f"{PLACES_TO_GO}m = {{ {line} }}")
    expected = f"routes.m.{path}" if path else "routes.m"
    assert list(problems) == [expected]
    assert word in problems[expected]


@pytest.mark.parametrize(
    "weight", ["-1", "-0.5", "inf", "-inf", "nan", "1000001", '"3"', "true", "[1]"]
)
def test_bad_weights(weight: str) -> None:
    """A weight is a number within reason, and not below 0."""
    lines = f'm = {{ targets = ["groq/x", {{ to = "corp/y", weight = {weight} }}], policy = "weighted" }}'
    assert list(told(PLACES_TO_GO + lines)) == ["routes.m.targets[1].weight"]


@pytest.mark.parametrize("policy", ["ordered", "weighted", "least-busy", "fastest"])
@pytest.mark.parametrize("weight", ["0", "0.0"])
def test_no_weight(weight: str, policy: str) -> None:
    """A target of weight 0 is none of those that are asked, by whatever policy; what it says is checked all
    the same, and one at least has some weight.
    """
    lines = 'm = {{ targets = ["groq/x", {{ to = "{}", weight = {} }}], policy = "{}" }}'
    (group,) = route_of(PLACES_TO_GO + lines.format("corp/y", weight, policy)).groups
    assert [one.upstream.name for one in group.targets] == ["groq"]
    assert [one.upstream.name for one in group.idle] == ["corp"]
    assert list(told(PLACES_TO_GO + lines.format("nowhere/y", weight, policy))) == [
        "routes.m.targets[1].to"
    ]
    none = f'm = {{ targets = [{{ to = "corp/y", weight = {weight} }}] }}'
    assert list(told(PLACES_TO_GO + none)) == ["routes.m.targets"]


@pytest.mark.parametrize("weight", [1, 3, 0.001, 2.5, 1_000_000])
@pytest.mark.parametrize("policy", ["ordered", "weighted", "least-busy", "fastest"])
def test_weights(weight: float, policy: str) -> None:
    """A target weighs 1 unless it says otherwise, and every policy may be named."""
    toml = f'm = {{ targets = ["groq/x", {{ to = "corp/y", weight = {weight} }}], policy = "{policy}" }}'
    (group,) = route_of(PLACES_TO_GO + toml).groups
    assert ([one.weight for one in group.targets], group.policy) == ([1, weight], policy)
    assert group.sticky is None


def test_targets_are_ordered_unless_said() -> None:
    """Without a policy, targets are tried in the order of the file; so is every fallback."""
    route = route_of(PLACES_TO_GO + 'm = { targets = ["groq/x", "corp/y"], fallback = "fast" }')
    assert [group.policy for group in route.groups] == ["ordered", "weighted"]


@pytest.mark.parametrize("sticky", ["x-session-id", "X-Session-ID", "user-agent", "x_y.z"])
def test_sticky(sticky: str) -> None:
    """The header that keeps a caller at one target is found whatever its case."""
    toml = f'm = {{ targets = ["groq/x", "corp/y"], policy = "weighted", sticky = "{sticky}" }}'
    assert route_of(PLACES_TO_GO + toml).groups[0].sticky == sticky.lower().encode()


def test_one_place_of_a_route_as_a_target() -> None:
    """A target may be a route that leads to one place, and is that place, with what the route says of it."""
    toml = """
[upstreams.corp]
base_url = "http://h/v1"
[routes]
slow = { upstream = "corp", model = "big", timeout = { first_byte = "9s" }, retry = { attempts = 1 } }
m = { targets = ["openai/x", { to = "slow", weight = 2 }], timeout = { first_byte = "3s" } }
"""
    first, second = route_of(toml).groups[0].targets
    assert (first.timeouts.first_byte, first.retry.attempts, first.weight) == (3, 3, 1)
    assert (second.timeouts.first_byte, second.retry.attempts, second.weight) == (9, 1, 2)


SWITCHES = "on_context_length = true, peek = true, keepalive = '7s'"


@pytest.mark.parametrize("alias", ["a", "b", "c-1"])
def test_alias_is_the_route_it_means(alias: str) -> None:
    """An alias does all that its route does: it leads to the same places, in the same way."""
    toml = f"""
[defaults]
keepalive = "20s"
[routes]
m = {{ targets = ["groq/x", "openai/y"], policy = "weighted", sticky = "x-id", {SWITCHES}, fallback = "sandbox/echo", retry = {{ attempts = 2 }} }}
a = "m"
b = "a"
"c-*" = "b"
"""
    table = read(toml).routes
    route, other = table.match("m"), table.match(alias)
    assert route is not None
    assert other is not None
    for ours, theirs in zip(other.groups, route.groups, strict=True):
        assert (ours.policy, ours.sticky) == (theirs.policy, theirs.sticky)
        for one, same in zip(ours.targets, theirs.targets, strict=True):
            assert place(other, one, alias) == place(route, same)
            assert (one.upstream, one.weight, one.retry) == (same.upstream, same.weight, same.retry)
    switches = [(one.on_context_length, one.peek, one.keepalive) for one in (route, other)]
    assert switches == [(True, True, 7)] * 2


def test_fallback_brings_no_switches() -> None:
    """What a route does of its own is not done by those that fall back to it."""
    toml = f'[routes]\nn = {{ upstream = "openai", {SWITCHES} }}\nm = {{ upstream = "groq", fallback = "n" }}'
    route = route_of(toml)
    assert (route.on_context_length, route.peek, route.keepalive) == (False, False, None)


@pytest.mark.parametrize(
    ("defaults", "route", "seconds"),
    [
        ("", "", None),
        ("", 'keepalive = "5s"', 5),
        ("", 'keepalive = "none"', None),
        ('keepalive = "15s"', "", 15),
        ('keepalive = "15s"', 'keepalive = "250ms"', 0.25),
        ('keepalive = "15s"', 'keepalive = "none"', None),
        ('keepalive = "none"', "", None),
    ],
)
def test_keepalive(defaults: str, route: str, seconds: float | None) -> None:
    """A silent stream gets comments where the defaults say so, unless the route says otherwise."""
    toml = f'[defaults]\n{defaults}\n[routes.m]\nupstream = "openai"\n{route}\n'
    assert route_of(toml).keepalive == seconds


# Dialects along a chain


def speaking(**spoken: list[str] | None) -> str:
    """Return upstreams that speak so."""
    return "".join(
        f'[upstreams.{name}]\nbase_url = "http://{name}/v1"\n'
        + ("" if dialects_ is None else f"speaks = {toml_of(dialects_)}\n")
        for name, dialects_ in spoken.items()
    )


CHAINS = [
    'm = { upstream = "a", fallback = ["b/x", "c/x"] }',
    'm = { targets = ["a/x", "b/x"], fallback = "c/x" }',
    'm = { targets = ["a/x", "n", "c/x"] }\nn = "b/x"',
    'm = { upstream = "a", fallback = "n" }\nn = { upstream = "b", fallback = "c/x" }',
]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("a", "b", "c", "good"),
    [
        (["chat"], ["chat"], ["chat"], True),
        (["chat"], ["chat", "messages"], ["messages", "chat"], True),
        (["chat"], None, ["chat"], True),
        (None, ["messages"], None, True),
        (["chat"], None, ["messages"], False),
        (["chat", "models"], ["messages", "models"], None, False),
        (["chat", "models", "files"], ["embeddings", "models", "files"], ["chat"], False),
    ],
)
def test_dialects_in_common(
    chain: str, a: list[str] | None, b: list[str] | None, c: list[str] | None, good: bool
) -> None:
    """All places of a chain share a dialect that carries a model, as far as it is known what they speak."""
    toml = f"{speaking(a=a, b=b, c=c)}[routes]\n{chain}\n"
    if good:
        assert route_of(toml).groups
        return
    problems = told(toml)
    assert set(problems) <= {"routes.m", "routes.n"}
    assert all("no dialect in common" in message for message in problems.values())


def test_dialects_that_are_inferred() -> None:
    """What is merely inferred of a vendor is no reason to refuse a chain."""
    assert route_of('[routes]\nm = { upstream = "humiris", fallback = "anthropic/x" }').groups


@pytest.mark.parametrize("line", ['m = "mute/x"', 'm = { upstream = "mute", model = "x" }'])
def test_one_place_shares_with_nobody(line: str) -> None:
    """One place alone may speak nothing that carries a model, however its route is written."""
    assert route_of(f"{speaking(mute=[])}[routes]\n{line}\n").groups


# How often, how long


@pytest.mark.parametrize("table", ["defaults", "upstreams.openai", "routes.m"])
@pytest.mark.parametrize(
    ("line", "key", "word"),
    [
        ("attempts = 0", "attempts", "greater than or equal to 1"),
        ("attempts = -1", "attempts", "greater than or equal to 1"),
        ("attempts = 11", "attempts", "less than or equal to 10"),
        ("attempts = 2.5", "attempts", "integer"),
        ("attempts = true", "attempts", "integer"),
        ('attempts = "3"', "attempts", "integer"),
        ('attempts = "${N}"', "attempts", "integer"),
        ('deadline = "0s"', "deadline", "duration"),
        ("deadline = 600", "deadline", "duration"),
        ('deadline = "never"', "deadline", "duration"),
        ("stale = 1", "stale", "boolean"),
        ('failover_5xx = "no"', "failover_5xx", "boolean"),
        ("ambiguous = []", "ambiguous", "boolean"),
        ("next = 1", "next", "boolean"),
        ("also = 404", "also", "list"),
        ('also = ["404"]', "also[0]", "integer"),
        ("also = [404, 200]", "also[1]", "greater than or equal to 400"),
        ("also = [600]", "also[0]", "less than or equal to 599"),
        ("also = [404.5]", "also[0]", "integer"),
        ("attempt = 3", "attempt", 'did you mean "attempts"?'),
        ("failover = false", "failover", "unknown key"),
    ],
)
def test_bad_retry(table: str, line: str, key: str, word: str) -> None:
    """What may be tried again is said with keys that there are, within their bounds."""
    more = 'upstream = "openai"\n' if table == "routes.m" else ""
    routes = "" if more else ROUTES
    problems = told(f"{routes}[{table}]\n{more}retry = {{ {line} }}\n", {"N": "3000000"})
    assert list(problems) == [f"{table}.retry.{key}"]
    assert word in problems[f"{table}.retry.{key}"]


@pytest.mark.parametrize("table", ["defaults", "upstreams.openai", "routes.m"])
def test_retry_also(table: str) -> None:
    """`also` is taken wherever `retry` stands, and the list nearest to the route counts, whole."""
    more = 'upstream = "openai"\n' if table == "routes.m" else ""
    toml = (
        f"{'' if more else ROUTES}[{table}]\n{more}retry = {{ also = [404, 424], next = false }}\n"
    )
    retry = route_of(toml).first.retry
    assert (retry.also, retry.next) == ((404, 424), False)


@pytest.mark.parametrize("value", ["3", "true", '"3"', "[3]"])
@pytest.mark.parametrize("table", ["defaults", "upstreams.openai", "routes.m"])
def test_retry_is_a_table(table: str, value: str) -> None:
    """How often something is tried is one key of several."""
    more = 'upstream = "openai"\n' if table == "routes.m" else ""
    problems = told(f"{'' if more else ROUTES}[{table}]\n{more}retry = {value}\n")
    wanted = "must be a table, such as retry = { attempts = 3 }"
    assert problems == {f"{table}.retry": wanted}


@pytest.mark.parametrize("attempts", [1, 10])
@pytest.mark.parametrize("deadline", ["none", "250ms"])
def test_retry_bounds(attempts: int, deadline: str) -> None:
    """One attempt is none again, ten are the most, and a deadline need not be."""
    toml = f'[routes.m]\nupstream = "openai"\nretry = {{ attempts = {attempts}, deadline = "{deadline}" }}'
    retry = route_of(toml).first.retry
    assert retry == Retry(attempts, None if deadline == "none" else 0.25)


def test_retry_as_built_in() -> None:
    """Where nothing is said, what may be billed twice is not tried again, and the rest three times."""
    assert route_of(ROUTES).first.retry == Retry(
        attempts=3, deadline=600, stale=True, failover_5xx=True, ambiguous=False
    )


LAYERS = """
[defaults]
retry = { attempts = 5, deadline = "50s", stale = false }
timeout = { connect = "50s", idle = "51s" }
[upstreams.a]
base_url = "http://a/v1"
retry = { attempts = 4, ambiguous = true }
timeout = { connect = "40s", write = "41s" }
[upstreams.b]
base_url = "http://b/v1"
retry = { deadline = "none" }
timeout = { total = "30s" }
[routes]
plain = "a/x"
m = { upstream = "a", retry = { attempts = 2 }, timeout = { connect = "20s" }, fallback = ["b/x", "other", "plain"] }
other = { upstream = "b", retry = { failover_5xx = false }, timeout = { idle = "10s" } }
spread = { targets = ["a/x", "b/x", "other"], retry = { attempts = 1 }, timeout = { connect = "1s" } }
alias = "m"
"""
PLAIN = (Retry(4, 50, False, True, True), Timeouts(40, 600, 51, 41, None))
OTHER = (Retry(5, None, False, False, False), Timeouts(50, 600, 10, 60, 30))
CHAIN = [
    (Retry(2, 50, False, True, True), Timeouts(20, 600, 51, 41, None)),
    (Retry(2, None, False, True, False), Timeouts(20, 600, 51, 60, 30)),
    OTHER,
    PLAIN,
]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("plain", [PLAIN]),
        ("other", [OTHER]),
        ("m", CHAIN),
        ("alias", CHAIN),
        (
            "spread",
            [
                (Retry(1, 50, False, True, True), Timeouts(1, 600, 51, 41, None)),
                (Retry(1, None, False, True, False), Timeouts(1, 600, 51, 60, 30)),
                OTHER,
            ],
        ),
    ],
)
def test_layers_hold_place_by_place(model: str, expected: list[tuple[Retry, Timeouts]]) -> None:
    """Key by key the route's word goes before the upstream's, that before the defaults': at each
    place those of its own upstream, and of the route that names it.
    """
    found = [(one.retry, one.timeouts) for one in route_of(LAYERS, model).targets()]
    assert found == expected


def test_each_place_says_who_set_its_timeouts() -> None:
    """Each place of a chain knows whose word its timeouts are."""
    first, second, third, _ = route_of(LAYERS, "alias").targets()
    assert [one.origins["connect"] for one in (first, second, third)] == [
        "routes.m.timeout", "routes.m.timeout", "defaults.timeout",
    ]  # fmt: skip
    assert [one.origins["idle"] for one in (first, second, third)] == [
        "defaults.timeout", "defaults.timeout", "routes.other.timeout",
    ]  # fmt: skip
    assert [one.origins["total"] for one in (first, second)] == ["built in", "upstreams.b.timeout"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("0ms", 0), ("5s", 5), ("250ms", 0.25), ("1m30s", 90)]
)
def test_lame_duck(text: str, seconds: float) -> None:
    """How long nothing changes after the word to leave is a duration, and may be none at all."""
    assert read(f'[server]\nlame_duck = "{text}"\n{ROUTES}').settings.lame_duck == seconds
    assert read(ROUTES).settings.lame_duck == 0


@pytest.mark.parametrize("text", ["none", "", "0", "5", "-1s", "soon", 0, 5, 1.5, True, ["5s"]])
def test_bad_lame_duck(text: Any) -> None:
    """Nobody waits for ever to leave; the message shows what may be written, and no more."""
    problems = told(file_of({"server": {"lame_duck": text}, "routes": {"m": "openai/x"}}))
    assert list(problems) == ["server.lame_duck"]
    assert '"0s"' in problems["server.lame_duck"]
    assert '"none"' not in problems["server.lame_duck"]


@pytest.mark.parametrize(("text", "seconds"), [("620s", 620), ("1h10m", 4200), ("500ms", 0.5)])
def test_keepalive_idle(text: str, seconds: float) -> None:
    """How long a connection may be idle is a duration; unless set, longer than balancers keep theirs."""
    assert read(f'[server]\nkeepalive_idle = "{text}"\n{ROUTES}').settings.keepalive_idle == seconds
    assert read(ROUTES).settings.keepalive_idle == 620


@pytest.mark.parametrize("text", ["none", "0s", "-1s", "620", "", 620, True, ["1s"]])
def test_bad_keepalive_idle(text: Any) -> None:
    """It is some time, and not for ever."""
    problems = told(file_of({"server": {"keepalive_idle": text}, "routes": {"m": "openai/x"}}))
    assert list(problems) == ["server.keepalive_idle"]
    assert '"620s"' in problems["server.keepalive_idle"]
    assert '"none"' not in problems["server.keepalive_idle"]


def test_lame_duck_is_the_process_s() -> None:
    """It stays in [server] where there are surfaces, and is no key of theirs."""
    surface = '[[surface]]\nname = "a"\n'
    assert read(f'[server]\nlame_duck = "5s"\n{surface}{ROUTES}').settings.lame_duck == 5
    assert list(told(f'{surface}lame_duck = "5s"\n{ROUTES}')) == ["surface[0].lame_duck"]


# Several credentials


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


# Keys


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"a": "same-key", "b": "same-key"}, "keys.b"),
        ({"a": "mobile", "b": {"hash": HASH}}, "keys.b"),
        ({"a": {"hash": HASH}, "b": {"hash": HASH}}, "keys.b"),
        ({"a": {"hash": HASH, "secret": "x"}}, "keys.a"),
        ({"a": {}}, "keys.a"),
        ({"a": {"models": ["x"]}}, "keys.a"),
        ({"a": {"hash": ""}}, "keys.a.hash"),
        ({"a": {"hash": HASH[7:]}}, "keys.a.hash"),
        ({"a": {"hash": HASH.upper()}}, "keys.a.hash"),
        ({"a": {"hash": HASH[:-1]}}, "keys.a.hash"),
        ({"a": {"hash": HASH + "0"}}, "keys.a.hash"),
        ({"a": {"hash": HASH + "\n"}}, "keys.a.hash"),
        ({"a": {"hash": HASH.replace("sha256", "sha512")}}, "keys.a.hash"),
        ({"a": {"hash": HASH[:-1] + "g"}}, "keys.a.hash"),
        ({"a": {"secret": "x", "expires": "2027-06-30"}}, "keys.a.expires"),
        ({"a": {"secret": "x", "expires": 2027}}, "keys.a.expires"),
        ({"a": {"secret": "x", "models": "gpt"}}, "keys.a.models"),
    ],
)
def test_bad_keys(keys: dict[str, Any], path: str) -> None:
    """A key is one text or one hash, differs from all others, and its rights are well formed."""
    assert list(told(file_of({"keys": keys, "routes": {"m": "openai/x"}}))) == [path]


def test_same_key_twice_names_the_other() -> None:
    """Two names for one key are told with both names, and without the key."""
    problems = told('[keys]\na = "${K}"\nb = "${K}"\n' + ROUTES, {"K": "tk-0123456789abcdef"})
    assert problems == {"keys.b": 'is the same key as "a"'}


def test_expires_is_shown_how() -> None:
    """Who writes the last day as text is told that it is a date without quotes."""
    toml = f'[keys.k]\nsecret = "x"\nexpires = "2027-06-30"\n{ROUTES}'
    assert "date" in told(toml)["keys.k.expires"]


# Surfaces


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


# Files that are no files of ours


def test_not_utf8() -> None:
    """A file that is not UTF-8 is refused, saying at which byte."""
    (message,) = told(b'[routes]\nm = "\xff"').values()
    assert "UTF-8" in message
    assert "14" in message


@pytest.mark.parametrize(
    ("toml", "place"),
    [
        ("[routes\n", "line 1, column 8"),
        ('[routes]\nm = "openai/x\n', "line 2"),
        ("[routes]\nm = openai/x\n", "line 2, column 5"),
        ('[routes]\nm = "a"\nm = "b"\n', "line 3"),
        ("[routes]\n[routes]\n", "line 2"),
        ("{}", "line 1, column 1"),
        ('{"routes": {}}', "line 1, column 1"),
        ("routes:\n  m: openai/x\n", "line 1, column 7"),
        ("[keys]\nk = sk-CANARY-0123456789\n", "line 2, column 5"),
        ('[keys]\nk = "sk-CANARY-0123456789\n', "line 2"),
        ("a = 2027-13-45\n", "line 1"),
        ("a = 0x\n", "line 1"),
        ("a = '\x01'\n", "line 1"),
    ],
)
def test_not_toml(toml: str, place: str) -> None:
    """A file that is not TOML is refused with line and column, quoting nothing that may be a secret."""
    (message,) = told(toml).values()
    assert "is not TOML" in message
    assert place in message
    assert "CANARY" not in message


@pytest.mark.parametrize(
    "toml",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{a = " * 5000 + "1" + "}" * 5000,
        ".".join(["a"] * 3000) + " = 1",
        "[" + ".".join(["a"] * 3000) + "]",
        "a = " + "9" * 5000,
        "a = -" + "9" * 5000,
        "a = 0x" + "f" * 50_000,
        "a = 1e999999",
        "a = nan",
    ],
    ids=[
        "arrays",
        "inline tables",
        "dotted key",
        "header",
        "integer",
        "negative",
        "hex",
        "inf",
        "nan",
    ],
)
def test_monstrous_toml(toml: str) -> None:
    """What breaks a parser is refused like everything else that is wrong."""
    assert told(f"{toml}\n")


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _forbidden(path: Path) -> None:
    path.write_text(ROUTES)
    path.chmod(0)


def _missing(path: Path) -> None:
    assert not path.exists()


UNREADABLE: list[tuple[Callable[[Path], None], str]] = [
    (_missing, "no such file"),
    (_directory, "is a directory"),
    (_loop, "symbolic links"),
]
if os.geteuid() != 0:  # nothing is forbidden to root
    UNREADABLE.append((_forbidden, "permission denied"))


@pytest.mark.parametrize(("make", "why"), UNREADABLE)
def test_unreadable(make: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    """A file that cannot be read is named, with the reason."""
    file = tmp_path / "routes.toml"
    make(file)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}: cannot be read: ")
    assert why in str(caught.value)


# No message shows a value

CANARIES = [
    "CANARY",
    "CANARY value",
    "CANARY\nvalue",
    "CANARY\x00",
    "CANARY/x",
    "opneai/CANARY",
    "openai/CANARY*",
    "*CANARY*",
    "CANARY.example:80",
    "CANARY:80",
    "unix:CANARY\x00",
    "http://CANARY.example/v1?x",
    "http://CANARY.example/v1/chat/completions",
    "http://user:CANARY@h/v1",
    "http://h/CANARY /v1",
    "https://h:CANARY/v1",
    "sha256:CANARY",
    "/CANARY path",
    "30CANARY",
    "keysCANARY",
    "${CANARY}",
    "${CANARY",
]


@pytest.mark.parametrize("path", [p for p, v in nodes(FULL) if isinstance(v, str)], ids=dotted)
def test_no_message_shows_a_value(path: Node, tmp_path: Path) -> None:
    """Whatever is wrong with what a variable or a secret file holds, no message quotes a piece of it."""
    file = tmp_path / "value"
    file.write_text(CANARIES[0])
    cases = [("${VALUE}", {"VALUE": value}) for value in CANARIES]
    for text, env in [*cases, (f"${{file:{file}}}", {})]:
        try:
            read(file_of(changed(FULL, path, text)), env)
        except ConfigError as error:
            shown = "".join(traceback.format_exception(error)) + repr(error.problems)
            assert "canary" not in shown.lower(), (env, shown)


# Whatever the file

NAMES = sorted(
    {key for path, _ in nodes(FULL) for key in path if isinstance(key, str)}
    | {"fallback", "api_key", "x", "x/*", "sandbox", "\x00", "a b", "ü"}
)
SCALARS = (
    st.none().map(lambda _: "x")
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.dates()
    | st.datetimes()
    | st.sampled_from([v for _, v in nodes(FULL) if isinstance(v, str)])
    | st.sampled_from(
        ["*", "a*", "x", "${HOME}", "${X:-y}", "${file:/nowhere}", "${", "$$", "none"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
KEYS = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
PLACES = [path for path, _ in nodes(FULL)]
QUICK = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@cache
def _parents() -> list[Node]:
    return [(), *(path for path, value in nodes(FULL) if isinstance(value, dict))]


def loads_or_refuses(toml: str | bytes) -> None:
    try:
        read(toml, {"HOME": "CANARY-of-the-environment"})
    except ConfigError as error:
        assert error.problems
        assert "CANARY" not in str(error)


@QUICK
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree(tree: dict[str, Any]) -> None:
    """Whatever tables a file holds, it loads or is refused, quickly, and nothing else happens."""
    loads_or_refuses(file_of(tree))


@QUICK
@given(st.lists(st.tuples(st.sampled_from(PLACES), TREES), min_size=1, max_size=4))
def test_any_replaced_value(changes: list[tuple[Node, Any]]) -> None:
    """A valid file of which any values are replaced by anything loads or is refused."""
    tree: Any = FULL
    for path, value in changes:
        try:
            tree = changed(tree, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # the place is gone with an earlier change
    loads_or_refuses(file_of(tree))


@QUICK
@given(st.data())
def test_any_added_key(data: st.DataObject) -> None:
    """A valid file to which any key is added anywhere loads or is refused."""
    parent = data.draw(st.sampled_from(_parents()))
    tree = changed(FULL, (*parent, data.draw(KEYS)), data.draw(TREES))
    loads_or_refuses(file_of(tree))


@pytest.mark.parametrize("path", PLACES, ids=dotted)
def test_any_left_out_key(path: Node) -> None:
    """A valid file of which any key is left out loads or is refused."""
    tree: Any = deepcopy(FULL)
    inner = tree
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    loads_or_refuses(file_of(tree))


@QUICK
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes(content: bytes) -> None:
    """Whatever bytes a file holds, it is refused or loads."""
    loads_or_refuses(content)


@QUICK
@given(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3))
def test_any_damage(at: int, put: bytes, cut: int) -> None:
    """A valid file with any few bytes changed is refused or loads."""
    content = file_of(FULL).encode()
    at %= len(content)
    loads_or_refuses(content[:at] + put + content[at + cut :])


# What works, and may not be what is meant


def notes(toml: str) -> dict[str, str]:
    """Return what `check` notes of *toml*, by key path."""
    return {dotted(note.path): note.message for note in read(toml).notes}


@pytest.mark.parametrize(
    ("routes", "path", "words"),
    [
        ('"*" = { upstream = "openai" }', 'routes."*"', '"openai/*" = { upstream = "openai" }'),
        ('"open*" = { upstream = "openai" }', 'routes."open*"', "as it is"),
        ('"groq/*" = { upstream = "groq" }', 'routes."groq/*"', '"groq/compound" = "groq/groq/compound"'),
        ('"groq/compound" = { upstream = "groq" }', 'routes."groq/compound"', "groq/groq/compound"),
        ('"*" = { upstream = "openrouter" }', None, ""),
        ('"openrouter/*" = { upstream = "openrouter" }', 'routes."openrouter/*"', "openrouter/auto"),
        ('"openrouter/*" = { upstream = "openrouter", model = "*" }', None, ""),
        ('"openai/*" = { upstream = "openai" }', None, ""),
        ('"gpt-*" = { upstream = "openai" }', None, ""),
        ('"openai" = { upstream = "openai" }', None, ""),
        ('"x" = "groq/compound"', None, ""),
    ],
)  # fmt: skip
def test_own_names(routes: str, path: str | None, words: str) -> None:
    """It is noted where an upstream's own name is not cut off as before, and where it should not be."""
    found = notes(f'[server]\nauth = "none"\n[routes]\n{routes}')
    assert [*found] == ([] if path is None else [path])
    assert words in "".join(found.values())


OURSELVES = [
    ("127.0.0.1:8080", "http://127.0.0.1:8080/v1", True),
    ("127.0.0.1:8080", "http://localhost:8080/v1", True),
    ("127.0.0.1:8080", "https://LOCALHOST:8080/v1", True),
    ("localhost:8080", "http://[::1]:8080/v1", True),
    ("0.0.0.0:8080", "http://127.0.0.1:8080/v1", True),
    ("[::]:8080", "http://localhost:8080/v1", True),
    ("10.0.0.5:80", "http://10.0.0.5/v1", True),
    ("10.0.0.5:9", "https://llm.example.com/v1", True),
    ("127.0.0.1:8080", "http://127.0.0.2:8080/v1", False),
    ("127.0.0.1:8080", "http://127.0.0.1:8081/v1", False),
    ("127.0.0.1:8080", "http://10.0.0.5:8080/v1", False),
    ("127.0.0.1:0", "http://127.0.0.1:8080/v1", False),
    ("unix:/run/x", "http://127.0.0.1:8080/v1", False),
    ("10.0.0.5:9", "https://api.example.com/v1", False),
]


@pytest.mark.parametrize(("listen", "url", "found"), OURSELVES)
@pytest.mark.parametrize("how", ["base_url", "paths", "inline", "unrouted"])
def test_an_upstream_that_is_ourselves(listen: str, url: str, found: bool, how: str) -> None:
    """An upstream at an address of this proxy itself is noted, as nothing else would see the loop."""
    other = "http://other.example/v1"
    base, paths = (other, f'paths = {{ "messages" = "{url}" }}') if how == "paths" else (url, "")
    route = f'm = {{ base_url = "{url}" }}' if how == "inline" else 'm = "up/m"'
    if how == "unrouted":
        route = f'm = {{ base_url = "{other}" }}\n[unrouted]\n"files" = "up"'
    toml = f"""
[server]
listen = "{listen}"
open = true
hosts = ["LLM.example.com"]
[upstreams.up]
base_url = "{base}"
{paths}
[routes]
{route}
"""
    told = notes(toml)
    assert any("max_inflight" in message for message in told.values()) == found


# What people write

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
