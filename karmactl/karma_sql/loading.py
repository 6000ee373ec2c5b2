"""From sources to tables: each table is made when a statement first names it.

Large snapshots become relations over numpy arrays, or DuckDB files of the cache, which DuckDB reads as they
are; a view puts the series' names to them. Small ones are copied together, because a view over thousands of
relations would take longer to plan than to read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from karma.errors import DamagedDataError
from karma_sql import cache as cached
from karma_sql.cache import Cache
from karma_sql.engine import duckdb
from karma_sql.errors import SqlError
from karma_sql.sources import Asked, Part, Picture, Source, at_time
from karma_sql.tables import BY_NAME, MACROS_BY_NAME

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from karma.offline.columns import Columns
    from karma.offline.pictures import SnapshotFile

OWN_RELATION_BUCKETS = 100_000
"""From here on a series is a relation of its own."""
PIECE_BYTES = 32 << 20
"""A log is checked and read in pieces, each while the next one is being checked. Half of it costs more: then
DuckDB gets fewer rows at once than it keeps together (122,880)."""
USUAL_LINE_BYTES = 16 << 20
"""How long a line may be for DuckDB, which makes room for two such lines; 256 MiB for each log took a fifth
longer. An import's line may be longer."""

_ENTRY = (
    "STRUCT(op VARCHAR, series VARCHAR, key UBIGINT, bucket UBIGINT, before UBIGINT, value UBIGINT, "
    '"range" STRUCT("from" UBIGINT, "to" UBIGINT), items UBIGINT[][], keys UBIGINT[], stream_id VARCHAR, '
    "chunk_seq UBIGINT, idempotency_key VARCHAR)"
)
_LINES = (
    "read_json({file}, format = 'newline_delimited', maximum_object_size = {line_bytes}, "
    f"columns = {{{{lsn: 'UBIGINT', entry: '{_ENTRY}', ts: 'BIGINT'}}}})"
)


def _day(number: str) -> str:
    return f"try_strptime({number}::VARCHAR, '%Y%m%d')::DATE"


ENTRIES_SQL = (
    "SELECT {source} AS source, lsn, make_timestamp_ms(ts) AS ts, entry.op AS op, entry.series AS series, "
    "entry.key AS key, coalesce(entry.bucket, entry.before, entry.range.from) AS bucket, "
    "entry.value AS value, entry.range.to AS to_bucket, entry.items AS items, entry.keys AS keys, "
    "entry.stream_id AS stream_id, entry.chunk_seq AS chunk_seq, "
    f"entry.idempotency_key AS idempotency_key FROM {_LINES}"
)
_HEAD = "source, lsn, ts, op, series"
_REST = "stream_id, chunk_seq, idempotency_key"
ENTRIES_VIEW = (
    f"CREATE VIEW entries AS SELECT {_HEAD}, key, {_day('bucket')} AS day, value, "
    f"{_day('to_bucket')} AS to_day, items, keys, {_REST} FROM raw_entries"
)
WAL_VIEW = (
    f"CREATE VIEW wal AS SELECT {_HEAD}, key, {_day('bucket')} AS day, value, {_day('to_bucket')} AS to_day, "
    f"NULL::BIGINT AS item, {_REST} FROM raw_entries WHERE items IS NULL AND keys IS NULL "
    f"UNION ALL SELECT {_HEAD}, items[item][1], {_day('items[item][2]')}, items[item][3], NULL, item, "
    f"{_REST} FROM (SELECT *, generate_subscripts(items, 1) AS item FROM raw_entries WHERE len(items) > 0) "
    f"UNION ALL SELECT {_HEAD}, keys[item], {_day('bucket')}, NULL, {_day('to_bucket')}, item, {_REST} "
    "FROM (SELECT *, generate_subscripts(keys, 1) AS item FROM raw_entries WHERE len(keys) > 0) "
    f"UNION ALL SELECT {_HEAD}, NULL, NULL, NULL, NULL, NULL, {_REST} FROM raw_entries "
    "WHERE coalesce(len(items), len(keys)) = 0"
)


