"""The model of an answer to a request that named none: found wherever it stands, however it comes."""

import pytest

from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.unnamed import SEEN_BYTES, Unnamed


def seen(*pieces: bytes) -> str | None:
    """Return the model that is noted when *pieces* pass."""
    exchange = Exchange("req_1", "main", "POST", "/", "", Headers(), False, None, 0.0)
    tap = Unnamed(exchange)
    for piece in pieces:
        tap.feed(piece)
    return exchange.model


BEFORE = b'{"id":"x","content":"'


@pytest.mark.parametrize(
    ("answer", "model"),
    [
        (b'{"model":"qwen3","choices":[]}', "qwen3"),
        (b'data: {"model" : "a/b:c"}\n\ndata: {"model":"other"}\n\n', "a/b:c"),
        (b'{"model":null}', None),
        (b'{"text":"\\"model\\":\\"no\\""}', None),
        (b'{"model":"' + b"x" * 257 + b'"}', None),
        (b'{"model":"a\nb"}', "a\\nb"),
        (b'{"model":"\xff"}', "\ufffd"),
        (BEFORE + b"x" * (SEEN_BYTES - len(BEFORE) - 16) + b'","model":"in"}', "in"),
        (BEFORE + b"x" * SEEN_BYTES + b'","model":"late"}', None),
    ],
)
def test_model(answer: bytes, model: str | None) -> None:
    """The first model that the answer names is noted, be it in one piece or byte by byte."""
    assert seen(answer) == model
    assert seen(*(answer[at : at + 1] for at in range(len(answer)))) == model
