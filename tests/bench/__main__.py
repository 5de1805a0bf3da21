"""`scripts/bench`: what Trunkline costs, beside others if asked for, in one run."""

import argparse
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import sleep

import orjson
import trustme

from tests.bench import report
from tests.bench.load import CannotMeasure, Wrk
from tests.bench.measure import (
    FRESH,
    MEASURES,
    OURS,
    Bench,
    Limited,
    Running,
    Upstream,
    free_port,
    start,
)
from tests.bench.processes import Child
from tests.bench.report import Result, Results
from tests.bench.subjects import PEERS, ROOT, Missing, Place, Subject, Variant, output_of, trunkline

_STARTS = 3
"""How often Trunkline is started, to learn how soon it is ready."""

FEATURES = {
    "no keys": Variant(keys=0),
    "no rename": Variant(rename=False),
    "no retry": Variant(retry=False),
    "echo_model": Variant(echo=True),
}


def parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    found = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = found.add_argument
    add("--seconds", type=_seconds, default=3.0, help="how long each load lasts (default: 3)")
    add("--rounds", type=int, help="how often all is measured, in turn (default: 5 with others)")
    add(
        "--only",
        action="append",
        metavar="NAME",
        help=f"measure only this (again for more): {', '.join(MEASURES)}",
    )
    add("--peers", default="", help=f"measure these too: {','.join(PEERS)}")
    add("--tls", action="store_true", help="measure a TLS upstream too")
    add("--workers", type=int, help="measure so many workers too")
    add("--routes", type=int, help="measure so many routes too")
    add("--keys", type=int, help="measure so many keys too")
    add("--features", action="store_true", help="measure with each feature switched too")
    add("--tree", type=Path, action="append", default=[], help="measure this checkout too")
    add(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter to run the proxy with (default: one that has what `scripts/run` installs)",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures there, each round's too")
    add(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the table there: between its marks `table` (`features` with --features) if it has them",
    )
    add(
        "--cores",
        default="",
        metavar="PROXY,LOAD",
        help="the cores to use (default: the first two)",
    )
    add(
        "--cache", type=Path, help="where peers are kept (default: $XDG_CACHE_HOME/trunkline-bench)"
    )
    add("--think", type=float, default=0.0, help="make the upstream slow, so see this refuse")
    return found


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 600:
        raise argparse.ArgumentTypeError("must be from 0.1 to 600")
    return seconds


def subjects(options: argparse.Namespace) -> list[Subject]:
    """Return all that is to be measured, ours first: what the others are compared with."""
    usual = Variant(python=options.python)
    found = [trunkline("trunkline", "Trunkline", usual)]
    for tree in options.tree:
        path = tree.resolve()
        if not (path / "proxy").is_dir():
            raise SystemExit(f"--tree: there is no checkout at {tree}")
        found.append(trunkline(f"tree:{path.name}", path.name, replace(usual, tree=path)))
    for option, title in (("routes", "routes"), ("keys", "keys"), ("workers", "workers")):
        if value := getattr(options, option):
            variant = replace(usual, **{option: value})
            found.append(trunkline(option, f"{value:,} {title}", variant))
    if options.tls:
        found.append(trunkline("tls", "TLS upstream", replace(usual, safe=True)))
    if options.features:
        for name, variant in FEATURES.items():
            found.append(trunkline(name, name, replace(variant, python=options.python)))
    for name in filter(None, options.peers.split(",")):
        if name not in PEERS:
            raise SystemExit(f"there is no peer {name}; there is {', '.join(PEERS)}")
        found.append(PEERS[name])
    return found


def cores(options: argparse.Namespace) -> tuple[int, int]:
    """Return the core of what is measured, and that of the load."""
    usable = sorted(os.sched_getaffinity(0))
    if options.cores:
        chosen = options.cores.split(",")
        if len(chosen) > 2 or not {*chosen} <= {*map(str, usable)}:
            raise SystemExit(f"--cores: two of {', '.join(map(str, usable))}, as in 0,1")
        return int(chosen[0]), int(chosen[-1])
    return usable[0], usable[min(1, len(usable) - 1)]


