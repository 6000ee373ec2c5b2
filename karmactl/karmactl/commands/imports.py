"""import: a file of counters, checked first, then streamed in numbered chunks; goes on after a break.

An import is one ingest stream per series. Its id comes from what the file holds, so the same file counts
once, and the server knows which chunks it has. A note in the state folder remembers the size of the chunks,
and tells a file that was changed in between from the one that was begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from karma.protocol.texts import spelled_out
from karma_client import Client
from karma_client.days import dashed
from karma_client.errors import NotFoundError
from karma_client.operations.transfers import DEFAULT_REQUEST_BYTES, MAX_CHUNK_BYTES
from karma_client.results import IngestProgress, IngestResult
from karmactl import contexts, rows
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.output import Row, Shown, at_time
from karmactl.progress import Progress
from karmactl.rows import Bad, Bucket
from karmactl.run import Run

Mode = Literal["add", "set", "replace_series"]

BAD_ROWS_SHOWN = 10
MIXED_PASSES = 20
"""A file whose rows mix more series than this is not read once for each."""
ZERO_DAY = 10000101
"""Setting this day to 0 makes a key known, and no bucket can be lost by it: the first day there is."""


def import_(
    run: Run,
    file: str,
    series: str | None,
    mode: Mode,
    format: str | None,  # noqa: A002  the option's name
    stream_id: str | None,
    *,
    again: bool,
    restart: bool,
) -> Shown | Row:
    """Bring a file's rows into the database."""
    form = rows.format_of(file, format)
    if file != "-":
        return _Import(run, file, Path(file), form, series, mode, stream_id).carry_out(
            again=again, restart=restart
        )
    with tempfile.TemporaryDirectory(prefix="karmactl-") as folder:
        path = Path(folder) / "stdin"
        rows.keep(run.stdin.buffer, path)
        return _Import(run, file, path, form, series, mode, stream_id).carry_out(again=again, restart=restart)


# -- The look before -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Survey:
    """What a file holds, found out before anything of it is sent."""

    digest: str
    series: Counter[str] = field(default_factory=Counter)
    """Rows by series, in the order of their first row."""
    is_mixed: bool = False
    """Whether a series goes on after another one began."""
    bad: list[Bad] = field(default_factory=list)
    """The first few."""
    bad_count: int = 0
    keys_without_days: int = 0
    without_keys: list[str] = field(default_factory=list)
    """Series that the file says are there and have no keys."""
    holding: set[str] = field(default_factory=set)
    """Series with values."""
    first_day: int | None = None
    last_day: int | None = None
    total: int = 0

    @property
    def rows(self) -> int:
        """How many rows count."""
        return sum(self.series.values())


