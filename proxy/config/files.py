"""Files as they are read here: regular ones, up to a bound. Any other may never begin, or never end."""

import os
import stat
from pathlib import Path

ROUTES_BYTES = 16 * 2**20
"""Refuse a routes file that is longer than this."""
SECRET_BYTES = 2**20
"""Refuse a file of secrets that is longer than this."""

_KINDS = {
    stat.S_IFDIR: "is a directory",
    stat.S_IFIFO: "is a named pipe, not a regular file",
    stat.S_IFCHR: "is a device, not a regular file",
    stat.S_IFBLK: "is a device, not a regular file",
    stat.S_IFSOCK: "is a socket, not a regular file",
}


class Unreadable(Exception):
    """A file cannot be read; the message is the reason, as in `cannot be read: is a directory`."""


def read_regular(file: str | Path, limit: int) -> bytes:
    """Return what *file* holds, if it is a regular one of at most *limit* bytes. Raises `Unreadable`."""
    check_regular(file)  # before it is opened, which may have consequences of its own
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as opened:
            _check(os.fstat(fd).st_mode)
            if os.fstat(fd).st_size <= limit:
                content = opened.read(limit + 1)
                if len(content) <= limit:
                    return content
    except OSError as error:
        raise Unreadable(_reason(error)) from None
    raise Unreadable(f"is larger than {limit // 2**20} MiB")


def check_regular(file: str | Path) -> None:
    """Raise `Unreadable` if there is no regular *file*."""
    try:
        mode = Path(file).stat().st_mode
    except OSError as error:
        raise Unreadable(_reason(error)) from None
    except ValueError:
        raise Unreadable("its name is not a path") from None
    _check(mode)


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise Unreadable(_KINDS.get(stat.S_IFMT(mode), "is not a regular file"))


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
