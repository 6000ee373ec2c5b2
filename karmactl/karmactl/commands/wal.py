"""wal cat, tail, stat: the log, live over the protocol or offline from directories, of one node or many."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from karma.protocol.texts import spelled_out
from karma_client.errors import KarmaError
from karma_client.logs import (
    PAGE_ENTRIES,
    Filter,
    Logged,
    LogReader,
    Merged,
    Merger,
    Page,
    clock,
    described,
    in_turn,
)
from karma_client.network import run as wait
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.failures import translated
from karmactl.moments import moment_ms
from karmactl.output import Row, chosen_line
from karmactl.run import Run
from karmactl.watching import until_interrupted

WAIT_MS = 2000
"""How long a server may hold its reply until there is something; then a stopped tail ends soon."""
POLL_SECONDS = 0.5
"""Between two looks at a server that does not hold its reply."""
RETRY_SECONDS = 1.0


def cat(run: Run, from_: tuple[str, ...], **wanted: Any) -> Iterator[Row] | None:
    """Show what the log holds now."""
    return _show(run, from_, _once(run, from_, _filter(wanted)))


def tail(run: Run, from_: tuple[str, ...], lines: int, **wanted: Any) -> Iterator[Row] | None:
    """Show the newest entries, then those that come, until Ctrl-C. A directory has no more to come."""
    chosen = _filter(wanted)
    if from_:
        return _show(run, from_, iter(deque(_once(run, from_, chosen), maxlen=lines)))
    return _show(run, from_, _follow(run, chosen, lines))


def stat(run: Run, from_: tuple[str, ...], **wanted: Any) -> list[Row]:
    """Count entries by operation and series, and say on stderr what the log covers."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    entries = 0
    first = last = None
    oddities = 0
    for merged in _once(run, from_, _filter(wanted)):
        logged = merged.logged
        entries += 1
        first, last = first or logged, logged
        oddities += bool(merged.note)
        what = str(logged.entry.get("op")), logged.entry.get("series")
        row = found.setdefault(
            what, {"op": what[0], "series": what[1], "entries": 0, "items": 0, "first_lsn": logged.lsn}
        )
        row["entries"] += 1
        row["items"] += len(logged.entry.get("items", logged.entry.get("keys", "1")))
        row["last_lsn"] = logged.lsn
        row["last_unix"] = None if logged.ts_ms is None else logged.ts_ms // 1000
    if first is not None and last is not None:
        odd = (
            f"; {oddities} with a gap before them or a difference, see `karmactl wal cat`" if oddities else ""
        )
        times = "" if first.ts_ms is None else f", {clock(first.ts_ms)} to {clock(last.ts_ms)}"
        run.talk.say(f"{entries:,} entries, LSN {first.lsn} to {last.lsn}{times}{odd}")
    return sorted(found.values(), key=lambda row: row["entries"], reverse=True)


def _filter(wanted: Mapping[str, Any]) -> Filter:
    now = time.time()
    return Filter(
        wanted["series"],
        wanted["op"],
        frozenset(wanted["key"]),
        wanted["from_lsn"],
        wanted["to_lsn"],
        moment_ms(wanted["since"], now),
        moment_ms(wanted["until"], now),
    )


# -- What is shown ---------------------------------------------------------------------------------------


def _show(run: Run, directories: tuple[str, ...], merged: Iterator[Merged]) -> Iterator[Row] | None:
    """Return rows for JSON and CSV; write the table, which has no end to wait for, line by line."""
    if run.output.form != "table":
        return (one.row() for one in merged)
    fields = run.settings["fields"]
    is_one_of_many = len(directories or run.settings.nodes) > 1
    for one in merged:
        text = chosen_line(one.row(), fields) if fields else _line(one)
        if not fields and is_one_of_many:
            text += f"  [{', '.join(one.places)}]"
        if not fields and one.note:
            text += "  " + run.output.paper.styled(one.note, "33")
        run.output.lines([text])
    run.output.flush()
    return None


def _line(one: Merged) -> str:
    lsn, entry, ts_ms, _, epoch = one.logged
    number = f"{epoch}:{lsn}" if epoch is not None else str(lsn)
    text = f"{number:>8}  {clock(ts_ms)}  {entry.get('op')}"
    text += f"  {entry['series']}" if "series" in entry else ""
    # Not cut to the terminal's width: a log that wraps can be read, one that is cut cannot.
    return spelled_out(f"{text}  {described(entry)}".rstrip())


# -- The log as it is ------------------------------------------------------------------------------------


def _once(run: Run, directories: tuple[str, ...], chosen: Filter) -> Iterator[Merged]:
    """Yield what there is now. Sets the exit code where a gap, a difference or a dead node was met."""
    merger = Merger()
    errors: dict[str, Exception] = {}
    if directories:
        pages = {name: _directory_pages(name, chosen) for name in directories}
    else:
        pages = {node: _node_pages(run, node, chosen) for node in run.settings.nodes}
    for merged in in_turn(pages, merger, errors.__setitem__):
        if chosen.takes(merged.logged):
            yield merged
    if len(errors) == len(pages):
        raise next(iter(errors.values()))
    if merger.is_odd:
        run.exit_code = Exit.UNHEALTHY
    for name, error in errors.items():
        if not isinstance(error, KarmaError):
            raise error
        run.exit_code = Exit.PARTIAL
        run.talk.warn(f"{name} is left out: {translated(error, run).message}")


