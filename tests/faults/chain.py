"""What a server with a log may show after a crash: one of the states that its log went through.

The log that a trace writes is read as it grows, and every entry applied once, in order, to a store that
knows no snapshot, no rotation and no restart. A crash may lose the end of the chain, down to the last entry
that a client was answered for or that any answer showed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import orjson
from faults.power import Machine
from faults.reopen import State, state_of
from faults.system import Event

from karma.core.replay import Replay
from karma.core.store import Store
from karma.ops import BY_NAME
from karma.storage import wal

MARKS = ("series", "key", "bucket", "value", "keys", "items", "before", "range", "limit")
MARKS_OF_STREAMS = ("stream_id", "chunk_seq", "idempotency_key")


def mark_of(fields: Mapping[str, Any]) -> str:
    """Return what a request and its log entry have in common."""
    op = BY_NAME[fields["op"]].name
    known = {name: fields.get(name) for name in (*MARKS, *MARKS_OF_STREAMS) if fields.get(name) is not None}
    if op == "limit.consume":
        op = "counter.increment"
    if op == "counter.increment":
        known = {"value": 1, **known}
        known.pop("limit", None)
    if op.startswith("ingest."):
        known = {name: known.get(name) for name in ("stream_id", "chunk_seq")}
    return op + orjson.dumps(known, option=orjson.OPT_SORT_KEYS).decode()


class Chain:
    """The entries of one log and the state behind each. `log_path` is the active file's in the trace."""

    def __init__(self, log_path: str) -> None:
        self._log_path = log_path
        self._handles: dict[str, int] = {}
        """The log's open files, and the LSN before the first one of each."""
        self._entries: list[wal.Line] = []
        self.states: list[State] = []
        """The state behind each LSN, that of an empty store first."""
        self.ghosts: list[tuple[int, State]] = []
        """States with entries that were rolled back, until somebody was told."""
        self.acked_lsn = 0
        self._unmatched: defaultdict[str, deque[int]] = defaultdict(deque)
        self._restart(0)

    @property
    def last_lsn(self) -> int:
        """The LSN of the last entry in the log."""
        return len(self._entries)

    def entry(self, lsn: int) -> Mapping[str, Any]:
        """Return the entry of an LSN."""
        return self._entries[lsn - 1].entry

    def _restart(self, lsn: int) -> None:
        """Forget what is behind an LSN."""
        entries, self._entries, self.states = self._entries[:lsn], [], []
        store = Store()
        self._replay = Replay(store)
        self._store = store
        self.states.append(state_of(store))
        self._unmatched.clear()
        for line in entries:
            self._add(line)

    def _add(self, line: wal.Line) -> None:
        self._entries.append(line)
        assert line.lsn == len(self._entries)
        assert self._replay.apply(line.lsn, line.entry, (line.ts_ms or 0) // 1000) is None
        self.states.append(state_of(self._store))
        self._unmatched[mark_of(line.entry)].append(line.lsn)

    def apply(self, event: Event, machine: Machine) -> None:
        """Take in an event that the machine has taken in."""
        if event.kind == "open" and event.path == self._log_path:
            lines = machine.file(event.file).content().splitlines()
            self._handles[event.file] = wal.parse_line(lines[0]).lsn - 1 if lines else self.last_lsn
        elif event.kind in ("write", "truncate") and event.file in self._handles:
            self._read(machine.file(event.file).content(), self._handles[event.file])

    def _read(self, content: bytes, before_lsn: int) -> None:
        lines = [wal.parse_line(raw) for raw in content.split(b"\n")[:-1]]
        last_lsn = lines[-1].lsn if lines else before_lsn
        new = [line for line in lines if line.lsn > self.last_lsn]
        rewritten = [
            line.lsn for line in lines if line.lsn <= self.last_lsn and self._entries[line.lsn - 1] != line
        ]
        back_lsn = min([last_lsn, *(lsn - 1 for lsn in rewritten)])
        if back_lsn < self.last_lsn:
            self.ghosts += [(lsn, self.states[lsn]) for lsn in range(back_lsn + 1, self.last_lsn + 1)]
            self._restart(back_lsn)
            new = [line for line in lines if line.lsn > back_lsn]
        for line in new:
            self._add(line)

    def acknowledge(self, request: Mapping[str, Any]) -> bool:
        """Note that a client was answered for a write; returns whether the log has it."""
        lsns = self._unmatched.get(mark_of(request))
        if lsns:
            self.acked_lsn = max(self.acked_lsn, lsns.popleft())
        return bool(lsns is not None)

    def allows(self, lsn: int, state: State) -> str | None:
        """Return why a server must not show a state at an LSN; None when it may."""
        if (lsn, state) in self.ghosts:
            return None
        if lsn < self.acked_lsn:
            return f"it is at LSN {lsn}, but LSN {self.acked_lsn} was acknowledged"
        if lsn > self.last_lsn:
            return f"it is at LSN {lsn}, but the log never went beyond {self.last_lsn}"
        if state != self.states[lsn]:
            return f"it is at LSN {lsn} with {difference(state, self.states[lsn])}"
        return None


def difference(found: State, expected: State) -> str:
    """Return where two states part, in words."""
    for part, right in expected.items():
        for name in {**right, **found[part]}:
            if found[part].get(name) != right.get(name):
                return f"{part} {name}: {found[part].get(name)} where {right.get(name)} is right"
    return "the same"
