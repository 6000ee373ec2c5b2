"""What the fault gates found, each as small as it gets (docs/durability.md tells the stories)."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import orjson
import pytest
from handmade import DAY, Node, add, read, state_of

from karma.errors import DamagedDataError
from karma.offline.check import check
from karma.storage import install, manifest, retention, snapshot, wal
from karma.storage.disk import Disk
from karma.storage.wal import Wal


class KilledError(Exception):
    """The process ended here."""


class NotingDisk(Disk):
    """Notes what is removed, renamed and synced; the process is killed before its nth rename."""

    def __init__(self, renames: int = 10**9) -> None:
        self.notes: list[tuple[str, str]] = []
        self._renames = renames

    def move(self, old: Path, new: Path) -> None:
        self._renames -= 1
        if self._renames < 0:
            raise KilledError
        super().move(old, new)

    def remove(self, path: Path) -> None:
        self.notes.append(("remove", path.name))
        super().remove(path)

    def sync_directory(self, directory: Path) -> None:
        self.notes.append(("sync", directory.name))
        super().sync_directory(directory)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were synced, and ``cut`` for each that was cut."""
    found: list[str] = []
    monkeypatch.setattr("os.fdatasync", lambda fd: found.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    truncate = os.ftruncate

    def cut(fd: int, size_bytes: int) -> None:
        found.append("cut")
        truncate(fd, size_bytes)

    monkeypatch.setattr("os.ftruncate", cut)
    return found


def test_every_folder_made_on_the_way_is_durable(tmp_path: Path) -> None:
    disk = NotingDisk()
    disk.make_directory(tmp_path / "a" / "b" / "c")
    assert disk.notes == [("sync", tmp_path.name), ("sync", "a"), ("sync", "b")]


@pytest.mark.parametrize("is_synced", [True, False])
def test_that_nothing_was_written_is_durable_before_anybody_hears_it(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch, is_synced: bool
) -> None:
    log_file = Wal(Disk(), tmp_path, next_lsn=1, is_synced=is_synced)
    write = os.write

    def write_half(fd: int, data: bytes | memoryview) -> int:
        if isinstance(data, bytes):
            return write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", write_half)
    synced.clear()
    with pytest.raises(OSError, match="No space"):
        log_file.append([orjson.dumps(add("a", key)) for key in range(4)], 1)
    assert synced == (["cut", "karma.wal"] if is_synced else ["cut"])
    log_file.close()
    assert (tmp_path / "karma.wal").read_bytes() == b""


def test_a_kill_in_the_first_snapshot_of_all_loses_nothing_that_a_stream_brought(tmp_path: Path) -> None:
    node = Node(tmp_path)
    chunk = {"series": "a", "chunk_seq": 1, "items": [[1, DAY, 5]]}
    for stream_id, ended in (("open", None), ("done", "ingest.commit"), ("given up", "ingest.abort")):
        node.write({"op": "ingest.begin", "stream_id": stream_id, "mode": "add", "granularity": "day"})
        node.write({"op": "ingest.chunk", "stream_id": stream_id, **chunk})
        if ended is not None:
            node.write({"op": ended, "stream_id": stream_id})
    node.rotate()
    # The idempotency snapshot comes first, the streams' last.
    committed = node.store.streams.committed.values()
    snapshot.write_records(node.disk, tmp_path, node.store.records, committed, node.wal.last_lsn, node.unix)
    recovered = read(tmp_path)
    assert state_of(recovered.store) == node.state == {"a": {1: {DAY: 15}}}
    assert recovered.store.streams.active == node.store.streams.active
    assert recovered.store.streams.committed == node.store.streams.committed


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_while_snapshots_of_a_dropped_series_are_set_aside_keeps_no_start_from_going_on(
    tmp_path: Path, renames: int
) -> None:
    node = Node(tmp_path)
    node.write(add("gone", 1), add("kept", 1))
    node.snapshot_all()
    node.write(add("gone", 2))
    node.snapshot_all()
    node.write({"op": "tree.drop", "series": "gone"})
    files = manifest.list_snapshots(node.disk, tmp_path)
    manifest.take_set(
        node.disk, tmp_path, node.store.series.values(), (), node.wal.last_lsn, node.unix, files
    )
    stale = [file for file in manifest.list_snapshots(node.disk, tmp_path) if file.series == "gone"]
    with pytest.raises(KilledError):
        retention.set_aside(NotingDisk(renames), tmp_path, stale)
    assert read(tmp_path).store.series.keys() == {"kept"}


def test_a_kill_in_an_idle_snapshot_is_no_damage(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.write(add("a", 1))
    node.snapshot_all()
    # An earlier version wrote every series each time, and no manifest.
    node.store.changed.add("a")
    node.write_snapshots()
    (tmp_path / manifest.MANIFEST_NAME).unlink()
    newest = snapshot.list_snapshots(node.disk, tmp_path)[0]
    snapshot.metadata_path(newest.path).unlink()
    assert check(node.disk, tmp_path, node.unix).status == "warning"
    # Alone it would be: the log was truncated for it.
    for found in snapshot.list_snapshots(node.disk, tmp_path)[1:]:
        found.path.unlink()
        snapshot.metadata_path(found.path).unlink()
    assert check(node.disk, tmp_path, node.unix).status == "damaged"


def test_truncated_segments_go_one_after_the_other(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for key in range(3):
        node.write(add("a", key))
        node.rotate()
    disk = NotingDisk()
    log_file = Wal(disk, tmp_path, next_lsn=4)
    disk.notes.clear()
    log_file.truncate(3, 0)()
    removed = disk.notes[1:]
    assert [kind for kind, _ in removed] == ["remove", "remove", "sync"] * 3
    assert [name for kind, name in removed if name.endswith(".segment")] == [
        wal.segment_name(lsn) for lsn in (1, 2, 3)
    ]


def test_a_segment_in_both_folders_is_read_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for key in range(3):
        node.write(add("a", key))
        node.rotate()
    (tmp_path / wal.RETAINED_NAME).mkdir()
    for lsn in (1, 2):
        name = wal.segment_name(lsn)
        (tmp_path / wal.RETAINED_NAME / name).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / wal.segment_name(1)).unlink()
    log_file = Wal(Disk(), tmp_path, next_lsn=4)
    assert [body.lsn for body in log_file.read(0)] == [1, 2, 3]


def test_a_child_can_sync_all_of_a_log_that_its_server_does_not(tmp_path: Path, synced: list[str]) -> None:
    log_file = Wal(Disk(), tmp_path, next_lsn=1, is_synced=False)
    log_file.append([orjson.dumps(add("a", 1))], 1)
    log_file.rotate()
    log_file.append([orjson.dumps(add("a", 2))], 1)
    synced.clear()
    log_file.sync_files()
    assert synced == [wal.segment_name(1), "karma.wal"]
    log_file.close()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.tree.meta.json", b'"last_lsn":1', b'"last_lsn":2'),
        ("a.tree.meta.json", b'"self_crc32"', b'"self_crc33"'),
        ("karma.idempotency.json.meta.json", b'"last_lsn":1', b'"last_lsn":9'),
        ("karma.idempotency.json.meta.json", b'"crc32"', b'"crc33"'),
        ("recovery.json", b'"offset":7', b'"offset":6'),
        ("recovery.json", b'"offset"', b'"offsat"'),
    ],
)
def test_another_digit_in_what_describes_the_data_is_damage(
    tmp_path: Path, name: str, before: bytes, after: bytes
) -> None:
    node = Node(tmp_path)
    node.write(add("a", 1, idempotency_key="k"))
    node.snapshot_all()
    snapshot.write_checkpoints(node.disk, tmp_path, [{"source": "p", "offset": 7, "updated_at_unix": 1}])
    (path,) = (path for path in tmp_path.iterdir() if path.name.endswith(name))
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))
    look = partial(snapshot.load_checkpoints, node.disk) if name == "recovery.json" else read
    with pytest.raises(DamagedDataError) as caught:
        look(tmp_path)
    assert caught.value.file == path


def test_a_manifest_of_an_exchange_that_is_another_is_damage(tmp_path: Path) -> None:
    (tmp_path / install.INCOMING_NAME).mkdir()
    install.commit(Disk(), tmp_path, "discarded-1")
    path = tmp_path / install.INCOMING_NAME / install.MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b"discarded-1", b"discarded-3"))
    with pytest.raises(DamagedDataError):
        install.read_manifest(Disk(), tmp_path)
