"""How long `karmactl sql` takes until its answer, and how much memory: each time a process of its own.

The peers are what somebody without it would do: the same rows in a DuckDB of their own, from Parquet or, as
anybody would try first, from CSV; of the log, DuckDB's own reading of JSON lines.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol

import servers
import workloads
from report import Result, Target
from servers import BenchError

NAMES = ("sql-tree", "sql-cached", "sql-memory", "sql-log")
LARGE_REQUESTS = "--max-request-bytes=1000000"
LOG_KEYS = 1000

QUESTION = "SELECT series, sum(value) AS used, count(*) AS buckets FROM counters GROUP BY series"
LOG_QUESTION = "SELECT op, count(*) AS entries, count(DISTINCT key) AS keys FROM wal GROUP BY op"
STARTS = 5
"""Of a bare Python; single starts spread more than what is measured."""


class Asking:
    """Asks about one directory, with a cache of its own below `place`."""

    def __init__(self, place: Path, data: Path) -> None:
        self._data = data
        self._environment = {
            **servers.tools_environment(place / "bytecode"),
            **{f"XDG_{name}_HOME": str(place / name) for name in ("CACHE", "CONFIG")},
        }
        bare = [self.took([sys.executable, "-c", "pass"])[0] for _ in range(STARTS)]
        self._bare_seconds = statistics.median(bare)
        # The first of each would compile what it imports.
        self.ask("SELECT count(*) FROM wal")
        self.peer("SELECT 1", "SELECT 1")

    def ask(self, question: str, *options: str) -> tuple[float, float]:
        """Return the seconds that a question takes over a bare Python, and the peak of its memory in MB."""
        command = [sys.executable, "-m", "karmactl", "sql", "--from", str(self._data), question, *options]
        seconds, peak_mb = self.took(command)
        return seconds - self._bare_seconds, peak_mb

    def peer(self, load: str, question: str) -> float:
        """Return the seconds over a bare Python of a DuckDB that loads rows itself and answers the same."""
        lines = (
            "import duckdb",
            "connection = duckdb.connect()",
            f"connection.execute({load!r})",
            f"print(connection.execute({question!r}).fetchall())",
        )
        code = "\n".join(lines)
        return self.took([sys.executable, "-c", code])[0] - self._bare_seconds

    def took(self, command: Sequence[str]) -> tuple[float, float]:
        """Return the seconds and the peak memory in MB of a command. Raises BenchError when it fails."""
        begin = time.perf_counter()
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise BenchError(f"{' '.join(command)[:200]} ended with code {process.returncode}: {said}")
        return time.perf_counter() - begin, usage.ru_maxrss / 1000


class Settings(Protocol):
    """What of the benchmarks' settings counts here."""

    @property
    def directory(self) -> Path:
        """Where data may lie."""

    @property
    def names(self) -> AbstractSet[str]:
        """What is measured."""

    @property
    def runs(self) -> int:
        """How often."""

    @property
    def history_keys(self) -> int:
        """Keys of the snapshot."""

    @property
    def history_days(self) -> int:
        """Days of each key."""

    @property
    def log_entries(self) -> int:
        """Entries of the log."""


def measure(settings: Settings, say: Callable[[str], None]) -> Iterator[Result]:
    """Questions about a snapshot with a year of history and about a long log, in SQL."""
    if settings.names & set(NAMES[:3]):
        for result in _history(settings, say):
            if result.name in settings.names:
                yield result
    if "sql-log" in settings.names:
        yield _log(settings, say)


def _history(settings: Settings, say: Callable[[str], None]) -> Iterator[Result]:
    """A `.tree` file that was never seen, then one whose decoded form is in the cache."""
    buckets = settings.history_keys * settings.history_days
    data, exported = settings.directory / "sql-history", settings.directory / "sql-exported"
    with servers.karma(data, LARGE_REQUESTS) as server:
        say(f"filling karma with {buckets:,} buckets")
        history = workloads.karma_history(settings.history_keys, settings.history_days)
        servers.load(server.port, history, servers.KARMA_REPLY)
        servers.ask(server.port, op="snapshot.create_all")
    asking = Asking(settings.directory / "sql", data)
    exported.mkdir()
    for form in ("parquet", "csv"):
        say(f"exporting them as {form}")
        asking.ask("FROM counters", "--to", str(exported / f"counters.{form}"), "--no-cache")
    found: dict[str, list[float]] = {name: [] for name in ("tree", "memory", "cached", "parquet", "csv")}
    # One question fills the cache.
    asking.ask(QUESTION)
    for run in range(settings.runs):
        seconds, peak_mb = asking.ask(QUESTION, "--no-cache")
        found["tree"].append(seconds)
        found["memory"].append(peak_mb)
        found["cached"].append(asking.ask(QUESTION)[0])
        for form in ("parquet", "csv"):
            load = f"CREATE TABLE counters AS FROM '{exported}/counters.{form}'"
            found[form].append(asking.peer(load, QUESTION))
        last = ", ".join(f"{name} {values[-1]:,.2f}" for name, values in found.items())
        say(f"sql: run {run + 1} of {settings.runs}: {last}")
    what = f"{buckets:,} buckets until the answer; the peer loads the same rows into DuckDB"
    yield Result("sql-tree", "s", "less", found["tree"], found["csv"], "csv", Target(value=3), what)
    yield Result(
        "sql-cached", "s", "less", found["cached"], found["parquet"], "parquet", Target(value=0.3), what
    )
    peak = "peak of the process that decodes them"
    yield Result("sql-memory", "MB", "less", found["memory"], target=Target(value=1200), note=peak)


def _log(settings: Settings, say: Callable[[str], None]) -> Result:
    """A log of single increments, as a server wrote it."""
    data = settings.directory / "sql-log"
    requests = workloads.write_requests(
        settings.directory / "sql-log-requests",
        [workloads.karma_increment(key) for key in workloads.keys(LOG_KEYS)],
    )
    load = ["--connections", "4", "--depth", "64", "--count", str(settings.log_entries)]
    with (
        servers.karma(data) as server,
        servers.loadgen(server, requests, *load, "--expect", servers.KARMA_REPLY.decode()) as generator,
    ):
        servers.outcome(generator, server)
    # Ended by force: a clean end would snapshot and truncate the log.
    asking = Asking(settings.directory / "sql", data)
    logs = [path for path in sorted(data.glob("karma.wal*")) if path.suffix in {".wal", ".segment"}]
    files = ", ".join(f"'{path}'" for path in logs)
    naive = f"CREATE TABLE wal AS SELECT entry.* FROM read_json([{files}], format = 'newline_delimited')"
    ours, theirs = [], []
    for run in range(settings.runs):
        ours.append(asking.ask(LOG_QUESTION)[0])
        theirs.append(asking.peer(naive, LOG_QUESTION))
        say(f"sql-log: run {run + 1} of {settings.runs}: {ours[-1]:.2f}, read_json {theirs[-1]:.2f}")
    note = (
        f"{settings.log_entries:,} increments until the answer, checksums looked at; the peer looks at none"
    )
    return Result("sql-log", "s", "less", ours, theirs, "read_json", Target(value=1.5), note)
