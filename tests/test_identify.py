"""Who asks: where keys are found; `test_forward` has what each header does."""

from hashlib import sha256

import pytest

from proxy.identify import keys_in, tokens_of, without_keys
from proxy.keys import Key, KeyRing

RING = KeyRing((Key("team", sha256(b"tk-ours").digest()),))


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("a=b", "a=b"),
        ("key=tk-ours", ""),
        ("key=tk%2Dours", ""),
        ("a=%20&key=tk-ours&b=+", "a=%20&b=+"),
        ("key=theirs", "key=theirs"),
        ("key=tk-ours&key=theirs", "key=theirs"),
        ("monkey=tk-ours", "monkey=tk-ours"),
        ("a&&b=;&=c", "a&&b=;&=c"),
    ],
)
def test_keys_in_the_query(query: str, kept: str) -> None:
    """A `key` parameter goes no further where it is ours; the rest of the query is left alone."""
    assert without_keys(query, RING) == kept


@pytest.mark.parametrize(
    ("offered", "token"),
    [
        ([], None),
        ([b"realtime"], None),
        ([b"realtime,json"], None),
        ([b"realtime, openai-insecure-api-key.tk-1"], b"tk-1"),
        ([b"openai-insecure-api-key.tk-1,realtime"], b"tk-1"),
        ([b"realtime,openai-insecure-api-key.tk-1, openai-beta.realtime-v1"], b"tk-1"),
        ([b"openai-insecure-api-key.tk-1"], b"tk-1"),
        ([b"realtime", b"openai-insecure-api-key.tk-1"], b"tk-1"),
        ([b"openai-insecure-api-key.tk-1", b"openai-insecure-api-key.tk-2"], b"tk-1"),
        ([b"openai-insecure-api-key."], b""),
        ([b"x-openai-insecure-api-key.tk-1"], None),
    ],
)
def test_key_among_the_subprotocols(offered: list[bytes], token: bytes | None) -> None:
    """A browser's key is found among the subprotocols of a WebSocket: it has no other place for it."""
    client = [(b"Sec-WebSocket-Protocol", value) for value in offered]
    assert next(tokens_of(client), None) == token


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("", None),
        ("alt=sse", None),
        ("alt=sse&key=AIza-1", b"AIza-1"),
        ("key=a%2Bb", b"a+b"),
        ("%6Bey=x", b"x"),
        ("key=a&key=b", b"a"),
        ("key", b""),
        ("Key=x", None),
        ("monkey=x", None),
        ("key=%ff", b"\xff"),
    ],
)
def test_key_of_the_query(query: str, key: bytes | None) -> None:
    """The `key` parameter, where Google's clients may put theirs, is found however it is encoded."""
    assert next(keys_in(query), None) == key
