"""A snapshot of 10,000 series of which 10 changed since the last one: what it costs is what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import servers
import workloads
from report import Result, Target

NAMES = ("snapshot-changed",)
SERIES = 10_000
CHANGED = 10


class Settings(Protocol):
    """What is used of the settings of a run."""

    @property
    def directory(self) -> Path:
        """A folder for data."""

    @property
    def runs(self) -> int:
        """How often to measure."""


def measure(settings: Settings, say: Callable[[str], None]) -> Iterator[Result]:
    """Save all series, then again and again after writes to a few of them."""
    took_seconds = []
    with servers.karma(settings.directory / "many-series", fsync=True) as server:
        say(f"filling karma with {SERIES:,} series")
        servers.load(server.port, _increments(SERIES), servers.KARMA_REPLY)
        first_seconds = servers.ask(server.port, op="snapshot.create_all")[1]
        for run in range(settings.runs):
            servers.load(server.port, _increments(CHANGED), servers.KARMA_REPLY)
            took_seconds.append(servers.ask(server.port, op="snapshot.create_all")[1])
            say(f"snapshot-changed: run {run + 1} of {settings.runs}: {took_seconds[-1]:.2f} s")
    note = f"{CHANGED} of {SERIES:,} series changed; the first snapshot, of all, took {first_seconds:.1f} s"
    yield Result("snapshot-changed", "s", "less", took_seconds, target=Target(value=2), note=note)


def _increments(count: int) -> Iterator[tuple[bytes, int]]:
    for first in range(0, count, 500):
        numbers = range(first, min(first + 500, count))
        yield b"".join(_increment(f"series-{number:05d}") for number in numbers), len(numbers)


def _increment(series: str) -> bytes:
    return (
        f'{{"v":2,"op":"counter.increment","series":"{series}","key":{workloads.FIRST_KEY},'
        f'"bucket":{workloads.BUCKET},"value":1}}\n'
    ).encode()
