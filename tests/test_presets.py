"""Presets: what `presets.toml` knows of vendors, held against URLs that are written out here."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy import dialects
from proxy.cli import main
from proxy.config import Snapshot
from proxy.config.presets import Preset, load
from proxy.credentials import FORMS
from proxy.headers import Headers
from proxy.outbound import address, head, sign
from proxy.routes import Upstream
from tests.config.files import file_of, read, told
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream as Scripted

ROOT = Path(__file__).parents[1]
PRESETS = load()
RAW: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "proxy/config/presets.toml").read_text())
SPOKEN = [(name, dialect) for name, preset in PRESETS.items() for dialect in preset.speaks or ()]

SUFFIXES = {
    "chat": "chat/completions",
    "responses": "responses",
    "messages": "messages",
    "count_tokens": "messages/count_tokens",
    "completions": "completions",
    "fim": "fim/completions",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "moderations": "moderations",
    "images": "images/edits",
    "audio": "audio/transcriptions",
    "videos": "videos",
    "realtime": "realtime",
    "gemini": "models/gemini-2.5-pro:generateContent",
    "models": "models",
    "files": "files/file-1/content",
}
"""A path of each dialect, as clients call it below the base path."""

VARS = {
    "AZURE_RESOURCE_NAME": "acme-eu",
    "VERTEXAI_LOCATION": "europe-west1",
    "VERTEXAI_PROJECT": "acme-42",
    "AWS_REGION": "us-east-1",
    "DATABRICKS_HOST": "adb-1.2.azuredatabricks.net",
    "CLOUDFLARE_ACCOUNT_ID": "0123abcd",
}

BASES = {
    "openai": "https://api.openai.com/v1",
    "azure": "https://acme-eu.openai.azure.com/openai/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "vertex": "https://europe-west1-aiplatform.googleapis.com/v1/projects/acme-42/locations/europe-west1/endpoints/openapi",
    "mistral": "https://api.mistral.ai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "together": "https://api.together.ai/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "deepseek": "https://api.deepseek.com",
    "dashscope": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "dashscope-intl": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "dashscope-us": "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    "dashscope-hk": "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "moonshot-cn": "https://api.moonshot.cn/v1",
    "zai": "https://api.z.ai/api/paas/v4",
    "zhipu": "https://open.bigmodel.cn/api/paas/v4",
    "minimax": "https://api.minimax.io/v1",
    "minimax-cn": "https://api.minimaxi.com/v1",
    "xai": "https://api.x.ai/v1",
    "cohere": "https://api.cohere.ai/compatibility/v1",
    "perplexity": "https://api.perplexity.ai/v1",
    "cerebras": "https://api.cerebras.ai/v1",
    "sambanova": "https://api.sambanova.ai/v1",
    "nvidia": "https://integrate.api.nvidia.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "bedrock": "https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1",
    "databricks": "https://adb-1.2.azuredatabricks.net/ai-gateway/mlflow/v1",
    "github": "https://models.github.ai/inference",
    "cloudflare": "https://api.cloudflare.com/client/v4/accounts/0123abcd/ai/v1",
    "huggingface": "https://router.huggingface.co/v1",
    "vllm": "http://localhost:8000/v1",
    "sglang": "http://localhost:30000/v1",
    "ollama": "http://localhost:11434/v1",
    "ollama-cloud": "https://ollama.com/v1",
    "lmstudio": "http://localhost:1234/v1",
    "llamacpp": "http://localhost:8080/v1",
    "baseten": "https://inference.baseten.co/v1",
    "chutes": "https://llm.chutes.ai/v1",
    "deepinfra": "https://api.deepinfra.com/v1/openai",
    "friendli": "https://api.friendli.ai/serverless/v1",
    "helicone": "https://ai-gateway.helicone.ai/v1",
    "humiris": "https://moai-service-app.humiris.ai/api/v1",
    "hyperbolic": "https://api.hyperbolic.xyz/v1",
    "meta-llama": "https://api.llama.com/compat/v1",
    "modelscope": "https://api-inference.modelscope.cn/v1",
    "nebius": "https://api.tokenfactory.nebius.com/v1",
    "novita": "https://api.novita.ai/openai/v1",
    "ovhcloud": "https://oai.endpoints.kepler.ai.cloud.ovh.net/v1",
    "poe": "https://api.poe.com/v1",
    "scaleway": "https://api.scaleway.ai/v1",
    "siliconflow": "https://api.siliconflow.com/v1",
    "siliconflow-cn": "https://api.siliconflow.cn/v1",
    "stepfun": "https://api.stepfun.com/v1",
    "tencent": "https://tokenhub-intl.tencentcloudmaas.com/v1",
    "upstage": "https://api.upstage.ai/v1/solar",
    "vercel": "https://ai-gateway.vercel.sh/v1",
    "volcengine": "https://ark.cn-beijing.volces.com/api/v3",
    "wandb": "https://api.inference.wandb.ai/v1",
    "xiaomi": "https://api.xiaomimimo.com/v1",
    "sandbox": "sandbox://sandbox/v1",
}
"""What precedes the path of all dialects that have no base of their own."""

ELSEWHERE = {
    ("azure", "messages"): "https://acme-eu.services.ai.azure.com/anthropic/v1",
    ("gemini", "gemini"): "https://generativelanguage.googleapis.com/v1beta",
    ("vertex", "gemini"): "https://europe-west1-aiplatform.googleapis.com/v1/projects/acme-42/locations/europe-west1/publishers/google",
    ("deepseek", "messages"): "https://api.deepseek.com/anthropic/v1",
    ("deepseek", "completions"): "https://api.deepseek.com/beta",
    ("dashscope", "messages"): "https://dashscope.aliyuncs.com/apps/anthropic/v1",
    ("dashscope-intl", "messages"): "https://dashscope-intl.aliyuncs.com/apps/anthropic/v1",
    ("dashscope-us", "messages"): "https://dashscope-us.aliyuncs.com/apps/anthropic/v1",
    ("dashscope-hk", "messages"): "https://cn-hongkong.dashscope.aliyuncs.com/apps/anthropic/v1",
    ("moonshot", "messages"): "https://api.moonshot.ai/anthropic/v1",
    ("moonshot-cn", "messages"): "https://api.moonshot.cn/anthropic/v1",
    ("zai", "messages"): "https://api.z.ai/api/anthropic/v1",
    ("zhipu", "messages"): "https://open.bigmodel.cn/api/anthropic/v1",
    ("minimax", "messages"): "https://api.minimax.io/anthropic/v1",
    ("minimax-cn", "messages"): "https://api.minimaxi.com/anthropic/v1",
    ("cohere", "rerank"): "https://api.cohere.com/v2",
    ("cohere", "models"): "https://api.cohere.com/v1",
    ("bedrock", "messages"): "https://bedrock-mantle.us-east-1.api.aws/anthropic/v1",
    ("bedrock", "models"): "https://bedrock-mantle.us-east-1.api.aws/v1",
    ("databricks", "messages"): "https://adb-1.2.azuredatabricks.net/ai-gateway/anthropic/v1",
    ("databricks", "responses"): "https://adb-1.2.azuredatabricks.net/ai-gateway/openai/v1",
    ("github", "models"): "https://models.github.ai/catalog",
    ("deepinfra", "messages"): "https://api.deepinfra.com/anthropic/v1",
    ("deepinfra", "responses"): "https://api.deepinfra.com/v1",
    ("novita", "messages"): "https://api.novita.ai/anthropic/v1",
    ("volcengine", "messages"): "https://ark.cn-beijing.volces.com/api/compatible/v1",
    ("xiaomi", "messages"): "https://api.xiaomimimo.com/anthropic/v1",
}  # fmt: skip
"""The dialects that have one."""

WHOLE = {
    ("openai", "chat"): "https://api.openai.com/v1/chat/completions",
    ("openai", "realtime"): "https://api.openai.com/v1/realtime",
    ("anthropic", "chat"): "https://api.anthropic.com/v1/chat/completions",
    ("anthropic", "messages"): "https://api.anthropic.com/v1/messages",
    ("anthropic", "count_tokens"): "https://api.anthropic.com/v1/messages/count_tokens",
    ("gemini", "gemini"): "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent",
    ("groq", "responses"): "https://api.groq.com/openai/v1/responses",
    ("mistral", "fim"): "https://api.mistral.ai/v1/fim/completions",
    ("fireworks", "messages"): "https://api.fireworks.ai/inference/v1/messages",
    ("deepseek", "chat"): "https://api.deepseek.com/chat/completions",
    ("deepseek", "messages"): "https://api.deepseek.com/anthropic/v1/messages",
    ("zai", "chat"): "https://api.z.ai/api/paas/v4/chat/completions",
    ("perplexity", "responses"): "https://api.perplexity.ai/v1/responses",
    ("openrouter", "messages"): "https://openrouter.ai/api/v1/messages",
    ("cohere", "rerank"): "https://api.cohere.com/v2/rerank",
    ("github", "models"): "https://models.github.ai/catalog/models",
    ("ollama", "messages"): "http://localhost:11434/v1/messages",
}  # fmt: skip
"""Some of them as the vendors' pages print them, to show that the pieces above are joined rightly."""

