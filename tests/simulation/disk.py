"""A disk in memory that keeps what was synced, and of the rest what the seed leaves.

`Platter` is what a crash spares. It knows every file twice: as the page cache shows it, and as it is durable,
with the operations in between. Names have operations of their own, made durable by `sync_directory`. A power
cut applies some of these operations in the order of the journal, tears the last write, and may leave zeros
where a block of a file did not arrive. A kill loses nothing.

`MemoryDisk` is `karma.storage.disk.Disk` over it, for one process: it injects faults, notes what is done in
the trace, and does nothing more once its process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from simulation.loop import World

from karma.errors import DirectoryInUseError, StorageFailedError
from karma.service.child import ChildFailedError
from karma.storage.disk import AppendFile, DirectoryLock, Disk

_BLOCK_BYTES = 512


class ProcessEnded(BaseException):
    """Raised where code of a dead process would touch the world."""


class Inode:
    """A file's content: `data` as it is seen, `durable` as a power cut leaves it, `unsynced` in between."""

    __slots__ = ("data", "durable", "unsynced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes | None]] = []
        """Writes as (offset, bytes), truncations as (size, None)."""

    def write(self, offset: int, data: bytes) -> None:
        self.unsynced.append((offset, data))
        _apply(self.data, offset, data)

    def truncate(self, size_bytes: int) -> None:
        self.unsynced.append((size_bytes, None))
        _apply(self.data, size_bytes, None)

    def sync(self) -> None:
        for change in self.unsynced:
            _apply(self.durable, *change)
        self.unsynced.clear()


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


class Platter:
    """Files and folders by their path; what a crash leaves of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.names: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.unsynced_names: list[tuple[Collection[str], dict[str, Inode | None]]] = []
        """Changes of names: the folders concerned, and what each path is afterwards."""
        self.folders: dict[str, int] = {"/": 0}
        """When a name last came or went, as a count. Folders are durable at once: few, and made once."""
        self.changes = 0
        self.is_locked = False
        self.has_lost = False
        """Whether a power cut came, until somebody looks."""

    def rename(self, changes: dict[str, Inode | None], *parents: str) -> None:
        """Change what names stand for, all at once; `parents` are the folders of a folder that moves."""
        self.changes += 1
        folders = dict.fromkeys([*parents, *(path.rpartition("/")[0] for path in changes)])
        for folder in folders:
            self.folders[folder] = self.changes
        self._put(self.names, changes)
        self.unsynced_names.append((folders, changes))

    @staticmethod
    def _put(names: dict[str, Inode], changes: dict[str, Inode | None]) -> None:
        for path, inode in changes.items():
            if inode is None:
                names.pop(path, None)
            else:
                names[path] = inode

    def sync_directory(self, folder: str) -> None:
        """Make a folder's names durable. The journal commits what came before along with it."""
        last = max(
            [n for n, (folders, _) in enumerate(self.unsynced_names, 1) if folder in folders], default=0
        )
        for _, changes in self.unsynced_names[:last]:
            self._put(self.durable_names, changes)
        del self.unsynced_names[:last]

    def cut_power(self) -> None:
        """Leave what is durable, and of the rest what the seed chooses."""
        random = self.world.random
        self.has_lost = True
        mode = random.choice(("nothing", "order", "subset"))
        left = 0 if mode == "nothing" else random.randint(0, len(self.unsynced_names))
        for _, changes in self.unsynced_names[:left]:
            self._put(self.durable_names, changes)
        self.unsynced_names.clear()
        self.names = dict(self.durable_names)
        for inode in {id(inode): inode for inode in self.names.values()}.values():
            self._lose_some(inode, mode)
        self.world.note("power cut", mode, left)

    def _lose_some(self, inode: Inode, mode: str) -> None:
        random, unsynced = self.world.random, inode.unsynced
        left = 0 if mode == "nothing" else random.randint(0, len(unsynced))
        for offset, data in unsynced[:left]:
            if data is None or mode == "order":
                _apply(inode.durable, offset, data)
                continue
            for start in range(0, len(data), _BLOCK_BYTES):
                part = data[start : start + _BLOCK_BYTES]
                # The file's size is known, a block of it may not have arrived.
                _apply(inode.durable, offset + start, part if random.random() < 0.7 else bytes(len(part)))
        if left < len(unsynced) and unsynced[left][1] is not None and mode != "nothing":
            offset, data = unsynced[left]
            assert data is not None
            _apply(inode.durable, offset, data[: random.randint(0, len(data))])
        unsynced.clear()
        inode.data = bytearray(inode.durable)


class MemoryDisk(Disk):
    """The disk as one process meets it."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.world = platter.world
        self.is_alive = True
        self.is_full = False
        self.error_rate = 0.0
        self.sync_failure_rate = 0.0
        self.slowest_sync_seconds = 0.0
        self.refuses: tuple[str, ...] = ()
        """Operations that fail, by how the trace names them or the beginning of that."""
        self.faults = 0
        self._recorded: list[Callable[[], None]] | None = None

    # -- Faults --------------------------------------------------------------------------------------------

    def _may_fail(self, what: str, *, needs_space: bool = False) -> None:
        """Raise what a disk in trouble raises."""
        if not self.is_alive:
            raise ProcessEnded
        if what.startswith(self.refuses or "nothing") or (needs_space and self.is_full):
            self.faults += 1
            self.world.note("disk full", what)
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.error_rate and self.world.chance(self.error_rate):
            self.faults += 1
            self.world.note("disk error", what)
            raise OSError(errno.EIO, "Input/output error")

    def _do(self, change: Callable[..., None], *arguments: Any) -> None:
        """Change the platter; a child's changes are kept in order, to happen one by one."""
        if not self.is_alive:
            raise ProcessEnded
        change(*arguments)
        if self._recorded is not None:
            self._recorded.append(lambda: change(*arguments))

    def _sync(self, change: Callable[..., None], *arguments: Any, what: str) -> None:
        if self.sync_failure_rate and self.world.chance(self.sync_failure_rate):
            self.faults += 1
            self.world.note("sync fails", what)
            raise OSError(errno.EIO, "Input/output error")
        if self.slowest_sync_seconds:
            self.world.now += self.world.random.random() * self.slowest_sync_seconds
        self._do(change, *arguments)

    async def run_in_child(self, work: Callable[[], Any], keep_fds: Collection[int] = ()) -> Any:
        """Do a child's work: it sees memory as it is now, and its files come to be one by one."""
        platter, world = self.platter, self.world
        before = (dict(platter.names), dict(platter.durable_names), list(platter.unsynced_names))
        folders, inodes = dict(platter.folders), set(map(id, platter.names.values()))
        recorded: list[Callable[[], None]] = []
        self._recorded = recorded
        result = error = None
        try:
            result = work()
        except Exception as problem:  # noqa: BLE001 - as in the real one
            error = f"{type(problem).__name__}: {problem}"
        finally:
            self._recorded = None
        for path, inode in platter.names.items():
            if id(inode) not in inodes:
                world.note("child writes", path, len(inode.data))
                inode.data.clear()
                inode.durable.clear()
                inode.unsynced.clear()
        platter.names, platter.durable_names, platter.unsynced_names = before
        platter.folders = folders
        for change in recorded:
            if world.chance(0.3):
                await asyncio.sleep(world.random.random() * 0.01)
            self._do(change)
        if error is not None:
            raise ChildFailedError(error)
        return orjson.loads(orjson.dumps({"result": result}))["result"]

    # -- As the real one -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, *_folders: Path) -> Iterator[None]:
        """Hold no descriptors: there are none."""
        yield

    def append_to(self, path: Path) -> AppendFile:
        """Open a file for appending, creating it durably if need be."""
        name = str(path)
        if name not in self.platter.names:
            self._may_fail(f"create {name}", needs_space=True)
            self._do(self.platter.rename, {name: Inode()})
            self.sync_directory(path.parent)
        return MemoryFile(self, path, self.platter.names[name])

    def _write_temporary(self, path: Path, chunks: Iterable[bytes]) -> int:
        """Write a file under its temporary name and sync it; returns its size in bytes."""
        temporary = path.with_name(f".{path.name}.tmp")
        inode, size_bytes = Inode(), 0
        self._may_fail(f"create {temporary}")
        self._do(self.platter.rename, {str(temporary): inode})
        for chunk in chunks:
            self._may_fail(f"write {temporary}", needs_space=True)
            self._do(inode.write, size_bytes, bytes(chunk))
            size_bytes += len(chunk)
        self._sync(inode.sync, what=str(temporary))
        self.world.note("write_file", path, size_bytes)
        return size_bytes

    def _find(self, path: Path) -> Inode:
        if not self.is_alive:
            raise ProcessEnded
        inode = self.platter.names.get(str(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return inode

    def sync_file(self, path: Path) -> None:
        """Make a file's content durable without writing to it."""
        try:
            self._sync(self._find(path).sync, what=str(path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageFailedError(f"fsync of {path} failed: {error.strerror}") from error

    def read_file(self, path: Path) -> bytes:
        """Return a whole file."""
        return bytes(self._find(path).data)

    def read_range(self, path: Path, offset_bytes: int, length_bytes: int) -> bytes:
        """Return up to so many bytes of a file from an offset."""
        return bytes(self._find(path).data[offset_bytes : offset_bytes + length_bytes])

    @contextlib.contextmanager
    def map_file(self, path: Path) -> Iterator[Any]:
        """Give a whole file's bytes."""
        yield bytes(self._find(path).data)

    def move(self, old: Path, new: Path) -> None:
        """Rename a file or a folder; it is durable once both folders are synced."""
        changes: dict[str, Inode | None] = {}
        folders = self.platter.folders
        if str(old) in folders:
            for path, inode in self.platter.names.items():
                if path.startswith(f"{old}/"):
                    changes |= {path: None, str(new) + path[len(str(old)) :]: inode}
        else:
            changes = {str(old): None, str(new): self._find(old)}
        self._may_fail(f"rename {old}")
        self._do(self.platter.rename, changes, str(old.parent), str(new.parent))
        if str(old) in folders:
            folders[str(new)] = folders.pop(str(old))

    def remove(self, path: Path) -> None:
        """Remove a file that is not needed any more; a name that is gone already is fine."""
        if str(path) in self.platter.names:
            self._may_fail(f"remove {path}")
            self._do(self.platter.rename, {str(path): None})

    def make_directory(self, path: Path) -> None:
        """Create a folder durably, with its parents; one that exists is fine."""
        if str(path) not in self.platter.folders:
            self._may_fail(f"mkdir {path}", needs_space=True)
            self.platter.folders.setdefault(str(path), self.platter.changes)

    def list_names(self, directory: Path) -> list[str]:
        """Return the names in a folder, sorted; a missing folder has none."""
        prefix = f"{directory}/"
        size = len(prefix)
        paths = [*self.platter.names, *self.platter.folders]
        return sorted(
            path[size:]
            for path in paths
            if path.startswith(prefix) and "/" not in path[size:] and path[size:]
        )

    def changed_ns(self, directory: Path) -> int:
        """Return when a name last came to or left a folder, as a count."""
        return self.platter.folders[str(directory)]

    def size_bytes(self, path: Path) -> int:
        """Return a file's size."""
        return len(self._find(path).data)

    def sync_directory(self, directory: Path) -> None:
        """Make the names in a folder durable. Raises StorageFailedError when the disk cannot."""
        try:
            self._sync(self.platter.sync_directory, str(directory), what=str(directory))
        except OSError as error:
            raise StorageFailedError(f"fsync of the folder {directory} failed: {error.strerror}") from error

    def space(self, directory: Path) -> tuple[int, int]:
        """Return (free, total) bytes."""
        return 0 if self.is_full else 1 << 30, 1 << 40

    def resident_bytes(self) -> int:
        """Return a number."""
        return 1 << 26

    def is_in_place(self, directory: Path) -> bool:
        """Return True: nothing moves the folder of a process here."""
        return str(directory) in self.platter.folders

    def lock(self, directory: Path, wait_seconds: float = 0.0) -> DirectoryLock:
        """Take a data directory for this process, at once or not at all."""
        if self.platter.is_locked:
            raise DirectoryInUseError(directory, "another process of the simulation")
        self.platter.is_locked = True
        return MemoryLock(self.platter)


class MemoryFile(AppendFile):
    """A file of a `MemoryDisk` that is appended to."""

    def __init__(self, disk: MemoryDisk, path: Path, inode: Inode) -> None:
        self.path = path
        self.size_bytes = len(inode.data)
        self._disk = disk
        self._inode = inode
        self._begin_syncs()

    def write(self, data: bytes) -> None:
        """Append all of the data, or raise with the file cut back."""
        disk = self._disk
        try:
            disk._may_fail(f"write {self.path}", needs_space=True)
        except OSError:
            part = data[: disk.world.random.randint(0, len(data))]
            self._inode.write(len(self._inode.data), part)
            self.truncate(self.size_bytes)
            raise
        disk._do(self._inode.write, len(self._inode.data), data)
        self.size_bytes += len(data)
        disk.world.note("append", self.path, self.size_bytes)

    def _sync_data(self) -> None:
        try:
            self._disk._sync(self._inode.sync, what=str(self.path))
        except OSError:
            # As a kernel does: what it could not write it forgets, and the next sync says nothing of it.
            self._inode.unsynced.clear()
            raise
        self._disk.world.note("sync", self.path, self.size_bytes)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file to a size. Raises StorageFailedError when the disk refuses even that."""
        disk = self._disk
        if disk.error_rate and disk.world.chance(disk.error_rate / 10):
            raise StorageFailedError(f"cannot cut {self.path} back after a failed write")
        disk._do(self._inode.truncate, size_bytes)
        self.size_bytes = size_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return up to so many bytes from an offset."""
        return bytes(self._inode.data[offset_bytes : offset_bytes + length_bytes])

    @property
    def fd(self) -> int:
        """Return a number: no child inherits anything here."""
        return -1

    def close(self) -> None:
        """Do nothing."""


class MemoryLock(DirectoryLock):
    """The lock on a data directory: a crash gives it free."""

    def __init__(self, platter: Platter) -> None:
        self._platter = platter

    @property
    def fds(self) -> tuple[int, ...]:
        """Return nothing: no child inherits anything here."""
        return ()

    def release(self) -> None:
        """Give the directory free."""
        self._platter.is_locked = False
