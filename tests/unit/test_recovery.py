"""From files to the store: which snapshots and entries count, what is a torn tail and what is damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from handmade import DAY, NOW, Node, State, add, flip, read, state_of

from karma.errors import DamagedDataError
from karma.storage import manifest, recovery, wal
from karma.storage.disk import Disk
from karma.storage.recovery import LogScan


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "data")


def scan(directory: Path, first_lsn: int = 1) -> tuple[list[int], LogScan]:
    log = LogScan(Disk(), recovery.log_files(Disk(), directory), first_lsn)
    return [line.lsn for _, line in log], log


def mend(directory: Path) -> list[str]:
    found = read(directory)
    return recovery.mend(Disk(), directory, found, NOW)


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def log_of(directory: Path) -> Path:
    return directory / "karma.wal"


def begin(stream_id: str, mode: str = "add") -> dict[str, Any]:
    return {"op": "ingest.begin", "stream_id": stream_id, "mode": mode, "granularity": "day"}


def chunk(stream_id: str, series: str, chunk_seq: int, *items: list[int]) -> dict[str, Any]:
    return {
        "op": "ingest.chunk",
        "stream_id": stream_id,
        "series": series,
        "chunk_seq": chunk_seq,
        "items": list(items),
    }


# -- Torn tails and damage -------------------------------------------------------------------------


def groups(node: Node, sizes: tuple[int, ...] = (1, 3, 2, 4)) -> list[tuple[int, int, int]]:
    """Write groups, each synced before the next; returns each one's (last LSN, start, end in bytes)."""
    written = []
    for size in sizes:
        start = node.wal.active_bytes
        node.write(*(add("api", key, key + 1) for key in range(size)))
        written.append((node.wal.last_lsn, start, node.wal.active_bytes))
    return written


def test_a_log_cut_anywhere_is_a_torn_tail(node: Node) -> None:
    groups(node)
    whole = log_of(node.directory).read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole)):
        log_of(node.directory).write_bytes(whole[:size])
        lsns, log = scan(node.directory)
        assert lsns == list(range(1, 1 + sum(end <= size for end in ends)))
        if size in (0, *ends):
            assert log.tail is None
        else:
            assert log.tail is not None
            assert log.tail.lsn == len(lsns) + 1
            assert log.tail.size_bytes == max((end for end in ends if end <= size), default=0)
            assert log.tail.cut_bytes == size - log.tail.size_bytes


def test_a_flipped_byte_is_damage_before_the_last_group_and_a_torn_tail_in_it(node: Node) -> None:
    *_, (last_lsn, last_group, end) = groups(node)
    whole = log_of(node.directory).read_bytes()
    for at in range(end):
        flip(log_of(node.directory), at, 1 << at % 8)
        if at < last_group:
            with pytest.raises(DamagedDataError) as caught:
                scan(node.directory)
            assert caught.value.lsn == whole[:at].count(b"\n") + 1
            assert caught.value.offset_bytes == whole.rfind(b"\n", 0, at) + 1
            assert "durable" in caught.value.message
            assert caught.value.advice == f"karma repair --directory {node.directory}"
        else:
            lsns, log = scan(node.directory)
            assert lsns == list(range(1, whole[:at].count(b"\n") + 1))
            assert log.tail is not None
            assert log.tail.lsn == len(lsns) + 1 <= last_lsn
        log_of(node.directory).write_bytes(whole)


@pytest.mark.parametrize("hole", [0, 1, 2])
def test_a_hole_in_an_unsynced_group_is_torn_even_as_the_first_of_a_log(node: Node, hole: int) -> None:
    node.write(add("api", 1), add("api", 2), add("api", 3), is_synced=False)
    lines = log_of(node.directory).read_bytes().splitlines(keepends=True)
    lines[hole] = b"\0" * len(lines[hole])
    log_of(node.directory).write_bytes(b"".join(lines))
    lsns, log = scan(node.directory)
    assert lsns == list(range(1, hole + 1))
    assert log.tail is not None
    assert log.tail.lsn == hole + 1


def test_without_fsync_nothing_was_durable_and_all_behind_a_hole_is_cut(node: Node) -> None:
    for key in range(10):
        node.write(add("api", key), is_synced=False)
    flip(log_of(node.directory), 500)
    lsns, log = scan(node.directory)
    assert log.tail is not None
    assert len(lsns) < 5


