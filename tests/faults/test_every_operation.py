"""Every operation: the N-th call to the disk fails, for every N, once and for good.

A real server runs a mixed load, a rotation, snapshots, a change of role and a clean end, and one of its calls
that change files fails with EIO, finds no space, or writes only half; or so do all from that one on. A
server without any disk executes the same requests, all but those that were refused. Both must hold the same
in the end: what was acknowledged is there, what was refused is not, nothing is half applied. Meanwhile reads
go on, and writes again once there is room; a server that cannot keep a promise ends and says why.

    pytest tests/faults/test_every_operation.py -k EIO-once --cycles 1 --seed 7

A seed is one load. In CI each fault strikes at ten calls of one, evenly spread. With --full it strikes at
every fourth call of four loads, beginning one call later in each.
The last tests let real means refuse: strace, a file system of two megabytes, a limit on file sizes.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from faults.reopen import State, assert_fit_for_writes, reopen, state_of, verdict
from faults.system import FAULT_KINDS, FaultKind, Faults, Watched, read_trace, without_syncs
from faults.workload import Fields, Workload
from harness import Connection, Server, counters_of, request

from karma.core.store import Store
from karma.engine import Engine
from karma.ops import BY_NAME

OPTIONS: dict[str, Any] = {
    "wal_segment_bytes": 1_500,
    "dump_retention_per_tree": 1,
    "max_request_bytes": 65_536,
    "read_timeout": 0,
}
CI_RUNS = 10
"""At how many calls a fault strikes in CI, evenly spread."""
FULL_STEP = 4
"""How far apart they are in a full run, which has as many loads."""
_OPERATIONS: tuple[tuple[int, Fields], ...] = (
    (8, {"op": "snapshot.create_all"}),
    (14, {"op": "replication.fence", "epoch": 9, "reason": "a test"}),
    (14, {"op": "replication.promote"}),
    (18, {"op": "snapshot.create", "series": "a"}),
    (24, {"op": "snapshot.create_all"}),
)
"""What an operator does, before which request."""
REQUESTS = 28
REQUESTS_BEHIND = 3
"""How many requests a server lives behind its fault that is killed."""
_COUNTED = {"write", "truncate", "sync", "rename", "unlink", "mkdir"}
FAULTS = [(kind, is_lasting) for kind in FAULT_KINDS for is_lasting in (False, True)]


def load(seed: int) -> list[Fields]:
    """Return the requests of a load; the first ones make all series."""
    workload = Workload(Random(seed))
    requests = [
        {"op": "counter.increment", "series": name, "key": 1, "bucket": 20260505}
        for name in ("a", "b", "sub/c")
    ]
    for number in range(REQUESTS):
        requests += [fields for at, fields in _OPERATIONS if at == number]
        requests.append(workload.next())
    return requests


class Reference:
    """A server without a disk: what the other one should hold."""

    def __init__(self) -> None:
        self.engine = Engine(Store())
        self.engine.begin_pass(int(time.time() * 1000))

    def execute(self, fields: Fields) -> Any:
        """Execute a request; returns its reply, None for what only a whole server can do."""
        outcome = self.engine.execute(request(**fields))
        self.engine.store.settle()
        return json.loads(outcome) if isinstance(outcome, bytes) else None

    @property
    def state(self) -> State:
        return timeless(state_of(self.engine.store))

    @property
    def counters(self) -> dict[str, dict[str, dict[str, int]]]:
        """What `harness.counters_of` finds."""
        return {
            name: {
                str(key): {str(day): value for day, value in found.items()}
                for key, found in counters.items()
                if found
            }
            for name, counters in self.state["series"].items()
        }


def exchange(connection: Connection, reference: Reference, fields: Fields) -> str | None:
    """Send a request; returns whether it was acknowledged, refused or failed, None when the server ended.

    What is not refused must be answered as the reference answers it.
    """
    connection.send(request(**fields))
    line = connection.read_line()
    if not line:
        reference.execute(fields)
        return None
    reply = json.loads(line)
    if reply["error_code"] in ("storage_error", "forbidden"):
        # Forbidden is what follows when a fence was noted and the promotion behind it was not.
        return "refused"
    if BY_NAME[fields["op"]].access == "W":
        expected = reference.execute(fields)
        if expected is not None:
            assert reply["success"] == expected["success"], (fields, reply, expected)
            assert not reply["success"] or _answer(reply) == _answer(expected), (fields, reply, expected)
    return "acknowledged" if reply["success"] else "failed"


def _answer(reply: Any) -> Any:
    """Return a response as far as it does not tell the time."""
    response = reply["response"]
    return response if not isinstance(response, dict) else {**response, "updated_at_unix": None}


def timeless(state: State) -> State:
    """Return a state without the moments at which it came about."""
    return {
        "series": state["series"],
        "records": {
            key: (record.operation, record.fingerprint, record.response)
            for key, record in state["records"].items()
        },
        "streams": {
            name: (*known[:3], known[3] is not None, known[4]) for name, known in state["streams"].items()
        },
    }


class Run:
    """One server, one fault."""

    def __init__(self, folder: Path, requests: list[Fields], figures: Counter[str]) -> None:
        self.directory = folder / "data"
        self.trace = folder / "trace"
        self.faults = Faults()
        self.figures = figures
        self.reference = Reference()
        self.candidates: list[State] = []
        """What may be there in the end: the state, and the one with a write that was never answered."""
        self._requests = requests

    def run(self, *, is_killed: bool) -> None:
        """Let the server live and end, and look at what it left.

        It is killed soon behind the fault, before a snapshot covers what that did to the log; or it goes on
        to a clean end.
        """
        with Watched(self.directory, self.trace, self.faults, **OPTIONS) as server:
            if server.port:
                self._live(server, is_killed=is_killed)
            if server.is_up and is_killed:
                server.kill()
            elif server.is_up:
                assert server.stop() in (0, 1), server.text
            else:
                self.figures["ended by themselves"] += 1
                self._assert_clear_end(server)
            assert '"internal_error"' not in server.text, server.text
            assert "Traceback" not in server.text, server.text
        self.faults.heal()
        self.figures["struck"] += self.faults.hits > 0
        self.candidates.append(self.reference.state)
        if self.directory.exists():
            self._look()

    def _live(self, server: Watched, *, is_killed: bool) -> None:
        behind = 0
        try:
            with server.connect() as connection:
                for fields in self._requests:
                    self._exchange(connection, fields)
                    behind += self.faults.hits > 0
                    if is_killed and behind > REQUESTS_BEHIND:
                        break
                before = self.faults.hits
                assert counters_of(connection) == self.reference.counters
                self.faults.heal()
                if before:
                    # There is room again.
                    again = {"op": "counter.increment", "series": "a", "key": 2, "bucket": 20260505}
                    operations: list[Fields] = [{"op": "replication.promote"}, again]
                    if not is_killed:
                        operations.append({"op": "snapshot.create_all"})
                    for fields in operations:
                        reply = connection.call(**fields)
                        assert reply["success"], reply
                    self.reference.execute(again)
        except OSError:
            server.wait()
        except AssertionError:
            # Unless it is the end of a server that keeps its word.
            server.process.join(5)
            if server.is_up:
                raise

    def _exchange(self, connection: Connection, fields: Fields) -> None:
        without = self.reference.state
        outcome = exchange(connection, self.reference, fields)
        if outcome is None:
            # It ended before it answered: the write may be there or not.
            self.candidates.append(without)
            raise ConnectionResetError
        self.figures[outcome] += 1

    def _assert_clear_end(self, server: Watched) -> None:
        assert server.wait() == 1, server.text
        errors = [line for line in server.text.splitlines() if line.startswith("ERROR: ")]
        assert errors, server.text
        assert any(name in errors[-1] for name in (str(self.directory), "data directory", "karma.")), errors

    def _look(self) -> None:
        now_unix = int(time.time())
        with without_syncs():
            assert verdict(self.directory, now_unix) != "damaged"
            opened = reopen(self.directory, now_unix)
            assert timeless(opened.state) in self.candidates
            assert_fit_for_writes(self.directory, opened, now_unix)


_BASELINES: dict[int, list[str]] = {}


def calls_of(folder: Path, seed: int) -> list[str]:
    """Return which calls a load makes while nothing fails."""
    if seed not in _BASELINES:
        folder.mkdir()
        run = Run(folder, load(seed), Counter())
        run.run(is_killed=False)
        _BASELINES[seed] = [
            event.kind
            for event in read_trace(run.trace)
            if event.kind in _COUNTED or (event.kind == "open" and event.number & (os.O_WRONLY | os.O_RDWR))
        ]
        assert len(_BASELINES[seed]) == run.faults.calls
    return _BASELINES[seed]


@pytest.mark.cycles(ci=1, full=FULL_STEP)
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "is_lasting"),
    FAULTS,
    ids=[f"{kind}-{'lasting' if is_lasting else 'once'}" for kind, is_lasting in FAULTS],
)
def test_a_call_that_fails_costs_nothing_that_was_acknowledged(
    kind: FaultKind,
    is_lasting: bool,
    seed: int,
    memory_path: Path,
    is_full: bool,
    add_figures: Callable[[dict[str, int]], None],
) -> None:
    calls = calls_of(memory_path / "baseline", seed)
    # One write that takes half is all that these faults are.
    only_writes = kind in ("short", "torn") and not is_lasting
    strikes = [at for at, call in enumerate(calls, 1) if call == "write" or not only_writes]
    step = FULL_STEP if is_full else -(-len(strikes) // CI_RUNS)
    figures: Counter[str] = Counter()
    for number, at in enumerate(strikes[seed % step :: step], seed):
        folder = memory_path / f"call {at}"
        folder.mkdir()
        figures["runs"] += 1
        run = Run(folder, load(seed), figures)
        run.faults.set(at, kind, is_lasting=is_lasting)
        try:
            run.run(is_killed=number % 2 == 0)
        except BaseException as error:
            error.add_note(
                f"call {at} of {len(calls)} ({calls[at - 1]}) met {kind}{' for good' if is_lasting else ''}; "
                f"seed {seed}: repeat it with --cycles 1 --seed {seed} -k '{kind}'"
            )
            raise
        shutil.rmtree(folder)
    add_figures(figures)


# -- Real means ------------------------------------------------------------------------------------------


def batches(count: int) -> Iterator[Fields]:
    """Requests that add to many keys at once: their entries are large."""
    for number in range(count):
        items = [[key, 20260505, number + 1] for key in range(1_000)]
        yield {"op": "series.batch_add", "series": f"s{number % 3}", "items": items}


def assert_holds(server: Server, reference: Reference) -> None:
    """Kill and restart a server, and compare all that it holds."""
    # Not its parent: strace would leave it behind.
    os.kill(server.wait_for_event("listening")["pid"], signal.SIGKILL)
    server.process.wait()
    server.prefix = ()
    server.restart()
    with server.connect() as connection:
        assert counters_of(connection) == reference.counters
        assert connection.ask("snapshot.verify")["status"] == "ok"


def tracing(strace: Path, path: Path, inject: str) -> list[str]:
    """Return a command that runs another one and lets its calls for one file fail."""
    call = inject.partition(":")[0]
    command = [str(strace), "-f", "-qq", "-o", "/dev/null", "-P", str(path)]
    return [*command, "-e", f"trace={call}", "-e", f"inject={inject}"]


def test_a_sync_that_the_kernel_fails_ends_the_server(tmp_path: Path, needs: Callable[[str], Path]) -> None:
    directory, reference = tmp_path / "data", Reference()
    prefix = tracing(needs("strace"), directory / "karma.wal", "fdatasync:error=EIO:when=12")
    with Server(directory, prefix=prefix) as server:
        with server.connect() as connection:
            for fields in load(1):
                before = reference.counters
                if exchange(connection, reference, fields) is None:
                    break
            else:
                pytest.fail("no sync failed")
        assert server.process.wait(30) == 1
        text = server.output.read_text()
        assert f"ERROR: fsync of {directory}/karma.wal failed: Input/output error" in text
        server.prefix = ()
        server.restart()
        with server.connect() as connection:
            # The write under way was in the log; whether it was durable nobody knew.
            assert counters_of(connection) in (before, reference.counters)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT"])
def test_writes_that_the_kernel_refuses_are_not_there(
    error: str, tmp_path: Path, needs: Callable[[str], Path]
) -> None:
    directory, reference = tmp_path / "data", Reference()
    prefix = tracing(needs("strace"), directory / "karma.wal", f"write:error={error}:when=5..12")
    with Server(directory, prefix=prefix) as server:
        outcomes: Counter[str | None] = Counter()
        with server.connect() as connection:
            for fields in load(2):
                outcomes[exchange(connection, reference, fields)] += 1
                assert counters_of(connection) == reference.counters
        assert outcomes["refused"] >= 8
        assert outcomes["acknowledged"] > 8
        assert_holds(server, reference)


def test_a_limit_on_file_sizes_refuses_writes_until_it_is_lifted(tmp_path: Path) -> None:
    reference = Reference()
    with Server(tmp_path / "data", max_request_bytes=65_536) as server:
        with server.connect() as connection:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            outcomes = [exchange(connection, reference, fields) for fields in batches(12)]
            assert outcomes.count("refused") > 3
            assert counters_of(connection) == reference.counters
            resource.prlimit(
                server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            assert {exchange(connection, reference, fields) for fields in batches(6)} == {"acknowledged"}
        assert_holds(server, reference)


def test_a_disk_that_fills_up_refuses_what_it_cannot_hold(tiny_disk: Path, tmp_path: Path) -> None:
    directory, reference = tmp_path / "data", Reference()
    (tiny_disk / "data").mkdir()
    directory.symlink_to(tiny_disk / "data")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(1_200_000))
    with Server(directory, max_request_bytes=65_536, wal_segment_bytes=100_000) as server:
        with server.connect() as connection:
            outcomes = [exchange(connection, reference, fields) for fields in batches(60)]
            assert outcomes.count("refused") > 5
            # The log is what fills it. A snapshot of the few counters would fit, had it room.
            assert connection.refuse("snapshot.create_all")[0] == "storage_error"
            assert counters_of(connection) == reference.counters
            ballast.unlink()
            assert connection.ask("snapshot.create_all") == "OK"
            assert {exchange(connection, reference, fields) for fields in batches(6)} == {"acknowledged"}
        assert_holds(server, reference)
