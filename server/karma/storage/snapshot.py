"""Snapshots: what the log does not have to repeat. Each file holds the effect of every entry up to its LSN.

Format::

    <unix seconds>_<name>.tree              one series (see `tree_file`), and beside it
    <unix seconds>_<name>.tree.meta.json    {tree, file, timestamp, last_lsn, bytes, crc32, ordinal, encoded?,
                                             written_lsn?, self_crc32}
    karma.idempotency.json                  {records: [...], committed_streams: [...]}, and beside it
    karma.idempotency.json.meta.json        {file, timestamp, last_lsn, bytes, record_count,
                                             committed_stream_count, crc32, next_lsn?, self_crc32}
    karma.ingest.msgpack                    {format: 1, lsn, active: [...], committed: [...]}, then its CRC-32
    recovery.json                           {checkpoints: [{source, offset, event_id, updated_at_unix}],
                                             self_crc32}
    karma.snapshots.json                    which of these files are the last set, see `manifest`
    dropped/                                snapshots of series that were dropped

All but ``karma.ingest.msgpack`` and ``karma.snapshots.json``, and the fields ``crc32`` (8 hex digits over
the whole file), ``ordinal`` (rises in creation order), ``encoded``, ``written_lsn`` (of a file that a later
set kept), ``next_lsn`` and ``self_crc32`` (of the other fields, see `checked.sealed`), are Karma 1.0's.

In a file name ``/`` is percent-encoded, and a name too long for one is cut and ends in a hash: ``encoded``
then says that the real name is the metadata's ``tree``. A timestamp never comes twice for one name.

Life cycle: a ``.tree`` is written whole under a temporary name, synced and renamed, then its metadata
the same way. A ``.tree`` without metadata is therefore what a kill left behind, and counts for nothing
where a log lies beside it; when old ones are removed, the metadata goes first. The idempotency snapshot
keeps one name, so its metadata cannot simply come last: a kill between the two would look like damage, or
like another LSN. Before the file is replaced its metadata therefore gets ``next_lsn``, what the LSN will be
once the file no longer has the ``crc32`` that stands there.

These functions also run in a forked child: no logging, no threads, no state of their own.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgpack
import orjson

from karma.core.buckets import Counter
from karma.core.idempotency import Record, Records
from karma.core.ingest import STREAMS_FILE, Stream, Streams
from karma.core.series import Series
from karma.storage import tree_file
from karma.storage.checked import (
    Checksum,
    check_seal,
    crc32_hex,
    damage,
    damage_in,
    read_json,
    sealed,
    take,
    take_or_none,
)
from karma.storage.disk import Disk

RECORDS_NAME: Final = "karma.idempotency.json"
STREAMS_NAME: Final = STREAMS_FILE
CHECKPOINTS_NAME: Final = "recovery.json"
DROPPED_NAME: Final = "dropped"

RECORDS_FIELDS: Final = ("file", "timestamp", "last_lsn", "bytes", "record_count", "committed_stream_count")
"""What Karma 1.0 shows of the idempotency snapshot."""
_TREE_FIELDS: Final = ("tree", "file", "timestamp", "last_lsn", "bytes")
"""What Karma 1.0 notes of a series' snapshot."""

