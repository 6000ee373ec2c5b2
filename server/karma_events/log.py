"""The event log: durable topics that several processes append to, one after the other.

    DIRECTORY/
      karma.lock                      whoever appends holds it, for as long as that takes
      topics/TOPIC/
        karma.wal                     the newest events
        karma.wal.<offset>.segment    older ones, from that offset on, with an index beside
        cut/                          torn tails, as kept when they were cut off
      consumers/NAME/                 how far somebody has read: see `consumers`

A topic is a log of karma's own (`karma.storage.wal` has the format of lines, checksums and segments); an
event's offset is its LSN, its entry the envelope with `"op":"event"` before it, since every entry of such a
log has an op. So `karmactl wal cat --from DIRECTORY/topics/TOPIC` reads it, too.

What callers rely on:

- an event is on disk before `append` returns, and has the offset that it will always have;
- an event whose idempotency key the topic has is not appended again. Sent twice with different contents, the
  first stays: emitters repeat themselves after a crash, and must not be stopped by what they once said;
- a process killed at any point leaves whole events, and perhaps half a line, which the next append moves to
  ``cut/``. Anything else that cannot be read is damage: reading stops there and nothing is appended.

Reading takes no lock. A reader may see an event in the moment before it is durable; a consumer's offset never
passes one (`EventLog.make_durable`). Nothing is ever deleted.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

from karma.errors import DirectoryInUseError, StorageFailedError
from karma.storage import wal
from karma.storage.disk import Disk
from karma.storage.wal import Wal
from karma_events.envelope import Envelope, Event, Recorded
from karma_events.errors import DamagedLogError, InvalidEventError, LogBusyError, LogWriteError

SEGMENT_BYTES = 8 << 20
"""About 20,000 events: what a reader that begins at some offset reads in vain at most."""
LOCK_SECONDS = 30.0
"""How long an append waits for others. They hold the lock for a write and a sync; one that was stopped with
Ctrl-Z would hold up a failover for as long as this."""
TOPICS_NAME = "topics"
CONSUMERS_NAME = "consumers"
CUT_NAME = "cut"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_ENTRY_HEAD = b'{"op":"event",'


class Appended(NamedTuple):
    """Where an event is now. `is_new` is False when the topic had its idempotency key already."""

    offset: int
    is_new: bool


def check_name(kind: str, name: str) -> str:
    """Return the name of a topic or consumer, which becomes a folder's. Raises InvalidEventError."""
    if not _NAME.fullmatch(name):
        raise InvalidEventError(
            f"{name!r} is no name of a {kind}",
            "write 1 to 100 of a-z, 0-9, dot, dash and underscore, beginning with a letter or digit",
        )
    return name


