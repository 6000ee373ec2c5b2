"""A data directory made without a server: the same store, log and snapshots, each step by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from karma.core import buckets
from karma.core.idempotency import Records
from karma.core.replay import Replay
from karma.core.store import Store
from karma.storage import manifest, recovery, retention, snapshot
from karma.storage.disk import Disk
from karma.storage.recovery import Recovered
from karma.storage.wal import Wal

DAY = 20260505
NOW = 1_795_253_093
State = dict[str, dict[int, dict[int, int]]]


def add(series: str, key: int, value: int = 1, **more: Any) -> dict[str, Any]:
    """Return the log entry of an increment."""
    return {
        "v": 2,
        "op": "counter.increment",
        "series": series,
        "key": key,
        "bucket": DAY,
        "value": value,
        **more,
    }


class Node:
    """What a server does to its directory."""

    def __init__(
        self, directory: Path, first_lsn: int = 1, disk: Disk | None = None, store: Store | None = None
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.disk = disk or Disk()
        self.store = store or Store()
        self.replay = Replay(self.store)
        self.wal = Wal(self.disk, directory, next_lsn=first_lsn)
        self.unix = NOW

    def write(self, *entries: dict[str, Any], is_synced: bool = True) -> None:
        """Write one group."""
        first_lsn = self.wal.last_lsn + 1
        self.wal.append([orjson.dumps({"v": 2, **entry}) for entry in entries], self.unix * 1000)
        for lsn, entry in enumerate(entries, first_lsn):
            assert self.replay.apply(lsn, entry, self.unix) is None
        if is_synced:
            self.wal.sync()
            self.wal.durable_lsn = self.wal.last_lsn

    def rotate(self) -> None:
        self.wal.rotate()()

    def snapshot(self, name: str) -> None:
        """Do what snapshot.create does."""
        self.unix += 1
        snapshot.write_trees(
            self.disk, self.directory, [self.store.series[name]], self.wal.last_lsn, self.unix
        )

    def write_snapshots(self) -> None:
        """Do what snapshot.create_all does before the log is truncated."""
        self.unix += 1
        disk, directory, lsn = self.disk, self.directory, self.wal.last_lsn
        if self.wal.active_bytes:
            self.rotate()
        streams = self.store.streams
        snapshot.write_records(
            disk, directory, self.store.records, streams.committed.values(), lsn, self.unix
        )
        changed, self.store.changed = self.store.changed, set()
        files = manifest.list_snapshots(disk, directory)
        manifest.take_set(disk, directory, self.store.series.values(), changed, lsn, self.unix, files)
        snapshot.write_streams(disk, directory, streams, lsn)
        found = manifest.list_snapshots(disk, directory)
        stale = [each for each in found if each.series not in self.store.series]
        if stale:
            retention.set_aside(disk, directory, stale)

    def snapshot_all(self, keep_bytes: int = 0) -> None:
        """Do what snapshot.create_all does."""
        self.write_snapshots()
        self.wal.truncate(self.wal.last_lsn, keep_bytes)()

    @property
    def state(self) -> State:
        return state_of(self.store)


def state_of(store: Store) -> State:
    """Return everything that is stored: series, key, bucket, value."""
    return {
        name: {key: dict(buckets.items(counter)) for key, counter in series.counters.items()}
        for name, series in store.series.items()
    }


def read(directory: Path) -> Recovered:
    """Return what a server would start with."""
    return recovery.read(Disk(), directory, Records(), NOW)


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change bits of one byte of a file; a negative offset counts from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)