_META = ".meta.json"
_TIMESTAMP_DIGITS = 15
_FILE_NAME = re.compile(r"([0-9]{1,15})_(.*)\.tree(\.meta\.json)?", re.DOTALL)
_PRESENT_NAME = re.compile(r"[0-9]{1,12}_.*\.tree", re.DOTALL)
_STEM_LIMIT_BYTES = 220
"""A file system's 255, less ``.<10 digits>_`` and ``.tree.meta.json.tmp`` of the longest temporary name, and
some to spare. The original stops at about 204, so every name that it can write is the same with us."""
_STEM_KEPT_BYTES = 150
_RECORDS_AT_ONCE = 1_000
_STREAMS_FORMAT = 1
_STREAMS_CRC = struct.Struct(">BI")
_UINT32 = 0xCE


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One `.tree` file. What only its metadata tells is None without it, or in an original's directory."""

    series: str
    path: Path
    file: str
    timestamp: int
    """Unix seconds, as in the file name."""
    bytes: int
    """The size it should have by its metadata, else the size it has."""
    last_lsn: int | None = None
    """Every entry up to this one is in it. None: nobody can tell, or it was never finished."""
    crc32: str | None = None
    ordinal: int | None = None
    metadata_file: Path | None = None
    encoded: bool = False
    """The file name does not hold the series' name as it is."""
    written_lsn: int | None = None
    """The LSN at which it was written, where a later set of snapshots has extended `last_lsn`."""
    set_unix: int | None = None
    """When the last set of snapshots with this file was taken, if later than the file was written."""
    is_in_set: bool = False
    """Whether the last set of snapshots has it."""

    @property
    def taken_unix(self) -> int:
        """Its age: when it was last found to hold what the series held."""
        return self.timestamp if self.set_unix is None else self.set_unix

    @property
    def first_lsn(self) -> int:
        """The LSN from which on the series was as the file holds it."""
        return (self.last_lsn or 0) if self.written_lsn is None else self.written_lsn

    def metadata(self) -> dict[str, object]:
        """Return the content of the metadata file, with its own checksum."""
        known: dict[str, object] = {
            "tree": self.series,
            "file": self.file,
            "timestamp": self.taken_unix,
            "last_lsn": self.last_lsn,
            "bytes": self.bytes,
            "crc32": self.crc32,
            "ordinal": self.ordinal,
            "encoded": self.encoded or None,
            "written_lsn": self.written_lsn,
        }
        return sealed({name: value for name, value in known.items() if value is not None})


# -- Series ----------------------------------------------------------------------------------------


def write_tree(
    disk: Disk,
    directory: Path,
    series_name: str,
    counters: dict[int, Counter],
    lsn: int,
    timestamp_unix: int,
    ordinal: int,
) -> SnapshotFile:
    """Write the snapshot of one series; see `write_trees`."""
    return write_trees(disk, directory, [Series(series_name, counters, ordinal)], lsn, timestamp_unix)[0]


def write_trees(
    disk: Disk,
    directory: Path,
    all_series: Iterable[Series],
    lsn: int,
    timestamp_unix: int,
    before_each: Callable[[], None] = lambda: None,
) -> list[SnapshotFile]:
    """Write the snapshots of series, durably, and their metadata; `before_each` may raise to give up.

    Raises OSError when the disk refuses, with nothing left behind that has no metadata.
    """
    # A power cut may leave any of the names that a folder was not synced for, so no metadata are there
    # before all files are.
    newest = newest_timestamps(disk, directory)

    def chunks(series: Series, checksum: Checksum) -> Iterator[bytes]:
        before_each()
        yield from checksum.over(tree_file.encode(series.counters))

    due: list[tuple[Path, int, Series, Checksum]] = []
    for series in all_series:
        stem = _stem(series.name)
        timestamp = newest[stem] = max(timestamp_unix, newest.get(stem, -1) + 1)
        due.append((directory / f"{timestamp}_{stem}.tree", timestamp, series, Checksum()))
    try:
        sizes_bytes = disk.write_files((path, chunks(series, checksum)) for path, _, series, checksum in due)
        files = [
            SnapshotFile(
                series.name,
                path,
                path.name,
                timestamp,
                size_bytes,
                lsn,
                checksum.hex(),
                series.ordinal,
                metadata_path(path),
                _stem(series.name) != series.name,
            )
            for (path, timestamp, series, checksum), size_bytes in zip(due, sizes_bytes, strict=True)
        ]
        disk.write_files((metadata_path(file.path), [orjson.dumps(file.metadata())]) for file in files)
    except OSError:
        # On a full disk each try would leave other files that count for nothing.
        names = set(disk.list_names(directory))
        for path, *_ in due:
            if metadata_path(path).name not in names:
                with contextlib.suppress(OSError):
                    disk.remove(path)
        raise
    return files