class EventLog:
    """The topics of one folder. Not thread-safe; several of them, in many processes, may use one folder."""

    def __init__(
        self,
        directory: Path,
        *,
        disk: Disk | None = None,
        now_ms: Callable[[], int] | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        lock_seconds: float = LOCK_SECONDS,
    ) -> None:
        """See `open`. `now_ms` is the clock that stamps log lines, `segment_bytes` when a segment is full."""
        self.directory = directory
        self.disk = disk or Disk()
        self._now_ms = now_ms or _wall_clock_ms
        self._segment_bytes = segment_bytes
        self._lock_seconds = lock_seconds
        self._writers: dict[str, _Writer] = {}

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Return the log of a folder, which the first `append` makes if need be; reading changes nothing."""
        return cls(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files. Everything appended is durable already."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    # -- Writing ---------------------------------------------------------------------------------

    def append(self, topic: str, envelope: Envelope) -> Appended:
        """Append one event; see `append_all`."""
        return self.append_all([Event(topic, envelope)])[0]

    def append_all(self, events: Iterable[Event]) -> list[Appended]:
        """Append events in order and return where each is; each topic costs one write and one sync.

        Raises InvalidEventError for a topic's name, LogBusyError when others do not let go of the lock,
        DamagedLogError for a topic that cannot be read, LogWriteError when the disk refuses. Of each topic
        all of the events are appended then or none, and calling again repeats nothing.
        """
        by_topic: dict[str, list[tuple[int, Envelope]]] = defaultdict(list)
        for number, (topic, envelope) in enumerate(events):
            by_topic[check_name("topic", topic)].append((number, envelope))
        appended: dict[int, Appended] = {}
        with self._turn():
            for topic, numbered in by_topic.items():
                places = self._writer(topic).append([envelope for _, envelope in numbered], self._now_ms())
                appended.update(zip((number for number, _ in numbered), places, strict=True))
        return [appended[number] for number in range(len(appended))]

    def make_durable(self, topics: Iterable[str]) -> None:
        """Return when all that can be read of topics is on disk, whoever wrote it. Raises LogWriteError."""
        try:
            for topic in topics:
                # Segments with a name were synced before they got it.
                path = self._topic_directory(check_name("topic", topic)) / wal.LOG_NAME
                with contextlib.closing(self.disk.append_to(path)) as file:
                    file.sync()
        except (OSError, StorageFailedError) as error:
            raise self._refused(error) from error

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock; say disk errors in our words."""
        try:
            self.disk.make_directory(self.directory)
            lock = self.disk.lock(self.directory, self._lock_seconds)
        except DirectoryInUseError as error:
            raise LogBusyError(
                f"the event log {self.directory} has been kept locked by {error.holder} for "
                f"{self._lock_seconds:g} s",
                "end that process if it hangs, and try again: appending twice does no harm",
            ) from error
        except OSError as error:
            raise self._refused(error) from error
        try:
            yield
        except BaseException as error:
            # What was written may or may not be there: the next turn looks.
            self.close()
            if isinstance(error, OSError | StorageFailedError):
                raise self._refused(error) from error
            raise
        finally:
            lock.release()

    def _refused(self, error: OSError | StorageFailedError) -> LogWriteError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return LogWriteError(
            f"the event log {self.directory} cannot be written: {reason}",
            "make room, or mend the disk or its permissions, and try again: appending twice does no harm",
        )

    def _writer(self, topic: str) -> _Writer:
        writer = self._writers.get(topic)
        if writer is None:
            directory = self._topic_directory(topic)
            self.disk.make_directory(directory)
            writer = self._writers[topic] = _Writer(self.disk, topic, directory, self._segment_bytes)
        return writer

    # -- Reading ---------------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """Return the names of the topics that there are."""
        names = self.disk.list_names(self.topics_directory)
        return [name for name in names if _NAME.fullmatch(name)]

    def reader(self, topic: str, after: int = 0) -> TopicReader:
        """Return a reader of a topic, which need not be there yet, from behind an offset."""
        return TopicReader(self.disk, check_name("topic", topic), self._topic_directory(topic), after)

    def read(self, topics: Sequence[str] | None = None) -> Iterator[Recorded]:
        """Yield the events of topics that there are now; see `LogReader`."""
        return LogReader(self, topics).read()

    @property
    def topics_directory(self) -> Path:
        """Where the topics' folders are."""
        return self.directory / TOPICS_NAME

    def _topic_directory(self, topic: str) -> Path:
        return self.topics_directory / topic


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


# -- One topic --------------------------------------------------------------------------------------------


class _File(NamedTuple):
    """A file of a topic as it was when the folder was listed. The inode tells it under its next name, too."""

    path: Path
    inode: int
    size_bytes: int
    first_lsn: int
    """0 for the active file: only its lines tell."""

    @property
    def is_active(self) -> bool:
        """Whether it is appended to."""
        return self.first_lsn == 0


class _Stop(NamedTuple):
    """Where a topic stops being readable: `good_bytes` of the file are."""

    file: _File
    good_bytes: int
    lsn: int
    """The offset that is due there."""
    problem: str


