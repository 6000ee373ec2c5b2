"""Snapshot files: their names and metadata, what a kill or damage leaves of them, and the original's own."""

import contextlib
import shutil
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import msgpack
import orjson
import pytest
from harness import FIXTURES

from karma.core import buckets
from karma.core.buckets import Counter
from karma.core.idempotency import Record, Records
from karma.core.ingest import Stream, Streams
from karma.core.series import Series
from karma.errors import DamagedDataError
from karma.storage import retention, snapshot
from karma.storage.disk import Disk

DAY = 20260505
NOW = 1_795_253_093
COUNTERS: dict[int, Counter] = {1: buckets.single(DAY, 7), 2: 0, 9: array("Q", (5, DAY, 2, DAY + 1, 3))}


class Killed(BaseException):
    """The process ends here: no handler of OSError or Exception sees it."""


class FragileDisk(Disk):
    """A disk on which the n-th change of a name is the last thing to happen, or the last not to happen."""

    def __init__(self, changes_left: int, *, done: bool) -> None:
        self.changes_left = changes_left
        self.done = done

    def move(self, old: Path, new: Path) -> None:
        """As Disk.move, unless it is the one."""
        self._change(lambda: super(FragileDisk, self).move(old, new))

    def remove(self, path: Path) -> None:
        """As Disk.remove, unless it is the one."""
        self._change(lambda: super(FragileDisk, self).remove(path))

    def _change(self, change: Callable[[], None]) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise Killed
        if self.changes_left or self.done:
            change()
        if not self.changes_left:
            raise Killed


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def karma_1(tmp_path: Path) -> Callable[[str], Path]:
    """`karma_1("snapshot-and-wal")` → a copy of what a running Karma 1.0.1 left, with its state.json."""

    def copy(name: str) -> Path:
        return shutil.copytree(FIXTURES / name, tmp_path / name)

    return copy


def write(
    disk: Disk, directory: Path, series: str, lsn: int = 5, timestamp: int = NOW
) -> snapshot.SnapshotFile:
    return snapshot.write_tree(disk, directory, series, COUNTERS, lsn, timestamp, 0)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# -- Names and metadata ------------------------------------------------------------------------------


def test_a_snapshot_and_its_metadata(disk: Disk, tmp_path: Path) -> None:
    written = snapshot.write_tree(disk, tmp_path, "api_requests", COUNTERS, 784, NOW, 3)
    assert names(tmp_path) == [f"{NOW}_api_requests.tree", f"{NOW}_api_requests.tree.meta.json"]
    assert snapshot.list_snapshots(disk, tmp_path) == [written]
    assert snapshot.load_tree(disk, written) == COUNTERS
    metadata = orjson.loads((tmp_path / f"{NOW}_api_requests.tree.meta.json").read_bytes())
    assert metadata == {
        "tree": "api_requests",
        "file": f"{NOW}_api_requests.tree",
        "timestamp": NOW,
        "last_lsn": 784,
        "bytes": (tmp_path / f"{NOW}_api_requests.tree").stat().st_size,
        "crc32": written.crc32,
        "ordinal": 3,
        "self_crc32": metadata["self_crc32"],
    }


@pytest.mark.parametrize(
    ("series", "file"),
    [
        ("", f"{NOW}_.tree"),
        (".", f"{NOW}_..tree"),
        ("..", f"{NOW}_...tree"),
        ("50%", f"{NOW}_50%.tree"),
        ("a_b.tree", f"{NOW}_a_b.tree.tree"),
        ("x.tree.meta.json", f"{NOW}_x.tree.meta.json.tree"),
        ("line\nbreak", f"{NOW}_line\nbreak.tree"),
        ("naïve ✓", f"{NOW}_naïve ✓.tree"),
        ("n" * 204, f"{NOW}_{'n' * 204}.tree"),
    ],
)
def test_most_names_stand_in_the_file_name_as_they_are(
    disk: Disk, tmp_path: Path, series: str, file: str
) -> None:
    written = write(disk, tmp_path, series)
    assert (written.file, written.encoded) == (file, False)
    assert b"encoded" not in (tmp_path / f"{file}.meta.json").read_bytes()
    assert snapshot.list_snapshots(disk, tmp_path) == [written]
    assert snapshot.load_tree(disk, written) == COUNTERS