def newest_timestamps(disk: Disk, directory: Path) -> dict[str, int]:
    """Return the newest timestamp, in unix seconds, of each name that snapshot files have."""
    newest: dict[str, int] = {}
    for name in disk.list_names(directory):
        digits, _, rest = name.removesuffix(_META).partition("_")
        if (
            rest.endswith(".tree")
            and len(digits) <= _TIMESTAMP_DIGITS
            and digits.isascii()
            and digits.isdigit()
        ):
            stem = rest.removesuffix(".tree")
            newest[stem] = max(int(digits), newest.get(stem, 0))
    return newest


def is_of_our_time(name: str) -> bool:
    """Return whether a snapshot's name leaves later ones a time to be named after: until the year 33658."""
    return _PRESENT_NAME.fullmatch(name) is not None


def list_snapshots(
    disk: Disk, directory: Path, known: Mapping[str, SnapshotFile] | None = None
) -> list[SnapshotFile]:
    """Return the `.tree` files of a directory, newest first; other names than ours are passed over.

    `known` are files by name whose metadata were read before. Raises DamagedDataError when metadata
    cannot be read or belong to another file.
    """
    snapshots = []
    for name in disk.list_names(directory):
        if known is not None and name in known:
            snapshots.append(known[name])
            continue
        match = _FILE_NAME.fullmatch(name)
        if match and not match[3]:
            # A server at work on the directory may remove old ones while a tool lists them.
            with contextlib.suppress(FileNotFoundError):
                snapshots.append(describe_file(disk, directory / name, int(match[1]), match[2]))
    return sorted(snapshots, key=lambda snapshot: (-snapshot.timestamp, snapshot.file))


def describe_file(disk: Disk, path: Path, timestamp: int, stem: str) -> SnapshotFile:
    """Return what is known of a `.tree` file. Raises DamagedDataError for metadata that cannot be used."""
    size_bytes = disk.size_bytes(path)
    metadata_file = metadata_path(path)
    metadata = read_json(disk, metadata_file)
    if metadata is None:
        return SnapshotFile(stem, path, path.name, timestamp, size_bytes)
    with damage_in(metadata_file, "check"):
        check_seal(metadata, _TREE_FIELDS)
        series = take(metadata, "tree", str)
        if take(metadata, "file", str) != path.name or stem != _stem(series):
            raise ValueError(f"it describes {metadata['file']} of series {series!r}, another file")
        taken_unix = take_or_none(metadata, "timestamp", int) or timestamp
        return SnapshotFile(
            series,
            path,
            path.name,
            timestamp,
            take(metadata, "bytes", int),
            take(metadata, "last_lsn", int),
            take_or_none(metadata, "crc32", str),
            take_or_none(metadata, "ordinal", int),
            metadata_file,
            stem != series,
            # A follower has these from its source.
            written_lsn=take_or_none(metadata, "written_lsn", int),
            set_unix=taken_unix if taken_unix > timestamp else None,
        )


def latest_by_series(snapshots: Iterable[SnapshotFile]) -> dict[str, SnapshotFile]:
    """Return the newest of the given snapshots for each series."""
    latest: dict[str, SnapshotFile] = {}
    for snapshot in snapshots:
        if snapshot.series not in latest or latest[snapshot.series].timestamp < snapshot.timestamp:
            latest[snapshot.series] = snapshot
    return latest


def load_tree(disk: Disk, snapshot: SnapshotFile) -> dict[int, Counter]:
    """Return a snapshot's counters by key. Raises DamagedDataError when the file is not what was written."""
    with damage_in(snapshot.path, "repair"), disk.map_file(snapshot.path) as data:
        if len(data) != snapshot.bytes:
            raise ValueError(f"the file has {len(data)} bytes, but its metadata says {snapshot.bytes}")
        if snapshot.crc32 is not None and crc32_hex(data) != snapshot.crc32:
            raise ValueError(f"its CRC-32 is {crc32_hex(data)}, but its metadata says {snapshot.crc32}")
        return tree_file.decode(data)


