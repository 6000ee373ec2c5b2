"""Recordings: what the nodes answered, kept as Parquet, and shown again.

While it grows, a recording is `FILE.part`, one JSON object a line, which a crash leaves readable; closing it
makes `FILE`, which appears whole. A line, and a row of the Parquet file, is one answer of one node: figures
in columns of their own for SQL, and in `answer` all that it said, from which the screens are drawn again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from karma_client import FetchProgress, KarmaError
from karma_client.fleet import NodeState
from karma_client.logs import Page as LogPage
from karma_sql.confined import confined, escaped
from karma_tui import model
from karma_tui.actions import Action
from karma_tui.model import HISTORY, Answer, Fleet, Problem
from karma_tui.spelling import moment
from karma_tui.statements import Place

if TYPE_CHECKING:
    from karma_sql.sources import Parquet

COLUMNS: dict[str, str] = {
    "unix_seconds": "DOUBLE",
    "time": "TIMESTAMP",
    "node": "VARCHAR",
    "role": "VARCHAR",
    "state": "VARCHAR",
    "epoch": "UBIGINT",
    "lsn": "UBIGINT",
    "lag_entries": "UBIGINT",
    "lag_ms": "DOUBLE",
    "ops_per_second": "DOUBLE",
    "p50_us": "UBIGINT",
    "p95_us": "UBIGINT",
    "p99_us": "UBIGINT",
    "memory_bytes": "UBIGINT",
    "keys": "UBIGINT",
    "disk_free_bytes": "UBIGINT",
    "disk_total_bytes": "UBIGINT",
    "rtt_ms": "DOUBLE",
    "error": "VARCHAR",
    "answer": "VARCHAR",
}
"""The columns of a recording and their DuckDB types. `time` is `unix_seconds` in UTC."""
LENGTHY = frozenset({"latest_snapshots", "recovery"})
"""Fields of replication.status that no screen shows and that would be most of a recording."""


class RecordingError(Exception):
    """A recording cannot be read or written. The text says why and what to do next."""


# -- Writing ----------------------------------------------------------------------------------------------


class Recorder:
    """Keeps answers. Use it as a context manager: leaving makes the Parquet file.

    Raises RecordingError when DuckDB is missing or the file is there already, and OSError.
    """

    def __init__(self, path: Path) -> None:
        _duckdb()
        if path.exists():
            raise RecordingError(f"{path} is there already: choose another name, or move it away")
        self.path = path
        self._part = part_of(path)
        # What an earlier run left behind when it was killed goes on.
        self._out = self._part.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, answer: Answer) -> None:
        """Keep an answer."""
        self._out.write(json.dumps(row_of(answer), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Make the Parquet file; the lines go when it is there. Nothing recorded makes no file."""
        self._out.close()
        if self._part.stat().st_size:
            to_parquet(self._part, self.path)
        self._part.unlink()


def part_of(path: Path) -> Path:
    """Return where a recording grows."""
    return path.with_name(path.name + ".part")


def row_of(answer: Answer) -> dict[str, Any]:
    """Return an answer as a row of a recording."""
    state = NodeState(answer.address, answer.health, answer.status, answer.stats, answer.problem)
    sample = model.sample_of(answer)
    stats = answer.stats
    status = {name: value for name, value in answer.status.items() if name not in LENGTHY}
    return {
        "unix_seconds": answer.at,
        "time": moment(answer.at),
        "node": answer.address,
        "role": state.role,
        "state": state.state,
        "epoch": answer.status.get("epoch"),
        **{name: value for name, value in sample._asdict().items() if name in COLUMNS},
        "memory_bytes": stats.get("rss_bytes", stats.get("memory_bytes")),
        **{name: stats.get(name) for name in ("keys", "disk_free_bytes", "disk_total_bytes")},
        "rtt_ms": round(answer.rtt_ms, 3),
        "error": answer.problem.message if answer.problem else None,
        "answer": json.dumps(
            {
                "health": answer.health,
                "status": status,
                "stats": stats,
                "latency": answer.latency,
                "clients": answer.clients,
                "clients_problem": answer.clients_problem,
                "problem": answer.problem,
            },
            ensure_ascii=False,
            default=dict,
        ),
    }


def answer_of(at: float, node: str, rtt_ms: float, text: str) -> Answer:
    """Return the answer of a row."""
    said = json.loads(text)
    problem = said.pop("problem")
    return Answer(node, at, rtt_ms, **said, problem=Problem(*problem) if problem else None)


