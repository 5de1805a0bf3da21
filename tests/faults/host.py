"""The proxy as production runs it, with a window: on SIGUSR1 it says how many tasks there are.

Names below `.fault` are resolved here, because a test has no name server: what stands for the host
`NAME.fault` is in the variable FAULT_NAMES, as `NAME=ADDRESS|ADDRESS,…`; `busy` is a name server
that has no time, `none` a name without addresses, and `slow` takes its time.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from proxy.cli import main

_getaddrinfo = socket.getaddrinfo
_new_event_loop = uvloop.new_event_loop


def _patient_loop() -> uvloop.Loop:
    """Make a loop that does not complain of a machine that is busy, as `-X dev` has it."""
    loop = _new_event_loop()
    loop.slow_callback_duration = 10.0
    return loop


def _names() -> dict[str, list[str]]:
    pairs = (pair.split("=") for pair in os.environ.get("FAULT_NAMES", "").split(",") if pair)
    return {f"{name}.fault": [one for one in places.split("|") if one] for name, places in pairs}


def _look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
    name = host.decode() if isinstance(host, bytes) else host
    known = _names()
    if not isinstance(name, str) or not name.endswith(".fault"):
        return _getaddrinfo(host, port, *args, **kwargs)
    if name.startswith("busy"):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if name.startswith("slow"):
        time.sleep(3.0)
    if name.startswith("none"):
        raise socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
    if name not in known:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    return [
        (socket.AF_INET6 if ":" in place else socket.AF_INET, *kind, (place, port))
        for place in known[name]
    ]


def _say_tasks(*_: object) -> None:
    loop = asyncio._get_running_loop()
    count = len(asyncio.all_tasks(loop)) if loop is not None else -1
    place = Path(os.environ["FAULT_TASKS"])
    fresh = place.with_suffix(".new")
    fresh.write_text(str(count))
    fresh.rename(place)


if __name__ == "__main__":
    socket.getaddrinfo = _look_up
    uvloop.new_event_loop = _patient_loop
    signal.signal(signal.SIGUSR1, _say_tasks)
    sys.exit(main(sys.argv[3:]))  # behind this file's own name stands `-m proxy`
