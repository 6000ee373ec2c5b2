"""A fleet to play with: a master, two followers, traffic, and the dashboard on top. `make demo`

    make demo                    in one terminal; `q` leaves the dashboard and ends everything
    make demo ARGS=failover      in another: kills the master, then plans, asks and runs the playbook
    make demo ARGS=rejoin        then: starts it again and lets it follow the new master
    make demo ARGS="ctl …"       karmactl with the demo's settings, as in ARGS="ctl topology"

Everything is in `.karma-demo/`, the operator's home included, and is removed at the end. The traffic counts
what was acknowledged; at the end that is compared with what the fleet holds.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from karma_client import KarmaError, connect

FOLDER = Path(".karma-demo").resolve()
CONFIG = FOLDER / "config" / "karmactl" / "config.toml"
BIN = Path(sys.executable).parent
KARMACTL = str(BIN / "karmactl")
NAMES = ("amber", "birch", "cedar")
PROOF = "demo_proof"
"""The series that gets one keyed increment with each round of traffic."""
START_SECONDS = 30.0
STOP_SECONDS = 15.0


def main(arguments: list[str]) -> int:
    """Carry out a command line; returns the exit code."""
    match arguments:
        case []:
            return demo()
        case ["failover", *words]:
            return failover(words)
        case ["rejoin", *words]:
            return rejoin(words)
        case ["ctl", *words]:
            return ctl(*words)
    sys.stderr.write(__doc__ or "")
    return 2


def environment() -> dict[str, str]:
    """The variables under which karmactl knows the fleet, and keeps its hands off the user's own settings."""
    if not CONFIG.parent.exists():
        sys.exit("There is no demo here: start one with `make demo` in another terminal.")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARMA", "XDG_"))}
    xdg = {f"XDG_{name}_HOME": str(FOLDER / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}
    # Playbooks keep what they run on a host in its user's home, and here all hosts are this machine.
    return kept | xdg | {"HOME": str(FOLDER / "home"), "KARMACTL_CONTEXT": "demo"}


# -- The fleet -------------------------------------------------------------------------------------------


def demo() -> int:
    """Start the fleet and the traffic, show the dashboard until it is left, end everything."""
    if FOLDER.exists():
        sys.exit(f"{FOLDER} is there: another demo runs, or one was killed; then remove that folder.")
    if not sys.stdout.isatty():
        sys.exit("The demo draws a dashboard: run it in a terminal.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A terminal that is closed must leave nothing behind either.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        ports = start_fleet()
        with traffic([f"127.0.0.1:{port}" for port in ports]) as proof:
            done = subprocess.run([KARMACTL, "tui"], env=environment(), check=False)
        print(proof.verdict())
        return done.returncode
    finally:
        stop_fleet()
        shutil.rmtree(FOLDER, ignore_errors=True)


def start_fleet() -> list[int]:
    """Start three nodes and describe them to karmactl; returns their ports, the master's first."""
    ports = free_ports(len(NAMES))
    CONFIG.parent.mkdir(parents=True)
    (FOLDER / "home").mkdir()
    context = ["[contexts.demo]"]
    for name, port in zip(NAMES, ports, strict=True):
        command = [
            str(BIN / "karma"),
            "--bind=127.0.0.1",
            f"--port={port}",
            f"--directory={FOLDER / name}",
            "--max-request-bytes=1048576",
            "--snapshot-wal-bytes=20000000",
            # A write is answered when a follower has it, too: the failover loses nothing then.
            "--sync-replicas=1",
        ]
        if name != NAMES[0]:
            command += ["--role=slave", "--replication-source-host=127.0.0.1"]
            command += [f"--replication-source-port={ports[0]}"]
        context += [
            "[[contexts.demo.nodes]]",
            f'name = "{name}"',
            f'address = "127.0.0.1:{port}"',
            f'directory = "{FOLDER / name}"',
            'service = "process"',
            f"service_command = {json.dumps(command)}",
            f"karma_command = {json.dumps([str(BIN / 'karma')])}",
        ]
        start(name, command, port)
    CONFIG.write_text("\n".join(context) + "\n")
    return ports


def start(name: str, command: list[str], port: int) -> None:
    """Start a node and wait until it listens; exits with its log when it does not."""
    path = FOLDER / f"{name}.log"
    with path.open("w") as log:
        # A session of its own: Ctrl-C in the dashboard is the dashboard's.
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"{name} did not start:\n{path.read_text()}")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def process_of(name: str) -> int | None:
    """The process that holds a node's directory, whoever started it; None when there is none."""
    with suppress(OSError, ValueError, IndexError):
        process = int((FOLDER / name / "karma.lock").read_text().split()[1])
        command = Path(f"/proc/{process}/cmdline").read_text()
        return process if str(FOLDER / name) in command else None
    return None


def stop_fleet() -> None:
    """End every node, those that playbooks started as well."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        for name in NAMES:
            if process := process_of(name):
                os.kill(process, number)
        while any(map(process_of, NAMES)) and time.monotonic() < deadline:
            time.sleep(0.05)


# -- Traffic ---------------------------------------------------------------------------------------------


class Traffic:
    """An application with users: requests, mails within a limit, exports; and a proof of each round."""

    def __init__(self, nodes: list[str]) -> None:
        self._nodes = nodes
        self._random = Random(1)
        self._is_over = threading.Event()
        self.acknowledged = 0
        self.found: int | None = None

    def run(self) -> None:
        """Write until `end`, through failures and failovers; then read the proof."""
        with connect(self._nodes) as client:
            today = datetime.fromtimestamp(time.time(), UTC).date()
            for days in range(60, 0, -1):
                day = int(f"{today - timedelta(days):%Y%m%d}")
                items = [(self._user(), day, self._random.randrange(1, 50)) for _ in range(200)]
                client.batch_add("api_requests", items)
            number = 0
            while not self._is_over.wait(0.02):
                with suppress(KarmaError):
                    with client.pipeline() as pipeline:
                        for _ in range(10):
                            pipeline.increment("api_requests", self._user())
                        pipeline.consume("mails", self._user(), limit=500, window="month")
                        if self._random.random() < 0.1:
                            pipeline.increment("exports", self._user(), self._random.randrange(1, 9))
                    # Retried by the library until it is answered, under the same key: it counts once.
                    client.increment(PROOF, 1, idempotency_key=f"round-{number}")
                    self.acknowledged += 1
                number += 1
            with suppress(KarmaError):
                self.found = client.sum(PROOF, 1)

    def end(self) -> None:
        """Let `run` come to its end."""
        self._is_over.set()

    def _user(self) -> int:
        """Few users do much, and many little."""
        return int(self._random.paretovariate(0.8)) % 5000

    def verdict(self) -> str:
        """What was acknowledged, beside what is there."""
        if self.found is None:
            return f"{self.acknowledged} rounds were acknowledged; nobody takes questions any more."
        lost = max(0, self.acknowledged - self.found)
        return f"{self.acknowledged} keyed writes were acknowledged, {self.found} are there: {lost} lost."


@contextmanager
def traffic(nodes: list[str]) -> Iterator[Traffic]:
    """Traffic for as long as the block runs."""
    made = Traffic(nodes)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.end()
        thread.join()


# -- The failover ----------------------------------------------------------------------------------------


def failover(words: list[str]) -> int:
    """Kill the master as a power cut would, and let the playbook do the rest."""
    master = ask_master()
    process = process_of(master) if master else None
    if master is None or process is None:
        sys.exit("No node is master: `make demo ARGS='ctl topology'` shows the fleet.")
    print(f"killing the master, {master} (kill -9 {process})", flush=True)
    os.kill(process, signal.SIGKILL)
    code = shown_ctl("failover", "--reason", f"the demo killed {master}", *words)
    if code == 0:
        shown_ctl("topology")
        print(f"\nBring {master} back, as a follower: make demo ARGS=rejoin")
    return code


def rejoin(words: list[str]) -> int:
    """Start the nodes that are down, as somebody who mended their machine, and let them follow the master."""
    down = [name for name in NAMES if process_of(name) is None]
    if not down:
        sys.exit("Every node runs.")
    code = 0
    for node in nodes():
        if (name := node["name"]) in down:
            print(f"starting {name}", flush=True)
            start(name, node["service_command"], int(node["address"].rpartition(":")[2]))
            why = f"the demo started {name} again"
            code = code or shown_ctl(
                *("playbook", "run", "rejoin-old-master", "--param", f"node={name}", "--reason", why), *words
            )
    return code or shown_ctl("topology")


def nodes() -> list[dict[str, Any]]:
    """The nodes as karmactl's configuration has them."""
    config = tomllib.loads(CONFIG.read_text())
    found: list[dict[str, Any]] = config["contexts"]["demo"]["nodes"]
    return found


def ask_master() -> str | None:
    """The name of the node that takes writes."""
    command = [KARMACTL, "replication", "status", "--output", "json"]
    shown = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=False)
    masters = {row["node"] for row in json.loads(shown.stdout) if row.get("role") == "master"}
    return next((node["name"] for node in nodes() if node["address"] in masters), None)


def ctl(*words: str) -> int:
    """Run karmactl on the fleet; returns its exit code."""
    return subprocess.run([KARMACTL, *words], env=environment(), check=False).returncode


def shown_ctl(*words: str) -> int:
    """The same, and say so."""
    print(f"\n$ karmactl {shlex.join(words)}", flush=True)
    return ctl(*words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
