"""The only code that syncs, renames, locks or removes a file: one seam for every disk fault.

What the rest of the server relies on:

- `AppendFile.write` appends all bytes or raises with the file cut back to where it was;
- `AppendFile.sync` returns when the data would survive a power cut, and raises `StorageFailedError`
  otherwise, then and ever after: the kernel may drop the dirty pages of a failed fsync, so a second one
  would lie;
- `Disk.write_file` leaves the old file or the new one under a name, never a mixture, and the new one
  survives a power cut once it returns;
- a rename or a created file is durable only after `sync_directory`, so every method here that makes
  or moves a name ends with one. The folder is opened before the change: a process without a descriptor
  left is refused with nothing changed, instead of failing after a rename that stands. The folder of a data
  directory stays open while its lock is held, so there a rename needs no descriptor at all.

Temporary files are called ``.<name>.tmp``: they match neither ``karma.wal*`` nor ``*.tree``, which
Karma 1.0 would read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from karma.errors import DirectoryInUseError, StorageFailedError
from karma.ownership import who_may_enter

LOCK_NAME = "karma.lock"
_FETCHED = frozenset({".tree", ".json", ".msgpack"})
"""Suffixes of snapshots and of what belongs to them."""
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that is full or read-only: it can be read, and later it may take writes again."""
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FLUSH_BYTES = 2 << 20
"""A large file is flushed in parts: the journal of the file system makes a sync of the log wait for
all that is not flushed yet, 80 ms when a snapshot of 250 MB was left to one sync at its end."""
_FEW_FILES = 32
"""Fewer are written one after the other: threads would not pay."""
_WRITERS = 8
"""A third of the time of one; 16 take longer again."""
_LOCK_SECONDS = 2.0
_LOCK_PAUSES_SECONDS = (0.001, 0.1)
"""First and longest: who holds a lock for one short write is back at once, a server that ends is not."""


class IrregularFileError(OSError):
    """A name that should be a file's is that of a link, a pipe or a device."""


def _temporary(path: Path) -> Path:
    """Return the name under which a file is written until it is whole."""
    return path.with_name(f".{path.name}.tmp")


class AppendFile:
    """A file written at its end only. `size_bytes` counts what was written, whole writes only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self.size_bytes = os.fstat(self._fd).st_size
        self._begin_syncs()

    def _begin_syncs(self) -> None:
        self._syncing = threading.Lock()
        self._sync_error: OSError | None = None

    def write(self, data: bytes) -> None:
        """Append all of the data.

        Raises OSError with nothing of it left in the file, or StorageFailedError when not even
        cutting it back was possible.
        """
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
        except OSError:
            self.truncate(self.size_bytes)
            raise
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Make everything written so far durable. Safe to call from another thread than `write`.

        Raises StorageFailedError, and from then on each time: the kernel tells an error once and forgets
        what it could not write. The next sync would succeed, and whoever asked for it would build on what is
        lost. One at a time for the same reason: of two at once only one would be told.
        """
        with self._syncing:
            if self._sync_error is None:
                try:
                    self._sync_data()
                except OSError as error:
                    self._sync_error = error
            if self._sync_error is not None:
                raise StorageFailedError(
                    f"fsync of {self.path} failed: {self._sync_error.strerror}. The kernel may have dropped "
                    "what was written before, so the server stops; check the disk, then start it again"
                ) from self._sync_error

    def _sync_data(self) -> None:
        os.fdatasync(self._fd)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file to a size. Raises StorageFailedError when the disk refuses even that."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise StorageFailedError(
                f"cannot cut {self.path} back after a failed write: {error.strerror}"
            ) from error
        self.size_bytes = size_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return up to so many bytes from an offset; fewer only at the end of the file."""
        return os.pread(self._fd, length_bytes, offset_bytes)

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the file; nothing is synced by that."""
        os.close(self._fd)


