"""One scripted upstream that poses as every vendor, and the routes file that leads to it.

It answers each dialect as its vendor does, refuses whatever does not carry that vendor's own
credential, and only that one, and keeps every request byte for byte.
"""

import base64
import gzip
import re
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tests.clients import answers
from tests.clients.team import KEY
from tests.harness.upstream import JSON, Conn, Pair, Received, Step, Upstream, answer, stream

SECRETS = {
    "oai": "vendor-secret-openai",
    "claude": "vendor-secret-anthropic",
    "google": "vendor-secret-google",
}
"""The vendors' own credentials, by the name of their upstream."""

_FORMS: dict[str, tuple[str, ...]] = {
    "oai": ("authorization",),
    "claude": ("x-api-key", "authorization"),
    "google": ("x-goog-api-key",),
}
"""Which headers each vendor takes its credential in; the routes file says the first."""
_CREDENTIALS = {"authorization", "x-api-key", "api-key", "apikey", "x-goog-api-key"}
_REALTIME = Subprotocol("realtime")
_INSECURE = "openai-insecure-api-key."
"""The prefix of the subprotocol in which a browser presents its key to OpenAI's realtime API."""


def routes_to(vendor: "Vendor") -> str:
    """Return a routes file that leads to *vendor* under each of its names."""
    return f"""
[keys]
team = "${{TEAM_KEY}}"

[upstreams.oai]
base_url   = "{vendor.origin}/v1"
credential = "{SECRETS["oai"]}"

[upstreams.claude]
base_url   = "{vendor.origin}/v1"
credential = {{ header = "x-api-key", secret = "{SECRETS["claude"]}" }}

[upstreams.google]
base_url   = "{vendor.origin}/v1beta"
credential = {{ header = "x-goog-api-key", secret = "{SECRETS["google"]}" }}

[routes]
"gpt-*"               = {{ upstream = "oai" }}
"text-embedding-*"    = {{ upstream = "oai" }}
"omni-moderation-*"   = {{ upstream = "oai" }}
"whisper-*"           = {{ upstream = "oai" }}
"tts-*"               = {{ upstream = "oai" }}
"rerank-*"            = {{ upstream = "oai" }}
"my-model"            = "oai/gpt-4o"
"my-whisper"          = "oai/whisper-1"
"my-realtime"         = "oai/gpt-realtime"
"claude-*"            = {{ upstream = "claude" }}
"my-claude"           = "claude/claude-sonnet-5"
"gemini-*"            = {{ upstream = "google" }}
"my-gemini"           = "google/gemini-2.5-flash"

[unrouted]
"files"     = "oai"
"batches"   = "oai"
"responses" = "oai"
"""


@dataclass(frozen=True)
class Asked:
    """A request as its handler sees it: what its path matched, its fields, its file."""

    request: Received
    matched: tuple[str, ...]
    body: dict[str, Any] = field(default_factory=dict)
    file: bytes = b""

    @property
    def model(self) -> str:
        model: str = self.body["model"]
        return model

    @property
    def tools(self) -> bool:
        """Return whether a tool is to be called: one is offered, and none was called before."""
        return bool(self.body.get("tools")) and not _TOOL_RESULT.search(self.request.body)

    def json(self, data: Any) -> Step:
        """Answer *data*, compressed for those who can read that."""
        body = orjson.dumps(data)
        headers: list[Pair] = [JSON, (b"x-request-id", b"req_1")]
        if b"gzip" in (self.request.value(b"accept-encoding") or b""):
            body = gzip.compress(body, mtime=0)
            headers.append((b"Content-Encoding", b"gzip"))
        return answer(body=body, headers=headers)


_GEMINI = "/v1(?:beta)?/models/([^/:]+)"
"""Google serves both versions, and its SDKs do not agree on one."""
_TOOL_RESULT = re.compile(
    rb'"role": ?"tool"|"type": ?"(?:tool_result|function_call_output)"|"functionResponse"'
)
Handler = Callable[["Vendor", Asked], Step]
_HANDLERS: list[tuple[str, re.Pattern[str], Handler]] = []


