"""The example files as they are shipped, run here by what they leave to the environment: where they
listen, who is behind them, which keys there are.
"""

import contextlib
import io
import re
import socket
import tomllib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from proxy.cli import main
from proxy.config import presets

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
FACES = ("aihummer", "aihubspot", "gateway", "humiris")
BEHIND = {
    "AIHUMMER_DEFAULT": "openai/gpt-4o",
    "AIHUBSPOT_GPT": "openai/gpt-4o",
    "AIHUBSPOT_CLAUDE": "anthropic/claude-sonnet-4-5",
    "GATEWAY_DEFAULT": "openai/gpt-4o-mini",
    "GATEWAY_QWEN": "dashscope-intl/qwen-turbo",
    "GATEWAY_GPT": "openai/gpt-4o",
    "HUMIRIS_FAST": "groq/llama-3.3-70b-versatile",
    "HUMIRIS_DEEP": "anthropic/claude-sonnet-4-5",
}
"""Who is behind which route: what the comments of the files propose."""
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?::-([^}]*))?\}")


def text_of(name: str) -> str:
    """Return the file *name* of the examples; an agent that it shows in a comment is there."""
    text = (EXAMPLES / f"{name}.toml").read_text("utf-8")
    return re.sub(r"^# (\w+ = \{ base_url.*\})$", r"\1", text, flags=re.MULTILINE)


def shipped(name: str) -> dict[str, Any]:
    """Return what the file *name* of the examples says while no variable is set."""
    return tomllib.loads(_VARIABLE.sub(lambda found: found[2] or "", text_of(name)))


def surface(name: str, face: str) -> dict[str, Any]:
    """Return the table of the surface of *face* in the file *name*."""
    data = shipped(name)
    tables: list[dict[str, Any]] = data.get("surface") or [data["server"]]
    (table,) = (one for one in tables if one["name"] == face)
    return table


def listens(table: dict[str, Any]) -> list[str]:
    """Return the addresses that the surface of *table* listens on."""
    listen = table["listen"]
    return [listen] if isinstance(listen, str) else list(listen)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def new_key(prefix: str) -> str:
    """Make a key as an operator makes it, with `trunkline keys new`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["keys", "new", "somebody", "--prefix", prefix]) == 0
    key, _, rest = said.getvalue().partition("\n")
    assert f'hash    = "sha256:{sha256(key.encode()).hexdigest()}"' in rest
    return key


def keys() -> dict[str, str]:
    """Return a key for each system, such as its page shows."""
    return {
        "aihummer": new_key("ah-"),
        "aihubspot": new_key("AH_SMKRPA_"),
        "gateway": "not-needed",
        "humiris": new_key(""),
    }


@dataclass(frozen=True)
class Prepared:
    """A routes file that runs here: its text, its environment, the port that each port in it has
    become, and what must never be seen.
    """

    toml: str
    env: dict[str, str]
    ports: dict[int, int]
    secrets: tuple[str, ...]


def prepare(name: str, origin: str, known: dict[str, str]) -> Prepared:
    """Take the file *name*: give it ports that are free, the *known* keys, and vendors at *origin*."""
    text, data = text_of(name), shipped(name)
    tables = data.get("surface") or [data["server"]]
    wanted = sorted({port_of(one) for table in tables for one in listens(table)})
    ports = dict(zip(wanted, _free(len(wanted)), strict=True))
    env = {}
    for variable, default in _VARIABLE.findall(text):
        if variable.endswith("_LISTEN"):
            host, _, port = default.rpartition(":")
            env[variable] = f"{host}:{ports[int(port)]}"
        elif variable.endswith("_KEY"):
            env[variable] = known[variable.removesuffix("_KEY").lower()]
        else:
            env[variable] = BEHIND[variable]
    listening = re.compile(r"^listen\s*=\s*\[.*$", re.MULTILINE)
    text = listening.sub(lambda line: _moved(line[0], ports), text)
    text = re.sub(r'(\bbase_url\s*=\s*)"[^"]*"', rf'\1"{origin}/v1"', text)
    secrets = [key for face, key in known.items() if face != "gateway"]
    for preset in sorted({to.partition("/")[0] for to in env.values() if to in BEHIND.values()}):
        text += f'\n[upstreams.{preset}]\nbase_url = "{origin}/v1"\n'
        for variable in presets.load()[preset].env:
            env[variable] = f"secret-of-{variable}"
            secrets.append(env[variable])
    return Prepared(text, env, ports, tuple(secrets))


def _moved(line: str, ports: dict[int, int]) -> str:
    """Return the *line* with the ports that stand in it moved."""
    return re.sub(r':(\d+)"', lambda port: f':{ports[int(port[1])]}"', line)


def _free(count: int) -> list[int]:
    """Return ports that nobody listens on, neither on IPv4 nor on IPv6."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