X_API_KEY = {
    ("anthropic", "messages"), ("anthropic", "count_tokens"), ("anthropic", "models"),
    ("anthropic", "files"), ("deepseek", "messages"), ("zhipu", "messages"),
    ("sambanova", "messages"), ("bedrock", "messages"), ("modelscope", "messages"),
    ("poe", "messages"), ("tencent", "messages"),
}  # fmt: skip
OWN_FORM = {"azure": b"api-key", "humiris": b"apikey"}
VERSIONED = {
    ("anthropic", "messages"), ("anthropic", "count_tokens"), ("anthropic", "models"),
    ("anthropic", "files"), ("azure", "messages"), ("bedrock", "messages"),
}  # fmt: skip
LOCAL = {"vllm", "sglang", "ollama", "lmstudio", "llamacpp"}


def named(name: str, env: Mapping[str, str] | None = None, table: str = "") -> Upstream:
    """Return the upstream that a file means by *name*, of which *table* may say more."""
    toml = f'[routes]\nm = "{name}/x"\n'
    if table:
        toml += f"[upstreams.{name}]\n{table}\n"
    return upstream_of(read(toml, env))


def upstream_of(snapshot: Snapshot) -> Upstream:
    route = snapshot.routes.match("m")
    assert route is not None
    return route.first.upstream


