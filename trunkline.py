"""The command `trunkline`: sees that the package `proxy` is the one it came with, and runs it.

`proxy` is a name that others use too, and what is installed later overwrites what was there. Whoever
then calls `trunkline` is told so; nothing of the stranger's is run.
"""

import gc
import sys
from importlib.util import find_spec
from pathlib import Path

OURS = '"""Trunkline:'
"""What `proxy/__init__.py` begins with."""


def main() -> int:
    """Run the command line; return its exit status."""
    found = find_spec("proxy")  # which runs nothing of it
    where = None if found is None else found.origin
    if where is None or not _is_ours(Path(where)):
        sys.stderr.write(f"trunkline: {_problem(where)}\n")
        return 1
    if sys.argv[1:2] == ["serve"]:
        from proxy.process.signals import be_patient

        be_patient()  # what follows takes a while: a signal must not end us meanwhile
    gc.disable()
    from proxy.cli import main as run

    gc.freeze()  # what is imported stays: to look for garbage in it takes a tenth of the start
    gc.enable()
    return run()


def _is_ours(file: Path) -> bool:
    try:
        return file.read_text("utf-8").startswith(OURS)
    except (OSError, UnicodeDecodeError):
        return False


def _problem(where: str | None) -> str:
    from importlib.metadata import (
        packages_distributions,
    )  # which takes a while, and is wanted here alone

    owners = {*packages_distributions().get("proxy", ())} - {"trunkline"}
    whose = f", that of {' or '.join(sorted(owners))}," if owners else ""
    stands = f"another one{whose} stands at {where}" if where else "it is not there any more"
    return (
        f"the Python package `proxy` is not Trunkline's: {stands}. "
        "Install Trunkline into an environment of its own, as `uv tool install` and `pipx install` do."
    )


if __name__ == "__main__":
    raise SystemExit(main())
