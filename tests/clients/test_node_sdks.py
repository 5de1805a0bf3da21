"""The OpenAI and Anthropic SDKs for Node through the proxy: the scripts in `node/` call, these judge."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.clients.team import CHAT_EVENT, ECHO, KEY, MESSAGE_EVENT, SAID, settled
from tests.harness.proxy import Proxy
from tests.harness.upstream import Conn, Received, Step, Upstream, answer, stream

NODE = shutil.which("node")
SCRIPTS = Path(__file__).parent / "node"
MISSING = (
    "node is not installed"
    if NODE is None
    else "the Node SDKs are not installed: npm ci --prefix tests/clients/node"
    if not (SCRIPTS / "node_modules/ai").is_dir()
    else ""
)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

Said = dict[str, dict[str, Any]]
"""What a script printed: by case, a `value` or an `error`."""


def command(script: str, *cases: str) -> list[str]:
    return [NODE or "node", str(SCRIPTS / script), *cases]


def environment(proxy: Proxy, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "BASE_URL": proxy.url, "KEY": KEY, **more}


def run(script: str, proxy: Proxy) -> Said:
    """Run all cases of *script*."""
    done = subprocess.run(
        command(script), env=environment(proxy), capture_output=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    said: Said = orjson.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def oai(team: Proxy) -> Said:
    """What OpenAI's SDK made of each case."""
    return run("openai.mjs", team)


@pytest.fixture(scope="module")
def claude(team: Proxy) -> Said:
    """What Anthropic's SDK made of each case."""
    return run("anthropic.mjs", team)


def value(said: Said, case: str) -> Any:
    assert "value" in said[case], said[case]
    return said[case]["value"]


def error(said: Said, case: str) -> dict[str, Any]:
    assert "error" in said[case], said[case]
    found: dict[str, Any] = said[case]["error"]
    return found


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("chat", SAID),
        ("stream", ["", "You ", "said: ", "one ", "two ", "three", ""]),
        ("usage", {"choices": [], "tokens": 5}),
        ("helper", [SAID, "stop"]),
        ("tools", ["tool_calls", {"name": "weather", "arguments": "{}"}]),
        ("embeddings", [8, 8]),
        ("completions", "You said: one two"),
        ("responses", "You said: one two"),
        ("responses_stream", "response.completed"),
        ("moderations", False),
        ("model", ECHO),
    ],
)
def test_openai(oai: Said, case: str, expected: Any) -> None:
    """Every endpoint answers OpenAI's SDK for Node, plain and streamed."""
    assert value(oai, case) == expected


@pytest.mark.parametrize(
    ("case", "name", "status", "code"),
    [
        ("wrong_key", "AuthenticationError", 401, "invalid_api_key"),
        ("unknown_model", "NotFoundError", 404, "model_not_found"),
        ("limited", "RateLimitError", 429, "rate_limit_exceeded"),
        ("failed", "InternalServerError", 500, None),
        ("html", "InternalServerError", 502, None),
        ("refused", "InternalServerError", 502, "upstream_auth"),
        ("impatient", "InternalServerError", 504, "upstream_timeout"),
        ("hang", "APIConnectionTimeoutError", None, None),
        ("incomplete", "APIError", None, "upstream_incomplete"),
        ("stalled", "APIError", None, "upstream_idle_timeout"),
        ("error_event", "APIError", None, None),
    ],
)
def test_openai_error(
    oai: Said, case: str, name: str, status: int | None, code: str | None
) -> None:
    """Errors, the vendor's and ours, before and within a stream, come in the SDK's own classes."""
    found = error(oai, case)
    assert (found["class"], found["status"], found["code"]) == (name, status, code)


