"""Data from elsewhere take the place of what a directory holds, and a kill in between does no harm.

``karma.incoming/`` fills with the files of a data directory, under their final names, the node's own file
with the epochs of these data among them. When it is complete, ``manifest.json`` is written into it:
{"format": 1, "aside": folder, "is_cleared": false} and its checksum. From then on `finish` moves what the
directory held to the folder `aside`, then the new files in; at a start it goes on where a kill stopped it. A
file that is not in ``karma.incoming/`` any more has been moved in, so the order is: first all old files out,
which the manifest notes as "is_cleared", then the new ones in, then the manifest's end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson

from karma.errors import DamagedDataError
from karma.storage import snapshot, wal
from karma.storage.checked import check_seal, damage, damage_in, read_json, sealed, take
from karma.storage.disk import LOCK_NAME, Disk
from karma.storage.node_file import NODE_NAME

INCOMING_NAME: Final = "karma.incoming"
MANIFEST_NAME: Final = "manifest.json"
_FORMAT = 1


def data_names(disk: Disk, directory: Path) -> list[str]:
    """Return the names in a directory that hold data, not the lock or the node's identity."""
    return [
        name
        for name in disk.list_names(directory)
        if name not in (LOCK_NAME, NODE_NAME, INCOMING_NAME)
        and (
            name.startswith("karma.")
            or ".tree" in name
            or name in (wal.RETAINED_NAME, snapshot.CHECKPOINTS_NAME)
        )
    ]


def set_aside(disk: Disk, directory: Path, folder: Path) -> None:
    """Move a directory's data to a folder beside them. Raises OSError."""
    disk.make_directory(folder)
    disk.rename_all((directory / name, folder / name) for name in data_names(disk, directory))


def discarded_folder(disk: Disk, directory: Path, now_unix: int) -> Path:
    """Return a folder that is not there yet, for old data of this moment (unix seconds)."""
    names = disk.list_names(directory)
    while f"discarded-{now_unix}" in names:
        # In one of the same second a file would take the place of an older one by its name.
        now_unix += 1
    return directory / f"discarded-{now_unix}"


def commit(disk: Disk, directory: Path, aside: str) -> None:
    """Say that ``karma.incoming`` is complete; `aside` names the folder for what is there now."""
    _write_manifest(disk, directory / INCOMING_NAME, aside, is_cleared=False)


def read_manifest(disk: Disk, directory: Path) -> tuple[str, bool] | None:
    """Return (aside, is_cleared) where complete data wait to come in, None elsewhere.

    Raises DamagedDataError.
    """
    path = directory / INCOMING_NAME / MANIFEST_NAME
    try:
        manifest = read_json(disk, path)
        if manifest is None:
            return None
        with damage_in(path, "repair"):
            check_seal(manifest, ())
            return take(manifest, "aside", str), take(manifest, "is_cleared", bool)
    except DamagedDataError as error:
        raise damage(directory / INCOMING_NAME, f"{MANIFEST_NAME}: {error.message}", "repair") from None


def finish(disk: Disk, directory: Path) -> str | None:
    """Bring complete incoming data in; returns the folder of the old ones, None if nothing was to be done.

    Raises OSError and DamagedDataError.
    """
    manifest = read_manifest(disk, directory)
    if manifest is None:
        return None
    incoming = directory / INCOMING_NAME
    aside, is_cleared = manifest
    if not is_cleared:
        set_aside(disk, directory, directory / aside)
        _write_manifest(disk, incoming, aside, is_cleared=True)
    names = [name for name in disk.list_names(incoming) if name != MANIFEST_NAME]
    disk.rename_all((incoming / name, directory / name) for name in names)
    disk.remove(incoming / MANIFEST_NAME)
    disk.sync_directory(incoming)
    return aside


def _write_manifest(disk: Disk, incoming: Path, aside: str, *, is_cleared: bool) -> None:
    content = {"format": _FORMAT, "aside": aside, "is_cleared": is_cleared}
    disk.write_file(incoming / MANIFEST_NAME, [orjson.dumps(sealed(content))])
