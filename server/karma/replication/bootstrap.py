"""A follower's first data: the source's newest snapshots, and the log from the oldest of them on.

Everything is fetched into ``karma.incoming/`` under its final name, so that what is there is a data
directory of its own when it is complete: restoring it needs no other code than a start. A file that was
cut off by a broken link or a kill goes on where it ended, if it is still the source's newest.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from karma.core.entries import read_entries
from karma.errors import DamagedDataError, ErrorCode, RequestError
from karma.limits import (
    BOOTSTRAP_RESERVE_BYTES,
    BOOTSTRAP_RESERVE_SHARE,
    FILE_OVERHEAD_BYTES,
    MAX_METADATA_BYTES,
    PAGE_MAX_CURSOR_BYTES,
    SNAPSHOT_CHUNK_MAX_BYTES,
)
from karma.protocol import fields
from karma.replication.follower import quote
from karma.replication.link import Link, LinkError
from karma.service.log import Log
from karma.storage import snapshot, wal
from karma.storage.disk import Disk
from karma.storage.wal import Wal

_PROGRESS_SECONDS = 1.0
_QUOTED_NAME_CHARACTERS = 80
"""Of a name that a source made up: what is wrong with it must still fit behind it."""
_PAGE_FILES = 500
_SMALL_FILE_BYTES = 65_536
_BATCH_FILES = 1_000
_BATCH_BYTES = 8 << 20


class BootstrapError(Exception):
    """The source's snapshots cannot be had as they are; the message says why. Trying anew may help."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file to fetch: its request, its metadata as the source told, and where it goes."""

    request: dict[str, Any]
    name: str
    size_bytes: int
    last_lsn: int
    crc32: str | None
    metadata: dict[str, Any]