@pytest.mark.parametrize(
    ("series", "start"),
    [
        ("../evil", f"{NOW}_..%2Fevil.tree"),
        ("a/50%", f"{NOW}_a%2F50%25.tree"),
        ("a\0b", f"{NOW}_a%00b.tree"),
        ("/" * 200, f"{NOW}_%2F%2F"),
        ("é" * 150, f"{NOW}_éé"),
    ],
)
def test_other_names_are_encoded_and_kept_in_the_metadata(
    disk: Disk, tmp_path: Path, series: str, start: str
) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    written = write(disk, directory, series)
    assert names(tmp_path) == ["data"]
    assert written.file.startswith(start)
    assert written.encoded
    assert snapshot.list_snapshots(disk, directory) == [written]
    assert written.series == series
    assert snapshot.load_tree(disk, written) == COUNTERS


def test_long_names_that_start_alike_stay_apart(disk: Disk, tmp_path: Path) -> None:
    first, second = write(disk, tmp_path, "n" * 300), write(disk, tmp_path, "n" * 301)
    assert first.timestamp == second.timestamp
    assert {found.series for found in snapshot.list_snapshots(disk, tmp_path)} == {"n" * 300, "n" * 301}


def test_a_timestamp_never_comes_twice(disk: Disk, tmp_path: Path) -> None:
    assert [write(disk, tmp_path, "a").timestamp for _ in range(3)] == [NOW, NOW + 1, NOW + 2]
    assert write(disk, tmp_path, "a", timestamp=NOW - 100).timestamp == NOW + 3
    assert write(disk, tmp_path, "b").timestamp == NOW
    assert write(disk, tmp_path, "a", timestamp=NOW + 50).timestamp == NOW + 50


def test_series_whose_file_names_coincide_do_not_replace_each_other(disk: Disk, tmp_path: Path) -> None:
    snapshot.write_trees(disk, tmp_path, [Series("a/b", COUNTERS), Series("a%2Fb", COUNTERS)], 5, NOW)
    assert {found.series: found.timestamp for found in snapshot.list_snapshots(disk, tmp_path)} == {
        "a/b": NOW,
        "a%2Fb": NOW + 1,
    }


def test_listing_is_newest_first_and_passes_over_other_files(disk: Disk, tmp_path: Path) -> None:
    for name in ("karma.wal", "karma.wal.lsn", "notes.tree", ".1_a.tree.tmp", "1_a.tree.bak", "x_a.tree"):
        (tmp_path / name).touch()
    old, new, other = (
        write(disk, tmp_path, "a"),
        write(disk, tmp_path, "a", timestamp=NOW + 9),
        write(disk, tmp_path, "b", timestamp=NOW + 5),
    )
    found = snapshot.list_snapshots(disk, tmp_path)
    assert found == [new, other, old]
    assert snapshot.latest_by_series(found) == {"a": new, "b": other}
    assert snapshot.latest_by_series(reversed(found)) == {"a": new, "b": other}
    assert snapshot.list_snapshots(disk, tmp_path / "missing") == []


def test_without_metadata_a_snapshot_is_listed_but_its_lsn_unknown(disk: Disk, tmp_path: Path) -> None:
    written = write(disk, tmp_path, "a")
    assert written.metadata_file is not None
    written.metadata_file.unlink()
    [found] = snapshot.list_snapshots(disk, tmp_path)
    assert found == snapshot.SnapshotFile("a", written.path, written.file, NOW, written.bytes)
    assert snapshot.load_tree(disk, found) == COUNTERS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 1 column 1"),
        (b"{", "line 1 column 2"),
        (b"[]", "not a JSON object"),
        (b'{"tree":"a","file":"%d_a.tree","timestamp":1,"bytes":5}' % NOW, "field 'last_lsn' is missing"),
        (b'{"tree":"a","file":"%d_a.tree","last_lsn":"7","bytes":5}' % NOW, "field last_lsn is '7'"),
        (b'{"tree":"a","file":"1_a.tree","last_lsn":7,"bytes":5}', "another file"),
        (b'{"tree":"b","file":"%d_a.tree","last_lsn":7,"bytes":5}' % NOW, "another file"),
        (b'{"tree":"b/","file":"%d_a.tree","last_lsn":7,"bytes":5}' % NOW, "another file"),
    ],
)
def test_metadata_that_cannot_be_are_damage(disk: Disk, tmp_path: Path, content: bytes, problem: str) -> None:
    written = write(disk, tmp_path, "a")
    assert written.metadata_file is not None
    written.metadata_file.write_bytes(content)
    with pytest.raises(DamagedDataError) as caught:
        snapshot.list_snapshots(disk, tmp_path)
    assert caught.value.file == written.metadata_file
    assert problem in caught.value.message
    assert caught.value.advice == f"karma check --directory {tmp_path}"


