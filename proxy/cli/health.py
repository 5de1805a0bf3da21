"""`trunkline health`: ask the running proxy whether it is up; for containers without curl.

It asks the process that serves the file, whatever the file holds by now, and needs none of its
variables. Only where no such process answers is it asked where it would listen.
"""

import argparse
import asyncio
import os
import socket
import ssl
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxy.cli.environment import environ
from proxy.config import ConfigError, address_of, first_address
from proxy.process import control
from proxy.process.lifecycle import CannotStart
from proxy.surfaces import Address

SECONDS = 3.0
NOBODY = 2
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, not to listen


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "health",
        parents=[common],
        help="ask whether the proxy is up",
        description="Ask the process that serves the file. Exit status: 0 it is up, 1 it is not well, "
        "2 nobody is there.",
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="ask who listens here, instead of where the file says"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask; 0 if it is up, 1 if it is not well, 2 if nobody is there."""
    wanted = None if options.listen is None else address_of(options.listen)
    if options.listen is not None and wanted is None:
        return _say(NOBODY, '--listen must be "HOST:PORT", "[IPV6]:PORT" or "unix:/PATH"')
    status = _ask_process(options.config, wanted)
    if status is not None:
        return status
    try:
        return _look(wanted or first_address(options.config, environ(options)))
    except (ConfigError, CannotStart) as error:
        return _say(NOBODY, f"{options.config}: no process of this user serves it; {error}")


def _ask_process(file: Path, wanted: Address | None) -> int | None:
    """Ask the process that serves *file*, say what came of it, and return the exit status; None where it
    is not there, or does not listen at the address *wanted*.
    """
    try:
        told = control.ask(control.address_of(file), "health", seconds=SECONDS)
    except control.Nobody:
        return None
    except (control.NoAnswer, OSError) as error:
        return _say(1, f"{file}: the process that serves it does not answer: {error}")
    if wanted is not None and not _is_among(wanted, told["listen"]):
        return None
    if told["status"] not in ("ok", "leaving"):
        return _say(1, f"{file}: {told['status']}")
    print(f"{wanted or told['listen'][0]}: {told['status']}")
    return 0


def _look(address: Address) -> int:
    """Ask at *address*, say what came of it, and return the exit status."""
    try:
        answer = asyncio.run(_ask(address, secure=False))
    except TimeoutError:
        return _say(1, f"{address}: does not answer")
    except OSError as error:
        return _say(NOBODY, f"{address}: {_why(error).lower()}")
    if not address.path and not answer.startswith(b"HTTP/"):
        with suppress(OSError):
            answer = asyncio.run(_ask(address, secure=True))
    if answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"status":"ok"}'):
        print(f"{address}: ok")
        return 0
    return _say(1, f"{address}: answers, but is not a healthy trunkline")


def _why(error: OSError) -> str:
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def _ask(address: Address, *, secure: bool) -> bytes:
    """Return what is answered at *address*, nothing where the connection is broken off."""
    async with asyncio.timeout(SECONDS):
        if address.path:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            host = _EVERYWHERE.get(address.host, address.host)
            tls = _anybody() if secure else None
            reader, writer = await asyncio.open_connection(host, address.port, ssl=tls)
        try:
            writer.write(_REQUEST)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _anybody() -> ssl.SSLContext:
    """Return a context that takes any certificate: nothing is said that anybody may not know."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _is_among(wanted: Address, listening: list[str]) -> bool:
    """Return whether who listens at *wanted* is one that is *listening* so."""
    for text in listening:
        address = address_of(text)
        if address is None or (address.path, address.port) != (wanted.path, wanted.port):
            continue
        if address.path or address.host == wanted.host:
            return True
        if address.host in _EVERYWHERE or wanted.host in _EVERYWHERE:
            return True
    return False


def _say(status: int, message: str) -> int:
    sys.stderr.write(message + "\n")
    return status
