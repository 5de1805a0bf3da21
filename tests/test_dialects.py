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
        ("responses/input_tokens", dialects.RESPONSES),
        ("messages", dialects.MESSAGES),
        ("messages/count_tokens", dialects.COUNT_TOKENS),
        ("moderations", dialects.MODERATIONS),
        ("rerank", dialects.RERANK),
        ("fim/completions", dialects.FIM),
        ("images/generations", dialects.IMAGES),
        ("images/edits", dialects.IMAGES),
        ("images/variations", dialects.IMAGES),
        ("audio/speech", dialects.AUDIO),
        ("audio/transcriptions", dialects.AUDIO),
        ("audio/translations", dialects.AUDIO),
        ("videos", dialects.VIDEOS),
        ("realtime", dialects.REALTIME),
        ("models/gemini-2.5-pro:generateContent", dialects.GEMINI),
        ("models/gemini-2.5-pro:streamGenerateContent", dialects.GEMINI),
        ("models/text-embedding-004:embedContent", dialects.GEMINI),
        ("models/a%2Fb:countTokens", dialects.GEMINI),
        ("models/a/b:countTokens", dialects.GEMINI),
        ("models/ft:gpt:x:countTokens", dialects.GEMINI),
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
        "models/gpt-4o",
        "models/org/name:latest-2",
        "models/:generateContent",
        "models/x:",
        "models/x:generate content",
        "modelsx/x:generateContent",
        "x/models/x:generateContent",
        "models/x:generateContent/",
        "models/x:generateContent\n",
        "responses/resp_1",
        "responses/resp_1/cancel",
        "images",
        "audio",
        "videos/video_1",
        "realtime/sessions",
        "files",
        "v1/embeddings",
    ],
)
def test_unknown(path: str) -> None:
    """No other path is an endpoint, however near it comes."""
    assert dialects.find(path) is None


@pytest.mark.parametrize(
    ("path", "model", "verb"),
    [
        ("models/gemini-2.5-pro:generateContent", "gemini-2.5-pro", "generateContent"),
        ("models/a%2Fb:countTokens", "a%2Fb", "countTokens"),
        ("models/a/b:c:countTokens", "a/b:c", "countTokens"),
    ],
)
def test_native(path: str, model: str, verb: str) -> None:
    """A Gemini-native path names a model, as it is written, and after the last colon a verb."""
    assert dialects.native(path) == (model, verb)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("responses/resp_1", dialects.RESPONSES),
        ("responses/resp_1/input_items", dialects.RESPONSES),
        ("chat/completions/chatcmpl_1", dialects.CHAT),
        ("messages/batches", dialects.MESSAGES),
        ("messages/batches/b_1/results", dialects.MESSAGES),
        ("videos/video_1/content", dialects.VIDEOS),
        ("realtime/sessions", dialects.REALTIME),
        ("models", dialects.MODELS),
        ("models/gpt-4o", dialects.MODELS),
        ("files", dialects.FILES),
        ("files/f_1/content", dialects.FILES),
        ("batches", dialects.FILES),
        ("responsesx/resp_1", dialects.FILES),
        ("images", dialects.FILES),
        ("", dialects.FILES),
        ("/", dialects.FILES),
    ],
)
def test_family(path: str, dialect: Dialect) -> None:
    """What is kept below an endpoint is a matter of that endpoint's dialect, all else one of files."""
    assert dialects.family(path) is dialect


def test_names_are_unique() -> None:
    """No two dialects have one name: config, logs and docs mean one thing by it."""
    assert {name: dialect.name for name, dialect in dialects.DIALECTS.items()} == {
        name: name for name in dialects.DIALECTS
    }
    everything = [value for value in vars(dialects).values() if isinstance(value, Dialect)]
    assert {id(dialect) for dialect in everything} == {
        id(dialect) for dialect in dialects.DIALECTS.values()
    }
    assert {dialect.name for dialect in dialects.ENDPOINTS.values()} <= set(dialects.DIALECTS)


def test_what_carries_the_model() -> None:
    """Gemini's own paths carry the model themselves, a WebSocket's query does, all else has a body."""
    elsewhere = {d.name: d.carries for d in dialects.DIALECTS.values() if d.carries != "body"}
    assert elsewhere == {"gemini": "path", "realtime": "query"}


def test_conversations() -> None:
    """The big forms are those that a vendor is known to speak, or known not to."""
    big = {dialect.name for dialect in dialects.DIALECTS.values() if dialect.conversation}
    assert big == {"chat", "responses", "messages", "gemini"}


def test_endings() -> None:
    """What streams has a marker, and what never does has none."""
    endings = {name: dialect.ending for name, dialect in dialects.ENDPOINTS.items()}
    checked = {name: ending for name, ending in endings.items() if ending is not Ending.NONE}
    assert checked == {
        "chat/completions": Ending.CHAT,
        "completions": Ending.CHAT,
        "fim/completions": Ending.CHAT,
        "responses": Ending.RESPONSES,
        "responses/compact": Ending.RESPONSES,
        "responses/input_tokens": Ending.RESPONSES,
        "messages": Ending.MESSAGES,
    }


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/api/v1/messages/batches", "anthropic"),
        ("/messages", "anthropic"),
        ("/v1beta/models/x:generateContent", "gemini"),
        ("/api/v1alpha/models", "gemini"),
        ("/v1betax/models/x", "openai"),
        ("/v1beta", "gemini"),
        ("/v1beta1/projects/p/locations/l/publishers/google/models/x:predict", "gemini"),
        ("/v1/projects/p/locations/l/publishers/google/models/x:generateContent", "gemini"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/x:rawPredict", "anthropic"),
        ("/v1internal:loadCodeAssist", "gemini"),
        ("/v2/models/x:batchEmbedContents", "gemini"),
        ("/upload/v1beta/files", "gemini"),
        ("/v1beta/openai/nothing", "openai"),
        ("/v1/models/llama3:latest", "openai"),
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