def test_a_line_behind_a_bad_one_of_karma_1_proves_it(tmp_path: Path) -> None:
    lines = [
        b'{"v":2,"lsn":%d,"entry":{"v":2,"op":"tree.create","series":"s%d"}}\n' % (n, n) for n in (1, 2, 3)
    ]
    log_of(tmp_path).write_bytes(lines[0] + lines[1][:-9] + b"\n" + lines[2])
    with pytest.raises(DamagedDataError, match="entry 3 follows it"):
        scan(tmp_path)
    log_of(tmp_path).write_bytes(lines[0] + lines[1][:-9])
    assert scan(tmp_path)[0] == [1]


def test_a_missing_segment_is_damage(node: Node) -> None:
    for _ in range(3):
        groups(node, (2,))
        node.rotate()
    groups(node, (2,))
    (node.directory / wal.segment_name(3)).unlink()
    with pytest.raises(DamagedDataError, match="holds LSN 5 where 3 is due") as caught:
        read(node.directory)
    assert (caught.value.lsn, caught.value.file.name) == (3, wal.segment_name(5))


def test_a_last_line_alone_can_prove_that_those_before_it_were_durable(node: Node) -> None:
    for key in range(3):
        node.write(add("api", key))
        if key < 2:
            node.rotate()
    (node.directory / wal.segment_name(2)).unlink()
    with pytest.raises(DamagedDataError, match="holds LSN 3 where 2 is due"):
        read(node.directory)


def test_a_log_without_its_beginning_is_damage(node: Node) -> None:
    groups(node, (2,))
    node.rotate()
    groups(node, (2,))
    (node.directory / wal.segment_name(1)).unlink()
    with pytest.raises(DamagedDataError, match="starts at LSN 3") as caught:
        read(node.directory)
    assert caught.value.lsn == 1


def test_a_gap_that_only_one_series_has_a_snapshot_for_is_damage(node: Node) -> None:
    """The snapshot of one series says nothing of the entries that others lost."""
    groups(node, (2,))
    node.rotate()
    node.write(add("web", 1))
    node.snapshot("web")
    node.rotate()
    node.write(add("web", 1))
    node.snapshot_all()
    node.write(add("api", 1), add("web", 2))
    node.snapshot("api")
    node.rotate()
    node.write(add("web", 3))
    (node.directory / wal.segment_name(5)).unlink()
    with pytest.raises(DamagedDataError, match="starts at LSN 7"):
        read(node.directory)


def test_an_entry_that_nobody_can_apply_is_named(node: Node) -> None:
    node.write(add("api", 1))
    end = node.wal.active_bytes
    node.wal.append([b'{"v":2,"op":"series.rename","series":"api","to":"web"}'], NOW * 1000)
    with pytest.raises(DamagedDataError, match="no write that this version knows") as caught:
        read(node.directory)
    assert (caught.value.lsn, caught.value.offset_bytes) == (2, end)
    assert caught.value.file == log_of(node.directory)


@pytest.mark.parametrize(
    "entry",
    [
        *({**add("api", 1), "bucket": DAY + 1, "value": value} for value in (-1, None, "x", [1])),
        *({**add("api", 1), "key": key} for key in (1.5, -1, 2.0**64, None, "1")),
        {**add("api", 2), "bucket": -1},
        {**add("api", 2), "series": 7},
        {**add("api", 2), "idempotency_key": "k", "idempotency_created_at_unix": "now"},
        *(
            {"op": "series.batch_add", "series": "api", "items": [[2, DAY, 1], item]}
            for item in ([3, DAY, -1], [3, -1, 1], [2.0**64, DAY, 1], [3, DAY], [3, DAY, 1, 1])
        ),
    ],
)
def test_what_no_counter_can_hold_is_damage_and_no_crash(node: Node, entry: dict[str, Any]) -> None:
    node.write(add("api", 1), add("api", 1, 2))
    node.wal.append([orjson.dumps(entry)], NOW * 1000)
    with pytest.raises(DamagedDataError, match="no write"):
        read(node.directory)


# -- Cutting ---------------------------------------------------------------------------------------