def ready(name: str) -> Upstream:
    """Return the upstream *name* with all variables set that it may want."""
    return named(name, {**VARS, **dict.fromkeys(PRESETS[name].env, "sk-0123456789")})


def sent(upstream: Upstream, name: str) -> tuple[str, dict[bytes, bytes]]:
    """Return where a request in the dialect *name* goes, out of what is written on the wire, and the
    headers that we add to it.
    """
    dialect = dialects.DIALECTS[name]
    to = address(upstream, dialect, SUFFIXES[name], "")
    credential = upstream.credentials[0] if upstream.credentials else None
    signature = sign(upstream, credential, dialect, stream=False, passthrough=False)
    text = head("POST", to, signature, Headers())
    first, *rest = text.removesuffix(b"\r\n").split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in rest)
    assert len(headers) == len(rest)
    target = first.split(b" ")[1].decode()
    scheme, host = to.base.origin.scheme, headers.pop(b"Host").decode()
    if scheme == "sandbox":  # where there is no address, there is no port
        host = host.partition(":")[0]
    return f"{scheme}://{host}{target}", {key.lower(): value for key, value in headers.items()}


# Where it goes


@pytest.mark.parametrize(("name", "dialect"), SPOKEN)
def test_url(name: str, dialect: str) -> None:
    """What a vendor speaks is sent to exactly the URL that the vendor documents."""
    if dialect == "count_tokens":
        base = ELSEWHERE.get((name, "messages"), BASES[name])
    else:
        base = ELSEWHERE.get((name, dialect), BASES[name])
    url, _ = sent(ready(name), dialect)
    assert url == f"{base}/{SUFFIXES[dialect]}"


@pytest.mark.parametrize(("name", "dialect"), WHOLE)
def test_whole_url(name: str, dialect: str) -> None:
    """The URLs that everybody knows come out as everybody knows them."""
    assert dialect in (PRESETS[name].speaks or ())
    assert sent(ready(name), dialect)[0] == WHOLE[name, dialect]


def test_no_url_is_overlooked() -> None:
    """Every preset, and every base of its own that a dialect has, is written out above."""
    assert set(PRESETS) == set(BASES)
    own = {
        (name, "gemini" if prefix == "gemini" else dialects.family(prefix).name)
        for name, preset in PRESETS.items()
        for prefix in preset.paths
    }
    assert own == set(ELSEWHERE)
    assert own <= set(SPOKEN)


# What is presented there


@pytest.mark.parametrize(("name", "dialect"), SPOKEN)
def test_credential(name: str, dialect: str) -> None:
    """Each dialect gets the credential in the form that it wants, once, and the headers it needs."""
    _, headers = sent(ready(name), dialect)
    expected = {b"authorization": b"Bearer sk-0123456789"}
    if (name, dialect) in X_API_KEY:
        expected = {b"x-api-key": b"sk-0123456789"}
    elif (name, dialect) == ("gemini", "gemini"):
        expected = {b"x-goog-api-key": b"sk-0123456789"}
    elif name in OWN_FORM:
        expected = {OWN_FORM[name]: b"sk-0123456789"}
    elif name in ("llamacpp", "sandbox"):
        expected = {}
    if (name, dialect) in VERSIONED:
        expected[b"anthropic-version"] = b"2023-06-01"
    assert headers == expected


