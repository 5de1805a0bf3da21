"""`scripts/profile`: a flame graph of Trunkline under one load, as SVG, and its top functions as text."""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.bench.__main__ import canned, cores, default_cache, end_in_order
from tests.bench.load import CannotMeasure, Wrk
from tests.bench.measure import MEASURES, OURS, Bench, free_port, start
from tests.bench.processes import on_core
from tests.bench.subjects import ROOT, Missing, Place, Variant, install_py_spy, trunkline

LOADS = ("plain", "single", "stream", "pieces", "burst", "paced100", "paced500", *sorted(OURS))
_START_SECONDS = 1.5
"""So long py-spy takes to begin and to write."""
_PARTS = 0.3
"""`bodies` are several loads, one after the other."""


def parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    found = argparse.ArgumentParser(prog="scripts/profile", description=__doc__)
    add = found.add_argument
    add("load", nargs="?", default="plain", choices=LOADS, help="the load (default: plain)")
    add("--seconds", type=int, default=5, help="how long to look (default: 5)")
    add("--rate", type=int, default=500, help="how often a second (default: 500)")
    add("--native", action="store_true", help="show C functions too")
    add("--all", action="store_true", help="show also who does not hold the interpreter")
    add("--tree", type=Path, default=ROOT, help="profile this checkout")
    add("--out", type=Path, help="the file (default: profile-LOAD.svg)")
    add("--cores", default="", metavar="PROXY,LOAD", help="the cores to use")
    add("--cache", type=Path, help="where py-spy is kept")
    return found


def profile(options: argparse.Namespace, out: Path, directory: Path, stack: ExitStack) -> str:
    """Load Trunkline, and look at it twice meanwhile: draw *out*, return the stacks as text."""
    spy = install_py_spy(options.cache or default_cache())
    proxy_core, load_core = cores(options)
    os.sched_setaffinity(0, {load_core})
    up = stack.enter_context(canned(directory / "upstream", load_core))
    place = directory / "proxy"
    place.mkdir()
    subject = trunkline("trunkline", "Trunkline", Variant(tree=options.tree.resolve()))
    there = Place(place, free_port(), up.port, up.safe, up.ca, directory)
    running, _ = start(subject, there, proxy_core)
    stack.callback(running.child.end)
    looked = 2 * (options.seconds + _START_SECONDS)
    bench = Bench(up, Wrk(directory), looked * (_PARTS if options.load == "bodies" else 1))
    failed: list[Exception] = []

    def load() -> None:
        try:
            MEASURES[options.load](bench, running)
        except CannotMeasure as error:
            failed.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    # First comes the upstream alone, where it is measured, then a quarter to get warm.
    thread.join(bench.seconds * (1.25 if options.load not in OURS else 0.1))
    with on_core(load_core):
        for kind, file in (("raw", directory / "stacks"), ("flamegraph", out)):
            argv = [str(spy), "record", "-p", str(running.child.pid), "-f", kind, "-o", str(file)]
            argv += ["-d", str(options.seconds), "-r", str(options.rate)]
            argv += ["--native"] * options.native
            argv += ["--gil"] * (not options.all)
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                failed.append(CannotMeasure(f"py-spy said: {done.stderr[-300:]}"))
    thread.join()
    if failed:
        raise failed[0]
    return (directory / "stacks").read_text()


def main() -> int:
    """Profile, write the graph, print what took most."""
    options = parser().parse_args()
    end_in_order()
    out = options.out or Path(f"profile-{options.load}.svg")
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-profile-") as name, ExitStack() as stack:
            told = profile(options, out, Path(name), stack)
    except (CannotMeasure, Missing) as error:
        sys.stderr.write(f"no profile: {error}\n")
        return 3
    with suppress(BrokenPipeError):
        print(f"{top(told)}\n{out}")
    return 0


def top(stacks: str, number: int = 25) -> str:
    """Return the functions of *stacks* that took most, by themselves and with what they called."""
    alone: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in stacks.splitlines():
        text, _, count = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] or frame for frame in text.split(";")]
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            below[frame] += int(count)
    total = alone.total() or 1
    rows = [f"{total} samples", " alone  below"]
    rows += [
        f"{times / total:6.1%} {below[name] / total:6.1%}  {name}"
        for name, times in alone.most_common(number)
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
