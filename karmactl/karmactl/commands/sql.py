"""sql: questions over snapshots, logs and exports, and what changed between two snapshots.

What is asked is carried out by `karma_sql`; here are its sources, its output and its errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from time import time as unix_now
from typing import TYPE_CHECKING, Any

from karma_sql import plots, sources
from karma_sql.cache import DEFAULT_LIMIT_BYTES, Cache
from karma_sql.errors import Kind, SqlError
from karma_sql.sources import NOW, Asked, Source
from karma_sql.tables import diff_sql
from karma_sql.values import is_data, is_number, is_plan, plain
from karmactl import contexts, settings
from karmactl.commands.call import parsed
from karmactl.diagnostics import CtlError, Exit, Fault, usage
from karmactl.moments import moment_ms
from karmactl.output import Row
from karmactl.run import Run, connection
from karmactl.table.entries import Column, Shape

if TYPE_CHECKING:
    from karma_sql.session import Result, Session

QUIET_SECONDS = 1.0
"""What takes longer shows how far it got."""
PLOT_WIDTH = 80
ENDINGS = {
    "parquet": "parquet",
    "csv": "csv",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "duckdb": "duckdb",
    "db": "duckdb",
}
_EXITS: dict[Kind, tuple[Exit, Fault]] = {
    "usage": (Exit.USAGE, "command line"),
    "missing": (Exit.NOT_FOUND, "command line"),
    "damaged": (Exit.UNHEALTHY, "this machine"),
    "configuration": (Exit.USAGE, "configuration"),
    "gone": (Exit.UNREACHABLE, "network"),
    "cancelled": (Exit.INTERRUPTED, "you declined"),
    "timeout": (Exit.TIMEOUT, "command line"),
}


def sql(
    run: Run,
    statement: str | None,
    file: str | None,
    param: tuple[str, ...],
    plot: bool,  # noqa: FBT001  an option
    explain: bool,  # noqa: FBT001
    to: str | None,
    format: str | None,  # noqa: A002  the option's name
    **chosen: Any,
) -> None:
    """Carry out statements, or let them be typed."""
    text = _statement(run, statement, file, is_export=to is not None)
    parameters = dict(map(parsed, param))
    with opened(run, **chosen) as session, _asking(run, session):
        if text is None and to is None:
            from karmactl.commands import sql_shell  # noqa: PLC0415  brings prompt_toolkit

            sql_shell.shell(run, session)
        elif to is not None:
            _export(run, session, text, parameters, Path(to), format)
        else:
            for result in session.run(f"EXPLAIN {text}" if explain else text or "", parameters):
                show(run, result, as_plot=plot)


def diff(run: Run, before: str, after: str, by: str, series: tuple[str, ...], **chosen: Any) -> None:
    """Show what changed between two snapshots: names of them, or two files."""
    paths = [Path(name) for name in (before, after)]
    if all(path.is_file() for path in paths):
        chosen["from_"] = (before, after)
        names: tuple[str, ...] = ()
    else:
        names = (before, after)
    with opened(run, at=names, as_of=None, **chosen) as session, _asking(run, session):
        labels = session.labels()
        if len(labels) != 2:
            raise usage(f"{before} and {after} are one snapshot", "name two; `karmactl snapshot list`")
        query = diff_sql(by)
        if series:
            query = f"SELECT * FROM ({query}) WHERE list_contains($series, series)"
        for result in session.run(query, {"a": labels[0], "b": labels[1], "series": list(series)}):
            show(run, result)


@contextmanager
def _asking(run: Run, session: Session) -> Iterator[None]:
    """Ask in here; what was decoded is kept once the answer is out. Raises CtlError and KeyboardInterrupt."""
    try:
        yield
        run.output.flush()
        run.talk.progress("")
        session.keep()
    except SqlError as error:
        if error.kind == "cancelled":
            raise KeyboardInterrupt from error
        raise translated(error) from error
    finally:
        run.talk.progress("")


def translated(error: SqlError) -> CtlError:
    """Return the error in karmactl's words."""
    code, fault = _EXITS[error.kind]
    return CtlError(code, error.message, fault=fault, advice=error.advice)


def _statement(run: Run, statement: str | None, file: str | None, *, is_export: bool) -> str | None:
    """The statements to carry out, None for what is typed or, with --to, for everything."""
    if statement is not None and file is not None:
        raise usage("a statement and --file exclude each other", "leave one of them out")
    if file is not None and file != "-":
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise usage(f"{file} cannot be read: {reason}", "--file names a file of SQL") from error
    if statement == "-" or file == "-" or (statement is None and not is_export and not run.stdin.isatty()):
        return run.stdin.read()
    return statement


# -- Sources ----------------------------------------------------------------------------------------------


