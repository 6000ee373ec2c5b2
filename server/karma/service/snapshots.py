"""Snapshots of the running server: by operation, signal, interval and log size.

A snapshot is written by a forked child from memory as it was at one LSN; the log is rotated at that
LSN first and truncated when the child has made everything durable. A kill at any point in between
leaves a directory that restores to the same state: `core.replay` leaves out what a snapshot holds.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from operator import attrgetter
from pathlib import Path
from typing import Any

from karma.core.buckets import Counter
from karma.core.buckets import items as bucket_items
from karma.core.idempotency import Records
from karma.core.store import Store
from karma.errors import DamagedDataError, ErrorCode, RequestError, StorageFailedError
from karma.limits import MAX_BATCH_ITEMS, U64_MAX
from karma.protocol import fields, pages
from karma.protocol.pages import Page
from karma.service.child import ChildFailedError, RunInChild, is_orphan, run_in_child
from karma.service.log import Log
from karma.service.write_path import WritePath
from karma.storage import manifest, recovery, retention, snapshot, wal
from karma.storage.disk import Disk, IrregularFileError
from karma.storage.manifest import Listing
from karma.storage.snapshot import SnapshotFile
from karma.storage.wal import Wal


@dataclass(slots=True, repr=False)
class Snapshots:
    """Takes, lists, verifies and loads snapshots. `clock` is unix seconds."""

    write_path: WritePath
    disk: Disk
    directory: Path
    log: Log
    clock: Callable[[], float]
    retention: int
    keep_log: Callable[[], tuple[int, list[int]]]
    """Returns how many bytes of truncated log to keep for followers, and the first LSNs that they lack."""
    lock_fds: Collection[int]
    last_lsn: int
    """The LSN up to which every series has a snapshot."""
    run_in_child: RunInChild = run_in_child
    is_orphan: Callable[[int], bool] = is_orphan
    is_verifying: bool = False
    """Whether a child reads the log files, which must keep their names meanwhile."""
    failures: int = 0
    """How many snapshots were not taken."""
    trouble: str | None = None
    """Why the last snapshot was not taken, until one is."""
    rotation_trouble: str | None = None
    """Why the log could not be rotated, until it is."""
    listing: Listing = field(init=False)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the files of the directory are written, read aside, or exchanged."""

    def __post_init__(self) -> None:
        """Make what reads the directory."""
        self.listing = Listing(self.disk, self.directory)

    @property
    def store(self) -> Store:
        """The live store."""
        return self.write_path.engine.store

    def exchanged(self, last_lsn: int) -> None:
        """Note that other files are in the directory; every series has a snapshot up to an LSN."""
        self.last_lsn = last_lsn
        self.listing.forget()

    # -- Taking --------------------------------------------------------------------------------

    async def create(self, series: str) -> str:
        """Snapshot one series; the log stays as it is."""
        async with self.busy:
            found = self.store.series.get(series)
            if found is None:
                raise RequestError(ErrorCode.NOT_FOUND, f'Tree "{series}" not found')
            lsn, timestamp = self.write_path.settle() or self.last_lsn, int(self.clock())

            def work() -> None:
                self._sync_log()
                # Files as old as the idempotency snapshot are of its LSN (`karma check` relies on it): this
                # one is none of them, even in the same second.
                records = snapshot.records_metadata(self.disk, self.directory) or {}
                self.store.sweep()
                snapshot.write_trees(
                    self.disk,
                    self.directory,
                    [found],
                    lsn,
                    max(timestamp, records.get("timestamp", -1) + 1),
                )
                retention.prune(self.disk, self.listing.read(), self.retention)

            with self._attempt():
                await self.in_child(work)
        return f'Tree "{series}" saved'

    async def create_all(self) -> str:
        """Snapshot everything at one LSN and truncate the log."""
        async with self.busy:
            write_path = self.write_path
            started, timestamp = write_path.stopwatch(), int(self.clock())
            lsn = write_path.settle() or self.last_lsn
            log_file = write_path.wal
            parent_pid = os.getpid()
            with self._attempt():
                log_file = write_path.wal
                finishing = self._rotate(log_file) if log_file is not None and log_file.active_bytes else None
                await self._write_changed(
                    lambda changed: self._write_all(changed, lsn, timestamp, parent_pid)
                )
                if finishing is not None:
                    await finishing
                if log_file is not None:
                    await asyncio.get_running_loop().run_in_executor(
                        None, log_file.truncate(lsn, *self.keep_log())
                    )
            self.trouble = None
            # Not on the loop: the metadata of many series take their time.
            await asyncio.to_thread(self.listing.read)
            self.last_lsn = lsn
            self.log.info(
                "snapshot",
                f"Snapshot of {len(self.store.series)} series at LSN {lsn}",
                lsn=lsn,
                seconds=round(write_path.stopwatch() - started, 3),
            )
        return "OK"

    async def _write_changed(self, work: Callable[[set[str]], None]) -> None:
        """Let a child write the series that changed; they count as unchanged from the fork on."""
        store, changed = self.store, self.store.changed
        store.changed = set()
        try:
            await self.in_child(lambda: work(changed))
        except BaseException:
            store.changed |= changed
            raise

    def _write_all(self, changed: set[str], lsn: int, timestamp: int, parent_pid: int) -> None:
        """Write every file of a snapshot; runs in the child."""
        disk, directory, store = self.disk, self.directory, self.store
        streams, expiry_unix = store.streams, self.write_path.engine.expiry_unix

        def end_if_orphan() -> None:
            if self.is_orphan(parent_pid):
                raise ChildFailedError("the server has ended")

        self._sync_log()
        store.sweep()
        snapshot.write_records(
            disk, directory, store.records, streams.committed.values(), lsn, timestamp, expiry_unix
        )
        files = manifest.take_set(
            disk,
            directory,
            store.series.values(),
            changed,
            lsn,
            timestamp,
            self.listing.read(),
            end_if_orphan,
        )
        snapshot.write_streams(disk, directory, streams, lsn)
        stale = [file for file in files if file.series not in store.series]
        if stale:
            retention.set_aside(disk, directory, stale)
        retention.prune(disk, (file for file in files if file.series in store.series), self.retention)

    def _sync_log(self) -> None:
        """Let no power cut leave a snapshot of what the log has lost: a retry would be told that it was done.

        Runs in the child, so that with fsync off no client waits for it.
        """
        log_file = self.write_path.wal
        if log_file is not None and not self.write_path.is_synced:
            log_file.sync_files()

    async def in_child(self, work: Callable[[], Any]) -> Any:
        """Run work in a child while clients go on. Raises RequestError (storage_error)."""
        self.write_path.has_child = True
        log_file = self.write_path.wal
        keep_fds = [*self.lock_fds] if log_file is None else [*self.lock_fds, log_file.fd]
        try:
            return await self.run_in_child(work, keep_fds)
        except (ChildFailedError, OSError) as error:
            raise RequestError(
                ErrorCode.STORAGE_ERROR, f"A child process could not do it: {error}"
            ) from error
        finally:
            self.write_path.has_child = False

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Take note of a snapshot that is not taken. Raises RequestError (storage_error)."""
        try:
            if self.write_path.before_write is not None:
                self.write_path.before_write()
            yield
        except (RequestError, OSError) as error:
            self.failures += 1
            self.trouble = error.message if isinstance(error, RequestError) else str(error)
            self.log.error("snapshot_failed", f"The snapshot was not taken: {self.trouble}")
            raise RequestError(
                ErrorCode.STORAGE_ERROR, f"The snapshot was not taken: {self.trouble}"
            ) from error

    # -- The log's files -----------------------------------------------------------------------

    def rotate_log(self) -> None:
        """Rotate the log, unless a child reads its files under the names they have."""
        log_file = self.write_path.wal
        if log_file is None or self.is_verifying:
            return
        try:
            self._rotate(log_file)
        except OSError as error:
            if self.rotation_trouble is None:
                # Each write asks for it again.
                self.log.error(
                    "rotation_failed", f"The log could not be rotated and goes on in one file: {error}"
                )
            self.rotation_trouble = str(error)
        except StorageFailedError as error:
            self.write_path.die(error)

    def _rotate(self, log_file: Wal) -> asyncio.Future[None]:
        """Begin a new log file; the future ends when the slow rest of it is done. Raises OSError."""
        finish = log_file.rotate()
        self.rotation_trouble = None
        return asyncio.get_running_loop().run_in_executor(None, self._finish_rotation, finish)

    def _finish_rotation(self, finish: Callable[[], None]) -> None:
        try:
            finish()
        except OSError as error:
            # The index is optional: reading the segment is slower without it, and not wrong.
            self.log.warning("index_failed", f"A segment has no index: {error}")
        except StorageFailedError as error:
            self.write_path.die(error)

    # -- Looking -------------------------------------------------------------------------------

    def paths(self, page: Page | None = None) -> list[str] | dict[str, Any]:
        """Return the response of snapshot.list: the paths of all snapshot files, newest first, or a page."""
        files = self.listing.files()
        if page is None:
            return [str(file.path) for file in files]
        if page.cursor is not None:
            files = files[
                bisect_right(files, _newest_first(page.cursor), key=lambda file: _newest_first(file.file)) :
            ]
        paths, next_cursor = self._fill(page, files, lambda file: str(file.path), lambda file: file.file)
        return {"files": paths, "next_cursor": next_cursor}

    def _fill(
        self,
        page: Page,
        files: Iterable[SnapshotFile],
        show: Callable[[SnapshotFile], Any],
        cursor_of: Callable[[SnapshotFile], str],
    ) -> tuple[list[Any], str | None]:
        maximum = self.write_path.engine.settings.max_response_bytes
        return pages.fill(page, files, show, cursor_of, maximum)

    @property
    def count(self) -> int:
        """How many snapshot files there are: as last seen, where the folder cannot be listed now."""
        with contextlib.suppress(OSError):
            self.listing.files()
        return self.listing.count

    def info(self, *, with_files: bool, page: Page | None = None) -> dict[str, Any]:
        """Return the response of snapshot.info; `with_files` adds what a follower fetches.

        A page holds the files that a follower fetches, or else the newest snapshots.
        """
        # First, because a snapshot may end meanwhile: newer files go with an older LSN, not the other way.
        truncated_lsn = wal.read_truncated_lsn(self.disk, self.directory) or 0 if with_files else 0
        log_file = self.write_path.wal
        listed: dict[str, Any]
        if page is None:
            listed = {"latest_by_tree": self.latest()}
            if with_files:
                listed["files"] = [*map(_describe_file, self.listing.finished()), *self._files_beside()]
        elif with_files:
            listed = self._page(page, self.listing.finished(), "files", _describe_file)
            if listed["next_cursor"] is None:
                listed["files"] += self._files_beside()
        else:
            listed = self._page(
                page, list(self.listing.latest().values()), "latest_by_tree", _describe_latest
            )
        return {
            **({"truncated_lsn": truncated_lsn} if with_files else {}),
            "dump_count": self.listing.count,
            **listed,
            "idempotency_snapshot": snapshot.describe_records(self.disk, self.directory),
            "last_snapshot_lsn": self.last_lsn,
            "wal_enabled": log_file is not None,
            "wal_bytes": log_file.size_bytes if log_file else 0,
            "wal_current_lsn": log_file.last_lsn if log_file else 0,
            "dump_retention_per_tree": self.retention,
        }

    def _page(
        self, page: Page, files: list[SnapshotFile], name: str, show: Callable[[SnapshotFile], Any]
    ) -> dict[str, Any]:
        """Return a page of files that are sorted by series."""
        if page.cursor is not None:
            files = files[bisect_right(files, page.cursor, key=attrgetter("series")) :]
        rows, next_cursor = self._fill(page, files, show, attrgetter("series"))
        return {name: rows, "next_cursor": next_cursor}

    def latest(self) -> list[dict[str, Any]]:
        """Return the newest snapshot of each series as snapshot.info shows it."""
        return list(map(_describe_latest, self.listing.latest().values()))

    def newest(self, count: int) -> list[dict[str, Any]]:
        """Return the newest of `latest`."""
        files = nlargest(count, self.listing.latest().values(), key=attrgetter("taken_unix"))
        return list(map(_describe_latest, files))

    def _files_beside(self) -> list[dict[str, Any]]:
        """Return the files of the newest snapshot that are not of one series, as a follower fetches them."""
        files: list[dict[str, Any]] = []
        records = snapshot.records_metadata(self.disk, self.directory)
        # A kill within the first snapshot leaves metadata that tell of none yet; the log has everything then.
        if records is not None and "bytes" in records:
            about = {
                "file": snapshot.RECORDS_NAME,
                "bytes": records["bytes"],
                "last_lsn": records["last_lsn"],
            }
            files.append({**about, "metadata": records})
        if snapshot.STREAMS_NAME in self.disk.list_names(self.directory):
            size_bytes = self.disk.size_bytes(self.directory / snapshot.STREAMS_NAME)
            # Its own LSN is inside, and not below that of the last snapshot of everything.
            files.append({"file": snapshot.STREAMS_NAME, "bytes": size_bytes, "last_lsn": self.last_lsn})
        return files

    async def verify(self) -> dict[str, Any]:
        """Restore the directory aside, in a child, and say what was found. Raises RequestError on damage."""
        async with self.busy:
            self.write_path.settle()
            now_unix = int(self.clock())
            self.is_verifying = True
            try:
                result: dict[str, Any] = await self.in_child(lambda: self._verify(now_unix))
            finally:
                self.is_verifying = False
        if "damaged" in result:
            raise RequestError(ErrorCode.VALIDATION_ERROR, result["damaged"])
        return result

    def _verify(self, now_unix: int) -> dict[str, Any]:
        try:
            found = recovery.read(self.disk, self.directory, Records(), now_unix)
        except DamagedDataError as error:
            return {"damaged": str(error)}
        return {
            "status": "ok",
            "dump_count": len(found.all_snapshots),
            "trees": len(found.store.series),
            "keys": sum(len(series.counters) for series in found.store.series.values()),
            "snapshot_metadata_checked": len(found.all_snapshots) - found.without_metadata,
            "snapshot_missing_metadata": found.without_metadata,
            "restore_snapshot_lsn": found.snapshot_lsn,
            "wal_entries_checked": found.log_entries,
            "wal_first_lsn": found.log_first_lsn,
            "wal_last_lsn": found.log_last_lsn,
            "wal_lsn_file": found.truncated_lsn or 0,
        }

    # -- Fetching ------------------------------------------------------------------------------

    def fetch(self, file: str) -> dict[str, Any]:
        """Return a whole snapshot file. Raises RequestError (not_found, response_too_large)."""
        found = self._find(file)
        maximum = self.write_path.engine.settings.max_response_bytes
        if maximum and found.bytes * 4 // 3 > maximum:
            # Known before the file is read; the check of the reply would come after holding it twice.
            raise RequestError(
                ErrorCode.RESPONSE_TOO_LARGE,
                f"The snapshot has {found.bytes} bytes, too many for one response; use snapshot.fetch_chunk",
            )
        return {
            "metadata": self._metadata(found),
            "data_base64": base64.b64encode(
                self._read(found.path, 0, self.disk.size_bytes(found.path))
            ).decode(),
        }

    def fetch_chunk(self, file: str, offset: int, limit: int) -> dict[str, Any]:
        """Return a part of a snapshot file. Raises RequestError (not_found)."""
        if file == snapshot.RECORDS_NAME:
            return self.fetch_records_chunk(offset, limit)
        if file == snapshot.STREAMS_NAME and file in self.disk.list_names(self.directory):
            return self._chunk(self.directory / file, {"file": file}, offset, limit)
        found = self._find(file)
        return self._chunk(found.path, self._metadata(found), offset, limit)

    def fetch_records_chunk(self, offset: int, limit: int) -> dict[str, Any]:
        """Return a part of the idempotency snapshot. Raises RequestError (not_found)."""
        metadata = snapshot.describe_records(self.disk, self.directory)
        if metadata is None:
            raise RequestError(
                ErrorCode.NOT_FOUND, "There is no idempotency snapshot yet; use snapshot.create_all"
            )
        return self._chunk(self.directory / snapshot.RECORDS_NAME, metadata, offset, limit)

    def _chunk(self, path: Path, metadata: dict[str, Any], offset: int, limit: int) -> dict[str, Any]:
        total_bytes = self.disk.size_bytes(path)
        # Files end far below 2**64, and the system refuses to look that far.
        data = self._read(path, min(offset, total_bytes), limit)
        next_offset = offset + len(data)
        return {
            "metadata": metadata,
            "offset": offset,
            "limit": limit,
            "bytes": len(data),
            "total_bytes": total_bytes,
            "next_offset": next_offset,
            "done": next_offset >= total_bytes,
            "data_base64": base64.b64encode(data).decode(),
        }

    def _read(self, path: Path, offset_bytes: int, length_bytes: int) -> bytes:
        """Return a part of a file that may be fetched. Raises RequestError (not_found) for a link."""
        try:
            return self.disk.read_range(path, offset_bytes, length_bytes)
        except IrregularFileError as error:
            raise RequestError(
                ErrorCode.NOT_FOUND, f'"{path.name}" is not a regular file in the data directory'
            ) from error

    def _metadata(self, found: SnapshotFile) -> dict[str, Any]:
        # What is fetched may be restored from, so it comes with the checksums of its metadata file.
        known = {"tree": None, "file": None, "timestamp": None, "last_lsn": None, "bytes": None}
        return {**known, **found.metadata()} if found.crc32 is None else found.metadata()

    def _find(self, file: str) -> SnapshotFile:
        found = self.listing.find(file)
        if found is None:
            raise RequestError(ErrorCode.NOT_FOUND, f'Snapshot "{file}" not found')
        return found

    # -- Loading -------------------------------------------------------------------------------

    async def load(self, file: str) -> str:
        """Replace a series by a snapshot of it, through the log: durable, and replicated.

        The snapshot enters as an ingest stream of its own, in chunks between which clients are
        served; the series changes at once when the stream commits.
        """
        found = self._find(file)
        loop = asyncio.get_running_loop()
        try:
            counters = await loop.run_in_executor(None, snapshot.load_tree, self.disk, found)
        except DamagedDataError as error:
            raise RequestError(ErrorCode.VALIDATION_ERROR, str(error)) from error
        apply = self.write_path.apply
        number = self.write_path.clock_ms()
        while self.store.streams.find(f"snapshot.load {file} {number}") is not None:
            # Its chunks would be taken for repeated ones, and change nothing.
            number += 1
        stream = {"stream_id": f"snapshot.load {file} {number}"}
        apply({"op": "ingest.begin", **stream, "mode": "replace_series", "granularity": "day"})
        try:
            for chunk_seq, items in enumerate(_chunks(counters), 1):
                entry = {"series": found.series, "chunk_seq": chunk_seq, "items": items}
                apply({"op": "ingest.chunk", **stream, **entry})
                await asyncio.sleep(0)
            apply({"op": "ingest.commit", **stream})
        except RequestError:
            apply({"op": "ingest.abort", **stream})
            raise
        finally:
            self.store.release(counters)
        return f'Tree "{found.series}" loaded'


def _describe_latest(file: SnapshotFile) -> dict[str, Any]:
    """Return a file as snapshot.info shows it, of the age of its set."""
    return {
        "tree": file.series,
        "file": file.file,
        "timestamp": file.taken_unix,
        "bytes": file.bytes,
        "last_lsn": file.last_lsn,
        "metadata_file": file.metadata_file.name if file.metadata_file else None,
    }


def _describe_file(file: SnapshotFile) -> dict[str, Any]:
    """Return a file as a follower fetches it: name, size, LSN and metadata."""
    return {"file": file.file, "bytes": file.bytes, "last_lsn": file.last_lsn, "metadata": file.metadata()}


def _newest_first(file: str) -> tuple[int, str]:
    """Return what snapshot files are sorted by. Raises RequestError for a name of another form."""
    timestamp = file.partition("_")[0]
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise fields.invalid("Field cursor must be the next_cursor of a page of snapshot.list")
    return -int(timestamp), file


def _chunks(counters: Mapping[int, Counter]) -> Iterator[list[list[int]]]:
    """Cut counters into chunks of an import: at most so many items, whose sum a reply can say."""
    items: list[list[int]] = []
    total = 0
    for key, counter in counters.items():
        for day, value in bucket_items(counter):
            if len(items) == MAX_BATCH_ITEMS or total + value > U64_MAX:
                yield items
                items, total = [], 0
            items.append([key, day, value])
            total += value
    yield items