def test_anthropic() -> None:
    """Anthropic gets a Bearer token on chat, and on messages its own header and a version, unless the
    client says another one.
    """
    upstream = named("anthropic", {"ANTHROPIC_API_KEY": "sk-1"})
    assert sent(upstream, "chat")[1] == {b"authorization": b"Bearer sk-1"}
    assert sent(upstream, "messages")[1] == {
        b"x-api-key": b"sk-1",
        b"anthropic-version": b"2023-06-01",
    }
    to = address(upstream, dialects.MESSAGES, "messages", "beta=true")
    client = [(b"Anthropic-Version", b"2026-10-21"), (b"anthropic-beta", b"a,b")]
    signature = sign(
        upstream, upstream.credentials[0], dialects.MESSAGES, stream=False, passthrough=False
    )
    text = head("POST", to, signature, Headers(client))
    assert text == (
        b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: api.anthropic.com\r\n"
        b"Anthropic-Version: 2026-10-21\r\nanthropic-beta: a,b\r\nx-api-key: sk-1\r\n"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_token_count_like_messages(name: str) -> None:
    """Who speaks both gets for a count of tokens what it gets for the message itself."""
    preset = PRESETS[name]
    if "count_tokens" in (preset.speaks or ()):
        for by_dialect in (preset.forms, preset.defaults):
            assert by_dialect.get("count_tokens") == by_dialect.get("messages")


# The data itself


def parts_of(preset: Preset) -> set[str]:
    """Return the `{parts}` of the URLs of *preset*."""
    urls = [preset.base_url or "", *preset.paths.values()]
    return {part for url in urls for part in re.findall(r"\{(.*?)\}", url)}


VARIABLE = re.compile(r"[A-Z][A-Z0-9_]+")


@pytest.mark.parametrize("name", PRESETS)
def test_fields(name: str) -> None:
    """Every preset says who it is, where it is, what it speaks and when that was looked up."""
    preset = PRESETS[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert preset.title
    assert all(VARIABLE.fullmatch(v) for v in (*preset.env, *preset.vars.values()))
    assert len(set(preset.env)) == len(preset.env)
    assert parts_of(preset) == set(preset.vars)
    speaks = preset.speaks
    assert speaks
    assert len(set(speaks)) == len(speaks)
    assert set(speaks) <= set(dialects.DIALECTS)
    assert {preset.form, *preset.forms.values()} <= set(FORMS)
    assert {*preset.forms, *preset.defaults} <= set(speaks)
    assert preset.form not in preset.forms.values()
    assert preset.terminal in ("auto", "done", "none")
    assert preset.docs == "" or re.fullmatch(r"https://[a-z0-9.-]+/[^ |()]*", preset.docs)
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", preset.checked)
    for key, value in RAW[name].items():
        kind = type(getattr(Preset(base_url="", speaks=[]), key))
        assert type(value) is kind, key


@pytest.mark.parametrize("name", PRESETS)
def test_inferred(name: str) -> None:
    """What is said to be inferred is said: `speaks`, or `paths.messages` where that is a path."""
    for field in PRESETS[name].inferred:
        value: Any = RAW[name]
        for part in field.split("."):
            assert part in value, field
            value = value[part]
    assert len(set(PRESETS[name].inferred)) == len(PRESETS[name].inferred)
    assert not {"checked", "docs", "inferred", "title"} & set(PRESETS[name].inferred)


def test_local_servers() -> None:
    """What an answer costs nothing at is a server of one's own; it wants no credential, and takes one."""
    assert {name for name, preset in PRESETS.items() if not preset.billed} - {"sandbox"} == LOCAL
    assert {name for name, preset in PRESETS.items() if preset.optional} == LOCAL - {"llamacpp"}
    for name in LOCAL:
        assert PRESETS[name].base_url is not None
        assert BASES[name].startswith("http://localhost:")
        assert not named(name).billed


def test_order() -> None:
    """Nobody is in the list twice under two names: a base URL and its variables mean one vendor."""
    seen = [(preset.base_url, tuple(preset.env)) for preset in PRESETS.values()]
    assert len(set(seen)) == len(seen)


# Variables


@pytest.mark.parametrize("name", PRESETS)
def test_variables_in_order(name: str, tmp_path: Path) -> None:
    """The first variable that holds something is the credential; an empty one holds nothing."""
    env = PRESETS[name].env
    for index, variable in enumerate(env):
        rest = {other: f"sk-{other}" for other in env[index:]}
        earlier = dict.fromkeys(env[:index], "")
        upstream = named(name, {**VARS, **earlier, **rest})
        (credential,) = upstream.credentials
        assert credential.secret.reveal() == f"sk-{variable}"
        assert credential.secret.source == variable
        assert upstream.lacks(passthrough=False) is None
    file = tmp_path / "secret"
    file.write_text("sk-file\n")
    for variable in env[:1]:
        upstream = named(name, {**VARS, f"{variable}_FILE": str(file)})
        (credential,) = upstream.credentials
        assert credential.secret.reveal() == "sk-file"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("value", [None, ""])
def test_without_variables(name: str, value: str | None) -> None:
    """Without its variable, or with an empty one, a vendor is dormant, but for those that need none."""
    preset = PRESETS[name]
    env = VARS if value is None else {**VARS, **dict.fromkeys(preset.env, value)}
    upstream = named(name, env)
    assert upstream.credentials == ()
    expected = preset.env[0] if preset.env and not preset.optional else None
    assert upstream.lacks(passthrough=False) == expected
    assert upstream.lacks(passthrough=True) is None


@pytest.mark.parametrize(
    ("name", "variable"),
    [(name, variable) for name, preset in PRESETS.items() for variable in preset.vars.values()],
)
@pytest.mark.parametrize("value", [None, ""])
def test_without_a_part_of_its_url(name: str, variable: str, value: str | None) -> None:
    """Without the variable of a part of its URL, a vendor is dormant whoever brings the credential, and
    the place that stands for it is nobody's.
    """
    env = {**VARS, **dict.fromkeys(PRESETS[name].env, "sk-1"), variable: value or ""}
    if value is None:
        del env[variable]
    upstream = named(name, env)
    assert upstream.lacks(passthrough=False) == variable
    assert upstream.lacks(passthrough=True) == variable
    assert "{" not in sent(upstream, "chat")[0]
    assert "unset-" in sent(upstream, "chat")[0]


@pytest.mark.parametrize(
    ("path", "env", "variable"),
    [
        ("/v1/chat/completions", {"AZURE_API_KEY": "sk-1"}, "AZURE_RESOURCE_NAME"),
        ("/v1/messages", {"AZURE_RESOURCE_NAME": "acme"}, "AZURE_OPENAI_API_KEY"),
        ("/v1/files", {"AZURE_RESOURCE_NAME": "acme"}, "AZURE_OPENAI_API_KEY"),
        ("/v1/models?upstream=azure", {"AZURE_API_KEY": "sk-1"}, "AZURE_RESOURCE_NAME"),
    ],
)
async def test_dormant(path: str, env: dict[str, str], variable: str) -> None:
    """A call to a dormant vendor is refused with 503, naming the variable that is not set."""
    toml = '[routes]\nm = "azure/x"\n[unrouted]\nfiles = "azure"\n'
    async with serving(toml, env) as proxy:
        method = "GET" if path.startswith(("/v1/files", "/v1/models")) else "POST"
        got = await call(proxy.port, chat() if method == "POST" else b"", path, method=method)
        assert got.status == 503
        assert f"{variable} is not set".encode() in got.body
        assert b"sk-1" not in got.body
        assert (await proxy.record())["error"] == "not_configured"


# Parts of a URL


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("adb-1.2.azuredatabricks.net", "adb-1.2.azuredatabricks.net"),
        ("https://adb-1.2.azuredatabricks.net", "adb-1.2.azuredatabricks.net"),
        ("https://adb-1.2.azuredatabricks.net/", "adb-1.2.azuredatabricks.net"),
        ("http://adb-1.2.azuredatabricks.net//", "adb-1.2.azuredatabricks.net"),
        ("ADB.example", "adb.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("a_b", "a_b"),
        ("a", "a"),
    ],
)
@pytest.mark.parametrize("where", ["table", "variable"])
def test_host(value: str, host: str, where: str) -> None:
    """Of a host, the whole URL may be brought along: it is the host that counts."""
    env = {"DATABRICKS_TOKEN": "sk-1"}
    if where == "table":
        upstream = named("databricks", env, f'vars = {{ host = "{value}" }}')
    else:
        upstream = named("databricks", {**env, "DATABRICKS_HOST": value})
    assert upstream.lacks(passthrough=False) is None
    url, _ = sent(upstream, "chat")
    assert url.lower() == f"https://{host}/ai-gateway/mlflow/v1/chat/completions"


BAD_PARTS = [
    "CANARY.example/x", "CANARY.example/../x", "user@CANARY.example", "user:pw@CANARY", "..", ".",
    "CANARY..", ".CANARY", "-CANARY", "CANARY-", "CANARY.", "CANARY:443", "CANARY?x", "CANARY#x",
    "CANARY\\x", "CANARY\nx", "CANARY\r\nX: y", "CANARY\x00", "CANARY x", "CANARY\tx", "CANARY%2Fx",
    "CANARY{x}", "{host}", "https://", "https:// ", "https://https://CANARY", "ftp://CANARY",
    "//CANARY", "CÄNARY", "CANARY\udcff", "[::1]",
]  # fmt: skip
"""What would move the destination, or make a URL of another form."""


@pytest.mark.parametrize("value", BAD_PARTS)
@pytest.mark.parametrize(
    ("upstream", "part", "variable"),
    [
        ({"vars": {"host": "${PART}"}}, "databricks.host", "PART"),
        ({"vars": {"account_id": "${PART}"}}, "cloudflare.account_id", "PART"),
        ({"vars": {"zone": "${PART}"}, "base_url": "https://{zone}.h/v1"}, "mine.zone", "PART"),
        (None, "databricks.host", "DATABRICKS_HOST"),
        (None, "azure.resource", "AZURE_RESOURCE_NAME"),
        (None, "cloudflare.account_id", "CLOUDFLARE_ACCOUNT_ID"),
    ],
)
def test_bad_parts(value: str, upstream: dict[str, Any] | None, part: str, variable: str) -> None:
    """A part of a URL is letters, digits, dots and dashes: what could move the destination is refused,
    wherever it stands, and not quoted.
    """
    name, part = part.split(".")
    tree: dict[str, Any] = {"routes": {"m": f"{name}/x"}}
    if upstream is not None:
        tree["upstreams"] = {name: upstream}
    problems = told(file_of(tree), {variable: value})
    assert "CANARY" not in str(problems)
    assert f"upstreams.{name}.vars.{part}" in problems


@pytest.mark.parametrize("value", ["", "a/b", "a@b", "..", "a\nb", "a b"])
def test_bad_part_of_the_table(value: str) -> None:
    """A part that the file itself says wrongly is refused too, an empty one as well."""
    tree = {"upstreams": {"azure": {"vars": {"resource": value}}}, "routes": {"m": "azure/x"}}
    assert "upstreams.azure.vars.resource" in told(file_of(tree))


@pytest.mark.parametrize("value", ["a b", "a{b", "a\nb", "ä"])
def test_bad_part_is_told_once(value: str) -> None:
    """A part that is wrong is one problem, not one more for each URL that it would be a part of."""
    tree = {"upstreams": {"azure": {"vars": {"resource": value}}}, "routes": {"m": "azure/x"}}
    assert list(told(file_of(tree))) == ["upstreams.azure.vars.resource"]


def test_bad_part_names_its_variable() -> None:
    """A part that a variable says wrongly is told with the variable's name: the file says nothing of it."""
    problems = told(
        '[routes]\nm = "azure/x"', {"AZURE_RESOURCE_NAME": "https://a.openai.azure.com/x"}
    )
    assert "AZURE_RESOURCE_NAME" in problems["upstreams.azure.vars.resource"]


@pytest.mark.parametrize("value", ["CANARY" * 12, "CANARY..x"])
def test_part_that_makes_no_host(value: str) -> None:
    """A part of good letters that makes no host is refused all the same."""
    assert "CANARY" not in str(told('[routes]\nm = "azure/x"', {"AZURE_RESOURCE_NAME": value}))


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.vars])
def test_parts_of_the_table_first(name: str) -> None:
    """What the table says of a part goes before the preset's variable."""
    parts = PRESETS[name].vars
    table = "".join(f'vars.{part} = "mine-{index}"\n' for index, part in enumerate(parts))
    for env in ({}, VARS, dict.fromkeys(parts.values(), "bad/value")):
        upstream = named(name, {**env, PRESETS[name].env[0]: "sk-1"}, table)
        assert upstream.lacks(passthrough=False) is None
        assert "mine-0" in sent(upstream, "chat")[0]