# -- Damage and kills --------------------------------------------------------------------------------


def test_every_flipped_byte_and_every_truncation_is_noticed(disk: Disk, tmp_path: Path) -> None:
    written = write(disk, tmp_path, "a")
    good = written.path.read_bytes()
    damaged = [good[:at] + bytes([byte ^ 0x40]) + good[at + 1 :] for at, byte in enumerate(good)]
    damaged += [good[:size] for size in range(len(good))] + [good + b"\0"]
    for data in damaged:
        written.path.write_bytes(data)
        with pytest.raises(DamagedDataError) as caught:
            snapshot.load_tree(disk, written)
        assert caught.value.file == written.path
        assert caught.value.advice == f"karma repair --directory {tmp_path}"
        problem = "its CRC-32 is" if len(data) == len(good) else f"the file has {len(data)} bytes, but"
        assert caught.value.message.startswith(problem)
    written.path.write_bytes(good)
    assert snapshot.load_tree(disk, written) == COUNTERS


def test_without_a_crc_the_format_still_notices(disk: Disk, tmp_path: Path) -> None:
    written = write(disk, tmp_path, "a")
    assert written.metadata_file is not None
    written.metadata_file.unlink()
    written.path.write_bytes(written.path.read_bytes()[:-1])
    [found] = snapshot.list_snapshots(disk, tmp_path)
    with pytest.raises(DamagedDataError, match="ends too early"):
        snapshot.load_tree(disk, found)


@pytest.mark.parametrize("changes", [1, 2])
@pytest.mark.parametrize("done", [False, True])
def test_a_kill_while_writing_leaves_nothing_that_counts(
    disk: Disk, tmp_path: Path, changes: int, done: bool
) -> None:
    old = write(disk, tmp_path, "a")
    with pytest.raises(Killed):
        write(FragileDisk(changes, done=done), tmp_path, "a", lsn=9)
    finished = [found for found in snapshot.list_snapshots(disk, tmp_path) if found.last_lsn is not None]
    expected = {9, 5} if (changes, done) == (2, True) else {5}
    assert {found.last_lsn for found in finished} == expected
    for found in finished:
        assert snapshot.load_tree(disk, found) == COUNTERS
    assert write(disk, tmp_path, "a", lsn=10).timestamp > old.timestamp


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path) -> None:
    class FullDisk(Disk):
        def _write_temporary(self, path: Path, chunks: Iterable[bytes]) -> int:
            if path.name.endswith(".json"):
                raise OSError(28, "No space left on device")
            return super()._write_temporary(path, chunks)

    with pytest.raises(OSError, match="No space left"):
        write(FullDisk(), tmp_path, "a")
    assert names(tmp_path) == []


# -- Retention ---------------------------------------------------------------------------------------


def test_old_snapshots_beyond_retention_go(disk: Disk, tmp_path: Path) -> None:
    a = [write(disk, tmp_path, "a") for _ in range(4)]
    b = write(disk, tmp_path, "b", timestamp=NOW - 10)
    removed = retention.prune(disk, snapshot.list_snapshots(disk, tmp_path), 2)
    assert set(removed) == set(a[:2])
    assert snapshot.list_snapshots(disk, tmp_path) == [a[3], a[2], b]
    assert len(names(tmp_path)) == 6


def test_an_unfinished_snapshot_does_not_push_out_the_last_good_one(disk: Disk, tmp_path: Path) -> None:
    leftover, good, unfinished = (write(disk, tmp_path, "a") for _ in range(3))
    for broken in (leftover, unfinished):
        assert broken.metadata_file is not None
        broken.metadata_file.unlink()
    removed = retention.prune(disk, snapshot.list_snapshots(disk, tmp_path), 1)
    assert [found.file for found in removed] == [leftover.file]
    assert good in snapshot.list_snapshots(disk, tmp_path)


