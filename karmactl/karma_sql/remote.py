"""A remote node as a source: its snapshots in a mirror on this machine, its log page by page.

A snapshot is fetched in chunks when a statement needs it, and stays below ``snapshots/<node>/`` of the cache
under the name that the server gives it, with the metadata that came along. It is the same file when size and
checksum are those that the server tells; a server without checksums is believed by name and size.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from karma.offline import pictures
from karma.offline.pictures import Line, Shots, SnapshotFile
from karma_client import Client
from karma_client.errors import NotFoundError, ReplicationGapError, ValidationError, advanced
from karma_sql.errors import SqlError
from karma_sql.sources import (
    Asked,
    Log,
    Part,
    Picture,
    Source,
    chosen,
    record_rows,
    replayed,
    said_as_missing,
)

PAGE_ENTRIES = 10_000
_BLOCK_BYTES = 1 << 20
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]")


class Remote(Source):
    """A node that `client` talks to. `cache_folder` is the user's, `progress` is told what is fetched."""

    def __init__(
        self, client: Client, name: str, cache_folder: Path, progress: Callable[[str], object]
    ) -> None:
        super().__init__(name)
        self._client = client
        self._folder = cache_folder / "snapshots" / _UNSAFE.sub("_", name)
        self._progress = progress
        self._shots: Shots | None = None

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:
        """Return the newest snapshots, those named, or the node's log replayed on top of earlier ones."""
        shots = self.shots()
        if asked.is_replayed:
            with said_as_missing("`SELECT min(lsn), max(lsn) FROM wal` shows what the node's log holds"):
                lsn = asked.as_of_lsn
                if asked.as_of_ms is not None:
                    lsn = pictures.lsn_at(self._lines(), asked.as_of_ms)
                if lsn is None:
                    lsn = self._last_lsn()
                bases = [self._fetched(file) for file in pictures.newest_before(shots.files, lsn)]
                return [replayed(pictures.replay(bases, self._lines(), lsn, self._streams()), note)]
        if not asked.at and not shots.current:
            note(f"{self.name} has no snapshot; --as-of now replays its log")
        found = [chosen(shots, at, self.name) for at in dict.fromkeys(asked.at)] or [
            Picture(self.name, tuple(Part(file.series, file) for file in shots.current.values()))
        ]
        return [
            Picture(
                picture.label,
                tuple(Part(part.series, self._fetched(part.file)) for part in picture.parts if part.file),
            )
            for picture in found
        ]

    def shots(self) -> Shots:
        """Return the node's snapshot files, as its metadata describe them; none is fetched."""
        if self._shots is None:
            names = [path.rpartition("/")[2] for path in self._client.call_paged("snapshot.list")]
            files = [file for name in names if (file := self._described(name)) is not None]
            info = self._client.call_paged("snapshot.info")
            current = {latest["file"] for latest in info["latest_by_tree"]}
            self._shots = Shots(
                sorted(files, key=lambda file: (-file.timestamp, file.file)),
                {file.series: file for file in files if file.file in current},
            )
        return self._shots

    def log(self, asked: Asked) -> Log | None:  # noqa: ARG002
        """Return the node's log up to where it ends now."""
        return Log(self._blocks)

    def records(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return the idempotency keys and committed imports of the node's last snapshot."""
        data = self._file("idempotency.snapshot_fetch_chunk")
        return ([], []) if data is None else record_rows(*pictures.records_of(data))

    def _streams(self) -> Any:
        """The imports of the node's last snapshot, None where it does not tell."""
        data = self._file("snapshot.fetch_chunk", file=pictures.STREAMS_FILE)
        return None if data is None else pictures.streams_of(data)

    def _file(self, op: str, **fields: Any) -> bytes | None:
        """The whole of a file that the node has under one name, None without it."""
        data = bytearray()
        try:
            while True:
                chunk = self._client.call(op, offset=len(data), **fields)
                part = b64decode(chunk["data_base64"])
                data += part
                if chunk["done"] or not part:
                    return bytes(data)
        except (NotFoundError, ValidationError):
            return None

    # -- Snapshots -----------------------------------------------------------------------------

    def _described(self, name: str) -> SnapshotFile | None:
        """What the server tells of a file; None when it removed it meanwhile."""
        try:
            first = self._client.call("snapshot.fetch_chunk", file=name, offset=0, limit=1)
        except NotFoundError:
            return None
        told: Mapping[str, Any] = first["metadata"] or {}
        digits, _, stem = name.removesuffix(".tree").partition("_")
        timestamp, taken_unix = int(digits), told.get("timestamp") or 0
        return SnapshotFile(
            told.get("tree", stem),
            self._folder / name,
            name,
            timestamp,
            first["total_bytes"],
            told.get("last_lsn"),
            told.get("crc32"),
            told.get("ordinal"),
            written_lsn=told.get("written_lsn"),
            set_unix=taken_unix if taken_unix > timestamp else None,
        )

    def _fetched(self, file: SnapshotFile) -> SnapshotFile:
        """Bring a file into the mirror if it is not there. Raises SqlError when it does not arrive whole."""
        if _is_whole(file.path, file):
            os.utime(file.path)
            return file
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = file.path.with_name(f"{file.file}.{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                self._client.fetch_snapshot(
                    file.file,
                    stream,
                    progress=lambda done: self._progress(
                        f"fetching {file.file} from {self.name}: "
                        f"{done.done_bytes >> 10:,} of {done.total_bytes >> 10:,} KiB"
                    ),
                )
            if not _is_whole(part, file):
                raise SqlError(
                    "gone",
                    f"{file.file} did not arrive as {self.name} describes it (size or checksum)",
                    "try again; `karmactl snapshot verify` lets the server check its own",
                )
            part.replace(file.path)
        finally:
            part.unlink(missing_ok=True)
        file.path.with_name(f"{file.file}.meta.json").write_text(json.dumps(file.metadata()))
        return file

    # -- The log -------------------------------------------------------------------------------

    def _last_lsn(self) -> int:
        status = self._client.call("replication.status")
        return max(status.get("wal_current_lsn") or 0, status.get("replayed_lsn") or 0)

    def _entries(self) -> Iterator[dict[str, Any]]:
        after_lsn, last_lsn = 0, None
        while last_lsn is None or after_lsn < last_lsn:
            fields = {"after_lsn": after_lsn, "limit": PAGE_ENTRIES, "wait_ms": 0}
            try:
                page = self._client.call("replication.entries", **fields)
            except ReplicationGapError as error:
                if after_lsn:
                    raise
                after_lsn = self._first_lsn(error) - 1
                last_lsn = max(after_lsn, self._last_lsn())
                continue
            last_lsn = page["source_lsn"] if last_lsn is None else last_lsn
            for each in page["entries"]:
                if each["lsn"] > last_lsn:
                    return
                yield each
            if not page["entries"]:
                return
            after_lsn = advanced(after_lsn, page["next_lsn"])
            self._progress(f"reading the log of {self.name}, LSN {after_lsn:,} of {last_lsn:,}")

    def _first_lsn(self, error: ReplicationGapError) -> int:
        """Where the log begins: the refusal says it, and Karma 1.0's begins behind its last snapshot."""
        told = re.search(r"log starts at LSN (\d+)", error.message)
        if told is not None:
            return int(told[1])
        return int(self._client.call("replication.status").get("last_snapshot_lsn") or 0) + 1

    def _lines(self) -> Iterator[Line]:
        return (Line(each["lsn"], each["entry"], each.get("ts")) for each in self._entries())

    def _blocks(self) -> Iterator[bytes]:
        block = bytearray()
        for each in self._entries():
            block += orjson.dumps({"lsn": each["lsn"], "entry": each["entry"], "ts": each.get("ts")}) + b"\n"
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
        if block:
            yield bytes(block)


def _is_whole(path: Path, file: SnapshotFile) -> bool:
    """Whether a file here is the one that the server describes."""
    checksum = 0
    try:
        if path.stat().st_size != file.bytes:
            return False
        with path.open("rb") as stream:
            while file.crc32 is not None and (block := stream.read(1 << 20)):
                checksum = crc32(block, checksum)
    except FileNotFoundError:
        return False
    return file.crc32 is None or f"{checksum:08x}" == file.crc32