class opened(ExitStack):  # noqa: N801  used as a statement
    """A session over what --from and the other options name; with its connections, which end with it."""

    def __init__(
        self,
        run: Run,
        from_: tuple[str, ...],
        at: tuple[str, ...],
        as_of: str | None,
        skip_damaged: bool,  # noqa: FBT001  options
        unsafe: bool,  # noqa: FBT001
        no_cache: bool,  # noqa: FBT001
        cache_limit: int | None,
        memory_limit: str | None,
        threads: int | None,
    ) -> None:
        super().__init__()
        self._run = run
        self._begun = monotonic()
        folder = contexts.cache_path(run.environ)
        limit_bytes = DEFAULT_LIMIT_BYTES if cache_limit is None else cache_limit << 20
        asked = _asked(at, as_of, is_skipping=skip_damaged)
        try:
            from karma_sql.session import Session  # noqa: PLC0415  all else is quicker without

            cache = Cache(folder, limit_bytes=limit_bytes, is_kept=not no_cache)
            found = self._sources(from_, folder)
            self._session = self.enter_context(
                Session(
                    found,
                    cache,
                    asked,
                    memory_limit=memory_limit,
                    threads=threads,
                    timeout_seconds=run.settings["timeout"],
                    unsafe=unsafe,
                    note=self._note,
                    progress=self._show_progress,
                )
            )
        except SqlError as error:
            self.close()
            raise translated(error) from error

    def __enter__(self) -> Session:  # type: ignore[override]
        """Return the session."""
        return self._session

    def _note(self, text: str) -> None:
        self._run.talk.progress("")
        self._run.talk.warn(text)
        if text.startswith(("skipped: ", "left out: ")):
            self._run.exit_code = Exit.PARTIAL

    def _show_progress(self, text: str, share: float | None) -> None:
        if monotonic() - self._begun > QUIET_SECONDS:
            self._run.talk.progress(text if share is None else f"{text}, {share:.0%}")

    def _sources(self, words: Sequence[str], folder: Path) -> list[Source]:
        paths = [word for word in words if Path(word).exists()]
        found = sources.local([Path(word) for word in paths])
        for word in words:
            if word in paths:
                continue
            kind, _, rest = word.partition(":")
            if kind == "node" and rest:
                found.append(self._remote(contexts.normal_address(rest), folder))
            elif kind == "context" and rest:
                found.append(self._of_context(rest, folder))
            else:
                raise usage(
                    f"there is no file or folder {word}",
                    "--from takes a path, node:HOST:PORT or context:NAME",
                )
        return found or [self._default(folder)]

    def _default(self, folder: Path) -> Source:
        """The command's own target, as every other command has it."""
        nodes = self._run.settings.nodes
        return self._source(self._run.client("any"), nodes[0], folder)

    def _remote(self, address: str, folder: Path) -> Source:
        return self._source(self._run.client("any", (address,)), address, folder)

    def _of_context(self, name: str, folder: Path) -> Source:
        file = contexts.load(contexts.config_path(self._run.environ))
        environ = {key: value for key, value in self._run.environ.items() if key != "KARMACTL_NODES"}
        chosen = settings.resolve({"context": name}, environ, file)
        client = self.enter_context(connection(chosen, environ))
        return self._source(client, name, folder)

    def _source(self, client: Any, name: str, folder: Path) -> Source:
        from karma_sql.remote import Remote  # noqa: PLC0415  files need no client

        return Remote(client, name, folder, self._fetching)

    def _fetching(self, text: str) -> None:
        self._session.doing(text)


def _asked(at: tuple[str, ...], as_of: str | None, *, is_skipping: bool) -> Asked:
    if as_of is None:
        return Asked(at, skip_damaged=is_skipping)
    if at:
        raise usage("--at and --as-of exclude each other", "--at names snapshots, --as-of replays the log")
    if as_of == NOW:
        return Asked(is_now=True, skip_damaged=is_skipping)
    if as_of.isdigit() and len(as_of) < 9:
        return Asked(as_of_lsn=int(as_of), skip_damaged=is_skipping)
    if as_of.startswith("lsn:") and as_of[4:].isdigit():
        return Asked(as_of_lsn=int(as_of[4:]), skip_damaged=is_skipping)
    return Asked(as_of_ms=moment_ms(as_of, unix_now()), skip_damaged=is_skipping)


# -- Output -----------------------------------------------------------------------------------------------


def show(run: Run, result: Result, *, as_plot: bool = False) -> int:
    """Print a result in the form that was asked for; return its rows."""
    run.talk.progress("")
    names = [column.name for column in result.columns]
    if as_plot:
        if run.output.form != "table":
            raise usage("a plot is no data", "leave --output out, or --plot")
        run.output.lines(plots.plot(names, result.rows, run.output.paper.width or PLOT_WIDTH))
        return 0
    if is_plan(names) and run.output.form == "table":
        for row in result.rows:
            run.output.write(f"{row[1].rstrip()}\n")
        return 0
    if not is_data(names):
        return len(list(result.rows))
    counted = _Counted(_rows(names, result.rows))
    shape = Shape(
        "list",
        tuple(Column(name, "number" if is_number(kind) else "text") for name, kind in result.columns),
    )
    run.output.show(counted, shape)
    return counted.count


class _Counted:
    """Rows that are counted as they pass."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.count = 0
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            yield row


def _rows(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[Row]:
    for row in rows:
        yield dict(zip(names, map(plain, row), strict=True))


# -- Exports ----------------------------------------------------------------------------------------------


def _export(
    run: Run, session: Session, text: str | None, parameters: dict[str, Any], target: Path, form: str | None
) -> None:
    found = form or ENDINGS.get(target.suffix[1:].lower())
    if found is None:
        raise usage(
            f"{target} does not end in .parquet, .csv, .json, .jsonl or .duckdb", "--format names its format"
        )
    if not target.parent.is_dir():
        raise usage(f"there is no folder {target.parent}", "make it, or name another one")
    if text is None:
        if found != "duckdb" and target.exists():
            raise usage(f"{target} exists", "everything becomes a folder of files: name a new one")
        rows = session.export_all(target, found)
    else:
        rows = session.export(text, parameters, target, found)
    run.talk.progress("")
    shape = Shape("object", (Column("rows", "number"),))
    run.output.show({"file": str(target), "format": found, "rows": rows}, shape)
