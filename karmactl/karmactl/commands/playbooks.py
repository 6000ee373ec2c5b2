"""switchover, failover and the playbook commands: plans shown, questions asked, runs carried out."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from karma.protocol.texts import spelled_out
from karmactl.contexts import config_path, state_path, tilde
from karmactl.diagnostics import CtlError, Exit, Fault, usage
from karmactl.output import Paper, Row, Shown, record
from karmactl.run import Run, client_options

if TYPE_CHECKING:
    from karma_playbooks.control import Playbooks, Request
    from karma_playbooks.format import Book
    from karma_playbooks.history import History
    from karma_playbooks.inventory import Desk
    from karma_playbooks.plan import Plan
    from karma_playbooks.wording import Line, Style

T = TypeVar("T")
_NEEDED = ("yaml", "jsonschema")
"""What the extra brings for books; hosts over SSH need more, which is loaded when one is asked."""
_KINDS: Mapping[str, tuple[Exit, Fault]] = {
    "usage": (Exit.USAGE, "command line"),
    "not found": (Exit.NOT_FOUND, "command line"),
    "refused": (Exit.REFUSED, "cluster"),
    "unreachable": (Exit.UNREACHABLE, "network"),
    "internal": (Exit.PLAYBOOK_PAUSED, "this machine"),
}
_STYLES: Mapping[Style, str] = {"": "", "strong": "1", "warn": "33", "bad": "31"}
_ENDINGS = {
    "done": Exit.OK,
    "undone": Exit.PLAYBOOK_UNDONE,
    "superseded": Exit.PLAYBOOK_UNDONE,
    "paused": Exit.PLAYBOOK_PAUSED,
}
TEMPLATE = """\
# `karmactl playbook lint` checks this file, `karmactl playbook show switchover --output json` has examples.
playbook: {name}
title: What it is for, in a sentence.
loses: nothing
params:
  node: {{kind: node, help: the node to look at}}
steps:
  - id: look
    title: The node follows its source.
    targets: {{ref: params.node}}
    action: karma.expect
    args: {{is: {{following: true}}, within_seconds: 5}}
"""


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what playbooks raise into errors of karmactl; without the extra, say what to install."""
    missing = next((module for module in _NEEDED if find_spec(module) is None), None)
    if missing is not None:
        raise usage(f"playbooks need {missing}, which is not installed", "pip install 'karma[playbooks]'")
    from karma_playbooks.errors import PlaybookError  # noqa: PLC0415  other commands need none of it

    try:
        yield
    except PlaybookError as error:
        code, fault = _KINDS[error.kind]
        raise CtlError(code, error.message, fault=fault, advice=error.advice) from error


# -- Files -----------------------------------------------------------------------------------------------


def _own(run: Run) -> Path:
    return config_path(run.environ).parent / "playbooks"


def list_(run: Run) -> list[Row]:
    """List the books; one that cannot be read is listed with what is wrong."""
    with _translated():
        from karma_playbooks.library import BOOKS, list_books  # noqa: PLC0415

        return [
            {
                "name": book.name,
                "title": book.title,
                "loses": book.loses,
                "file": "karmactl" if book.path.parent == BOOKS else tilde(book.path),
            }
            for book in list_books(_own(run))
        ]


def show(run: Run, name: str) -> Shown:
    """Show one book."""
    book = _book(run, name)
    from karma_playbooks.strict import load  # noqa: PLC0415

    return Shown(load(book.text, book.file).value, lambda paper: _book_lines(book, paper))


def _book(run: Run, name: str) -> Book:
    with _translated():
        from karma_playbooks.library import load_book  # noqa: PLC0415

        return load_book(name, _own(run))


def _book_lines(book: Book, paper: Paper) -> Iterator[str]:
    from karma_playbooks.wording import book_lines  # noqa: PLC0415

    return _laid_out(book_lines(book), paper)


def _laid_out(lines: Iterable[Line], paper: Paper) -> Iterator[str]:
    for line in lines:
        yield "".join(paper.styled(spelled_out(piece.text), _STYLES[piece.style]) for piece in line)