class TopicReader:
    """Reads a topic on and on: each `read` goes on where the last one ended. Takes no lock."""

    def __init__(self, disk: Disk, topic: str, directory: Path, after: int = 0) -> None:
        self.offset = after
        """The offset of the last event read."""
        self.stop: _Stop | None = None
        """Where the last `read` met something that is no line yet, or never will be."""
        self._disk = disk
        self._topic = topic
        self._directory = directory
        self._inode: int | None = None
        """Of the file that holds the last event read; None before the first was found."""
        self._end_bytes = 0
        """Where that event ends in it."""

    def read(self) -> Iterator[Recorded]:
        """Yield the events behind the last one read, up to where the topic ends. Raises DamagedLogError."""
        for entry in self.read_entries():
            del entry["op"]
            try:
                envelope = Envelope.of(entry)
            except InvalidEventError as error:
                raise self._damaged(f"event {self.offset} is none: {error.message}") from error
            yield Recorded(self._topic, self.offset, envelope)

    def read_entries(self) -> Iterator[dict[str, Any]]:
        """Yield what `read` does as it is in the log, for who needs no checked envelopes."""
        while True:
            files = self._files()
            stop = None
            for file in self._unread(files):
                stop = yield from self._read_file(file, is_oldest=file is files[0])
                if stop is not None:
                    break
            if _names(self._files()) == _names(files):
                break
        if self._inode not in {None, *(file.inode for file in files)}:
            raise self._damaged(f"the file with event {self.offset} went away")
        self.stop = stop
        if stop is not None:
            self._check_torn(stop)

    def _files(self) -> list[_File]:
        """The topic's files at one moment, in order."""
        while True:
            names = self._disk.list_names(self._directory)
            paths = [(one.path, one.first_lsn) for one in wal.list_segments(self._disk, self._directory)]
            found = []
            for path, first_lsn in [*paths, (self._directory / wal.LOG_NAME, 0)]:
                # A topic that nobody wrote to has no file, and for a moment none is active in a rotation.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append(_File(path, status.st_ino, status.st_size, first_lsn))
            # Else a rotation may have hidden a file, now under neither name, and a reader would skip it.
            if self._disk.list_names(self._directory) == names:
                return found

    def _unread(self, files: list[_File]) -> list[_File]:
        """The files that may hold the next event."""
        if self._inode is None:
            starts = [file for file in files if not file.is_active and file.first_lsn <= self.offset + 1]
            return files[files.index(starts[-1]) :] if starts else files
        numbers = [number for number, file in enumerate(files) if file.inode == self._inode]
        return files[numbers[0] :] if numbers else []

    def _read_file(self, file: _File, *, is_oldest: bool) -> Generator[dict[str, Any], None, _Stop | None]:
        position = self._end_bytes if file.inode == self._inode else 0
        if self._inode is None and not file.is_active:
            segment = wal.Segment(file.path, file.first_lsn, file.size_bytes)
            position = wal.find_offset(self._disk, segment, self.offset + 1)
        for raw in self._raw_lines(file, position):
            try:
                line = _parse(raw)
                if self._inode is None and (line.lsn <= self.offset or is_oldest):
                    # The way to where reading begins, or a topic whose oldest segments somebody took away.
                    self.offset = max(self.offset, line.lsn - 1)
                    is_oldest = False
                elif line.lsn != self.offset + 1:
                    raise ValueError(f"it holds event {line.lsn} where {self.offset + 1} is due")  # noqa: TRY301
            except ValueError as error:
                return _Stop(file, position, self.offset + 1, str(error))
            position += len(raw)
            if line.lsn > self.offset:
                self.offset, self._inode, self._end_bytes = line.lsn, file.inode, position
                yield line.entry
        return None

    def _raw_lines(self, file: _File, position: int) -> Iterable[bytes]:
        """The lines of a file; none if it was rotated since it was listed, for the next look finds it."""
        if not file.is_active:
            return wal.read_raw_lines(self._disk, file.path, position, file.size_bytes)
        try:
            data = self._disk.read_range(file.path, position, file.size_bytes - position)
            # Looked at behind the reading: then it was this file that was read, and not its successor.
            if file.path.stat().st_ino == file.inode:
                return BytesIO(data)
        except FileNotFoundError:
            pass
        return ()

    def _check_torn(self, stop: _Stop) -> None:
        """Raise DamagedLogError unless a crash, or a writer at work, explains what cannot be read."""
        where = f"{stop.file.path}, byte {stop.good_bytes}, cannot be read ({stop.problem})"
        if not stop.file.is_active:
            raise self._damaged(f"{where}, in a segment that was synced as a whole")
        for raw in self._raw_lines(stop.file, stop.good_bytes):
            with contextlib.suppress(ValueError):
                line = _parse(raw)
                if line.lsn > stop.lsn and (line.synced_lsn or 0) >= stop.lsn:
                    raise self._damaged(f"{where}, but event {line.lsn} behind it says that it was durable")

    def _damaged(self, problem: str) -> DamagedLogError:
        return DamagedLogError(
            f"topic {self._topic} is damaged: {problem}",
            f"keep {self._directory} elsewhere (mv): the journal of playbooks emits its events again, others "
            "are in what you kept",
        )