def test_a_torn_tail_moves_to_cut_and_the_log_goes_on(node: Node) -> None:
    groups(node)
    whole = log_of(node.directory).read_bytes()
    log_of(node.directory).write_bytes(whole[:-10])
    expected = state_of(read(node.directory).store)
    (done,) = mend(node.directory)
    assert "LSN 10" in done
    (cut,) = (node.directory / "cut").iterdir()
    assert log_of(node.directory).read_bytes() + cut.read_bytes() == whole[:-10]
    assert mend(node.directory) == []
    node.wal.close()
    again = Node(node.directory, first_lsn=10)
    again.wal.append([orjson.dumps(add("api", 77))], NOW * 1000)
    found = read(node.directory)
    assert found.last_lsn == 10
    assert state_of(found.store) == {"api": {**expected["api"], 77: {DAY: 1}}}


def test_a_tail_torn_over_several_files_moves_with_their_indexes(node: Node) -> None:
    node.write(add("api", 1), is_synced=False)
    node.rotate()
    node.write(add("api", 2), is_synced=False)
    node.rotate()
    node.write(add("api", 3), is_synced=False)
    flip(node.directory / wal.segment_name(2), 20)
    found = read(node.directory)
    assert found.last_lsn == 1
    assert found.tail is not None
    assert found.tail.cut_bytes == sum(
        (node.directory / name).stat().st_size for name in (wal.segment_name(2), "karma.wal")
    )
    mend(node.directory)
    names = {path.name for path in node.directory.iterdir()}
    # An empty segment would stay in the way: it names an LSN that another file will begin with.
    assert names == {wal.segment_name(1), wal.segment_name(1) + ".idx", "cut"}
    assert len(list((node.directory / "cut").iterdir())) == 3
    assert read(node.directory).last_lsn == 1


def test_a_kill_while_a_tail_is_cut_cuts_it_at_the_next_start(node: Node, tmp_path: Path) -> None:
    for key in range(3):
        node.write(add("api", key), is_synced=False)
        node.rotate()
    segment = node.directory / wal.segment_name(2)
    segment.write_bytes(segment.read_bytes()[:-5] + b"\n")

    class Killed(BaseException):
        pass

    class Fragile(Disk):
        left = 0

        def move(self, old: Path, new: Path) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed
            super().move(old, new)

    for left in range(10):
        copy = tmp_path / f"copy-{left}"
        shutil.copytree(node.directory, copy)
        disk = Fragile()
        disk.left = left
        try:
            recovery.mend(disk, copy, read(copy), NOW)
        except Killed:
            mend(copy)
        assert read(copy).tail is None
        assert state_of(read(copy).store) == {"api": {0: {DAY: 1}}}


# -- Snapshots and the log on top --------------------------------------------------------------------


def test_reading_changes_nothing(node: Node) -> None:
    node.write(add("api", 1), add("web", 2))
    node.snapshot_all()
    node.write(add("api", 1))
    with log_of(node.directory).open("ab") as file:
        file.write(b'{"v":2,"ls')
    before = files(node.directory)
    found = read(node.directory)
    assert found.tail is not None
    assert files(node.directory) == before
    assert state_of(found.store) == node.state


def test_entries_that_a_snapshot_holds_are_not_applied_again(node: Node) -> None:
    node.write(add("api", 1), add("web", 2, idempotency_key="first"))
    node.snapshot("api")
    node.write(add("api", 1), add("web", 2))
    node.snapshot("web")
    node.write(add("api", 1), add("web", 2))
    found = read(node.directory)
    assert state_of(found.store) == node.state == {"api": {1: {DAY: 3}}, "web": {2: {DAY: 3}}}
    assert (found.snapshot_lsn, found.last_lsn, found.log_entries) == (2, 6, 6)
    record = found.store.records.get("first", NOW)
    assert record is not None
    assert record.response == 1


