"""Power cuts: whatever of the unsynced calls is lost, what was acknowledged is there and nothing else.

A kill -9 keeps the page cache, so it says nothing about fsync. Here a real server works under a mixed load,
is killed and restarted, rolls back writes that its disk refuses, changes its role, and every call that
changes a file is noted (`system.py`). Then the files are rebuilt as a power cut at any of these calls may
leave them (`power.py`), and opened as a start would. Each state must be one that the log went through
(`chain.py`), no older than the last answer that left before the cut.

    pytest tests/faults/test_power_loss.py --cycles 1 --seed 7

Each seed is one history and STATES states of it.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from faults.chain import Chain
from faults.cuts import cuts, explained
from faults.power import Contents, Machine, contents_of, write_out
from faults.reopen import Opened, assert_fit_for_writes, reopen, verdict
from faults.system import Event, Faults, System, Watched, read_trace, without_syncs
from faults.workload import Fields, Workload
from harness import Connection, request

from karma.ops import BY_NAME
from karma.storage import node_file, snapshot, wal

STATES = 250
"""Distinct crash states of one history."""
ROUNDS = 12
"""Turns of a server's life: in each, every connection sends up to three requests."""
PHASES = 3
"""Lives of a server."""
DATA = "srv/karma/data"
"""The data directory as seen from the watched root: its parents are not there at first."""
_OPTIONAL = {"tree.create", "tree.drop", "series.compact", "system.compact", "series.delete_before"}
"""What may succeed without an entry in the log, or with one that others look like."""


