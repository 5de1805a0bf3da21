"""What real decoders make of bytes that are ours: comments between events, and of a stream that is cut in the
middle of one, behind which there are none.

Google's SDK for Python is not among them: it takes no comment at all for one (docs/failure.md).
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import orjson
import pytest

from tests.clients.test_node_sdks import MISSING, command
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import CHUNKED, SSE, Conn, Received, Upstream, chunk, head

GO = shutil.which("go")
JAVA, MAVEN = shutil.which("java"), shutil.which("mvn")
HERE = Path(__file__).parent
WORDS = ["one", "two", "three"]
SILENCE = 0.3


def _chunk(text: str, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }


def _response(status: str) -> dict[str, Any]:
    return {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
    }


MESSAGE: dict[str, Any] = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def _delta(text: str) -> dict[str, Any]:
    return {
        "type": "response.output_text.delta",
        "item_id": "i",
        "output_index": 0,
        "content_index": 0,
        "delta": text,
        "logprobs": [],
        "sequence_number": 1,
    }


EVENTS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [*map(_chunk, WORDS), _chunk("", "stop")],
    "/v1/responses": [
        {"type": "response.created", "response": _response("in_progress"), "sequence_number": 0},
        _delta("one"),
        _delta("two"),
        {"type": "response.completed", "response": _response("completed"), "sequence_number": 2},
    ],
    "/v1/messages": [
        {"type": "message_start", "message": MESSAGE},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ],
    "/v1/models": [
        {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}]}
        for text in WORDS
    ],
}
TYPES = {path: [event.get("type") for event in events] for path, events in EVENTS.items()}


def written(path: str) -> list[bytes]:
    """Write the events of *path*, each with an id, as its vendor writes them."""
    found = []
    for event in next(events for begin, events in EVENTS.items() if path.startswith(begin)):
        text = orjson.dumps(event)
        if path.startswith("/v1/models"):
            found.append(b"data: " + text + b"\r\n\r\n")
        else:
            name = b"event: " + event["type"].encode() + b"\n" if "type" in event else b""
            found.append(b"id: 1\n" + name + b"data: " + text + b"\n\n")
    if path.startswith("/v1/chat"):
        found.append(b"data: [DONE]\n\n")
    return found


async def speak(conn: Conn, request: Received) -> None:
    """Fall silent between any two events; break off in the middle of the third where that is asked for."""
    events = written(request.target)
    half = b"half" in request.target.encode() + request.body
    await conn.send(head(200, [SSE, CHUNKED]))
    await asyncio.sleep(SILENCE)
    for number, event in enumerate(events):
        if half and number == 2:
            await conn.send(chunk(event[:40]))
            await asyncio.sleep(0.05)
            conn.keep = False
            return
        await conn.send(chunk(event))
        if number < 2:
            await asyncio.sleep(SILENCE)
    await conn.send(b"0\r\n\r\n")


@asynccontextmanager
async def commenting() -> AsyncIterator[Proxy]:
    """Serve a proxy that puts a comment into each silence."""
    async with Upstream() as upstream:
        upstream.will(speak)
        toml = f"""