@pytest.mark.parametrize("is_first", [False, True])
def test_a_kill_anywhere_between_snapshots_and_truncation_changes_nothing(
    node: Node, tmp_path: Path, is_first: bool
) -> None:
    node.write(
        add("api", 1, idempotency_key="k"), add("web", 2), begin("s"), chunk("s", "api", 1, [5, DAY, 7])
    )
    if not is_first:
        node.snapshot_all()
    node.write(add("api", 1), add("web", 2, 5), chunk("s", "api", 2, [5, DAY, 7]))
    node.write({"op": "tree.drop", "series": "web"}, add("new", 9))
    states: list[Path] = []

    class Watching(Disk):
        """Copies the directory after each change of a name: what a kill there would leave."""

        def move(self, old: Path, new: Path) -> None:
            super().move(old, new)
            self._copy()

        def remove(self, path: Path) -> None:
            super().remove(path)
            self._copy()

        def _copy(self) -> None:
            states.append(shutil.copytree(node.directory, tmp_path / f"copy-{len(states)}"))

    node.disk = node.wal._disk = Watching()
    node.snapshot_all(keep_bytes=1000)
    assert len(states) > 8
    for copy in states:
        found = read(copy)
        assert state_of(found.store) == node.state, copy
        assert found.last_lsn == node.wal.last_lsn
        assert found.store.records.get("k", NOW) is not None
        assert found.store.streams.active["s"].last_chunk_seq == 2
        mend(copy)
        assert state_of(read(copy).store) == node.state


def test_a_snapshot_newer_than_the_log_gives_the_lsn(node: Node) -> None:
    """A power cut without fsync: the snapshot was synced, the log was not."""
    node.write(add("api", 1), is_synced=False)
    end = node.wal.active_bytes
    node.write(add("api", 1), add("api", 1), is_synced=False)
    node.snapshot("api")
    log_of(node.directory).write_bytes(log_of(node.directory).read_bytes()[:end])
    found = read(node.directory)
    assert state_of(found.store) == {"api": {1: {DAY: 3}}}
    assert (found.last_lsn, found.log_last_lsn) == (3, 1)
    assert found.must_snapshot
    node.snapshot_all()
    assert not read(node.directory).must_snapshot


def test_what_the_records_snapshot_holds_is_not_put_in_again(node: Node) -> None:
    node.write(add("api", 1, idempotency_key="k"))
    record = node.store.records.get("k", NOW)
    assert record is not None
    node.store.records.put("k", record._replace(response=42))
    node.write_snapshots()
    node.write(add("api", 1, idempotency_key="later"))
    records = read(node.directory).store.records
    assert [record.response for _, record in records.items()] == [42, 1]


def test_a_batch_reset_answers_from_its_entry_when_a_snapshot_is_ahead(node: Node) -> None:
    response = {"reset": 1, "missing": 1}
    entry = {"op": "counter.batch_reset", "series": "api", "keys": [1, 2], "response": response}
    node.write(add("api", 1, 5))
    node.write({**entry, "idempotency_key": "reset", "idempotency_created_at_unix": NOW - 5})
    node.snapshot("api")
    found = read(node.directory)
    assert state_of(found.store) == {"api": {1: {}}}
    record = found.store.records.get("reset", NOW)
    assert record is not None
    assert (record.response, record.created_at_unix) == (response, NOW - 5)


def test_a_write_that_karma_1_logged_and_failed_is_skipped_with_a_warning(tmp_path: Path) -> None:
    entries = [{"op": "counter.batch_reset", "series": "none", "keys": [1]}, add("api", 1)]
    lines = [orjson.dumps({"v": 2, "lsn": lsn, "entry": entry}) for lsn, entry in enumerate(entries, 1)]
    log_of(tmp_path).write_bytes(b"\n".join(lines) + b"\n")
    found = read(tmp_path)
    assert state_of(found.store) == {"api": {1: {DAY: 1}}}
    (warning,) = found.warnings
    assert "entry 1 (counter.batch_reset)" in warning


@pytest.mark.parametrize("mode", ["add", "set", "replace_series"])
def test_open_ingest_streams_survive_a_snapshot(node: Node, mode: str) -> None:
    node.write(add("api", 1, 5), begin("s", mode), chunk("s", "api", 1, [1, DAY, 3], [2, DAY, 4]))
    node.snapshot_all()
    node.write(chunk("s", "api", 2, [1, DAY, 3], [2, DAY, 1]))
    node.snapshot("api")
    node.write({"op": "ingest.commit", "stream_id": "s"})
    expected = {"add": {1: 11, 2: 5}, "set": {1: 3, 2: 1}, "replace_series": {1: 3, 2: 1}}[mode]
    found = read(node.directory)
    assert (
        state_of(found.store) == node.state == {"api": {key: {DAY: value} for key, value in expected.items()}}
    )
    assert list(found.store.streams.committed) == ["s"]


