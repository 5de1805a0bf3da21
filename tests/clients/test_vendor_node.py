"""Node SDKs at a vendor, and at the proxy in front of it: the scripts in `node/` call, these judge."""

import asyncio
import hashlib
import os
import subprocess
from typing import Any

import orjson
import pytest

from tests.clients.answers import ARGUMENTS, HEARD, PIXEL, SAID, SPEECH, TOOL, VECTOR, WORDS
from tests.clients.front import Access, Front
from tests.clients.test_node_sdks import MISSING, Said, command, value
from tests.clients.vendor import SECRETS, Vendor

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CITY = orjson.loads(ARGUMENTS)
CALLED = {"name": TOOL, "arguments": ARGUMENTS}

OPENAI = {
    "chat": SAID,
    "chat_stream": [SAID, 12],
    "chat_tools": [CALLED, SAID],
    "chat_tools_stream": ARGUMENTS,
    "completions": SAID,
    "embeddings": [[VECTOR, VECTOR]] * 2,
    "responses": SAID,
    "responses_stream": [SAID, "response.completed"],
    "responses_tools": [ARGUMENTS, SAID],
    "responses_kept": [SAID, ["msg_0"], "cancelled"],
    "moderations": False,
    "files": [36000, ["file-1"], "requests.jsonl", True, True],
    "batches": ["validating", "in_progress", ["batch_1"], "cancelling"],
    "transcription": HEARD,
    "transcription_stream": ["Two ", "words.", HEARD],
    "translation": HEARD,
    "speech": hashlib.sha256(SPEECH).hexdigest(),
    "images": [PIXEL] * 3,
    "realtime": [SAID, 1000],
    "realtime_browser": [SAID, 1000],
}
ANTHROPIC = {
    "message": SAID,
    "events": [SAID, "message_stop"],
    "stream": SAID,
    "tools": [CITY, SAID],
    "tools_stream": CITY,
    "beta": SAID,
    "count_tokens": 9,
}
GOOGLE = {
    "generate": SAID,
    "stream": list(WORDS),
    "tools": CITY,
    "chat": SAID,
    "count_tokens": 9,
    "embeddings": [VECTOR, VECTOR],
}
VERCEL: dict[str, Any] = {
    **{
        case: expected
        for model in ("responses", "chat", "claude", "google", "any")
        for case, expected in {
            model: SAID,
            f"{model}_stream": SAID,
            f"{model}_tools": [CITY, SAID],
            f"{model}_tools_stream": [CITY, SAID],
        }.items()
    },
    "oai_embeddings": [VECTOR, VECTOR],
    "any_embeddings": [VECTOR, VECTOR],
    "google_embeddings": [VECTOR, VECTOR],
    "transcription": HEARD,
    "speech": len(SPEECH),
    "image": PIXEL,
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "vendor_openai.mjs": OPENAI,
    "vendor_anthropic.mjs": ANTHROPIC,
    "vendor_google.mjs": GOOGLE,
    "vendor_ai_sdk.mjs": VERCEL,
}


def run(script: str, at: Access) -> Said:
    """Run all cases of *script*."""
    keys = {name.upper(): key for name, key in at.keys.items()}
    done = subprocess.run(
        command(script),
        env={"PATH": os.environ["PATH"], "BASE_URL": at.url, **keys},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    said: Said = orjson.loads(done.stdout)
    return said


@pytest.mark.parametrize("script", SCRIPTS)
def test_direct(script: str, vendor: Vendor) -> None:
    """The vendor answers each SDK as the real ones do."""
    said = run(script, Access(vendor.origin, SECRETS))
    assert {case: value(said, case) for case in said} == SCRIPTS[script]


@pytest.mark.parametrize("script", SCRIPTS)
async def test_proxied(script: str, front: Front) -> None:
    """A script's SDK and the vendor see each other through the proxy as they do without it."""

    said = await front.same(lambda at: asyncio.to_thread(run, script, at))
    assert {case: value(said, case) for case in said} == SCRIPTS[script]