def _stem(series_name: str) -> str:
    """Return what stands for a series in file names."""
    stem = series_name
    if "/" in stem or "\0" in stem:
        stem = stem.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    spelt = stem.encode()
    if len(spelt) <= _STEM_LIMIT_BYTES:
        return stem
    digest = sha256(series_name.encode()).hexdigest()
    return f"{spelt[:_STEM_KEPT_BYTES].decode(errors='ignore')}~{digest[:32]}"


def metadata_path(path: Path) -> Path:
    """Return the name of a file's metadata."""
    return path.with_name(path.name + _META)


# -- Idempotency records -----------------------------------------------------------------------------


def write_records(
    disk: Disk,
    directory: Path,
    records: Records,
    committed_streams: Iterable[Stream],
    lsn: int,
    timestamp_unix: int,
    expiry_unix: int | None = None,
) -> None:
    """Replace the idempotency snapshot, durably. Raises OSError when the disk refuses: the old one stands.

    `expiry_unix` is how far the clock is by which records age.
    """
    path = directory / RECORDS_NAME
    metadata_file = metadata_path(path)
    disk.write_file(metadata_file, [orjson.dumps(sealed({**_known_records(disk, path), "next_lsn": lsn}))])
    streams = [_stream_fields(stream) for stream in committed_streams]
    checksum = Checksum()
    size_bytes = disk.write_file(path, checksum.over(_records_json(records, streams)))
    metadata = {
        "file": path.name,
        "timestamp": timestamp_unix,
        "last_lsn": lsn,
        "bytes": size_bytes,
        "record_count": len(records),
        "committed_stream_count": len(streams),
        "crc32": checksum.hex(),
    }
    if expiry_unix is not None:
        metadata["expiry_unix"] = expiry_unix
    disk.write_file(metadata_file, [orjson.dumps(sealed(metadata))])


def load_records(disk: Disk, directory: Path, records: Records, streams: Streams) -> int | None:
    """Put the idempotency snapshot's content into `records` and the committed `streams`; returns its LSN.

    That is None without a snapshot, or when nothing tells. Raises DamagedDataError, with some put in.
    """
    path = directory / RECORDS_NAME
    metadata = _read_records_metadata(disk, path)
    try:
        data = disk.read_file(path)
    except FileNotFoundError:
        if metadata is not None and "bytes" in metadata:
            raise damage(path, "the file is missing, but its metadata is there", "repair") from None
        return None
    with damage_in(path, "repair"):
        last_lsn = _records_lsn(metadata, len(data), crc32_hex(data))
        content = orjson.loads(data)
        for fields in take(content, "records", list):
            record = Record(
                take(fields, "operation", str),
                take(fields, "fingerprint", str),
                fields["response"],
                take(fields, "created_at_unix", int),
                take_or_none(fields, "today", int),
            )
            records.put(take(fields, "key", str), record)
        for fields in take(content, "committed_streams", list):
            stream = _to_stream(fields)
            streams.committed[stream.stream_id] = stream
        if metadata is not None:  # Karma 1.0's has the wall clock's time only
            expiry_unix = metadata.get("expiry_unix", metadata.get("timestamp"))
            records.newest_unix = max(records.newest_unix, expiry_unix or 0)
        return last_lsn


def records_metadata(disk: Disk, directory: Path) -> dict[str, Any] | None:
    """Return the idempotency snapshot's metadata, None without a snapshot."""
    path = directory / RECORDS_NAME
    with contextlib.suppress(FileNotFoundError):
        disk.size_bytes(path)
        return _read_records_metadata(disk, path)
    return None


def are_records_ours(disk: Disk, directory: Path) -> bool:
    """Return whether we wrote the idempotency snapshot, or began to; Karma 1.0 notes no CRC."""
    metadata = _read_records_metadata(disk, directory / RECORDS_NAME)
    return metadata is not None and ("crc32" in metadata or "next_lsn" in metadata)


