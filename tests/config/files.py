"""What the tests of `routes.toml` share: how a file is written, read and changed, and one that has everything."""

import signal
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.config import ConfigError, Snapshot, load
from proxy.config.problems import dotted
from proxy.config.tables import Table
from proxy.routes import Route, Target, Upstream

Node = tuple[str | int, ...]

ROUTES = '[routes]\nm = "openai/x"\n'
"""What a file needs to be valid, when all else is about something else."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when the body takes more than *seconds* of processor time, though it be an endless loop."""

    def overdue(*_: object) -> None:
        raise AssertionError(f"takes over {seconds} s")

    before = signal.signal(signal.SIGVTALRM, overdue)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def read(
    toml: str | bytes,
    env: Mapping[str, str] | None = None,
    *,
    listen: str | None = None,
    keyed: bool = False,
) -> Snapshot:
    """Load *toml* from a file, quickly."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "routes.toml")
        file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        with within(10):  # a thousand mistakes take three on a slow machine
            return load(file, env or {}, listen=listen, keyed=keyed)


def told(
    toml: str | bytes, env: Mapping[str, str] | None = None, *, listen: str | None = None
) -> dict[str, str]:
    """Return what is wrong with *toml*, by key path; no word of it may quote a value of *env*."""
    with pytest.raises(ConfigError) as caught:
        read(toml, env, listen=listen)
    error = caught.value
    everything = "".join(traceback.format_exception(error)) + repr(error) + repr(error.problems)
    for name, value in (env or {}).items():
        assert len(value) < 4 or value not in everything, f"the value of {name} is told"
    assert all("\n" not in problem.message for problem in error.problems)
    return {dotted(problem.path): problem.message for problem in error.problems}


def toml_of(value: Any) -> str:
    """Write a tree as TOML, its tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)} = {toml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, date) else str(value)


def _text(text: str) -> str:
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def file_of(tree: Mapping[str, Any]) -> str:
    return "".join(f"{_text(key)} = {toml_of(value)}\n" for key, value in tree.items())


def changed(tree: Mapping[str, Any], path: Node, value: Any) -> dict[str, Any]:
    """Return a copy of *tree* that has *value* at *path*."""
    copy: Any = deepcopy(tree)
    inner = copy
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    whole: dict[str, Any] = copy
    return whole


def nodes(tree: Any, path: Node = ()) -> Iterator[tuple[Node, Any]]:
    """Yield every place in *tree* below its root, and what stands there."""
    items: Any = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*path, key), value
        yield from nodes(value, (*path, key))


HASH = "sha256:" + sha256(b"mobile").hexdigest()

