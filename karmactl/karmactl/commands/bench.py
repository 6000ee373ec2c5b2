"""bench: a modest load from here, to see whether a server and the way to it are as fast as they should be.

One Python process makes it, which costs more than a server does: for a server's limits a compiled generator
is needed. What it measures well is a round trip, and the difference to yesterday.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from karma_client import Pipeline
from karmactl.commands.series import OF_TOOLS
from karmactl.diagnostics import usage
from karmactl.output import Row
from karmactl.progress import Progress
from karmactl.run import Run, connection

SERIES = f"{OF_TOOLS}bench"
"""Hidden by default, as all series of tools."""
TESTS = ("increment", "batch", "read")
STEP = 2_147_483_647
"""A prime: its multiples spread over all keys, without a random generator."""

DAY = 20000101
"""Batches name a day; one long ago keeps them out of today's figures."""


@dataclass(slots=True)
class Load:
    """What one connection did: the seconds of every round trip, or why it stopped."""

    seconds: list[float] = field(default_factory=list)
    error: BaseException | None = None


def bench(
    run: Run,
    series: str | None,
    only: tuple[str, ...],
    connections: int,
    pipeline: int,
    for_: float,
    keys: int,
    batch: int,
) -> list[Row]:
    """Send increments, batches and reads, each for a while, and return how fast they went."""
    if connections > 64 or pipeline > 10_000 or batch > 10_000:
        raise usage("that is no modest load", "at most 64 connections, 10000 requests or items at a time")
    name = series or SERIES
    tests = [test for test in TESTS if not only or test in only]
    writes = [test for test in tests if test != "read"]
    is_new = False
    if writes:
        run.guard("counter.increment", {"series": name, "tests": writes}, run.settings.nodes)
        if run.settings.production:
            run.confirm(f'write as fast as it can to series "{name}"')
        is_new = name not in run.ask("tree.list")
    try:
        return [_measure(run, test, name, connections, pipeline, for_, keys, batch) for test in tests]
    finally:
        if is_new and series is None:
            run.send("tree.drop", series=name)


def _measure(
    run: Run, test: str, name: str, connections: int, depth: int, limit_seconds: float, keys: int, batch: int
) -> Row:
    fill = _fillers(name, keys, batch)[test]
    stop = threading.Event()
    loads = [Load() for _ in range(connections)]
    workers = [
        threading.Thread(target=_work, args=(run, load, number, fill, depth, stop), daemon=True)
        for number, load in enumerate(loads)
    ]
    progress = Progress(run.talk, test, "requests", None)
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    try:
        while time.perf_counter() - begun < limit_seconds and all(worker.is_alive() for worker in workers):
            time.sleep(min(0.05, limit_seconds))
            progress.show(sum(len(load.seconds) for load in loads) * depth)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        progress.end()
    elapsed = time.perf_counter() - begun
    for load in loads:
        if load.error is not None:
            raise load.error
    return _figures(test, sorted(one for load in loads for one in load.seconds), depth, batch, elapsed)


def _fillers(name: str, keys: int, batch: int) -> dict[str, Callable[[Pipeline, int], object]]:
    """How each test puts one request into a pipeline; the number of the request spreads the keys."""

    def key(number: int) -> int:
        return number * STEP % keys

    return {
        "increment": lambda pipeline, number: pipeline.increment(name, key(number)),
        "batch": lambda pipeline, number: pipeline.call(
            "series.batch_add",
            series=name,
            items=[(key(number * batch + at), DAY, 1) for at in range(batch)],
        ),
        "read": lambda pipeline, number: pipeline.sum(name, key(number)),
    }


def _work(
    run: Run,
    load: Load,
    worker: int,
    fill: Callable[[Pipeline, int], object],
    depth: int,
    stop: threading.Event,
) -> None:
    number = worker * 1_000_003
    try:
        with connection(run.settings, run.environ, target="master") as client:
            client.ping()
            while not stop.is_set():
                with client.pipeline() as pipeline:
                    for _ in range(depth):
                        number += 1
                        fill(pipeline, number)
                    begun = time.perf_counter()
                load.seconds.append(time.perf_counter() - begun)
    except BaseException as error:  # noqa: BLE001  raised again in the main thread
        load.error = error
        stop.set()


def _figures(test: str, seconds: list[float], depth: int, batch: int, elapsed_seconds: float) -> Row:
    requests = len(seconds) * depth
    items = requests * batch if test == "batch" else requests

    def percentile_us(share: float) -> int:
        return round(seconds[min(int(len(seconds) * share), len(seconds) - 1)] * 1e6) if seconds else 0

    found: dict[str, Any] = {
        "test": test,
        "requests": requests,
        "per_second": round(requests / elapsed_seconds),
        "items_per_second": round(items / elapsed_seconds),
        "p50_us": percentile_us(0.5),
        "p95_us": percentile_us(0.95),
        "p99_us": percentile_us(0.99),
        "max_us": round(seconds[-1] * 1e6) if seconds else 0,
    }
    return found
