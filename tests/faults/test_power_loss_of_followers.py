"""Power cuts on a follower: another node's data take the place of its own, then entries follow.

A node that was promoted and wrote is told to follow the other master with `rebuild`. Whatever a power cut
leaves (see test_power_loss.py) holds either all of the old data or all of the new, with the node's file to
match, and new ones no older than what the follower had shown; the old data, once set aside, can be restored.

    pytest tests/faults/test_power_loss_of_followers.py --cycles 1 --seed 7
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from faults.chain import Chain
from faults.cuts import cuts, explained
from faults.power import Machine, contents_of, write_out
from faults.reopen import assert_fit_for_writes, read, reopen, state_of, verdict
from faults.system import Event, Faults, Watched, read_trace, without_syncs
from faults.workload import Fields, Workload
from harness import Connection, Server, request, until

from karma.core.replay import Replay
from karma.core.store import Store
from karma.offline.reading import read_log
from karma.storage import wal

STATES = 250


class Exchange:
    """A source, a follower with data of its own, and what the follower answered."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.root = folder / "root"
        self.root.mkdir()
        self.trace = folder / "trace"
        with Server(folder / "source", max_request_bytes=65_536, wal_segment_bytes=3_000) as source:
            # A replica that is not there, so that the source keeps its whole log.
            source.ask("replication.entries", after_lsn=0, node_id="absent")
            self._follow(source)
            self.epochs = source.ask("replication.status")["epochs"]
        store = Store()
        replay = Replay(store)
        self.states = [state_of(store)]
        """The source's states by LSN."""
        for line in read_log(folder / "source"):
            replay.apply(line.lsn, line.entry, (line.ts_ms or 0) // 1000)
            self.states.append(state_of(store))

    def _write(self, source: Server, count: int) -> None:
        workload = Workload(self.random)
        # Streams of a second round would have the names of the first.
        requests = [workload.next() for _ in range(count)]
        with source.connect() as connection:
            for fields in requests:
                if not fields["op"].startswith(("ingest.", "replication.")):
                    connection.call(**fields)

    def _follow(self, source: Server) -> None:
        directory = self.root / "data"
        options: dict[str, Any] = {"wal_segment_bytes": 2_000, "read_timeout": 0}
        with Watched(directory, self.trace, Faults(), self.root, **options) as follower:
            order = {"op": "replication.follow", "host": "127.0.0.1", "port": source.port}
            with follower.connect() as connection:
                assert self._ask(connection, order)["success"]
            # One cluster, two masters.
            self._wait_for(follower, source)
            with follower.connect() as connection:
                assert self._ask(connection, {"op": "replication.promote"})["success"]
                workload = Workload(self.random)
                for number in range(12):
                    self._ask(connection, workload.next())
                    if number == 7:
                        self._ask(connection, {"op": "snapshot.create_all"})
                source.ask("replication.fence", epoch=2, reason="a test")
                source.ask("replication.promote")
                # A fence lets go of its followers.
                source.ask("replication.entries", after_lsn=0, node_id="absent")
                self._write(source, 20)
                source.ask("snapshot.create_all")
                self._write(source, 8)
                assert self._ask(connection, {**order, "rebuild": True})["success"]
            self._wait_for(follower, source)
            self._write(source, 8)
            self._wait_for(follower, source)
            follower.kill()

    def _wait_for(self, follower: Watched, source: Server) -> None:
        lsn = source.ask("system.stats")["wal_current_lsn"]

        def has_all() -> bool:
            with follower.connect() as connection:
                status = self._ask(connection, {"op": "replication.status"})["response"]
            return bool(status["replication_state"] == "following" and status["wal_current_lsn"] == lsn)

        until(has_all, seconds=60)

    @staticmethod
    def _ask(connection: Connection, fields: Fields) -> Any:
        connection.send(request(**fields))
        reply = connection.read()
        assert reply["error_code"] != "internal_error", reply
        return reply


class Witness:
    """What the follower had answered at each event, and whether what a cut left agrees."""

    def __init__(self, exchange: Exchange) -> None:
        self.machine = Machine()
        self._exchange = exchange
        self._old = Chain(f"data/{wal.LOG_NAME}")
        self._has_begun = False
        """Whether the order to follow was answered: from then on nothing is written to the old data."""
        self._shown_lsn: int | None = None
        """The last LSN of the new data that was shown, None before any was."""
        self.figures: Counter[str] = Counter()

    def apply(self, event: Event) -> None:
        """Take in an event."""
        self.machine.apply(event)
        if not self._has_begun:
            self._old.apply(event, self.machine)
        if event.kind != "reply":
            return
        for line in event.data.splitlines():
            response = json.loads(line)["response"]
            is_status = isinstance(response, dict) and "epochs" in response
            if not self._has_begun:
                self._old.acked_lsn = self._old.last_lsn
                self._has_begun = isinstance(response, dict) and bool(response.get("lost_entries"))
            elif is_status and response["epochs"] == self._exchange.epochs:
                self._shown_lsn = response["wal_current_lsn"]

    def judge(self, directory: Path, now_unix: int) -> None:
        """Open a directory that a cut left. Raises AssertionError and DamagedDataError."""
        if not directory.is_dir():
            assert not self._old.acked_lsn
            return
        assert verdict(directory, now_unix) != "damaged"
        opened = reopen(directory, now_unix)
        assert not opened.recovered.must_snapshot
        lsn, new = opened.recovered.last_lsn, self._exchange.states
        if opened.found is not None and opened.node.history.to_json() == self._exchange.epochs:
            self.figures["with the new data"] += 1
            assert lsn >= (self._shown_lsn or 0)
            assert opened.state == new[lsn]
            assert not opened.node.must_rebuild
            self._judge_old(directory, now_unix)
        else:
            assert self._shown_lsn is None
            problem = self._old.allows(lsn, opened.state)
            assert problem is None, problem
        assert_fit_for_writes(directory, opened, now_unix)

    def _judge_old(self, directory: Path, now_unix: int) -> None:
        """What was there before is in a folder, all of it."""
        (aside,) = directory.glob("discarded-*")
        recovered, state = read(aside, now_unix)
        assert (recovered.last_lsn, state) == (self._old.last_lsn, self._old.states[-1])


@pytest.mark.cycles(ci=1, full=8)
@pytest.mark.timeout(600)
def test_a_power_cut_leaves_the_old_data_or_the_new(
    seed: int, memory_path: Path, tmp_path: Path, add_figures: Callable[[dict[str, int]], None]
) -> None:
    exchange = Exchange(memory_path, seed)
    events = read_trace(exchange.trace)
    machine = Machine()
    for event in events:
        machine.apply(event)
    assert machine.contents() == contents_of(exchange.root)
    witness = Witness(exchange)
    repeat = f"seed {seed}: repeat it with pytest {__file__} --cycles 1 --seed {seed}"
    now_unix = int(time.time())
    with without_syncs():
        for cut in cuts(events, witness.machine, witness.apply, exchange.random, STATES):
            witness.figures["crash states"] += 1
            with explained(cut, events, tmp_path / "crashed", repeat):
                directory = memory_path / "cut"
                write_out(cut[1], directory)
                witness.judge(directory / "data", now_unix)
                shutil.rmtree(directory)
    add_figures({"exchanges": 1, "calls": len(events), **witness.figures})
