"""What real vendors have answered, through the proxy: recordings that stand beside the checkout, or nowhere."""

import gzip

import pytest

from proxy.shapes import Meaning, read
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.recordings import ERRORS, STREAMS, Recording, directory, errors, streams
from tests.harness.upstream import Upstream, answer

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
