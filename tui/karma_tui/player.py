"""The sole caller of the playbook engine: plans and carries out, in threads with event loops of their own.

The journal syncs every entry to the disk, and no key may wait for that. What happens there comes back as
functions that `post` brings into the app's loop, so that no value here has two threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from karma_client import KarmaError

if TYPE_CHECKING:
    # YAML, schemas and SSH cost memory, which only those pay who open playbooks.
    from karma_playbooks.cluster import NodeFacts
    from karma_playbooks.control import Playbooks
    from karma_playbooks.format import Book
    from karma_playbooks.history import History
    from karma_playbooks.inventory import Desk
    from karma_playbooks.plan import Plan
    from karma_playbooks.progress import Progress

T = TypeVar("T")
Post = Callable[[Callable[[], object]], object]


class Wish(NamedTuple):
    """What somebody filled in: a book, its parameters as they were typed, why, and for which ticket."""

    book: str
    given: Mapping[str, str]
    reason: str = ""
    ticket: str = ""


class Planned(NamedTuple):
    """A plan that somebody looks at."""

    wish: Wish
    book: Book
    plan: Plan

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the karmactl command that runs it."""
        from karma_playbooks.control import pinned  # noqa: PLC0415
        from karma_playbooks.wording import run_words  # noqa: PLC0415

        given = pinned(self.book, self.wish.given, self.plan)
        return run_words(self.wish.book, given, self.plan, self.wish.reason, self.wish.ticket)


class Live:
    """A run that this process carries out, or the last one that it did."""

    def __init__(self, progress: Progress, work: Callable[[Playbooks], Awaitable[object]]) -> None:
        self.progress = progress
        self.work = work
        """What the engine is called for."""
        self.is_under_way = True
        self.is_stopping = False
        """Whether somebody wants it to stop where it is."""
        self.problem = ""
        """Why it was refused, or broke off."""
        self.question = ""
        """What the run asks its operator, and waits for."""
        self.answer: Future[bool] | None = None