def test_some_parts_of_the_table() -> None:
    """A table may say one part and leave the other to its variable."""
    env = {"VERTEXAI_PROJECT": "acme", "GOOGLE_OAUTH_ACCESS_TOKEN": "ya29"}
    upstream = named("vertex", env, 'vars = { location = "us-east5" }')
    assert sent(upstream, "chat")[0] == (
        "https://us-east5-aiplatform.googleapis.com/v1/projects/acme/locations/us-east5"
        "/endpoints/openapi/chat/completions"
    )


@pytest.mark.parametrize(
    ("table", "place", "word"),
    [
        ({"base_url": "https://{zone}.example/v1"}, "vars.zone", "is missing"),
        ({"base_url": "https://h/{a}/v1", "vars": {"b": "x"}}, "vars.b", "such a part"),
        ({"preset": "azure", "vars": {"resorce": "x"}}, "vars.resorce", '"resource"'),
        ({"preset": "openai", "vars": {"resource": "x"}}, "vars.resource", "such a part"),
        ({"base_url": "https://{a b}.example/v1", "vars": {"a b": "x"}}, "vars.a b", "such a part"),
        ({"base_url": "https://{}.example/v1"}, "base_url", "is not a URL"),
        ({"base_url": "https://{a.example/v1"}, "base_url", "is not a URL"),
        ({"base_url": "https://a}.example/v1"}, "base_url", "is not a URL"),
        (
            {"base_url": "https://h/v1", "paths": {"messages": "https://{z}/v1"}},
            "vars.z",
            "missing",
        ),
    ],
)
def test_parts_that_do_not_fit(table: dict[str, Any], place: str, word: str) -> None:
    """Every part of a URL has a value, and every value is a part of one."""
    tree = {"upstreams": {"mine": table}, "routes": {"m": "mine/x"}}
    problems = told(file_of(tree))
    (message,) = [told_ for at, told_ in problems.items() if at.replace('"', "").endswith(place)]
    assert word in message


