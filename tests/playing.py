"""Playbooks on the dashboard's stage: a cluster that always says the same, a run that goes as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from karma_playbooks.cluster import Cluster, NodeFacts
from karma_playbooks.history import GENESIS, Entry, digest_of
from karma_playbooks.inventory import Desk, entries
from karma_playbooks.journal import Journal
from karma_playbooks.library import load_book
from karma_playbooks.plan import Plan, make
from karma_tui.player import Live, Planned, Player, Wish

NOON_MS = 1_777_982_400_000
"""2026-05-05 12:00:00 UTC."""
RUN = "switchover-20260505-115948-beef"
FAILED = "rolling-restart-20260504-090000-cafe"
REASON = "kernel update of db1"
TABLES: tuple[dict[str, Any], ...] = tuple(
    {
        "name": name,
        "address": f"{name}:8080",
        "ssh_host": f"{name}.internal",
        "directory": "/data",
        "service": "karma.service",
    }
    for name in ("db1", "db2", "db3", "db4")
)


def cluster() -> Cluster:
    """What the nodes say: db1 is the master, db3 lags, db4 is silent."""
    epochs = [{"epoch": 3, "node_id": "a1", "start_lsn": 1}]
    nodes = []
    *heard, silent = entries(TABLES)
    for at, entry in enumerate(heard):
        status = {
            "role": "slave" if at else "master", "epoch": 3, "epochs": epochs, "node_id": f"id-{entry.name}",
            "cluster_id": "cafe", "fenced_by": None, "wal_current_lsn": 120_000 - 1180 * (at == 2),
            "replication_lag_entries": 1180 * (at == 2), "replication_state": "following", "path": ["a1"],
            "source": "db1:8080" if at else None, "must_rebuild": False,
        }  # fmt: skip
        nodes.append(NodeFacts(entry, status))
    return Cluster("prod", False, (*nodes, NodeFacts(silent, error="cannot connect: connection refused")))


def planned(wish: Wish) -> Planned:
    """The plan of a wish."""
    book = load_book(wish.book, Path("/nowhere"))
    return Planned(wish, book, make(book, wish.given, cluster()))


def desk(folder: Path, **options: Any) -> Desk:
    """The operator's machine, with the journal of two earlier runs."""
    found = Desk("prod", "ada@desk", TABLES, folder, **options)
    journal = Journal(found.journal_path)
    journal.adopt(chained(FAILED, undone_restart(), NOON_MS - 97_200_000))
    journal.adopt(chained(RUN, [*switched(7), ("state", PAUSED)], NOON_MS - 12_000))
    journal.close()
    return found


# -- What happens in runs ---------------------------------------------------------------------------------

Noted = tuple[str, Mapping[str, Any]]
PAUSED = {
    "state": "paused",
    "why": "repoint-others: no end within 60 s; promote is behind the point of no return",
}


def header(plan: Plan, reason: str) -> dict[str, Any]:
    """What a run's first entry says."""
    about = {"cluster": "prod", "operator": "ada@desk", "reason": reason, "ticket": "OPS-1", "entries": []}
    return {"plan": plan.to_json(), "plan_hash": plan.hash, "book": "", "file": "", "params": {}, **about}


def switched(steps: int) -> list[Noted]:
    """A switchover that has done so many steps of its plan, and has begun the next."""
    plan = planned(Wish("switchover", {"to": "db2"})).plan
    found: list[Noted] = [
        ("requested", header(plan, REASON)),
        ("accepted", {"epoch": 1}),
        ("state", {"state": "running", "why": ""}),
    ]
    for number, step in enumerate((step for step in plan.steps if not step.skipped), 1):
        for work in step.works:
            found += _done(step.id, work.target, changes=step.changes, is_over=number <= steps)
        if number > steps:
            return found
    return [*found, ("state", {"state": "done", "why": ""})]


def undone_restart() -> list[Noted]:
    """A restart whose first follower did not come back, and that was undone."""
    plan = planned(Wish("rolling-restart", {})).plan
    why = "followers: db2: it ended with code 1: no such service"
    return [
        ("requested", header(plan, "new openssl")),
        ("accepted", {"epoch": 1}),
        ("state", {"state": "running", "why": ""}),
        *_done("whole", "db2", changes=False, is_over=True),
        *_done("whole", "db3", changes=False, is_over=True),
        ("state", {"state": "undoing", "why": why}),
        ("state", {"state": "undone", "why": why}),
    ]


def _done(step: str, target: str, *, changes: bool, is_over: bool) -> Iterator[Noted]:
    about = {"step": step, "target": target}
    if not changes:
        if is_over:
            yield "seen", {**about, "output": {}, "found": {"lsn": 120_000, "state": "following"}}
        return
    tried = {**about, "attempt": 1, "place": -1}
    yield "intent", {**tried, "action": "", "command": ""}
    if is_over:
        yield "outcome", {**tried, "outcome": "done", "output": {"lsn": 120_000}, "error": ""}
        yield "evidence", {**tried, "seen": []}


def chained(run: str, noted: Sequence[Noted], begun_ms: int) -> list[Entry]:
    """Entries of a journal, half a second apart."""
    found: list[Entry] = []
    for number, (kind, data) in enumerate(noted, 1):
        before = found[-1].digest if found else GENESIS
        at = begun_ms + 500 * (number - 1)
        found.append(Entry(run, number, at, kind, data, digest_of(before, run, number, at, kind, data)))
    return found


class StagePlayer(Player):
    """Stands in for the engine: plans at once, and lets a run come to its eighth step, where it asks."""

    def __init__(self, desk: Desk, post: Callable[[Callable[[], object]], object]) -> None:
        super().__init__(desk, Path("/nowhere"), post)
        self.asked: list[Wish] = []
        self.stopped: list[str] = []
        self.question = "Go on with repoint-others?"
        self.refusal = ""
        self._gate = asyncio.Event()

    async def plan(self, wish: Wish, heard: Callable[[NodeFacts], object]) -> Planned:
        self.asked.append(wish)
        for facts in cluster().nodes:
            self._post(partial(heard, facts))
        return planned(wish)

    async def carry_out(self, live: Live) -> None:
        progress = live.progress
        if self.refusal:
            live.problem = self.refusal
            self._post(partial(self._over, live))
            return
        # A run that was resumed is as far already.
        if not progress.history.run:
            for entry in chained(RUN, switched(7), NOON_MS - 12_000):
                self._post(partial(progress.take, entry))
        self._post(partial(progress.begin, "repoint-others", "db3", NOON_MS - 4200))
        self._post(partial(progress.say, "repoint-others", "db3", "asking db3\nit follows db1 still\n"))
        self._post(partial(progress.told.append, "repoint-others: The other followers follow it."))
        answer: Future[bool] = Future()
        if self.question:
            self._post(partial(self._put, live, answer))
            answer.add_done_callback(lambda _: self._gate.set())
        await self._gate.wait()
        rest = chained(RUN, [*switched(99)], NOON_MS - 12_000)[progress.history.length :]
        if self.stopped:
            rest = chained(RUN, [*switched(7), ("state", PAUSED)], NOON_MS - 12_000)[-1:]
        for entry in rest:
            self._post(partial(progress.take, entry))
        self._post(partial(self._over, live))

    def _put(self, live: Live, answer: Future[bool]) -> None:
        live.question, live.answer = self.question, answer

    def undo(self) -> None:
        self.stopped.append("undo")
        self._gate.set()

    def pause(self) -> None:
        super().pause()
        self.stopped.append("pause")
        self._gate.set()
