"""I: logs and secrets. That no secret stands anywhere is checked after every case of every section."""

from collections.abc import Callable
from pathlib import Path

from tests.faults.case import case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.harness.client import request
from tests.harness.upstream import answer, close, hang, raw

OK = b'{"ok":true}'
FAILURES = {
    "closed": close(),
    "garbage": raw(b"\0\0\r\n\r\n"),
    "late": hang(),
    "500": answer(500, b"{}"),
}
IN_URL = "c0ffee11c0ffee22"


@case("I03", spots=Spot(extra='timeout = { first_byte = "200ms" }'), forms=FAILURES)
async def key_in_a_query(at: At, step: object) -> None:
    """What a caller puts into its query is in no message, and in no line of the log."""
    at["A"].will(step)  # type: ignore[arg-type]  # a step
    caller = await at.connect()
    await caller.send(at.request(path=f"/v1/chat/completions?token={IN_URL}"))
    got = await caller.answer()
    assert got.status >= 500
    await at.record()
    assert IN_URL.encode() not in got.raw
    assert IN_URL not in str(at.log())


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "long Authorization": lambda key: request(
        b"{}", headers=[(b"Authorization", b"Bearer " + key * 2000)]
    ),
    "PRI": lambda key: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + key,
    "garbage": lambda key: b"\0\1\2" + key + b"\r\n\r\n",
    "TLS hello": lambda key: b"\x16\x03\x01\x02\x00\x01" + key * 4 + b"\r\n\r\n",
    "key for a method": lambda key: key.upper() + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@case("I05", forms=GARBAGE)
async def garbage(at: At, write: Callable[[bytes], bytes]) -> None:
    """Of what is no request nothing is quoted: not to its sender, not in the log."""
    at.lines += 1
    caller = await at.connect()
    await caller.send(write(at.house.key.encode()))
    got = await caller.answer()
    assert got.status in (400, 431)
    assert at.house.key[8:20].upper().encode() not in got.raw.upper()
    await at.record()
    assert at.house.key[8:20].upper() not in str(at.log()).upper()


@case("I06", forms={"stream": True, "plain": False})
async def bodies(at: At, streams: bool) -> None:
    """Neither what is asked nor what is answered stands in the log."""
    at["A"].will(answer(body=b'{"completion":"canary-answer"}'))
    assert (await at.call(stream=streams)).status == 200
    await at.record()
    assert "canary-answer" not in str(at.log())


@case("I07")
async def process_list(at: At) -> None:
    """Who lists processes sees no secret."""
    line = Path(f"/proc/{at.house.pid}/cmdline").read_bytes()
    for place in at.house.places.values():
        assert not any(secret.encode() in line for secret in place.secrets)
    assert at.house.key.encode() not in line


@case("I08", forms={"valid": b"mine-1", "absent": b"", "long": b"x" * 5000, "odd": b"a b<script>"})
async def ids(at: At, own: bytes) -> None:
    """Our id stands on every answer, and is ours whatever the caller calls itself."""
    headers = [(b"x-request-id", own)] if own else []
    got = await at.call(headers=headers)
    identity = got.value(b"x-trunkline-id")
    assert identity is not None
    assert identity.startswith(b"req_")
    assert got.value(b"x-request-id") == identity
    assert (await at.record())["request_id"].encode() == identity
