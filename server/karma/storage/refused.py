"""The log of a directory whose disk takes no changes now: it can be read, and refuses to be written.

A server that starts on a full or read-only disk shows what is there. A torn tail of the log, which cannot be
cut now, is left out.
"""

from __future__ import annotations

from pathlib import Path

from karma.storage import wal
from karma.storage.disk import AppendFile, Disk
from karma.storage.recovery import Recovered
from karma.storage.wal import Wal


class RefusedFile(AppendFile):
    """A file that cannot be opened for writing: each change raises the error of that."""

    def __init__(self, path: Path, size_bytes: int, error: OSError) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._error = error
        self._begin_syncs()

    def write(self, data: bytes) -> None:  # noqa: ARG002 - as AppendFile's
        """Raise OSError."""
        raise OSError(self._error.errno, self._error.strerror)

    def truncate(self, size_bytes: int) -> None:  # noqa: ARG002 - as AppendFile's
        """Raise OSError."""
        raise OSError(self._error.errno, self._error.strerror)

    def _sync_data(self) -> None:
        """Nothing was written."""

    @property
    def fd(self) -> int:
        """No descriptor: there is nothing that a child could sync."""
        return -1

    def close(self) -> None:
        """Nothing is open."""


def open_refused(disk: Disk, directory: Path, recovered: Recovered, error: OSError) -> Wal:
    """Return the log as it can be read, without its torn tail. Raises OSError and StorageFailedError."""
    sizes = {segment.path: segment.size_bytes for segment in wal.list_segments(disk, directory)}
    active = directory / wal.LOG_NAME
    if wal.LOG_NAME in disk.list_names(directory):
        sizes[active] = disk.size_bytes(active)
    if recovered.tail is not None:
        sizes |= {recovered.tail.path: recovered.tail.size_bytes, **dict.fromkeys(recovered.tail.later, 0)}
    for path in sizes:
        # After a kill the log may be in the page cache only, and a sync needs no room.
        disk.sync_file(path)
    file = RefusedFile(active, sizes.pop(active, 0), error)
    log_file = Wal(disk, directory, next_lsn=recovered.last_lsn + 1, file=file)
    log_file.segments = [segment for segment in log_file.segments if sizes[segment.path]]
    for segment in log_file.segments:
        segment.size_bytes = sizes[segment.path]
    log_file.durable_lsn = log_file.last_lsn
    return log_file