def to_parquet(source: Path, target: Path) -> None:
    """Write lines as Parquet; the file appears whole. A last line that was cut is left out.

    Raises RecordingError.
    """
    aside = target.with_name(f".{target.name}.new")
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS.items())
    duckdb = _duckdb()
    with confined(source, aside) as connection:
        try:
            # COPY takes no parameters for its file; both names are escaped.
            # A line that was cut is read as one of nothing.
            connection.execute(
                f"COPY (FROM read_json('{escaped(source)}', format='newline_delimited', "
                f"columns={{{columns}}}, ignore_errors=true, maximum_object_size=67108864) "
                f"WHERE answer IS NOT NULL) TO '{escaped(aside)}' (FORMAT parquet, COMPRESSION zstd)"
            )
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise RecordingError(f"{target} cannot be written: {reason}; {source} has all lines") from error
    aside.replace(target)


# -- Reading ----------------------------------------------------------------------------------------------


class Playback:
    """A recording that is shown again: a place in time, and the fleet as it was there.

    Raises RecordingError when there is no such recording, or it is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists() and part_of(path).exists():
            # Whoever recorded it was killed before it was whole.
            to_parquet(part_of(path), path)
        if not path.exists():
            raise RecordingError(f"there is no recording {path}")
        duckdb = _duckdb()
        self.recording = path.resolve()
        self._connection = confined(path)
        self._from = f"FROM read_parquet('{escaped(path)}')"
        try:
            ((first, last),) = self._connection.execute(
                f"SELECT min(unix_seconds), max(unix_seconds) {self._from}"
            ).fetchall()
            names = self._connection.execute(f"SELECT DISTINCT node {self._from} ORDER BY node")
            self.nodes = tuple(name for (name,) in names.fetchall())
        except duckdb.Error as error:
            raise RecordingError(f"{path} is no recording: {str(error).splitlines()[0]}") from error
        if not self.nodes:
            raise RecordingError(f"{path} holds no answer")
        self.first: float = first
        self.last: float = last
        self.at = first
        self.is_playing = True
        self.wants_clients = False
        self.fleet: Fleet = model.empty(self.nodes)
        self.move(0.0)

    def describe(self) -> str:
        """Return what the banner says of it."""
        return f"REPLAY {moment(self.at)[11:]} {'▶' if self.is_playing else '‖'}"

    def tick(self, seconds: float) -> Fleet:
        """Go on by so much, if it is playing, and return the fleet."""
        if not self.is_playing or self.at >= self.last:
            return self.fleet
        before, self.at = self.at, min(self.at + seconds, self.last)
        return self._take(self.fleet, before, self.at)

    def move(self, seconds: float) -> Fleet:
        """Go back or on, stop there, and return the fleet as it was."""
        self.is_playing = self.is_playing and not seconds
        self.at = max(self.first, min(self.at + seconds, self.last))
        # Graphs show what was before: begin as far back as they reach.
        return self._take(model.empty(self.nodes), self.at - HISTORY, self.at)

    def _take(self, fleet: Fleet, after: float, until: float) -> Fleet:
        rows = self._connection.execute(
            f"SELECT unix_seconds, node, rtt_ms, answer {self._from} "
            "WHERE unix_seconds > ? AND unix_seconds <= ? ORDER BY unix_seconds",
            [after, until],
        )
        for at, node, rtt_ms, text in rows.fetchall():
            fleet = model.observe(fleet, answer_of(at, node, rtt_ms, text))
        self.fleet = replace(fleet, now=until)
        return self.fleet

    @contextmanager
    def sql_source(self, place: Place, progress: Callable[[str], object]) -> Iterator[Parquet]:
        """Open the recording for SQL, which names it as `FROM 'FILE'`."""
        from karma_sql.sources import Parquet  # noqa: PLC0415  whoever asks no SQL pays for none

        del place, progress
        yield Parquet(self.recording)

    # -- What a recording does not have --------------------------------------------------------

    async def ask(self, node: str, op: str, **_: Any) -> Any:
        """Refuse: nobody is there."""
        _refuse(node, op)

    async def act(self, action: Action) -> Any:
        """Refuse: nobody is there."""
        _refuse(action.node, action.op)

    async def fetch(
        self, node: str, file: str, folder: Path, progress: Callable[[FetchProgress], object]
    ) -> Path:
        """Refuse: nobody is there."""
        del file, folder, progress
        _refuse(node, "snapshot.fetch_chunk")

    async def tail(
        self, node: str, entries: int, warn: Callable[[str], object]
    ) -> AsyncIterator[LogPage | KarmaError]:
        """Yield the refusal."""
        del entries, warn
        try:
            _refuse(node, "replication.entries")
        except KarmaError as error:
            yield error


def _refuse(node: str, op: str) -> NoReturn:
    raise KarmaError(
        f"{op} is not in a recording, which keeps what nodes said of themselves and not their data", node=node
    )


def _duckdb() -> Any:
    try:
        import duckdb  # noqa: PLC0415  a dashboard that records nothing must not pay its 30 MB
    except ImportError as error:
        raise RecordingError("recordings need DuckDB: pip install 'karma[sql]'") from error
    return duckdb
