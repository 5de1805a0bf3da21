"""The upstream behind the four systems: it answers as each system's page shows."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecoder
from pathlib import Path

import orjson

from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    event,
    head,
    stream,
)

OWN = "vendors-own-name-2026-11"
"""What the vendor calls the model that it answers with: no client has ever asked for it."""


def page(face: str) -> str:
    """Return what the page of *face* says."""
    return (Path(__file__).parent / "pages" / f"{face}.txt").read_text("utf-8")


def shown(face: str) -> bytes:
    """Return the plain answer that the page of *face* shows."""
    text = page(face)
    begin = re.search(r'^\{\n *"id": "chatcmpl', text, re.MULTILINE)
    assert begin is not None
    _, end = JSONDecoder().raw_decode(text, begin.start())
    return text[begin.start() : end].encode()


def shown_events(face: str) -> list[bytes]:
    """Return the events that the page of *face* shows, without the last one."""
    return [
        line.encode() + b"\n\n" for line in re.findall(r"^data: \{.*$", page(face), re.MULTILINE)
    ]


def own(body: bytes) -> bytes:
    """Return *body* with the model's name as its vendor has it."""
    return re.sub(rb'("model": ?)"[^"]*"', rb'\1"%b"' % OWN.encode(), body)


PLAIN = {
    "aihummer": shown("aihummer"),
    "gateway": shown("gateway"),
    "humiris": shown("humiris"),
    "aihubspot": orjson.dumps(
        {
            "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
            "object": "chat.completion",
            "created": 1741569952,
            "model": "gpt-4o-2024-08-06",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello!", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29},
            "service_tier": "default",
        }
    ),
}
"""What is answered on each system; its page shows it, but for AIHubSpot's, whose answers are OpenAI's."""


def _full(words: list[str]) -> list[bytes]:
    """Write a stream as OpenAI does: each chunk with all that a chunk may have."""
    same: dict[str, object] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": OWN,
    }
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    parts: list[dict[str, object]] = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
    ]
    parts.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"})
    return [event(orjson.dumps({**same, "choices": [part]})) for part in parts]


STORY = ["Once", " upon", " a", " time."]
EVENTS = {
    "aihummer": shown_events("aihummer"),
    "gateway": shown_events("gateway"),
    "humiris": _full(["This is", " a test."]),
    "aihubspot": _full(STORY),
}


class Model(Upstream):
    """A vendor that streams if asked to, in the manner of the system that is its *face* now."""

    def __init__(self) -> None:
        super().__init__()
        self.face = ""
        self.special: Step | None = None
        self.seen = threading.Event()
        self.left = threading.Event()
        self.will(self._answer)

    @property
    def origin(self) -> str:
        return f"http://{self.authority}"

    def stands_behind(self, face: str) -> None:
        """Begin anew, behind *face*."""
        self.face, self.special = face, None
        self.requests.clear()
        self.seen.clear()
        self.left.clear()

    async def _answer(self, conn: Conn, request: Received) -> None:
        step = self.special
        if step is None:
            body = orjson.loads(request.body or b"{}")
            if request.target.endswith("/embeddings"):
                data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
                usage = {"prompt_tokens": 1, "total_tokens": 1}
                told = {"object": "list", "data": data, "model": OWN, "usage": usage}
                step = answer(body=orjson.dumps(told))
            elif body.get("stream"):
                step = stream(*EVENTS[self.face], DONE)
            else:
                step = answer(body=own(PLAIN[self.face]))
        await step(conn, request)

    async def one_by_one(self, conn: Conn, request: Received) -> None:
        """Send each event only when the one before has been *seen*; note where the client has *left*."""
        await conn.send(head(200, [SSE, CHUNKED]))
        for one in [*EVENTS[self.face], DONE]:
            await conn.send(chunk(one))
            if not await asyncio.to_thread(self.seen.wait, 5):
                raise TimeoutError("the event was not seen")
            self.seen.clear()
        await conn.send(b"0\r\n\r\n")

    async def until_left(self, conn: Conn, request: Received) -> None:
        """Send the first events, then nothing, until the proxy leaves."""
        await conn.send(head(200, [SSE, CHUNKED]))
        for one in EVENTS[self.face][:2]:
            await conn.send(chunk(one))
        await conn.left(10)
        conn.keep = False
        self.left.set()


def refuses(status: int, code: str) -> Step:
    """Answer with an error as OpenAI writes it."""
    told = {"message": "No.", "type": "invalid_request_error", "param": None, "code": code}
    return answer(status, orjson.dumps({"error": told}), [JSON])


@contextmanager
def in_a_thread(make: Callable[[], Model] = Model) -> Iterator[Model]:
    """Run a model on a loop of its own, so that blocking clients may block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    model = make()
    try:
        asyncio.run_coroutine_threadsafe(model.__aenter__(), loop).result(10)
        yield model
        leave = model.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(leave, loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