def test_parts_of_ones_own() -> None:
    """A table's own URLs may have parts too, in `paths` as well."""
    tree = {
        "upstreams": {
            "mine": {
                "base_url": "https://{zone}.llm.example/{team}/v1",
                "paths": {"messages": "https://{zone}.msg.example/v1"},
                "vars": {"zone": "eu-1", "team": "${TEAM}"},
            }
        },
        "routes": {"m": "mine/x"},
    }
    upstream = upstream_of(read(file_of(tree), {"TEAM": "search"}))
    assert sent(upstream, "chat")[0] == "https://eu-1.llm.example/search/v1/chat/completions"
    assert sent(upstream, "messages")[0] == "https://eu-1.msg.example/v1/messages"


def test_url_out_of_a_variable_has_no_parts() -> None:
    """In a URL that a variable holds, braces are a mistake, and it is not quoted."""
    tree = {
        "upstreams": {"azure": {"base_url": "${URL}", "vars": {"resource": "x"}}},
        "routes": {"m": "azure/x"},
    }
    assert told(file_of(tree), {"URL": "https://{region}.CANARY.example/v1"})


# A preset under another name


def test_preset_under_another_name() -> None:
    """A table of any name may take a preset, so that there can be two of one vendor."""
    toml = """
[upstreams.east]
preset = "azure"
vars = { resource = "acme-us" }
[upstreams.west]
preset = "azure"
vars = { resource = "acme-eu" }
credential = "${WEST}"
[routes]
m = "east/gpt"
"west/*" = { upstream = "west" }
"""
    snapshot = read(toml, {"AZURE_API_KEY": "sk-east", "WEST": "sk-west"})
    east, west = snapshot.upstreams["east"], snapshot.upstreams["west"]
    assert sent(east, "chat") == (
        "https://acme-us.openai.azure.com/openai/v1/chat/completions",
        {b"api-key": b"sk-east"},
    )
    assert sent(west, "messages") == (
        "https://acme-eu.services.ai.azure.com/anthropic/v1/messages",
        {b"api-key": b"sk-west", b"anthropic-version": b"2023-06-01"},
    )
    assert "azure" not in snapshot.upstreams
    route = snapshot.routes.match("west/gpt-4o")
    assert route is not None
    assert route.model_sent(route.first, "west/gpt-4o") == "gpt-4o"