def lint(run: Run, file: tuple[str, ...], *, schema: bool) -> Shown | list[Row]:
    """Check files. Exit code 2 when something is wrong."""
    with _translated():
        from karma_playbooks.format import lint as lint_text  # noqa: PLC0415
        from karma_playbooks.library import read_text  # noqa: PLC0415
        from karma_playbooks.schema import SCHEMA  # noqa: PLC0415

        if schema:
            import json  # noqa: PLC0415

            return Shown(SCHEMA, lambda _: json.dumps(SCHEMA, indent=2).splitlines())
        if not file:
            raise usage("there is no file to check", "name one, or --schema")
        rows: list[Row] = []
        for path in file:
            found = lint_text(read_text(Path(path)), path)
            rows += [{"place": problem.place, "problem": problem.text} for problem in found]
        if rows:
            run.exit_code = Exit.USAGE
        else:
            run.talk.say(f"{', '.join(file)}: nothing is wrong")
        return rows


def new(run: Run, name: str) -> Row:
    """Write a book to begin with; an existing file stays."""
    with _translated():
        from karma_playbooks.format import lint as lint_text  # noqa: PLC0415
        from karma_playbooks.library import book_names  # noqa: PLC0415

        path = _own(run) / f"{name}.yml"
        text = TEMPLATE.format(name=name)
        if problems := lint_text(text, path.name):
            raise usage(
                f'"{name}" is no name for a playbook: {problems[0].text}', "small letters, digits and dashes"
            )
        if name in book_names(_own(run)) or path.exists():
            raise CtlError(
                Exit.REFUSED,
                f"there is a playbook {name} already",
                fault="command line",
                advice="choose another name",
            )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text)
        return {"file": tilde(path)}


# -- Plans -----------------------------------------------------------------------------------------------


def plan(run: Run, name: str, param: tuple[str, ...]) -> Shown:
    """Show what a book would do."""
    book, given = _book(run, name), _given(param)
    found = _sitting(run, lambda playbooks: playbooks.plan(book, given))
    return Shown(found.to_json(), lambda paper: _plan_lines(found, paper))


