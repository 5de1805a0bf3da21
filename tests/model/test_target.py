"""The model in a target: found where it is written, and replaced there and nowhere else."""

import re
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy import dialects
from proxy.model.body import BodyError
from proxy.model.target import (
    model_in_path,
    model_in_query,
    path_for,
    query_for,
    streams,
    without_model,
)
from proxy.surfaces import is_unsafe
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MODELS = TEXT.filter(bool) | st.text("a/.:%?#& +\r\n\\é", min_size=1, max_size=12)
QUERIES = st.text("model=&%6dx+ é;", max_size=30)


def at(model: str, verb: str = "generateContent") -> str:
    return f"models/{model}:{verb}"


# In a path


@pytest.mark.parametrize(
    ("written", "model"),
    [
        ("gemini-2.5-pro", "gemini-2.5-pro"),
        ("a/b", "a/b"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("a:b", "a:b"),
        ("a%3Ab", "a:b"),
        ("ft:gpt:org::id", "ft:gpt:org::id"),
        ("a:generateContent", "a:generateContent"),
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("a%20b", "a b"),
        ("%E6%97%A5", "日"),
        ("日", "日"),
        ("a%", "a%"),
        ("a%zz", "a%zz"),
        ("@cf/meta/llama", "@cf/meta/llama"),
        ("models/x", "models/x"),
        ("*", "*"),
    ],
)
def test_model_in_path(written: str, model: str) -> None:
    """The model of a Gemini-native path is what its percent-encoding means; a plus is a plus."""
    assert model_in_path(at(written)) == model


@pytest.mark.parametrize("written", ["%ff", "a%C3", "%ED%A0%80", "%F8%88%80%80%80", "\udcff"])
def test_no_text_in_path(written: str) -> None:
    """A model that is not UTF-8 is refused, and its field is named."""
    with pytest.raises(BodyError) as caught:
        model_in_path(at(written))
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("verb", "stream"),
    [
        ("generateContent", False),
        ("streamGenerateContent", True),
        ("countTokens", False),
        ("embedContent", False),
        ("batchEmbedContents", False),
        ("predict", False),
    ],
)
def test_streams(verb: str, stream: bool) -> None:
    """The verb says whether a stream is asked for, whatever the model is called."""
    assert streams(at("stream", verb)) is stream
    assert streams(at("x:streamGenerateContent", verb)) is stream


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-pro", "models/gemini-2.5-pro:v"),
        ("a/b", "models/a/b:v"),
        ("a:b", "models/a:b:v"),
        ("a b", "models/a%20b:v"),
        ("a?b#c&d", "models/a%3Fb%23c%26d:v"),
        ("a%2Fb", "models/a%252Fb:v"),
        ("a+b", "models/a%2Bb:v"),
        ("a\r\nX: y", "models/a%0D%0AX:%20y:v"),
        ("日", "models/%E6%97%A5:v"),
        ("a\\b", "models/a%5Cb:v"),
        ("a\x00", "models/a%00:v"),
        ("@cf/x", "models/@cf/x:v"),
        ("a;b=c", "models/a%3Bb%3Dc:v"),
    ],
)
def test_path_for(model: str, path: str) -> None:
    """Another model takes the place of the one in the path, encoded so that it stays there."""
    assert path_for("models/whatever:v", model) == path
    assert path_for("models/a/b%2Fc:d:v", model) == path


@given(MODELS, st.sampled_from(["generateContent", "streamGenerateContent", "v"]))
def test_path_round_trip(model: str, verb: str) -> None:
    """Whatever model is put into a path is the one that is found there, under the same verb; or it is
    refused.
    """
    try:
        path = path_for(at("x", verb), model)
    except BodyError:
        assert is_unsafe(at(model))
        return
    assert dialects.find(path) is dialects.GEMINI
    assert model_in_path(path) == model
    assert dialects.native(path)[1] == verb


@given(MODELS)
@example("../../../v1/files")
@example("../x")
@example("./x")
@example("a/../../b")
@example("..")
def test_path_stays_in_place(model: str) -> None:
    """A spliced model ends neither the path nor the line, and climbs nowhere: what no path can hold is
    refused.
    """
    try:
        path = path_for(at("x"), model)
    except BodyError:
        return
    assert re.fullmatch(r"models/[A-Za-z0-9_.~/@:%-]+:generateContent", path)
    assert "/../" not in f"/{unquote(path)}"
    assert "/./" not in f"/{unquote(path)}"


# In a query