@pytest.mark.parametrize("changes", range(1, 5))
def test_a_kill_while_pruning_leaves_nothing_misleading(disk: Disk, tmp_path: Path, changes: int) -> None:
    kept = [write(disk, tmp_path, "a") for _ in range(3)][2]
    with pytest.raises(Killed):
        retention.prune(FragileDisk(changes, done=True), snapshot.list_snapshots(disk, tmp_path), 1)
    files = names(tmp_path)
    assert all(name.removesuffix(".meta.json") in files for name in files)
    assert snapshot.list_snapshots(disk, tmp_path)[0] == kept
    retention.prune(disk, snapshot.list_snapshots(disk, tmp_path), 1)
    assert snapshot.list_snapshots(disk, tmp_path) == [kept]


def test_snapshots_of_dropped_series_move_aside_and_replace_nothing(disk: Disk, tmp_path: Path) -> None:
    kept = write(disk, tmp_path, "kept")
    for _ in range(3):
        retention.set_aside(disk, tmp_path, [write(disk, tmp_path, "gone")])
    assert snapshot.list_snapshots(disk, tmp_path) == [kept]
    assert names(tmp_path / "dropped") == sorted(
        f"{prefix}{NOW}_gone.tree{suffix}" for prefix in ("", "2-", "3-") for suffix in ("", ".meta.json")
    )


def test_a_kill_while_setting_aside_leaves_a_pair_that_finds_itself_again(disk: Disk, tmp_path: Path) -> None:
    gone = write(disk, tmp_path, "gone")
    with pytest.raises(Killed):
        retention.set_aside(FragileDisk(1, done=True), tmp_path, [gone])
    [found] = snapshot.list_snapshots(disk, tmp_path)
    assert found.last_lsn is None
    retention.set_aside(disk, tmp_path, [found])
    assert names(tmp_path / "dropped") == [gone.file, f"{gone.file}.meta.json"]


# -- Idempotency records -----------------------------------------------------------------------------


def records_of(count: int, at_unix: int = NOW) -> Records:
    records = Records()
    for number in range(count):
        response = {"applied": number, "total": 2**64 - 1} if number % 2 else "OK"
        records.put(f"key {number}", Record("increment", f"{number:064x}", response, at_unix))
    return records


def committed_stream(name: str = "s1") -> Stream:
    return Stream(name, "add", "day", "be", "storage", 2, {1: "aa", 2: "bb"}, None, NOW)


def load_records(
    disk: Disk, directory: Path
) -> tuple[list[tuple[str, Record]], dict[str, Stream], int | None]:
    records, streams = Records(), Streams()
    last_lsn = snapshot.load_records(disk, directory, records, streams)
    assert not streams.active
    return list(records.items()), streams.committed, last_lsn


@pytest.mark.parametrize("count", [0, 1, 2_500])
def test_records_come_back_in_order(disk: Disk, tmp_path: Path, count: int) -> None:
    records, stream = records_of(count), committed_stream()
    snapshot.write_records(disk, tmp_path, records, [stream], 784, NOW)
    assert load_records(disk, tmp_path) == (list(records.items()), {"s1": stream}, 784)
    size = (tmp_path / "karma.idempotency.json").stat().st_size
    metadata = orjson.loads((tmp_path / "karma.idempotency.json.meta.json").read_bytes())
    assert metadata.pop("crc32")
    assert metadata.pop("self_crc32")
    assert metadata == {
        "file": "karma.idempotency.json",
        "timestamp": NOW,
        "last_lsn": 784,
        "bytes": size,
        "record_count": count,
        "committed_stream_count": 1,
    }


def test_records_come_back_with_their_day_and_the_expiry_clock(disk: Disk, tmp_path: Path) -> None:
    written = Records()
    written.put("k", Record("increment", "f" * 64, 1, NOW, 20260513))
    snapshot.write_records(disk, tmp_path, written, [], 784, NOW + 691_200, NOW + 5)
    records = Records()
    snapshot.load_records(disk, tmp_path, records, Streams())
    assert list(records.items()) == list(written.items())
    assert records.newest_unix == NOW + 5, "not the wall clock's, which had been set"
    # Karma 1.0 has only that.
    snapshot.write_records(disk, tmp_path, written, [], 785, NOW + 7)
    snapshot.load_records(disk, tmp_path, records, Streams())
    assert records.newest_unix == NOW + 7


def test_without_an_idempotency_snapshot_there_are_no_records(disk: Disk, tmp_path: Path) -> None:
    assert load_records(disk, tmp_path) == ([], {}, None)


