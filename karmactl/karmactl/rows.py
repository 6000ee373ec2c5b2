"""Files of counters: CSV, JSON lines and Parquet, a bucket a row.

The columns are `series`, `key`, `day` and `value`; `tree` names the series, too, and `bucket` or `date` the
day. Without a column for the series the whole file is one series'. A row without a day and with value 0 is a
key that is known and holds nothing; without a key as well, it is a series without keys.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from karma_client.days import dashed, day_number
from karma_client.errors import InvalidArgumentError
from karma_sql.confined import confined, escaped
from karmactl.diagnostics import CtlError, Exit, usage

U64_MAX = 2**64 - 1
FORMATS = ("csv", "jsonl", "parquet")
COLUMNS = ("series", "key", "day", "value")
ALIASES = {"tree": "series", "bucket": "day", "date": "day"}
FETCH_ROWS = 10_000
"""Rows that DuckDB hands over at a time."""

Bucket = tuple[str | None, int | None, int | None, int]
"""series (None: the file does not say), key (None: a series without keys), day YYYYMMDD (None: a key without
buckets), value"""


class Bad(NamedTuple):
    """A row that cannot be taken. `line` counts from 1, in Parquet it is the row."""

    line: int
    problem: str


def format_of(path: str, named: str | None) -> str:
    """Return the format that was named, else the one that the file name ends in. Raises CtlError."""
    ending = path.rpartition(".")[2].lower()
    found = named or ("csv" if path == "-" else {"ndjson": "jsonl"}.get(ending, ending))
    if found not in FORMATS:
        raise usage(f"{path} does not end in .csv, .jsonl or .parquet", "--format names its format")
    return found


# -- Reading ---------------------------------------------------------------------------------------------


def read(path: Path, form: str) -> Iterator[Bucket | Bad]:
    """Yield the rows of a file in order, in place of a bad one why it is bad.

    Raises CtlError for a file that has not the right columns, and OSError.
    """
    return {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[form](path)


class _Days(dict[Any, int]):
    """Days as files spell them to days of the protocol; a file has few different ones."""

    def __missing__(self, spelt: Any) -> int:
        try:
            found = day_number(spelt)
        except InvalidArgumentError:
            raise ValueError(f"day {_quoted(spelt)} is no day, as 2026-05-05 or 20260505") from None
        self[spelt] = found
        return found


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _read_csv(path: Path) -> Iterator[Bucket | Bad]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            heading = next(reader, [])
            at = _positions(path, heading)
            to_bucket = _csv_parser(at, len(heading))
            for cells in reader:
                if not cells:
                    continue
                try:
                    yield to_bucket(cells)
                except ValueError as error:
                    yield Bad(reader.line_num, str(error))
        except UnicodeDecodeError:
            yield Bad(_undecodable(path), "it is no UTF-8")
        except csv.Error as error:
            yield Bad(reader.line_num, f"it is no CSV: {error}")


def _undecodable(path: Path) -> int:
    """The line that is no UTF-8: a decoder that reads ahead cannot tell."""
    number = 1
    with path.open("rb") as stream, suppress(UnicodeDecodeError):
        for number, line in enumerate(stream, 1):  # noqa: B007  the number is the answer
            line.decode()
    return number


def _csv_parser(at: Mapping[str, int], width: int) -> Callable[[Sequence[str]], Bucket]:
    days = _Days()
    key_at, value_at = at["key"], at["value"]
    # A cell that every row has stands in where there is no such column.
    series_at, day_at = at.get("series", -1), at["day"]

    def parse(cells: Sequence[str]) -> Bucket:
        if len(cells) != width:
            raise ValueError(f"it has {len(cells)} columns, the heading {width}")
        series = cells[series_at] if series_at >= 0 else None
        day = cells[day_at]
        return _checked(
            series,
            _number("key", cells[key_at]) if cells[key_at] else None,
            days[day] if day else None,
            _number("value", cells[value_at]),
        )

    return parse


def _number(name: str, text: str) -> int:
    if text.isdigit() and text.isascii():
        found = int(text)
        if found <= U64_MAX:
            return found
    raise ValueError(f"{name} {_quoted(text)} is no number of 0 to 2^64-1")


def _positions(path: Path, heading: Sequence[str]) -> dict[str, int]:
    """Where the columns are. Raises CtlError when one is missing or there twice."""
    found: dict[str, int] = {}
    for number, cell in enumerate(heading):
        name = cell.strip().lower()
        name = ALIASES.get(name, name)
        if name in found:
            raise usage(f"{path} has two columns for {name}", "leave one of them out")
        if name in COLUMNS:
            found[name] = number
    missing = [name for name in ("key", "day", "value") if name not in found]
    if missing:
        # A single column is no heading but perhaps a secret.
        seen = ", ".join(heading)[:80] if len(heading) > 1 else "no columns"
        raise usage(
            f"{path} has no column {' and no column '.join(missing)}; its first line says {seen}",
            "the first line of a CSV file names the columns: series,key,day,value (or without series)",
        )
    return found


def _checked(series: str | None, key: int | None, day: int | None, value: int) -> Bucket:
    if series == "":
        raise ValueError("the series has no name")
    if key is None and (day is not None or value):
        raise ValueError("the key is missing")
    if day is None and value:
        raise ValueError("the day is missing")
    return series, key, day, value


def _read_jsonl(path: Path) -> Iterator[Bucket | Bad]:
    import orjson  # noqa: PLC0415  other formats do without

    days = _Days()
    with path.open("rb") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                data = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                yield Bad(line, f"it is no JSON: {error.msg}")
                continue
            try:
                yield _json_bucket(data, days)
            except ValueError as error:
                yield Bad(line, str(error))


def _json_bucket(data: Any, days: _Days) -> Bucket:
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  all that is wrong with a row is one class
    series = data.get("tree", data.get("series"))
    day = next((data[name] for name in ("day", "bucket", "date") if data.get(name) is not None), None)
    if series is not None and not isinstance(series, str):
        raise ValueError(f"series {_quoted(series)} is no text")
    if day is not None and not (type(day) is int or isinstance(day, str)):
        raise ValueError(f"day {_quoted(day)} is no day, as 2026-05-05 or 20260505")
    key, value = data.get("key"), data.get("value")
    for name, number in (("key", 0 if key is None else key), ("value", value)):
        if type(number) is not int or not 0 <= number <= U64_MAX:
            raise ValueError(f"{name} {_quoted(number)} is no number of 0 to 2^64-1")
    assert type(value) is int
    return _checked(series, key, None if day is None else days[day], value)


def _read_parquet(path: Path) -> Iterator[Bucket | Bad]:
    duckdb = _duckdb()
    days = _Days()
    with confined(path) as connection:
        try:
            found = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            at = _positions(path, [column[0] for column in found.description or ()])
            number = 0
            while rows := found.fetchmany(FETCH_ROWS):
                for cells in rows:
                    number += 1
                    named = {name: cells[position] for name, position in at.items()}
                    if hasattr(named["day"], "isoformat"):
                        named["day"] = named["day"].isoformat()[:10]
                    try:
                        yield _json_bucket(named, days)
                    except ValueError as error:
                        yield Bad(number, str(error))
        except duckdb.Error as error:
            raise CtlError(
                Exit.USAGE,
                f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
                fault="command line",
                advice="it is truncated, or of another format: --format names that",
            ) from error


def is_cut(path: Path, form: str) -> bool:
    """Return whether the end of a text file's last line is missing, as when it was cut on its way."""
    if form == "parquet":
        return False
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            return False
        stream.seek(-1, 2)
        return stream.read(1) != b"\n"


