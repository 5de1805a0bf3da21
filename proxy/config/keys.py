"""From `[keys]` to the ring of keys."""

import re
from collections.abc import Iterable
from hashlib import sha256

from proxy.config.draft import Draft
from proxy.config.instead import MISPLACED, is_route
from proxy.config.problems import Path
from proxy.config.tables import KeyTable
from proxy.keys import Key, KeyRing
from proxy.surfaces import Surface

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def keys_of(draft: Draft, surfaces: Iterable[Surface]) -> KeyRing:
    """Return every key of *draft*, which *surfaces* ask for."""
    exposed = any(surface.auth == "keys" and surface.exposed for surface in surfaces)
    keys: dict[bytes, Key] = {}
    for name, table in draft.file.keys.items():
        digest = _digest(draft, name, table, exposed=exposed)
        if digest is None:
            continue
        if digest in keys:
            draft.problem(("keys", name), f'is the same key as "{keys[digest].name}"')
        models = None
        if table.models is not None:
            models = draft.patterns(table.models, ("keys", name, "models"))
        keys[digest] = Key(name, digest, models, table.expires)
    return KeyRing(tuple(keys.values()))


def _digest(draft: Draft, name: str, table: KeyTable, *, exposed: bool) -> bytes | None:
    path: Path = ("keys", name)
    if (table.secret is None) == (table.hash is None):
        draft.problem(path, 'needs either the key itself or `hash = "sha256:…"`')
    elif table.hash is not None:
        if _HASH.fullmatch(table.hash):
            digest = bytes.fromhex(table.hash.removeprefix("sha256:"))
            draft.weigh(path, None, digest, exposed=exposed)
            return digest
        draft.problem((*path, "hash"), "must be `sha256:` and 64 hexadecimal digits, lower case")
    elif table.secret is not None:
        short = isinstance(draft.at(path), str)
        if short and is_route(draft.at(path), {*draft.file.upstreams, *draft.presets}):
            draft.problem(path, MISPLACED)
        if _HASH.fullmatch(table.secret):
            draft.problem(path, 'would be a key itself; write `{ hash = "sha256:…" }`')
        text = draft.secret(table.secret, path if short else (*path, "secret")).reveal()
        digest = sha256(text.encode("utf-8", "surrogateescape")).digest()
        draft.weigh(path, text, digest, exposed=exposed)
        return digest
    return None
