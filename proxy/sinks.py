"""What a finished exchange leaves: one line, to stdout, without ever waiting for who reads it.

Lines are gathered for a moment and written by a thread of their own. A reader that stalls fills a
bounded queue, after which lines are dropped and counted; a reader that is gone, or a disk that is full,
loses them, which is said once. None of it is ever noticed by a request.
"""

import asyncio
import fcntl
import os
import queue
import select
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

QUEUE_LINES = 20_000
"""Drop lines once this many wait to be written."""
GATHER_SECONDS = 0.05
"""Gather lines for this long before they are written."""

Event = MutableMapping[str, Any]

STDERR = 2
_LINE_END = ord("\n")
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE

RecordSink = Callable[[dict[str, Any]], None]
"""Takes the record of each exchange when it is over, and neither waits nor fails."""


class LineWriter:
    """Writes lines to the file descriptor *fd*, in order, on a thread; drops what does not fit.

    The next line that gets through says how many were lost. Where *fd* is *shared* with other
    processes, each waits for the others, since not every write into a pipe is one piece.
    """

    def __init__(self, fd: int, *, shared: bool = False) -> None:
        self._fd = fd
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes] = []
        # Each counter has one writer: the first two the loop, the others the thread.
        self._taken = self._refused = 0
        self._written = self._lost = 0
        self._torn = self._complained = False
        self._flusher: asyncio.TimerHandle | None = None
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Return how many lines were lost."""
        return self._refused + self._lost

    def write(self, line: bytes) -> bool:
        """Take one *line*, with its line end, to be written soon; return whether there was room."""
        if self._taken - self._written >= QUEUE_LINES:
            self._refused += 1
            return False
        self._taken += 1
        self._gathered.append(line)
        if self._flusher is None:
            self._flusher = self._loop.call_later(GATHER_SECONDS, self._flush)
        return True

    def close(self, seconds: float = 2.0) -> None:
        """Write what is left, for at most *seconds*: nobody may be reading any more."""
        self._flush()
        self._queue.put(None)
        self._thread.join(seconds)

    def _flush(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            try:
                with _alone(self._fd) if self._shared else nullcontext():
                    self._write_all(b"".join(lines))
            except OSError as error:
                self._lost += len(lines)
                self._complain(error)
            self._written += len(lines)

    def _write_all(self, data: bytes) -> None:
        left = memoryview(b"\n" + data if self._torn else data)
        while left:
            try:
                count = os.write(self._fd, left)
            except BlockingIOError:  # somebody else has made it so: a terminal, a parent process
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                ready.poll()
            else:
                self._torn = left[count - 1] != _LINE_END  # should the rest find no room
                left = left[count:]

    def _complain(self, error: OSError) -> None:
        """Say on stderr, once, that lines are lost."""
        if not self._complained:
            self._complained = True
            reason = (error.strerror or type(error).__name__).lower()
            said = f"trunkline: the log cannot be written: {reason}; /status counts what is lost\n"
            with suppress(OSError):
                os.write(STDERR, said.encode())


@contextmanager
def _alone(fd: int) -> Iterator[None]:
    """Keep other processes from writing to *fd* meanwhile, where it can be locked at all."""
    with suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.lockf(fd, fcntl.LOCK_UN)


class Log:
    """The log of one process: `line` takes records, `events` is structlog for everything else."""

    def __init__(
        self, writer: LineWriter, *, console: bool, level: str, colours: bool = False
    ) -> None:
        self._writer = writer
        self._render: Callable[[Event], bytes] = _json
        if console:
            self._render = partial(_console, colours=colours)
        self._debug = level == "debug"
        self._reported = 0
        self.events: FilteringBoundLogger = structlog.wrap_logger(
            writer,
            processors=[_stamp, structlog.processors.format_exc_info, self._finish],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        )

    @property
    def dropped(self) -> int:
        """Return how many lines were lost."""
        return self._writer.dropped

    def line(self, record: dict[str, Any]) -> None:
        """Write the *record* of a finished exchange, which gets its `ts` here, if its level is written."""
        if record["level"] == "debug" and not self._debug:
            return
        record["ts"] = datetime.now(UTC)
        lost = self._writer.dropped - self._reported
        if lost:
            record["log_lines_dropped"] = lost
        if self._writer.write(self._render(record)):
            self._reported += lost

    def _finish(self, logger: LineWriter, method: str, event: Event) -> Any:
        """Be structlog's last processor: write the line, and leave nothing to be called."""
        logger.write(self._render(event))
        raise structlog.DropEvent


def _stamp(logger: LineWriter, method: str, event: Event) -> Event:
    return {"ts": datetime.now(UTC), "level": method, "event": event.pop("event"), **event}


def _json(event: Event) -> bytes:
    try:
        return orjson.dumps(event, default=str, option=_OPTIONS)
    except TypeError:  # text that is not valid Unicode: whatever else, a log line must come out
        return orjson.dumps(_clean(event), option=_OPTIONS)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    plain = isinstance(value, float | datetime | None)
    plain = plain or (isinstance(value, int) and abs(value) < 2**63)
    return value if plain else _text(str(value)).decode()


_DIM, _RED, _GREEN, _YELLOW = "2", "31", "32", "33"
_COLOURS = {"warning": _YELLOW, "error": _RED, "critical": _RED}


def _console(event: Event, *, colours: bool) -> bytes:
    """Render for a person at a terminal: one line, the facts that matter, each in its column."""
    rest = dict(event)
    level, what = rest.pop("level"), rest.pop("event")
    time = _coloured(rest.pop("ts").strftime("%H:%M:%S"), _DIM, colours)
    if what != "exchange":
        facts = " ".join(f"{key}={_shown(value)}" for key, value in rest.items())
        shown = _coloured(f"{level:<18}", _COLOURS.get(level), colours)
        return _text(f"{time} {shown} {what:<21} {facts}\n")
    status = rest["status"] or 0
    came = f"{status:>3} {rest['outcome'] or '':<14}"
    came = _coloured(came, _colour(level, status), colours)
    text = (
        f"{time} {came} {rest['total_ms']:>8.0f} ms  {rest['key'] or '-':<12}"
        f" {rest['method']:<4} {_shown(rest['path'])} {_shown(rest['model'] or '')}{_way(rest)}\n"
    )
    return _text(text)


def _colour(level: str, status: int) -> str:
    """Return the colour of an exchange: a warning is of a stream that broke, whose status is good."""
    if status >= 500 or level == "warning":
        return _RED
    return _GREEN if status < 400 else _YELLOW


def _way(record: Event) -> str:
    """Say where a request went, one attempt after the other, what came of those that led on, and what went
    wrong in the end.
    """
    way = ""
    for number, attempt in enumerate(record["attempts"], 1):
        model = f"/{_shown(attempt['model'])}" if attempt["model"] else ""
        way += f" → {attempt['upstream']}{model}"
        if number < len(record["attempts"]):
            way += f" ({attempt['error'] or attempt['status']})"
    return way + (f" ({record['error']})" if record["error"] else "")


def _shown(value: Any) -> str:
    """Return *value* for a terminal's eyes: what a stranger has written can neither command it nor begin
    a line. A traceback's line ends stay.
    """
    text = str(value)
    if text.isprintable():
        return text
    shown = (part if part.isprintable() or part == "\n" else repr(part)[1:-1] for part in text)
    joined = "".join(shown)
    return joined if joined.startswith("Traceback") else joined.replace("\n", "\\n")


def _coloured(text: str, colour: str | None, colours: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colours and colour else text
