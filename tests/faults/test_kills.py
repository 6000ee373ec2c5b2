"""Kills: a real server under mixed load, ended by SIGKILL at random moments, 50 times on each directory.

What must hold after each restart, which nobody helps along:

- every series holds what the acknowledged writes of its writer lead to and, behind them, a prefix of the
  unanswered ones, exactly;
- a retry of a write with an idempotency key, or of an ingest step, is answered as that prefix demands: it
  lands once;
- of what all writers add to one key, everything acknowledged is there, and nothing that was not sent;
- every reply on the way, reads included, is the one that a model of plain dicts predicts.

The server dies under load, while it starts on what a kill left, and while it shuts down. A kill rarely cuts
a write of the log in two, so after some kills the first part of a line is put behind the log, as if it had.
Odd seeds run with fsync on, even ones with it off.
"""

from __future__ import annotations

import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from faults.kill_clients import Client, Keeper, Shared, Writer
from harness import Server

KILLS = 50
"""Kills of one directory; the next history begins with an empty one."""
WRITERS = 4
_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Kill:
    """One life of the server and how it ends."""

    moment: Literal["load", "start", "stop"]
    load_seconds: float
    delay_seconds: float
    """How long a start or a shutdown goes on before it is interrupted."""
    is_torn: bool


def plan(seed: int) -> list[Kill]:
    """Return the lives of a history."""
    random = Random(seed)
    moments: list[Literal["load", "start", "stop"]] = ["load", "start", "stop"]
    return [
        Kill(
            moment=random.choices(moments, [8, 1, 1])[0],
            load_seconds=random.uniform(0, 0.15),
            delay_seconds=random.uniform(0, 0.25),
            is_torn=random.random() < 0.25,
        )
        for _ in range(KILLS)
    ]


class History:
    """A directory, its clients, and what was seen."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.figures: Counter[str] = Counter()
        self._random = Random(f"{seed} history")
        self._shared = Shared()
        self._writers = [Writer(f"w{number}", f"{seed} {number}", self._shared) for number in range(WRITERS)]
        series = [name for writer in self._writers for name in writer.series]
        self._keeper = Keeper(f"{seed} keeper", series)
        self._clients: list[Client] = [*self._writers, self._keeper]

    def live(self, kill: Kill) -> None:
        """Put load on the server, kill it, start it again, and check what it holds."""
        for client in self._clients:
            client.connect(self.server)
        deadline = time.monotonic() + kill.load_seconds
        while time.monotonic() < deadline:
            for client in self._clients:
                client.fill()
            self._take()
        if kill.moment == "stop":
            self.figures["while stopping"] += 1
            self.server.process.send_signal(signal.SIGTERM)
            time.sleep(kill.delay_seconds)
        self._kill(is_torn=kill.is_torn)
        for client in self._clients:
            client.drain()
        if kill.moment == "start":
            self.figures["while starting"] += 1
            self.server.start(wait=False)
            time.sleep(kill.delay_seconds)
            self._kill(is_torn=kill.is_torn)
        self.server.start()
        self.check()

    def check(self) -> None:
        """Find out what a kill left, and that it is right."""
        landed = []
        unanswered = [request for writer in self._writers for request in writer.in_flight]
        with self.server.connect() as connection:
            for writer in self._writers:
                landed += writer.resolve(connection)
            landed += self._shared.resolve(
                connection, [request for request in unanswered if request.shared_value]
            )
        found = self.figures
        found["in flight at a kill"] += len(unanswered)
        found["retries that had landed"] += sum(landed)
        found["retries that land now"] += len(landed) - sum(landed)
        found["snapshots interrupted"] += len(self._keeper.in_flight)
        found["acknowledged"] = sum(writer.acknowledged for writer in self._writers)
        found["snapshots"] = self._keeper.acknowledged

    def _take(self) -> None:
        ready, _, _ = select.select(self._clients, [], [], _POLL_SECONDS)
        for client in ready:
            assert client.take(), f"the server ended by itself: {self.server.output.read_text()[-2000:]}"

    def _kill(self, *, is_torn: bool) -> None:
        self.figures["kills"] += 1
        self.server.kill()
        self.figures["torn tails cut"] += sum(
            event["event"] == "repaired" and "torn tail" in event["message"] for event in self.server.events()
        )
        self.figures["log segments left"] += len(list(self.server.directory.glob("karma.wal.*.segment")))
        log = self.server.directory / "karma.wal"
        if is_torn and log.is_file() and (data := log.read_bytes()):
            line = data[data[:-1].rfind(b"\n") + 1 :]
            self.figures["lines torn"] += 1
            with log.open("ab") as file:
                file.write(line[: self._random.randrange(1, len(line))])


@pytest.mark.cycles(ci=2, full=20)
@pytest.mark.timeout(600)
def test_a_killed_server_has_every_acknowledged_write_once(
    tmp_path: Path, seed: int, add_figures: Callable[[dict[str, int]], None]
) -> None:
    options: dict[str, Any] = {
        "wal_segment_bytes": 20_000,
        "snapshot_wal_bytes": 100_000,
        "dump_retention_per_tree": 2,
        "max_request_bytes": 1 << 20,
        "read_timeout": 0,
    }
    with Server(tmp_path / "data", wal_fsync=seed % 2 == 1, **options) as server:
        history = History(server, seed)
        for number, kill in enumerate(plan(seed)):
            try:
                history.live(kill)
            except AssertionError as error:
                error.add_note(f"seed {seed}, kill {number}: {kill}")
                raise
        add_figures(history.figures)
        # All of it may end gracefully, too.
        assert server.stop() == 0
        server.start()
        history.check()