def _given(param: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for each in param:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise usage(f'"{each}" is no parameter', "write --param NAME=VALUE")
        given[name] = value
    return given


def _plan_lines(plan: Plan, paper: Paper) -> Iterator[str]:
    from karma_playbooks.wording import plan_lines  # noqa: PLC0415

    return _laid_out(plan_lines(plan), paper)


def host_findings(run: Run) -> list[Row]:
    """Return what a playbook would find on the hosts of all nodes, as doctor shows it."""

    async def look(playbooks: Playbooks) -> list[Row]:
        from karma_playbooks.preflight import NODE_CHECKS, Needs, checks  # noqa: PLC0415

        cluster = await playbooks.look()
        names = [node.name for node in cluster.nodes]
        levels = {"ok": "ok", "warning": "warning", "failed": "critical"}
        return [
            {
                "level": levels[check.level],
                "place": check.place,
                "check": check.name,
                "finding": check.text,
                "advice": check.advice or None,
            }
            for check in checks(cluster, Needs(hosts=names))
            # What a node says over its port, doctor has already.
            if check.name not in NODE_CHECKS
        ]

    return _sitting(run, look)


# -- Runs ------------------------------------------------------------------------------------------------


def switchover(
    run: Run, to: str | None, reason: str, ticket: str | None, plan_hash: str | None, *, lock_unverified: bool
) -> Row | Shown:
    """Run the book of that name."""
    request = _request(run, reason, ticket, plan_hash, 0)._replace(lock_unverified=lock_unverified)
    return _play(run, "switchover", {"to": to} if to else {}, request)


def failover(
    run: Run,
    to: str | None,
    from_: str | None,
    reason: str,
    ticket: str | None,
    plan_hash: str | None,
    max_loss_entries: int | None,
    *,
    fence_unverified: bool,
    no_cooldown: bool,
    lock_unverified: bool,
) -> Row | Shown:
    """Run the book of that name."""
    request = _request(run, reason, ticket, plan_hash, max_loss_entries)._replace(
        ignores_cooldown=no_cooldown, lock_unverified=lock_unverified
    )
    given = {"to": to, "from": from_, "fence_unverified": "true" if fence_unverified else None}
    return _play(run, "failover", {name: value for name, value in given.items() if value}, request)


def run(
    run: Run,
    name: str,
    param: tuple[str, ...],
    reason: str,
    ticket: str | None,
    plan_hash: str | None,
    max_loss_entries: int | None,
    max_hosts: int,
    *,
    lock_unverified: bool,
) -> Row | Shown:
    """Plan a book, show it, ask, and carry it out."""
    request = _request(run, reason, ticket, plan_hash, max_loss_entries)
    return _play(run, name, _given(param), request._replace(lock_unverified=lock_unverified), max_hosts)


def _request(run: Run, reason: str, ticket: str | None, plan_hash: str | None, most: int | None) -> Request:
    with _translated():
        from karma_playbooks.control import Request  # noqa: PLC0415

        return Request(operator(run), reason, ticket or "", plan_hash or "", most)


def operator(run: Run) -> str:
    """Return who types, for the journal."""
    user = run.environ.get("SUDO_USER") or run.environ.get("USER") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _play(run: Run, name: str, given: Mapping[str, str], request: Request, max_hosts: int = 8) -> Row | Shown:
    book = _book(run, name)
    from karma_playbooks.control import refuse_failed_checks  # noqa: PLC0415
    from karma_playbooks.wording import consent  # noqa: PLC0415

    async def go(playbooks: Playbooks) -> Row | Shown:
        shown = await playbooks.plan(book, given)
        if run.is_dry:
            return Shown(shown.to_json(), lambda paper: _plan_lines(shown, paper))
        for line in _plan_lines(shown, Paper(None, run.talk.is_coloured)):
            run.talk.say(line)
        if request.plan_hash not in {"", shown.hash}:
            raise CtlError(
                Exit.REFUSED,
                f"the plan's hash is {shown.hash} now, not {request.plan_hash}; nothing was done",
                fault="cluster",
                advice="look at the plan above; if it is right: --plan-hash with its hash",
            )
        refuse_failed_checks(shown)
        is_blind = shown.is_blind or request.lock_unverified
        run.confirm(
            consent(shown, lock_unverified=request.lock_unverified), typed=shown.cluster if is_blind else ""
        )
        run_id, ending = await playbooks.run(book, given, shown, request)
        return _ended(run, playbooks, run_id, ending)

    return _sitting(run, go, max_hosts)


def resume(run: Run, run_id: str, *, takeover: bool, lock_unverified: bool) -> Row:
    """Go on with a run."""
    return _go_on(run, run_id, takeover=takeover, lock_unverified=lock_unverified, abort=False)


def abort(run: Run, run_id: str, *, takeover: bool, lock_unverified: bool) -> Row:
    """Take a run back."""
    return _go_on(run, run_id, takeover=takeover, lock_unverified=lock_unverified, abort=True)


def _go_on(run: Run, run_id: str, *, takeover: bool, lock_unverified: bool, abort: bool) -> Row:
    act = f"{'take back' if abort else 'go on with'} {run_id}"
    if lock_unverified:
        from karma_playbooks.wording import LOCK_DOUBT  # noqa: PLC0415

        run.confirm(f"{act}. {LOCK_DOUBT}", typed=run_id)
    else:
        run.confirm(act)

    async def go(playbooks: Playbooks) -> Row:
        ending = await playbooks.resume(
            run_id, operator(run), abort=abort, takeover=takeover, lock_unverified=lock_unverified
        )
        return _ended(run, playbooks, run_id, ending)

    return _sitting(run, go)


def say_next(run: Run, run_id: str) -> None:
    """Say how to go on with a run that the dashboard left, and end with the code of a paused one."""
    with _translated(), _journal(run) as journal:
        history = journal.history(run_id)
    if not history.is_over:
        run.exit_code = Exit.PLAYBOOK_PAUSED
        run.talk.say(f"{run_id} is {history.state}: {history.why}")
        run.talk.say(f"next: {_row(history)['next']}")


def _ended(run: Run, playbooks: Playbooks, run_id: str, ending: str) -> Row:
    run.exit_code = _ENDINGS[ending]
    row = _row(playbooks.journal.history(run_id))
    if row["next"]:
        run.talk.say(f"next: {row['next']}")
    return row


def _row(history: History) -> Row:
    from karma_playbooks.control import next_words  # noqa: PLC0415

    return {
        "run": history.run,
        "playbook": history.header["plan"]["playbook"],
        "state": history.state,
        "why": history.why or None,
        "next": next_words(history.run, history) or None,
    }


def status(run: Run, run_id: str | None, *, entries: bool) -> Shown | list[Row]:
    """Show a run, or its journal."""
    with _translated(), _journal(run) as journal:
        runs = journal.runs()
        if run_id is None and not runs:
            raise CtlError(Exit.NOT_FOUND, "there was no run yet", fault="command line", advice="see --help")
        chosen = run_id or runs[0]
        if entries:
            return [
                {"number": e.number, "unix_ms": e.unix_ms, "kind": e.kind, "data": e.data}
                for e in journal.entries(chosen)
            ]
        history = journal.history(chosen)
        steps = [
            {
                "step": attempt.step,
                "target": attempt.target or None,
                "attempt": attempt.number,
                "is_undo": attempt.place >= 0,
                "outcome": attempt.outcome or "unknown",
                "is_verified": attempt.is_verified,
                "error": attempt.error or None,
            }
            for attempt in history.attempts
        ]
        found = {**_row(history), "notes": history.notes, "attempts": steps}
        return Shown(found, lambda paper: _status_lines(run, found, paper))


def _status_lines(run: Run, found: Row, paper: Paper) -> Iterator[str]:
    kinds = {column.name: column.kind for column in run.command.shape.columns}
    yield from record({name: found[name] for name in kinds if found[name] is not None}, kinds, paper)
    for note in found["notes"]:
        yield spelled_out(f"unknown: {note}")
    yield ""
    for attempt in found["attempts"]:
        step = f"undo {attempt['step']}" if attempt["is_undo"] else attempt["step"]
        target = f" on {attempt['target']}" if attempt["target"] else ""
        number = f", try {attempt['attempt']}" if attempt["attempt"] > 1 else ""
        seen = ", seen to hold" if attempt["is_verified"] else ""
        error = f": {attempt['error']}" if attempt["error"] else ""
        yield spelled_out(f"  {step}{target}{number}: {attempt['outcome']}{seen}{error}")


def history(run: Run) -> list[Row]:
    """List runs."""
    with _translated(), _journal(run) as journal:
        found = [journal.history(each) for each in journal.runs()]
        return [
            {
                "run": each.run,
                "cluster": each.header["cluster"],
                "state": each.state,
                "operator": each.header["operator"],
                "reason": each.header["reason"],
                "ticket": each.header["ticket"] or None,
                "began_unix": each.began_unix_ms // 1000,
                "took_ms": each.ended_unix_ms - each.began_unix_ms,
            }
            for each in found
        ]


def unlock(run: Run) -> Row:
    """Break a lock."""
    run.confirm(f"break the run lock of {_cluster(run)}; a run that is under way may then be disturbed")
    was = _sitting(run, lambda playbooks: playbooks.unlock())
    return {"cluster": _cluster(run), "was_held_by": was or None}


# -- What a sitting needs --------------------------------------------------------------------------------


def _cluster(run: Run) -> str:
    context = run.settings.context
    return context.name if context is not None else run.settings.nodes[0]


@contextmanager
def _journal(run: Run) -> Iterator[Any]:
    from karma_playbooks.journal import Journal  # noqa: PLC0415

    journal = Journal(state_path(run.environ) / "journal.db")
    try:
        yield journal
    finally:
        journal.close()


def desk(run: Run) -> Desk:
    """Return the cluster of a command line, and where this machine keeps its runs. Raises CtlError."""
    from karma_playbooks.inventory import Desk  # noqa: PLC0415

    chosen = run.settings
    tables = chosen.context.nodes if chosen.context else [{"address": node} for node in chosen.nodes]
    return Desk(
        _cluster(run),
        operator(run),
        tuple(tables),
        state_path(run.environ),
        is_production=bool(chosen.production),
        is_read_only=bool(chosen["read_only"]),
        client_options=client_options(chosen, run.environ),
        environ=run.environ,
    )


def _sitting(run: Run, work: Callable[[Playbooks], Awaitable[T]], max_hosts: int = 8) -> T:
    """Do something with the cluster of a command line; connections and journal are closed afterwards."""
    with _translated():
        from karma_playbooks.control import sitting  # noqa: PLC0415

        async def approve(question: str) -> bool:
            return _approve(run, question)

        async def go() -> T:
            async with sitting(
                desk(run),
                tell=run.talk.say,
                say=lambda step, place, text: _say_output(run, step, place, text),
                approve=approve,
                max_hosts=max_hosts,
            ) as playbooks:
                return await work(playbooks)

        return asyncio.run(go())


def _say_output(run: Run, step: str, place: str, text: str) -> None:
    for line in text.splitlines():
        run.talk.say(f"  {step} {place}| {spelled_out(line)}")


def _approve(run: Run, question: str) -> bool:
    if run.settings["yes"]:
        return True
    if not (run.stdin.isatty() and run.talk.is_terminal):
        return False
    run.talk.prompt(f"{question} [y/N] ")
    return run.stdin.readline().strip().lower() in {"y", "yes"}
