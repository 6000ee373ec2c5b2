"""Sets of snapshots: what is written and what is kept, the manifest, and a kill at any operation."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from handmade import DAY, Node, add, flip, read, state_of

from karma.errors import DamagedDataError
from karma.offline import pictures
from karma.offline.check import check
from karma.offline.repair import Plan
from karma.storage import manifest, retention, snapshot
from karma.storage.checked import sealed
from karma.storage.disk import Disk
from karma.storage.manifest import MANIFEST_NAME, Listing
from karma.storage.snapshot import SnapshotFile


class KilledError(BaseException):
    """The process ends here."""


class MortalDisk(Disk):
    """A disk on which the process is killed at its nth operation: before it, in the middle or behind it."""

    def __init__(self, operations: int, when: str) -> None:
        self._left = operations
        self._when = when

    def _do(self, operation: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        self._left -= 1
        if self._left > 0:
            return operation()
        if self._left == 0:
            {"before": lambda: None, "half": half, "behind": operation}[self._when]()
        raise KilledError

    def _write_temporary(self, path: Path, chunks: Iterable[bytes]) -> int:
        def half() -> None:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")

        size_bytes: int = self._do(lambda: super(MortalDisk, self)._write_temporary(path, chunks), half)
        return size_bytes

    def move(self, old: Path, new: Path) -> None:
        self._do(lambda: super(MortalDisk, self).move(old, new))

    def remove(self, path: Path) -> None:
        self._do(lambda: super(MortalDisk, self).remove(path))

    def sync_directory(self, directory: Path) -> None:
        self._do(lambda: super(MortalDisk, self).sync_directory(directory))


def trees(directory: Path) -> dict[str, list[str]]:
    """Return the names of snapshot files by series, oldest first."""
    by_series: dict[str, list[str]] = {}
    for path in sorted(directory.glob("*.tree")):
        by_series.setdefault(path.stem.partition("_")[2], []).append(path.name)
    return by_series


def files_of(directory: Path) -> dict[str, SnapshotFile]:
    return snapshot.latest_by_series(manifest.list_snapshots(Disk(), directory))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with two sets: `kept` did not change between them, `changed` did."""
    node = Node(tmp_path / "data")
    node.write(add("kept", 1, 5), add("changed", 1), add("dropped", 1))
    node.snapshot_all()
    node.write(add("changed", 2))
    node.snapshot_all()
    return node


# -- What a set writes ------------------------------------------------------------------------------


def test_a_series_that_did_not_change_keeps_its_file_and_has_the_lsn_and_age_of_the_set(node: Node) -> None:
    assert {name: len(files) for name, files in trees(node.directory).items()} == {
        "kept": 1,
        "changed": 2,
        "dropped": 1,
    }
    kept, changed = files_of(node.directory)["kept"], files_of(node.directory)["changed"]
    assert (kept.first_lsn, kept.last_lsn, kept.taken_unix) == (3, 4, node.unix)
    assert (changed.first_lsn, changed.last_lsn, changed.taken_unix) == (4, 4, node.unix)
    assert kept.timestamp < changed.timestamp
    recovered = read(node.directory)
    assert (recovered.snapshot_lsn, recovered.dropped, recovered.warnings) == (4, [], [])
    assert state_of(recovered.store) == node.state


def test_what_a_start_replays_counts_as_changed(node: Node) -> None:
    assert read(node.directory).store.changed == set()
    node.write(add("kept", 2))
    assert read(node.directory).store.changed == {"kept"}


