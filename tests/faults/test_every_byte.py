"""Every byte: a data directory in which one byte is another, or a file is cut short, at every place.

A real server fills a directory with all the files that it knows and is killed. Then each byte of each file
is changed and each file cut at each byte, and a start on that must either refuse, naming the file and what to
run next, or come to a state that the server was in: all of it, or what is left when the log's torn tail is
cut off, and then it says so. `karma check` must notice whatever a start refuses or cuts.

    pytest tests/faults/test_every_byte.py --cycles 1 --seed 7

Each seed is a directory, and changes one bit of each byte, another one in the next; eight are a full run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from faults.power import Contents, contents_of, write_out
from faults.reopen import State, read, state_of, verdict
from faults.workload import Workload
from harness import Server

from karma.core.replay import Replay
from karma.core.store import Store
from karma.errors import DamagedDataError
from karma.offline.reading import iterate_log
from karma.storage import install, node_file, snapshot, wal
from karma.storage.disk import LOCK_NAME, Disk
from karma.storage.node_file import Node

CHECK_STEP = 8
"""`karma check` takes three times as long as a start: it looks at every so-manieth damage."""


class MemoryDisk(Disk):
    """Reads files that exist in memory only: a hundred thousand directories, each different by a byte."""

    def __init__(self, directory: Path, contents: Contents) -> None:
        self._root = directory
        self.contents = contents
        self.names: dict[str, list[str]] = {}
        for name in contents:
            parent, _, leaf = name.rpartition("/")
            self.names.setdefault(parent, []).append(leaf)

    def _name(self, path: Path) -> str:
        # os.path is several times as fast as pathlib here, and this is called millions of times.
        return os.fspath(path)[len(os.fspath(self._root)) + 1 :]

    def _data(self, path: Path) -> bytes:
        data = self.contents.get(self._name(path))
        if data is None:
            raise FileNotFoundError(path)
        return data

    def read_file(self, path: Path) -> bytes:
        return self._data(path)

    def read_range(self, path: Path, offset_bytes: int, length_bytes: int) -> bytes:
        return self._data(path)[offset_bytes : offset_bytes + length_bytes]

    @contextlib.contextmanager
    def map_file(self, path: Path) -> Iterator[Any]:
        yield self._data(path)

    def size_bytes(self, path: Path) -> int:
        return len(self._data(path))

    def list_names(self, directory: Path) -> list[str]:
        return sorted(self.names.get(self._name(directory), []))


@dataclass(frozen=True, slots=True)
class Start:
    """What a start would have: the data, the node, the checkpoints; the cut tail's LSN."""

    last_lsn: int
    state: State
    node: Node | None
    checkpoints: list[dict[str, Any]]
    cut_lsn: int | None


def start(disk: Disk, directory: Path, now_unix: int) -> Start:
    """Read a directory as a start does. Raises DamagedDataError."""
    install.read_manifest(disk, directory)
    node = node_file.load(disk, directory)
    recovered, state = read(directory, now_unix, disk)
    checkpoints = snapshot.load_checkpoints(disk, directory)
    tail = recovered.tail
    return Start(recovered.last_lsn, state, node, checkpoints, tail.lsn if tail else None)


def fill(directory: Path, seed: int) -> None:
    """Let a server make every kind of file, and kill it."""
    random = Random(seed)
    workload = Workload(random)
    options: dict[str, Any] = {"wal_segment_bytes": 600, "dump_retention_per_tree": 1 + seed % 2}
    with Server(directory, max_request_bytes=65_536, **options) as server, server.connect() as connection:
        # A follower, for which log is kept.
        connection.ask("replication.entries", after_lsn=0, node_id="follower")
        connection.ask("ingest.begin", stream_id="open", mode="replace_series")
        connection.ask("ingest.chunk", stream_id="open", series="a", chunk_seq=1, items=[[1, 20260505, 4]])
        for part in range(3):
            for _ in range(3):
                fields = workload.next()
                if not connection.call(**fields)["success"]:
                    workload.refused(fields)
            connection.ask("counter.increment", series="a", key=1, idempotency_key=f"key {part}")
            if part < 2:
                connection.ask("snapshot.create_all")
        connection.ask("recovery.checkpoint", source="pipeline", offset=123_456, event_id="12:34")
        for key in range(5):
            connection.ask("counter.increment", series="a", key=key, value=100 + key)
        server.kill()


