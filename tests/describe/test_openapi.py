"""What a surface says of itself: that it is true, that it is valid, and who is told what."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from proxy import endpoints
from proxy.config import load
from proxy.describe.directory import FIXED
from proxy.dialects import CHAT, ENDPOINTS, REALTIME
from tests.harness.client import Answer, Client, Pair, call, request
from tests.harness.proxy import Proxy, serving

TEAM, NARROW, OLD = "sk-team-0123456789", "sk-narrow-0123456789", "sk-old-0123456789"
NAMES = ["default", "sandbox/echo", "sandbox/slow", "claude-old", "gemini-pro"]

ROUTES = """
[routes]
"default" = "sandbox/echo"
"sandbox/*" = { upstream = "sandbox", list = ["sandbox/echo", "sandbox/slow"] }
"claude-old" = "anthropic/claude-sonnet-4-5"
"gemini-pro" = { base_url = "http://127.0.0.1:1/v1", speaks = ["gemini"] }
[unrouted]
"files" = "sandbox"
"""
KEYS = f"""
[keys]
team = "{TEAM}"
narrow = {{ secret = "{NARROW}", models = ["claude-*", "absent"] }}
old = {{ secret = "{OLD}", expires = 2020-01-01 }}
"""
DOCUMENTS = ("/openapi.json", "/docs/openapi.json", "/docs/llm.json", "/llms.txt")
FACES = {
    "open": ROUTES,
    "keys": ROUTES + KEYS,
    "narrow": '[server]\nbase_paths = ["/api/v1"]\naccept = ["apikey"]\nmodels = "hidden"\n'
    'endpoints = ["chat/completions"]\n' + ROUTES + KEYS,
    "passthrough": '[server]\nauth = "passthrough"\n[upstreams.anthropic]\npassthrough = true\n'
    + ROUTES,
    "bare": '[server]\nbase_paths = [""]\nendpoints = ["messages", "gemini"]\n' + ROUTES,
    "hooked": ROUTES + '[hooks.alerts]\nroute = "default"\nsecret = "sk-hook-0123456789"\n',
    "some": '[server]\nroutes = ["claude-*"]\n' + ROUTES,
}


@pytest.fixture
async def keyed() -> AsyncIterator[Proxy]:
    """A proxy with keys."""
    async with serving(FACES["keys"]) as running:
        yield running


def bearer(key: str) -> list[Pair]:
    return [(b"Authorization", b"Bearer " + key.encode())]


async def get(proxy: Proxy, path: str, key: str = "", **kwargs: Any) -> Answer:
    """Ask for *path*, with a *key* in any header that might be asked for."""
    headers = [*bearer(key), (b"apikey", key.encode())] if key else []
    return await call(proxy.port, b"", path, headers, **({"method": "GET"} | kwargs))


async def began(proxy: Proxy, path: str) -> Answer:
    """Ask for *path*, whose answer has no end, and return its head."""
    async with await Client.connect(proxy.port) as client:
        await client.send(request(b"", path, [*bearer(TEAM), (b"apikey", TEAM.encode())], "GET"))
        return await client.answer(head_only=True)


def endless(operation: dict[str, Any]) -> bool:
    """Return whether *operation* answers nothing but a stream."""
    return [*operation["responses"].get("200", {}).get("content", ())] == ["text/event-stream"]


async def document(proxy: Proxy, key: str = "", path: str = "/openapi.json") -> dict[str, Any]:
    found: dict[str, Any] = (await get(proxy, path, key)).json()
    return found


def examples(document: dict[str, Any]) -> set[str]:
    """Return every model that an example of *document* asks for."""
    operations = [op for methods in document["paths"].values() for op in methods.values()]
    bodies = [
        content.get("example", {})
        for op in operations
        for content in op.get("requestBody", {}).get("content", {}).values()
    ]
    parameters = [each for op in operations for each in op.get("parameters", ())]
    return {body["model"] for body in bodies if "model" in body} | {
        each["example"] for each in parameters if each["name"] == "model"
    }


# That it is true


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("key", ["", TEAM])
async def test_valid(face: str, key: str) -> None:
    """The document is OpenAPI 3.1 on every surface, for whoever asks."""
    async with serving(FACES[face]) as proxy:
        found = await document(proxy, key)
    validate(found)
    assert found["openapi"].startswith("3.1.")
    names = [op["operationId"] for ops in found["paths"].values() for op in ops.values()]
    assert len(names) == len({*names})


@pytest.mark.parametrize("face", FACES)
async def test_endpoints(face: str) -> None:
    """What is described is there, by that method; of what carries a model, nothing else is."""
    async with serving(FACES[face]) as proxy:
        found = await document(proxy, TEAM)
        for path, operations in found["paths"].items():
            for method, operation in operations.items():
                at = path.replace("{model}", "x").replace("{id}", "x").replace("{name}", "alerts")
                if endless(operation):
                    assert (await began(proxy, at)).status == 200
                    continue
                got = await get(proxy, at, TEAM, method=method.upper())
                if got.status >= 400 and "default" not in operation["responses"]:
                    assert got.code != "not_found", path
                assert got.status != 405, path
                assert str(got.status) in operation["responses"], (path, got.status)
        base = found["x-trunkline"]["base_urls"]["openai"].removeprefix(".")
        for suffix, dialect in ENDPOINTS.items():
            method = "GET" if dialect is REALTIME else "POST"
            got = await get(proxy, f"{base}/{suffix}", TEAM, method=method)
            missing = got.status == 404 and got.raw.find(b'"not_found') > 0
            assert (f"{base}/{suffix}" in found["paths"]) is not missing, suffix


@pytest.mark.parametrize("face", ["open", "narrow", "bare"])
async def test_own_endpoints(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a path of its own is described, and nothing else is."""
    table, served = endpoints.table, set[str]()

    def noting(*args: Any, fixed: Any, **others: Any) -> Any:
        served.update(fixed)
        return table(*args, fixed=fixed, **others)

    monkeypatch.setattr(endpoints, "table", noting)
    async with serving(FACES[face]) as proxy:
        described = await document(proxy, TEAM)
    base = described["x-trunkline"]["base_urls"]["openai"].removeprefix(".") or "/v1"
    own = {row.path.replace("{base}", base) for row in FIXED} & {*described["paths"]}
    systems = {path for path in served if path.endswith(("/ping", "/time"))}
    elsewhere = {path for path in systems if not path.startswith(f"{base}/")}
    assert served - elsewhere - {"/docs/", "/docs/api/"} == own