class _Hands(NamedTuple):
    """What reaches into the thread of the run under way."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[object]
    playbooks: Playbooks


@contextmanager
def engine() -> Iterator[None]:
    """Turn what playbooks raise into KarmaError; without the extra, say what to install."""
    try:
        from karma_playbooks import control  # noqa: F401, PLC0415  brings YAML and schemas in
        from karma_playbooks.errors import PlaybookError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise KarmaError(
            f"playbooks need {error.name}, which is not installed: pip install 'karma[playbooks]'"
        ) from error
    try:
        yield
    except PlaybookError as error:
        raise KarmaError("; ".join(filter(None, (error.message, error.advice)))) from error


class Player:
    """Playbooks of one desk; None where there is none, as in a recording. `books` is the person's own folder.

    `live` is the run that is under way here, or was last.
    """

    def __init__(self, desk: Desk | None, books: Path, post: Post) -> None:
        self.desk = desk
        self.live: Live | None = None
        self._books = books
        self._post = post
        self._hands: _Hands | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way here."""
        return self.live is not None and self.live.is_under_way

    @property
    def run(self) -> str:
        """The id of the run that is under way here, or was last; "" as long as there is none."""
        return self.live.progress.history.run if self.live is not None else ""

    # -- Plans ---------------------------------------------------------------------------------

    async def plan(self, wish: Wish, heard: Callable[[NodeFacts], object]) -> Planned:
        """Gather facts and plan; `heard` is told of each node. Raises KarmaError."""
        reached: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[object] | None]] = []

        async def work() -> Planned:
            reached.append((asyncio.get_running_loop(), asyncio.current_task()))
            async with self._sitting(None) as playbooks:
                from karma_playbooks.library import load_book  # noqa: PLC0415

                book = load_book(wish.book, self._books)

                def note(facts: NodeFacts) -> None:
                    self._post(partial(heard, facts))

                return Planned(wish, book, await playbooks.plan(book, wish.given, note))

        try:
            return await self._apart(work)
        except asyncio.CancelledError:
            # Whoever leaves does not wait for hosts that are silent.
            for loop, task in reached:
                if task is not None:
                    _reach(loop, task.cancel)
            raise

    # -- Runs ----------------------------------------------------------------------------------

    def begin(self, planned: Planned) -> Live:
        """Return the run of what somebody agreed to; `carry_out` comes next."""
        from karma_playbooks.control import Request  # noqa: PLC0415
        from karma_playbooks.progress import Progress  # noqa: PLC0415

        wish = planned.wish
        request = Request(self._operator, wish.reason, wish.ticket)
        self.live = Live(
            Progress(planned.plan),
            lambda playbooks: playbooks.run(planned.book, wish.given, planned.plan, request),
        )
        return self.live

    def begin_again(self, progress: Progress, *, abort: bool) -> Live:
        """Return a run that stopped, to be gone on with, or to be taken back; `carry_out` comes next."""
        run, operator = progress.history.run, self._operator

        async def work(playbooks: Playbooks) -> object:
            from karma_playbooks.progress import Progress  # noqa: PLC0415

            # Another process may have carried it further since it was read.
            self._post(partial(setattr, live, "progress", Progress.of(playbooks.journal.entries(run))))
            return await playbooks.resume(run, operator, abort=abort)

        live = self.live = Live(progress, work)
        return live

    @property
    def _operator(self) -> str:
        return "" if self.desk is None else self.desk.operator

    async def carry_out(self, live: Live) -> None:
        """Carry a run out; `live` tells how it goes."""
        try:
            await self._apart(lambda: self._sit_through(live))
        except KarmaError as error:
            live.problem = str(error)
        except asyncio.CancelledError:
            # The dashboard is left: the thread stops the run in order, and the process waits for it.
            self.pause()
            raise
        # Behind all that the thread has posted.
        self._post(partial(self._over, live))

    @staticmethod
    def _over(live: Live) -> None:
        live.is_under_way = False
        live.question, live.answer = "", None
        if live.is_stopping and not live.progress.history.run:
            live.problem = "it was stopped before it began; nothing was done"

    def undo(self) -> None:
        """Let the step under way end, then take back what was done: what Ctrl-C does to karmactl."""
        if (hands := self._hands) is not None:
            _reach(hands.loop, hands.playbooks.stop)

    def pause(self) -> None:
        """Stop where it is, to be resumed: what a second Ctrl-C does to karmactl."""
        if self.live is None or self.live.is_stopping:
            return
        self.live.is_stopping = True
        if (hands := self._hands) is not None:
            _reach(hands.loop, hands.task.cancel)

    def answer(self, *, is_approved: bool) -> None:
        """Answer the question of the run under way."""
        if self.live is not None and self.live.answer is not None:
            # A run that was stopped meanwhile waits for nothing any more.
            with suppress(InvalidStateError):
                self.live.answer.set_result(is_approved)
            self.live.question, self.live.answer = "", None

    # -- In the thread -------------------------------------------------------------------------

    async def _apart(self, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """Do something in a thread. Raises KarmaError."""
        return await asyncio.to_thread(lambda: asyncio.run(work()))

    @asynccontextmanager
    async def _sitting(self, live: Live | None) -> AsyncIterator[Playbooks]:
        if self.desk is None:
            raise KarmaError("there are no nodes to plan for: this is a recording")
        with engine():
            from karma_playbooks.control import sitting  # noqa: PLC0415

            async with sitting(self.desk, **self._witnesses(live)) as playbooks:
                yield playbooks

    async def _sit_through(self, live: Live) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with self._sitting(live) as playbooks:
                self._hands = _Hands(asyncio.get_running_loop(), task, playbooks)
                if not live.is_stopping:
                    await live.work(playbooks)
        except asyncio.CancelledError:
            # By `pause`: the journal has it.
            return
        finally:
            self._hands = None

    def _witnesses(self, live: Live | None) -> dict[str, Any]:
        """What the engine calls, in its thread."""
        if live is None:

            async def nobody(_: str) -> bool:
                return False

            return {"tell": lambda _: None, "say": lambda *_: None, "approve": nobody}

        async def approve(question: str) -> bool:
            answer: Future[bool] = Future()
            self._post(partial(_ask, live, question, answer))
            return await asyncio.wrap_future(answer)

        def begin(step: str, target: str) -> None:
            unix_ms = time.time_ns() // 1_000_000
            self._post(lambda: live.progress.begin(step, target, unix_ms))

        return {
            "tell": lambda line: self._post(lambda: live.progress.told.append(line)),
            "say": lambda *said: self._post(lambda: live.progress.say(*said)),
            "approve": approve,
            "begin": begin,
            "watch": lambda entry: self._post(lambda: live.progress.take(entry)),
        }


def _reach(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
    # A loop that is closed does nothing any more.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(what)


def _ask(live: Live, question: str, answer: Future[bool]) -> None:
    live.question, live.answer = question, answer


# -- The journal ------------------------------------------------------------------------------------------


def read_books(own: Path) -> list[tuple[str, Book | str]]:
    """Return every playbook by name; in place of one that cannot be read, why. Raises KarmaError."""
    with engine():
        from karma_playbooks.errors import PlaybookError  # noqa: PLC0415
        from karma_playbooks.library import book_names, load_book  # noqa: PLC0415

        found: list[tuple[str, Book | str]] = []
        for name in book_names(own):
            try:
                found.append((name, load_book(name, own)))
            except PlaybookError as error:
                found.append((name, error.message.partition("\n")[0]))
        return found


def read_runs(path: Path) -> list[History]:
    """Return the runs of a journal, the newest first; one that is not there is empty. Raises KarmaError."""
    if not path.exists():
        return []
    with engine():
        from karma_playbooks.journal import Journal  # noqa: PLC0415

        with closing(Journal(path)) as journal:
            return [journal.history(run) for run in journal.runs()]


def read_run(path: Path, run: str) -> Progress:
    """Return how far a run of a journal has come. Raises KarmaError."""
    with engine():
        from karma_playbooks.journal import Journal  # noqa: PLC0415
        from karma_playbooks.progress import Progress  # noqa: PLC0415

        with closing(Journal(path)) as journal:
            # For its error when there is no such run.
            journal.history(run)
            return Progress.of(journal.entries(run))
