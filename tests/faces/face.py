"""One of the systems as its clients see it, and the clients that its page shows."""

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.faces.model import Model
from tests.harness.client import Answer, Client, Pair, request
from tests.harness.upstream import Received

NODE = shutil.which("node")
CURL = shutil.which("curl")
PACKAGES = Path(__file__).parents[1] / "clients/node"
WITH_CURL = pytest.mark.skipif(CURL is None, reason="curl is not installed")
WITH_NODE = pytest.mark.skipif(
    NODE is None or not (PACKAGES / "node_modules/openai").is_dir(),
    reason="node, or its packages, are not installed",
)


@dataclass
class Face:
    """A system: *name*; what its clients know, the *origin* and the *key*; and the *model* behind it."""

    name: str
    file: str
    port: int
    key: str
    model: Model

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.port}"

    def here(self, text: str, *replaced: str) -> str:
        """Return what the page shows, with this address, and this key where it shows one."""
        site, *keys = replaced
        assert site in text
        text = text.replace(site, self.origin)
        for key in keys:
            assert key in text
            text = text.replace(key, self.key)
        return text

    def call(
        self,
        path: str,
        body: bytes = b"",
        headers: Sequence[Pair] = (),
        *,
        method: str | None = None,
        bearer: bool = False,
        host: bytes | None = None,
        address: str = "127.0.0.1",
    ) -> Answer:
        """Send a request, byte for byte."""
        if bearer:
            headers = [(b"Authorization", f"Bearer {self.key}".encode()), *headers]
        method = method or ("POST" if body else "GET")
        host = f"localhost:{self.port}".encode() if host is None else host
        return self.send(request(body, path, headers, method, host=host), address)

    def send(self, data: bytes, address: str = "127.0.0.1") -> Answer:
        """Send these bytes; return the answer to them."""

        async def sent() -> Answer:
            async with await Client.connect(self.port, address) as client:
                await client.send(data)
                return await client.answer()

        return asyncio.run(sent())

    def arrived(self) -> Received:
        """Return the one request that went upstream; the client's own key is not in it."""
        (request,) = self.model.requests
        assert self.key.encode() not in request.head + request.body
        return request

    def asked(self) -> Any:
        """Return the body of the one request that went upstream."""
        return orjson.loads(self.arrived().body)


def sh(command: str, **env: str) -> bytes:
    """Run *command* as it was typed into a shell; return what it printed."""
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        timeout=20,
        check=False,
        env={"PATH": os.environ["PATH"], **env},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def node(script: str, *, module: bool = True, **env: str) -> tuple[str, str]:
    """Run *script* beside the packages; return what it printed, and what it printed as errors."""
    kind = "module" if module else "commonjs"
    done = subprocess.run(
        [NODE or "node", f"--input-type={kind}", "-e", script],
        capture_output=True,
        timeout=40,
        check=False,
        cwd=PACKAGES,
        env={"PATH": os.environ["PATH"], **env},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def python(script: str) -> str:
    """Run *script*, as a program of its own but for its process; return what it printed."""
    said = io.StringIO()
    space: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(said):
        try:
            exec(compile(script, "<page>", "exec"), space)
        finally:
            if "client" in space:
                space["client"].close()
    return said.getvalue()