class _Note(NamedTuple):
    """The file that remembers an import which is not done."""

    path: Path

    def read(self) -> dict[str, Any] | None:
        """Return what it says, None when there is none or it is of no use."""
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("version") == 1 else None

    def write(self, said: dict[str, Any]) -> None:
        """Remember."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = self.path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({"version": 1, **said}, indent=1) + "\n")
        aside.replace(self.path)

    def remove(self) -> None:
        """Forget."""
        with suppress(FileNotFoundError):
            self.path.unlink()


class _Import:
    """One import under way."""

    def __init__(
        self,
        run: Run,
        name: str,
        path: Path,
        form: str,
        series: str | None,
        mode: Mode,
        stream_id: str | None,
    ) -> None:
        self._run = run
        self._name = name
        self._path = path
        self._form = form
        self._series = series
        self._mode: Mode = mode
        self._stream_id = stream_id
        self._done = 0
        """Rows that the server has."""
        self._is_ending = False
        """Whether everything is there and the end was begun."""
        self._progress = Progress(run.talk, "check", "rows", None)
        self._survey: Survey
        self._note: _Note

    def carry_out(self, *, again: bool, restart: bool) -> Shown | Row:
        """Check the file, then send it, or what is still missing of it."""
        try:
            self._survey = self._look()
        except OSError as error:
            raise usage(
                f"{self._name} cannot be read: {error.strerror}", "look for the right path"
            ) from error
        finally:
            self._progress.end()
        self._refuse_bad()
        if self._run.is_dry:
            return self._planned()
        self._note = self._place_of_note()
        begun = self._note.read()
        if begun is not None and restart:
            self._give_up(begun)
            begun = None
        if begun is None:
            begun = self._begin(again=again)
        elif begun["digest"] != self._survey.digest:
            raise self._changed(begun)
        else:
            when = at_time(begun["begun_unix"])
            self._run.talk.say(f"going on with the import that was begun at {when}")
        return self._send(begun)

    # -- Checking ------------------------------------------------------------------------------

    def _look(self) -> Survey:
        with self._path.open("rb") as stream:
            survey = Survey(hashlib.file_digest(stream, "sha256").hexdigest())
        last: str | None = None
        number = 0
        for number, row in enumerate(rows.read(self._path, self._form), 1):
            if isinstance(row, Bad):
                survey.bad_count += 1
                if len(survey.bad) < BAD_ROWS_SHOWN:
                    survey.bad.append(row)
                continue
            name, key, day, value = row
            name = self._of(name)
            if name is None:
                continue
            if key is None:
                survey.without_keys.append(name)
                continue
            if name != last:
                survey.is_mixed = survey.is_mixed or name in survey.series
                last = name
            survey.series[name] += 1
            if day is None:
                survey.keys_without_days += 1
            else:
                survey.first_day = min(survey.first_day or day, day)
                survey.last_day = max(survey.last_day or day, day)
                survey.total += value
            if value:
                survey.holding.add(name)
            if not number % 10_000:
                self._progress.show(number)
        return survey

    def _of(self, name: str | None) -> str | None:
        """The series of a row, None for a row that is not wanted. Raises CtlError when nothing tells."""
        if name is not None:
            return name if self._series in {None, name} else None
        if self._series is None:
            raise usage(f"{self._name} has no column for the series", "--series NAME says where it goes")
        return self._series

    def _refuse_bad(self) -> None:
        survey = self._survey
        for bad in survey.bad:
            self._run.talk.warn(spelled_out(f"{self._name}, line {bad.line}: {bad.problem}"))
        if survey.bad_count > len(survey.bad):
            self._run.talk.warn(f"and {survey.bad_count - len(survey.bad)} more like these")
        is_cut = rows.is_cut(self._path, self._form)
        if is_cut:
            raise usage(
                f"{self._name} ends in the middle of a line: it is truncated; nothing was sent",
                "copy it again; if it is whole, end its last line",
            )
        if survey.bad_count:
            count = _rows(survey.bad_count)
            raise usage(f"{self._name} has {count} that cannot be taken; nothing was sent", "mend the file")
        if not survey.rows and not survey.without_keys:
            which = f" of series {self._series}" if self._series else ""
            raise usage(
                f"{self._name} has no rows{which}; nothing was sent", "look whether it is the right file"
            )
        if survey.is_mixed and len(survey.series) > MIXED_PASSES:
            raise usage(
                f"{self._name} mixes the rows of {len(survey.series)} series; nothing was sent",
                "sort it by series, or import one with --series NAME",
            )

    def _planned(self) -> Shown:
        survey = self._survey
        data = {
            "dry_run": True,
            "file": self._name,
            "mode": self._mode,
            "rows": survey.rows,
            "keys_without_days": survey.keys_without_days,
            "series": dict(survey.series),
            "from": survey.first_day and dashed(survey.first_day),
            "to": survey.last_day and dashed(survey.last_day),
            "total": survey.total,
        }
        days = f" of {data['from']} to {data['to']}" if survey.first_day else ""
        verb = {"add": "add", "set": "set", "replace_series": "replace what is there by"}[self._mode]
        lines = [
            f"dry run: would {verb} {_rows(survey.rows)}{days}, {survey.total} in all; nothing was changed"
        ]
        lines += [f"  {spelled_out(name)}: {_rows(count)}" for name, count in survey.series.items()]
        lines += [f"  {spelled_out(name)}: no keys" for name in survey.without_keys]
        return Shown(data, lambda _: lines)

    # -- Where it stands -----------------------------------------------------------------------

    def _place_of_note(self) -> _Note:
        """A place by file, target and what is done: another import of the file is another one."""
        nodes = sorted(self._run.settings.nodes)
        path = self._survey.digest if self._name == "-" else str(self._path.resolve())
        what = json.dumps([path, nodes, self._mode, self._series, self._stream_id])
        name = hashlib.sha256(what.encode()).hexdigest()[:32]
        return _Note(contexts.state_path(self._run.environ) / "imports" / f"{name}.json")

    def _begin(self, *, again: bool) -> dict[str, Any]:
        """Settle the stream's id and the size of its chunks, and remember both."""
        survey, run = self._survey, self._run
        nodes = run.settings.nodes
        if self._mode == "replace_series":
            self._confirm_replacement()
        stream_id = self._stream_id
        if stream_id is None:
            what = json.dumps([survey.digest, self._mode, self._series])
            stream_id = f"import-{hashlib.sha256(what.encode()).hexdigest()[:24]}"
            if again:
                stream_id += f"-{time.time_ns():x}"
        limit_bytes = run.client("master", nodes).stats().max_request_bytes or DEFAULT_REQUEST_BYTES
        said = {
            "file": self._name,
            "digest": survey.digest,
            "mode": self._mode,
            "stream_id": stream_id,
            "series": list(survey.series),
            "chunk_bytes": min(limit_bytes, MAX_CHUNK_BYTES),
            "begun_unix": int(time.time()),
            "rows_done": 0,
        }
        self._note.write(said)
        return said

    def _confirm_replacement(self) -> None:
        replaced = {*self._survey.series, *self._survey.without_keys}
        existing = set(self._run.ask("tree.list")) & replaced
        if existing:
            names = ", ".join(f'"{spelled_out(name)}"' for name in sorted(existing))
            typed = next(iter(existing)) if len(existing) == 1 else Path(self._name).name
            self._run.confirm(f"replace all that series {names} hold by {self._name}", typed=typed)

    def _give_up(self, begun: dict[str, Any]) -> None:
        """Abort the streams of an import that will not be finished."""
        if begun["mode"] == "add":
            self._run.confirm("begin again, though what the last try brought counts already")
        for name in begun["series"]:
            with suppress(NotFoundError):
                self._master().ingest_abort(_stream(begun, name))
        self._note.remove()

    def _changed(self, begun: dict[str, Any]) -> CtlError:
        effect = "nothing of it shows yet" if begun["mode"] == "replace_series" else "what it brought counts"
        return CtlError(
            Exit.REFUSED,
            f"{self._name} is not the file that it was when its import was begun at "
            f"{at_time(begun['begun_unix'])}; {effect}, and nothing more was sent",
            fault="command line",
            advice="put the old file back and run this again; or give that import up with --restart",
        )

    # -- Sending -------------------------------------------------------------------------------

    def _send(self, begun: dict[str, Any]) -> Row:
        run, survey = self._run, self._survey
        self._progress = Progress(run.talk, "import", "rows", survey.rows)
        begun_at = time.monotonic()
        try:
            results = [self._send_series(begun, name, items) for name, items in self._parts()]
            self._commit(begun, results)
            dropped = self._dropped(results)
            self._make_empty()
        except BaseException:
            self._progress.end()
            self._remember(begun)
            raise
        self._progress.end()
        self._note.remove()
        if dropped:
            raise self._known_but_gone(dropped)
        sent = sum(result.items - result.resumed_items for result in results)
        is_known = bool(results) and all(result.status == "already_committed" for result in results)
        if is_known:
            run.talk.say("this file was imported before and counts once; --again imports it once more")
        return {
            "file": self._name,
            "mode": self._mode,
            "series": len({*survey.series, *survey.without_keys}),
            "rows": survey.rows,
            "sent": 0 if is_known else sent,
            "status": "already imported" if is_known else "imported",
            "seconds": round(time.monotonic() - begun_at, 1),
            "stream_id": begun["stream_id"],
        }

    def _dropped(self, results: list[IngestResult]) -> list[str]:
        """Return the series that an earlier import of this file filled and that are not there any more."""
        known = {
            name
            for name, result in zip(self._survey.series, results, strict=True)
            if result.status == "already_committed" and name in self._survey.holding
        }
        return sorted(known - set(self._master().call_paged("tree.list"))) if known else []

    def _known_but_gone(self, dropped: list[str]) -> CtlError:
        names = ", ".join(f'"{spelled_out(name)}"' for name in dropped)
        verb = "was" if len(dropped) == 1 else "were"
        others = ", and --series NAME only that series" if len(self._survey.series) > len(dropped) else ""
        return CtlError(
            Exit.REFUSED,
            f"{self._name} was imported before, and series {names} {verb} dropped since; nothing was sent",
            fault="command line",
            advice=f"--again imports the file once more{others}",
        )

    def _make_empty(self) -> None:
        """Make the series that no chunk makes: those without keys, or added without any value."""
        survey, adds = self._survey, self._mode == "add"
        for name in survey.without_keys:
            if self._mode == "replace_series" and name not in survey.series:
                self._run.send("tree.reset", series=name)
                self._run.send("series.compact", series=name)
        for name in {*survey.without_keys, *(set(survey.series) - survey.holding if adds else ())}:
            self._run.send("series.batch_add", series=name, items=[])

    def _master(self) -> Client:
        return self._run.client("master", self._run.settings.nodes)

    def _parts(self) -> Iterator[tuple[str, Iterator[Bucket]]]:
        """The rows by series, read once; once for each series where the file mixes them."""
        if not self._survey.is_mixed:
            yield from groupby(self._rows(), key=lambda row: row[0] or "")
            return
        for name in self._survey.series:
            yield name, (row for row in self._rows() if row[0] == name)

    def _rows(self) -> Iterator[Bucket]:
        for row in rows.read(self._path, self._form):
            if isinstance(row, Bad):
                raise usage(
                    f"{self._name} changed while it was read: {row.problem} in line {row.line}",
                    "put it back as it was and run this again",
                )
            name = self._of(row[0])
            if name is not None and row[1] is not None:
                yield name, *row[1:]

    def _send_series(self, begun: dict[str, Any], name: str, items: Iterator[Bucket]) -> IngestResult:
        before = self._done
        is_first = True

        def show(progress: IngestProgress) -> None:
            nonlocal is_first
            self._done = before + progress.items
            if is_first:
                is_first = False
                self._progress.resumed(before + progress.resumed_items)
            self._progress.show(self._done)

        result = self._master().ingest(
            _stream(begun, name),
            name,
            self._items(items),
            mode=self._mode,
            chunk_bytes=begun["chunk_bytes"],
            commit=False,
            progress=show,
        )
        self._done = before + self._survey.series[name]
        return result

    def _commit(self, begun: dict[str, Any], results: list[IngestResult]) -> None:
        """End every stream, when all of the file is there: only now replaced series change."""
        for name, result in zip(self._survey.series, results, strict=True):
            if result.status != "already_committed":
                self._is_ending = True
                self._master().ingest_commit(_stream(begun, name))

    def _items(self, buckets: Iterator[Bucket]) -> Iterator[tuple[int, int, int]]:
        """What of the rows is sent: a key without days can be set to 0, and not added."""
        adds = self._mode == "add"
        for _, key, day, value in buckets:
            if key is not None and (value or not adds):
                yield key, day or ZERO_DAY, value

    def _remember(self, begun: dict[str, Any]) -> None:
        """Note how far it got, and say how to go on."""
        self._note.write({**begun, "rows_done": self._done})
        effect = "and count already"
        if self._mode == "replace_series":
            effect = "some series are replaced already" if self._is_ending else "nothing of it shows yet"
        # Chunks whose replies nobody read any more may be there, too.
        self._run.talk.say(
            f"at least {self._done:,} of {_rows(self._survey.rows)} are on the server, {effect}; "
            "the same command goes on from there, --restart gives it up"
        )


def _stream(begun: dict[str, Any], name: str) -> str:
    """The id of one series' stream, bounded whatever the name is."""
    return f"{begun['stream_id']}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
