"""Hooks: named webhooks, each of which turns a small JSON message into a chat on its route."""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

import msgspec
import orjson

from proxy.credentials import Secret
from proxy.errors import INVALID_JSON, INVALID_KEY, ProxyError
from proxy.model.body import Body
from proxy.routes import Route


class Message(msgspec.Struct):
    """What is posted to a hook: the *text*, who it is *sender*, and what is to be done with it."""

    text: str
    sender: str | None = msgspec.field(name="from", default=None)
    action: str = "chat"
    stream: bool = False


_MESSAGE = msgspec.json.Decoder(Message)


@dataclass(frozen=True, slots=True, eq=False)
class Hook:
    """One line of `[hooks]`: the *model* it asks, on its *route*, and the *secret* that whoever posts
    must know.
    """

    name: str
    model: str
    route: Route
    system: str | None = None
    secret: Secret | None = None

    def admit(self, authorization: bytes | None) -> None:
        """Check the `Authorization` of a caller. Raises `ProxyError`."""
        if self.secret is None:
            return
        scheme, _, token = (authorization or b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else b""
        wanted = self.secret.reveal().encode("utf-8", "surrogateescape")
        if not compare_digest(sha256(given).digest(), sha256(wanted).digest()):
            message = "This hook wants its secret, as `Authorization: Bearer …`."
            raise ProxyError(INVALID_KEY, message)

    def chat(self, message: Message) -> bytes:
        """Return the body of the chat that *message* becomes."""
        messages = [{"role": "user", "content": message.text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        body: dict[str, object] = {"model": self.model, "messages": messages}
        if message.sender is not None:
            body["user"] = message.sender
        if message.stream:
            body["stream"] = True
        return orjson.dumps(body)


def read(body: Body) -> Message:
    """Read the *body* of what was posted to a hook. Raises `ProxyError`."""
    try:
        message = _MESSAGE.decode(body)
    except msgspec.ValidationError as error:
        told = str(error)
        field = told.rpartition("$.")[2].rstrip("`") if "$." in told else None
        if field is None and told.startswith("Object missing"):
            field = "text"  # the only one it cannot do without
        raise ProxyError(INVALID_JSON, f"The message is not right: {told}.", param=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProxyError(INVALID_JSON, "The message is not a JSON object.") from None
    if message.action != "chat":
        text = 'The only action there is is "chat".'
        raise ProxyError(INVALID_JSON, text, param="action")
    if not message.text.strip():
        raise ProxyError(INVALID_JSON, "The message has no text.", param="text")
    return message
