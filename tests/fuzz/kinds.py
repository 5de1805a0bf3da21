"""What can be asked, and what can be answered."""

from dataclasses import dataclass

from tests.harness.upstream import DONE


@dataclass(frozen=True)
class Kind:
    """What is asked: the *path*, and how a stream of that dialect says a *word*, ends (*mark*), may
    end (*early*), and says that it has failed (*failure*). What is not *routed* is no stream.
    """

    path: str
    routed: bool = True
    word: bytes = b""
    mark: bytes = b""
    early: bytes = b""
    failure: bytes = b""

    def event(self, what: str, text: bytes) -> bytes:
        """Return the event that says *what*; where that is a word, it is *text*."""
        said: bytes = getattr(self, what)
        return said.replace(b"%s", text)


_FAILED = b'data: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
KINDS = {
    "chat": Kind(
        "/v1/chat/completions",
        word=b'data: {"choices":[{"delta":{"content":"%s"},"finish_reason":null}]}\n\n',
        mark=DONE,
        early=b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        failure=_FAILED,
    ),
    "messages": Kind(
        "/v1/messages",
        word=b'event: content_block_delta\ndata: {"delta":{"text":"%s"}}\n\n',
        mark=b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        failure=b"event: error\n" + _FAILED,
    ),
    "responses": Kind(
        "/v1/responses",
        word=b'event: response.output_text.delta\ndata: {"delta":"%s"}\n\n',
        mark=b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
        failure=b"event: error\n" + _FAILED,
    ),
    "file": Kind("/v1/files/", routed=False),
    "upload": Kind("/v1/files/", routed=False),
}

AGAIN = (408, 429, 503, 529)
BROKEN = (500, 502, 504, 520)
BODILESS = (204, 304)
STATUSES = (200, *BODILESS, 302, 400, 401, 404, *AGAIN, *BROKEN)