# -- Writing ---------------------------------------------------------------------------------------------


RowWriter = Callable[[str, int | None, int | None, int], None]
"""Takes series, key, day and value of a row, see `Bucket`."""


def text_writer(form: str, write: Callable[[str], object]) -> RowWriter:
    """Return what writes a row as text (Parquet's is CSV, see `to_parquet`), after writing the heading."""
    if form == "jsonl":

        def write_json(series: str, key: int | None, day: int | None, value: int) -> None:
            key_text = "null" if key is None else key
            day_text = "null" if day is None else f'"{dashed(day)}"'
            name = json.dumps(series, ensure_ascii=False)
            write(f'{{"series":{name},"key":{key_text},"day":{day_text},"value":{value}}}\n')

        return write_json
    row_writer = csv.writer(_Writes(write), lineterminator="\n")
    row_writer.writerow(COLUMNS)

    def write_csv(series: str, key: int | None, day: int | None, value: int) -> None:
        row_writer.writerow((series, "" if key is None else key, "" if day is None else dashed(day), value))

    return write_csv


class _Writes(NamedTuple):
    """A function as the file that `csv.writer` wants."""

    write: Callable[[str], object]


def to_parquet(source: Path, target: Path) -> None:
    """Write a CSV file of `text_writer` as Parquet."""
    # DuckDB takes rows in bulk from files, or from numpy arrays; a file needs neither numpy nor memory.
    _duckdb()
    source_sql = (
        f"read_csv('{escaped(source)}', header=true, delim=',', quote='\"', escape='\"', auto_detect=false, "
        "columns={'series': 'VARCHAR', 'key': 'UBIGINT', 'day': 'DATE', 'value': 'UBIGINT'})"
    )
    with confined(source, target) as connection:
        # COPY takes no parameters for its file; both names are escaped.
        connection.execute(f"COPY (FROM {source_sql}) TO '{escaped(target)}' (FORMAT parquet)")


def _duckdb() -> Any:
    try:
        import duckdb  # noqa: PLC0415  only Parquet needs it
    except ImportError as error:
        raise need_duckdb() from error
    return duckdb


def need_duckdb() -> CtlError:
    """Return the error of a machine without DuckDB."""
    return CtlError(
        Exit.USAGE,
        "Parquet needs DuckDB, which is not installed",
        fault="configuration",
        advice="install the extra: pip install 'karma[sql]'; CSV and JSONL need nothing more",
    )


def keep(stream: BinaryIO, target: Path) -> None:
    """Keep what comes in over a pipe in a file, which can be read twice."""
    with target.open("wb") as out:
        while block := stream.read(1 << 20):
            out.write(block)