def _directory_pages(name: str, chosen: Filter) -> Iterator[Page]:
    from karma import offline  # noqa: PLC0415  a live log needs no storage code

    if not Path(name).is_dir():
        raise usage(f"there is no directory {name}", "--from names a data directory of karma")
    lines = offline.read_log(Path(name))
    reached = 0
    while page := list(islice(lines, PAGE_ENTRIES)):
        reached = page[-1].lsn
        # Without the line's checksum, which covers what was durable there and is of no other node.
        yield Page([Logged(line.lsn, line.entry, line.ts_ms) for line in page], reached)
        if chosen.to_lsn is not None and reached >= chosen.to_lsn:
            return


def _node_pages(run: Run, node: str, chosen: Filter) -> Iterator[Page]:
    """Yield the log of a node up to where it ends when this begins."""
    reader = _reader(run, node, None if chosen.from_lsn is None else chosen.from_lsn - 1)
    last_lsn = chosen.to_lsn
    while True:
        # A wait of nothing: asked with a field of ours, a server tells times and checksums, too.
        page, source_lsn = wait(reader.read(wait_ms=0))
        last_lsn = source_lsn if last_lsn is None else min(last_lsn, source_lsn)
        yield page
        if page.reached_lsn >= last_lsn or not page.entries:
            return


def _reader(run: Run, node: str, after_lsn: int | None) -> LogReader:
    async def ask(op: str, fields: Mapping[str, Any]) -> Any:
        return run.at(node, op, **fields)

    return LogReader(ask, after_lsn, lambda text: run.talk.warn(f"{node}: {text}"))


# -- The log as it grows ---------------------------------------------------------------------------------

_Said = tuple[str, Page | KarmaError]


def _follow(run: Run, chosen: Filter, lines: int) -> Iterator[Merged]:
    """Yield the last entries and those that come; Ctrl-C ends it in order, with the exit code of that."""
    said: queue.Queue[_Said] = queue.Queue(maxsize=64)
    merger = Merger()
    starts = run.each(lambda node: _start(run, node, chosen, lines))
    errors = [start for start in starts if isinstance(start, KarmaError)]
    if len(errors) == len(starts):
        raise errors[0]
    with until_interrupted() as is_stopped:
        for node, start in zip(run.settings.nodes, starts, strict=True):
            merger.expect(node)
            if isinstance(start, KarmaError):
                merger.leave(node)
            threading.Thread(
                target=_feed,
                args=(run, node, start if isinstance(start, int) else None, said, is_stopped),
                daemon=True,
            ).start()
        for merged in _live(run, merger, said, is_stopped):
            if chosen.takes(merged.logged):
                yield merged
            if chosen.to_lsn is not None and merged.logged.lsn >= chosen.to_lsn:
                return
        run.exit_code = Exit.INTERRUPTED


def _start(run: Run, node: str, chosen: Filter, lines: int) -> int | KarmaError:
    """The LSN behind which a tail of a node begins."""
    try:
        status = run.at(node, "replication.status")
    except KarmaError as error:
        return error
    if chosen.from_lsn is not None:
        return max(chosen.from_lsn - 1, 0)
    last_lsn = max(status.get("wal_current_lsn") or 0, status.get("replayed_lsn") or 0)
    return max(last_lsn - lines, 0)


def _live(
    run: Run, merger: Merger, said: queue.Queue[_Said], is_stopped: threading.Event
) -> Iterator[Merged]:
    dead: set[str] = set()
    while not is_stopped.is_set():
        try:
            node, what = said.get(timeout=0.1)
        except queue.Empty:
            run.output.flush()
        else:
            if isinstance(what, Page):
                merger.add(node, what)
                if node in dead:
                    dead.remove(node)
                    run.talk.say(f"{node} is back")
            else:
                merger.leave(node)
                if node not in dead:
                    dead.add(node)
                    run.talk.warn(f"{node} is left out until it is back: {translated(what, run).message}")
        yield from merger.due(time.monotonic())


def _feed(
    run: Run, node: str, after_lsn: int | None, said: queue.Queue[_Said], is_stopped: threading.Event
) -> None:
    """Put the pages of a node into the queue until it is over."""
    reader = _reader(run, node, after_lsn)
    while not is_stopped.is_set():
        asked = time.monotonic()
        pause_seconds = 0.0
        what: Page | KarmaError
        try:
            what, _ = wait(reader.read(wait_ms=WAIT_MS))
        except KarmaError as error:
            what, pause_seconds = error, RETRY_SECONDS
        except CtlError:
            return
        else:
            if not what.entries and time.monotonic() - asked < POLL_SECONDS:
                pause_seconds = POLL_SECONDS
        said.put((node, what))
        is_stopped.wait(pause_seconds)
