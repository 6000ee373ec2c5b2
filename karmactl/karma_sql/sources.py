"""Where data come from: data directories, `.tree` files, Parquet and log files. Remote nodes: see `remote`.

A source gives **pictures** (what was there at a moment, series by series), its log as lines of JSON, and what
lies beside them. Nothing is decoded before somebody asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma.errors import DamagedDataError
from karma.offline import pictures, read_log
from karma.offline.log_copy import LogCopy
from karma.offline.pictures import MissingLogError, Replayed, Shots, SnapshotFile
from karma_sql.errors import SqlError

if TYPE_CHECKING:
    from karma.offline.columns import Columns

LATEST, PREVIOUS, NOW = "latest", "previous", "now"


@dataclass(frozen=True, slots=True)
class Asked:
    """Which moments are wanted: names of snapshots, or an LSN, a time in unix milliseconds or NOW."""

    at: tuple[str, ...] = ()
    as_of_lsn: int | None = None
    as_of_ms: float | None = None
    is_now: bool = False
    skip_damaged: bool = False

    @property
    def is_replayed(self) -> bool:
        """Whether the log is to be replayed."""
        return self.is_now or self.as_of_lsn is not None or self.as_of_ms is not None


@dataclass(frozen=True, slots=True)
class Part:
    """One series of a picture: a `.tree` file, or what `read` returns."""

    series: str
    file: SnapshotFile | None = None
    read: Callable[[], Columns] | None = None

    def columns(self) -> Columns:
        """Decode it. Raises DamagedDataError, OSError."""
        from karma.offline.columns import read_columns  # noqa: PLC0415  numpy; a cached file needs none

        if self.file is not None:
            return read_columns(self.file)
        assert self.read is not None
        return self.read()


@dataclass(frozen=True, slots=True)
class Picture:
    """What a source held at a moment. `parquet` is a file with all of it, in place of parts."""

    label: str
    parts: tuple[Part, ...] = ()
    parquet: Path | None = None


@dataclass(slots=True)
class Log:
    """A log as blocks of lines; `notes` say what was left out, once the blocks have been read."""

    blocks: Callable[[], Iterator[bytes]]
    notes: Callable[[], list[str]] = field(default=list)


class Source:
    """What all sources can do; what a kind does not have is empty."""

    def __init__(self, name: str) -> None:
        self.name = name

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:  # noqa: ARG002
        """Return the moments asked for. Raises SqlError, DamagedDataError, OSError."""
        return []

    def shots(self) -> Shots:
        """Return the snapshot files."""
        return Shots()

    def log(self, asked: Asked) -> Log | None:  # noqa: ARG002
        """Return the log, None without one."""
        return None

    def records(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return rows of idempotency keys and of imports, as `tables` has them but for the source."""
        return [], []

    def files(self) -> Collection[Path]:
        """Return files that DuckDB itself reads."""
        return ()


class Directory(Source):
    """A data directory, of a server at work or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:
        """Return the newest snapshots, those named, or the log replayed on top of earlier ones."""
        if asked.is_replayed:
            return [replayed(self._as_of(asked), note)]
        shots = self.shots()
        _judge(shots, asked, note)
        if asked.at:
            return [chosen(shots, at, self.name) for at in dict.fromkeys(asked.at)]
        if not shots.current:
            note(f"{self.name} has no snapshot; --as-of now replays its log")
        return [Picture(self.name, _parts(shots.current.values()))]

    def shots(self) -> Shots:
        """Return the snapshot files."""
        return pictures.list_shots(self.path)

    def log(self, asked: Asked) -> Log | None:
        """Return the log, from what is kept for followers on."""
        return log_of(lambda: pictures.log_files(self.path), skip_damaged=asked.skip_damaged)

    def records(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return what the last snapshot has."""
        return record_rows(*pictures.load_records(self.path))

    def _as_of(self, asked: Asked) -> Replayed:
        now_unix = time.time()
        lsn = asked.as_of_lsn
        with said_as_missing(
            "`SELECT * FROM snapshots` and `SELECT min(lsn), max(lsn) FROM wal` show what is"
        ):
            if asked.as_of_ms is not None:
                lsn = pictures.lsn_at(read_log(self.path), asked.as_of_ms)
                if lsn is None and asked.as_of_ms > now_unix * 1000:
                    raise SqlError("missing", "that time is still to come", "--as-of now is what there is")
            return pictures.as_of(self.path, lsn, int(now_unix))


