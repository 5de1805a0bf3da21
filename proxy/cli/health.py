"""`trunkline health`: ask the running proxy whether it is up; for containers without curl."""

import argparse
import os
import socket
import sys
from typing import Any

from proxy.config import load
from proxy.surfaces import Address

SECONDS = 3.0
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, not to listen


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser("health", parents=[common], help="ask whether the proxy is up")
    parser.add_argument("--listen", metavar="HOST:PORT", help="ask here instead")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask the first address of the first surface; 0 if it is up."""
    snapshot = load(options.config, os.environ, listen=options.listen)
    address = snapshot.surfaces[0].listen[0]
    try:
        answer = _ask(address)
    except OSError as error:
        sys.stderr.write(f"{address}: {(error.strerror or str(error)).lower()}\n")
        return 1
    if answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"status":"ok"}'):
        print(f"{address}: ok")
        return 0
    sys.stderr.write(f"{address}: answers, but is not a healthy trunkline\n")
    return 1


def _ask(address: Address) -> bytes:
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        host = _EVERYWHERE.get(address.host, address.host)
        sock = socket.create_connection((host, address.port), SECONDS)
    with sock:
        if address.path:
            sock.settimeout(SECONDS)
            sock.connect(address.path)
        sock.sendall(_REQUEST)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer
