"""How long writers wait in a switchover under load, and whether any write is lost or counts twice.

The window is the time from the last write that the old master acknowledged to the first that the new one did.

    .venv/bin/python bench/switchover.py --rate 2000 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from playbooks.fleet import Fleet, Node, play

CONNECTIONS = 8
DAY = 20260505
SERIES = "load"


class Load:
    """Connections that each write to the master at a pace, and look for it when it refuses."""

    def __init__(self, nodes: list[Node], rate: int) -> None:
        self.nodes = nodes
        self.interval_seconds = CONNECTIONS / rate
        self.acknowledged: list[tuple[float, str, int]] = []
        self.is_over = False
        self._key = 0

    async def write(self, first: Node) -> None:
        """Write until it is over. Every write has an idempotency key and is sent until it is acknowledged."""
        streams = {node.name: await asyncio.open_connection("127.0.0.1", node.port) for node in self.nodes}
        names = [first.name, *(node.name for node in self.nodes if node is not first)]
        due = time.monotonic()
        while not self.is_over:
            self._key += 1
            key = self._key
            line = {"v": 2, "op": "counter.increment", "series": SERIES, "key": key, "bucket": DAY}
            request = json.dumps({**line, "idempotency_key": f"k{key}"}).encode() + b"\n"
            while True:
                reader, writer = streams[names[0]]
                writer.write(request)
                reply = json.loads(await reader.readline())
                if reply["success"]:
                    self.acknowledged.append((time.monotonic(), names[0], key))
                    break
                names.append(names.pop(0))
                await asyncio.sleep(0.002)
            due += self.interval_seconds
            await asyncio.sleep(max(due - time.monotonic(), 0))
        for _, writer in streams.values():
            writer.close()


async def one_round(fleet: Fleet, rate: int, seconds: float) -> tuple[float, float, list[int]]:
    """Switch over once under load; returns the window in milliseconds, writes per second, and the keys."""
    nodes = list(fleet.nodes.values())
    old = next(node for node in nodes if node.status()["role"] == "master")
    load = Load(nodes, rate)
    began = time.monotonic()
    writers = [asyncio.create_task(load.write(old)) for _ in range(CONNECTIONS)]
    await asyncio.sleep(seconds)
    with fleet.playbooks() as playbooks:
        _, ending = await play(playbooks, "switchover", {})
        await playbooks.world.close()
    assert ending == "done", fleet.told
    await asyncio.sleep(seconds)
    load.is_over = True
    await asyncio.gather(*writers)
    took = time.monotonic() - began
    last = max(at for at, name, _ in load.acknowledged if name == old.name)
    first = min(at for at, name, _ in load.acknowledged if name != old.name)
    return (first - last) * 1000, len(load.acknowledged) / took, [key for *_, key in load.acknowledged]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=2000, help="writes per second (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="switchovers (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load before and after each (3)")
    parser.add_argument("--sshd", default="/usr/sbin/sshd", help="an OpenSSH daemon to start; empty for none")
    options = parser.parse_args()
    windows = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            sshd = Path(options.sshd) if options.sshd else None
            fleet = Fleet(Path(folder) / "f", sshd, max_request_bytes=1_000_000)
            try:
                window_ms, rate, keys = asyncio.run(one_round(fleet, options.rate, options.seconds))
                master = next(node for node in fleet.nodes.values() if node.status()["role"] == "master")
                values = []
                for at in range(0, len(keys), 1000):
                    found = master.ask("counter.batch_sum", series=SERIES, keys=keys[at : at + 1000])
                    values += [each["value"] for each in found]
                lost, twice = values.count(0), sum(value > 1 for value in values)
                windows.append(window_ms)
                about = f"{rate:.0f} writes/s, window {window_ms:.0f} ms, lost {lost}, twice {twice}"
                print(f"round {number + 1}: {about}")
            finally:
                fleet.close()
    print(f"window: median {statistics.median(windows):.0f} ms, worst {max(windows):.0f} ms")


if __name__ == "__main__":
    main()
