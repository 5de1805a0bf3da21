"""What real vendors have answered, through the proxy: recordings that stand beside the checkout, or nowhere."""

import gzip
import random
from decimal import Decimal

import pytest

from proxy.shapes import Meaning, read
from proxy.tally import Tally
from proxy.usage import KINDS, Counts, Usage
from proxy.wire.coding import Unpacker
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.recordings import ERRORS, STREAMS, Recording, directory, errors, streams
from tests.harness.upstream import Upstream, answer, stream
from tests.used import USED

MEANT = {
    "errors/bedrock-403-1.body": Meaning.CREDENTIAL,
    "errors/gemini-400-1.body": Meaning.CREDENTIAL,
    "errors/xai-400-1.body": Meaning.CREDENTIAL,
    "errors/cohere-400-1.body": Meaning.TOO_LONG,
    "errors/ollama-cloud-400-1.body": Meaning.TOO_LONG,
    "errors/openai-400-10.body": Meaning.TOO_LONG,
    "errors/openrouter-400-1.body": Meaning.TOO_LONG,
    "errors/perplexity-400-1.body": Meaning.TOO_LONG,
}
"""What those mean whose status does not tell."""


if not (directory() / "index.json").is_file():
    pytest.skip(
        f"no recordings here: {STREAMS} streams and {ERRORS} errors were not run",
        allow_module_level=True,
    )


def test_all_are_run() -> None:
    """None of the recordings is left out."""
    assert (len(streams()), len(errors())) >= (STREAMS, ERRORS)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("error", errors(), ids=str)
async def test_errors(error: Recording, packed: bool) -> None:
    """A recorded error means what its vendor means by it: a dead credential is ours and shown to
    nobody, a prompt that is too long leads on, everything else is relayed as it came.
    """
    status = error.status
    body = gzip.compress(error.body, mtime=0) if packed else error.body
    coding = [(b"Content-Encoding", b"gzip")] if packed else []
    kind = (b"Content-Type", error.headers.get("content-type", "application/json").encode())
    meant = MEANT.get(error.name, Meaning.CREDENTIAL if status == 401 else None)
    assert read(status, body, b"gzip" if packed else b"") is meant
    async with Upstream() as first, Upstream() as second:
        first.will(answer(status, body, [kind, *coding]))
        second.will(answer(status, body, [kind, *coding]))
        toml = f"""
[upstreams]
a = {{ base_url = "{first.url}", credential = "sk-a" }}
b = {{ base_url = "{second.url}", credential = "sk-b" }}
[routes]
m = {{ upstream = "a", fallback = "b/m", on_context_length = true }}
"""
        async with serving(toml) as proxy:
            got = await call(proxy.port, chat("m"))
            record = await proxy.record()
        if meant is Meaning.CREDENTIAL:
            assert (got.status, got.code) == (502, "upstream_auth")
        else:
            assert (got.status, got.body) == (status, body)
        asked_on = meant is not None or status == 429
        assert len(second.requests) == asked_on
        assert not any(attempt["maybe_billed"] for attempt in record["attempts"])


FAILED = {
    "gpustack/chat-error-field.sse.gz",
    "groq/chat-3.sse",
    "groq/chat-error-event-with-text.sse.gz",
    "groq/chat-error-event.sse.gz",
    "openrouter/chat-7.sse",
    "openrouter/chat-error-event.sse.gz",
}
"""In which the vendor says that it has failed."""
SPOKEN = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "gemini": "/v1beta/models/m:streamGenerateContent?alt=sse",
    "transcriptions": "/v1/audio/transcriptions",
}
"""Where their forms are spoken here; all others go by path."""


def place(recording: Recording) -> str:
    """Return the path at which *recording* is asked for."""
    native = recording.file.suffix in (".ndjson", ".eventstream") or recording.vendor == "cohere"
    if native or recording.endpoint not in SPOKEN:
        return "/v1/files/recorded/content"
    azure = recording.vendor == "azure-foundry" and recording.endpoint == "completions"
    return SPOKEN["chat" if azure else recording.endpoint]


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "echo"])
@pytest.mark.parametrize("recording", streams(), ids=str)
async def test_streams(recording: Recording, echo: bool) -> None:
    """A recorded stream passes byte for byte, is finished, and is taken for what it was, in pieces of any
    size; and where a name is put into it, it is finished all the same.
    """
    body, path = recording.body, place(recording)
    kind = (b"Content-Type", recording.headers["content-type"].encode())
    asked = chat("asked", stream=True) if path.startswith("/v1/") else b"{}"
    by_path = path.startswith("/v1/files")
    async with Upstream() as upstream:
        toml = f"""
[server]
echo_model = {str(echo).lower()}
[upstreams.a]
base_url = "{upstream.url}"
credential = "sk-a"
[routes]
"*" = {{ upstream = "a", model = "sent", keepalive = "30s" }}
[unrouted]
files = "a"
"""
        async with serving(toml) as proxy:
            for count, size in enumerate((len(body) or 1, 1448), 1):
                pieces = [body[at : at + size] for at in range(0, len(body), size)]
                upstream.will(stream(*pieces, headers=[kind], status=recording.status))
                if by_path:
                    got = await call(proxy.port, b"", path, method="GET", length=False)
                else:
                    got = await call(proxy.port, asked, path)
                assert (got.status, got.whole) == (recording.status, True)
                if not echo or by_path:
                    assert got.body == body
                record = await proxy.record(count)
                failed = recording.name in FAILED
                assert record["outcome"] == ("upstream_error" if failed else "ok")
                assert record["error"] == ("upstream_error_event" if failed else None)
                assert record["attempts"][0]["maybe_billed"] is failed


USED_IN = {"transcriptions": "audio", "completions": "chat"}
"""Whose dialect has another name than the endpoint."""


def used(name: str) -> Usage:
    """Return what the recording of this *name* says that it used, as it was read by hand."""
    counts, reason, model, more = USED[name]
    others = more.get("others", {})
    return Usage(
        counts=Counts(**dict(zip(KINDS, counts, strict=True))),
        finish_reason=reason,
        model=model,
        service_tier=more.get("service_tier"),
        cost=Decimal(more["cost"]) if "cost" in more else None,
        tools=more.get("tools", {}),
        others=tuple(
            (other, Counts(**dict(zip(KINDS, told, strict=True)))) for other, told in others.items()
        ),
        conflict=more.get("conflict", False),
    )


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("recording", [one for one in streams() if one.name in USED], ids=str)
def test_used(recording: Recording, packed: bool) -> None:
    """What a vendor has said that it used is what was read from it by hand, however its answer is cut."""
    body = gzip.compress(recording.body) if packed else recording.body
    dialect = USED_IN.get(recording.endpoint, recording.endpoint)
    chance = random.Random(recording.name)
    for sizes in ([len(body)], [1448], [1, 2, 3, 7, 40, 300, 9000], [300]):
        tap = Tally(dialect, Unpacker("gzip") if packed else None)
        at = 0
        while at < len(body):
            size = chance.choice(sizes)
            tap.feed(body[at : at + size])
            at += size
        assert tap.usage(whole=True) == used(recording.name)