[upstreams.a]
base_url = "{upstream.url}"
credential = "sk-a"
[routes]
"*" = {{ upstream = "a", model = "*", keepalive = "100ms" }}
"""
        async with serving(toml) as proxy:
            yield proxy


HELLO: list[Any] = [{"role": "user", "content": "x"}]


def chat(url: str, model: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for event in client.chat.completions.create(model=model, messages=HELLO, stream=True):
            yield event.choices[0].delta.content


def responses(url: str, model: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for event in client.responses.create(model=model, input="x", stream=True):
            yield event.type


def messages(url: str, model: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        for event in client.messages.create(model=model, max_tokens=9, messages=HELLO, stream=True):
            yield event.type


def langchain(url: str, model: str) -> Iterator[Any]:
    from langchain_openai import ChatOpenAI

    asked = ChatOpenAI(base_url=f"{url}/v1", api_key="x", model=model, max_retries=0)  # type: ignore[arg-type]
    for piece in asked.stream("x"):
        if piece.content:
            yield piece.content


Ask = Callable[[str, str], Iterator[Any]]
WHOLE: dict[str, tuple[Ask, list[Any]]] = {
    "openai, chat": (chat, [*WORDS, ""]),
    "openai, responses": (responses, TYPES["/v1/responses"]),
    "anthropic": (messages, TYPES["/v1/messages"]),
    "langchain": (langchain, WORDS),
}


@pytest.mark.parametrize("client", WHOLE)
async def test_comments(client: str) -> None:
    """No SDK takes a comment of ours for anything."""
    ask, expected = WHOLE[client]
    async with commenting() as proxy:
        assert await asyncio.to_thread(lambda: list(ask(proxy.url, "slow"))) == expected
        assert (await proxy.record())["outcome"] == "ok"


@pytest.mark.parametrize("client", WHOLE)
async def test_half_an_event(client: str) -> None:
    """Of a stream that is cut in the middle of an event each SDK says that the connection broke, and none
    that its JSON is bad.
    """
    ask, expected = WHOLE[client]
    came: list[Any] = []

    def take(url: str) -> None:
        came.extend(ask(url, "half"))

    async with commenting() as proxy:
        with pytest.raises(Exception) as caught:
            await asyncio.to_thread(take, proxy.url)
        assert (await proxy.record())["outcome"] == "upstream_cut"
    assert came == expected[:2]
    assert any("peer closed connection" in str(error) for error in causes(caught.value))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error*, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__


def _environment(proxy: Proxy, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "GOFLAGS") if name in os.environ}
    return {**kept, "BASE_URL": proxy.url, **more}


async def _run(*arguments: str, env: dict[str, str], cwd: Path | None = None) -> Any:
    def wait() -> bytes:
        done = subprocess.run(
            arguments, env=env, cwd=cwd, capture_output=True, timeout=50, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return orjson.loads(await asyncio.to_thread(wait))


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
async def test_node() -> None:
    """Nor does one for Node, whichever it is."""
    async with commenting() as proxy:
        said = await _run(*command("decoders.mjs"), env=_environment(proxy))
    assert {name: one.get("value") for name, one in said.items() if "half" not in name} == {
        "chat": [*WORDS, ""],
        "responses": TYPES["/v1/responses"],
        "messages": TYPES["/v1/messages"],
        "google": WORDS,
    }
    halves = {name: one["error"] for name, one in said.items() if "half" in name}
    assert {name: one["came"] for name, one in halves.items()} == {
        "chat_half": WORDS[:2],
        "responses_half": TYPES["/v1/responses"][:2],
        "messages_half": TYPES["/v1/messages"][:2],
        "google_half": WORDS[:2],
    }
    assert {one["message"] for one in halves.values()} == {"terminated"}, halves


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in `go/`, built."""
    if GO is None:
        pytest.skip("go is not installed")
    built = tmp_path_factory.mktemp("go") / "ask"
    done = subprocess.run(
        [GO, "build", "-o", built, "."],
        cwd=HERE / "go",
        capture_output=True,
        timeout=900,
        check=False,
    )
    if done.returncode and b"dial tcp" in done.stderr:
        pytest.skip("the modules for Go are not here, and cannot be fetched")
    assert done.returncode == 0, done.stderr.decode()
    return built


@pytest.mark.long
@pytest.mark.timeout(960)
@pytest.mark.parametrize("sdk", ["old", "new"])
async def test_go(program: Path, sdk: str) -> None:
    """Nor does one for Go, 1.12 or current: the older one took an empty line for an event without data."""
    async with commenting() as proxy:
        whole = await _run(str(program), env=_environment(proxy, SDK=sdk, MODEL="slow"))
        assert whole == {"came": [*WORDS, ""], "error": ""}
        half = await _run(str(program), env=_environment(proxy, SDK=sdk, MODEL="half"))
    assert half == {"came": WORDS[:2], "error": "unexpected EOF"}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of the program in `java/`, built."""
    if JAVA is None or MAVEN is None:
        pytest.skip("java or mvn is not installed")
    built = tmp_path_factory.mktemp("java")
    shutil.copytree(HERE / "java", built, dirs_exist_ok=True)
    file = built / "path"
    goals = ["compile", "dependency:build-classpath", f"-Dmdep.outputFile={file}"]
    done = subprocess.run(
        [MAVEN, "-q", "-B", *goals], cwd=built, capture_output=True, timeout=900, check=False
    )
    if b"Could not transfer artifact" in done.stdout:
        pytest.skip("the packages for Java are not here, and cannot be fetched")
    assert done.returncode == 0, done.stdout.decode()
    return f"{built / 'target/classes'}:{file.read_text()}"


@pytest.mark.long
@pytest.mark.timeout(960)
async def test_java(classes: str) -> None:
    """Nor does the one for Java."""
    assert JAVA is not None
    async with commenting() as proxy:
        ask = (JAVA, "-cp", classes, "Ask")
        whole = await _run(*ask, env=_environment(proxy, MODEL="slow"))
        assert whole == {"came": [*WORDS, ""], "error": ""}
        half = await _run(*ask, env=_environment(proxy, MODEL="half"))
    assert half["came"] == WORDS[:2]
    assert half["error"] == "EOFException"
