"""Which paths are known, and what is known of them."""

import pytest

from proxy import dialects
from proxy.dialects import Dialect, Ending


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("chat/completions", dialects.CHAT),
        ("completions", dialects.COMPLETIONS),
        ("embeddings", dialects.EMBEDDINGS),
        ("responses", dialects.RESPONSES),
        ("responses/compact", dialects.RESPONSES),
        ("responses/resp_1/cancel", dialects.RESPONSES),
        ("messages", dialects.MESSAGES),
        ("messages/count_tokens", dialects.COUNT_TOKENS),
        ("moderations", dialects.MODERATIONS),
        ("rerank", dialects.RERANK),
    ],
)
def test_known(path: str, dialect: Dialect) -> None:
    """Every endpoint that carries a model is known by its exact path."""
    assert dialects.find(path) is dialect


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "chat",
        "chat/",
        "chat/completions/",
        "chat/completions/x",
        "Chat/Completions",
        "responses/",
        "responsesx",
        "messages/",
        "messages/batches",
        "models",
        "files",
        "v1/embeddings",
    ],
)
def test_unknown(path: str) -> None:
    """No other path is an endpoint, however near it comes."""
    assert dialects.find(path) is None


def test_names_are_unique() -> None:
    """No two dialects have one name: config, logs and docs mean one thing by it."""
    names = [dialect.name for dialect in dialects.ENDPOINTS.values()]
    assert len(set(names)) == len(names)


def test_endings() -> None:
    """What streams has a marker, and what never does has none."""
    endings = {name: dialect.ending for name, dialect in dialects.ENDPOINTS.items()}
    checked = {name: ending for name, ending in endings.items() if ending is not Ending.NONE}
    assert checked == {
        "chat/completions": Ending.CHAT,
        "completions": Ending.CHAT,
        "responses": Ending.RESPONSES,
        "messages": Ending.MESSAGES,
    }


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/api/v1/messages/batches", "anthropic"),
        ("/messages", "anthropic"),
        ("/v1/chat/completions", "openai"),
        ("/v1/responses", "openai"),
        ("/nowhere", "openai"),
        ("", "openai"),
    ],
)
def test_shape(path: str, shape: str) -> None:
    """An error takes the shape that who called the path expects, also where nothing is there."""
    assert dialects.shape_of(path) == shape


def test_shapes_agree() -> None:
    """The shape by path is the one the endpoint itself has, but inside a stream of responses."""
    for path, dialect in dialects.ENDPOINTS.items():
        expected = "openai" if dialect.shape == "responses" else dialect.shape
        assert dialects.shape_of(f"/v1/{path}") == expected