def default_cache() -> Path:
    """Return where peers and tools are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "trunkline-bench"


@contextmanager
def canned(directory: Path, core: int, think: float = 0.0) -> Iterator[Upstream]:
    """Run the canned upstream."""
    directory.mkdir()
    ca = trustme.CA()
    certificate = directory / "certificate.pem"
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    trusted = directory / "ca.pem"
    ca.cert_pem.write_to_path(str(trusted))
    argv = [sys.executable, "-m", "tests.bench.canned", "--certificate", str(certificate)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    child = Child([*argv, "--think", str(think)], directory, core, env)
    try:
        for _ in range(1000):
            if ports := child.out.read_text().split():
                break
            if child.status is not None:
                raise CannotMeasure(f"the upstream did not start: {child.complaint()}")
            sleep(0.01)
        else:
            raise CannotMeasure("the upstream does not start")
        yield Upstream(child, int(ports[0]), int(ports[1]), trusted)
    finally:
        child.end()


class Session:
    """One run: every subject started, measured in turn, ended."""

    def __init__(self, options: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._proxy_core, load_core = cores(options)
        self.shared = self._proxy_core == load_core
        os.sched_setaffinity(0, {load_core})
        upstream = stack.enter_context(canned(directory / "upstream", load_core, options.think))
        self._bench = Bench(upstream, Wrk(directory), options.seconds)
        self._cache: Path = options.cache or default_cache()
        self._stack = stack
        self._running: dict[str, Running] = {}
        self._started = 0
        self.results = Results()
        self.results.limits = upstream.limits

    def begin(self, subject: Subject, chosen: Collection[str], starts: int) -> None:
        """Start *subject*, as often as *starts* says, and measure what is fresh only once; leave one that
        runs, paused.
        """
        result = self.results.add(Result(subject.name, subject.title, subject.ours))
        try:
            for _ in range(starts):
                running = self._start(subject, result)
                for name in (n for n in MEASURES if n in FRESH and n in chosen):
                    if name not in result.notes and name not in result.done:
                        result.done.add(name)
                        self._take(name, running)
                running.child.end()
            self._replace(subject)
        except (Missing, CannotMeasure) as error:
            result.error = str(error)

    def _start(self, subject: Subject, result: Result) -> Running:
        self._started += 1
        directory = self._directory / str(self._started)
        directory.mkdir()
        up = self._bench.upstream
        place = Place(directory, free_port(), up.port, up.safe, up.ca, self._cache)
        running, ready = start(subject, place, self._proxy_core)
        self._stack.callback(running.child.end)
        result.version = running.command.version
        result.take({"ready": ready * 1000})
        return running

    def _replace(self, subject: Subject) -> None:
        """Start *subject* anew in the place of what ran."""
        if old := self._running.pop(subject.name, None):
            old.child.end()
        running = self._start(subject, self.results[subject.name])
        self._running[subject.name] = running
        running.child.pause()

    def measure(self, name: str, turn: int) -> None:
        """Take the measure *name* of each that runs, another one first each *turn*."""
        names = [*self._running]
        first = turn % (len(names) or 1)
        for subject in names[first:] + names[:first]:
            running = self._running[subject]
            result = self.results[subject]
            if (name in OURS and not running.subject.ours) or name in result.notes:
                continue
            running.child.resume()
            if self._take(name, running, turn):
                running.child.pause()
            else:  # what it was asked and could not do may still keep it busy
                self._replace(running.subject)

    def _take(self, name: str, running: Running, turn: int | None = None) -> bool:
        """Take one measure, in the round *turn*; return whether it could be."""
        result = self.results[running.subject.name]
        try:
            result.take(MEASURES[name](self._bench, running), turn)
        except Limited as error:
            if running.subject.ours:
                raise
            result.limited[name] = str(error)
        except CannotMeasure as error:
            if running.subject.name == "trunkline":
                raise
            result.notes[name] = str(error)
            return False
        return True


def machine(python: str) -> dict[str, object]:
    """Say what this runs on; *python* runs the proxy."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": output_of([python, "--version"]).removeprefix("Python ").strip(),
        "load": round(os.getloadavg()[0], 2),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run(options: argparse.Namespace) -> Results:
    """Measure all that is asked for."""
    chosen = options.only or list(MEASURES)
    if wrong := set(chosen) - MEASURES.keys() - {"ready"}:
        raise SystemExit(f"there is no measure {', '.join(wrong)}; there is {', '.join(MEASURES)}")
    found = subjects(options)
    rounds = options.rounds or (5 if len(found) > 1 else 1)
    about = machine(options.python)
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as name, ExitStack() as stack:
        session = Session(options, Path(name), stack)
        session.results.about = {
            **about,
            "seconds": options.seconds,
            "rounds": rounds,
            "shared": session.shared,
        }
        starts = _STARTS if options.only is None or "ready" in options.only else 1
        for subject in found:
            _say(f"starting {subject.title}")
            session.begin(subject, chosen, starts if subject.ours else 1)
        if error := session.results["trunkline"].error:
            raise CannotMeasure(error)
        for turn in range(rounds):
            for measure in MEASURES:
                if measure in chosen and measure not in FRESH:
                    _say(f"round {turn + 1} of {rounds}: {measure}")
                    session.measure(measure, turn)
        _say("")
        return session.results


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def end_in_order() -> None:
    """Have no signal end us without what we have started."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def main() -> int:
    """Measure, and show; 3 if there is nothing honest to show."""
    options = parser().parse_args()
    for file in filter(None, (options.json, options.markdown)):
        if not file.absolute().parent.is_dir():  # before it is measured, not afterwards
            raise SystemExit(f"there is no directory for {file}")
    if shutil.which(options.python) is None:
        raise SystemExit(f"--python: {options.python} cannot be run")
    end_in_order()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        results = run(options)
    except CannotMeasure as error:
        _say("")
        sys.stderr.write(f"no figures: {error}\n")
        return 3
    report.show(results)
    if options.json:
        options.json.write_bytes(orjson.dumps(results.told(), option=orjson.OPT_INDENT_2) + b"\n")
    if options.markdown:
        report.write(options.markdown, results, "features" if options.features else "table")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