def _on(method: str, path: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _HANDLERS.append((method, re.compile(path), handler))
        return handler

    return register


class Vendor(Upstream):
    """Every vendor at once, on one port. *closed* are the codes that ended its WebSockets."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.closed: list[int | None] = []
        self.will(self._answer)

    @property
    def origin(self) -> str:
        return f"http://{self.authority}"

    def take(self) -> list[Received]:
        """Return the requests since the last time."""
        taken, self.requests = self.requests, []
        return taken

    async def _answer(self, conn: Conn, request: Received) -> None:
        path = urlsplit(request.target).path
        refused = _refusal(path, request)
        if refused is not None:
            await refused(conn, request)
            return
        if path == "/v1/realtime":
            await self._realtime(conn, request)
            return
        for method, pattern, handler in _HANDLERS:
            match = pattern.fullmatch(path)
            if match and request.line.startswith(method.encode() + b" "):
                await handler(self, _asked(request, match.groups()))(conn, request)
                return
        missing = {"message": f"Invalid URL ({request.line.decode()})", "type": "not_found"}
        await answer(404, orjson.dumps({"error": missing}))(conn, request)

    @staticmethod
    async def _read(conn: Conn) -> Received | None:
        """Read as the harness does, and bodies that come in chunks too."""
        request = await Upstream._read(conn)
        if request is not None and request.value(b"transfer-encoding") == b"chunked":
            size = -1
            while size:
                size = int((await conn.reader.readuntil(b"\r\n")).split(b";")[0], 16)
                request.body += (await conn.reader.readexactly(size + 2))[:-2]
        return request

    async def _realtime(self, conn: Conn, request: Received) -> None:
        """Speak WebSocket: answer `response.create`, close as `test.close` says, echo all else."""
        conn.keep = False
        socket = ServerProtocol(
            extensions=[ServerPerMessageDeflateFactory()],
            select_subprotocol=lambda _, offered: next(iter({_REALTIME} & {*offered}), None),
            max_size=None,
        )
        socket.receive_data(request.head)
        (opening,) = socket.events_received()
        socket.send_response(socket.accept(opening))  # type: ignore[arg-type]  # the first is one
        (model,) = parse_qs(urlsplit(request.target).query)["model"]
        socket.send_text(orjson.dumps(answers.realtime_session(model)))
        try:
            async for kind, message in _messages(conn, socket):
                said = orjson.loads(message) if kind is Opcode.TEXT else {}
                if said.get("type") == "response.create":
                    for reply in answers.realtime_response():
                        socket.send_text(orjson.dumps(reply))
                elif said.get("type") == "test.close":
                    socket.send_close(said["code"], said["reason"])
                elif kind is Opcode.TEXT:
                    socket.send_text(message)
                else:
                    socket.send_binary(message)
        finally:
            self.closed.append(socket.close_rcvd.code if socket.close_rcvd else None)


async def _messages(conn: Conn, socket: ServerProtocol) -> AsyncIterator[tuple[Opcode, bytes]]:
    """Carry bytes between *conn* and *socket*; return the whole messages that arrive."""
    kind, message = Opcode.TEXT, b""
    while True:
        for data in socket.data_to_send():
            if data:
                await conn.send(data)
            elif conn.writer.can_write_eof():
                conn.writer.write_eof()
        if socket.state is State.CLOSED or conn.reader.at_eof():
            return
        data = await conn.reader.read(65536)
        if data:
            socket.receive_data(data)
        else:
            socket.receive_eof()
        for frame in socket.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                kind = frame.opcode if frame.opcode is not Opcode.CONT else kind
                message += bytes(frame.data)
                if frame.fin:
                    yield kind, message
                    message = b""


# Who may come in


def name_of(target: str) -> str:
    """Return which of the vendors *target* belongs to."""
    path = urlsplit(target).path
    if re.match(_GEMINI + ":", path):
        return "google"
    return "claude" if path.startswith("/v1/messages") else "oai"


def _refusal(path: str, request: Received) -> Step | None:
    """Return the vendor's own 401, unless its credential is there and no other."""
    vendor = name_of(path)
    shown = list(credentials(request))
    versioned = vendor != "claude" or request.value(b"anthropic-version") is not None
    if len(shown) == 1 and versioned and shown[0] in _accepted(vendor):
        return None
    said: dict[str, Any] = {"message": f"Incorrect credential: {shown}"}
    if vendor == "google":
        said |= {"code": 401, "status": "UNAUTHENTICATED"}
    elif vendor == "claude":
        said |= {"type": "authentication_error"}
    else:
        said |= {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    body = {"type": "error", "error": said} if vendor == "claude" else {"error": said}
    return answer(401, orjson.dumps(body))


def _accepted(vendor: str) -> list[tuple[str, str]]:
    secret = SECRETS[vendor]
    forms = [
        (form, f"Bearer {secret}" if form == "authorization" else secret) for form in _FORMS[vendor]
    ]
    return forms + ([("subprotocol", secret)] if vendor == "oai" else [])


def credentials(request: Received) -> Iterator[tuple[str, str]]:
    """Return every credential that *request* carries, and in which header."""
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode().lower(), raw_value.decode("latin-1")
        if name in _CREDENTIALS:
            yield name, value
        elif name == "sec-websocket-protocol" and _INSECURE in value:
            yield "subprotocol", value.partition(_INSECURE)[2].partition(",")[0]
    for value in parse_qs(urlsplit(request.target).query).get("key", ()):
        yield "?key", value


def leaks(request: Received) -> bool:
    """Return whether the key that the proxy was asked with stands anywhere in *request*."""
    return KEY.encode() in request.head + request.body


# What a request says


def _asked(request: Received, matched: tuple[str, ...]) -> Asked:
    kind = request.value(b"content-type") or b""
    if kind.startswith(b"multipart/form-data"):
        fields = form(request)
        file = next((value for name, value in fields if name in ("file", "image", "image[]")), b"")
        text = {name: value.decode("latin-1") for name, value in fields}
        return Asked(request, matched, text, file)
    return Asked(request, matched, orjson.loads(request.body) if request.body else {})


def form(request: Received) -> list[tuple[str, bytes]]:
    """Return the fields of a multipart form, in their order."""
    fields = []
    for part in request.body.split(b"--" + boundary(request))[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        assert name is not None, head
        fields.append((name[1].decode(), value.removesuffix(b"\r\n")))
    return fields


def boundary(request: Received) -> bytes:
    """Return what stands between the fields of a multipart form, nothing if it is none."""
    found = re.search(rb'boundary="?([^";]+)', request.value(b"content-type") or b"")
    return found[1] if found else b""


_OF_THE_HOP = {
    b"host",
    b"connection",
    b"keep-alive",
    b"upgrade",
    b"content-length",
    b"transfer-encoding",
}
_INSECURE_KEY = re.compile(rb",? *" + re.escape(_INSECURE.encode()) + rb"[^,]*")
_REPLACED = {name.encode() for name in _CREDENTIALS} | {b"accept-encoding", b"sec-websocket-key"}


def wire(request: Received) -> tuple[bytes, list[Pair], bytes]:
    """Return *request* less all that may differ between two calls, or between two hops.

    That Google's SDK asks for another version than the upstream's base URL says is no difference.
    """
    between = boundary(request)
    headers = [
        (name, _INSECURE_KEY.sub(b"", value.replace(between, b"-") if between else value))
        for name, value in request.headers
        if name.lower() not in _OF_THE_HOP | _REPLACED
    ]
    body = request.body.replace(between, b"-") if between else request.body
    return re.sub(rb" /v1/(models/[^/]+:)", rb" /v1beta/\1", request.line), headers, body


# What is answered


@_on("POST", "/v1/chat/completions")
def _chat(_: Vendor, asked: Asked) -> Step:
    if asked.body.get("stream"):
        usage = bool((asked.body.get("stream_options") or {}).get("include_usage"))
        return stream(*answers.chat_stream(asked.model, asked.tools, usage))
    return asked.json(answers.chat(asked.model, asked.tools))


@_on("POST", "/v1/completions")
def _completions(_: Vendor, asked: Asked) -> Step:
    if asked.body.get("stream"):
        return stream(*answers.completion_stream(asked.model))
    return asked.json(answers.completion(asked.model))


@_on("POST", "/v1/embeddings")
def _embeddings(_: Vendor, asked: Asked) -> Step:
    inputs = asked.body["input"]
    packed = None
    if asked.body.get("encoding_format") == "base64":
        packed = base64.b64encode(struct.pack("<3f", *answers.VECTOR))
    number = 1 if isinstance(inputs, str) else len(inputs)
    return asked.json(answers.embeddings(asked.model, number, packed))


@_on("POST", "/v1/responses")
def _responses(_: Vendor, asked: Asked) -> Step:
    if asked.body.get("stream"):
        return stream(*answers.response_stream(asked.model, asked.tools))
    return asked.json(answers.response(asked.model, asked.tools))


@_on("GET", "/v1/responses/(resp_[^/]+)")
def _response(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.response("gpt-4o", False))


@_on("GET", "/v1/responses/(resp_[^/]+)/input_items")
def _response_input(_: Vendor, asked: Asked) -> Step:
    text = {"type": "input_text", "text": "hello"}
    item = {"type": "message", "id": "msg_0", "role": "user", "content": [text]}
    return asked.json(answers.page(item))


@_on("DELETE", "/v1/responses/(resp_[^/]+)")
def _response_deleted(_: Vendor, asked: Asked) -> Step:
    return asked.json({"id": asked.matched[0], "object": "response", "deleted": True})


@_on("POST", "/v1/responses/(resp_[^/]+)/cancel")
def _response_cancelled(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.response("gpt-4o", False, "cancelled"))


@_on("POST", "/v1/messages")
def _message(_: Vendor, asked: Asked) -> Step:
    if asked.body.get("stream"):
        return stream(*answers.message_stream(asked.model, asked.tools))
    return asked.json(answers.message(asked.model, asked.tools))


@_on("POST", "/v1/messages/count_tokens")
def _count_tokens(_: Vendor, asked: Asked) -> Step:
    return asked.json({"input_tokens": 9})


@_on("POST", _GEMINI + ":generateContent")
def _generate(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.gemini(asked.matched[0], asked.tools))


@_on("POST", _GEMINI + ":streamGenerateContent")
def _stream_generate(_: Vendor, asked: Asked) -> Step:
    assert asked.request.target.endswith("?alt=sse")
    return stream(*answers.gemini_stream(asked.matched[0], asked.tools))


@_on("POST", _GEMINI + ":countTokens")
def _gemini_count(_: Vendor, asked: Asked) -> Step:
    return asked.json({"totalTokens": 9})


@_on("POST", _GEMINI + ":embedContent")
def _gemini_embed(_: Vendor, asked: Asked) -> Step:
    return asked.json({"embedding": {"values": answers.VECTOR}})


@_on("POST", _GEMINI + ":batchEmbedContents")
def _gemini_embed_all(_: Vendor, asked: Asked) -> Step:
    vectors = [{"values": answers.VECTOR} for _ in asked.body["requests"]]
    return asked.json({"embeddings": vectors})


@_on("POST", "/v1/files")
def _upload(vendor: Vendor, asked: Asked) -> Step:
    vendor.files["file-1"] = asked.file
    return asked.json(answers.file("requests.jsonl", len(asked.file)))


@_on("GET", "/v1/files")
def _files(vendor: Vendor, asked: Asked) -> Step:
    return asked.json(answers.page(answers.file("requests.jsonl", len(vendor.files["file-1"]))))


@_on("GET", "/v1/files/([^/]+)")
def _file(vendor: Vendor, asked: Asked) -> Step:
    return asked.json(answers.file("requests.jsonl", len(vendor.files[asked.matched[0]])))


@_on("GET", "/v1/files/([^/]+)/content")
def _download(vendor: Vendor, asked: Asked) -> Step:
    octets: Pair = (b"Content-Type", b"application/octet-stream")
    return stream(vendor.files[asked.matched[0]], headers=[octets])


@_on("DELETE", "/v1/files/([^/]+)")
def _deleted(vendor: Vendor, asked: Asked) -> Step:
    return asked.json({"id": asked.matched[0], "object": "file", "deleted": True})


@_on("POST", "/v1/batches")
def _batch(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.batch("validating", asked.body["endpoint"]))


@_on("GET", "/v1/batches")
def _batches(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.page(answers.batch("in_progress")))


@_on("GET", "/v1/batches/([^/]+)")
def _one_batch(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.batch("in_progress"))


@_on("POST", "/v1/batches/([^/]+)/cancel")
def _batch_cancelled(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.batch("cancelling"))


@_on("POST", "/v1/audio/transcriptions")
def _transcribe(_: Vendor, asked: Asked) -> Step:
    assert asked.file
    if asked.body.get("stream") == "true":
        return stream(*answers.transcription_stream())
    if asked.body.get("response_format") == "text":
        plain: Pair = (b"Content-Type", b"text/plain; charset=utf-8")
        return answer(body=answers.HEARD.encode(), headers=[plain])
    return asked.json({"text": answers.HEARD, "usage": {"type": "duration", "seconds": 2}})


@_on("POST", "/v1/audio/translations")
def _translate(_: Vendor, asked: Asked) -> Step:
    assert asked.file
    return asked.json({"text": answers.HEARD})


@_on("POST", "/v1/audio/speech")
def _speak(_: Vendor, asked: Asked) -> Step:
    audio: Pair = (b"Content-Type", b"audio/mpeg")
    half = len(answers.SPEECH) // 2
    return stream(answers.SPEECH[:half], answers.SPEECH[half:], headers=[audio])


@_on("POST", "/v1/images/(?:generations|edits|variations)")
def _images(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.images())


@_on("POST", "/v1/moderations")
def _moderate(_: Vendor, asked: Asked) -> Step:
    return asked.json(answers.moderation(asked.model))


@_on("POST", "/v1/rerank")
def _rerank(_: Vendor, asked: Asked) -> Step:
    order = range(len(asked.body["documents"]))
    results = [{"index": index, "relevance_score": 1.0 - index / 10} for index in order]
    return asked.json({"id": "rerank-1", "model": asked.model, "results": results})


@_on("GET", "/v1/models")
def _models(_: Vendor, asked: Asked) -> Step:
    model = {"id": "gpt-4o", "object": "model", "created": 1790000000, "owned_by": "openai"}
    return asked.json({"object": "list", "data": [model]})
