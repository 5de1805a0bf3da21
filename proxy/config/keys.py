"""From `[keys]` to the ring of keys."""

import re
from hashlib import sha256

from proxy.config.draft import Draft
from proxy.config.problems import Path
from proxy.config.tables import KeyTable
from proxy.keys import Key, KeyRing

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def keys_of(draft: Draft) -> KeyRing:
    """Return every key of *draft*."""
    keys: dict[bytes, Key] = {}
    for name, table in draft.file.keys.items():
        digest = _digest(draft, name, table)
        if digest is None:
            continue
        if digest in keys:
            draft.problem(("keys", name), f'is the same key as "{keys[digest].name}"')
        models = None
        if table.models is not None:
            models = draft.patterns(table.models, ("keys", name, "models"))
        keys[digest] = Key(name, digest, models, table.expires)
    return KeyRing(tuple(keys.values()))


def _digest(draft: Draft, name: str, table: KeyTable) -> bytes | None:
    path: Path = ("keys", name)
    if (table.secret is None) == (table.hash is None):
        draft.problem(path, 'needs either the key itself or `hash = "sha256:…"`')
    elif table.hash is not None:
        if _HASH.fullmatch(table.hash):
            return bytes.fromhex(table.hash.removeprefix("sha256:"))
        draft.problem((*path, "hash"), "must be `sha256:` and 64 hexadecimal digits, lower case")
    elif table.secret is not None:
        short = isinstance(draft.at(path), str)
        if _HASH.fullmatch(table.secret):
            draft.problem(path, 'would be a key itself; write `{ hash = "sha256:…" }`')
        secret = draft.secret(table.secret, path if short else (*path, "secret"))
        return sha256(secret.reveal().encode("utf-8", "surrogateescape")).digest()
    return None