def test_preset_under_the_name_of_another() -> None:
    """Where a table says which preset it takes, its own name means none."""
    upstream = named("openai", {"GROQ_API_KEY": "gk", "OPENAI_API_KEY": "ok"}, 'preset = "groq"')
    assert sent(upstream, "chat") == (
        "https://api.groq.com/openai/v1/chat/completions",
        {b"authorization": b"Bearer gk"},
    )


@pytest.mark.parametrize(
    ("preset", "hint"),
    [
        ("azur", '; did you mean "azure"?'),
        ("Azure", '; did you mean "azure"?'),
        ("q0q0", ""),
        ("", ""),
    ],
)
def test_unknown_preset(preset: str, hint: str) -> None:
    """A preset that does not exist is refused, with the nearest one."""
    tree = {
        "upstreams": {"mine": {"preset": preset, "base_url": "http://h/v1"}},
        "routes": {"m": "mine/x"},
    }
    message = f'there is no preset "{preset}"{hint}'
    assert told(file_of(tree)) == {"upstreams.mine.preset": message}


def test_unknown_preset_of_a_variable() -> None:
    """A name that came from a variable is neither quoted nor guessed at."""
    tree = {"upstreams": {"mine": {"preset": "${P}", "base_url": "http://h"}}, "routes": {"m": "mine/x"}}  # fmt: skip
    message = 'there is no preset "${P}"'
    assert told(file_of(tree), {"P": "azur"}) == {"upstreams.mine.preset": message}


def test_route_with_a_preset() -> None:
    """A route with a `base_url` of its own may take the rest of a preset."""
    toml = """
[routes.m]
base_url = "https://proxy.example/anthropic/v1"
preset = "anthropic"
"""
    upstream = upstream_of(read(toml, {"ANTHROPIC_API_KEY": "sk-1"}))
    assert sent(upstream, "messages") == (
        "https://proxy.example/anthropic/v1/messages",
        {b"x-api-key": b"sk-1", b"anthropic-version": b"2023-06-01"},
    )
    assert not upstream.speaks(dialects.RESPONSES)
    assert upstream_of(read(toml)).missing == "ANTHROPIC_API_KEY"


def test_route_with_a_base_url_has_no_preset() -> None:
    """A route with a `base_url` takes no preset by its name: its credential would go elsewhere."""
    toml = '[routes]\nopenai = { base_url = "http://h/v1" }\n'
    route = read(toml, {"OPENAI_API_KEY": "sk-1"}).routes.match("openai")
    assert route is not None
    assert (route.first.upstream.credentials, route.first.upstream.spoken) == ((), None)


# A table over a preset

OVER = {"ANTHROPIC_API_KEY": "sk-1", "MINE": "sk-mine"}


@pytest.mark.parametrize(
    ("line", "dialect", "url", "headers"),
    [
        ('base_url = "http://h:9/x"', "messages", "http://h:9/x/messages", {}),
        ('paths = { messages = "http://h/y" }', "messages", "http://h/y/messages", {}),
        ('paths = { messages = "http://h/y" }', "chat", None, {}),
        ('env = "MINE"', "messages", None, {b"x-api-key": b"sk-mine"}),
        ('env = ["NONE", "MINE"]', "chat", None, {b"authorization": b"Bearer sk-mine"}),
        ("env = []", "messages", None, {b"x-api-key": None}),
        ('credential = "${MINE}"', "messages", None, {b"x-api-key": b"sk-mine"}),
        ('credential = { header = "x-m", secret = "${MINE}" }', "messages", None,
         {b"x-m": b"sk-mine", b"x-api-key": None}),
        ('form = "apikey"', "chat", None, {b"apikey": b"sk-1", b"authorization": None}),
        ('form = "apikey"', "messages", None, {b"x-api-key": b"sk-1"}),
        ('forms = { messages = "bearer" }', "messages", None,
         {b"authorization": b"Bearer sk-1", b"x-api-key": None}),
        ('forms = { messages = "bearer" }', "count_tokens", None, {b"x-api-key": b"sk-1"}),
        ('forms = { chat = "x-api-key" }', "chat", None,
         {b"x-api-key": b"sk-1", b"authorization": None}),
        ('defaults = { messages = { anthropic-version = "2030-01-01" } }', "messages", None,
         {b"anthropic-version": b"2030-01-01"}),
        ("defaults = { messages = {} }", "messages", None, {b"anthropic-version": None}),
        ('defaults = { chat = { x-a = "b" } }', "messages", None,
         {b"anthropic-version": b"2023-06-01"}),
        ('defaults = { chat = { x-a = "b" } }', "chat", None, {b"x-a": b"b"}),
        ('headers = { anthropic-version = "2031-01-01" }', "messages", None,
         {b"anthropic-version": b"2031-01-01"}),
    ],
)  # fmt: skip
def test_table_over_preset(
    line: str, dialect: str, url: str | None, headers: dict[bytes, bytes | None]
) -> None:
    """A table says one thing otherwise about a known vendor, and keeps the rest of what is known."""
    usual = sent(named("anthropic", OVER), dialect)
    expected = {**usual[1], **headers}
    assert sent(named("anthropic", OVER, line), dialect) == (
        url or usual[0],
        {name: value for name, value in expected.items() if value is not None},
    )


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('speaks = ["chat", "responses"]', "spoken", ("chat", "responses")),
        ('speaks = "all"', "spoken", None),
        ("billed = false", "billed", False),
        ('terminal = "none"', "terminal", "none"),
        ("optional = true", "missing", None),
        ("", "missing", "ANTHROPIC_API_KEY"),
        ('env = ["A", "B"]', "missing", "A"),
        ("env = []", "missing", None),
        ("passthrough = true", "passthrough", True),
    ],
)
def test_field_over_preset(line: str, field: str, value: object) -> None:
    """What a table says of a vendor goes before what the preset says."""
    assert getattr(named("anthropic", {}, line), field) == value


