"""Decoded snapshots as DuckDB files in the user's cache, and the session's own scratch folder.

    sql/<digest>.duckdb         one `.tree` file, with tables counters and totals
    sql/scratch.<pid>.<n>/      what a session may read and write; gone when it ends
    snapshots/<node>/           mirrors of remote nodes' snapshots

The digest is of path, size, time of change and the versions that wrote the file, so a file that changed is
another one. When the files together pass the limit, those that were not used for longest go.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from karma.ownership import who_may_write
from karma_sql.engine import duckdb

if TYPE_CHECKING:
    from karma.offline.columns import Columns
    from karma.offline.pictures import SnapshotFile

FORMAT = 1
DEFAULT_LIMIT_BYTES = 4 << 30
LEAST_BUCKETS = 1_000_000
"""Below, decoding takes less time than a file of its own would save."""


class Cache:
    """The folder `folder` below the user's cache.

    One that cannot be written to, or that strangers may write to, becomes a temporary one.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES, is_kept: bool = True) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._is_kept = is_kept
        """Whether decoded snapshots are looked for and kept."""
        try:
            (folder / "sql").mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in (folder, folder / "sql"):
                if (stranger := who_may_write(path)) is not None:
                    raise PermissionError(f"{path}: {stranger}")
            self.scratch = self._new_scratch(folder / "sql")
        except OSError:
            self._is_kept = False
            self.scratch = Path(tempfile.mkdtemp(prefix="karma-sql."))
        self._links = 0

    def _new_scratch(self, folder: Path) -> Path:
        for stale in folder.glob("scratch.*"):
            if not _is_running(stale.name.split(".")[1]):
                shutil.rmtree(stale, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"scratch.{os.getpid()}.", dir=folder))

    def close(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    # -- Decoded snapshots ---------------------------------------------------------------------

    def find(self, file: SnapshotFile) -> Path | None:
        """Return a link in the scratch folder to a snapshot's decoded form, None when there is none."""
        path = self._path(file)
        if path is None:
            return None
        self._links += 1
        link = self.scratch / f"{self._links}.duckdb"
        try:
            # Another session may remove the file; the link holds on to what it was.
            link.hardlink_to(path)
            os.utime(path)
        except OSError:
            return None
        return link

    def keep(self, file: SnapshotFile, columns: Columns) -> None:
        """Keep a large snapshot's decoded form. A cache that cannot be written is no error."""
        path = self._path(file)
        if path is None or len(columns.values) < LEAST_BUCKETS:
            return
        made = self.scratch / "made.duckdb"
        try:
            _write(made, columns)
            made.replace(path)
        except OSError:
            return
        finally:
            made.unlink(missing_ok=True)
        self.prune()

    def prune(self) -> None:
        """Remove what was not used for longest until the rest is within the limit."""
        files = [
            *self.folder.glob("sql/*.duckdb"),
            *(path for path in self.folder.glob("snapshots/*/*") if path.suffix != ".json"),
        ]
        known = []
        for path in files:
            with suppress(FileNotFoundError):
                found = path.stat()
                known.append((found.st_mtime, found.st_size, path))
        excess_bytes = sum(size for _, size, _ in known) - self.limit_bytes
        for _, size, path in sorted(known):
            if excess_bytes <= 0:
                return
            path.with_name(path.name + ".meta.json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            excess_bytes -= size

    def _path(self, file: SnapshotFile) -> Path | None:
        if not self._is_kept:
            return None
        try:
            found = file.path.stat()
        except OSError:
            return None
        parts = (
            FORMAT,
            duckdb().__version__,
            file.path.resolve(),
            found.st_size,
            found.st_mtime_ns,
            file.crc32,
        )
        return self.folder / "sql" / f"{sha256(repr(parts).encode()).hexdigest()[:32]}.duckdb"


def _write(path: Path, columns: Columns) -> None:
    path.unlink(missing_ok=True)
    try:
        with duckdb().connect(str(path)) as connection:
            connection.register("buckets", bucket_arrays(columns))
            connection.register("keys", key_arrays(columns))
            connection.execute(
                f"CREATE TABLE counters AS SELECT key, {day_sql(columns)} AS day, value FROM buckets"
            )
            connection.execute("CREATE TABLE totals AS SELECT key, total, buckets FROM keys")
    except duckdb().Error as error:
        # No room, for example.
        raise OSError(str(error)) from error


def bucket_arrays(columns: Columns) -> dict[str, object]:
    """Return the buckets as DuckDB reads arrays: a relation of key, days and value."""
    return {"key": columns.bucket_keys, "days": columns.days, "value": columns.values}


def key_arrays(columns: Columns) -> dict[str, object]:
    """Return the keys as DuckDB reads arrays: a relation of key, total and buckets."""
    return {"key": columns.keys, "total": columns.totals, "buckets": columns.counts}


def day_sql(columns: Columns) -> str:
    """Return the SQL of a bucket's day; one that is no date is NULL."""
    if columns.bad_days:
        return "DATE '1970-01-01' + NULLIF(days, -2147483648)"
    return "DATE '1970-01-01' + days"


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
