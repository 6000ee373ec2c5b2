"""Playbooks, plans and runs as tables and lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from karma_playbooks.wording import Line, Piece
from karma_tui.spelling import age
from karma_tui.tables import Column, Mood, Row, Table

if TYPE_CHECKING:
    # Its module brings in what reads playbooks.
    from karma_playbooks.format import Book
    from karma_playbooks.history import Attempt, History
    from karma_playbooks.plan import Plan
    from karma_playbooks.progress import Part, Progress

BOOKS = (
    Column("name", "PLAYBOOK", rank=0),
    Column("title", "WHAT IT DOES", rank=1, widest=90, least=30),
    Column("loses", "LOSES", rank=2),
)
PARTS = (
    Column("number", "", "number", rank=2),
    Column("step", "STEP", rank=0, widest=30),
    Column("target", "ON", rank=0, widest=40),
    Column("phase", "STATE", rank=0),
    Column("seconds", "TOOK", "age", rank=1),
    Column("what", "WHAT", rank=1, widest=120, least=20),
)
RUNS = (
    Column("began_unix", "BEGAN", "time", rank=1),
    Column("run", "RUN", rank=0, widest=60),
    Column("state", "STATE", rank=0),
    Column("took_ms", "TOOK", "ms", rank=2),
    Column("cluster", "OF", rank=3, widest=30),
    Column("operator", "OPERATOR", rank=3, widest=30),
    Column("reason", "REASON", rank=1, widest=60, least=12),
    Column("why", "WHY", rank=4, widest=60, least=16),
)
WHOLE = "run"
"""The key of the row that stands for the run itself. No step has it: its key holds a space."""
_MOODS: Mapping[str, Mood] = {
    "waiting": "dim", "left out": "dim", "done": "good", "failed": "bad", "unknown": "bad", "undone": "warn",
    "undoing": "warn", "paused": "bad", "superseded": "bad",
}  # fmt: skip


def books(found: Iterable[tuple[str, Book | str]]) -> Table:
    """Return the playbooks; in place of one that cannot be read stands why."""
    rows = [
        Row(name, (name, book, None), "bad")
        if isinstance(book, str)
        else Row(name, (name, book.title, book.loses))
        for name, book in found
    ]
    return Table(BOOKS, tuple(rows))


def runs(found: Sequence[History]) -> Table:
    """Return runs, as they come."""
    rows = [
        Row(
            each.run,
            (
                each.began_unix_ms / 1000,
                each.run,
                each.state,
                each.ended_unix_ms - each.began_unix_ms,
                each.header["cluster"],
                each.header["operator"],
                each.header["reason"],
                each.why or None,
            ),
            _MOODS.get(each.state, ""),
        )
        for each in found
    ]
    return Table(RUNS, tuple(rows), "there was no run yet; Esc leads back to the playbooks, Enter plans one")


# -- Plans ------------------------------------------------------------------------------------------------


def plan_summary(plan: Plan) -> Iterator[Line]:
    """Return how much is at stake, in the few lines that stand above a plan."""
    yield (Piece(f"loses {plan.loss.text}", "strong"),)
    if plan.loss.series_text:
        yield (Piece(f"by series: {plan.loss.series_text}"),)
    steps = [step for step in plan.steps if not step.skipped]
    changing = sum(step.changes for step in steps)
    yield (
        Piece(f"{len(steps)} steps, {changing} with changes; point of no return: "),
        Piece(plan.point_of_no_return or "none", "strong"),
        Piece(f"; hash {plan.hash}"),
    )
    for warning in plan.warnings:
        yield Piece("warning: ", "warn"), Piece(warning)


# -- Runs -------------------------------------------------------------------------------------------------


def parts(progress: Progress, now_unix_ms: int, state: str) -> Table:
    """Return the run in a row of its own, then each step on each target; `state` is that of the run."""
    history = progress.history
    ended = now_unix_ms if state in {"running", "undoing"} else history.ended_unix_ms
    seconds = max(ended - history.began_unix_ms, 0) / 1000 if history.began_unix_ms else None
    whole = (
        None,
        progress.plan.playbook,
        progress.plan.cluster,
        state,
        seconds,
        _last(progress.told) or None,
    )
    numbers = {step.id: number for number, step in enumerate(progress.plan.steps, 1)}
    rows = [
        Row(
            part_key(part),
            (
                numbers[part.step.id],
                part.step.id,
                part.target or "here",
                part.phase,
                part.seconds(now_unix_ms),
                part.error or _last(part.output) or part.step.title or None,
            ),
            _MOODS.get(part.phase, ""),
        )
        for part in progress.parts
    ]
    return Table(PARTS, (Row(WHOLE, whole, _MOODS.get(state, "")), *rows))


def part_key(part: Part) -> str:
    """Return what names a part among all of a run."""
    return f"{part.step.id} {part.target}"


def _last(lines: Iterable[str]) -> str:
    return next((line for line in reversed(list(lines)) if line.strip()), "")


def run_lines(progress: Progress, problem: str) -> Iterator[Line]:
    """Return who wanted a run and why, and all that it told."""
    history, plan = progress.history, progress.plan
    yield Piece(history.run or plan.playbook, "strong"), Piece(f": {plan.title}")
    if problem:
        yield (Piece(problem, "bad"),)
    if history.header:
        ticket = f", ticket {history.header['ticket']}" if history.header["ticket"] else ""
        yield (Piece(f"by {history.header['operator']}: {history.header['reason']}{ticket}"),)
    if history.why:
        yield Piece(f"{history.state}: ", "strong"), Piece(history.why)
    yield (Piece(f"plan hash {plan.hash}; point of no return: {plan.point_of_no_return or 'none'}"),)
    for note in history.notes:
        yield Piece("unknown: ", "warn"), Piece(note)
    for line in progress.told:
        yield (Piece(line),)


def part_lines(progress: Progress, part: Part) -> Iterator[Line]:
    """Return everything about one step on one target: what it does, what was tried, seen and printed."""
    yield Piece(part.step.id, "strong"), Piece(f" on {part.target or 'this machine'}: {part.step.title}")
    if part.error:
        yield Piece(f"{part.phase}: ", "strong"), Piece(part.error)
    if part.work is not None:
        yield (Piece(f"does    {part.work.doing.command}"),)
        for doing in part.work.verify:
            yield (Piece(f"checks  {doing.command}"),)
        for doing in part.work.undo:
            yield (Piece(f"undo    {doing.command}"),)
    if part.step.irreversible:
        yield (Piece(f"NO UNDO {part.step.irreversible}"),)
    for attempt in progress.attempts(part):
        yield (Piece(_attempt(attempt, is_busy=part.is_busy)),)
    if part.found:
        yield (Piece("seen    " + ", ".join(f"{name}={value}" for name, value in part.found.items())),)
    for line in part.output:
        yield (Piece(f"  | {line}"),)


def _attempt(attempt: Attempt, *, is_busy: bool) -> str:
    what = "try" if attempt.place < 0 else "undo"
    became = attempt.outcome or ("under way" if is_busy else "nobody knows")
    seen = ", and that was seen" if attempt.is_verified else ""
    lapsed = ", which no longer holds" if attempt.has_lapsed else ""
    gave = {name: value for name, value in attempt.output.items() if value not in ("", None)}
    output = " " + ", ".join(f"{name}={value}" for name, value in gave.items()) if gave else ""
    error = f": {attempt.error}" if attempt.error else ""
    return f"{what} {attempt.number}   {became}{seen}{lapsed}{error}{output}"


def heard(name: str, role: str, epoch: int, error: str, seconds: float) -> Line:
    """Return what a node said while a plan is made."""
    said = error or f"{role}, epoch {epoch}"
    return Piece(f"{name}: ", "strong"), Piece(f"{said} (after {age(seconds)})")
