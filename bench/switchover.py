"""How long writers wait in a switchover under load, and whether any write is lost or counts twice.

The window is the time from the last write that the old master acknowledged to the first that the new one did,
as a client sees it that looks for the new master every two milliseconds. Beside it stands what the run's own
events say (`karmactl actions mttr`): from when the pause was ordered to when the promotion was acknowledged.

    .venv/bin/python bench/switchover.py --rate 2000 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from keyed_writer import SERIES
from playbooks.fleet import Fleet, play, sitting

from karma_events import EventLog, fold

HELD = 0.98
"""Of the rate asked for, what must have been acknowledged in time: else the figure is of another load."""


class Round(NamedTuple):
    """What one switchover came to."""

    rate: float
    window_ms: float
    told_ms: int | None
    """The window as the run's events tell it."""
    slowest_ms: float
    lost: int
    twice: int

    def __str__(self) -> str:
        told = "unknown" if self.told_ms is None else f"{self.told_ms} ms"
        return (
            f"{self.rate:.0f} writes/s, window {self.window_ms:.0f} ms (by its events {told}), slowest write "
            f"{self.slowest_ms:.0f} ms, lost {self.lost}, duplicated {self.twice}"
        )


def one_round(fleet: Fleet, rate: int, seconds: float) -> Round:
    """Switch over once under load."""
    nodes = list(fleet.nodes.values())
    old = next(node for node in nodes if node.status()["role"] == "master")
    ports = [old.port, *(node.port for node in nodes if node is not old)]
    command = [sys.executable, str(Path(__file__).parent / "keyed_writer.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdin is not None
        writer.stdin.write(json.dumps({"ports": ports, "rate": rate}) + "\n")
        writer.stdin.flush()
        try:
            time.sleep(seconds)
            with fleet.playbooks() as playbooks:
                run, ending = sitting(playbooks, lambda: play(playbooks, "switchover", {}))
            assert ending == "done", fleet.told
            time.sleep(seconds)
            output, _ = writer.communicate("\n", timeout=60)
        finally:
            writer.kill()
    found = json.loads(output)
    new = next(node for node in nodes if node.status()["role"] == "master")
    window = found["first"][str(new.port)] - found["last"][str(old.port)]
    values = []
    for at in range(1, found["sent"] + 1, 1000):
        keys = list(range(at, min(at + 1000, found["sent"] + 1)))
        values += [each["value"] for each in new.ask("counter.batch_sum", series=SERIES, keys=keys)]
    with EventLog.open(fleet.folder / "events") as log:
        told_ms = fold(log.read())[run].unavailable_ms
    return Round(
        found["acknowledged"] / found["seconds"],
        window * 1000,
        told_ms,
        found["slowest_ms"],
        values.count(0),
        sum(value > 1 for value in values),
    )


def main() -> None:
    """Print a line a round, and medians. Exit code 1: a write lost or counted twice, or the pace not held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=2000, help="writes per second (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="switchovers (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load before and after each (3)")
    parser.add_argument("--sshd", default="/usr/sbin/sshd", help="an OpenSSH daemon to start; empty for none")
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            sshd = Path(options.sshd) if options.sshd else None
            fleet = Fleet(Path(folder) / "f", sshd, max_request_bytes=1_000_000)
            try:
                rounds.append(one_round(fleet, options.rate, options.seconds))
            finally:
                fleet.close()
        print(f"round {number + 1}: {rounds[-1]}", flush=True)
    windows = [each.window_ms for each in rounds]
    told = [each.told_ms for each in rounds if each.told_ms is not None]
    lost, twice = sum(each.lost for each in rounds), sum(each.twice for each in rounds)
    slowest = min(each.rate for each in rounds)
    print(
        f"median of {len(rounds)}: window {statistics.median(windows):.0f} ms (worst {max(windows):.0f}), "
        f"by events {statistics.median(told):.0f} ms; lost {lost}, duplicated {twice}"
    )
    if slowest < options.rate * HELD:
        print(f"the pace was not held: {slowest:.0f} of {options.rate} writes/s")
    sys.exit(bool(lost or twice or slowest < options.rate * HELD))


if __name__ == "__main__":
    main()