async def test_new_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that is new in the table is described at once, as it is served."""
    monkeypatch.setitem(ENDPOINTS, "acme/new", CHAT)
    async with serving(FACES["open"]) as proxy:
        operation = (await document(proxy))["paths"]["/v1/acme/new"]["post"]
        summary = (await get(proxy, "/docs/llm.json")).json()
        got = await call(proxy.port, b'{"model": "default", "messages": []}', "/v1/acme/new")
    assert (operation["x-dialect"], operation["summary"]) == ("chat", "acme/new")
    assert "/v1/acme/new" in [each["path"] for each in summary["endpoints"]]
    assert got.code != "not_found"


async def test_new_route() -> None:
    """A route that is added while we run is shown from then on, and one that is gone no more."""
    async with serving(FACES["open"]) as proxy:
        proxy.write(FACES["open"].replace("claude-old", "claude-new"))
        assert proxy.running is not None
        await proxy.running.apply(load(proxy.file, {}, listen="127.0.0.1:0"))
        for path in DOCUMENTS:
            got = await get(proxy, path)
            assert b"claude-new" in got.body, path
            assert b"claude-old" not in got.body, path


async def test_relative() -> None:
    """Addresses are relative to where the document stands, so that it holds below another's path."""
    async with serving(FACES["keys"]) as proxy:
        one = await document(proxy, TEAM)
        other = await document(proxy, TEAM, "/docs/openapi.json")
    assert one.pop("servers") == [{"url": "."}]
    assert other.pop("servers") == [{"url": ".."}]
    assert one["x-trunkline"].pop("base_urls")["openai"] == "./v1"
    assert other["x-trunkline"].pop("base_urls") == {
        "openai": "../v1",
        "anthropic": "..",
        "gemini": "..",
    }
    assert one == other


@pytest.mark.parametrize(
    ("face", "schemes"),
    [
        ("open", set()),
        ("keys", {"bearer", "x-api-key", "api-key", "apikey", "x-goog-api-key", "key"}),
        ("narrow", {"apikey"}),
    ],
)
async def test_security(face: str, schemes: set[str]) -> None:
    """The forms of the key are those the surface takes."""
    async with serving(FACES[face]) as proxy:
        found = await document(proxy)
    assert {*found["components"]["securitySchemes"]} == schemes
    chat = next(ops["post"] for path, ops in found["paths"].items() if path.endswith("completions"))
    assert {name for form in chat["security"] for name in form} == schemes - {"key"}
    assert found["paths"]["/health"]["get"]["security"] == []


async def test_error_shapes(keyed: Proxy) -> None:
    """Our own errors stand there as each kind of SDK gets them."""
    found = await document(keyed)
    for path, method, shape in (
        ("/v1/chat/completions", "post", {"error"}),
        ("/v1/messages", "post", {"type", "error", "request_id"}),
        ("/v1beta/models/{model}:generateContent", "post", {"error"}),
    ):
        ref = found["paths"][path][method]["responses"]["401"]["$ref"]
        refusal = found["components"]["responses"][ref.rpartition("/")[2]]
        example = refusal["content"]["application/json"]["examples"]["invalid_api_key"]["value"]
        got = await call(keyed.port, b"{}", path.replace("{model}", "m"))
        assert {*example} == {*got.json()} == shape
        assert {*example["error"]} == {*got.json()["error"]}
        assert "WWW-Authenticate" in refusal["headers"]