class Disk:
    """File operations on one machine. Paths are absolute or relative to the working directory."""

    @functools.cached_property
    def _folder_fds(self) -> dict[tuple[int, Path], int]:
        """Folders that are open, by the thread that opened them; those of 0 stay open for every thread."""
        return {}

    @contextlib.contextmanager
    def _opened(self, *folders: Path) -> Iterator[None]:
        """Hold the descriptors that `sync_directory` of these folders needs. Raises OSError."""
        thread = threading.get_ident()
        opened = []
        try:
            for folder in folders:
                if self._folder_fd(folder) is None:
                    self._folder_fds[thread, folder] = os.open(folder, _FOLDER_FLAGS)
                    opened.append((thread, folder))
            yield
        finally:
            for key in opened:
                os.close(self._folder_fds.pop(key))

    def _folder_fd(self, folder: Path) -> int | None:
        fd = self._folder_fds.get((threading.get_ident(), folder))
        return self._folder_fds.get((0, folder)) if fd is None else fd

    def append_to(self, path: Path) -> AppendFile:
        """Open a file for appending, creating it durably if need be."""
        if path.exists():
            return AppendFile(path)
        with self._opened(path.parent):
            file = AppendFile(path)
            self.sync_directory(path.parent)
        return file

    def write_file(self, path: Path, chunks: Iterable[bytes]) -> int:
        """Replace a file's content atomically and durably; returns its size in bytes."""
        return self.write_files([(path, chunks)])[0]

    def write_files(self, files: Iterable[tuple[Path, Iterable[bytes]]]) -> list[int]:
        """Replace the content of files in one folder, each atomically; returns their sizes in bytes.

        All are durable in the end, with one sync of the folder. Raises OSError with some of them replaced.
        """
        files = list(files)
        try:
            if len(files) < _FEW_FILES:
                sizes_bytes = [self._write_temporary(*file) for file in files]
            else:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - karmactl starts without it

                # The file system commits syncs that come at the same time together.
                with ThreadPoolExecutor(_WRITERS) as pool:
                    sizes_bytes = list(pool.map(lambda file: self._write_temporary(*file), files))
            self.rename_all((_temporary(path), path) for path, _ in files)
        except OSError:
            # They would be half written; freeing their space may be what lets the next try succeed.
            for path, _ in files:
                with contextlib.suppress(OSError):
                    self.remove(_temporary(path))
            raise
        return sizes_bytes

    def _write_temporary(self, path: Path, chunks: Iterable[bytes]) -> int:
        """Write a file under its temporary name and sync it; returns its size in bytes."""
        size_bytes = unflushed_bytes = 0
        with _temporary(path).open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                size_bytes += len(chunk)
                unflushed_bytes += len(chunk)
                if unflushed_bytes >= _FLUSH_BYTES:
                    file.flush()
                    os.fdatasync(file.fileno())
                    unflushed_bytes = 0
            file.flush()
            os.fsync(file.fileno())
        return size_bytes

    def sync_file(self, path: Path) -> None:
        """Make a file's content durable without writing to it. Raises OSError and StorageFailedError."""
        with path.open("rb") as file:
            try:
                os.fdatasync(file.fileno())
            except OSError as error:
                raise StorageFailedError(f"fsync of {path} failed: {error.strerror}") from error

    def read_file(self, path: Path) -> bytes:
        """Return a whole file."""
        return path.read_bytes()

    def read_range(self, path: Path, offset_bytes: int, length_bytes: int) -> bytes:
        """Return up to so many bytes of a file from an offset.

        What clients fetch (`_FETCHED`) is only read from a regular file. Raises IrregularFileError for a link
        or a pipe under such a name: it may lead anywhere.
        """
        is_fetched = path.suffix in _FETCHED
        flags = os.O_NOFOLLOW | os.O_NONBLOCK if is_fetched else 0
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError as error:
            if error.errno == errno.ELOOP and is_fetched:
                raise IrregularFileError(error.errno, "not a regular file", str(path)) from error
            raise
        if is_fetched and not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise IrregularFileError(errno.EINVAL, "not a regular file", str(path))
        with open(fd, "rb") as file:
            file.seek(offset_bytes)
            return file.read(length_bytes)

    @contextlib.contextmanager
    def map_file(self, path: Path) -> Iterator[mmap.mmap | bytes]:
        """Give a whole file's bytes without copying them; an empty file is ``b""``."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                yield b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield mapped

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file durably; both names are in existing folders.

        Raises OSError with nothing renamed, StorageFailedError when the new name may not be durable.
        """
        self.rename_all([(old, new)])

    def rename_all(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        """Rename files, durably in the end; a power cut before that leaves any of them under its old name.

        Raises OSError with the rest not renamed, StorageFailedError when new names may not be durable.
        """
        pairs = list(pairs)
        folders = dict.fromkeys([*(new.parent for _, new in pairs), *(old.parent for old, _ in pairs)])
        with self._opened(*folders):
            for old, new in pairs:
                self.move(old, new)
            for folder in folders:
                self.sync_directory(folder)

    def move(self, old: Path, new: Path) -> None:
        """Rename a file; it is durable once both folders are synced."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file that is not needed any more; a name that is gone already is fine."""
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        """Create a folder durably, with its parents; one that exists is fine."""
        if not path.is_dir():
            # One by one: a parent made on the way is durable only after a sync of its own parent.
            self.make_directory(path.parent)
            with self._opened(path.parent):
                path.mkdir(exist_ok=True)
                self.sync_directory(path.parent)

    def list_names(self, directory: Path) -> list[str]:
        """Return the names in a folder, sorted; a missing folder has none."""
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def changed_ns(self, directory: Path) -> int:
        """Return when a name last came to or left a folder, in nanoseconds of the disk's clock."""
        return directory.stat().st_mtime_ns

    def size_bytes(self, path: Path) -> int:
        """Return a file's size."""
        return path.stat().st_size

    def sync_directory(self, directory: Path) -> None:
        """Make the names in a folder durable. Raises StorageFailedError when the disk cannot."""
        with self._opened(directory):
            fd = self._folder_fd(directory)
            assert fd is not None
            try:
                os.fsync(fd)
            except OSError as error:
                raise StorageFailedError(
                    f"fsync of the folder {directory} failed: {error.strerror}"
                ) from error

    def space(self, directory: Path) -> tuple[int, int]:
        """Return (free, total) bytes of the file system that holds a folder."""
        usage = shutil.disk_usage(directory)
        return usage.free, usage.total

    def exposure(self, directory: Path) -> str | None:
        """Return who else may enter a folder, None when only its user and group may."""
        try:
            return who_may_enter(directory)
        except OSError:
            return None

    def resident_bytes(self) -> int:
        """Return this process's resident memory, 0 where the system has no /proc."""
        try:
            fields = Path("/proc/self/statm").read_bytes().split()
        except OSError:
            return 0
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def lock(self, directory: Path, wait_seconds: float = _LOCK_SECONDS) -> DirectoryLock:
        """Take a data directory for this process. Raises DirectoryInUseError naming the holder; OSError."""
        lock = DirectoryLock(directory, wait_seconds, self._let_go)
        self._folder_fds[0, directory] = lock.folder_fd
        return lock

    def _let_go(self, directory: Path) -> None:
        self._folder_fds.pop((0, directory), None)

    def is_in_place(self, directory: Path) -> bool:
        """Return whether a directory that is locked here is still what its name stands for."""
        return self.is_named(self._folder_fds[0, directory], directory)

    def is_named(self, fd: int, path: Path) -> bool:
        """Return whether an open file or folder is still what a name stands for."""
        opened = os.fstat(fd)
        try:
            named = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # A network file system that does not answer, say: that tells nothing of the name.
            return True
        return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


class DirectoryLock:
    """An exclusive lock on a data directory, held until `release` or the end of the process.

    The lock file is what every version of Karma looks at. The folder itself is locked first: it is there
    even where a disk that is full or read-only lets no lock file be made.
    """

    def __init__(self, directory: Path, wait_seconds: float, on_release: Callable[[Path], None]) -> None:
        self._directory = directory
        self._on_release = on_release
        self._fds = [os.open(directory, _FOLDER_FLAGS)]
        try:
            self._acquire(wait_seconds)
        except BaseException:
            self._close()
            raise

    def _acquire(self, wait_seconds: float) -> None:
        path = self._directory / LOCK_NAME
        deadline = time.monotonic() + wait_seconds
        try:
            _lock_folder(self.folder_fd, deadline)
            file_fd = _open_lock_file(path)
            if file_fd is None:
                return
            self._fds.append(file_fd)
            _flock(file_fd, deadline)
        except BlockingIOError:
            raise DirectoryInUseError(self._directory, _holder(path)) from None
        # Who holds it is said where there is room for it.
        with contextlib.suppress(OSError):
            os.ftruncate(file_fd, 0)
            os.pwrite(file_fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    @property
    def folder_fd(self) -> int:
        """The descriptor of the folder."""
        return self._fds[0]

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that hold the lock; a child that still writes must keep them open."""
        return tuple(self._fds)

    def release(self) -> None:
        """Give the directory free. The lock file stays: removing it would race with the next holder."""
        self._on_release(self._directory)
        self._close()

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def _lock_folder(fd: int, deadline: float) -> None:
    """Lock a folder. Raises BlockingIOError when another process keeps it locked."""
    try:
        _flock(fd, deadline)
    except BlockingIOError:
        raise
    except OSError:
        # A network file system may lock files only: then the lock file is all there is.
        return


def _flock(fd: int, deadline: float) -> None:
    """Lock a file, waiting until a deadline. Raises BlockingIOError when another process keeps it locked."""
    # A server that was killed may leave a child behind that notices within a moment. The kernel's own
    # queue for a lock knows no limit of time, and a process that was stopped would hold up all others.
    pause_seconds, longest_seconds = _LOCK_PAUSES_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, longest_seconds)
        else:
            return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_lock_file(path: Path) -> int | None:
    """Open a lock file, making it if need be; None where there is none and the disk lets none be made."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        if error.errno not in DISK_REFUSALS:
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _holder(path: Path) -> str:
    """Return what a lock file says of the process that holds it."""
    try:
        return path.read_bytes()[:200].decode("utf-8", "replace").strip() or "an unknown process"
    except FileNotFoundError:
        return "an unknown process"