def test_creation_order_lasts_though_files_are_of_different_sets(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.write(*(add(name, 1) for name in "dbca"))
    node.snapshot_all()
    node.write({"op": "tree.drop", "series": "d"}, add("e", 1), add("b", 1))
    node.snapshot_all()
    node.store = read(node.directory).store
    assert list(node.store.series) == ["b", "c", "a", "e"]
    node.store.changed.add("c")
    node.write_snapshots()
    assert list(read(node.directory).store.series) == ["b", "c", "a", "e"]


@pytest.mark.parametrize("lacks", ["crc32", "ordinal"])
def test_a_file_of_karma_1_is_written_again(node: Node, lacks: str) -> None:
    (metadata,) = node.directory.glob("*_kept.tree.meta.json")
    fields = {name: value for name, value in orjson.loads(metadata.read_bytes()).items() if name != lacks}
    known = ("tree", "file", "timestamp", "last_lsn", "bytes")
    metadata.write_bytes(
        orjson.dumps({name: fields[name] for name in known} if lacks == "crc32" else sealed(fields))
    )
    node.write_snapshots()
    assert len(trees(node.directory)["kept"]) == 2


def test_a_file_that_is_gone_or_has_another_size_is_written_again(node: Node) -> None:
    (kept,) = node.directory.glob("*_kept.tree")
    kept.write_bytes(kept.read_bytes()[:-1])
    node.write_snapshots()
    assert len(trees(node.directory)["kept"]) == 2
    for path in node.directory.glob("*_kept.tree*"):
        path.unlink()
    node.write_snapshots()
    assert state_of(read(node.directory).store) == node.state


# -- What a manifest says ---------------------------------------------------------------------------


def test_another_file_by_the_same_name_is_not_extended(node: Node) -> None:
    (kept,) = node.directory.glob("*_kept.tree")
    timestamp = int(kept.name.partition("_")[0])
    for path in node.directory.glob("*_kept.tree*"):
        path.unlink()
    counters = node.store.series["changed"].counters
    written = snapshot.write_tree(Disk(), node.directory, "kept", counters, 2, timestamp, 0)
    assert written.file == kept.name
    assert files_of(node.directory)["kept"].last_lsn == 2


def test_pruning_keeps_what_the_manifest_names(node: Node) -> None:
    node.write(add("kept", 1))
    for _ in range(3):
        node.snapshot("kept")
    retention.prune(node.disk, manifest.list_snapshots(node.disk, node.directory), 1)
    left = manifest.list_snapshots(node.disk, node.directory)
    assert [file.last_lsn for file in left if file.series == "kept"] == [5, 4]
    assert [file.last_lsn for file in left if file.series == "changed"] == [4]
    assert state_of(read(node.directory).store) == node.state


def test_a_file_that_the_set_needs_is_missed_even_without_a_trace_of_it(node: Node) -> None:
    for path in node.directory.glob("*_kept.tree*"):
        path.unlink()
    with pytest.raises(DamagedDataError, match="the set of snapshots at LSN 4 has this file") as caught:
        read(node.directory)
    assert caught.value.file.name.endswith("_kept.tree")
    repair(node, with_losses=True)
    assert read(node.directory).store.series.keys() == {"changed", "dropped"}


def test_where_karma_1_ran_since_its_pruning_is_no_damage(node: Node) -> None:
    for path in node.directory.glob("*_kept.tree*"):
        path.unlink()
    (node.directory / "karma.wal.lsn").write_text("9")
    (node.directory / snapshot.STREAMS_NAME).unlink()
    snapshot.write_tree(Disk(), node.directory, "changed", {}, 9, node.unix + 1, 0)
    assert read(node.directory).store.series.keys() == {"changed"}


def repair(node: Node, *, with_losses: bool) -> Plan:
    plan = Plan(node.disk, check(node.disk, node.directory, node.unix), node.unix)
    plan.carry_out(with_losses=with_losses)
    return plan


@pytest.mark.parametrize("offset", [0, 30, -3])
def test_a_damaged_manifest_stops_the_start_and_repairs_without_loss(node: Node, offset: int) -> None:
    node.write(add("changed", 3))
    flip(node.directory / MANIFEST_NAME, offset)
    with pytest.raises(DamagedDataError) as caught:
        read(node.directory)
    assert caught.value.file.name == MANIFEST_NAME
    findings = [
        finding for finding in check(node.disk, node.directory, node.unix).files if finding.status != "ok"
    ]
    assert [(finding.file, finding.status) for finding in findings] == [(MANIFEST_NAME, "damaged")]
    damaged = (node.directory / MANIFEST_NAME).read_bytes()
    plan = repair(node, with_losses=False)
    assert plan.lossy == []
    assert (plan.folder / MANIFEST_NAME).read_bytes() == damaged
    assert state_of(read(node.directory).store) == node.state
    assert files_of(node.directory)["kept"].last_lsn == 4


def test_metadata_that_are_gone_are_written_again_from_the_manifest(node: Node) -> None:
    (metadata,) = node.directory.glob("*_kept.tree.meta.json")
    metadata.unlink()
    with pytest.raises(DamagedDataError, match="or its metadata is missing"):
        read(node.directory)
    assert repair(node, with_losses=False).lossy == []
    assert state_of(read(node.directory).store) == node.state


def test_a_kept_file_holds_for_every_lsn_of_its_sets(node: Node) -> None:
    node.write(add("changed", 4))
    node.snapshot_all()
    for lsn in (4, 5):
        shown = pictures.as_of(node.directory, lsn, node.unix)
        assert shown.lsn == lsn
        assert state_of(shown.store)["kept"] == {1: {DAY: 5}}
    assert state_of(pictures.as_of(node.directory, 4, node.unix).store)["changed"] == {
        1: {DAY: 1},
        2: {DAY: 1},
    }


def test_a_listing_reads_metadata_once_and_sees_what_comes_and_goes(node: Node) -> None:
    listing = Listing(node.disk, node.directory)
    before = listing.files()
    (kept,) = node.directory.glob("*_kept.tree.meta.json")
    kept.write_bytes(b"not read again")
    assert listing.read() == before
    node.snapshot("changed")
    assert listing.latest()["changed"].timestamp == node.unix
    # Another file of the folder makes no difference.
    files = listing.files()
    node.disk.write_file(node.directory / "karma.node.json", [b"{}"])
    assert listing.files() is files
    (node.directory / "karma.node.json").unlink()
    listing.forget()
    with pytest.raises(DamagedDataError):
        listing.files()


# -- A kill ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "half", "behind"])
def test_a_kill_at_any_operation_of_a_mixed_set_changes_nothing(
    node: Node, when: str, tmp_path: Path
) -> None:
    node.write(add("changed", 3), add("new", 1), {"op": "tree.drop", "series": "dropped"})
    node.wal.close()
    operations = 0
    while True:
        operations += 1
        copy = tmp_path / f"copy-{operations}"
        shutil.copytree(node.directory, copy)
        try:
            snapshot_all(MortalDisk(operations, when), copy, node.unix + 1)
        except KilledError:
            assert state_of(read(copy).store) == node.state, operations
            # What was left does no harm to the next set either.
            snapshot_all(Disk(), copy, node.unix + 2)
            assert state_of(read(copy).store) == node.state, operations
            assert check(Disk(), copy, node.unix).status == "ok", operations
            shutil.rmtree(copy)
            continue
        break
    # A set of three series of which one is kept, and one is dropped, takes at least these.
    assert operations > 25
    assert len(trees(copy)["kept"]) == 1
    assert trees(copy / snapshot.DROPPED_NAME).keys() == {"dropped"}


def snapshot_all(disk: Disk, directory: Path, unix: int) -> None:
    """Start on a directory and do what snapshot.create_all does."""
    recovered = read(directory)
    node = Node(directory, recovered.last_lsn + 1, disk, recovered.store)
    node.unix = unix
    node.snapshot_all()
    retention.prune(disk, manifest.list_snapshots(disk, directory), 1)
    node.wal.close()
