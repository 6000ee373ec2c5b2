"""Opening a data directory for writes: what must be on disk before the first one; and whether it stays there.

A torn tail is cut, the log is opened, and the node's file notes that a server runs. A disk that is full or
read-only refuses that. Then the server starts nevertheless: it shows what is there, refuses writes with
storage_error, and tries again with each of them and once a second, so that it needs no restart.

A directory, or the log in it, that is moved or removed under the server ends it: the next start would not
find what it writes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from karma.config import Config
from karma.errors import StorageFailedError
from karma.service.log import Log
from karma.service.roles import Roles
from karma.service.write_path import WritePath
from karma.storage import recovery
from karma.storage.disk import DISK_REFUSALS, Disk
from karma.storage.node_file import Node
from karma.storage.recovery import Recovered
from karma.storage.refused import open_refused
from karma.storage.wal import LOG_NAME, Wal

_LEAVE_SECONDS = 2.0
"""How long a server answers that its directory is gone before it ends."""


@dataclass(slots=True, repr=False)
class Opening:
    """Opens the directory of one server. `clock` is unix seconds."""

    config: Config
    disk: Disk
    directory: Path
    log: Log
    clock: Callable[[], float]
    write_path: WritePath
    roles: Roles
    recovered: Recovered
    """What the directory holds."""
    is_waiting: bool = False
    """Whether the disk refused, and is asked again."""
    is_lost: bool = False
    """Whether the directory, or the log in it, is not where it was."""

    def open(self, found: Node | None) -> None:
        """Open the directory now, or on a disk that refuses with the first write that it takes.

        `found` is the node as its file says. Raises OSError for other trouble, and StorageFailedError.
        """
        if not self.roles.is_master and self.roles.node.source is None:
            self.log.warning(
                "no_source",
                "This node is a slave without a source and receives nothing: give --replication-source-host, "
                "or let it follow one (replication.follow)",
            )
        try:
            self._open()
        except OSError as error:
            if error.errno not in DISK_REFUSALS or self.recovered.must_snapshot:
                raise
            self._wait(found, error)

    def _open(self) -> None:
        """Do all that must come before a write. Raises OSError, with nothing that may not be done again."""
        for sentence in recovery.mend(self.disk, self.directory, self.recovered, int(self.clock())):
            self.log.warning("repaired", sentence)
        self.recovered.tail, self.recovered.dropped = None, []
        log_file = self.open_log() if self.config.wal else None
        try:
            self.roles.note_running(is_synced=self.config.wal_fsync, last_lsn=self.recovered.last_lsn)
        except OSError:
            if log_file is not None:
                log_file.close()
            raise
        if self.write_path.wal is not None:
            self.write_path.wal.close()
        self.write_path.wal = log_file

    def _wait(self, found: Node | None, error: OSError) -> None:
        reason = error.strerror or str(error)
        self.log.error(
            "storage_error",
            f"The disk refuses {error.filename or self.directory}: {reason}. Reads are served; writes are "
            "refused until it takes them",
        )
        node = self.roles.node
        if found is not None and node.history == found.history:
            # Nothing on disk says that this server ran; the epoch does, for the first write that it takes.
            self.roles.node = replace(node, epoch_due=True)
        if self.config.wal:
            self.write_path.wal = open_refused(self.disk, self.directory, self.recovered, error)
            self.write_path.storage_trouble = reason
        self.write_path.before_write = self._open_late
        self.is_waiting = True

    def _open_late(self) -> None:
        self._open()
        self.write_path.before_write = None
        self.is_waiting = False
        self.write_path.note_written()

    def watch(self) -> None:
        """Look whether the directory is in place, and ask a disk that refused again; called once a second."""
        if self.is_lost:
            return
        missing = self._missing()
        if missing is not None:
            self._lose(missing)
        elif self.is_waiting:
            try:
                self._open_late()
            except OSError:
                return
            except StorageFailedError as error:
                self.write_path.die(error)

    def _missing(self) -> str | None:
        """Return what is not where it was, in words."""
        if not self.disk.is_in_place(self.directory):
            return f"the data directory {self.directory}"
        log_file = self.write_path.wal
        if log_file is not None and not log_file.is_in_place:
            return f"the log {self.directory / LOG_NAME}"
        return None

    def _lose(self, missing: str) -> None:
        """Refuse writes, and end the process when clients have had time to hear why."""
        self.is_lost = True
        reason = f"{missing} was moved or removed"
        self.log.error("storage_error", f"Writes are refused, and the server ends: {reason}")
        self.write_path.storage_trouble = reason

        def refuse() -> None:
            raise OSError(errno.ENOENT, reason)

        self.write_path.before_write = refuse
        advice = "put it back under its name, then start the server again"
        error = StorageFailedError(f"{reason} while the server ran; {advice}")
        self.write_path.loop.call_later(_LEAVE_SECONDS, self.write_path.die, error)

    def open_log(self) -> Wal:
        """Open the log for appending. Raises OSError and StorageFailedError."""
        config, recovered = self.config, self.recovered
        log_file = Wal(
            self.disk,
            self.directory,
            next_lsn=recovered.last_lsn + 1,
            segment_bytes=config.wal_segment_bytes,
            is_synced=config.wal_fsync,
        )
        if recovered.log_entries and recovered.log_last_lsn < recovered.last_lsn:
            # Snapshots are ahead of the log (a power cut without fsync): appending behind it would leave a
            # hole in the LSNs. The snapshot that is due before the port opens truncates what it covers.
            log_file.rotate()()
        if config.wal_fsync:
            # After a kill the log may be in the page cache only; nobody may be shown more than is durable.
            log_file.sync()
            log_file.durable_lsn = log_file.last_lsn
        return log_file
