"""events tail, query: what happened on this machine, as it was noted in the event log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from karma.protocol.texts import spelled_out
from karma_client.logs import clock
from karma_events import Consumer, EventError, EventLog, InvalidEventError, LogBusyError, Recorded
from karma_events.changes import Changes
from karma_events.ledger import Ledger, MissingExtraError, QueryError
from karma_events.log import LogReader
from karmactl.contexts import state_path, tilde
from karmactl.diagnostics import CtlError, Exit, Fault, usage
from karmactl.moments import moment_ms
from karmactl.output import Row, as_json, chosen_line
from karmactl.run import Run
from karmactl.watching import until_interrupted

LINES = 10
WAIT_SECONDS = 0.25
"""How long a tail sleeps when nothing happens, and so at most until it notices Ctrl-C."""

_CODES: tuple[tuple[type[EventError], Exit, Fault], ...] = (
    (InvalidEventError, Exit.USAGE, "command line"),
    (QueryError, Exit.USAGE, "command line"),
    (MissingExtraError, Exit.USAGE, "configuration"),
    (LogBusyError, Exit.REFUSED, "this machine"),
    (EventError, Exit.INTERNAL, "this machine"),
)
"""The first that fits decides."""


# -- What commands about events share ---------------------------------------------------------------------


def events_path(environ: Mapping[str, str]) -> Path:
    """Return the folder of this machine's event log."""
    return state_path(environ) / "events"


@contextmanager
def event_errors() -> Iterator[None]:
    """Turn trouble with events into a CtlError."""
    try:
        yield
    except EventError as error:
        code, fault = next((code, fault) for kind, code, fault in _CODES if isinstance(error, kind))
        raise CtlError(code, error.message, fault=fault, advice=error.advice) from error


def hint_if_empty(run: Run, log: EventLog) -> None:
    """Say where events come from, when there are none yet."""
    if not log.topics():
        run.talk.say(f"no events yet: playbook runs note theirs in {tilde(log.directory)}")


def attrs_text(attrs: Mapping[str, Any]) -> str:
    """Return what an event holds in one line."""
    return " ".join(
        f"{name}={value if isinstance(value, str) else as_json(value)}" for name, value in attrs.items()
    )


# -- tail -------------------------------------------------------------------------------------------------


def tail(
    run: Run,
    topic: tuple[str, ...],
    follow: bool,  # noqa: FBT001  the option's name
    lines: int | None,
    since: str | None,
    consumer: str | None,
) -> Iterator[Row] | None:
    """Show the newest events, or those that a consumer has not seen; with --follow go on until Ctrl-C."""
    since_ms = moment_ms(since, time.time())
    topics = tuple(dict.fromkeys(topic)) or None
    log = EventLog.open(events_path(run.environ))
    _hint_at_topics(run, log, topics, follow)
    if consumer is None:
        found = _newest(
            run, log, topics, LINES if lines is None and since is None else lines, since_ms, follow
        )
    elif lines is not None or since is not None:
        raise usage("a consumer begins where it was", "leave --lines and --since out, or --consumer")
    else:
        found = _unseen(run, log, topics, consumer, follow)
    return _show(run, found)


def _hint_at_topics(run: Run, log: EventLog, topics: Sequence[str] | None, follow: bool) -> None:  # noqa: FBT001
    """Say which of the topics asked for are not there: they may come, or be misspelt."""
    known = log.topics()
    if not known and not follow:
        hint_if_empty(run, log)
    for topic in topics or ():
        if known and topic not in known:
            run.talk.say(f'there is no topic "{spelled_out(topic)}" yet; there are {", ".join(known)}')


def _newest(
    run: Run,
    log: EventLog,
    topics: Sequence[str] | None,
    lines: int | None,
    since_ms: float | None,
    follow: bool,  # noqa: FBT001
) -> Iterator[Recorded]:
    with event_errors(), Changes(log) as changes:
        reader = LogReader(log, topics)
        first = (one for one in reader.read() if since_ms is None or one.envelope.ts_ms >= since_ms)
        newest = first if lines is None else deque(first, maxlen=lines)
        yield from _followed(run, changes, newest, reader.read) if follow else newest


def _unseen(
    run: Run,
    log: EventLog,
    topics: Sequence[str] | None,
    name: str,
    follow: bool,  # noqa: FBT001
) -> Iterator[Recorded]:
    with event_errors(), Consumer(log, name, topics) as consumer, Changes(log) as changes:

        def read() -> Iterator[Recorded]:
            yield from consumer.read()
            # Whoever shows them has taken the last one, and asked for more.
            run.output.flush()
            consumer.commit()

        yield from _followed(run, changes, read(), read) if follow else read()


def _followed(
    run: Run, changes: Changes, first: Iterable[Recorded], read: Callable[[], Iterable[Recorded]]
) -> Iterator[Recorded]:
    """Yield what there is, then what comes; Ctrl-C ends it in order, with the exit code of that."""
    with until_interrupted() as is_stopped:
        yield from first
        while not is_stopped.is_set():
            run.output.flush()
            changes.wait(WAIT_SECONDS)
            yield from read()
    run.exit_code = Exit.INTERRUPTED


def _show(run: Run, found: Iterator[Recorded]) -> Iterator[Row] | None:
    """Return rows for JSON and CSV; write the table, which may have no end to wait for, line by line."""
    if run.output.form != "table":
        return map(row_of, found)
    fields = run.settings["fields"]
    for one in found:
        run.output.lines([chosen_line(row_of(one), fields) if fields else _line(one)])
    run.output.flush()
    return None


def row_of(one: Recorded) -> Row:
    """Return an event as data: the envelope and its place."""
    return {"topic": one.topic, "offset": one.offset, **one.envelope.fields()}


def _line(one: Recorded) -> str:
    envelope = one.envelope
    words = [
        clock(envelope.ts_ms),
        f"{one.topic}:{one.offset}",
        envelope.event_type,
        envelope.entity_id,
        envelope.tags.get("action_id", envelope.correlation_id),
        attrs_text(envelope.attrs),
    ]
    # Not cut to the terminal's width: lines that wrap can be read, lines that are cut cannot.
    return spelled_out("  ".join(words).rstrip())


# -- query ------------------------------------------------------------------------------------------------


def query(run: Run, sql: str) -> list[Row]:
    """Ask the ledger."""
    log = EventLog.open(events_path(run.environ))
    hint_if_empty(run, log)
    with event_errors(), Ledger(log.read()) as ledger:
        return list(ledger.query(sql).rows)