def test_a_dropped_series_stays_dropped(node: Node) -> None:
    node.write(add("api", 1), add("web", 2))
    node.snapshot_all()
    node.write({"op": "tree.drop", "series": "web"})
    assert state_of(read(node.directory).store) == {"api": {1: {DAY: 1}}}
    node.snapshot_all()
    assert state_of(read(node.directory).store) == {"api": {1: {DAY: 1}}}
    assert len(list((node.directory / "dropped").iterdir())) == 2


# -- Directories of Karma 1.0 ------------------------------------------------------------------------


def as_original(node: Node, *, truncated_lsn: int | None = None) -> None:
    """Make a directory look as if Karma 1.0 had written it."""
    (node.directory / "karma.ingest.msgpack").unlink(missing_ok=True)
    for file in manifest.list_snapshots(node.disk, node.directory):
        if file.metadata_file is not None:
            file.metadata_file.write_bytes(orjson.dumps(file.metadata()))
    (node.directory / manifest.MANIFEST_NAME).unlink(missing_ok=True)
    for path in node.directory.glob("*.meta.json"):
        known = ("tree", "file", "timestamp", "last_lsn", "bytes", "record_count", "committed_stream_count")
        fields = {name: value for name, value in orjson.loads(path.read_bytes()).items() if name in known}
        path.write_bytes(orjson.dumps(fields))
    if truncated_lsn is not None:
        (node.directory / "karma.wal.lsn").write_text(f"{truncated_lsn}")


def original_log(directory: Path, first_lsn: int, *entries: dict[str, Any]) -> None:
    lines = [
        orjson.dumps({"v": 2, "lsn": lsn, "entry": entry}) for lsn, entry in enumerate(entries, first_lsn)
    ]
    log_of(directory).write_bytes(b"".join(line + b"\n" for line in lines))


def test_an_original_s_dropped_series_is_moved_aside(node: Node) -> None:
    node.write(add("api", 1), add("web", 2))
    node.write_snapshots()
    node.write({"op": "tree.drop", "series": "web"})
    stale = {path.name: path.read_bytes() for path in node.directory.glob("*_web.tree*")}
    node.snapshot_all()
    for name, data in stale.items():
        (node.directory / name).write_bytes(data)
    as_original(node)
    found = read(node.directory)
    assert list(found.store.series) == ["api"]
    assert 'Series "web" was dropped' in found.warnings[0]
    recovery.mend(Disk(), node.directory, found, NOW)
    assert {path.name for path in (node.directory / "dropped").iterdir()} >= set(stale)
    assert read(node.directory).warnings == []


def test_where_we_truncated_an_older_snapshot_is_no_dropped_series_but_damage(node: Node) -> None:
    node.write(add("api", 1), add("web", 2))
    node.snapshot_all()
    node.write(add("api", 1), add("web", 2))
    node.snapshot_all()
    for path in sorted(node.directory.glob("*_web.tree*"))[2:]:
        path.unlink()
    with pytest.raises(DamagedDataError, match="the set of snapshots at LSN 4 has this file"):
        read(node.directory)
    # What an earlier version wrote has no manifest.
    (node.directory / manifest.MANIFEST_NAME).unlink()
    with pytest.raises(DamagedDataError, match='newest of series "web"'):
        read(node.directory)


def test_metadata_whose_snapshot_is_gone_are_damage_unless_a_newer_one_is_there(node: Node) -> None:
    node.write(add("api", 1))
    node.snapshot_all()
    node.snapshot("api")
    old, new = sorted(node.directory.glob("*_api.tree"))
    old.unlink()
    assert state_of(read(node.directory).store) == node.state
    new.unlink()
    with pytest.raises(DamagedDataError, match="is missing") as caught:
        read(node.directory)
    assert caught.value.file.name == new.name + ".meta.json"


def test_a_truncation_that_nothing_reaches_is_damage(node: Node) -> None:
    node.write(add("api", 1))
    node.snapshot_all()
    node.write(*(add("api", 1) for _ in range(20)))
    (node.directory / "karma.wal.lsn").write_text("9\n")
    with pytest.raises(DamagedDataError, match="no snapshot reaches") as caught:
        read(node.directory)
    assert caught.value.file.name == "karma.wal.lsn"


