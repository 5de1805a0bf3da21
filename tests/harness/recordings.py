"""Recorded answers of real vendors, where they are: others' data, which this project does not hold.

They are read from `$TRUNKLINE_RECORDINGS`, else from `shared/streams` beside the checkout.
"""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

STREAMS, ERRORS = 135, 51
"""How many there are, for who has none."""


@dataclass(frozen=True)
class Recording:
    """One answer: who gave it, at which *path*, with which *status* and *headers*, and its *body*."""

    name: str
    vendor: str
    endpoint: str
    path: str
    status: int
    headers: dict[str, str]
    file: Path

    @property
    def body(self) -> bytes:
        content = self.file.read_bytes()
        return gzip.decompress(content) if self.file.suffix == ".gz" else content

    def __str__(self) -> str:
        return self.name


def directory() -> Path:
    """Return where the recordings are, if they are anywhere."""
    told = os.environ.get("TRUNKLINE_RECORDINGS")
    return Path(told) if told else Path(__file__).parents[3] / "shared" / "streams"


def streams() -> list[Recording]:
    """Return the recorded streams, none where there are no recordings."""
    return _read("index.json")


def errors() -> list[Recording]:
    """Return the recorded errors, none where there are no recordings."""
    return _read("errors/index.json")


def _read(index: str) -> list[Recording]:
    file = directory() / index
    if not file.is_file():
        return []
    entries: list[dict[str, Any]] = orjson.loads(file.read_bytes())
    return [
        Recording(
            name=entry["file"],
            vendor=entry["vendor"],
            endpoint=entry.get("endpoint", ""),
            path=entry["path"],
            status=entry["status"],
            headers=entry["headers"],
            file=directory() / entry["file"],
        )
        for entry in entries
    ]
