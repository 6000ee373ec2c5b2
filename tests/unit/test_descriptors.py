"""Each call that needs a descriptor is refused one once: nothing is left half done."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from handmade import Node, add, read, state_of

from karma.service.child import run_in_child
from karma.storage import wal
from karma.storage.disk import Disk

_NEEDING_A_DESCRIPTOR = ((os, "open"), (os, "listdir"), (io, "open"))
_CALLS = (*_NEEDING_A_DESCRIPTOR, (os, "replace"), (os, "unlink"), (os, "mkdir"))


@pytest.fixture(autouse=True)
def _quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing: only a power cut would show it, and these tests do it thousands of times."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _fd: None)


class Refusals:
    """Lets one call be refused as if the process had no descriptor left; counts the calls."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0

    @property
    def has_struck(self) -> bool:
        return self.calls >= self.at

    @contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module, name in _CALLS:
                patch.setattr(module, name, self._counted(getattr(module, name)))
            yield

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return call(*arguments, **more)

        return counted


def in_use(directory: Path) -> Node:
    """Return a node with segments, retained ones too, and snapshots."""
    node = Node(directory)
    for key in range(2):
        node.write(add("a", key), add("b", key))
        node.snapshot_all(keep_bytes=1 << 20)
    node.write(add("a", 7))
    node.rotate()
    node.write(add("c", 8))
    return node


def assert_whole(node: Node) -> None:
    """Compare what a node can still do and show with what it was given."""
    node.write(add("a", 9))
    node.snapshot_all(keep_bytes=1 << 20)
    node.write(add("b", 9))
    lsns = [body.lsn for body in node.wal.read(node.wal.first_lsn - 1)]
    assert lsns == list(range(1, node.wal.last_lsn + 1))
    assert state_of(read(node.directory).store) == node.state
    assert not [path for path in node.directory.rglob(".*.tmp") if path.stat().st_size]


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_snapshot_that_is_refused_a_descriptor_anywhere_is_made_up_for_by_the_next(
    tmp_path: Path, is_locked: bool
) -> None:
    for at in range(1, 1000):
        directory = tmp_path / str(at)
        node, refusals = in_use(directory), Refusals(at)
        lock = node.disk.lock(directory) if is_locked else None
        with refusals.installed(), suppress(OSError):
            node.snapshot_all(keep_bytes=1 << 20)
        assert_whole(node)
        if lock is not None:
            lock.release()
        if not refusals.has_struck:
            break
    assert at > 40


def test_a_rename_that_cannot_be_synced_does_not_happen(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    opened = os.open

    def refuse_folders(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse_folders)
        for change in (
            lambda: Disk().rename(old, new),
            lambda: Disk().write_file(old, [b"y"]),
            lambda: Disk().append_to(new),
            lambda: Disk().make_directory(new),
        ):
            with pytest.raises(OSError, match="Too many open files"):
                change()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_text() == "x"


def test_a_locked_folder_needs_no_descriptor_for_a_rename(tmp_path: Path) -> None:
    disk = Disk()
    lock = disk.lock(tmp_path)
    (tmp_path / "old").write_text("x")

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        disk.rename(tmp_path / "old", tmp_path / "new")
    lock.release()
    assert (tmp_path / "new").read_text() == "x"


def test_a_segment_is_read_where_it_is_although_its_index_could_not_follow(tmp_path: Path) -> None:
    node = in_use(tmp_path / "data")

    class Unlisted(Disk):
        def list_names(self, directory: Path) -> list[str]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    node.rotate()
    moved = node.wal.truncate(node.wal.last_lsn, 1 << 20)
    node.wal._disk = Unlisted()
    with pytest.raises(OSError, match="Too many open files"):
        moved()
    node.wal._disk = Disk()
    for segment in [*node.wal.retained, *node.wal.segments]:
        assert segment.path.exists()
    assert wal.LOG_NAME in node.disk.list_names(node.directory)


def open_fds() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def test_a_child_closes_what_lies_above_a_limit_that_was_lowered(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file:
        high = os.dup2(file.fileno(), soft - 1)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
            left = asyncio.run(run_in_child(open_fds))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(high)
    assert high not in left