class Loader:
    """Makes tables in a DuckDB connection. Tables that are made stay."""

    def __init__(
        self,
        connection: DuckDBPyConnection,
        sources: Sequence[Source],
        asked: Asked,
        cache: Cache,
        note: Callable[[str], object],
        progress: Callable[[str], object],
    ) -> None:
        self._connection = connection
        self._sources = sources
        self._asked = asked
        self._cache = cache
        self._note = note
        self._progress = progress
        self._pictures: list[Picture] | None = None
        self._made: set[str] = set()
        self._keepsakes: list[tuple[SnapshotFile, Columns]] = []
        self._names = 0
        self.is_stopped = threading.Event()
        """Set by whoever waits no longer; loading ends at the next part."""

    def can_make(self, name: str) -> bool:
        """Return whether a table or macro of this name is not there yet and can be."""
        return name not in self._made and (name in BY_NAME or name in MACROS_BY_NAME)

    def make(self, name: str) -> None:
        """Make a table or a macro. Raises SqlError."""
        if name in self._made:
            return
        if name in MACROS_BY_NAME:
            macro = MACROS_BY_NAME[name]
            self.make(macro.needs)
            snapshot = "snapshot, " if self.has_snapshot_column else ""
            sql = macro.sql.replace("{s}", snapshot)
            self._connection.execute(f"CREATE MACRO {name}({macro.arguments}) AS TABLE {sql}")
            self._made.add(name)
            return
        try:
            self._makers[name](self)
        except DamagedDataError as error:
            raise SqlError(
                "damaged",
                _damage(error),
                "`karma check` says more of a data directory; --skip-damaged goes on without it",
            ) from error
        except OSError as error:
            raise SqlError(
                "configuration",
                f"{error.filename or 'a source'} cannot be read: {error.strerror or error}",
                "name another source, or mend the path",
            ) from error

    # -- Counters, totals, series --------------------------------------------------------------

    @property
    def pictures(self) -> list[Picture]:
        """The moments that counters, totals and series show. Raises as `make`."""
        if self._pictures is None:
            found = [(source, source.pictures(self._asked, self._note)) for source in self._sources]
            is_many = sum(bool(made) for _, made in found) > 1
            self._pictures = [
                Picture(_label(source, picture) if is_many else picture.label, picture.parts, picture.parquet)
                for source, made in found
                for picture in made
            ]
        return self._pictures

    @property
    def has_snapshot_column(self) -> bool:
        """Whether several moments are shown at once."""
        return len(self.pictures) > 1

    def _make_counters(self) -> None:
        buckets, totals = _Union(self._connection, "buckets"), _Union(self._connection, "totals")
        small: list[tuple[int, str, Columns]] = []
        skipped: set[tuple[int, str]] = set()
        bad_days = 0
        done = 0
        count = sum(len(picture.parts) for picture in self.pictures)
        for number, picture in enumerate(self.pictures):
            if picture.parquet is not None:
                self._add_parquet(picture.parquet, number, buckets, totals)
            for part in picture.parts:
                self._stop_if_asked()
                done += 1
                self._progress(f"reading {part.series}, {done} of {count} series")
                link = None if part.file is None else self._cache.find(part.file)
                if link is not None and self._attach(link, number, part.series, buckets, totals):
                    continue
                columns = self._decoded(part)
                if columns is None:
                    skipped.add((number, part.series))
                    continue
                bad_days += columns.bad_days
                if len(columns.values) < OWN_RELATION_BUCKETS:
                    small.append((number, part.series, columns))
                    continue
                where = f"{number} AS picture, {_text(part.series)} AS series"
                name = self._register(cached.bucket_arrays(columns))
                buckets.add(f"SELECT {where}, key, {cached.day_sql(columns)} AS day, value FROM {name}")
                name = self._register(cached.key_arrays(columns))
                totals.add(f"SELECT {where}, key, total, buckets FROM {name}")
                if part.file is not None:
                    self._keepsakes.append((part.file, columns))
        self._add_small(small, buckets, totals)
        if bad_days:
            self._note(f"{bad_days} buckets have a day that is no date; their day is NULL")
        self._make_views(buckets, totals, skipped)

    def _decoded(self, part: Part) -> Columns | None:
        try:
            return part.columns()
        except DamagedDataError as error:
            if not self._asked.skip_damaged:
                raise
            self._note(f"skipped: {_damage(error)}")
            return None

    def _register(self, arrays: dict[str, object]) -> str:
        self._names += 1
        name = f"arrays_{self._names}"
        self._connection.register(name, arrays)
        return name

    def _attach(self, link: Path, number: int, series: str, buckets: _Union, totals: _Union) -> bool:
        self._names += 1
        name = f"cached_{self._names}"
        try:
            self._connection.execute(f"ATTACH {_text(str(link))} AS {name} (READ_ONLY)")
        except duckdb().Error:
            # Cut short by a full disk, say: decoding is always possible.
            return False
        where = f"{number} AS picture, {_text(series)} AS series"
        buckets.add(f"SELECT {where}, key, day, value FROM {name}.counters")
        totals.add(f"SELECT {where}, key, total, buckets FROM {name}.totals")
        return True

    def _add_parquet(self, path: Path, number: int, buckets: _Union, totals: _Union) -> None:
        source = f"read_parquet({_text(str(path))})"
        try:
            found = self._connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
        except duckdb().Error as error:
            raise SqlError(
                "damaged",
                f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
                "it is truncated or of another format; export it again",
            ) from error
        columns = {row[0] for row in found}
        missing = {"series", "key", "day", "value"} - columns
        if missing:
            raise SqlError(
                "usage",
                f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(sorted(columns))}",
                "an export of counters has series, key, day and value",
            )
        where = f"{number} AS picture, series::VARCHAR AS series"
        buckets.add(
            f"SELECT {where}, key::UBIGINT AS key, day::DATE AS day, value::UBIGINT AS value FROM {source} "
            "WHERE value > 0"
        )
        totals.add(
            f"SELECT {where}, key::UBIGINT, sum(value)::UBIGINT, count(*) FILTER (value > 0) "
            f"FROM {source} GROUP BY series, key"
        )

    def _add_small(self, small: list[tuple[int, str, Columns]], buckets: _Union, totals: _Union) -> None:
        if not small:
            return
        import numpy as np  # noqa: PLC0415  with columns it is loaded already

        from karma.offline.columns import NO_DATE, Columns  # noqa: PLC0415

        def numbered(lengths: Iterable[int]) -> Any:
            return np.repeat(np.arange(len(small), dtype=np.uint32), np.fromiter(lengths, dtype=np.intp))

        every = [columns for _, _, columns in small]
        joined = Columns(
            *(
                np.concatenate([getattr(columns, name) for columns in every])
                for name in ("keys", "counts", "totals", "days", "values")
            )
        )
        day = cached.day_sql(joined) if NO_DATE in joined.days else "DATE '1970-01-01' + days"
        self._connection.execute("CREATE TABLE small_parts (part UINTEGER, picture INTEGER, series VARCHAR)")
        self._insert("small_parts", [(at, number, name) for at, (number, name, _) in enumerate(small)])
        name = self._register(
            {**cached.bucket_arrays(joined), "part": numbered(len(columns.values) for columns in every)}
        )
        buckets.add(
            f"SELECT picture, series, key, {day} AS day, value FROM {name} JOIN small_parts USING (part)"
        )
        name = self._register(
            {**cached.key_arrays(joined), "part": numbered(len(columns.keys) for columns in every)}
        )
        totals.add(f"SELECT picture, series, key, total, buckets FROM {name} JOIN small_parts USING (part)")

    def _make_views(self, buckets: _Union, totals: _Union, skipped: set[tuple[int, str]]) -> None:
        buckets.make("picture, series, key, day, value", "INTEGER, VARCHAR, UBIGINT, DATE, UBIGINT")
        totals.make("picture, series, key, total, buckets", "INTEGER, VARCHAR, UBIGINT, UBIGINT, UBIGINT")
        self._connection.execute("CREATE TABLE pictures (picture INTEGER, snapshot VARCHAR, series VARCHAR)")
        # Series without any key are none of the views', but of the picture.
        self._insert(
            "pictures",
            [
                (number, picture.label, part.series)
                for number, picture in enumerate(self.pictures)
                for part in picture.parts
                if (number, part.series) not in skipped
            ],
        )
        label = ""
        if self.has_snapshot_column:
            labels = ", ".join(_text(picture.label) for picture in self.pictures)
            label = f"[{labels}][picture + 1] AS snapshot, "
        self._connection.execute(
            f"CREATE VIEW counters AS SELECT {label}series, key, day, value FROM all_buckets"
        )
        self._connection.execute(
            f"CREATE VIEW totals AS SELECT {label}series, key, total, buckets FROM all_totals"
        )
        self._connection.execute(
            f"CREATE VIEW series AS SELECT {label}series, count(key) AS keys, "
            "coalesce(sum(buckets), 0) AS buckets, coalesce(sum(total), 0) AS total, "
            "any_value(first_day) AS first_day, any_value(last_day) AS last_day FROM "
            "(SELECT picture, series FROM pictures UNION SELECT picture, series FROM all_totals) "
            "LEFT JOIN all_totals USING (picture, series) LEFT JOIN (SELECT picture, series, "
            "min(day) AS first_day, max(day) AS last_day FROM all_buckets GROUP BY ALL) "
            "USING (picture, series) GROUP BY picture, series ORDER BY picture, series"
        )
        self._made |= {"counters", "totals", "series"}

    # -- The log -------------------------------------------------------------------------------

    def _make_wal(self) -> None:
        is_first = True
        for source in self._sources:
            log = source.log(self._asked)
            if log is None:
                continue
            with ThreadPoolExecutor(1) as reader:
                reading: Future[None] | None = None
                for piece, line_bytes in self._pieces(log.blocks()):
                    if reading is not None:
                        reading.result()
                    reading = reader.submit(
                        self._read_piece, piece, source.name, line_bytes, is_first=is_first
                    )
                    is_first = False
                if reading is not None:
                    reading.result()
            for text in log.notes():
                self._note(text)
        if is_first:
            piece = self._cache.scratch / "empty.ndjson"
            piece.touch()
            self._read_piece(piece, "", USUAL_LINE_BYTES, is_first=True)
        self._connection.execute(ENTRIES_VIEW)
        self._connection.execute(WAL_VIEW)
        self._made |= {"wal", "entries"}

    def _pieces(self, blocks: Iterator[bytes]) -> Iterator[tuple[Path, int]]:
        """Write a log's good lines to files of the scratch folder: DuckDB reads no source of ours itself.

        Yields each with what no line of it is longer than, in bytes.
        """
        read_bytes = 0
        for number, first in enumerate(blocks):
            path = self._cache.scratch / f"log-{number}.ndjson"
            line_bytes = USUAL_LINE_BYTES
            with path.open("wb") as stream:
                for block in chain([first], blocks):
                    self._stop_if_asked()
                    stream.write(block)
                    line_bytes = max(line_bytes, len(block))
                    read_bytes += len(block)
                    self._progress(f"reading the log, {read_bytes >> 20:,} MiB")
                    if stream.tell() >= PIECE_BYTES:
                        break
            yield path, line_bytes

    def _read_piece(self, piece: Path, source: str, line_bytes: int, *, is_first: bool) -> None:
        sql = ENTRIES_SQL.format(source=_text(source), file=_text(str(piece)), line_bytes=line_bytes)
        into = "CREATE TABLE raw_entries AS" if is_first else "INSERT INTO raw_entries"
        # A thread of its own must not share the connection's pending result.
        self._connection.cursor().execute(f"{into} {sql}")
        piece.unlink()

    # -- What is small -------------------------------------------------------------------------

    def _make_snapshots(self) -> None:
        self._create("snapshots")
        used = (
            {part.file.path for picture in self.pictures for part in picture.parts if part.file is not None}
            if not self._asked.is_replayed
            else set()
        )
        rows: list[tuple[Any, ...]] = []
        for source in self._sources:
            shots = source.shots()
            rows += [
                (
                    source.name, file.series, file.file, _moment(file.taken_unix), file.bytes, file.last_lsn,
                    file.crc32, file.path in used, None,
                )
                for file in shots.files
            ]  # fmt: skip
            rows += [
                (source.name, None, error.file.name, None, None, None, None, False, error.message)
                for error in shots.damaged
            ]
        self._insert("snapshots", rows)

    def _make_records(self) -> None:
        self._create("idempotency")
        self._create("ingest_streams")
        for source in self._sources:
            keys, imports = source.records()
            self._insert("idempotency", [(source.name, *row[:-1], _moment(row[-1])) for row in keys])
            self._insert("ingest_streams", [(source.name, *row[:-1], _moment(row[-1])) for row in imports])

    def _create(self, name: str) -> None:
        columns = ", ".join(f"{column} {kind}" for column, kind in BY_NAME[name].columns)
        self._connection.execute(f"CREATE TABLE {name} ({columns})")
        self._made.add(name)

    def _insert(self, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._connection.executemany(f"INSERT INTO {name} VALUES ({marks})", list(map(list, rows)))

    # -- Afterwards ----------------------------------------------------------------------------

    def keep(self) -> None:
        """Write what was decoded into the cache."""
        while self._keepsakes and not self.is_stopped.is_set():
            file, columns = self._keepsakes.pop()
            self._progress(f"keeping {file.series} in the cache")
            self._cache.keep(file, columns)

    def _stop_if_asked(self) -> None:
        if self.is_stopped.is_set():
            raise SqlError("cancelled", "cancelled")

    _makers: ClassVar[dict[str, Callable[[Loader], None]]] = {
        "counters": _make_counters,
        "totals": _make_counters,
        "series": _make_counters,
        "wal": _make_wal,
        "entries": _make_wal,
        "snapshots": _make_snapshots,
        "idempotency": _make_records,
        "ingest_streams": _make_records,
    }


class _Union:
    """A view over many relations of the same columns."""

    def __init__(self, connection: DuckDBPyConnection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._selects: list[str] = []

    def add(self, select: str) -> None:
        """Add a relation."""
        self._selects.append(select)

    def make(self, columns: str, kinds: str) -> None:
        """Make the view ``all_<name>``; without any relation it is empty."""
        nothing = ", ".join(f"NULL::{kind.strip()}" for kind in kinds.split(","))
        selects = self._selects or [f"SELECT {nothing} WHERE false"]
        self._connection.execute(f"CREATE VIEW all_{self._name} ({columns}) AS {' UNION ALL '.join(selects)}")


def _damage(error: DamagedDataError) -> str:
    return f"{error.file} is damaged: {error.message}"


def _label(source: Source, picture: Picture) -> str:
    return source.name if picture.label == source.name else f"{source.name}: {picture.label}"


def _moment(unix: int | None) -> str | None:
    return None if unix is None else at_time(unix).removesuffix("Z")


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