@pytest.fixture
def filled(seed: int, memory_path: Path) -> tuple[Path, Contents]:
    """A directory as a killed server left it, and what is in it."""
    directory = memory_path / "data"
    fill(directory, seed)
    return directory, contents_of(directory)


class Judge:
    """Knows the states that a directory went through, and says whether a start on a damaged one may be."""

    def __init__(self, directory: Path, contents: Contents) -> None:
        self.directory, self.contents = directory, contents
        self.now_unix = int(time.time())
        self.disk = MemoryDisk(directory, dict(contents))
        self.whole = start(self.disk, directory, self.now_unix)
        assert self.whole.cut_lsn is None
        # Log is kept for a follower: it begins with the first entry.
        self.log = list(iterate_log(self.disk, directory))
        assert [line.lsn for line in self.log] == list(range(1, self.whole.last_lsn + 1))
        store = Store()
        replay = Replay(store)
        self.states = [state_of(store)]
        for line in self.log:
            replay.apply(line.lsn, line.entry, (line.ts_ms or 0) // 1000)
            self.states.append(state_of(store))
        assert self.whole.state == self.states[-1]
        logs = [name for name in contents if name.startswith(wal.LOG_NAME) and contents[name]]
        self.log_end = max((name for name in logs if name.endswith(".segment")), default="")
        if contents[wal.LOG_NAME]:
            self.log_end = wal.LOG_NAME
        self.figures: Counter[str] = Counter()

    def judge(self, name: str, data: bytes) -> None:
        """Look at the directory with other bytes in one file."""
        self.disk.contents[name] = data
        try:
            self._judge(name)
        finally:
            self.disk.contents[name] = self.contents[name]

    def _judge(self, name: str) -> None:
        whole = self.whole
        self.figures["damages"] += 1
        try:
            found = start(self.disk, self.directory, self.now_unix)
        except DamagedDataError as error:
            self.figures["refused"] += 1
            self._assert_clear(name, error)
            self._assert_noticed("damaged")
            return
        assert found.node == whole.node
        assert found.checkpoints == whole.checkpoints
        if found.cut_lsn is None and found.last_lsn == whole.last_lsn:
            self.figures["without effect"] += 1
            assert found.state == whole.state
            self._assert_read_alike(name)
            if not self._is_harmless(name):
                self._assert_noticed("warning")
            return
        # The log's end is the one place where damage looks like a crash.
        self.figures["a prefix"] += 1
        assert name == self.log_end
        assert found.state == self.states[found.last_lsn]
        if found.cut_lsn is not None:
            assert found.cut_lsn == found.last_lsn + 1
            self._assert_noticed("warning")

    def _assert_noticed(self, expected: str) -> None:
        if self.figures["damages"] % CHECK_STEP == 0:
            self.figures["checked"] += 1
            assert verdict(self.directory, self.now_unix, self.disk) == expected

    def _assert_clear(self, name: str, error: DamagedDataError) -> None:
        text = str(error)
        assert str(error.file) in text
        assert f"--directory {self.directory}" in text
        assert "karma check" in text or "karma repair" in text
        if name.endswith(".segment"):
            assert error.offset_bytes is not None
            assert error.lsn is not None

    def _assert_read_alike(self, name: str) -> None:
        """Read what followers are served from: an index never leads behind an entry, no entry is another."""
        if name.endswith(".idx"):
            name = name.removesuffix(".idx")
        if not name.endswith(".segment"):
            return
        path = self.directory / name
        segment = wal.Segment(path, 0, self.disk.size_bytes(path))
        for line in self.log:
            offset = wal.find_offset(self.disk, segment, line.lsn)
            raw = next(wal.read_raw_lines(self.disk, path, offset, segment.size_bytes), b"")
            with contextlib.suppress(ValueError):
                assert offset == 0 or wal.parse_body(raw[:-1]).lsn <= line.lsn
        for raw in wal.read_raw_lines(self.disk, path, 0, segment.size_bytes):
            with contextlib.suppress(ValueError):
                body = wal.parse_body(raw[:-1])
                assert orjson.loads(body.json) == self.log[body.lsn - 1].entry

    def _is_harmless(self, name: str) -> bool:
        """Whether other bytes say the same: in the lock, in white space, in an index with fewer points."""
        now, before = self.disk.contents[name] or b"", self.contents[name] or b""
        is_shorter_index = name.endswith(".idx") and before.startswith(now)
        return name == LOCK_NAME or now.split() == before.split() or is_shorter_index


@contextlib.contextmanager
def explained(seed: int, harm: str) -> Iterator[None]:
    """Let a failure tell what was done to which byte."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{harm}\nseed {seed}: repeat it with pytest {__file__} --cycles 1 --seed {seed}")
        raise


@pytest.mark.cycles(ci=1, full=8)
@pytest.mark.timeout(600)
def test_a_byte_that_is_another_is_noticed_or_does_not_matter(
    seed: int, filled: tuple[Path, Contents], add_figures: Callable[[dict[str, int]], None]
) -> None:
    directory, contents = filled
    judge = Judge(directory, contents)
    for name, data in contents.items():
        for at in range(len(data or b"")):
            assert data is not None
            changed = bytes([data[at] ^ 1 << (seed + at) % 8])
            with explained(seed, f"byte {at} of {name}: {data[at : at + 1]!r} became {changed!r}"):
                judge.judge(name, data[:at] + changed + data[at + 1 :])
    add_figures({"bytes": sum(len(data or b"") for data in contents.values()), **judge.figures})


@pytest.mark.cycles(ci=1, full=8)
@pytest.mark.timeout(600)
def test_a_file_cut_short_anywhere_is_noticed_or_a_correct_prefix(
    seed: int, filled: tuple[Path, Contents], is_full: bool, add_figures: Callable[[dict[str, int]], None]
) -> None:
    directory, contents = filled
    judge = Judge(directory, contents)
    for name, data in contents.items():
        is_log = wal.LOG_NAME in name
        for size in range(0, len(data or b""), 1 if is_full or is_log else 5):
            assert data is not None
            with explained(seed, f"{name}, {len(data)} bytes long, cut at {size}"):
                judge.judge(name, data[:size])
    add_figures({"files": len(contents), **judge.figures})


@pytest.mark.cycles(ci=1, full=1)
def test_what_was_cut_off_is_kept_and_said(
    seed: int, filled: tuple[Path, Contents], memory_path: Path
) -> None:
    directory, contents = filled
    judge = Judge(directory, contents)
    log = contents[judge.log_end] or b""
    random = Random(seed)
    ends = [size for size in range(1, len(log)) if log[size - 1 : size] != b"\n"]
    for size in random.sample(ends, 3):
        harmed = memory_path / f"cut at {size}"
        write_out({**contents, judge.log_end: log[:size]}, harmed)
        with Server(harmed) as server:
            assert "torn tail was cut" in server.wait_for_event("repaired")["message"]
            (kept,) = (harmed / "cut").glob(f"*{judge.log_end}*")
            assert kept.read_bytes() == log[log.rfind(b"\n", 0, size) + 1 : size]
            lsn = server.ask("system.stats")["wal_current_lsn"]
            assert lsn < judge.whole.last_lsn
            assert "karma_torn_tails_cut_total 1\n" in server.ask("system.metrics")
            assert set(server.ask("tree.list")) == set(judge.states[lsn]["series"])


def test_a_manifest_that_is_another_is_refused(tmp_path: Path) -> None:
    incoming = tmp_path / install.INCOMING_NAME
    incoming.mkdir()
    install.commit(Disk(), tmp_path, "discarded-1")
    contents = contents_of(tmp_path)
    name = f"{install.INCOMING_NAME}/{install.MANIFEST_NAME}"
    data = contents[name] or b""
    for at in range(len(data)):
        for changed in (
            data[:at],
            *(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for bit in range(8)),
        ):
            with pytest.raises(DamagedDataError):
                install.read_manifest(MemoryDisk(tmp_path, {**contents, name: changed}), tmp_path)
