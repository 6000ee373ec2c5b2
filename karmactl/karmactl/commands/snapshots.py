"""snapshot create, list, info, verify, fetch, load."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from karma_client.errors import ResponseTooLargeError
from karmactl.diagnostics import CtlError, Exit
from karmactl.output import Paper, Row, Shown, in_bytes, record, table
from karmactl.run import Run
from karmactl.table.entries import columns

CHUNK_BYTES = 262_144
"""The server's default for one chunk."""
LEAST_CHUNK_BYTES = 1024
_LATEST = columns("tree", "file", "timestamp:time", "bytes:bytes", "last_lsn:number")


def create(run: Run, series: tuple[str, ...]) -> list[Row]:
    """Save series, or everything."""
    if not series:
        run.send("snapshot.create_all")
        return [{"series": "all", "done": "saved"}]
    for name in series:
        run.send("snapshot.create", series=name)
    return [{"series": name, "done": "saved"} for name in series]


def list_(run: Run, series: str | None) -> list[Row]:
    """List snapshot files."""
    rows: list[Row] = [_described(path) for path in run.ask("snapshot.list")]
    return rows if series is None else [row for row in rows if row["series"] == series]


def _described(path: str) -> dict[str, Any]:
    file = path.rpartition("/")[2]
    taken, _, name = file.removesuffix(".tree").partition("_")
    return {"file": file, "series": name, "taken_unix": int(taken) if taken.isdigit() else None, "path": path}


def info(run: Run) -> Shown:
    """Show the newest snapshots and the log."""
    found: dict[str, Any] = run.ask("snapshot.info")

    def text(paper: Paper) -> Iterator[str]:
        yield from record(
            {name: value for name, value in found.items() if name != "latest_by_tree"}, {}, paper
        )
        if found["latest_by_tree"]:
            yield ""
            yield from table(found["latest_by_tree"], _LATEST, paper)

    return Shown(found, text)


def verify(run: Run) -> Any:
    """Let the server check its directory."""
    return run.ask("snapshot.verify")


def load(run: Run, file: str) -> Row:
    """Replace a series by a snapshot, after the series' name was typed."""
    series = _chunk(run, file, 0, 1)["metadata"]["tree"]
    run.confirm(f'replace what series "{series}" holds by {file}', typed=series)
    run.send("snapshot.load", file=file)
    return {"series": series, "file": file, "done": "loaded"}


# -- Download --------------------------------------------------------------------------------------------


def fetch(run: Run, file: tuple[str, ...], to: str) -> Iterator[Row]:
    """Download snapshot files, each as it is done."""
    names = file or tuple(latest["file"] for latest in run.ask("snapshot.info")["latest_by_tree"])
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        yield _fetch(run, name, folder)


def _fetch(run: Run, file: str, folder: Path) -> Row:
    """Download one file: into FILE.part, which a second try continues, then FILE and its metadata."""
    if "/" in file or not file.endswith(".tree"):
        raise CtlError(
            Exit.USAGE, f'"{file}" is no name of a snapshot file', fault="command line",
            advice="`karmactl snapshot list` shows their names",
        )  # fmt: skip
    first = _chunk(run, file, 0, 1)
    metadata, total_bytes = first["metadata"], first["total_bytes"]
    row = {
        "file": file,
        "series": metadata["tree"],
        "bytes": total_bytes,
        "last_lsn": metadata.get("last_lsn"),
    }
    target = folder / file
    if target.exists() and _is_whole(_blocks(target), metadata, total_bytes):
        return {**row, "status": "present"}
    part = folder / f"{file}.part"
    with part.open("ab") as stream:
        _receive(run, file, total_bytes, stream)
        stream.flush()
        os.fsync(stream.fileno())
    if not _is_whole(_blocks(part), metadata, total_bytes):
        part.unlink()
        raise CtlError(
            Exit.PARTIAL,
            f"{file} did not arrive as the server describes it (size or checksum); what came was removed",
            fault="network",
            advice="fetch it again; `karmactl snapshot verify` lets the server check its own",
        )
    part.replace(target)
    (folder / f"{file}.meta.json").write_text(json.dumps(metadata) + "\n")
    return {**row, "status": "checked" if "crc32" in metadata else "fetched"}


def _receive(run: Run, file: str, total_bytes: int, stream: BinaryIO) -> None:
    offset, limit = stream.tell(), CHUNK_BYTES
    if offset > total_bytes:
        stream.truncate(0)
        offset = 0
    elif offset:
        run.talk.say(f"{file}: going on at {in_bytes(offset)} of {in_bytes(total_bytes)}")
    while offset < total_bytes:
        try:
            chunk = _chunk(run, file, offset, limit)
        except ResponseTooLargeError:
            if limit <= LEAST_CHUNK_BYTES:
                raise
            limit //= 2
            continue
        data = base64.b64decode(chunk["data_base64"])
        if not data:
            break
        stream.write(data)
        offset += len(data)
        run.talk.progress(
            f"{file}: {in_bytes(offset)} of {in_bytes(total_bytes)}, {offset / total_bytes:.0%}"
        )
    run.talk.progress("")


def _chunk(run: Run, file: str, offset: int, limit: int) -> dict[str, Any]:
    found: dict[str, Any] = run.ask("snapshot.fetch_chunk", file=file, offset=offset, limit=limit)
    return found


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            yield block


def _is_whole(blocks: Iterable[bytes], metadata: Mapping[str, Any], total_bytes: int) -> bool:
    size_bytes = checksum = 0
    for block in blocks:
        size_bytes += len(block)
        checksum = crc32(block, checksum)
    return size_bytes == total_bytes and metadata.get("crc32", f"{checksum:08x}") == f"{checksum:08x}"
