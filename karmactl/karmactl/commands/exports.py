"""export: counters into a file, page by page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from karma_client import Client
from karma_client.days import to_date
from karma_client.errors import QueryTimeoutError, ValidationError, advanced
from karmactl import rows
from karmactl.commands.series import PAGE_KEYS, visible
from karmactl.days import pieces, today
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.output import Row
from karmactl.progress import Progress
from karmactl.run import Run

Span = Mapping[str, int]
Total = tuple[int, int]
"""A key and what it holds."""

FIRST_YEAR = 2000
"""Where an export with --to alone begins, and how far back data is likely."""
YEARS_AHEAD = 2
YEARS_AT_ONCE = 500
"""Years that one look into unlikely centuries takes."""


def export(
    run: Run,
    file: str,
    series: tuple[str, ...],
    key: tuple[int, ...],
    from_: int | None,
    to: int | None,
    format: str | None,  # noqa: A002  the option's name
) -> Row | None:
    """Write counters into a file, which appears whole or not at all, or to stdout."""
    form = rows.format_of(file, format)
    if file == "-" and form == "parquet":
        raise usage("Parquet cannot be written to stdout", "name a file")
    days = _days(from_, to)
    names = series or tuple(visible(run.ask("tree.list"), all_=False))
    work = _Export(run, names, tuple(dict.fromkeys(key)), days)
    try:
        if file == "-":
            write_row = rows.text_writer(form, run.output.write)
            for row in work.buckets():
                write_row(*row)
            return None
        size_bytes = _write_file(Path(file), form, work.buckets())
    finally:
        work.progress.end()
    return {
        "file": file,
        "format": form,
        "series": len(names),
        "keys": work.keys,
        "rows": work.rows,
        "bytes": size_bytes,
    }


def _days(first: int | None, last: int | None) -> Sequence[Span] | None:
    """The ranges to ask for, None for everything there is. Raises CtlError for ends in the wrong order."""
    if first is None and last is None:
        return None
    first, last = first or FIRST_YEAR * 10_000 + 101, last or today()
    if first > last:
        raise usage(f"--from {to_date(first)} is after --to {to_date(last)}", "exchange them")
    return tuple(pieces(first, last))


def _write_file(target: Path, form: str, buckets: Iterable[tuple[str, int | None, int | None, int]]) -> int:
    """Write a file beside its place and move it there when it is whole. Return its size in bytes."""
    if not target.parent.is_dir():
        raise usage(f"there is no folder {target.parent}", "make it, or name another one")
    text, aside = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("text", "part"))
    try:
        with (aside if form != "parquet" else text).open("w", encoding="utf-8", newline="") as stream:
            write_row = rows.text_writer(form, stream.write)
            for row in buckets:
                write_row(*row)
            _sync(stream)
        if form == "parquet":
            rows.to_parquet(text, aside)
            with aside.open("r+b") as made:
                os.fsync(made.fileno())
        aside.replace(target)
    except OSError as error:
        raise CtlError(
            Exit.USAGE,
            f"{target} cannot be written: {error.strerror}",
            fault="configuration",
            advice="the target is as it was; name a file in a folder with room that you may write to",
        ) from error
    finally:
        for leftover in (text, aside):
            with suppress(FileNotFoundError):
                leftover.unlink()
    return target.stat().st_size


def _sync(stream: TextIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


class _Export:
    """One export under way, and how much it wrote."""

    def __init__(
        self, run: Run, names: Sequence[str], wanted: tuple[int, ...], days: Sequence[Span] | None
    ) -> None:
        self.keys = self.rows = 0
        self._run = run
        self._client: Client = run.client()
        self._names = names
        self._wanted = wanted
        self._days = days
        self.progress = Progress(run.talk, "export", "keys", self._key_count())

    def _key_count(self) -> int | None:
        if self._wanted:
            return len(self._wanted) * len(self._names)
        try:
            return sum(self._client.series_info(name).key_count for name in self._names)
        except (QueryTimeoutError, ValidationError):
            # A series that is too large to be counted in time, or whose total is past 2^64-1.
            return None

    def buckets(self) -> Iterator[tuple[str, int | None, int | None, int]]:
        """Yield every bucket by series, key and day, never more than a page of keys in memory."""
        for name in self._names:
            keys_before = self.keys
            for page in self._pages(name):
                found = self._read_days(name, page) if self._days else self._read_all(name, page)
                for key, _ in page:
                    self.keys += 1
                    points = found[key]
                    self.rows += len(points)
                    for day in sorted(points):
                        yield name, key, day, points[day]
                    if not points and not self._days and not self._wanted:
                        self.rows += 1
                        yield name, key, None, 0
                self.progress.show(self.keys)
            if self.keys == keys_before and not self._days and not self._wanted:
                self.rows += 1
                yield name, None, None, 0

    def _pages(self, name: str) -> Iterator[list[Total]]:
        if self._wanted:
            keys = iter(self._wanted)
            while some := list(islice(keys, PAGE_KEYS)):
                yield list(self._totals(name, some).items())
            return
        cursor = None
        while True:
            page = self._run.ask("tree.keys", series=name, limit=PAGE_KEYS, cursor=cursor)
            yield [(entry["key"], entry["total"]) for entry in page["keys"]]
            if page["next_cursor"] is None:
                return
            cursor = advanced(cursor, page["next_cursor"])

    def _totals(self, name: str, keys: Sequence[int]) -> dict[int, int]:
        answer = self._run.ask("counter.batch_sum", series=name, keys=list(keys))
        return {one["key"]: one["value"] for one in answer}

    def _read_days(self, name: str, page: Sequence[Total]) -> dict[int, dict[int, int]]:
        found: dict[int, dict[int, int]] = {key: {} for key, _ in page}
        holding = [key for key, total in page if total]
        for span in self._days or ():
            self._read(name, holding, [span], found)
        return found

    def _read_all(self, name: str, page: Sequence[Total]) -> dict[int, dict[int, int]]:
        """Read keys until their days add up to their totals: the protocol has no way to ask for every day.

        Where clients write meanwhile, what a key held when it was listed is what is looked for.
        """
        totals = dict(page)
        found: dict[int, dict[int, int]] = {key: {} for key in totals}

        def incomplete(keys: Iterable[int]) -> list[int]:
            return [key for key in keys if sum(found[key].values()) < totals[key]]

        left = incomplete(totals)
        for span in _likely_spans(today()):
            if not left:
                return found
            self._read(name, left, [span], found)
            left = incomplete(left)
        if left:
            # What was deleted since the page came is not worth a search through the centuries.
            totals.update(self._totals(name, left))
            left = incomplete(left)
        spans = _unlikely_spans(today())
        while left and (some := list(islice(spans, YEARS_AT_ONCE))):
            self._read(name, left, some, found)
            left = incomplete(left)
        for key in left:
            self._run.exit_code = Exit.PARTIAL
            self._run.talk.warn(
                f"{name}, key {key}: its days add up to less than its total; it changed while it was read, "
                "or has days that are no dates"
            )
        return found

    def _read(
        self, name: str, keys: Sequence[int], spans: Sequence[Span], found: dict[int, dict[int, int]]
    ) -> None:
        """Read the buckets of keys in ranges, all requests at once."""
        with self._client.pipeline() as pipeline:
            answers = [
                (key, pipeline.call("counter.series", series=name, key=key, range=span))
                for key in keys
                for span in spans
            ]
        for key, answer in answers:
            points: Mapping[str, Any] = answer.result()
            found[key].update((int(day), value) for day, value in points.items())


def _likely_spans(now: int) -> Iterator[Span]:
    """Years from this one backwards to 2000, then a few ahead."""
    this_year = now // 10_000
    yield from map(_year, range(this_year, FIRST_YEAR - 1, -1))
    yield from map(_year, range(this_year + 1, this_year + 1 + YEARS_AHEAD))


def _unlikely_spans(now: int) -> Iterator[Span]:
    """Every year that is not likely."""
    yield from map(_year, range(now // 10_000 + 1 + YEARS_AHEAD, 10_000))
    yield from map(_year, range(FIRST_YEAR - 1, 999, -1))


def _year(year: int) -> Span:
    return {"from": year * 10_000 + 101, "to": year * 10_000 + 1231}
