"""What a repair puts together anew, from older snapshots and from the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from karma.core.buckets import Counter
from karma.core.idempotency import Records
from karma.core.ingest import Streams
from karma.core.replay import Replay
from karma.core.store import Store
from karma.errors import DamagedDataError
from karma.offline.losses import add_lsn, missing_in
from karma.offline.reading import Tree, iterate_log
from karma.storage import recovery, snapshot
from karma.storage.disk import Disk
from karma.storage.snapshot import SnapshotFile
from karma.storage.wal import Line


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A series brought to an LSN. It is exact when nothing is `missing` or `unclear`."""

    counters: dict[int, Counter] | None
    """None when the series does not exist at that LSN."""
    entries: int
    missing: list[tuple[int, int]]
    """LSN ranges that no log file holds any more; some may be of other series."""
    unclear: list[tuple[int, int]]
    """LSNs of ingest entries that cannot be applied without what came before."""


def load_counters(disk: Disk, tree: Tree) -> dict[int, Counter]:
    """Return a snapshot's counters, judged by its metadata where there are any. Raises DamagedDataError."""
    file = tree.file or SnapshotFile(
        tree.stem, tree.path, tree.path.name, tree.timestamp, disk.size_bytes(tree.path)
    )
    return snapshot.load_tree(disk, file)


def rebuild(disk: Disk, directory: Path, name: str, base: Tree | None, target_lsn: int) -> Rebuilt:
    """Bring a series from a snapshot, or from nothing, to an LSN, with what the log still holds of it."""
    base_lsn = 0 if base is None else base.lsn or 0
    store = Store()
    if base is not None:
        store.restore(name, load_counters(disk, base))
    replay = Replay(store, {name: base_lsn})
    held: list[tuple[int, int]] = []
    unclear: list[tuple[int, int]] = []
    entries = 0
    for line in iterate_log(disk, directory):
        if not base_lsn < line.lsn <= target_lsn:
            continue
        is_ingest = line.entry["op"].startswith("ingest.")
        is_fine = True
        if is_ingest or line.entry.get("series") in (None, name):
            try:
                warning = replay.apply(line.lsn, line.entry, (line.ts_ms or 0) // 1000)
            except recovery.NOT_AN_ENTRY:
                is_fine = False
            else:
                entries += 1
                if warning is not None and is_ingest and line.entry.get("series") in (None, name):
                    add_lsn(unclear, line.lsn)
        if is_fine:
            add_lsn(held, line.lsn)
    series = store.series.get(name)
    return Rebuilt(
        None if series is None else series.counters,
        entries,
        missing_in(held, base_lsn + 1, target_lsn),
        unclear,
    )


def orphaned_chunks(disk: Disk, directory: Path) -> Iterator[Line]:
    """Yield the log's ingest chunks of streams that nothing but the ingest file knows."""
    streams = Streams()
    try:
        snapshot.load_records(disk, directory, Records(), streams)
    except DamagedDataError:
        streams = Streams()
    known = set(streams.committed)
    for found in recovery.scan_lines(disk, recovery.log_files(disk, directory), 1):
        if found.line is None:
            continue
        op, stream_id = found.line.entry["op"], str(found.line.entry.get("stream_id"))
        if op == "ingest.begin":
            known.add(stream_id)
        elif op == "ingest.chunk" and stream_id not in known:
            yield found.line


class _WithoutMetadata(Disk):
    """A directory in which no metadata is seen."""

    def read_file(self, path: Path) -> bytes:
        """Return a whole file, or raise FileNotFoundError for metadata."""
        if path.name.endswith(".meta.json"):
            raise FileNotFoundError(path)
        return super().read_file(path)


def has_records(directory: Path) -> bool:
    """Whether the idempotency records can be read without their metadata."""
    try:
        snapshot.load_records(_WithoutMetadata(), directory, Records(), Streams())
    except DamagedDataError:
        return False
    return (directory / snapshot.RECORDS_NAME).is_file()
