"""Java's own HttpClient, which Spring and LangChain4j stand on: it offers HTTP/2 with its first request."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest

from tests.harness.proxy import Proxy
from tests.harness.upstream import DONE, Upstream, answer, event, stream

JAVA = shutil.which("java")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(JAVA is None, reason="java is not installed"),
]

ASK = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] words) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int turn = 0; turn < 3; turn++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(words[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(words[1]))
                .build();
            HttpResponse<String> got = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(got.statusCode() + " " + got.version() + " " + got.body().trim());
        }
    }
}
"""


@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("streams", [False, True])
async def test_http_client(
    proxy: Proxy, upstream: Upstream, tmp_path: Path, streams: bool, size: int
) -> None:
    """As it comes, it has its answers, one after the other, and the upstream has its bodies."""
    upstream.will(stream(event(b"1"), DONE) if streams else answer(body=b'{"ok":true}'))
    program = tmp_path / "Ask.java"
    program.write_text(ASK)
    body = orjson.dumps({"model": "m", "stream": streams, "text": "x" * size})
    said = body.decode()
    if size > 100_000:  # more than an argument holds
        program.write_text(ASK.replace("words[1]", f'words[1].replace("@", "x".repeat({size}))'))
        said = said.replace("x" * size, "@")
    done = await asyncio.to_thread(
        subprocess.run,
        ["java", str(program), f"{proxy.url}/v1/chat/completions", said],
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = b"data: 1\n\ndata: [DONE]" if streams else b'{"ok":true}'
    assert done.stdout == b"200 HTTP_1_1 %b\n" % told * 3
    assert [seen.body for seen in upstream.requests] == [body] * 3
    assert upstream.requests[0].value(b"http2-settings") is None
    assert upstream.requests[0].value(b"upgrade") is None
