"""SQL asked from a screen: a thread that owns a session, and questions put to it.

DuckDB is loaded with the first question. A session is opened over what is asked and stays: tables that were
read stay read, and tables of one's own stay, until another place is asked or reading anew is wished for. The
thread is a daemon, because a request to a dead node must not hold up whoever leaves the dashboard.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from karma_client import KarmaError
from karma_sql.errors import SqlError, check_installed
from karma_sql.values import is_data, is_plan
from karma_tui.spelling import moment
from karma_tui.statements import Outcome, Place, parsed_history, spelt_history

if TYPE_CHECKING:
    from karma_sql.session import Session
    from karma_sql.sources import Source

MOST_ROWS = 2000
"""Rows of a result that are shown: sorting and filtering them stays quick between two keys."""
LEAVE_SECONDS = 2.0
"""How long whoever leaves waits for a statement to end: C++ does not like to be left in the middle."""

Opened = Callable[[Place, Callable[[str], object]], AbstractContextManager["Source"]]
"""Opens what is asked; the function it gets is told what is being fetched and raises to end it."""


class Progress(NamedTuple):
    """What is being done, and how much of it is done (None where nobody knows)."""

    text: str
    share: float | None = None


class Broken(NamedTuple):
    """A bug."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Question:
    """A statement, or several, for a place. `is_anew`: what was read before does not count."""

    place: Place
    text: str
    is_anew: bool = False
    is_over: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when nobody waits for it any more."""


class Asker:
    """Answers questions one after another. `report` is called in its thread, `clock` gives unix seconds."""

    def __init__(
        self,
        opened: Opened,
        cache_folder: Path,
        report: Callable[[Progress | Outcome | Broken], object],
        clock: Callable[[], float],
    ) -> None:
        self._opened = opened
        self._cache_folder = cache_folder
        self._report = report
        self._clock = clock
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._newest: Question | None = None
        """The question that was put last."""
        self._asked: Question | None = None
        """The question that is being answered."""
        self._is_told = False
        """Whether it is answered, and what was decoded for it is only kept for another session."""
        self._session: Session | None = None
        self._place: Place | None = None
        self._read_at = 0.0
        self._notes: list[str] = []
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._work, daemon=True, name="sql")
        self._thread.start()

    # -- From the screen's thread --------------------------------------------------------------

    def ask(self, question: Question) -> None:
        """Put a question; what is under way ends."""
        self.cancel()
        self._newest = question
        self._questions.put(question)

    def cancel(self) -> None:
        """Give up the question that was put last, also what is still being kept of it."""
        if self._newest is not None:
            self._newest.is_over.set()

    def close(self) -> None:
        """End the session and the thread, which is left alone if it takes long."""
        self.cancel()
        self._questions.put(None)
        self._thread.join(LEAVE_SECONDS)

    # -- In the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (question := self._questions.get()) is not None:
                self._asked = question
                self._is_told = False
                self._report(self._answer(question))
                self._is_told = True
                if self._session is not None and not question.is_over.is_set():
                    self._session.keep()
        except BaseException as error:  # noqa: BLE001  the screen's thread ends with it
            self._report(Broken(error))
        finally:
            self._stack.close()

    def _answer(self, question: Question) -> Outcome:
        begun = self._clock()
        try:
            outcome = self._run(self._session_for(question), question)
        except SqlError as error:
            outcome = Outcome(problem=error.message, advice=error.advice)
        except (KarmaError, OSError) as error:
            outcome = Outcome(problem=str(error))
        if question.is_over.is_set():
            outcome = Outcome(problem="cancelled")
        return outcome._replace(
            took_seconds=self._clock() - begun,
            read_at=self._read_at,
            notes=tuple(self._notes),
            names=() if self._session is None else tuple(self._session.names()),
        )

    def _session_for(self, question: Question) -> Session:
        if self._session is None or self._place != question.place or question.is_anew:
            check_installed()
            from karma_sql.cache import Cache  # noqa: PLC0415  whoever asks no SQL pays for none
            from karma_sql.session import Session  # noqa: PLC0415
            from karma_sql.sources import Asked  # noqa: PLC0415

            self._session = None
            self._notes.clear()
            self._stack.close()
            place = question.place
            source = self._stack.enter_context(self._opened(place, self._fetching))
            at = (place.snapshot,) if place.snapshot else ()
            self._session = self._stack.enter_context(
                Session(
                    [source],
                    Cache(self._cache_folder),
                    Asked(at, is_now=place.is_now),
                    # One processor is left to the screen.
                    threads=max(1, (os.cpu_count() or 2) - 1),
                    note=self._notes.append,
                    progress=self._running,
                )
            )
            self._place, self._read_at = place, self._clock()
        return self._session

    def _run(self, session: Session, question: Question) -> Outcome:
        """Carry out every statement; return the last one's data."""
        outcome = Outcome()
        for result in session.run(question.text):
            names = [column.name for column in result.columns]
            rows = list(islice(result.rows, MOST_ROWS + 1))
            if is_plan(names):
                outcome = Outcome(plan="\n".join(row[1].rstrip() for row in rows))
            elif is_data(names):
                columns = tuple((column.name, column.kind) for column in result.columns)
                outcome = Outcome(columns, rows[:MOST_ROWS], is_cut=len(rows) > MOST_ROWS)
            if question.is_over.is_set():
                break
        return outcome

    def _fetching(self, text: str) -> None:
        """Told by a source between two requests: the place to end one that fetches much."""
        assert self._asked is not None
        assert self._session is not None
        if self._asked.is_over.is_set():
            raise SqlError("cancelled", "cancelled")
        self._session.doing(text)

    def _running(self, text: str, share: float | None) -> None:
        """Told by the session ten times a second."""
        assert self._asked is not None
        if self._asked.is_over.is_set() and self._session is not None:
            # Here and not in `cancel`: between two steps of a statement there is nothing to be cancelled.
            self._session.cancel()
        if not self._is_told:
            self._report(Progress(text, share))


# -- What was typed before --------------------------------------------------------------------------------


def read_history(path: Path) -> list[str]:
    """Return what was typed before, oldest first; nothing where the file cannot be read."""
    try:
        return parsed_history(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


def append_history(path: Path, entry: str, unix_seconds: float) -> None:
    """Add an entry to a file that others need not read. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(spelt_history(entry, moment(unix_seconds)))