class Trees(Source):
    """`.tree` files that stand anywhere. Of several of one series each is a picture."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths[0].name if len(paths) == 1 else f"{len(paths)} files")
        self._paths = paths

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:
        """Return all files as one picture, or each as its own."""
        if asked.is_replayed:
            raise SqlError(
                "usage", ".tree files have no log to replay", "name the data directory: --from DIRECTORY"
            )
        shots = self.shots()
        _judge(shots, asked, note)
        if asked.at:
            return [chosen(shots, at, self.name) for at in dict.fromkeys(asked.at)]
        if len({file.series for file in shots.files}) == len(shots.files):
            return [Picture(self.name, _parts(shots.files))]
        return [Picture(file.file, _parts([file])) for file in shots.files]

    def shots(self) -> Shots:
        """Return the files."""
        shots = Shots()
        for path in self._paths:
            try:
                shots.files.append(pictures.describe(path))
            except DamagedDataError as error:
                shots.damaged.append(error)
        shots.current = {file.file: file for file in shots.files}
        return shots


class Parquet(Source):
    """A Parquet file of buckets, as `karmactl export` and `karmactl sql --to` write it."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path.resolve()

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:  # noqa: ARG002
        """Return the file."""
        if asked.is_replayed or asked.at:
            raise SqlError(
                "usage", f"{self.name} holds no snapshots and no log", "leave --at and --as-of out"
            )
        return [Picture(self.name, parquet=self._path)]

    def files(self) -> Collection[Path]:
        """Return the file."""
        return (self._path,)


class LogFiles(Source):
    """Log files without their directory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths[0].name if len(paths) == 1 else f"{len(paths)} log files")
        self._paths = sorted(paths, key=lambda path: (path.name == "karma.wal", path.name))

    def pictures(self, asked: Asked, note: Callable[[str], object]) -> list[Picture]:
        """Return what the log alone makes, when it is to be replayed."""
        if not asked.is_replayed:
            raise SqlError(
                "missing",
                f"{self.name} is a log without snapshots",
                "`wal` and `entries` show it; --as-of now makes counters of a log that begins at LSN 1",
            )
        with said_as_missing("name the data directory: --from DIRECTORY"):
            lsn = asked.as_of_lsn
            if asked.as_of_ms is not None:
                lsn = pictures.lsn_at(self._lines(), asked.as_of_ms)
            if lsn is None:
                lsn = max((line.lsn for line in self._lines()), default=0)
            return [replayed(pictures.replay((), self._lines(), lsn), note)]

    def log(self, asked: Asked) -> Log | None:
        """Return the log."""
        return log_of(lambda: self._paths, skip_damaged=asked.skip_damaged)

    def _lines(self) -> Iterator[Any]:
        return (found.line for found in pictures.log_lines(self._paths) if found.line is not None)


# -- Parts of them --------------------------------------------------------------------------------------


def local(paths: Sequence[Path]) -> list[Source]:
    """Return sources of paths: folders, `.tree`, Parquet and log files. Raises SqlError for another one."""
    found: list[Source] = []
    trees, logs = [], []
    for path in paths:
        if path.is_dir():
            if not _has_data(path):
                raise SqlError(
                    "missing",
                    f"{path} is a folder without data of Karma: no snapshot and no log",
                    "--from takes the folder that `karma` runs on (--directory)",
                )
            found.append(Directory(path))
        elif not path.is_file():
            raise SqlError("usage", f"{path} is not a file", "--from cannot read pipes, sockets or devices")
        elif path.name.endswith(".tree"):
            trees.append(path)
        elif path.suffix == ".parquet":
            found.append(Parquet(path))
        elif path.name.startswith("karma.wal") or path.name.endswith(".segment"):
            logs.append(path)
        else:
            raise SqlError(
                "usage",
                f"{path} is no source",
                "--from takes a data directory, .tree, .parquet and karma.wal files, node:HOST:PORT and "
                "context:NAME",
            )
    return found + ([Trees(trees)] if trees else []) + ([LogFiles(logs)] if logs else [])


def _has_data(directory: Path) -> bool:
    names = [path.name for path in directory.iterdir()]
    return any(name.endswith(".tree") or name.startswith("karma.") for name in names)


class said_as_missing:  # noqa: N801  used as a statement
    """Turns a log that does not reach into a SqlError with advice."""

    def __init__(self, advice: str) -> None:
        self._advice = advice

    def __enter__(self) -> None:
        """Nothing is needed for it."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise SqlError in place of MissingLogError."""
        if isinstance(error, MissingLogError):
            raise SqlError("missing", str(error), self._advice) from error


