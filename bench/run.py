"""`make bench`: Karma's promises about speed, memory and restarts, measured beside Redis in the same run.

    python bench/run.py [--runs 5] [--seconds 3] [--only NAME,...] [--quick] [--output table|json]

stdout carries the report, stderr the progress. A missed target is a line in the report and leaves the exit
code at 0; 1 means that a benchmark could not be run at all. README.md beside this file tells what each one
measures and how fair it is to the peer.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import dashboard
import many_series
import replication
import servers
import sql
import startup
import workloads
from report import Result, Target, as_json, table
from servers import BenchError, Server

WARMUP_SECONDS = 0.3
BATCH_ITEMS = 1000
BATCH_KEYS = 8000
INCREMENT_KEYS = 1000
PAGE_ENTRIES = 1000
LARGE_REQUESTS = ("--max-request-bytes=1000000",)
WATCHED_NODES = 10
WATCHED_SECONDS = 10
"""For each second of a run: what a dashboard costs is little, and clock ticks are coarse."""
KEY_PRESSES = 100
ONE_DUMP = "--dump-retention-per-tree=1"
"""Every clean end with millions of buckets writes another snapshot: five would only fill the disk."""


@dataclass(frozen=True)
class Settings:
    """How long and how large: the defaults make the report, `QUICK` only proves that everything runs."""

    directory: Path
    names: frozenset[str]
    runs: int = 5
    seconds: float = 3.0
    history_keys: int = 50_000
    history_days: int = 356
    single_day_keys: int = 1_000_000
    listed_keys: int = 3_000_000
    log_entries: int = 1_000_000
    segment_bytes: int = 16 << 20
    idempotent_requests: int = 250_000

    def quick(self) -> Settings:
        """A smoke test: its figures mean nothing."""
        return replace(
            self,
            runs=1,
            seconds=0.3,
            history_keys=2_000,
            single_day_keys=50_000,
            listed_keys=50_000,
            log_entries=60_000,
            segment_bytes=2 << 20,
            idempotent_requests=20_000,
        )


@dataclass(frozen=True)
class Load:
    """What one server is sent: requests whose replies have `lines` lines and begin with `expect`.

    Before them, unmeasured, `fill`: (request, reply lines) whose replies begin with `fill_expect`.
    """

    requests: Sequence[bytes]
    expect: bytes
    lines: int = 1
    fill: Sequence[tuple[bytes, int]] = ()
    fill_expect: bytes = b""


@dataclass(frozen=True)
class Scenario:
    """The same work for both sides: throughput in `unit`, of which each request does `units_per_request`."""

    name: str
    karma: Load
    redis: Load | None
    connections: int
    depth: int = 1
    fsync: bool = False
    once: bool = False
    unit: str = "op/s"
    units_per_request: int = 1
    target: Target | None = None
    shorten: float = 1.0


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def scenarios(settings: Settings) -> Iterator[Scenario]:
    """Everything that is measured as throughput under a constant number of requests in flight."""
    keys = workloads.keys(INCREMENT_KEYS)
    ours = Load([workloads.karma_increment(key) for key in keys], servers.KARMA_REPLY)
    theirs = Load([workloads.redis_increment(key) for key in keys], b":")
    yield Scenario("increments-4", ours, theirs, connections=4, target=Target(ratio=1.5))
    yield Scenario("increments-64", ours, theirs, connections=64, target=Target(ratio=0.45))
    yield Scenario("increments-4x64", ours, theirs, connections=4, depth=64, target=Target(ratio=0.4))
    yield Scenario("durable-1", ours, theirs, connections=1, fsync=True, target=Target(ratio=0.9))
    yield Scenario("durable-4", ours, theirs, connections=4, fsync=True, target=Target(ratio=0.9))

    batches = [
        workloads.keys(BATCH_ITEMS, workloads.FIRST_KEY + at) for at in range(0, BATCH_KEYS, BATCH_ITEMS)
    ]
    adds = Load([workloads.karma_batch_add(batch) for batch in batches], servers.KARMA_REPLY)
    redis_adds = Load([workloads.redis_batch_add(batch) for batch in batches], b":", lines=BATCH_ITEMS)
    yield Scenario(
        "batch-add",
        adds,
        redis_adds,
        connections=4,
        unit="items/s",
        units_per_request=BATCH_ITEMS,
        shorten=0.5,
    )
    sums = Load(
        [workloads.karma_batch_sum(batch) for batch in batches],
        servers.KARMA_REPLY,
        fill=[(request, 1) for request in adds.requests],
        fill_expect=adds.expect,
    )
    redis_gets = Load(
        [workloads.redis_batch_get(batch) for batch in batches],
        b"$",
        lines=2 * BATCH_ITEMS,
        fill=[(request, BATCH_ITEMS) for request in redis_adds.requests],
        fill_expect=redis_adds.expect,
    )
    yield Scenario(
        "batch-sum",
        sums,
        redis_gets,
        connections=4,
        unit="keys/s",
        units_per_request=BATCH_ITEMS,
        shorten=0.5,
    )

    if "idempotent-4x64" in settings.names:
        unique = [
            workloads.karma_increment(keys[nth % INCREMENT_KEYS], f"order-{nth:012d}")
            for nth in range(settings.idempotent_requests)
        ]
        yield Scenario(
            "idempotent-4x64", Load(unique, servers.KARMA_REPLY), None, connections=4, depth=64, once=True
        )


def throughput(settings: Settings, scenario: Scenario) -> Result:
    """Runs a scenario on fresh servers, Karma and Redis in turn: a slow minute of the machine hits both."""
    found: dict[str, list[float]] = {"karma": [], "redis": []}
    latencies: dict[str, list[tuple[float, float]]] = {"karma": [], "redis": []}
    for run in range(settings.runs):
        for name, load in (("karma", scenario.karma), ("redis", scenario.redis)):
            if load is None or (name == "redis" and servers.redis_command() is None):
                continue
            measured = drive(settings, scenario, name, load)
            found[name].append(measured["ops_per_second"] * scenario.units_per_request)
            if "p50_us" in measured:
                latencies[name].append((measured["p50_us"], measured["p99_us"]))
        last = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found.items() if values)
        say(f"{scenario.name}: run {run + 1} of {settings.runs}: {last} {scenario.unit}")
    note = "; ".join(
        f"{name} p50 {middle(values)[0]:,.0f} p99 {middle(values)[1]:,.0f} us"
        for name, values in latencies.items()
        if values
    )
    return Result(
        scenario.name,
        scenario.unit,
        "more",
        found["karma"],
        found["redis"],
        "redis" if scenario.redis else "",
        scenario.target,
        note,
    )


def middle(latencies: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The (p50, p99) of the median run."""
    return sorted(latencies)[len(latencies) // 2]


def drive(settings: Settings, scenario: Scenario, name: str, load: Load) -> dict[str, float]:
    """One run of one side: a fresh server on an empty directory, filled, loaded, ended."""
    starting: AbstractContextManager[Server]
    with tempfile.TemporaryDirectory(dir=settings.directory) as place:
        data, requests = Path(place, name), workloads.write_requests(Path(place, "requests"), load.requests)
        if name == "karma":
            starting = servers.karma(data, *LARGE_REQUESTS, fsync=scenario.fsync)
        else:
            starting = servers.redis(data, fsync=scenario.fsync)
        duration = (
            ["--count", str(len(load.requests))]
            if scenario.once
            else ["--seconds", str(settings.seconds * scenario.shorten), "--warmup", str(WARMUP_SECONDS)]
        )
        with starting as server:
            servers.load(server.port, load.fill, load.fill_expect)
            options = [
                "--connections",
                str(scenario.connections),
                "--depth",
                str(scenario.depth),
                "--lines",
                str(load.lines),
                "--expect",
                load.expect.decode(),
                *duration,
            ]
            with servers.loadgen(server, requests, *options) as generator:
                return servers.outcome(generator, server)


def measure_throughput(settings: Settings) -> Iterator[Result]:
    """The scenarios that were asked for."""
    for scenario in scenarios(settings):
        if scenario.name in settings.names:
            yield attempted(scenario.name, partial(throughput, settings, scenario))


def attempted(name: str, measure: Callable[[], Result]) -> Result:
    """What `measure` finds, or its failure as a result, so that the benchmarks after it still run."""
    try:
        return measure()
    except (BenchError, OSError) as error:
        say(f"ERROR: {name}: {error}")
        return Result(name, "", "more", failure=str(error))


def measure_history(settings: Settings) -> Iterator[Result]:
    """Memory, snapshots and restarts of one directory with a year of history, filled once for all of them."""
    data = settings.directory / "history"
    buckets = settings.history_keys * settings.history_days
    with servers.karma(data, *LARGE_REQUESTS, ONE_DUMP) as server:
        empty_bytes = server.rss_bytes()
        say(f"filling karma with {buckets:,} buckets")
        begin = time.perf_counter()
        servers.load(
            server.port,
            workloads.karma_history(settings.history_keys, settings.history_days),
            servers.KARMA_REPLY,
        )
        took_seconds = time.perf_counter() - begin
        note = f"{buckets:,} buckets in {settings.history_keys:,} keys, filled in {took_seconds:.1f} s"
        per_bucket = (server.rss_bytes() - empty_bytes) / buckets
        if "memory-bucket" in settings.names:
            yield Result(
                "memory-bucket", "B/bucket", "less", [per_bucket], target=Target(value=20), note=note
            )
        if "snapshot-stall" in settings.names:
            name = "snapshot-stall"
            yield attempted(name, partial(snapshot_stall, settings, server, name, "fsync off"))
        saving_seconds = [server.terminate()]
    if "restart" in settings.names:
        starts = []
        for run in range(settings.runs):
            with servers.karma(data, *LARGE_REQUESTS, ONE_DUMP) as server:
                starts.append(server.started_seconds)
                saving_seconds.append(server.terminate())
                say(f"restart: run {run + 1} of {settings.runs}: {starts[-1]:.2f} s")
        note = f"{buckets:,} buckets; the clean end before took {median(saving_seconds):.1f} s"
        yield Result("restart", "s", "less", starts, target=Target(value=4), note=note)
    if "snapshot-stall-durable" in settings.names:
        with servers.karma(data, *LARGE_REQUESTS, ONE_DUMP, fsync=True) as server:
            name = "snapshot-stall-durable"
            yield attempted(name, partial(snapshot_stall, settings, server, name, "fsync on"))


def snapshot_stall(settings: Settings, server: Server, name: str, mode: str) -> Result:
    """The longest wait of a client that increments without pause while another has everything saved."""
    return stall(settings, server, name, mode, "snapshot", lambda: [{"op": "snapshot.create_all"}])


def stall(
    settings: Settings,
    server: Server,
    name: str,
    mode: str,
    what: str,
    requests_of_run: Callable[[], Sequence[dict[str, object]]],
) -> Result:
    """The longest wait of a client that increments without pause while another sends requests of its own."""
    requests = workloads.write_requests(
        settings.directory / "stall-requests",
        [workloads.karma_increment(key) for key in workloads.keys(INCREMENT_KEYS)],
    )
    worst_ms, p99_ms, took_seconds = [], [], []
    for run in range(settings.runs):
        options = ["--seconds", str(servers.REPLY_TIMEOUT_SECONDS), "--expect", servers.KARMA_REPLY.decode()]
        others = requests_of_run()
        with servers.loadgen(server, requests, *options) as generator:
            time.sleep(WARMUP_SECONDS)
            took_seconds.append(sum(servers.ask(server.port, **request)[1] for request in others))
            time.sleep(max(WARMUP_SECONDS, settings.seconds))
            generator.terminate()
            measured = servers.outcome(generator, server)
        worst_ms.append(measured["max_us"] / 1000)
        p99_ms.append(measured["p99_us"] / 1000)
        say(
            f"{name}: run {run + 1} of {settings.runs}: {worst_ms[-1]:.1f} ms, "
            f"{what} {took_seconds[-1]:.2f} s"
        )
    note = f"{mode}; worst {max(worst_ms):.1f}, p99 {max(p99_ms):.2f} ms, {what} {max(took_seconds):.2f} s"
    return Result(name, "ms max", "less", worst_ms, target=Target(value=50), note=note)


def measure_large_series(settings: Settings) -> Iterator[Result]:
    """What others wait for a deletion from millions of keys, and what a page of those keys takes."""
    if "page-of-keys" in settings.names:
        with filled(settings, "listed", settings.listed_keys) as server:
            yield attempted("page-of-keys", partial(page_of_keys, settings, server))
    if "delete-stall" in settings.names:
        with filled(settings, "deleted", settings.single_day_keys) as server:
            yield attempted("delete-stall", partial(delete_stall, settings, server))


@contextmanager
def filled(settings: Settings, folder: str, keys: int) -> Iterator[Server]:
    """A server with so many keys of one day."""
    with servers.karma(settings.directory / folder, *LARGE_REQUESTS, ONE_DUMP) as server:
        say(f"filling karma with {keys:,} keys of one day")
        servers.load(server.port, workloads.karma_history(keys, days=1), servers.KARMA_REPLY)
        yield server


def delete_stall(settings: Settings, server: Server) -> Result:
    """The longest wait of a client that increments without pause while all keys' days are deleted."""
    count = settings.single_day_keys

    def requests_of_run() -> Sequence[dict[str, object]]:
        servers.load(server.port, workloads.karma_history(count, days=1), servers.KARMA_REPLY)
        return [{"op": "series.delete_before", "series": workloads.SERIES, "before": workloads.BUCKET + 1}]

    return stall(settings, server, "delete-stall", f"{count:,} keys", "delete_before", requests_of_run)


def page_of_keys(settings: Settings, server: Server) -> Result:
    """A page of a thousand keys after the first one, which sorts the keys for all of them."""
    page = {"op": "tree.keys", "series": workloads.SERIES, "limit": PAGE_ENTRIES}
    first, first_seconds = servers.ask(server.port, **page)
    took_ms = []
    cursor = first["next_cursor"]
    for _ in range(max(settings.runs, 5) * 4):
        reply, seconds = servers.ask(server.port, **page, cursor=cursor)
        cursor = reply["next_cursor"]
        took_ms.append(seconds * 1000)
    note = f"{settings.listed_keys:,} keys; the first page took {first_seconds:.2f} s"
    return Result("page-of-keys", "ms", "less", took_ms, target=Target(value=50), note=note)


def measure_memory_per_key(settings: Settings) -> Iterator[Result]:
    """What a key with a single day costs, beside a Redis hash with a single field."""
    count = settings.single_day_keys
    with servers.karma(settings.directory / "keys", *LARGE_REQUESTS) as server:
        empty_bytes = server.rss_bytes()
        say(f"filling karma with {count:,} keys of one day")
        servers.load(server.port, workloads.karma_history(count, days=1), servers.KARMA_REPLY)
        ours = [(server.rss_bytes() - empty_bytes) / count]
    theirs = []
    if servers.redis_command():
        with servers.redis(settings.directory / "redis-keys") as server:
            empty_bytes = server.rss_bytes()
            say(f"filling redis with {count:,} hashes of one day")
            servers.load(server.port, workloads.redis_single_day(count), b":")
            theirs = [(server.rss_bytes() - empty_bytes) / count]
    yield Result(
        "memory-key", "B/key", "less", ours, theirs, "redis", Target(value=150), f"{count:,} keys of one day"
    )


def measure_replication_page(settings: Settings) -> Iterator[Result]:
    """The first page of a follower far behind, from the middle of each old segment, with and without index.

    The server is restarted before each half, so that nothing it learned while writing the log helps it.
    """
    data = settings.directory / "log"
    say(f"writing a log of {settings.log_entries:,} entries")
    requests = workloads.write_requests(
        settings.directory / "log-requests",
        [workloads.karma_increment(key) for key in workloads.keys(INCREMENT_KEYS)],
    )
    options = [
        "--connections",
        "4",
        "--depth",
        "64",
        "--count",
        str(settings.log_entries),
        "--expect",
        servers.KARMA_REPLY.decode(),
    ]
    with (
        servers.karma(data, f"--wal-segment-bytes={settings.segment_bytes}") as server,
        servers.loadgen(server, requests, *options) as generator,
    ):
        servers.outcome(generator, server)
    # Ended by force: a clean end would snapshot and drop the segments.
    first_lsns = sorted(int(path.name.split(".")[2]) for path in data.glob("karma.wal.*.segment"))
    indexes = sorted(data.glob("karma.wal.*.segment.idx"))
    if len(first_lsns) < 2 or not indexes:
        raise BenchError(f"expected old segments with indexes, found {len(first_lsns)} and {len(indexes)}")
    middles = [(here + after) // 2 for here, after in pairwise(first_lsns)]
    indexed_ms = cold_pages(settings, data, middles)
    for index in indexes:
        index.unlink()
    scanned_ms = cold_pages(settings, data, middles)
    rebuilt = any(index.exists() for index in indexes)
    note = f"pages of {PAGE_ENTRIES} from {len(middles)} segments of {settings.segment_bytes >> 20} MiB"
    yield Result(
        "replication-page",
        "ms",
        "less",
        indexed_ms,
        scanned_ms,
        "no index",
        Target(ratio=3),
        note + ("; the server rebuilt missing indexes" if rebuilt else ""),
    )


def cold_pages(settings: Settings, data: Path, middles: Sequence[int]) -> list[float]:
    """Milliseconds of one page per segment from a server that has just started."""
    took_ms = []
    with servers.karma(data, f"--wal-segment-bytes={settings.segment_bytes}") as server:
        say(f"replication-page: restarted in {server.started_seconds:.1f} s")
        for lsn in middles:
            page, seconds = servers.ask(
                server.port, op="replication.entries", after_lsn=lsn, limit=PAGE_ENTRIES
            )
            if page["count"] != PAGE_ENTRIES or page["entries"][0]["lsn"] != lsn + 1:
                raise BenchError(f"replication.entries after {lsn} gave {page['count']} entries")
            took_ms.append(seconds * 1000)
    return took_ms


def measure_replication(settings: Settings) -> Iterator[Result]:
    """How far behind a follower is at a steady rate, and what it costs the master beside."""
    seconds = settings.seconds * 2
    lags_ms, alone, followed = [], [], []
    for run in range(settings.runs):
        with (
            tempfile.TemporaryDirectory(dir=settings.directory) as place,
            servers.karma(Path(place, "master")) as master,
        ):
            replication.cpu_at_rate(master, settings.seconds / 2)
            alone.append(replication.cpu_at_rate(master, seconds))
            with replication.follower(Path(place, "slave"), master) as slave:
                replication.wait_for(slave, replication.last_lsn(master))
                followed.append(replication.cpu_at_rate(master, seconds))
                lags_ms.append(replication.lag_p99_ms(master, slave, seconds))
        say(
            f"replication: run {run + 1} of {settings.runs}: lag p99 {lags_ms[-1]:.1f} ms, "
            f"master's CPU {alone[-1]:.0%} alone, {followed[-1]:.0%} followed"
        )
    rate = f"{replication.RATE_PER_SECOND:,} increments/s, fsync off"
    if "replication-lag" in settings.names:
        yield Result("replication-lag", "ms p99", "less", lags_ms, target=Target(value=10), note=rate)
    if "replication-cpu" in settings.names:
        costs = [100 * (with_it / without - 1) for with_it, without in zip(followed, alone, strict=True)]
        note = f"master's CPU time with a follower over without, {rate}"
        yield Result("replication-cpu", "% more", "less", costs, target=Target(value=15), note=note)


def measure_catch_up(settings: Settings) -> Iterator[Result]:
    """A new follower of a master whose log holds everything from the first entry on."""
    requests = workloads.write_requests(
        settings.directory / "catch-up-requests",
        [workloads.karma_increment(key) for key in workloads.keys(INCREMENT_KEYS)],
    )
    load = ["--connections", "4", "--depth", "64", "--count", str(settings.log_entries)]
    rates = []
    with servers.karma(settings.directory / "catch-up") as master:
        with servers.loadgen(master, requests, *load, "--expect", servers.KARMA_REPLY.decode()) as generator:
            servers.outcome(generator, master)
        for run in range(settings.runs):
            with (
                tempfile.TemporaryDirectory(dir=settings.directory) as place,
                replication.follower(Path(place, "slave"), master, "--replication-batch-size=10000") as slave,
            ):
                behind = settings.log_entries - replication.last_lsn(slave)
                rates.append(behind / replication.wait_for(slave, settings.log_entries))
            say(f"replication-catch-up: run {run + 1} of {settings.runs}: {rates[-1]:,.0f} entries/s")
    note = f"{settings.log_entries:,} single increments, pages of 10,000"
    yield Result(
        "replication-catch-up", "entries/s", "more", rates, target=Target(at_least=150_000), note=note
    )


def measure_bootstrap(settings: Settings) -> Iterator[Result]:
    """A new follower of a master whose log is gone: everything comes from its snapshots."""
    buckets = settings.history_keys * settings.history_days
    took_seconds = []
    options = (*LARGE_REQUESTS, ONE_DUMP, "--wal-keep-bytes=0")
    with servers.karma(settings.directory / "bootstrap", *options) as master:
        say(f"filling karma with {buckets:,} buckets")
        history = workloads.karma_history(settings.history_keys, settings.history_days)
        servers.load(master.port, history, servers.KARMA_REPLY)
        servers.ask(master.port, op="snapshot.create_all")
        for run in range(settings.runs):
            with (
                tempfile.TemporaryDirectory(dir=settings.directory) as place,
                replication.follower(Path(place, "slave"), master) as slave,
            ):
                seconds = slave.started_seconds + replication.wait_for(slave, replication.last_lsn(master))
                took_seconds.append(seconds)
            say(f"replication-bootstrap: run {run + 1} of {settings.runs}: {took_seconds[-1]:.1f} s")
    note = f"{buckets:,} buckets, from the start of the process to the master's LSN"
    yield Result("replication-bootstrap", "s", "less", took_seconds, target=Target(value=15), note=note)


def measure_start(settings: Settings) -> Iterator[Result]:
    """What an operator waits before karmactl does anything."""
    with servers.karma(settings.directory / "ctl-start") as server:
        say("starting karmactl")
        took_ms = [startup.over_bare_python_ms(server) for _ in range(settings.runs)]
    note = "karmactl ping, over python -c pass"
    yield Result("ctl-start", "ms", "less", took_ms, target=Target(value=120), note=note)


def measure_dashboard(settings: Settings) -> Iterator[Result]:
    """What `karmactl tui` takes of a machine while ten nodes are watched, and how fast keys are."""
    cpu_percent, memory_mb, p95_ms = [], [], []
    with ExitStack() as stack:
        options = (*LARGE_REQUESTS, "--query-timeout-ms=10000")
        master = stack.enter_context(servers.karma(settings.directory / "watched", *options))
        say(f"filling karma with {settings.single_day_keys:,} keys")
        batches = range(0, settings.single_day_keys, BATCH_ITEMS)
        filling = ((workloads.karma_batch_add(range(at, at + BATCH_ITEMS)), 1) for at in batches)
        servers.load(master.port, filling, servers.KARMA_REPLY)
        # Followers of another one, or this would be a benchmark of memory.
        small = stack.enter_context(servers.karma(settings.directory / "watched-small"))
        followers = [
            stack.enter_context(replication.follower(settings.directory / f"watched-{number}", small))
            for number in range(WATCHED_NODES - 2)
        ]
        nodes = [master, small, *followers]
        for run in range(settings.runs):
            with dashboard.running(nodes) as shown:
                percent, megabytes = dashboard.cost(shown, WATCHED_SECONDS * settings.seconds)
                cpu_percent.append(percent)
                p95_ms.append(dashboard.key_p95_ms(shown, workloads.SERIES, KEY_PRESSES))
                memory_mb.append(max(megabytes, shown.rss_mb()))
            say(
                f"dashboard: run {run + 1} of {settings.runs}: {percent:.1f} % of a core, "
                f"{memory_mb[-1]:.0f} MB, keys {p95_ms[-1]:.0f} ms"
            )
    nodes_note = f"{WATCHED_NODES} nodes, 120 x 40 letters, a refresh each second"
    yield Result("tui-cpu", "% of a core", "less", cpu_percent, target=Target(value=5), note=nodes_note)
    yield Result("tui-memory", "MB", "less", memory_mb, target=Target(value=90), note=nodes_note)
    keys_note = f"p95 of {KEY_PRESSES} keys, {settings.single_day_keys:,} keys on the server"
    yield Result("tui-keys", "ms", "less", p95_ms, target=Target(value=100), note=keys_note)


MEASURES: tuple[tuple[Callable[[Settings], Iterator[Result]], tuple[str, ...]], ...] = (
    (
        measure_throughput,
        (
            "increments-4",
            "increments-64",
            "increments-4x64",
            "durable-1",
            "durable-4",
            "batch-add",
            "batch-sum",
            "idempotent-4x64",
        ),
    ),
    (measure_memory_per_key, ("memory-key",)),
    (measure_history, ("memory-bucket", "snapshot-stall", "restart", "snapshot-stall-durable")),
    (measure_large_series, ("page-of-keys", "delete-stall")),
    (partial(many_series.measure, say=say), many_series.NAMES),
    (measure_replication_page, ("replication-page",)),
    (measure_replication, ("replication-lag", "replication-cpu")),
    (measure_catch_up, ("replication-catch-up",)),
    (measure_bootstrap, ("replication-bootstrap",)),
    (measure_start, ("ctl-start",)),
    (partial(sql.measure, say=say), sql.NAMES),
    (measure_dashboard, ("tui-cpu", "tui-memory", "tui-keys")),
)
NAMES = tuple(name for _, names in MEASURES for name in names)


def machine(settings: Settings) -> dict[str, str]:
    """What the figures depend on besides the code."""
    redis = servers.redis_command()
    version = (
        subprocess.run([redis, "--version"], check=False, capture_output=True, text=True).stdout.split()
        if redis
        else []
    )
    named = next((word.removeprefix("v=") for word in version if word.startswith("v=")), "missing")
    return {
        "cores": str(os.cpu_count()),
        platform.python_implementation(): platform.python_version(),
        "redis": named,
        "kernel": platform.release(),
        "runs": str(settings.runs),
        "seconds per run": f"{settings.seconds:g}",
    }


def chosen(text: str) -> frozenset[str]:
    """The names of `--only`. Raises ArgumentTypeError for one that is none."""
    names = frozenset(name.strip() for name in text.split(","))
    if unknown := names - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    return names


def main() -> int:
    """Runs what was asked for and prints the report; 1 if something could not be measured."""
    parser = argparse.ArgumentParser(description="Karma's benchmarks, beside Redis.", allow_abbrev=False)
    parser.add_argument(
        "--runs", type=int, default=5, help="runs per benchmark, of which the median counts (5)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run (3)")
    parser.add_argument(
        "--only", type=chosen, default=frozenset(NAMES), metavar="NAME,...", help=", ".join(NAMES)
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test; its figures mean nothing")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.seconds <= 0:
        parser.error("--runs must be at least 1 and --seconds more than 0")
    # A terminated run ends its servers and removes its directories like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if servers.redis_command() is None:
        say("redis-server is not installed: no peer, and targets that are ratios to it cannot be judged")

    results: list[Result] = []
    servers.BUILD.mkdir(exist_ok=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="run-", dir=servers.BUILD) as directory:
        settings = Settings(Path(directory), arguments.only, arguments.runs, arguments.seconds)
        settings = settings.quick() if arguments.quick else settings
        try:
            servers.build_loadgen()
            for measure, names in MEASURES:
                if settings.names.isdisjoint(names):
                    continue
                try:
                    for result in measure(settings):
                        results.append(result)  # noqa: PERF402  extend may lose what came before an error
                except (BenchError, OSError) as error:
                    say(f"ERROR: {error}")
                    missing = (settings.names & set(names)) - {result.name for result in results}
                    results += [Result(name, "", "more", failure=str(error)) for name in sorted(missing)]
        except BenchError as error:
            say(f"ERROR: {error}")
            return 1
        except KeyboardInterrupt:
            say("interrupted: reporting what was measured")
    say(f"took {time.perf_counter() - begin:.0f} s")
    print(
        table(results, machine(settings))
        if arguments.output == "table"
        else as_json(results, machine(settings))
    )
    return 1 if any(result.failure for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