def test_records_without_metadata_have_no_lsn(disk: Disk, tmp_path: Path) -> None:
    snapshot.write_records(disk, tmp_path, records_of(3), [], 784, NOW)
    (tmp_path / "karma.idempotency.json.meta.json").unlink()
    records, _, last_lsn = load_records(disk, tmp_path)
    assert (len(records), last_lsn) == (3, None)


def test_damaged_records_are_refused(disk: Disk, tmp_path: Path) -> None:
    snapshot.write_records(disk, tmp_path, records_of(2), [committed_stream()], 784, NOW)
    path = tmp_path / "karma.idempotency.json"
    good = path.read_bytes()
    for at in range(len(good)):
        for data in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:at]):
            path.write_bytes(data)
            with pytest.raises(DamagedDataError) as caught:
                load_records(disk, tmp_path)
            assert caught.value.file == path
    path.unlink()
    with pytest.raises(DamagedDataError, match="is missing"):
        load_records(disk, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"records": [{}], "committed_streams": []},
        {"records": [[]], "committed_streams": []},
        {"records": [], "committed_streams": [{"stream_id": "s"}]},
    ],
)
def test_records_of_another_shape_are_refused(disk: Disk, tmp_path: Path, content: object) -> None:
    (tmp_path / "karma.idempotency.json").write_bytes(orjson.dumps(content))
    with pytest.raises(DamagedDataError):
        load_records(disk, tmp_path)


@pytest.mark.parametrize("first", ["none", "ours", "original's"])
@pytest.mark.parametrize("kill", range(1, 8))
@pytest.mark.parametrize("next_kill", range(1, 8))
def test_after_any_kills_the_lsn_is_that_of_the_records(
    disk: Disk, tmp_path: Path, first: str, kill: int, next_kill: int
) -> None:
    """Two snapshots in a row are cut off at any two points. All are of one size, which thus tells nothing."""
    held_lsn = None
    if first != "none":
        snapshot.write_records(disk, tmp_path, records_of(1, NOW + 100), [], 100, NOW)
        held_lsn = 100
    if first == "original's":
        metadata_file = tmp_path / "karma.idempotency.json.meta.json"
        metadata = orjson.loads(metadata_file.read_bytes())
        del metadata["crc32"], metadata["self_crc32"]
        metadata_file.write_bytes(orjson.dumps(metadata))
    for lsn, point in ((200, kill), (300, next_kill)):
        # Renames: the metadata with next_lsn, the records, the metadata. 7 is no kill.
        fragile = FragileDisk((point + 1) // 2, done=bool(point % 2))
        with contextlib.suppress(Killed):
            snapshot.write_records(fragile, tmp_path, records_of(1, NOW + lsn), [], lsn, NOW)
        if point in {3, 5, 6, 7}:
            held_lsn = lsn
        records, _, last_lsn = load_records(disk, tmp_path)
        assert last_lsn == held_lsn
        assert [record.created_at_unix for _, record in records] == ([NOW + held_lsn] if held_lsn else [])


# -- Ingest streams and recovery checkpoints ---------------------------------------------------------


def open_streams() -> Streams:
    streams = Streams()
    streams.active["r1"] = Stream("r1", "replace_series", "day", "be", "a", 1, {1: "aa"}, dict(COUNTERS))
    streams.active["r2"] = Stream("r2", "replace_series", "day", "be", staged={})
    streams.active["r3"] = Stream("r3", "set", "day", "be", "b", 2, {1: "aa", 2: "bb"})
    streams.committed["s1"] = committed_stream()
    return streams


def test_streams_come_back_with_what_they_staged(disk: Disk, tmp_path: Path) -> None:
    streams = open_streams()
    snapshot.write_streams(disk, tmp_path, streams, 784)
    loaded = snapshot.load_streams(disk, tmp_path)
    assert loaded is not None
    assert (loaded[0].active, loaded[0].committed, loaded[1]) == (streams.active, streams.committed, 784)
    assert list(loaded[0].active) == ["r1", "r2", "r3"]


def test_without_an_ingest_file_nothing_is_known_of_streams(disk: Disk, tmp_path: Path) -> None:
    assert snapshot.load_streams(disk, tmp_path) is None


def test_a_damaged_ingest_file_is_refused(disk: Disk, tmp_path: Path) -> None:
    snapshot.write_streams(disk, tmp_path, open_streams(), 784)
    path = tmp_path / "karma.ingest.msgpack"
    good = path.read_bytes()
    for at in range(len(good)):
        for data in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:at]):
            path.write_bytes(data)
            with pytest.raises(DamagedDataError, match="CRC-32"):
                snapshot.load_streams(disk, tmp_path)


