"""`trunkline presets [NAME]`: the vendors that need no table, and whether their variable is set."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.cli.environment import environ, option
from proxy.config.presets import Preset, load
from proxy.config.problems import suggest
from proxy.credentials import FORMS
from proxy.dialects import ENDPOINTS, GEMINI

_ASKED_FOR = {"models": "models", "files": "files", "gemini": "models/{model}:generateContent"}


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "presets", parents=[option()], help="list the vendors that need no table"
    )
    parser.add_argument("name", nargs="?", help="say all that is known of this one")
    parser.add_argument(
        "--markdown", action="store_true", help="write the table of docs/vendors.md"
    )
    parser.set_defaults(run=run, config=None)


def run(options: argparse.Namespace) -> int:
    """List the presets, or show one."""
    presets = load()
    if options.markdown:
        print(markdown(presets), end="")
        return 0
    values = environ(options)
    if options.name is None:
        _table(presets, values)
        return 0
    preset = presets.get(options.name)
    if preset is None:
        hint = suggest(options.name, presets)
        sys.stderr.write(f'there is no preset "{options.name}"{hint}\n')
        return 2
    _show(options.name, preset, values)
    return 0


def urls(preset: Preset) -> list[tuple[str, str, str]]:
    """Return what *preset* speaks: the dialect, the URL of its first endpoint, the credential's form."""
    found = []
    for name in preset.speaks or ():
        paths = [path for path, dialect in ENDPOINTS.items() if dialect.name == name]
        suffix = paths[0] if paths else _ASKED_FOR[name]
        base = _base(preset, name if name == GEMINI.name else suffix)
        found.append((name, f"{base}/{suffix}", _form(preset, name)))
    return found


def _base(preset: Preset, place: str) -> str | None:
    """Return the base URL of *place*, a path or the beginning of some."""
    fitting = [path for path in preset.paths if f"{place}/".startswith(f"{path}/")]
    return preset.paths[max(fitting, key=len)] if fitting else preset.base_url


def _form(preset: Preset, dialect: str) -> str:
    """Say how the credential is presented to *dialect*."""
    if not preset.env:
        return "none"
    header, prefix = FORMS[preset.forms.get(dialect, preset.form)]
    return f"{header}: {prefix}…"


def _state(preset: Preset, values: Mapping[str, str]) -> str:
    """Say which variable is set, or which one is missing. Never what it holds."""
    lacking = [variable for variable in preset.vars.values() if not _is_set(variable, values)]
    found = [variable for variable in preset.env if _is_set(variable, values)]
    if preset.env and not found and not preset.optional:
        lacking.append(preset.env[0])
    if lacking:
        return f"dormant: {', '.join(lacking)} not set"
    return f"ready: {found[0]}" if found else "ready: needs no variable"


def _is_set(variable: str, values: Mapping[str, str]) -> bool:
    return bool(values.get(variable) or values.get(variable + "_FILE"))


def _table(presets: Mapping[str, Preset], values: Mapping[str, str]) -> None:
    rows = [("PRESET", "BASE URL", "STATE")]
    rows += [
        (name, preset.base_url or "", _state(preset, values)) for name, preset in presets.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, base, state in rows:
        print(f"{name:<{widths[0]}}  {base:<{widths[1]}}  {state}")


def _show(name: str, preset: Preset, values: Mapping[str, str]) -> None:
    lines = [("preset", f"{name}: {preset.title}"), ("state", _state(preset, values))]
    lines.append(("base_url", preset.base_url or ""))
    lines += [("path", f"{prefix} → {base}") for prefix, base in preset.paths.items()]
    lines += [("var", f"{part} from {variable}") for part, variable in preset.vars.items()]
    lines += [("variable", variable) for variable in preset.env]
    lines += [("speaks", f"{one:<12}  {url}  {form}") for one, url, form in urls(preset)]
    lines += [
        ("header", f"{key}: {value}  ({dialect})")
        for dialect, headers in preset.defaults.items()
        for key, value in headers.items()
    ]
    lines.append(("billed", "yes" if preset.billed else "no: an answer lost there costs nothing"))
    lines.append(("terminal", preset.terminal))
    lines.append(("docs", preset.docs or "none known"))
    guessed = f", inferred: {', '.join(preset.inferred)}" if preset.inferred else ""
    lines.append(("checked", preset.checked + guessed))
    _aligned(lines)


def _aligned(lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:>{width}}  {text}")


def markdown(presets: Mapping[str, Preset]) -> str:
    """Return the table of `docs/vendors.md`: vendor × dialect → URL, form of the credential, variable."""
    lines = [
        "| vendor | dialect | URL | credential | variable | checked |",
        "|---|---|---|---|---|---|",
    ]
    for name, preset in presets.items():
        title = (
            f"`{name}` ([{preset.title}]({preset.docs}))"
            if preset.docs
            else f"`{name}` ({preset.title})"
        )
        variables = [*preset.env, *(f"{v} (`{part}`)" for part, v in preset.vars.items())]
        for dialect, url, form in urls(preset):
            guessed = _inferred(preset, dialect)
            lines.append(
                f"| {title} | {dialect} | `{url}` | {form} | {', '.join(variables) or 'none'} "
                f"| {preset.checked}{' (inferred)' if guessed else ''} |"
            )
            title = ""  # said once is enough
    return "\n".join(lines) + "\n"


def _inferred(preset: Preset, dialect: str) -> bool:
    """Return whether the row of *dialect* rests on less than the vendor's documentation."""
    named = {"base_url", "speaks", f"paths.{dialect}", f"forms.{dialect}"}
    return bool(named & set(preset.inferred))