# Who is told what


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_stranger(keyed: Proxy, path: str) -> None:
    """Who shows no key, a wrong one or one that has expired, is shown the rest, and no model."""
    for key in ("", "sk-wrong", OLD):
        got = await get(keyed, path, key)
        assert got.status == 200
        assert not [name for name in NAMES if name != "default" and name.encode() in got.body]
        assert got.value(b"cache-control") == b"no-store"
        assert got.value(b"x-content-type-options") == b"nosniff"


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_narrow_key(keyed: Proxy, path: str) -> None:
    """A key is shown the models that it may ask for, and no other name."""
    got = await get(keyed, path, NARROW)
    assert b"claude-old" in got.body
    assert b"sandbox" not in got.body
    assert b"absent" not in got.body
    got = await get(keyed, path, TEAM)
    assert all(name.encode() in got.body for name in NAMES)


async def test_examples(keyed: Proxy) -> None:
    """An example asks for a model that this caller may ask for, and that speaks the dialect."""
    assert examples(await document(keyed)) == {"default"}
    assert examples(await document(keyed, NARROW)) == {"claude-old"}
    found = await document(keyed, TEAM)
    assert examples(found) == {"default", "gemini-pro"}
    native = found["paths"]["/v1beta/models/{model}:generateContent"]["post"]["parameters"]
    assert native[0]["example"] == "gemini-pro"
    speaks = {each["id"]: each["speaks"] for each in found["x-trunkline"]["models"]}
    assert [*speaks] == NAMES
    assert speaks["gemini-pro"] == ["gemini"]
    assert "messages" in speaks["claude-old"]


async def test_switch() -> None:
    """A header that chooses where a model leads is a parameter, with its values, of who may ask."""
    switched = """
[routes."acme/smart"]
header = "tuningId"
[routes."acme/smart".to]
"mix-fast" = "sandbox/echo"
"mix-deep" = "claude-old"
"""
    async with serving(ROUTES.replace("[unrouted]", switched + "[unrouted]") + KEYS) as proxy:
        path = "/v1/chat/completions"
        told = (await document(proxy, TEAM))["paths"][path]["post"]["parameters"]
        assert [(each["name"], each["in"], each["required"]) for each in told] == [
            ("tuningId", "header", False)
        ]
        assert told[0]["schema"]["examples"] == ["mix-fast", "mix-deep"]
        assert (await document(proxy, NARROW))["paths"][path]["post"]["parameters"] == []


async def test_hook() -> None:
    """Hooks are described by their form, none by its name; they want a secret of their own."""
    async with serving(FACES["hooked"]) as proxy:
        found = await document(proxy)
        assert b"alerts" not in (await get(proxy, "/openapi.json")).body
        assert found["paths"]["/hooks/{name}"]["post"]["security"] == [{"hook": []}]
        assert found["components"]["securitySchemes"]["hook"]["scheme"] == "bearer"
    async with serving(FACES["open"]) as proxy:
        assert "/hooks/{name}" not in (await document(proxy))["paths"]


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_odd_names(path: str) -> None:
    """A name is shown as it is, whatever it holds, in a document that no browser takes for a page;
    what a request says of its host is shown nowhere.
    """
    name = "</script><img src=x onerror=alert(1)>`"
    async with serving(f"[routes]\n'{name}' = 'sandbox/echo'\n{KEYS}") as proxy:
        got = await get(proxy, path, TEAM, host=b"evil.example")
    assert name.encode() in got.body
    assert (got.value(b"content-type") or b"").split(b";")[0] in (
        b"application/json",
        b"text/plain",
    )
    assert got.value(b"x-content-type-options") == b"nosniff"
    assert b"evil" not in got.body


async def test_hidden() -> None:
    """Where models are hidden they stay so, for those with a key, too."""
    async with serving(FACES["narrow"]) as proxy:
        for path in DOCUMENTS:
            got = await get(proxy, path, TEAM)
            assert not [name for name in NAMES if name != "default" and name.encode() in got.body]
        assert not [path for path in (await document(proxy, TEAM))["paths"] if "models" in path]


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_head(keyed: Proxy, path: str) -> None:
    """A HEAD is answered as a GET is, without the body."""
    got = await get(keyed, path)
    head = await get(keyed, path, method="HEAD")
    assert head.status == 200
    assert head.value(b"content-length") == b"%d" % len(got.body)


async def test_record(keyed: Proxy) -> None:
    """A look at the documentation leaves a record under the visitor's key, as any request does."""
    await get(keyed, "/openapi.json", TEAM)
    record = await keyed.record()
    assert (record["key"], record["path"], record["outcome"]) == ("team", "/openapi.json", "ok")


