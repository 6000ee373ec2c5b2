r"""The shell of `karmactl sql`: statements typed one after another, as psql has it.

A statement ends with a semicolon and may have many lines. What begins with a backslash is the shell's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_client.errors import KarmaError
from karma_sql import completion
from karma_sql.errors import SqlError
from karma_sql.tables import BY_NAME, MACROS, TABLES
from karmactl import contexts, failures
from karmactl.commands import sql as command
from karmactl.commands.shell import LEAVE, enter_keys, history_file, need_terminal
from karmactl.diagnostics import CtlError, Exit, suggestion, usage
from karmactl.output import Output, Paper, Row
from karmactl.run import Run
from karmactl.table.entries import Shape, columns

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completion
    from prompt_toolkit.document import Document

    from karma_sql.session import Session

HELP = r"""A statement ends with ; and may have many lines:

  SELECT series, sum(value) FROM counters GROUP BY series;

  Tab            completes tables, columns, macros, keywords, and series inside quotes
  Up, Ctrl-R     go through the history, search in it; Right takes the grey hint
  Ctrl-C         gives up what is typed, or cancels a statement; Ctrl-D leaves

  \d [TABLE]     what tables and macros there are, or a table's columns
  \dt            the tables alone
  \o [FILE]      write the next results to a file (.csv, .json, .jsonl, else a table); alone: no longer
  \plot          draw results, or no longer
  \timing        say how long each statement took, or no longer
  \i FILE        carry out a file of statements
  \?             this
  \q             leaves, as exit and quit do
