"""Books and plans in words, for all who show them: the command line, the dashboard. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    # Whoever only shows what somebody else planned needs neither YAML nor schemas.
    from karma_playbooks.format import Book
    from karma_playbooks.plan import Plan, PlannedStep
    from karma_playbooks.preflight import Check

Style = Literal["", "strong", "warn", "bad"]
MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}


class Piece(NamedTuple):
    """A part of a line, and how it is meant."""

    text: str
    style: Style = ""


Line = tuple[Piece, ...]


def plain(line: Line) -> str:
    """Return a line's letters."""
    return "".join(piece.text for piece in line)


def _line(text: str, style: Style = "") -> Line:
    return (Piece(text, style),)


# -- Books -----------------------------------------------------------------------------------------------


def book_lines(book: Book) -> Iterator[Line]:
    """Return what a book is for, takes and does."""
    yield Piece(book.name, "strong"), Piece(f": {book.title}")
    if book.details:
        yield _line(book.details)
    yield _line(f"loses {book.loses}")
    if book.params:
        yield _line("")
    for param in book.params.values():
        default = f" (default {spelt(param.default)})" if param.has_default else " (must be given)"
        yield _line(f"  --param {param.name}=…  {param.help}{default}")
    yield _line("")
    for number, step in enumerate(book.steps, 1):
        yield Piece(f"{number:>3} "), Piece(step.id, "strong"), Piece(f"  {step.title}  [{step.call.action}]")
        if step.irreversible:
            yield _line(f"      cannot be undone: {step.irreversible}")


def spelt(value: Any) -> str:
    """Return a parameter's default in words."""
    return (
        f"{value['ref']}, as the nodes tell" if isinstance(value, Mapping) and "ref" in value else str(value)
    )


# -- Plans -----------------------------------------------------------------------------------------------


def plan_lines(plan: Plan) -> Iterator[Line]:
    """Return a plan in full."""
    yield from subject_lines(plan)
    yield _line("")
    yield from step_lines(plan)
    yield _line("")
    yield from preflight_lines(plan.preflight)
    yield _line("")
    yield from cost_lines(plan)


def subject_lines(plan: Plan) -> Iterator[Line]:
    """Return what is planned, on which nodes, with which parameters."""
    yield Piece(plan.playbook, "strong"), Piece(f": {plan.title}")
    mark = (Piece("  PRODUCTION", "bad"),) if plan.is_production else ()
    yield Piece(f"cluster {plan.cluster}"), *mark
    for node in plan.nodes:
        epoch = f", epoch {node['epoch']}" if node["epoch"] is not None else ""
        name = "" if node["name"] == node["address"] else f"{node['name']}  "
        yield _line(f"  {name}{node['address']}  {node['role']}{epoch}  ({node['host']})")
    for name, value in plan.params.items():
        yield _line(f"  {name} = {value}")


def preflight_lines(checks: Sequence[Check]) -> Iterator[Line]:
    """Return what was looked at before anything changes: what is well by groups of nodes, the rest singly."""
    yield _line("preflight")
    names_by_place: dict[str, list[str]] = {}
    for check in checks:
        if check.level == "ok":
            names_by_place.setdefault(check.place, []).append(check.name)
    places_by_names: dict[str, list[str]] = {}
    for place, names in names_by_place.items():
        places_by_names.setdefault(", ".join(dict.fromkeys(names)), []).append(place)
    for well, places in places_by_names.items():
        yield _line(f"  {MARKS['ok']} {', '.join(places)}: {well}")
    for check in checks:
        if check.level != "ok":
            style: Style = "bad" if check.level == "failed" else "warn"
            yield Piece(f"  {MARKS[check.level]} {check.place}: {check.name}: ", style), Piece(check.text)
            yield _line(f"      next: {check.advice}")


def step_lines(plan: Plan) -> Iterator[Line]:
    """Return every step with its commands, its checks and its undo."""
    for number, step in enumerate(plan.steps, 1):
        yield from _step(number, step)


def _step(number: int, step: PlannedStep) -> Iterator[Line]:
    if step.skipped:
        yield _line(f"{number:>3} {step.id}: left out, {step.skipped}")
        return
    yield _line(f"{number:>3} {step.id}: {step.title}" + (" (asks first)" if step.approval else ""))
    for work in step.works:
        yield _line(f"      does    {work.doing.command}")
        for doing in work.verify:
            yield _line(f"      checks  {doing.command}")
        for doing in work.undo:
            yield _line(f"      undo    {doing.command}")
    if step.irreversible:
        yield _line(f"      NO UNDO {step.irreversible}")


def cost_lines(plan: Plan) -> Iterator[Line]:
    """Return what a plan gives up, what is odd about it, and its hash."""
    yield _line(f"loses {plan.loss.text}", "strong")
    if plan.loss.series_text:
        yield _line(f"  by series: {plan.loss.series_text}")
    yield _line(f"point of no return: {plan.point_of_no_return or 'none'}")
    for warning in plan.warnings:
        yield Piece("warning:", "warn"), Piece(f" {warning}")
    yield _line(f"plan hash {plan.hash}")


LOCK_DOUBT = "No majority may hold the lock: if another run changes this cluster, two masters take writes"


def consent(plan: Plan, *, lock_unverified: bool = False) -> str:
    """Return what an operator agrees to; it completes "this will …"."""
    act = f"run {plan.playbook} on {plan.cluster}; it loses {plan.loss.text}"
    if plan.is_blind:
        act += ". Nobody can see that the old master is off: if it is not, two masters take writes"
    if lock_unverified:
        act += f". {LOCK_DOUBT}"
    return act


def run_words(book: str, given: Mapping[str, str], plan: Plan, reason: str, ticket: str) -> tuple[str, ...]:
    """Return the words of the karmactl command that carries exactly this plan out, or refuses."""
    params = [word for name, value in given.items() for word in ("--param", f"{name}={value}")]
    tickets = ["--ticket", ticket] if ticket else []
    return ("playbook", "run", book, *params, "--reason", reason, *tickets, "--plan-hash", plan.hash)