def log_of(list_paths: Callable[[], Sequence[Path]], *, skip_damaged: bool) -> Log:
    """Return log files as a log that says where it is torn."""
    copy = LogCopy(list_paths, skip_damaged=skip_damaged)

    def notes() -> list[str]:
        said = [f"left out: {text}" for text in copy.passed_over]
        if copy.tail is not None:
            said.append(
                f"{copy.tail.path} ends in a torn tail: {copy.tail.cut_bytes} bytes from LSN {copy.tail.lsn} "
                f"on are left out ({copy.tail.reason}); a server cuts them off, too"
            )
        return said

    return Log(copy.blocks, notes)


def record_rows(records: Any, streams: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return idempotency keys and imports as rows; `tables` has the columns."""
    import orjson  # noqa: PLC0415  few statements ask for these

    keys = [
        (
            key,
            record.operation,
            record.fingerprint,
            orjson.dumps(record.response).decode(),
            record.created_at_unix,
        )
        for key, record in records.items()
    ]
    imports = [
        (
            stream.stream_id,
            stream.mode,
            stream.series,
            "active" if stream.committed_at_unix is None else "committed",
            stream.last_chunk_seq,
            stream.committed_at_unix,
        )
        for known in (streams.active, streams.committed)
        for stream in known.values()
    ]
    return keys, imports


def _parts(files: Iterable[SnapshotFile]) -> tuple[Part, ...]:
    return tuple(Part(file.series, file) for file in files)


def replayed(found: Replayed, note: Callable[[str], object]) -> Picture:
    """Return a store that the log was replayed into, and say what is missing in it."""
    from karma.offline.columns import columns_of  # noqa: PLC0415  as above

    if found.tail is not None:
        note(
            f"{found.tail.path} ends in a torn tail from LSN {found.tail.lsn} on ({found.tail.reason}); "
            "it is left out"
        )
    parts = [
        Part(name, read=lambda counters=series.counters: columns_of(counters))  # type: ignore[misc]
        for name, series in found.store.series.items()
    ]
    return Picture(f"as of LSN {found.lsn}", tuple(parts))


def _judge(shots: Shots, asked: Asked, note: Callable[[str], object]) -> None:
    """Stop at a damaged file that may be a series' newest, unless damage is to be skipped."""
    for error in shots.damaged:
        stem = error.file.name.removesuffix(".meta.json").partition("_")
        is_old = any(
            file.file.partition("_")[2] == stem[2] and str(file.timestamp) > stem[0] for file in shots.files
        )
        if is_old and not asked.at:
            continue
        if not asked.skip_damaged:
            raise error
        note(f"skipped: {error.file} is damaged: {error.message}")


# -- Names of snapshots -----------------------------------------------------------------------------------


def at_time(unix: int) -> str:
    """Return a moment as the `snapshots` table and `--at` spell it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def chosen(shots: Shots, at: str, source: str) -> Picture:
    """Return the snapshot of a name: latest, previous, a time, unix seconds, lsn:N or a file.

    Of each series it has the newest file up to that moment. Raises SqlError that lists what there is.
    """
    for file in shots.files:
        if file.file == at:
            return Picture(at, _parts([file]))
    if at == LATEST:
        newest = max((file.taken_unix for file in shots.current.values()), default=0)
        return Picture(at_time(newest), _parts(shots.current.values()))
    if at.startswith("lsn:") and at[4:].isdigit():
        lsn = int(at[4:])
        if any(file.last_lsn == lsn for file in shots.files):
            return Picture(at, _parts(pictures.newest_before(shots.files, lsn)))
    unix = _moment(at, sorted(_moments(shots)))
    if unix is not None:
        return Picture(at_time(unix), _parts(pictures.newest_until(shots.files, unix)))
    raise SqlError("missing", f'{source} has no snapshot "{at}"', _listed(shots))


def _moments(shots: Shots) -> set[int]:
    """When snapshots were taken: a set has one time, though some of its files are older."""
    return {unix for file in shots.files for unix in (file.timestamp, file.taken_unix)}


def _moment(at: str, moments: Sequence[int]) -> int | None:
    """The moment that a name means: the last of a day, or exactly one."""
    if at == PREVIOUS:
        return moments[-2] if len(moments) > 1 else None
    if at.isdigit() and len(at) >= 9:
        return int(at) if int(at) in moments else None
    if len(at) == 10:
        return next((unix for unix in reversed(moments) if at_time(unix).startswith(at)), None)
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        return None
    unix = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    return unix if unix in moments else None


def _listed(shots: Shots) -> str:
    moments = sorted(_moments(shots), reverse=True)
    if not moments:
        return "there is none at all: `karmactl snapshot create` takes one; --as-of now replays the log"
    spelt = [f'"{at_time(unix)}"' for unix in moments[:8]]
    more = f" and {len(moments) - 8} older" if len(moments) > 8 else ""
    return f"there are {', '.join(spelt)}{more}; also latest, previous, unix seconds, lsn:N, a file's name"
