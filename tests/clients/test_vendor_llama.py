"""LlamaIndex at a vendor, and at the proxy in front of it: `llama.py` calls, this judges."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.clients.answers import ARGUMENTS, SAID, TOOL, VECTOR
from tests.clients.front import Access, Front

PYTHON = Path(".venv-llama/bin/python")
"""An environment of its own: LlamaIndex and the newest OpenAI SDK cannot be installed together."""
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="LlamaIndex is not installed: scripts/venv tests/clients/llama.txt .venv-llama",
)
USUAL = [SAID] * 5 + [TOOL, orjson.loads(ARGUMENTS)]
EXPECTED = {"chat": USUAL, "responses": USUAL, "embeddings": [VECTOR] * 3}


def run(at: Access) -> Any:
    """Make all the calls of the script."""
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("llama.py")],
        env={"PATH": os.environ["PATH"], "BASE_URL": at.url, "OAI": at.keys["oai"]},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return orjson.loads(done.stdout)


async def test_proxied(front: Front) -> None:
    """LlamaIndex and the vendor see each other through the proxy as they do without it."""
    assert await front.same(lambda at: asyncio.to_thread(run, at)) == EXPECTED