@pytest.mark.parametrize("case", ["cut", "cut_plain", "responses_incomplete"])
def test_openai_cut(oai: Said, case: str) -> None:
    """An answer that breaks off throws, and what had come before is all there is."""
    came = error(oai, case)["came"]
    expected: dict[str, Any] = {"cut": ["", "You ", "said: "], "cut_plain": None}
    if case in expected:
        assert came == expected[case]
    else:
        assert came[-1] == "error"
        assert "response.completed" not in came


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("message", SAID),
        ("auth_token", SAID),
        ("x_api_key", SAID),
        ("stream", [["You ", "said: ", "one ", "two ", "three"], "message_stop"]),
        ("helper", [SAID, "end_turn"]),
        ("count_tokens", 3),
        ("model", ECHO),
    ],
)
def test_anthropic(claude: Said, case: str, expected: Any) -> None:
    """Every endpoint answers Anthropic's SDK for Node, whichever header holds the key."""
    assert value(claude, case) == expected


@pytest.mark.parametrize(
    ("case", "name", "status", "kind"),
    [
        ("wrong_key", "AuthenticationError", 401, "authentication_error"),
        ("unknown_model", "NotFoundError", 404, "not_found_error"),
        ("limited", "RateLimitError", 429, "rate_limit_error"),
        ("overloaded", "OverloadedError", 529, "overloaded_error"),
        ("incomplete", "APIError", None, "api_error"),
        ("incomplete_helper", "APIError", None, "api_error"),
        ("stalled", "APIError", None, "api_error"),
    ],
)
def test_anthropic_error(claude: Said, case: str, name: str, status: int | None, kind: str) -> None:
    """Errors, the vendor's and ours, come in the classes of Anthropic's SDK and in its body."""
    found = error(claude, case)
    assert (found["class"], found["status"], found["type"]) == (name, status, kind)
    assert found["body"]["type"] == "error"


def test_anthropic_cut(claude: Said) -> None:
    """A message's stream cut in the middle of an event throws, and has not ended."""
    assert error(claude, "cut")["came"] == ["message_start", "content_block_start"]


def test_models(oai: Said, claude: Said) -> None:
    """Both SDKs page through the same list of models."""
    assert value(oai, "models") == value(claude, "models")
    assert {"default", ECHO} <= set(value(oai, "models"))


async def test_left_early(team: Proxy, oai: Said, claude: Said) -> None:
    """Breaking out of the loop over a stream's events ends the exchange."""
    for said in (oai, claude):
        record = await settled(team, value(said, "leave"))
        assert (record["outcome"], record["model"]) == ("client_gone", "sandbox/slow")


def after_leaving(upstream: Upstream, body: bytes) -> Step:
    """Answer *body*, once the first connection is gone: not the end of the process has closed it."""

    async def step(conn: Conn, request: Received) -> None:
        async with asyncio.timeout(5):
            await upstream.connections[0].gone.wait()
        await answer(body=body)(conn, request)

    return step


@pytest.mark.parametrize(
    ("script", "next_case", "event", "body"),
    [
        ("openai.mjs", "chat", CHAT_EVENT, b'{"choices":[{"message":{"content":"hi"}}]}'),
        ("anthropic.mjs", "message", MESSAGE_EVENT, b'{"content":[{"type":"text","text":"hi"}]}'),
    ],
)
async def test_leaving_closes_upstream(
    proxy: Proxy, upstream: Upstream, script: str, next_case: str, event: bytes, body: bytes
) -> None:
    """A stream that its client leaves is closed at the upstream while the client lives on."""
    upstream.will(stream(event, end="hang"), after_leaving(upstream, body))
    node = await asyncio.create_subprocess_exec(
        *command(script, "leave", next_case),
        env=environment(proxy, MODEL="m"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, _ = await node.communicate()
    assert value(orjson.loads(out), next_case) == "hi"
    await proxy.record(2)
    outcomes = {record["request_id"]: record["outcome"] for record in proxy.records()}
    assert outcomes.pop(value(orjson.loads(out), "leave")) == "client_gone"
    assert list(outcomes.values()) == ["ok"]