def test_billed_again() -> None:
    """A server of one's own may be one that costs something."""
    assert named("vllm", {}, "billed = true").billed
    assert named("vllm", {}, "optional = false").missing == "VLLM_API_KEY"


def test_speaks_of_the_table_is_no_guess() -> None:
    """Where the preset's list is inferred, the table's is not: what it does not say is refused."""
    assert named("groq").speaks(dialects.EMBEDDINGS)
    assert not named("groq", {}, 'speaks = ["chat"]').speaks(dialects.EMBEDDINGS)


def test_base_url_over_the_preset_needs_none_of_its_parts() -> None:
    """Who says the whole base URL need not say the parts of the one it stands for."""
    line = 'base_url = "https://acme.openai.azure.us/openai/v1"'
    upstream = named("azure", {"AZURE_API_KEY": "sk-1"}, line)
    assert upstream.lacks(passthrough=False) is None
    assert sent(upstream, "chat")[0] == "https://acme.openai.azure.us/openai/v1/chat/completions"


def test_credential_goes_where_the_table_says() -> None:
    """Who sends a vendor's traffic to a place of their own does not find a part of it, credential and
    all, at the vendor's.
    """
    line = 'base_url = "https://llm.corp.example/v1"\ncredential = "sk-corp"'
    upstream = named("moonshot", {}, line)
    assert sent(upstream, "chat")[0] == "https://llm.corp.example/v1/chat/completions"
    assert sent(upstream, "messages")[0] == "https://llm.corp.example/v1/messages"


# Over the wire


async def test_preset_over_the_wire(upstream: Scripted) -> None:
    """With nothing but the address changed, one route serves both dialects, each in its vendor's form;
    one that the vendor does not speak is refused with what it does.
    """
    toml = f"""
[upstreams.anthropic]
base_url = "{upstream.url}"
[routes]
m = "anthropic/claude-sonnet-4-5"
"""
    async with serving(toml, {"ANTHROPIC_API_KEY": "sk-1"}) as proxy:
        assert (await call(proxy.port, chat())).status == 200
        assert (await call(proxy.port, chat(), "/v1/messages?beta=true")).status == 200
        refused = await call(proxy.port, chat(), "/v1/responses")
    first, second = upstream.requests
    assert first.target == "/v1/chat/completions"
    assert first.value(b"authorization") == b"Bearer sk-1"
    assert second.target == "/v1/messages?beta=true"
    assert second.value(b"x-api-key") == b"sk-1"
    assert second.value(b"anthropic-version") == b"2023-06-01"
    assert second.value(b"authorization") is None
    assert refused.status == 404
    assert refused.code == "endpoint_not_supported"
    assert b"It speaks chat, messages" in refused.body


# The page


def test_page(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of the page is the generated one."""
    assert main(["presets", "--markdown"]) == 0
    table = capsys.readouterr().out
    page = (ROOT / "docs/vendors.md").read_text("utf-8")
    assert page.endswith("\n\n" + table), "docs/vendors.md is not up to date: scripts/docs"
    assert page.count("| vendor |") == 1


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The generated table has a row for each dialect of each vendor, with the URL that is sent."""
    assert main(["presets", "--markdown"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert all(len(row) == 6 for row in rows)
    assert len(rows) == len(SPOKEN)
    names: list[str] = []
    for row in rows:
        match = re.match(r"\| `([a-z0-9-]+)` \(", row[0])
        names.append(match[1] if match else names[-1])
    assert list(zip(names, (row[1] for row in rows), strict=True)) == SPOKEN
    for name, row in zip(names, rows, strict=True):
        url = row[2].strip("`").replace("{model}", "gemini-2.5-pro")
        for part, variable in PRESETS[name].vars.items():
            url = url.replace(f"{{{part}}}", VARS[variable])
        real, headers = sent(ready(name), row[1])
        stem = real.removesuffix(SUFFIXES[row[1]])
        assert url.startswith(stem)
        assert dialects.find(url.removeprefix(stem)) in (dialects.DIALECTS[row[1]], None)
        form = row[3].partition(":")[0].lower().encode()
        assert form in headers or (form == b"none" and not headers)