def promoted(node: Node) -> State:
    """Make the directory of an original slave that was promoted at LSN 40, and return what it holds."""
    node.wal.last_lsn = 30
    node.write(add("api", 1, 10), add("web", 2, 20))
    node.snapshot_all()
    node.wal.close()
    as_original(node)
    (node.directory / "karma.wal.lsn").unlink()
    (node.directory / "karma.replication.lsn").write_text("40")
    original_log(node.directory, 1, add("api", 1), add("new", 3), add("web", 2))
    return {"api": {1: {DAY: 11}}, "web": {2: {DAY: 21}}, "new": {3: {DAY: 1}}}


def test_a_promoted_original_slave_s_log_applies_whole(node: Node) -> None:
    expected = promoted(node)
    found = read(node.directory)
    assert state_of(found.store) == expected
    assert found.must_snapshot
    assert "promoted" in found.warnings[0]
    assert found.last_lsn > 40


def test_a_kill_in_the_first_snapshot_of_a_promoted_original_counts_nothing_twice(
    node: Node, tmp_path: Path
) -> None:
    expected = promoted(node)
    found = read(node.directory)
    states: list[Path] = []
    again = Node(node.directory, first_lsn=found.last_lsn + 1)
    again.store, again.unix = found.store, NOW + 100

    class Watching(Disk):
        def move(self, old: Path, new: Path) -> None:
            super().move(old, new)
            states.append(shutil.copytree(node.directory, tmp_path / f"copy-{len(states)}"))

    again.disk = again.wal._disk = Watching()
    again.snapshot_all()
    assert len(states) > 6
    for copy in states:
        assert state_of(read(copy).store) == expected, copy
    assert not read(node.directory).must_snapshot


@pytest.mark.parametrize("text", ["31", "", "x"])
def test_a_slave_s_lsn_below_its_snapshots_is_no_promotion(node: Node, text: str) -> None:
    promoted(node)
    (node.directory / "karma.replication.lsn").write_text(text)
    found = read(node.directory)
    assert state_of(found.store)["api"] == {1: {DAY: 10}}
    assert found.warnings == []


def test_an_original_slave_without_a_log_resumes_at_its_snapshots(node: Node) -> None:
    promoted(node)
    log_of(node.directory).unlink()
    found = read(node.directory)
    assert (found.last_lsn, found.must_snapshot) == (32, False)
    assert state_of(found.store) == {"api": {1: {DAY: 10}}, "web": {2: {DAY: 20}}}


def test_without_a_log_snapshots_need_no_metadata(node: Node) -> None:
    node.write(add("api", 1))
    node.snapshot_all()
    node.wal.close()
    for path in {*node.directory.glob("*.meta.json"), *node.directory.glob("karma.*")}:
        path.unlink()
    found = read(node.directory)
    assert state_of(found.store) == node.state
    assert (found.last_lsn, found.without_metadata) == (0, 1)
    log_of(node.directory).touch()
    assert read(node.directory).store.series == {}


def test_streams_that_karma_1_truncated_over_are_given_up(node: Node) -> None:
    node.write(add("api", 1), begin("s"), chunk("s", "api", 1, [1, DAY, 1]))
    node.snapshot_all()
    streams = (node.directory / "karma.ingest.msgpack").read_bytes()
    node.write(add("api", 1))
    node.snapshot_all()
    as_original(node)
    (node.directory / "karma.ingest.msgpack").write_bytes(streams)
    found = read(node.directory)
    assert state_of(found.store) == node.state
    assert "1 open ingest streams are given up" in found.warnings[0]


@pytest.mark.parametrize("name", ["karma.wal.lsn", "karma.ingest.msgpack", "karma.idempotency.json"])
def test_files_beside_the_log_are_not_believed_blindly(node: Node, name: str) -> None:
    node.write(add("api", 1, idempotency_key="k"))
    node.snapshot_all()
    (node.directory / name).write_bytes(b"\xff")
    with pytest.raises(DamagedDataError) as caught:
        read(node.directory)
    assert caught.value.file.name == name
    assert "karma repair" in caught.value.advice
