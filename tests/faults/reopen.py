"""A data directory opened as a start of the server opens it, but without sockets: thousands in a minute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from handmade import add

from karma import config as configuration
from karma.core import buckets
from karma.core.buckets import Counter
from karma.core.idempotency import Records
from karma.core.store import Store
from karma.offline.check import check
from karma.service.log import Log
from karma.service.roles import settle_role
from karma.storage import install, node_file, recovery, snapshot
from karma.storage.disk import Disk
from karma.storage.node_file import Node
from karma.storage.recovery import Recovered
from karma.storage.wal import Wal

State = Mapping[str, Mapping[Any, Any]]
"""Everything that a store holds: its `series`, `records` and `streams` by name, as plain values."""
_CONFIG = configuration.load([], {}, Disk().read_file)
_QUIET = Log(lambda _line: None, lambda: 0.0)


def state_of(store: Store) -> State:
    """Return everything that a store holds."""
    return {
        "series": {name: _counters(series.counters) for name, series in store.series.items()},
        "records": dict(store.records.items()),
        "streams": {
            stream.stream_id: (
                stream.mode,
                stream.series,
                stream.last_chunk_seq,
                stream.committed_at_unix,
                None if stream.staged is None else _counters(stream.staged),
            )
            for known in (store.streams.active, store.streams.committed)
            for stream in known.values()
        },
    }


def _counters(counters: Mapping[int, Counter]) -> dict[int, dict[int, int]]:
    return {key: dict(buckets.items(counter)) for key, counter in counters.items()}


@dataclass(frozen=True, slots=True)
class Opened:
    """What a start finds."""

    found: Node | None
    """The node as its file says."""
    node: Node
    """The node as it starts."""
    recovered: Recovered
    state: State
    checkpoints: list[dict[str, Any]]
    done: list[str]
    """What the start did to the directory, in words."""


def read(directory: Path, now_unix: int, disk: Disk | None = None) -> tuple[Recovered, State]:
    """Return what recovery finds, changing nothing. Raises DamagedDataError."""
    recovered = recovery.read(disk or Disk(), directory, Records(), now_unix)
    return recovered, state_of(recovered.store)


def reopen(directory: Path, now_unix: int) -> Opened:
    """Do what `karma.app.Server.run` does until it could listen. Raises DamagedDataError."""
    disk = Disk()
    install.finish(disk, directory)
    found = node_file.load(disk, directory)
    recovered, state = read(directory, now_unix)
    done = recovery.mend(disk, directory, recovered, now_unix)
    node = settle_role(
        _CONFIG, found, recovered.last_lsn, _QUIET, lambda: "new", lost_tail=recovered.tail is not None
    )
    checkpoints = snapshot.load_checkpoints(disk, directory)
    return Opened(found, node, recovered, state, checkpoints, done)


def assert_fit_for_writes(directory: Path, opened: Opened, now_unix: int) -> None:
    """Write to a directory that was reopened, and read it once more."""
    again, state = read(directory, now_unix)
    assert (again.tail, again.last_lsn, state) == (None, opened.recovered.last_lsn, opened.state)
    if opened.recovered.must_snapshot:
        # The server takes a snapshot of everything before it writes.
        return
    log_file = Wal(Disk(), directory, next_lsn=again.last_lsn + 1)
    kept = [body.lsn for body in log_file.read(log_file.first_lsn - 1)]
    log_file.append([orjson.dumps(add("behind", 1))], now_unix * 1000)
    log_file.close()
    assert kept == list(range(log_file.first_lsn, again.last_lsn + 1))
    behind, state = read(directory, now_unix)
    assert (behind.tail, behind.last_lsn) == (None, again.last_lsn + 1)
    assert state["series"] == {**opened.state["series"], "behind": {1: {20260505: 1}}}


def verdict(directory: Path, now_unix: int, disk: Disk | None = None) -> str:
    """Return what `karma check` says: ok, warning or damaged."""
    return check(disk or Disk(), directory, now_unix).status