def describe_records(disk: Disk, directory: Path) -> dict[str, Any] | None:
    """Return the idempotency snapshot's metadata as Karma 1.0 shows them, None without a snapshot."""
    metadata = records_metadata(disk, directory)
    return None if metadata is None else {name: metadata.get(name) for name in RECORDS_FIELDS}


def _records_json(records: Records, streams: list[dict[str, object]]) -> Iterator[bytes]:
    yield b'{"records":['
    rest = iter(records.items())
    separator = b""
    while batch := list(islice(rest, _RECORDS_AT_ONCE)):
        # A million records as one list of dicts would take a gigabyte.
        yield separator + orjson.dumps([_record_fields(key, record) for key, record in batch])[1:-1]
        separator = b","
    yield b'],"committed_streams":' + orjson.dumps(streams) + b"}"


def _record_fields(key: str, record: Record) -> dict[str, object]:
    fields = {
        "key": key,
        "operation": record.operation,
        "fingerprint": record.fingerprint,
        "response": record.response,
        "created_at_unix": record.created_at_unix,
    }
    return fields if record.today is None else fields | {"today": record.today}


def _read_records_metadata(disk: Disk, path: Path) -> dict[str, Any] | None:
    metadata_file = metadata_path(path)
    metadata = read_json(disk, metadata_file)
    if metadata is not None:
        with damage_in(metadata_file, "check"):
            check_seal(metadata, RECORDS_FIELDS)
    return metadata


def _known_records(disk: Disk, path: Path) -> dict[str, Any]:
    """Return metadata that surely tell the present file from the one about to replace it."""
    metadata = _read_records_metadata(disk, path)
    if metadata is not None and "crc32" in metadata and "next_lsn" not in metadata:
        return metadata
    try:
        data = disk.read_file(path)
    except FileNotFoundError:
        return {}
    crc32 = crc32_hex(data)
    with damage_in(path, "repair"):
        return {"last_lsn": _records_lsn(metadata, len(data), crc32), "bytes": len(data), "crc32": crc32}


def _records_lsn(metadata: Mapping[str, Any] | None, size_bytes: int, crc32: str) -> int | None:
    """Return the LSN of a file of this size and CRC; ValueError when the metadata is of another file."""
    if metadata is None:
        return None
    if metadata.get("bytes") == size_bytes and metadata.get("crc32", crc32) == crc32:
        return take_or_none(metadata, "last_lsn", int)
    if "next_lsn" in metadata:
        return take(metadata, "next_lsn", int)
    raise ValueError(
        f"it has {size_bytes} bytes and CRC-32 {crc32}, but its metadata says "
        f"{metadata.get('bytes')} and {metadata.get('crc32', 'nothing')}"
    )


# -- Ingest streams ------------------------------------------------------------------------------------


def write_streams(disk: Disk, directory: Path, streams: Streams, lsn: int) -> None:
    """Replace the ingest file, durably. Raises OSError when the disk refuses: the old one stands."""
    checksum = Checksum()

    def chunks() -> Iterator[bytes]:
        yield from checksum.over(_streams_msgpack(streams, lsn))
        yield _STREAMS_CRC.pack(_UINT32, checksum.value)

    disk.write_file(directory / STREAMS_NAME, chunks())


def load_streams(disk: Disk, directory: Path) -> tuple[Streams, int] | None:
    """Return the streams and the LSN of the ingest file, or None without one. Raises DamagedDataError."""
    path = directory / STREAMS_NAME
    try:
        data = disk.read_file(path)
    except FileNotFoundError:
        return None
    with damage_in(path, "repair"):
        content, crc = data[: -_STREAMS_CRC.size], data[-_STREAMS_CRC.size :]
        if crc != _STREAMS_CRC.pack(_UINT32, zlib.crc32(content)):
            raise ValueError("its CRC-32 does not match its content")
        fields = msgpack.unpackb(content)
        if fields.get("format") != _STREAMS_FORMAT:
            raise ValueError(f"format {fields.get('format')!r} is unknown: a newer version wrote it")
        streams = Streams()
        for known, name in ((streams.active, "active"), (streams.committed, "committed")):
            for stream_fields in take(fields, name, list):
                stream = _to_stream(stream_fields)
                known[stream.stream_id] = stream
        return streams, take(fields, "lsn", int)