@pytest.mark.parametrize(
    ("query", "model"),
    [
        ("", None),
        ("a=b", None),
        ("model=gpt-realtime", "gpt-realtime"),
        ("a=b&model=x&c=d", "x"),
        ("model=", None),
        ("model", None),
        ("%6dodel=x", "x"),
        ("%6D%6F%64%65%6C=x", "x"),
        ("model=a+b", "a b"),
        ("model=a%2Bb", "a+b"),
        ("model=a%20b", "a b"),
        ("model=a%2Fb", "a/b"),
        ("model=a/b:c", "a/b:c"),
        ("model=a=b", "a=b"),
        ("model=a;b", "a;b"),
        ("model=%E6%97%A5", "日"),
        ("model=日", "日"),
        ("model=%25", "%"),
        ("model=%", "%"),
        ("models=x", None),
        ("xmodel=x", None),
        ("model%20=x", None),
        ("model+=x", None),
        ("a=model", None),
        ("?model=x", None),
        ("&&model=x&&", "x"),
    ],
)
def test_model_in_query(query: str, model: str | None) -> None:
    """The model of a query is the value of its `model` parameter, however either is encoded."""
    assert model_in_query(query) == model


@pytest.mark.parametrize(
    "query",
    [
        "model=a&model=b",
        "model=a&model=a",
        "model=a&%6dodel=b",
        "model&model",
        "model=&x=y&mode%6c=b",
        "model=a&Model=b",
    ],
)
def test_two_models_in_query(query: str) -> None:
    """Two models are refused: the upstream might obey the other one."""
    with pytest.raises(BodyError) as caught:
        model_in_query(query)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    "query",
    [
        "model=a;model=b",
        "x=1;model=b&model=a",
        ";Model=b&model=a",
        "model=a&deployment=b",
        "model=a&DEPLOY%6dENT=b",
        "deployment=b",
    ],
)
def test_a_model_that_some_see_in_a_query(query: str) -> None:
    """A semicolon is an `&` to some readers, and a `deployment` is a model to Azure."""
    with pytest.raises(BodyError) as caught:
        model_in_query(query)
    assert caught.value.field == "model"


@pytest.mark.parametrize("query", ["Model=x", "a=b&%4dODEL=x"])
def test_folded_name_in_query(query: str) -> None:
    """A parameter that only a reader who folds case takes for the model is refused, as it is written."""
    with pytest.raises(BodyError, match="lower case") as caught:
        model_in_query(query)
    assert caught.value.field in ("Model", "MODEL")


@pytest.mark.parametrize("query", ["model=%ff", "model=a%C3", "a=b&model=%ED%A0%80"])
def test_no_text_in_query(query: str) -> None:
    """A model that is not UTF-8 is refused; what else stands in the query is nobody's business."""
    with pytest.raises(BodyError):
        model_in_query(query)
    assert model_in_query("a=%ff&model=x&%fe=b") == "x"


@pytest.mark.parametrize(
    ("query", "replaced"),
    [
        ("", "model=M"),
        ("model=x", "model=M"),
        ("model=", "model=M"),
        ("model", "model=M"),
        ("%6dodel=x", "model=M"),
        ("a=b", "a=b&model=M"),
        ("a=%20b&model=x&c=+", "a=%20b&model=M&c=+"),
        ("a&&b=;&=c&model=x", "a&&b=;&=c&model=M"),
        ("models=x&Model=y", "models=x&Model=y&model=M"),
        ("intent=transcription", "intent=transcription&model=M"),
    ],
)
def test_query_for(query: str, replaced: str) -> None:
    """Another model takes the place of the one in the query, or stands at its end; not a byte of the
    rest changes.
    """
    assert query_for(query, "M") == replaced


@given(QUERIES, MODELS | st.just(""))
def test_query_round_trip(query: str, model: str) -> None:
    """Whatever model is put into a query is the one that everybody finds there, and all else stays."""
    try:
        model_in_query(query)
    except BodyError:
        return  # refused before anything is put there
    replaced = query_for(query, model)
    assert model_in_query(replaced) == (model or None)
    assert dict(parse_qsl(replaced, keep_blank_values=True))["model"] == model
    others = [part for part in query.split("&") if unquote(part.partition("=")[0]) != "model"]  # fmt: skip
    kept = [part for part in replaced.split("&") if not part.startswith("model=")]
    assert kept == (others if query else [])


