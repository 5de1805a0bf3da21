"""All four systems at once, in one process: each knows its own clients, and shows its own names."""

import asyncio
from itertools import permutations

import pytest

from tests.faces.files import FACES, Prepared, listens, port_of, shipped, surface
from tests.faces.model import Model
from tests.faces.test_humiris import MODEL
from tests.harness.client import Answer, Client, Pair, chat, request

ASKED = {"aihummer": "default", "aihubspot": "gpt-4o", "gateway": "default", "humiris": MODEL}
OWN_NAMES = {
    "aihummer": {"default"},
    "aihubspot": {"gpt-4o", "claude-3-5-sonnet"},
    "gateway": {"default", "qwen/qwen-turbo", "openai/gpt-4o"},
    "humiris": {MODEL},
}


def port(together: Prepared, face: str) -> int:
    return together.ports[port_of(listens(surface("all", face))[0])]


def path(face: str, below: str = "chat/completions") -> str:
    return f"{'/api/v1' if face == 'humiris' else '/v1'}/{below}"


def signed(face: str, key: str) -> list[Pair]:
    """Present *key* as the clients of *face* do, with the mix that they choose."""
    if face == "humiris":
        mix = next(iter(shipped("all")["routes"][MODEL]["to"]))
        return [(b"apikey", key.encode()), (b"mixTuningId", mix.encode())]
    return [(b"Authorization", f"Bearer {key}".encode())]


async def ask(together: Prepared, face: str, key: str, model: str, **fields: bool) -> Answer:
    async with await Client.connect(port(together, face)) as client:
        body = chat(model, "hello", **fields)
        host = f"localhost:{port(together, face)}".encode()
        await client.send(request(body, path(face), signed(face, key), host=host))
        return await client.answer()


async def test_at_once(together: Prepared, known: dict[str, str], model: Model) -> None:
    """Sixteen clients, four of each system, plain and streaming, are served at the same time."""
    model.stands_behind("aihubspot")
    asking = [
        ask(together, face, known[face], ASKED[face], stream=streamed)
        for _ in range(2)
        for face in FACES
        for streamed in (False, True)
    ]
    answers = await asyncio.gather(*asking)
    assert {got.status for got in answers} == {200}
    assert len(model.requests) == len(asking)


@pytest.mark.parametrize(("one", "other"), list(permutations(FACES, 2)))
async def test_keys_are_ones_own(
    together: Prepared, known: dict[str, str], model: Model, one: str, other: str
) -> None:
    """The key of one system calls nothing of another's."""
    model.stands_behind("aihubspot")
    for asked in OWN_NAMES[other]:
        got = await ask(together, other, known[one], asked)
        if other == "gateway":
            assert got.status == 200  # it asks for no key, and takes any
        else:
            assert got.status in (401, 403, 404)
            assert model.requests == []


@pytest.mark.parametrize("face", FACES)
async def test_names_are_ones_own(together: Prepared, known: dict[str, str], face: str) -> None:
    """No system shows a model of another one: not in its list, its pages, its status, or an error."""
    foreign = set().union(*OWN_NAMES.values()) - OWN_NAMES[face] - {"default"}  # a word
    for key in (known[face], ""):
        for target in (
            path(face, "models"),
            *("/docs", "/docs/api", "/openapi.json", "/docs/llm.json", "/llms.txt", "/status"),
        ):
            async with await Client.connect(port(together, face)) as client:
                headers = signed(face, key) if key else []
                host = f"localhost:{port(together, face)}".encode()
                await client.send(request(b"", target, headers, "GET", host=host))
                got = await client.answer()
            for name in foreign:
                assert f'"{name}"'.encode() not in got.body, (target, name)
    for name in foreign:
        got = await ask(together, face, known[face], name[:-1] + "_")
        for other in foreign:
            assert f'\\"{other}\\"'.encode() not in got.body
