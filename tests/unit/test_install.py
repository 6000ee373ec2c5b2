"""Fetched data take the place of a directory's, however often that is interrupted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import NOW, Node, add, read, state_of

from karma.core.epochs import Epoch, History
from karma.errors import DamagedDataError
from karma.offline.fence import fence
from karma.storage import install, node_file, snapshot, wal
from karma.storage.disk import Disk

OLD = node_file.Node("me", "ours", History((Epoch(1, "a", 1),)), role="slave", must_rebuild=True)
NEW = replace(OLD, history=History((Epoch(1, "a", 1), Epoch(2, "b", 4))), must_rebuild=False)
ASIDE = f"discarded-{NOW}"


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills are tried here, not power cuts: the thousand syncs would take a minute."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(f"os.{name}", lambda _fd: None)


class KilledError(Exception):
    """The process ended here."""


class CountingDisk(Disk):
    """A disk on which the process is killed before its nth change, or behind it."""

    def __init__(self, left: int = 10**9, *, is_done: bool = False) -> None:
        self.left = left
        self.is_done = is_done

    def _count(self) -> bool:
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.is_done):
            raise KilledError
        return self.left == 0

    def move(self, old: Path, new: Path) -> None:
        is_last = self._count()
        super().move(old, new)
        if is_last:
            raise KilledError

    def write_file(self, path: Path, chunks: Iterable[bytes]) -> int:
        is_last = self._count()
        # A kill in the middle leaves the temporary file; its rename counts as a change of its own.
        path.with_name(f".{path.name}.tmp").write_bytes(b"half")
        size_bytes = super().write_file(path, chunks)
        if is_last:
            raise KilledError
        return size_bytes

    def remove(self, path: Path) -> None:
        is_last = self._count()
        super().remove(path)
        if is_last:
            raise KilledError

    def make_directory(self, path: Path) -> None:
        is_last = self._count()
        super().make_directory(path)
        if is_last:
            raise KilledError

    def sync_directory(self, directory: Path) -> None:
        is_last = self._count()
        super().sync_directory(directory)
        if is_last:
            raise KilledError


def fill(directory: Path) -> Path:
    """Make a directory with data, and others that are to take their place; returns that of the others."""
    old = Node(directory)
    for key in range(5):
        old.write(add("old", key))
        old.rotate()
    old.snapshot_all(keep_bytes=10**6)
    old.write(add("old", 9))
    old.wal.close()
    snapshot.write_checkpoints(Disk(), directory, [{"source": "p", "updated_at_unix": 1}])
    node_file.save(Disk(), directory, OLD)
    new = Node(directory / install.INCOMING_NAME)
    new.write(add("new", 1), add("new", 2))
    new.snapshot_all()
    new.write(add("new", 3))
    new.wal.close()
    node_file.save(Disk(), new.directory, NEW)
    return new.directory


def files(directory: Path) -> dict[str, bytes]:
    """Return the content of all files below a directory, but for the lock and temporary ones."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(".tmp")
    }


def expected(directory: Path, incoming: Path) -> dict[str, bytes]:
    """Return what a directory is to hold in the end."""
    new = files(incoming)
    old = {
        f"{ASIDE}/{name}": data
        for name, data in files(directory).items()
        if not name.startswith(install.INCOMING_NAME) and name != node_file.NODE_NAME
    }
    return old | new


def test_new_data_come_in_and_the_old_ones_are_kept(tmp_path: Path) -> None:
    incoming = fill(tmp_path)
    wanted = expected(tmp_path, incoming)
    install.commit(Disk(), tmp_path, ASIDE)
    assert install.finish(Disk(), tmp_path) == ASIDE
    assert files(tmp_path) == wanted
    assert f"{ASIDE}/retained/{wal.segment_name(1)}" in wanted
    assert read(tmp_path).last_lsn == 3
    assert node_file.load(Disk(), tmp_path) == NEW
    assert state_of(read(tmp_path / ASIDE).store)["old"].keys() == {0, 1, 2, 3, 4, 9}
    assert install.finish(Disk(), tmp_path) is None


def test_what_is_not_complete_stays_out(tmp_path: Path) -> None:
    fill(tmp_path)
    before = files(tmp_path)
    assert install.finish(Disk(), tmp_path) is None
    assert files(tmp_path) == before


@pytest.mark.parametrize("is_done", [False, True])
def test_a_kill_at_any_change_is_made_up_for_by_the_next_start(tmp_path: Path, is_done: bool) -> None:
    at = 0
    while True:
        at += 1
        directory = tmp_path / str(at)
        incoming = fill(directory)
        before, wanted = files(directory), expected(directory, incoming)
        disk = CountingDisk(at, is_done=is_done)
        try:
            install.commit(disk, directory, ASIDE)
            install.finish(disk, directory)
        except KilledError:
            pass
        else:
            break
        found = files(directory)
        if f"{install.INCOMING_NAME}/{install.MANIFEST_NAME}" not in found and incoming.exists():
            # Either it did not begin, or it came to its end.
            assert found in (before, wanted)
        # A second kill, at every place as well.
        for again in range(1, 60, 7):
            try:
                install.finish(CountingDisk(again, is_done=is_done), directory)
            except KilledError:
                continue
            break
        install.finish(Disk(), directory)
        assert files(directory) in (before, wanted)
        if found != before:
            assert files(directory) == wanted
            assert node_file.load(Disk(), directory) == NEW
    assert at > 30


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    incoming = fill(tmp_path)
    for content in (b"{", b"{}", b'{"aside":1,"is_cleared":false}', b'{"aside":"x","is_cleared":1}'):
        (incoming / install.MANIFEST_NAME).write_bytes(content)
        with pytest.raises(DamagedDataError):
            install.finish(Disk(), tmp_path)


def test_data_set_aside_never_meet_older_ones_by_their_name(tmp_path: Path) -> None:
    first = install.discarded_folder(Disk(), tmp_path, NOW)
    assert first.name == ASIDE
    first.mkdir()
    second = install.discarded_folder(Disk(), tmp_path, NOW)
    assert second != first
    second.mkdir()
    assert install.discarded_folder(Disk(), tmp_path, NOW) not in (first, second)


def test_a_fence_outlives_what_a_kill_had_interrupted(tmp_path: Path) -> None:
    fill(tmp_path)
    install.commit(Disk(), tmp_path, ASIDE)
    fence(Disk(), tmp_path, 9, "failover", NOW * 1000, lambda: "id")
    install.finish(Disk(), tmp_path)
    found = node_file.load(Disk(), tmp_path)
    assert found is not None
    assert found.fence is not None
    assert (found.fence.epoch, found.history) == (9, NEW.history)