@dataclass(slots=True, repr=False)
class Bootstrap:
    """Fetches a source's data into `folder`. `clock` is monotonic seconds, `clock_ms` unix milliseconds."""

    link: Link
    disk: Disk
    folder: Path
    log: Log
    clock: Callable[[], float]
    clock_ms: Callable[[], int]
    chunk_bytes: int = SNAPSHOT_CHUNK_MAX_BYTES
    fetched_bytes: int = 0
    total_bytes: int = 0
    _said_at: float = 0.0

    async def run(self, batch_entries: int) -> None:
        """Fetch everything. Raises BootstrapError, LinkError and OSError."""
        self.disk.make_directory(self.folder)
        first_lsn, wanted = await self._list()
        names = {each.name for each in wanted}
        for name in self.disk.list_names(self.folder):
            # From an earlier attempt, and out of date since.
            if name.removesuffix(".part").removesuffix(".meta.json") not in names:
                self.disk.remove(self.folder / name)
        self.total_bytes = sum(each.size_bytes for each in wanted)
        present = (self.disk.size_bytes(self.folder / name) for name in self.disk.list_names(self.folder))
        self._check_room(self.total_bytes + len(wanted) * FILE_OVERHEAD_BYTES - sum(present))
        self.log.info(
            "bootstrap", f"Fetching {len(wanted)} files, {self.total_bytes} bytes", bytes=self.total_bytes
        )
        await self._fetch_all(wanted)
        last_lsn = max((each.last_lsn for each in wanted), default=first_lsn)
        self.disk.write_file(self.folder / wal.LSN_NAME, [b"%d\n" % first_lsn])
        # It has one name for all its versions: a snapshot may have been taken there since it was listed.
        try:
            streams = await asyncio.to_thread(snapshot.load_streams, self.disk, self.folder)
        except DamagedDataError as error:
            raise BootstrapError(f"what the source sent cannot be used: {error.message}") from error
        if streams is not None and streams[1] > last_lsn:
            raise BootstrapError(f"{snapshot.STREAMS_NAME} changed at the source while it was fetched")
        await self._fetch_log(first_lsn, last_lsn, batch_entries)

    # -- What there is -------------------------------------------------------------------------------

    async def _list(self) -> tuple[int, list[_Wanted]]:
        """Return the files, and the LSN behind which what they lack is in the source's log.

        That is not the oldest snapshot's: of a series that has none yet everything is in the log.
        """
        request: dict[str, Any] = {"op": "snapshot.info", "files": True, "limit": _PAGE_FILES}
        first_lsn: int | None = None
        wanted: dict[str, _Wanted] = {}
        while True:
            info = await self._ask(request)
            try:
                if "files" in info:
                    lsn, files = fields.lsn(info, "truncated_lsn"), fields.objects(info, "files", None)
                else:
                    lsn, files = _files_of_original(info)
                page = {each.name: each for each in map(self._usable, files)}
                cursor = fields.text(info, "next_cursor", PAGE_MAX_CURSOR_BYTES, default="")
            except (KeyError, TypeError, ValueError, RequestError) as error:
                raise BootstrapError(
                    f"the source's list of snapshots cannot be used: {quote(error)}"
                ) from error
            # A snapshot may have been taken there between two pages: its files lack less than those before.
            first_lsn = lsn if first_lsn is None else first_lsn
            if not page.keys().isdisjoint(wanted) or (cursor and not page):
                raise BootstrapError("the source's list of snapshots comes to no end")
            wanted |= page
            self._check_room(len(wanted) * FILE_OVERHEAD_BYTES)
            if not cursor:
                return first_lsn, list(wanted.values())
            request["cursor"] = cursor

    def _usable(self, found: dict[str, Any]) -> _Wanted:
        """Return a file that a source names. Raises BootstrapError that says which one cannot be used."""
        try:
            return self._wanted(found)
        except RequestError as error:
            raise BootstrapError(f"{_spell(found)} cannot be used: {quote(error)}") from error

    @staticmethod
    def _wanted(found: dict[str, Any]) -> _Wanted:
        """Return a file that a source names, by the rules for requests. Raises RequestError."""
        request: dict[str, Any] = {"op": "snapshot.fetch_chunk", "file": found.get("file")}
        if found.get("file") == snapshot.RECORDS_NAME:
            name, request = snapshot.RECORDS_NAME, {"op": "idempotency.snapshot_fetch_chunk"}
        else:
            name = fields.file_name(request, also=snapshot.STREAMS_NAME)
            if name != snapshot.STREAMS_NAME and not snapshot.is_of_our_time(name):
                raise fields.invalid("Field file must be named after a time and a series")
        if found.get("last_lsn") is None:
            raise fields.invalid(f"{name} has no LSN; take a new snapshot there")
        metadata = found.get("metadata") or {}
        if type(metadata) is not dict or len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
            raise fields.invalid(
                f"the metadata of {name} are not an object of at most {MAX_METADATA_BYTES} bytes"
            )
        last_lsn = fields.lsn(found, "last_lsn")
        if "next_lsn" in metadata:
            fields.lsn(metadata, "next_lsn")
        if metadata.get("last_lsn", last_lsn) != last_lsn:
            raise fields.invalid(f"the metadata of {name} name another LSN than {last_lsn}")
        crc32_hex = fields.identifier(metadata, "crc32")
        return _Wanted(request, name, fields.u64(found, "bytes"), last_lsn, crc32_hex, metadata)

    def _check_room(self, needed_bytes: int) -> None:
        """Raise BootstrapError unless so many bytes fit on the disk and leave some for everything else."""
        free_bytes, total_bytes = self.disk.space(self.folder)
        reserve_bytes = min(BOOTSTRAP_RESERVE_BYTES, total_bytes // BOOTSTRAP_RESERVE_SHARE)
        if needed_bytes > free_bytes - reserve_bytes:
            raise BootstrapError(
                f"the source's data need {needed_bytes} more bytes here, and {free_bytes} are free, of which "
                f"{reserve_bytes} are kept for the log; make room, or follow another source"
            )

    # -- Files -----------------------------------------------------------------------------------------

    async def _fetch_all(self, wanted: list[_Wanted]) -> None:
        """Fetch every file; small ones are written together, for each sync of its own would take longer."""
        names = set(self.disk.list_names(self.folder))
        batch: list[tuple[_Wanted, bytes | None]] = []
        size_bytes = 0
        for each in wanted:
            if self._is_here(each, names):
                self.fetched_bytes += each.size_bytes
                batch.append((each, None))
            elif each.metadata and each.size_bytes <= _SMALL_FILE_BYTES:
                batch.append((each, await self._whole(each)))
                size_bytes += each.size_bytes
            else:
                await self._fetch(each, names)
            if len(batch) >= _BATCH_FILES or size_bytes >= _BATCH_BYTES:
                await asyncio.to_thread(self._write, batch)
                batch, size_bytes = [], 0
        await asyncio.to_thread(self._write, batch)

    def _is_here(self, wanted: _Wanted, names: set[str]) -> bool:
        """Whether a file was fetched by an earlier attempt, if for an earlier set of the source's."""
        return wanted.name in names and self._is_known(wanted, names)

    def _is_known(self, wanted: _Wanted, names: set[str]) -> bool:
        """Whether what was fetched of a file before is a part of it."""
        path = snapshot.metadata_path(self.folder / wanted.name)
        if not wanted.metadata or path.name not in names:
            return False
        data = self.disk.read_file(path)
        if data == orjson.dumps(wanted.metadata):
            return True
        with contextlib.suppress(ValueError, TypeError, KeyError):
            known = orjson.loads(data)
            return wanted.crc32 is not None and (known["crc32"], known["bytes"]) == (
                wanted.crc32,
                wanted.size_bytes,
            )
        return False

    async def _whole(self, wanted: _Wanted) -> bytes:
        """Fetch a small file."""
        data = b""
        while len(data) < wanted.size_bytes:
            data += await self._chunk(wanted, len(data))
        self._check_crc32(wanted, f"{crc32(data):08x}")
        return data

    def _write(self, batch: list[tuple[_Wanted, bytes | None]]) -> None:
        """Write small files, then the metadata by which a later attempt knows them."""
        self.disk.write_files((self.folder / each.name, [data]) for each, data in batch if data is not None)
        self.disk.write_files(
            (snapshot.metadata_path(self.folder / each.name), [orjson.dumps(each.metadata)])
            for each, _ in batch
        )

    async def _fetch(self, wanted: _Wanted, names: set[str]) -> None:
        """Fetch one file, or what is still missing of it."""
        path = self.folder / wanted.name
        metadata_path = snapshot.metadata_path(path)
        part_path = path.with_name(path.name + ".part")
        if not self._is_known(wanted, names):
            # Of another snapshot by the same name, or none yet: what was fetched before is of no use.
            self.disk.remove(path)
            self.disk.remove(part_path)
        if wanted.metadata:
            self.disk.write_file(metadata_path, [orjson.dumps(wanted.metadata)])
        part = self.disk.append_to(part_path)
        try:
            if part.size_bytes > wanted.size_bytes:
                part.truncate(0)
            self.fetched_bytes += part.size_bytes
            while part.size_bytes < wanted.size_bytes:
                part.write(await self._chunk(wanted, part.size_bytes))
            part.sync()
        finally:
            part.close()
        if wanted.crc32 is not None:
            try:
                self._check_crc32(wanted, await asyncio.to_thread(self._crc32, part_path))
            except BootstrapError:
                self.disk.remove(part_path)
                raise
        self.disk.rename(part_path, path)

    @staticmethod
    def _check_crc32(wanted: _Wanted, arrived: str) -> None:
        if wanted.crc32 not in (None, arrived):
            raise BootstrapError(
                f"{wanted.name} arrived with CRC-32 {arrived}, the source says {wanted.crc32}: "
                "fetching it again"
            )

    async def _chunk(self, wanted: _Wanted, offset: int) -> bytes:
        request = {**wanted.request, "offset": offset, "limit": self.chunk_bytes}
        try:
            found = await self._ask(request)
        except BootstrapError as error:
            raise BootstrapError(
                f"{_spell({**wanted.metadata, 'file': wanted.name})} cannot be fetched: {error}"
            ) from error
        try:
            metadata = found["metadata"]
            is_same = metadata.get("last_lsn", wanted.last_lsn) == wanted.last_lsn or (
                # The next set at the source has the same file.
                wanted.crc32 is not None and metadata.get("crc32") == wanted.crc32
            )
            if found["total_bytes"] != wanted.size_bytes or not is_same:
                raise BootstrapError(f"{wanted.name} changed at the source while it was fetched")
            data = base64.b64decode(found["data_base64"], validate=True)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BootstrapError(f"a part of {wanted.name} cannot be used: {quote(error)}") from error
        if len(data) > min(self.chunk_bytes, wanted.size_bytes - offset):
            raise BootstrapError(f"a part of {wanted.name} is longer than was asked for")
        if not data:
            raise BootstrapError(f"{wanted.name} ended after {offset} of {wanted.size_bytes} bytes")
        self.fetched_bytes += len(data)
        self._say_progress()
        return data

    def _crc32(self, path: Path) -> str:
        with self.disk.map_file(path) as data:
            return f"{crc32(data):08x}"

    def _say_progress(self) -> None:
        now = self.clock()
        if now - self._said_at >= _PROGRESS_SECONDS:
            self._said_at = now
            percent = 100 * self.fetched_bytes // max(self.total_bytes, 1)
            self.log.info(
                "bootstrap_progress",
                f"{self.fetched_bytes} of {self.total_bytes} bytes ({percent} %)",
                bytes=self.fetched_bytes,
                total_bytes=self.total_bytes,
            )

    # -- The log between the snapshots -------------------------------------------------------------------

    async def _fetch_log(self, first_lsn: int, last_lsn: int, batch_entries: int) -> None:
        """Fetch the entries that some snapshots hold and others lack, so that all reach the same LSN."""
        self.disk.remove(self.folder / wal.LOG_NAME)
        log_file = Wal(self.disk, self.folder, next_lsn=first_lsn + 1, is_synced=False)
        try:
            while log_file.last_lsn < last_lsn:
                found = await self._ask(
                    {
                        "op": "replication.entries",
                        "after_lsn": log_file.last_lsn,
                        "limit": batch_entries,
                        "wait_ms": 0,
                    }
                )
                received = read_entries(found["entries"], log_file.last_lsn, self.clock_ms())
                if not received.entries:
                    raise BootstrapError(f"the source's log ends before LSN {last_lsn}")
                self._check_room(sum(map(len, received.bodies)))
                log_file.append_received(received.bodies, received.times_ms)
            log_file.sync()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BootstrapError(f"a page of the source's log cannot be used: {quote(error)}") from error
        finally:
            log_file.close()

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        reply = await self.link.ask(request)
        if not isinstance(reply, dict):
            raise LinkError("what answers there is no Karma server")
        if reply.get("success") is not True:
            is_too_large = reply.get("error_code") == ErrorCode.RESPONSE_TOO_LARGE
            if is_too_large and "offset" in request and self.chunk_bytes > 1024:
                self.chunk_bytes //= 2
                return await self._ask({**request, "limit": self.chunk_bytes})
            code, message = quote(reply.get("error_code")), quote(reply.get("response"))
            raise BootstrapError(f"the source answers {code}: {message}")
        response = reply.get("response")
        if not isinstance(response, dict):
            raise LinkError("the source's reply is none of this protocol")
        return response


def _spell(found: dict[str, Any]) -> str:
    """Return which file of which series is meant."""
    metadata = found.get("metadata")
    series = found.get("tree") or (metadata.get("tree") if type(metadata) is dict else None)
    of = "" if series is None else f" of series {quote(series)[:_QUOTED_NAME_CHARACTERS]}"
    return f"the source's file {quote(found.get('file'))[:_QUOTED_NAME_CHARACTERS]}{of}"


def _files_of_original(info: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Return where a Karma 1.0's log begins, and its snapshot files as `_wanted` reads them.

    It truncates its log where it snapshots everything, idempotency records included.
    """
    names = ("tree", "file", "timestamp", "last_lsn", "bytes")
    latest = fields.objects(info, "latest_by_tree", None)
    files = [{**found, "metadata": {name: found[name] for name in names}} for found in latest]
    records = info.get("idempotency_snapshot")
    if records is None:
        return 0, files
    files.append({**records, "file": snapshot.RECORDS_NAME, "metadata": records})
    return fields.lsn(records, "last_lsn"), files
