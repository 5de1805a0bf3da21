"""The figures: what each is called, and what issue 6 wants of it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure, by its *unit*; *digits* after the point are shown."""

    title: str
    unit: str
    digits: int = 0
    goal: float | None = None
    """What ours must not exceed, in its unit."""
    envoy: float | None = None
    """What ours must not exceed, in Envoys."""


FIGURES: Mapping[str, Figure] = {
    "plain64": Figure("request, 64 connections", "µs CPU", envoy=1.5),
    "plain1": Figure("request, 1 connection", "µs CPU"),
    "stream": Figure("stream of 103 events, one write", "µs CPU", envoy=1.2),
    "pieces": Figure("stream of 103 events, 12 writes", "µs CPU"),
    "burst": Figure("stream of 103 events, 103 writes", "µs CPU", envoy=1.2),
    "paced100": Figure("paced event, 100 streams", "µs CPU", 1, envoy=1.0),
    "paced500": Figure("paced event, 500 streams", "µs CPU", 1, envoy=1.0),
    "added_p50": Figure("added latency, p50", "µs", goal=150),
    "added_p99": Figure("added latency, p99", "µs", goal=1000),
    "first": Figure("added to the first event, p50", "µs"),
    "ready": Figure("ready, from exec", "ms", goal=500),
    "rss_idle": Figure("RSS idle", "MB", goal=60),
    "rss_stream": Figure("RSS per open stream", "KB", 1, goal=32),
    "rss_loaded": Figure("RSS after load", "MB"),
    "unknown": Figure("unknown model, p50", "µs", goal=1000),
    "string": Figure("1 MB body, one long string", "ms CPU", 2, goal=3),
    "messages": Figure("1 MB body, 9,500 messages", "ms CPU", 2, goal=3),
    "numbers": Figure("1 MB body, 150,000 numbers", "ms CPU", 2, goal=3),
    "large": Figure("20 MB body, per MB", "ms CPU", 2),
    "rate64": Figure("requests a second, 64 connections", "1/s"),
    "share": Figure("the busiest worker's share of the CPU", "%"),
}