FULL: dict[str, Any] = {
    "server": {
        "max_body": "1MiB", "max_inflight": 10, "max_held": 2**21, "drain": "5s", "lame_duck": "250ms",
        "keepalive_idle": "90s",
        "workers": 2, "worker_timeout": "20s", "peer_timeout": "50s",
    },
    "defaults": {
        "timeout": {"connect": "1s", "first_byte": "20s", "idle": "1m30s", "write": "250ms", "total": "none"},
        "retry": {
            "attempts": 4, "deadline": "60s", "stale": False, "failover_5xx": False, "ambiguous": True,
            "next": False, "also": [404, 410],
        },
        "keepalive": "15s",
    },
    "surface": [
        {
            "name": "apps",
            "listen": "0.0.0.0:8765",
            "base_paths": ["/v1", "/api/v1"],
            "auth": "keys",
            "accept": ["authorization", "apikey"],
            "routes": ["default", "qwen/*"],
            "models": "list",
            "endpoints": ["chat/completions", "responses"],
            "hosts": [],
            "docs": False,
            "echo_model": True,
            "errors": {"401": "Unauthorized"},
            "cors": ["https://app.example.com"],
            "trusted_proxies": ["10.0.0.0/8"],
            "strip": ["X-Visitor", "x_corp-*"],
        },
        {
            "name": "local",
            "mode": "0660",
            "group": "0",
            "listen": ["127.0.0.1:8766", "[::1]:8766", "unix:/run/trunkline.sock"],
            "auth": "none",
            "models": "hidden",
            "endpoints": "all",
            "hosts": ["GPU.lan"],
            "open": False,
        },
    ],
    "upstreams": {
        "openai": {
            "credential": [
                "sk-openai-0123456789", {"header": "x-second", "secret": "sk-openai-9876543210"},
            ],
            "retry": {"attempts": 2},
        },
        "corp": {
            "base_url": "https://llm.corp.example:8443/v1/",
            "credential": {"header": "apikey", "secret": "sk-corp-0123456789"},
            "headers": {"x-team": "search"},
            "paths": {"messages": "https://llm.corp.example/anthropic/v1"},
            "proxy": "http://egress.corp.example:3128",
            "terminal": "done",
            "passthrough": True,
            "forward": ["x-mix"],
            "timeout": {"idle": "7s"},
        },
        "eu": {
            "preset": "azure",
            "vars": {"resource": "acme-eu"},
            "env": ["EU_KEY", "EU_KEY_2"],
            "optional": True,
            "form": "apikey",
            "forms": {"messages": "x-api-key"},
            "defaults": {"messages": {"anthropic-version": "2024-01-01"}},
            "speaks": ["chat", "messages"],
            "billed": False,
        },
        "vertex": {
            "vars": {"location": "europe-west1", "project": "acme"},
            "credential": {
                "command": ["gcloud", "auth", "print-access-token"],
                "refresh": "50m",
            },
        },
    },
    "unrouted": {"files": "openai", "fine_tuning/jobs": "openai", "*": "corp"},
    "routes": {
        "default": "openai/gpt-4o",
        "qwen/*": {"upstream": "dashscope-intl", "list": ["qwen/qwen-turbo"]},
        "alias": "default",
        "team": {"upstream": "corp", "model": "big", "timeout": {"total": "60s"}},
        "fast/*": {
            "targets": [
                "openai/gpt-4o-mini", {"to": "corp/small-*", "weight": 2.5}, {"to": "alias"},
            ],
            "policy": "weighted",
            "sticky": "X-Session-Id",
            "fallback": ["team", "openai/gpt-*"],
            "retry": {"attempts": 9, "deadline": "none"},
            "on_context_length": True,
            "peek": True,
            "keepalive": "5s",
        },
        "mix": {"header": "x-mix", "missing": "NoMix", "unknown": "BadMix", "to": {"a": "openai/x"}},
        "own/*": {"base_url": "http://[::1]:8000/v1", "credential": "sk-own-0123456789", "model": "*"},
    },
    "keys": {
        "team": "tk-0123456789abcdef",
        "mobile": {"hash": HASH, "models": ["default", "openai/*"], "expires": date(2027, 6, 30)},
        "long": {"secret": "tk-9876543210abcdef"},
    },
    "hooks": {"alerts": {"route": "default", "system": "Be brief.", "secret": "hk-0123456789abcdef"}},
    "log": {"format": "json", "level": "debug"},
}  # fmt: skip
"""Every table and every key that there is, with a value other than the built-in one; but for `ca`, `tls`
and `client_certificate`, which name files that must be there.
"""


def tables(table: type[Table] = Table) -> Iterator[type[Table]]:
    """Yield every kind of table that there is."""
    for kind in table.__subclasses__():
        yield kind
        yield from tables(kind)


def place(route: Route, target: Target, asked: str = "m") -> str:
    """Write where *target* of *route* leads, as the file does."""
    return f"{target.upstream.name}/{route.model_sent(target, asked)}"


def _upstream(snapshot: Snapshot, model: str = "m") -> Upstream:
    route = snapshot.routes.match(model)
    assert route is not None
    return route.first.upstream


SECRET_FILE = "from-a-file"


def route_of(toml: str, model: str = "m", env: Mapping[str, str] | None = None) -> Route:
    """Return the route of *model*."""
    route = read(toml, env).routes.match(model)
    assert route is not None
    return route


def notes(toml: str) -> dict[str, str]:
    """Return what `check` notes of *toml*, by key path."""
    return {dotted(note.path): note.message for note in read(toml).notes}