class History:
    """A server at work, its trace, and what was sent to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.is_synced = seed % 4 != 0
        self.root = folder / "root"
        self.root.mkdir()
        self.trace = folder / "trace"
        self.faults = Faults()
        self.workload = Workload(self.random)
        self.sent: list[list[deque[Fields]]] = []
        """Requests by phase and connection, in the order of their replies."""
        self.options: dict[str, Any] = {
            "wal_fsync": self.is_synced,
            "wal_segment_bytes": self.random.choice((2_000, 6_000)),
            "dump_retention_per_tree": self.random.choice((1, 2)),
            "max_request_bytes": 65_536,
            # A connection may have to wait for the others' turns.
            "read_timeout": 0,
        }

    def run(self) -> None:
        """Let the server live, and end, some times."""
        directory = self.root / DATA
        with Watched(directory, self.trace, self.faults, self.root, **self.options) as server:
            for phase in range(PHASES):
                if phase:
                    with self.trace.open("ab") as trace:
                        pickle.dump(tuple(Event("start")), trace)
                    server.start()
                assert server.port, server.text
                self._live(server)
                if self.random.random() < 0.3:
                    assert server.stop() == 0, server.text
                else:
                    server.kill()

    def _live(self, server: Watched) -> None:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(3)]
            self.sent.append([deque() for _ in connections])
            for index, connection in enumerate(connections):
                # In turn, so that the server numbers them in this order.
                self._exchange([(index, connection, {"op": "system.ping"})])
            if self.random.random() < 0.5:
                # A follower that log is kept for.
                fields = {"op": "replication.entries", "after_lsn": 0, "node_id": "follower"}
                self._exchange([(0, connections[0], fields)])
            for _ in range(ROUNDS):
                if self.random.random() < 0.15:
                    self.faults.set_next("torn", is_lasting=True)
                turns = [
                    (index, connection, self.workload.next())
                    for index, connection in enumerate(connections)
                    for _ in range(self.random.randint(1, 3))
                ]
                extra = self._operation(connections)
                self._exchange([*turns, *extra])
                self.faults.heal()
            assert "internal_error" not in server.text, server.text

    def _operation(self, connections: list[Connection]) -> list[tuple[int, Connection, Fields]]:
        """Return what an operator does now and then."""
        chance = self.random.random()
        fields: list[Fields] = []
        if chance < 0.15:
            fields = [{"op": "snapshot.create_all"}]
        elif chance < 0.25:
            fields = [{"op": "snapshot.create", "series": self.random.choice(("a", "b", "sub/c"))}]
        elif chance < 0.3:
            fields = [
                {"op": "replication.fence", "epoch": 50, "reason": "a test"},
                {"op": "replication.promote"},
            ]
        elif chance < 0.35:
            fields = [{"op": "replication.pause", "ttl_ms": 60_000}, {"op": "replication.resume"}]
        index = self.random.randrange(len(connections))
        return [(index, connections[index], each) for each in fields]

    def _exchange(self, turns: list[tuple[int, Connection, Fields]]) -> None:
        """Send requests, all of a connection in one piece, and read every reply."""
        by_index: dict[int, list[Fields]] = {}
        connections = {}
        for index, connection, fields in turns:
            by_index.setdefault(index, []).append(fields)
            connections[index] = connection
            self.sent[-1][index].append(fields)
        for index, requests in by_index.items():
            connections[index].send(b"".join(request(**fields) for fields in requests))
        for index, requests in by_index.items():
            for fields in requests:
                reply = connections[index].read()
                assert reply["error_code"] != "internal_error", (fields, reply)
                if not reply["success"]:
                    self.workload.refused(fields)


class Witness:
    """What clients knew at each event of a trace, and whether a state that a crash left agrees."""

    def __init__(self, history: History) -> None:
        self.machine = Machine()
        self.chain = Chain(f"{DATA}/{wal.LOG_NAME}")
        self._history = history
        self._phase = 0
        self._sent = [[deque(each) for each in phase] for phase in history.sent]
        self._rests: Counter[int] = Counter()
        self._versions: dict[str, list[bytes | None]] = {
            name: [None] for name in (node_file.NODE_NAME, snapshot.CHECKPOINTS_NAME)
        }
        """What each of these files held, in order."""
        self._shown = dict.fromkeys(self._versions, 0)
        """Which of these versions the last answer left under."""
        self.is_serving = False
        self._judged = 0

    def apply(self, event: Event) -> None:
        """Take in an event."""
        self.machine.apply(event)
        self.chain.apply(event, self.machine)
        if event.kind == "start":
            self._phase += 1
        elif event.kind == "rename":
            name = event.new_path.removeprefix(f"{DATA}/")
            if name in self._versions:
                file = self.machine.folder(DATA).names()[name]
                self._versions[name].append(file.content())  # type: ignore[union-attr]
        elif event.kind == "reply":
            self.is_serving = True
            self._replied(event)

    def _replied(self, event: Event) -> None:
        if self._history.is_synced:
            self.chain.ghosts.clear()
        self._shown = {name: len(versions) - 1 for name, versions in self._versions.items()}
        for line in event.data.split(b"\r\n")[:-1]:
            fields = self._sent[self._phase][event.number - 1].popleft()
            reply = json.loads(line)
            if not reply["success"] or not self._history.is_synced:
                continue
            op, response = BY_NAME[fields["op"]], reply["response"]
            if isinstance(response, dict) and "wal_current_lsn" in response:
                assert response["wal_current_lsn"] <= self.chain.last_lsn
                self.chain.acked_lsn = max(self.chain.acked_lsn, response["wal_current_lsn"])
            is_refused = isinstance(response, dict) and response.get("allowed") is False
            is_old = reply.get("idempotent") or (isinstance(response, dict) and response.get("skipped"))
            if op.access == "W" and op.name != "recovery.checkpoint" and not is_refused and not is_old:
                assert self.chain.acknowledge(fields) or op.name in _OPTIONAL, (fields, reply)

    def judge(self, directory: Path, now_unix: int) -> Opened | None:
        """Open a directory that a crash left. Raises AssertionError and DamagedDataError."""
        if not directory.is_dir():
            assert not self.is_serving, "the data directory is gone"
            return None
        for name, versions in self._versions.items():
            path = directory / name
            version = path.read_bytes() if path.exists() else None
            assert version in versions[self._shown[name] :], f"{name} is older than what was answered"
        self._judged += 1
        if self._judged % 4 == 0:
            # It takes as long as all the rest.
            assert verdict(directory, now_unix) != "damaged"
        opened = reopen(directory, now_unix)
        # Snapshots are never ahead of the log.
        assert not opened.recovered.must_snapshot
        problem = self.chain.allows(opened.recovered.last_lsn, opened.state)
        assert problem is None, problem
        found, node = opened.found, opened.node
        has_lost = opened.recovered.tail is not None
        if found is not None and (has_lost or found.running == "unsynced"):
            # LSNs that somebody may have seen come again: under another epoch.
            assert node.epoch_due or node.history.current.number > found.history.current.number
        assert_fit_for_writes(directory, opened, now_unix)
        return opened


def cut_again(contents: Contents, witness: Witness, directory: Path, random: Random, now_unix: int) -> None:
    """Cut the power once more while a start mends what the first cut left."""
    if DATA not in contents:
        return
    write_out(contents, directory)
    trace = directory.with_name("again.trace")
    trace.unlink(missing_ok=True)
    with System(directory, trace, Faults()).installed():
        reopen(directory / DATA, now_unix)
    events = read_trace(trace) if trace.exists() else []
    shutil.rmtree(directory)
    kept = witness.machine
    try:
        witness.machine = Machine.holding(contents)
        for event in events[: random.randint(0, len(events))]:
            witness.machine.apply(event)
        write_out(witness.machine.crashed(random), directory)
    finally:
        witness.machine = kept
    witness.judge(directory / DATA, now_unix)
    shutil.rmtree(directory)


@pytest.mark.cycles(ci=4, full=40)
@pytest.mark.timeout(600)
def test_a_power_cut_anywhere_leaves_what_a_correct_server_may_show(
    seed: int, memory_path: Path, tmp_path: Path, add_figures: Callable[[dict[str, int]], None]
) -> None:
    history = History(memory_path, seed)
    history.run()
    events = read_trace(history.trace)
    # What is rebuilt is what is there: no call went past the trace.
    machine = Machine()
    for event in events:
        machine.apply(event)
    assert machine.contents() == contents_of(history.root)
    figures = Counter(histories=1, calls=len(events))
    witness = Witness(history)
    now_unix = int(time.time())
    repeat = f"seed {seed}: repeat it with pytest {__file__} --cycles 1 --seed {seed}"
    with without_syncs():
        for cut in cuts(events, witness.machine, witness.apply, history.random, STATES):
            figures["crash states"] += 1
            with explained(cut, events, tmp_path / "crashed", repeat):
                directory = memory_path / "cut"
                write_out(cut[1], directory)
                opened = witness.judge(directory / DATA, now_unix)
                shutil.rmtree(directory)
                if history.random.random() < 0.1:
                    cut_again(cut[1], witness, directory, history.random, now_unix)
                    figures["cut twice"] += 1
                if opened is not None:
                    figures["torn tails cut"] += opened.recovered.tail is not None
                    lost = witness.chain.last_lsn - opened.recovered.last_lsn
                    figures["unacknowledged entries lost"] += max(lost, 0)
    figures["entries"] = witness.chain.last_lsn
    add_figures(figures)