def test_an_ingest_file_of_a_newer_version_is_refused(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_STREAMS_FORMAT", 2)
    snapshot.write_streams(disk, tmp_path, Streams(), 784)
    monkeypatch.undo()
    with pytest.raises(DamagedDataError, match="a newer version wrote it"):
        snapshot.load_streams(disk, tmp_path)


def test_the_ingest_file_is_messagepack_and_a_crc(disk: Disk, tmp_path: Path) -> None:
    snapshot.write_streams(disk, tmp_path, open_streams(), 784)
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed((tmp_path / "karma.ingest.msgpack").read_bytes())
    content, crc32 = unpacker
    assert list(content) == ["format", "lsn", "active", "committed"]
    assert isinstance(crc32, int)


def test_checkpoints_come_back(disk: Disk, tmp_path: Path) -> None:
    assert snapshot.load_checkpoints(disk, tmp_path) == []
    checkpoints: list[dict[str, object]] = [
        {"source": "exp", "offset": "o8", "event_id": None, "updated_at_unix": NOW},
        {"source": "bus", "offset": "17", "event_id": "b", "updated_at_unix": NOW},
    ]
    # Numbers come back as text: an earlier build kept them as they came.
    snapshot.write_checkpoints(disk, tmp_path, [checkpoints[0], checkpoints[1] | {"offset": 17}])
    assert snapshot.load_checkpoints(disk, tmp_path) == checkpoints
    assert b"null" not in (tmp_path / "recovery.json").read_bytes()
    (tmp_path / "recovery.json").write_bytes(b'{"checkpoints":')
    with pytest.raises(DamagedDataError):
        snapshot.load_checkpoints(disk, tmp_path)


# -- What the original wrote -------------------------------------------------------------------------


def test_snapshots_of_karma_1_hold_the_state_it_answered(disk: Disk, karma_1: Callable[[str], Path]) -> None:
    recorded = karma_1("snapshot-and-wal")
    state = orjson.loads((recorded / "state.json").read_bytes())
    found = snapshot.list_snapshots(disk, recorded / "data")
    assert {one.last_lsn for one in found} == {784}
    assert all(one.metadata_file and one.crc32 is None and not one.encoded for one in found)
    held = {
        name: {
            str(key): {str(day): value for day, value in buckets.items(counter)}
            for key, counter in snapshot.load_tree(disk, one).items()
            # Keys without a bucket are in the files, but were not recorded.
            if counter
        }
        for name, one in snapshot.latest_by_series(found).items()
    }
    assert held == state


def test_records_of_karma_1_are_read_and_written_as_it_does(
    disk: Disk, karma_1: Callable[[str], Path]
) -> None:
    data = karma_1("snapshot-and-wal") / "data"
    path = data / "karma.idempotency.json"
    content = orjson.loads(path.read_bytes())
    metadata = orjson.loads((data / "karma.idempotency.json.meta.json").read_bytes())
    records, streams = Records(), Streams()
    assert snapshot.load_records(disk, data, records, streams) == 784
    assert (len(records), list(streams.committed)) == (22, ["s1", "s4"])
    assert streams.committed["s4"].chunk_fingerprints.keys() == {1, 2}

    snapshot.write_records(disk, data, records, streams.committed.values(), 784, metadata["timestamp"])
    assert orjson.loads(path.read_bytes()) == content
    rewritten = orjson.loads((data / "karma.idempotency.json.meta.json").read_bytes())
    ours = {name: rewritten[name] for name in ("bytes", "crc32", "self_crc32")}
    assert {**metadata, **ours} == rewritten


def test_checkpoints_of_karma_1_are_read_and_written_as_it_does(
    disk: Disk, karma_1: Callable[[str], Path]
) -> None:
    data = karma_1("snapshot-and-wal") / "data"
    written = orjson.loads((data / "recovery.json").read_bytes())
    checkpoints = snapshot.load_checkpoints(disk, data)
    assert checkpoints == [{"source": "exp", "offset": "o8", "event_id": None, "updated_at_unix": NOW}]
    snapshot.write_checkpoints(disk, data, checkpoints)
    rewritten = orjson.loads((data / "recovery.json").read_bytes())
    assert rewritten.pop("self_crc32")
    assert rewritten == written
