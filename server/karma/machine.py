"""What a server meets of its machine, beside the event loop: disk, clocks, randomness, its end.

`app.Server` gets one of these. The simulation gives it another, and an event loop to go with it, and the same
server then runs on a disk in memory in a time that jumps.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn

from karma.limits import INLINE_KEYS
from karma.protocol.texts import spelled_out
from karma.service.child import RunInChild, is_orphan, run_in_child
from karma.service.line_writer import LineWriter, write_in_time
from karma.storage.disk import Disk
from karma.storage.node_file import new_node_id

_FILES_BESIDE_CLIENTS = 256
"""What the log, snapshots, followers and the sidecar may open, besides clients."""


_standard_output = LineWriter(1)


def write_line(line: str) -> None:
    """Write a line to standard output, for a command that waits for its reader."""
    # Past Python's buffer, which would keep what it cannot write and fail once more with it at the end.
    with contextlib.suppress(OSError):
        os.write(1, line.encode())


def exit_with(message: str) -> NoReturn:
    """End with a line on stderr and exit code 1."""
    sys.stderr.write("ERROR: " + spelled_out(" ".join(message.split())) + "\n")
    sys.exit(1)


def exposed(paths: Iterable[Path]) -> list[str]:
    """Return a sentence for each file with a secret that every user of this machine can read."""
    sentences = []
    for path in paths:
        # A file that is not there is named by what needs it.
        with contextlib.suppress(OSError):
            if path.stat().st_mode & stat.S_IROTH:
                sentences.append(
                    f"{path} holds a secret, and every user of this machine can read it: chmod o-r"
                )
    return sentences


def clients_that_fit(max_clients: int) -> int:
    """Raise the limit on open files as far as clients need it and the system allows; returns how many fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max_clients + _FILES_BESIDE_CLIENTS
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        soft = files
    if soft == resource.RLIM_INFINITY:
        return max_clients
    # Where even the reserve is more than there is, clients get half.
    return min(max_clients, max(soft - _FILES_BESIDE_CLIENTS, soft // 2))


def _die(message: str) -> NoReturn:
    _standard_output.flush()
    with contextlib.suppress(OSError):
        write_in_time(2, f"ERROR: {message}\n")
    os._exit(1)


def _keep_in_memory() -> None:
    gc.collect()
    gc.freeze()


@dataclass(frozen=True, slots=True)
class Machine:
    """The real one, part for part. Clocks return seconds; only those of `clock` are unix time."""

    disk: Disk = field(default_factory=Disk)
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    stopwatch: Callable[[], float] = time.perf_counter
    random: Random = field(default_factory=Random)
    """Spreads retries, guards nothing."""
    new_id: Callable[[], str] = new_node_id
    write_line: Callable[[str], object] = _standard_output
    """Takes a line of the log and never waits; returns False for one that it has no room for."""
    run_in_child: RunInChild = run_in_child
    is_orphan: Callable[[int], bool] = is_orphan
    die: Callable[[str], NoReturn] = _die
    """Ends the process at once, with a message."""
    inline_keys: int = INLINE_KEYS
    """Keys of a series up to which a deletion is applied, and a page sorted, at once."""
    keep_in_memory: Callable[[], None] = _keep_in_memory
    """What is loaded now stays: the collector need not look at it again."""
