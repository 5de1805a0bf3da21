"""`POST /hooks/NAME`: a small JSON message in, the answer of a model out. No memory between two."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

import msgspec
import orjson

from proxy import hooks
from proxy.asking import Asking
from proxy.client.answers import Events, author, respond
from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.config import Snapshot
from proxy.dialects import CHAT, Ending
from proxy.errors import HOOK_FAILED, NOT_FOUND, STREAM_ERROR, STREAM_INCOMPLETE, ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.hooks import Hook
from proxy.sse import Tap, data_of
from proxy.surfaces import Surface

JSON = (b"Content-Type", b"application/json")
ANSWER_BYTES = 4 * 1024 * 1024


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_ANSWER = msgspec.json.Decoder(_Answer)


def endpoint(asking: Asking, surface: Surface, snapshot: Snapshot) -> Endpoint:
    """Return what answers at `/hooks/…` of *surface*."""
    open_here = surface.auth == "none" and all(address.loopback for address in surface.listen)

    async def handle(exchange: Exchange, request: Request) -> bool:
        hook = _find(snapshot.hooks, exchange.path.removeprefix("/hooks/"))
        hook.admit(exchange.headers.first.get(b"authorization"))
        admitted = asking.admit(exchange)
        async with admitted:
            message = hooks.read(await asking.read(admitted, request))
            exchange.headers = Headers([JSON])  # nothing of theirs goes on
            exchange.dialect, exchange.suffix, exchange.query = CHAT, "chat/completions", ""
            exchange.stream = message.stream
            pieces = asking.ask(admitted, hook.route, hook.model, hook.chat(message))
            async with aclosing(pieces):
                if message.stream:
                    return await _stream(exchange, request, hook, pieces)
                told = {"text": await _whole(pieces), "hook": hook.name, "id": exchange.id}
            return respond(exchange, request, orjson.dumps(told))

    def _find(known: Mapping[str, Hook], name: str) -> Hook:
        hook = known.get(name)
        if hook is None or (hook.secret is None and not open_here):
            raise ProxyError(NOT_FOUND, "There is no such hook.")
        return hook

    return Endpoint(("POST",), handle)


async def _stream(
    exchange: Exchange, request: Request, hook: Hook, pieces: AsyncGenerator[bytes, None]
) -> bool:
    """Answer with events of ours, from the *pieces* of a model's stream. Raises `ProxyError` before the first."""
    first = await anext(pieces, b"")  # what fails before it is told with a status
    async with author(exchange, request, hook.route.first.timeouts.write) as events:
        try:
            await _tell(events, first, pieces)
            await events.send(orjson.dumps({"id": exchange.id}).decode(), event="done")
        except ProxyError as error:
            await events.fail(error)
    return False


async def _whole(pieces: AsyncGenerator[bytes, None]) -> str:
    """Return what the model says in the *pieces* of a plain answer. Raises `ProxyError`."""
    answer = bytearray()
    async for piece in pieces:
        answer += piece
        _check_length(len(answer))
    return _text(bytes(answer))


async def _tell(events: Events, first: bytes, pieces: AsyncIterator[bytes]) -> None:
    """Send on what the model says in *first* and the *pieces* behind it. Raises `ProxyError`."""
    tap, held = Tap(Ending.CHAT), b""
    piece: bytes | None = first
    while piece is not None:
        tap.feed(piece)
        texts, held = data_of(held + piece)
        for text in texts:
            if said := _delta(text):
                await events.send(orjson.dumps({"text": said}).decode())
        if tap.failed:
            raise ProxyError(STREAM_ERROR, "The upstream failed in the middle of its answer.")
        if tap.over:
            return
        _check_length(len(held))
        try:
            piece = await anext(pieces, None)
        except ProxyError:
            if not tap.closes():
                raise
            return
    if not tap.closes():
        message = "The upstream ended its answer before it was finished."
        raise ProxyError(STREAM_INCOMPLETE, message)


def _check_length(size: int) -> None:
    if size > ANSWER_BYTES:
        raise ProxyError(HOOK_FAILED, "The answer is too long.")


def _text(answer: bytes) -> str:
    """Return what the model said in a whole *answer*. Raises `ProxyError`."""
    try:
        choices = _ANSWER.decode(answer).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        choices = []
    if not choices or choices[0].message is None:
        raise ProxyError(HOOK_FAILED, "The upstream's answer is no chat completion.")
    return choices[0].message.content or ""


def _delta(event: bytes) -> str:
    """Return what the data of one *event* adds to the answer."""
    try:
        choices = _ANSWER.decode(event).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return (choices[0].delta.content or "") if choices and choices[0].delta else ""