# For programs


async def test_summary(keyed: Proxy) -> None:
    """`/docs/llm.json` says in short what the document says."""
    found = (await get(keyed, "/docs/llm.json", TEAM)).json()
    assert found["base_url"] == "../v1"
    assert found["auth"]["forms"][:2] == ["Authorization: Bearer KEY", "x-api-key: KEY"]
    assert found["caller"] == {"known": True, "key": "team", "message": None}
    paths = {(each["method"].lower(), each["path"]) for each in found["endpoints"]}
    described = (await document(keyed, TEAM))["paths"]
    assert paths == {(method, path) for path, methods in described.items() for method in methods}
    codes = {each["code"]: each["status"] for each in found["errors"]}
    assert codes["model_not_found"] == 404
    assert codes["upstream_incomplete"] is None
    stranger = (await get(keyed, "/docs/llm.json", "sk-wrong")).json()
    assert stranger["caller"]["known"] is False
    assert "not valid" in stranger["caller"]["message"]


async def test_index(keyed: Proxy) -> None:
    """`/llms.txt` has the form that llmstxt.org gives it, and its links lead somewhere."""
    got = await get(keyed, "/llms.txt", TEAM)
    assert got.value(b"content-type") == b"text/plain; charset=utf-8"
    lines = [line for line in got.body.decode().splitlines() if line]
    assert lines[0] == "# Trunkline"
    assert lines[1].startswith("> ")
    sections = [line for line in lines if line.startswith("## ")]
    assert sections == ["## Documentation", "## Optional"]
    after = lines[lines.index(sections[0]) :]
    links = [re.fullmatch(r"- \[[^]]+\]\(([^)]+)\): .+", line) for line in after if line[0] == "-"]
    assert len(links) == len(after) - len(sections)
    for link in links:
        assert link is not None
        assert (await get(keyed, "/" + link[1])).status == 200


# What is said of answers


class Tried:
    """Requests made of a *document* by schemathesis, and their answers held against it."""

    def __init__(self, document: dict[str, Any], url: str, key: str) -> None:
        self.document = document
        self.url = url
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.statuses: list[int] = []

    def all(self, examples: int) -> None:
        """Try every operation, with at most *examples* requests that fit it and as many that do not."""
        import schemathesis  # here: it takes seconds to load
        from schemathesis import GenerationMode
        from schemathesis.core.result import Ok

        schema = schemathesis.openapi.from_dict(self.document)
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            if endless(operation.definition.raw):
                continue
            takes = operation.definition.raw.keys() & {"parameters", "requestBody"}
            modes = [GenerationMode.POSITIVE]
            if takes and operation.definition.raw.get("parameters") != []:
                modes.append(GenerationMode.NEGATIVE)
            for mode in modes:
                self._try(operation.as_strategy(generation_mode=mode), examples if takes else 1)

    def _try(self, cases: Any, examples: int) -> None:
        from hypothesis import HealthCheck, Phase, given, settings
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi import checks

        @settings(
            max_examples=examples,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=[*HealthCheck],
            database=None,
        )
        @given(case=cases)
        def one(case: Any) -> None:
            answer = case.call(base_url=self.url, headers=self.headers)
            case.validate_response(
                answer,
                checks=[
                    not_a_server_error,
                    checks.status_code_conformance,
                    checks.content_type_conformance,
                    checks.response_headers_conformance,
                    checks.response_schema_conformance,
                ],
            )
            # Where anything may be relayed, `default` would excuse whatever comes.
            declared = self.document["paths"][case.path][case.method.lower()]["responses"]
            assert str(answer.status_code) in declared, (case.method, case.path, answer.text)
            self.statuses.append(answer.status_code)

        one()


@pytest.mark.parametrize("key", ["", TEAM], ids=["stranger", "team"])
@pytest.mark.filterwarnings("default")
async def test_schemathesis(key: str) -> None:
    """Whatever is asked by the document is answered as it says, and nothing brings us down."""
    routes = '[routes]\n"*" = { upstream = "sandbox", model = "echo" }\n'
    more = f'[unrouted]\n"files" = "sandbox"\n[keys]\nt = "{TEAM}"\n'
    hook = f'[hooks.name]\nroute = "sandbox/echo"\nsecret = "{TEAM}"\n'
    async with serving(routes + more + hook) as proxy:
        tried = Tried(await document(proxy, key), proxy.url, key)
        await asyncio.to_thread(tried.all, 8 if key else 1)
        for record in proxy.records():
            assert record["error"] != "internal_error", record
    assert {200, 401} <= {*tried.statuses} if not key else {200, 400, 404} <= {*tried.statuses}
    assert len(tried.statuses) > (300 if key else 40)
