"""The event log: appends, repeats, rotation, torn tails, damage, full disks, readers, consumers."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from events import TS_MS, event

from karma.storage import wal
from karma.storage.disk import AppendFile, Disk
from karma_events import (
    Appended,
    Consumer,
    DamagedLogError,
    Event,
    EventLog,
    InvalidEventError,
    LogBusyError,
    LogWriteError,
)

TOPIC = "actions.progress"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


def keys(log: EventLog, *topics: str) -> list[str]:
    return [one.envelope.idempotency_key for one in log.read(topics or None)]


def active(folder: Path) -> Path:
    return folder / "topics" / TOPIC / "karma.wal"


def fill(folder: Path, count: int, segment_bytes: int = 1 << 20) -> None:
    with EventLog(folder, segment_bytes=segment_bytes) as log:
        for number in range(1, count + 1):
            log.append(TOPIC, event(f"k{number}", ts_ms=TS_MS + number))


# -- Appending --------------------------------------------------------------------------------------------


def test_events_are_read_as_they_were_appended(folder: Path) -> None:
    envelope = event("a", text='ä\n\u2028 \\ "')
    with EventLog.open(folder) as log:
        assert log.append(TOPIC, envelope) == Appended(1, is_new=True)
        assert log.append("b", event("a")) == Appended(1, is_new=True)
    log = EventLog.open(folder)
    assert log.topics() == [TOPIC, "b"]
    assert [(one.topic, one.offset, one.envelope) for one in log.read([TOPIC])] == [(TOPIC, 1, envelope)]


def test_reading_leaves_no_trace(folder: Path) -> None:
    log = EventLog.open(folder)
    assert (log.topics(), list(log.read()), list(log.reader(TOPIC).read())) == ([], [], [])
    assert not folder.exists()


def test_what_is_there_is_not_appended_again(folder: Path) -> None:
    with EventLog.open(folder) as log:
        first = log.append_all([Event(TOPIC, event(key)) for key in "aba"])
        assert first == [Appended(1, is_new=True), Appended(2, is_new=True), Appended(1, is_new=False)]
        # What was said first stays.
        assert log.append(TOPIC, event("b", ts_ms=1)) == Appended(2, is_new=False)
    with EventLog.open(folder) as log:
        again = log.append_all([Event(TOPIC, event(key)) for key in "cab"])
    assert again == [Appended(3, is_new=True), Appended(1, is_new=False), Appended(2, is_new=False)]
    assert keys(log) == ["a", "b", "c"]


def test_two_logs_on_one_folder_see_each_other(folder: Path) -> None:
    with EventLog(folder, segment_bytes=600) as one, EventLog(folder, segment_bytes=600) as other:
        for number in range(20):
            log = one if number % 3 else other
            assert log.append(TOPIC, event(f"k{number}")) == Appended(number + 1, is_new=True)
            for log in (one, other):
                assert log.append(TOPIC, event(f"k{number}")) == Appended(number + 1, is_new=False)
    assert keys(one) == [f"k{number}" for number in range(20)]


def test_segments_rotate_and_are_read_through(folder: Path) -> None:
    fill(folder, 50, segment_bytes=2000)
    assert len(list(active(folder).parent.glob("*.segment"))) > 5
    log = EventLog.open(folder)
    assert [one.offset for one in log.read()] == list(range(1, 51))
    for after in (0, 1, 7, 31, 49, 50, 60):
        assert [one.offset for one in log.reader(TOPIC, after).read()] == list(range(after + 1, 51))


def test_topics_are_merged_by_time_and_never_reordered(folder: Path) -> None:
    with EventLog.open(folder) as log:
        for topic, times in {"a": (1, 4, 2), "b": (3, 5)}.items():
            for ts_ms in times:
                log.append(topic, event(f"{topic}{ts_ms}", ts_ms=ts_ms))
    assert keys(log) == ["a1", "b3", "a4", "a2", "b5"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "A", "-a", "a" * 101, "a\n", "ä"])
def test_a_topic_s_name_is_a_folder_s(folder: Path, name: str) -> None:
    log = EventLog.open(folder)
    for refused in (
        lambda: log.append(name, event("a")),
        lambda: log.reader(name),
        lambda: Consumer(log, name),
    ):
        with pytest.raises(InvalidEventError, match="is no name of a"):
            refused()
    assert not folder.exists()


def test_events_are_synced_before_they_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    write, sync = AppendFile.write, AppendFile.sync

    def noted_write(file: AppendFile, data: bytes) -> None:
        said.append("write")
        write(file, data)

    def noted_sync(file: AppendFile) -> None:
        said.append("sync")
        sync(file)

    with EventLog.open(folder) as log:
        log.append(TOPIC, event("a"))
        monkeypatch.setattr(AppendFile, "write", noted_write)
        monkeypatch.setattr(AppendFile, "sync", noted_sync)
        log.append_all([Event(TOPIC, event(key)) for key in "bcd"])
        assert said == ["write", "sync"]
        log.append(TOPIC, event("a"))
        assert said == ["write", "sync"]
    # Another process may have been killed between its write and its sync.
    with EventLog.open(folder) as log:
        log.append(TOPIC, event("a"))
        assert said == ["write", "sync", "sync"]


# -- Locks ------------------------------------------------------------------------------------------------


def test_an_append_does_not_wait_for_ever(folder: Path) -> None:
    fill(folder, 1)
    lock = Disk().lock(folder)
    log = EventLog(folder, lock_seconds=0.05)
    with pytest.raises(LogBusyError, match=f"kept locked by process {os.getpid()}"):
        log.append(TOPIC, event("a"))
    # Who reads needs no lock.
    assert keys(log) == ["k1"]
    lock.release()
    assert log.append(TOPIC, event("a")).is_new
    log.close()


# -- Torn tails, damage, full disks -----------------------------------------------------------------------


def test_a_torn_tail_is_kept_aside(folder: Path) -> None:
    fill(folder, 3)
    whole = active(folder).read_bytes()
    active(folder).write_bytes(whole[:-10])
    torn = whole[:-10].splitlines()[-1]
    log = EventLog.open(folder)
    assert keys(log) == ["k1", "k2"]
    assert log.append(TOPIC, event("k4")) == Appended(3, is_new=True)
    log.close()
    assert keys(log) == ["k1", "k2", "k4"]
    (kept,) = (active(folder).parent / "cut").iterdir()
    assert kept.read_bytes() == torn
    assert kept.name.endswith("-karma.wal-from-lsn-3")


def test_a_reader_waits_at_half_a_line_and_goes_on_behind_it(folder: Path) -> None:
    fill(folder, 3)
    whole = active(folder).read_bytes()
    reader = EventLog.open(folder).reader(TOPIC)
    active(folder).write_bytes(whole[:-10])
    assert [one.offset for one in reader.read()] == [1, 2]
    assert list(reader.read()) == []
    active(folder).write_bytes(whole)
    assert [one.offset for one in reader.read()] == [3]


def test_a_reader_follows_through_rotations(folder: Path) -> None:
    reader = EventLog.open(folder).reader(TOPIC)
    seen = []
    with EventLog(folder, segment_bytes=900) as log:
        for number in range(1, 30):
            log.append(TOPIC, event(f"k{number}"))
            if number % 4 == 0:
                seen += [one.offset for one in reader.read()]
    seen += [one.offset for one in reader.read()]
    assert seen == list(range(1, 30))


class HurriedDisk(Disk):
    """Lets others write once, behind the n-th listing or in front of the n-th reading of a file."""

    def __init__(self, what: str, number: int, others: Callable[[], object]) -> None:
        self.what = what
        self.number = number
        self.others = others

    def count(self, what: str) -> None:
        if what == self.what:
            self.number -= 1
            if self.number == 0:
                self.others()

    def list_names(self, directory: Path) -> list[str]:
        names = super().list_names(directory)
        self.count("listing")
        return names

    def read_range(self, path: Path, offset_bytes: int, length_bytes: int) -> bytes:
        self.count("reading")
        return super().read_range(path, offset_bytes, length_bytes)


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("what", ["listing", "reading"])
@pytest.mark.parametrize("is_fresh", [True, False], ids=["from the beginning", "going on"])
def test_a_rotation_at_any_moment_hides_nothing(
    folder: Path, what: str, number: int, *, is_fresh: bool
) -> None:
    fill(folder, 3)

    def others() -> None:
        # The first fills the file, the second is in the next one.
        with EventLog(folder, segment_bytes=500) as log:
            for key in ("a", "b"):
                log.append(TOPIC, event(key))

    disk = HurriedDisk(what, 0, others)
    reader = EventLog(folder, disk=disk).reader(TOPIC)
    seen = [] if is_fresh else [one.offset for one in reader.read()]
    disk.number = number
    seen += [one.offset for one in reader.read()]
    # Where the others came too late for this look, the next one finds what they wrote.
    assert seen[:3] == [1, 2, 3]
    seen += [one.offset for one in reader.read()]
    assert seen == ([1, 2, 3, 4, 5] if disk.number <= 0 else [1, 2, 3])


def flip(path: Path, needle: bytes) -> None:
    data = path.read_bytes()
    at = data.index(needle)
    path.write_bytes(data[:at] + b"X" + data[at + 1 :])


def test_damage_stops_reading_and_appending(folder: Path) -> None:
    fill(folder, 4)
    flip(active(folder), b"k2")
    before = active(folder).read_bytes()
    log = EventLog.open(folder)
    with pytest.raises(DamagedLogError, match=r"its checksum does not match.*event 3 behind it") as damaged:
        keys(log)
    assert str(active(folder).parent) in damaged.value.advice
    with pytest.raises(DamagedLogError):
        log.append(TOPIC, event("k5"))
    assert active(folder).read_bytes() == before
    # The other topics are well, and the topic begins anew once its folder is out of the way.
    assert log.append("other", event("a")).is_new
    active(folder).parent.rename(folder / "kept")
    assert log.append(TOPIC, event("k1")) == Appended(1, is_new=True)
    log.close()


def test_damage_in_a_segment_is_never_taken_for_a_torn_tail(folder: Path) -> None:
    fill(folder, 10, segment_bytes=1000)
    segment = max(active(folder).parent.glob("*.segment"))
    segment.write_bytes(segment.read_bytes()[:-5])
    with pytest.raises(DamagedLogError, match="synced as a whole"):
        keys(EventLog.open(folder))


def test_a_missing_segment_in_the_middle_is_damage(folder: Path) -> None:
    fill(folder, 20, segment_bytes=1000)
    sorted(active(folder).parent.glob("*.segment"))[1].unlink()
    with pytest.raises(DamagedLogError, match="is due"):
        keys(EventLog.open(folder))


def test_a_topic_may_begin_late(folder: Path) -> None:
    fill(folder, 20, segment_bytes=1000)
    oldest = min(active(folder).parent.glob("*.segment"))
    oldest.unlink()
    offsets = [one.offset for one in EventLog.open(folder).read()]
    assert 1 < offsets[0] < 6
    assert offsets == list(range(offsets[0], 21))


def test_a_foreign_entry_is_no_event(folder: Path) -> None:
    active(folder).parent.mkdir(parents=True)
    active(folder).write_bytes(wal.encode_lines([b'{"op":"event","colour":"red"}'], 1, TS_MS, 0))
    with pytest.raises(DamagedLogError, match="event 1 is none: the event lacks"):
        keys(EventLog.open(folder))


def test_a_full_disk_leaves_nothing_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 1)
    before = active(folder).read_bytes()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 100:
            if len(data) > 200:
                return write(fd, data[:150])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    log = EventLog.open(folder)
    with monkeypatch.context() as patched:
        patched.setattr("karma.storage.disk.os.write", full)
        with pytest.raises(LogWriteError, match="No space left on device"):
            log.append(TOPIC, event("a"))
    assert active(folder).read_bytes() == before
    assert log.append(TOPIC, event("a")) == Appended(2, is_new=True)
    log.close()


def test_a_failed_rotation_does_not_fail_the_append(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with EventLog(folder, segment_bytes=10) as log:
        with monkeypatch.context() as patched:
            patched.setattr(Disk, "rename", refuse)
            assert log.append(TOPIC, event("a")) == Appended(2, is_new=True)
        assert not list(active(folder).parent.glob("*.segment"))
        assert log.append(TOPIC, event("b")) == Appended(3, is_new=True)
    assert keys(log) == ["k1", "a", "b"]
    assert list(active(folder).parent.glob("*.segment"))


# -- Consumers --------------------------------------------------------------------------------------------


def offsets(consumer: Consumer) -> list[int]:
    return [one.offset for one in consumer.read()]


def test_a_consumer_goes_on_where_it_committed(folder: Path) -> None:
    fill(folder, 5)
    log = EventLog.open(folder)
    with Consumer(log, "c") as consumer:
        assert offsets(consumer) == [1, 2, 3, 4, 5]
        assert offsets(consumer) == []
    with Consumer(log, "c") as consumer:
        for one in consumer.read():
            if one.offset == 3:
                break
        consumer.commit()
        assert consumer.committed == {TOPIC: 3}
    log.append("later", event("a"))
    with Consumer(log, "c") as consumer:
        assert sorted(offsets(consumer)) == [1, 4, 5]
    with Consumer(log, "c", ["later"]) as consumer:
        assert offsets(consumer) == [1]
        consumer.commit()
        # Those of other topics stay.
        assert consumer.committed == {TOPIC: 3, "later": 1}
    with Consumer(log, "other") as consumer:
        assert len(offsets(consumer)) == 6
    log.close()


def test_a_consumer_s_name_is_one_process_s(folder: Path) -> None:
    fill(folder, 1)
    log = EventLog.open(folder)
    with Consumer(log, "c"), pytest.raises(LogBusyError, match="consumer c is in use by process"):
        Consumer(log, "c")
    Consumer(log, "c").close()


def test_a_consumer_of_an_exchanged_topic_is_told(folder: Path) -> None:
    fill(folder, 3)
    log = EventLog.open(folder)
    with Consumer(log, "c") as consumer:
        offsets(consumer)
        consumer.commit()
    active(folder).unlink()
    fill(folder, 2)
    with pytest.raises(DamagedLogError, match="stands at offset 3") as refused:
        Consumer(log, "c")
    note = folder / "consumers" / "c" / "offsets.json"
    assert str(note) in refused.value.advice
    note.unlink()
    with Consumer(log, "c") as consumer:
        assert offsets(consumer) == [1, 2]


@pytest.mark.parametrize("text", ["", "[]", '{"a":-1}', '{"a":"b"}'])
def test_offsets_that_are_none_are_not_guessed(folder: Path, text: str) -> None:
    path = folder / "consumers" / "c" / "offsets.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DamagedLogError, match="holds no offsets"):
        Consumer(EventLog.open(folder), "c")


def test_a_commit_follows_the_sync_of_what_it_covers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 2)
    said: list[str] = []
    sync, write_file = AppendFile.sync, Disk.write_file

    def noted_sync(file: AppendFile) -> None:
        said.append("sync")
        sync(file)

    def noted_write(disk: Disk, path: Path, chunks: Iterable[bytes]) -> int:
        said.append("note")
        return write_file(disk, path, chunks)

    monkeypatch.setattr(AppendFile, "sync", noted_sync)
    monkeypatch.setattr(Disk, "write_file", noted_write)
    with Consumer(EventLog.open(folder), "c") as consumer:
        offsets(consumer)
        consumer.commit()
        consumer.commit()
    assert said == ["sync", "note"]
