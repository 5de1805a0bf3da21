"""Presets: what `presets.toml` knows of vendors, read once per load."""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    """A known vendor. Field by field, the head of `presets.toml` says what each means."""

    title: str = ""
    base_url: str | None = None
    env: list[str] = field(default_factory=list)
    optional: bool = False
    vars: dict[str, str] = field(default_factory=dict)
    form: str = "bearer"
    forms: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, dict[str, str]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    speaks: list[str] | None = None
    billed: bool = True
    own: str = ""
    dated: bool = False
    terminal: str = "auto"
    docs: str = ""
    checked: str = ""
    inferred: list[str] = field(default_factory=list)


@cache  # a file of the package, read by everything that reads routes
def load() -> dict[str, Preset]:
    """Return every preset by its name."""
    text = files("proxy.config").joinpath("presets.toml").read_text("utf-8")
    tables: dict[str, dict[str, Any]] = tomllib.loads(text)
    return {name: Preset(**table) for name, table in tables.items()}