@given(MODELS)
@example("a&key=b")
@example("a#b")
@example("a\r\nX-Evil: 1")
def test_query_stays_in_place(model: str) -> None:
    """A spliced model adds no parameter, no fragment and no line."""
    assert re.fullmatch(r"a=b&model=[A-Za-z0-9_.~/@:%-]*&c=d", query_for("a=b&model=x&c=d", model))


# Over the wire


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1beta/models/x:generateContent", "/v1/models/real%20name:generateContent"),
        ("/v1beta/models/p%2Fa:streamGenerateContent?alt=sse", "/v1/models/a-it:streamGenerateContent?alt=sse"),
        ("/v1beta/models/same:countTokens?a=%2f", "/v1/models/same:countTokens?a=%2f"),
        ("/v1beta/models/s%61me:countTokens", "/v1/models/s%61me:countTokens"),
        ("//v1beta//models/x:generateContent", "/v1/models/real%20name:generateContent"),
    ],
)  # fmt: skip
async def test_on_the_wire(upstream: Upstream, path: str, target: str) -> None:
    """The model is spliced where it stands, and where it is the same, not a byte of the path changes."""
    toml = f"""
[upstreams.up]
base_url = "{upstream.url}"
[routes]
x = "up/real name"
same = "up/same"
"p/*" = {{ upstream = "up", model = "*-it" }}
"""
    async with serving(toml) as proxy:
        body = b'{"model": "stays", "contents": []}'
        assert (await call(proxy.port, body, path)).status == 200
    (request,) = upstream.requests
    assert request.target == target
    assert request.body == body


@pytest.mark.parametrize("model", ["g../x", "g../../v1/files", "g./x", "g..%2fx", "g.%2F%2E./x"])
async def test_nobody_climbs(upstream: Upstream, model: str) -> None:
    """What a route's `*` matched cannot lead a request to another path of its upstream."""
    toml = f'[upstreams.up]\nbase_url = "{upstream.url}"\n[routes]\n"g*" = {{ upstream = "up", model = "*" }}'  # fmt: skip
    async with serving(toml) as proxy:
        got = await call(proxy.port, b"{}", f"/v1beta/models/{model}:generateContent")
    assert got.status == 400
    assert upstream.requests == []


# Beside a body


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("model=m", ""),
        ("a=b&model=m&c=d", "a=b&c=d"),
        ("%6dodel=%6d&model=m", ""),
        ("MODEL=m&a", "a"),
        ("models=x&a=model=y", "models=x&a=model=y"),
        ("a=1;b=2", "a=1;b=2"),
    ],
)
def test_the_same_model_beside_a_body(query: str, kept: str) -> None:
    """What the query says again of a body is left out, and not a byte of the rest changes."""
    assert without_model(query, "m") == kept


@pytest.mark.parametrize(
    "query",
    [
        "model=other", "model=", "model", "Model=other", "%4dodel=other", "mode%6C=other",
        "model=m&model=other", "model=M", "model=m%20", "model=+m", "model=%ff", "a=1;model=m",
        "a;MODEL=other", "m%6Fdel;x=m",
    ],
)  # fmt: skip
def test_another_model_beside_a_body(query: str) -> None:
    """A query that says another model than the body does, in whatever case, is refused; so is one where
    the body says none.
    """
    for asked in ("m", None):
        with pytest.raises(BodyError) as refused:
            without_model(query, asked)
        assert refused.value.field == "model"
    with pytest.raises(BodyError):
        without_model("model=m", None)


async def test_model_in_the_query_of_a_post(upstream: Upstream) -> None:
    """At the wire: the same goes up without it, another one does not go up, and paths that carry no model
    keep whatever their query says.
    """
    toml = f"""
    [upstreams.up]
    base_url = "{upstream.url}"
    [routes]
    m = "up/m"
    default = "up/m"
    [unrouted]
    listen = "up"
    """
    async with serving(toml) as proxy:
        path = "/v1/chat/completions"
        assert (await call(proxy.port, chat("m"), f"{path}?a=%20&model=m")).status == 200
        for query, model in (("model=other", "m"), ("Model=other", "m"), ("model=m", None)):
            got = await call(proxy.port, chat(model), f"{path}?{query}")
            assert (got.status, got.code) == (400, "invalid_model")
            assert got.json()["error"]["param"] == "model"
        assert (await call(proxy.port, chat("m"), "/v1/listen?model=nova&Model=x")).status == 200
    targets = [received.target for received in upstream.requests]
    assert targets == ["/v1/chat/completions?a=%20", "/v1/listen?model=nova&Model=x"]