"""
OWN = ("\\d", "\\dt", "\\o", "\\plot", "\\timing", "\\i", "\\?", "\\q", "exit", "quit")


def shell(run: Run, session: Session) -> None:
    """Read and carry out statements until somebody leaves. Raises CtlError without a terminal."""
    need_terminal(run)
    _Shell(run, session).loop()


def is_open(text: str) -> bool:
    """Return whether what is typed goes on below: a statement that is not finished."""
    stripped = text.strip()
    if not stripped or stripped.startswith("\\") or stripped in LEAVE:
        return False
    return completion.is_open(text)


class _Shell:
    """What the shell remembers between statements."""

    def __init__(self, run: Run, session: Session) -> None:
        self._run = run
        self._session = session
        self._is_timing = False
        self._is_plotting = False
        self._target: Path | None = None
        self._series: list[str] | None = None

    def loop(self) -> None:
        """Prompt, carry out, again, until somebody leaves."""
        prompt = self._prompt_session()
        self._run.talk.say("\\? explains the shell, \\d shows what there is, \\q leaves it")
        while True:
            try:
                text = prompt.prompt([("bold", "karma"), ("", "> ")])
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            try:
                if not self._carry_out(text.strip()):
                    return
            except KeyboardInterrupt:
                # While rows were being printed; a statement under way says so by itself.
                self._session.cancel()
                self._run.talk.say("cancelled")
            except CtlError as error:
                self._run.talk.progress("")
                if error.code is Exit.INTERRUPTED:
                    self._run.talk.say("cancelled")
                else:
                    self._run.talk.report(error)

    def _carry_out(self, text: str) -> bool:
        """Carry out what was typed; return whether to go on. Raises CtlError."""
        if text.rstrip(";").strip() in LEAVE:
            return False
        if text.startswith("\\"):
            word, _, rest = text.partition(" ")
            own = self._own().get(word)
            if own is None:
                raise usage(f"the shell has no {word}", f"{suggestion(word, OWN)} \\? lists all".strip())
            own(rest.strip().rstrip(";"))
        elif text:
            self._ask(text)
        self._run.output.flush()
        return True

    def _own(self) -> dict[str, Callable[[str], None]]:
        return {
            "\\d": self._describe,
            "\\dt": lambda _: self._list(is_with_macros=False),
            "\\o": self._redirect,
            "\\plot": lambda _: self._toggle("_is_plotting", "plotting"),
            "\\timing": lambda _: self._toggle("_is_timing", "timing"),
            "\\i": self._file,
            "\\?": lambda _: self._run.output.write(HELP),
        }

    def _ask(self, text: str) -> None:
        begun = time.perf_counter()
        try:
            for result in self._session.run(text):
                if self._target is None:
                    rows = command.show(self._run, result, as_plot=self._is_plotting)
                    if result.columns and not self._is_plotting:
                        self._run.output.flush()
                        self._run.talk.say(f"({rows} row{'' if rows == 1 else 's'})")
                else:
                    self._write(self._target, result)
        except (SqlError, KarmaError) as error:
            raise self._translated(error) from error
        if self._is_timing:
            self._run.talk.say(f"took {(time.perf_counter() - begun) * 1000:.1f} ms")

    def _translated(self, error: SqlError | KarmaError) -> CtlError:
        if isinstance(error, SqlError):
            return command.translated(error)
        return failures.translated(error, self._run)

    # -- Words of its own ----------------------------------------------------------------------

    def _toggle(self, name: str, what: str) -> None:
        setattr(self, name, not getattr(self, name))
        self._run.talk.say(f"{what} is {'on' if getattr(self, name) else 'off'}")

    def _describe(self, name: str) -> None:
        if not name:
            self._list(is_with_macros=True)
            return
        try:
            self._session.labels()
            results = self._session.run(
                f'SELECT column_name AS "column", column_type AS type FROM (DESCRIBE {name})'
            )
            for result in results:
                command.show(self._run, result)
        except (SqlError, KarmaError) as error:
            raise self._translated(error) from error
        if name.lower() in BY_NAME:
            self._run.talk.say(BY_NAME[name.lower()].help)

    def _list(self, *, is_with_macros: bool) -> None:
        rows: list[Row] = [{"name": table.name, "kind": "table", "what": table.help} for table in TABLES]
        if is_with_macros:
            rows += [{"name": macro.call, "kind": "macro", "what": macro.help} for macro in MACROS]
        known = {row["name"] for row in rows} | {macro.name for macro in MACROS}
        rows += [
            {"name": name, "kind": "yours", "what": "made in this session"}
            for name in self._session.names()
            if name not in known
        ]
        self._run.output.show(rows, Shape("list", columns("name", "kind", "what")))

    def _redirect(self, name: str) -> None:
        self._target = Path(name).expanduser() if name else None
        if self._target is not None:
            try:
                self._target.write_text("")
            except OSError as error:
                target, self._target = self._target, None
                raise usage(f"{target} cannot be written: {error.strerror}", "name another file") from error
        self._run.talk.say(f"results go to {name}" if name else "results come here")

    def _write(self, target: Path, result: Any) -> None:
        form = command.ENDINGS.get(target.suffix[1:].lower(), "table")
        if form in {"parquet", "duckdb"}:
            raise usage(
                f"\\o writes no {form}", "karmactl sql --to FILE does; here .csv, .json, .jsonl or a table"
            )
        with target.open("a", encoding="utf-8") as stream:
            output = self._run.output
            self._run.output = Output(stream, form, (), Paper(None, is_coloured=False))
            try:
                rows = command.show(self._run, result)
            finally:
                self._run.output = output
        self._run.talk.say(f"({rows} row{'' if rows == 1 else 's'} to {target})")

    def _file(self, name: str) -> None:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise usage(f"{name or 'no file'} cannot be read", "as: \\i questions.sql") from error
        self._ask(text)

    # -- What is being typed -------------------------------------------------------------------

    def _prompt_session(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession  # noqa: PLC0415
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory  # noqa: PLC0415
        from prompt_toolkit.history import FileHistory  # noqa: PLC0415

        return PromptSession(
            history=FileHistory(str(history_file(contexts.state_path(self._run.environ), "sql_history"))),
            auto_suggest=AutoSuggestFromHistory(),
            completer=_completer(self._proposals),
            complete_in_thread=True,
            complete_while_typing=False,
            enable_history_search=True,
            multiline=True,
            prompt_continuation="  ...> ",
            key_bindings=enter_keys(is_open),
        )

    def _known_series(self) -> list[str]:
        if self._series is None:
            try:
                found = self._session.run("SELECT DISTINCT series FROM series ORDER BY series")
                self._series = [row[0] for result in found for row in result.rows]
            except (SqlError, KarmaError):
                self._series = []
        return self._series

    def _proposals(self, text: str) -> Iterator[tuple[str, int]]:
        """Return what may stand before the cursor, as `completion.proposals` does; with the shell's words."""
        if not text.startswith("\\"):
            yield from completion.proposals(text, self._session.names, self._known_series)
            return
        word, blank, rest = text.partition(" ")
        if not blank:
            yield from ((one, len(text)) for one in OWN if one.startswith(text))
        elif word == "\\d":
            yield from ((one, len(rest)) for one in BY_NAME if one.startswith(rest))


def _completer(proposals: Callable[[str], Iterator[tuple[str, int]]]) -> Any:
    from prompt_toolkit.completion import Completer, Completion  # noqa: PLC0415

    class _Completer(Completer):
        """The words of this session."""

        def get_completions(
            self,
            document: Document,
            complete_event: CompleteEvent,  # noqa: ARG002
        ) -> Iterable[Completion]:
            for word, length in proposals(document.text_before_cursor):
                yield Completion(word, -length)

    return _Completer()