def _streams_msgpack(streams: Streams, lsn: int) -> Iterator[bytes]:
    packer = msgpack.Packer()
    yield packer.pack_map_header(4)
    yield from map(packer.pack, ("format", _STREAMS_FORMAT, "lsn", lsn, "active"))
    yield packer.pack_array_header(len(streams.active))
    for stream in streams.active.values():
        fields = _stream_fields(stream)
        yield packer.pack_map_header(len(fields) + 1)
        for name, value in fields.items():
            yield packer.pack(name)
            yield packer.pack(value)
        yield packer.pack("staged")
        # In pieces, because a bin ends at 4 GiB.
        staged = None if stream.staged is None else list(tree_file.encode(stream.staged))
        if staged is None:
            yield packer.pack(None)
        else:
            yield packer.pack_array_header(len(staged))
            yield from map(packer.pack, staged)
    yield packer.pack("committed")
    yield packer.pack([_stream_fields(stream) for stream in streams.committed.values()])


def _stream_fields(stream: Stream) -> dict[str, object]:
    """Return what is stored of a stream; like Karma 1.0 it leaves out what is not set."""
    fields: dict[str, object | None] = {
        "stream_id": stream.stream_id,
        "mode": stream.mode,
        "granularity": stream.granularity,
        "series_name": stream.series,
        "last_chunk_seq": stream.last_chunk_seq,
        "begin_fingerprint": stream.begin_fingerprint,
        "chunk_fingerprints": {
            str(chunk_seq): digest for chunk_seq, digest in stream.chunk_fingerprints.items()
        },
        "committed_at_unix": stream.committed_at_unix,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _to_stream(fields: Any) -> Stream:
    staged = fields.get("staged")
    return Stream(
        take(fields, "stream_id", str),
        take(fields, "mode", str),
        take_or_none(fields, "granularity", str),
        take(fields, "begin_fingerprint", str),
        take_or_none(fields, "series_name", str),
        take(fields, "last_chunk_seq", int),
        {int(chunk_seq): digest for chunk_seq, digest in take(fields, "chunk_fingerprints", dict).items()},
        None if staged is None else tree_file.decode(b"".join(staged)),
        take_or_none(fields, "committed_at_unix", int),
    )


# -- Recovery checkpoints --------------------------------------------------------------------------------

CHECKPOINT_FIELDS: Final = ("source", "offset", "event_id", "updated_at_unix")


def write_checkpoints(disk: Disk, directory: Path, checkpoints: Iterable[Mapping[str, object]]) -> None:
    """Replace the recovery checkpoints, each with `CHECKPOINT_FIELDS`, durably; None stays out of it."""
    content = [
        {name: checkpoint[name] for name in CHECKPOINT_FIELDS if checkpoint.get(name) is not None}
        for checkpoint in checkpoints
    ]
    disk.write_file(directory / CHECKPOINTS_NAME, [orjson.dumps(sealed({"checkpoints": content}))])


def load_checkpoints(disk: Disk, directory: Path) -> list[dict[str, Any]]:
    """Return the recovery checkpoints, each with all `CHECKPOINT_FIELDS`, None where there is no value.

    Raises DamagedDataError.
    """
    path = directory / CHECKPOINTS_NAME
    content = read_json(disk, path)
    if content is None:
        return []
    with damage_in(path, "check"):
        check_seal(content, ("checkpoints",))
        checkpoints = take(content, "checkpoints", list)
        return [
            {
                "source": checkpoint.get("source"),
                **{name: _as_text(checkpoint.get(name)) for name in ("offset", "event_id")},
                "updated_at_unix": checkpoint.get("updated_at_unix"),
            }
            for checkpoint in checkpoints
        ]


def _as_text(value: str | int | None) -> str | None:
    return None if value is None else str(value)
