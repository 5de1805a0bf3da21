"""Processes that are measured, or measure: started on a core, looked at through /proc, ended for sure."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Have what is started meanwhile run on *core* alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Child:
    """A process with all its descendants, on one core, what it says in *directory*."""

    def __init__(
        self,
        argv: Sequence[str],
        directory: Path,
        core: int,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.out = directory / "out"
        self.err = directory / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err, on_core(core):
            self._process = subprocess.Popen(
                argv, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env, cwd=directory
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, once there is one."""
        return self._process.poll()

    def all(self) -> list[int]:
        """Return its process id and those of its descendants."""
        below: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                below.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found += below.get(pid, [])
        return found

    def cpu(self) -> float:
        """Return the seconds of CPU used so far: user and system, every thread, every descendant."""
        return sum(self.cpus().values())

    def cpus(self) -> dict[int, float]:
        """Return the same for each process; what ended is with its parent."""
        each = {pid: _stat(pid) for pid in self.all()}
        return {pid: sum(map(int, s[11:15])) / _TICKS for pid, s in each.items() if s}

    def resident(self) -> float:
        """Return the memory in use, in MB."""
        pages = 0
        for pid in self.all():
            with suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * _PAGE / 1e6

    def pause(self) -> None:
        """Let it use nothing until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.all():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Ask it to end, and see to it."""
        everything = self.all()
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in everything[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def complaint(self) -> str:
        """Return the end of what it said."""
        said = (self.err.read_bytes() or self.out.read_bytes()).decode(errors="replace")
        return " ".join(said.split())[-300:]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, or none if it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