def _parse(raw: bytes) -> wal.Line:
    """Return a line of a topic. Raises ValueError saying what is wrong with it."""
    if not raw.endswith(b"\n"):
        raise ValueError("it ends in the middle")
    return wal.parse_line(raw[:-1])


def _names(files: list[_File]) -> list[tuple[str, int]]:
    return [(file.path.name, file.inode) for file in files]


class LogReader:
    """Reads several topics on and on, merged by the time their events happened.

    Of one topic events come in the order of offsets, whatever their times.
    """

    def __init__(
        self, log: EventLog, topics: Sequence[str] | None = None, after: Mapping[str, int] | None = None
    ) -> None:
        """Read the topics named, or whichever there are (None), each from behind an offset."""
        self._log = log
        self._topics = None if topics is None else [check_name("topic", topic) for topic in topics]
        self._after = after or {}
        self._readers: dict[str, TopicReader] = {}

    def read(self) -> Iterator[Recorded]:
        """Yield the events behind those read last, up to where the topics end now. Raises DamagedLogError.

        Read it to its end before the next `read`: what a merge has read ahead is not given again.
        """
        topics = self._log.topics() if self._topics is None else self._topics
        for topic in topics:
            if topic not in self._readers:
                self._readers[topic] = self._log.reader(topic, self._after.get(topic, 0))
        events = (self._readers[topic].read() for topic in topics)
        return merge(*events, key=lambda event: event.envelope.ts_ms)


class _Writer:
    """One topic as this process appends to it. Used under the lock, and only after `catch_up`."""

    def __init__(self, disk: Disk, topic: str, directory: Path, segment_bytes: int) -> None:
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._reader = TopicReader(disk, topic, directory)
        self._wal: Wal | None = None
        self._offsets: dict[str, int] = {}
        """By idempotency key, all that the topic has: 10,000 events take 100 ms to read and 2 MB to keep."""

    def close(self) -> None:
        """Close the active file."""
        if self._wal is not None:
            self._wal.close()
            self._wal = None

    def catch_up(self, now_ms: int) -> Wal:
        """Take in what others appended, and make it durable: they may have been killed before their sync.

        Raises DamagedLogError, OSError, StorageFailedError.
        """
        for entry in self._reader.read_entries():
            self._offsets.setdefault(str(entry.get("idempotency_key")), self._reader.offset)
        if self._reader.stop is not None:
            self.close()
            self._cut(self._reader.stop, now_ms)
        if self._wal is not None and self._wal.last_lsn != self._reader.offset:
            self.close()
        if self._wal is None:
            self._wal = Wal(
                self._disk,
                self._directory,
                next_lsn=self._reader.offset + 1,
                segment_bytes=self._segment_bytes,
            )
            self._wal.sync()
            self._wal.durable_lsn = self._wal.last_lsn
        return self._wal

    def append(self, envelopes: Sequence[Envelope], now_ms: int) -> list[Appended]:
        """Append what is new, durably. Raises as `catch_up`, which comes first."""
        log = self.catch_up(now_ms)
        places: list[Appended] = []
        new: dict[str, int] = {}
        bodies: list[bytes] = []
        for envelope in envelopes:
            key = envelope.idempotency_key
            known = self._offsets.get(key) or new.get(key)
            if known is None:
                bodies.append(_ENTRY_HEAD + envelope.encode()[1:])
                new[key] = log.last_lsn + len(bodies)
            places.append(Appended(known or new[key], known is None))
        if bodies:
            log.append(bodies, now_ms)
            log.sync()
            log.durable_lsn = log.last_lsn
            self._offsets.update(new)
        if log.is_full:
            # The events are safe; a disk without room for another name is asked again by the next append.
            with contextlib.suppress(OSError):
                log.rotate()()
        return places

    def _cut(self, stop: _Stop, now_ms: int) -> None:
        """Copy a torn tail to a folder, and only then take it off the log."""
        folder = self._directory / CUT_NAME
        self._disk.make_directory(folder)
        rest = self._disk.read_range(stop.file.path, stop.good_bytes, stop.file.size_bytes - stop.good_bytes)
        self._disk.write_file(folder / f"{now_ms}-{wal.LOG_NAME}-from-lsn-{stop.lsn}", [rest])
        with contextlib.closing(self._disk.append_to(stop.file.path)) as file:
            file.truncate(stop.good_bytes)
            file.sync()
