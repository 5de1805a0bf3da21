"""Keys that nobody knows, and those that were meant."""

import pytest

from tests.config.files import ROUTES, told

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
