"""--watch: run a reading command again and again; and how what follows something ends in order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from karmactl.diagnostics import CtlError, Exit
from karmactl.run import Run

PASSING = frozenset({Exit.UNREACHABLE, Exit.TIMEOUT})
"""What a watch survives: the next look may find the node back."""


def watch(run: Run, once: Callable[[], Any], interval_seconds: float) -> NoReturn:
    """Print what `once` returns, again after every interval, until Ctrl-C.

    On a terminal a table replaces the last one; anything else goes on below it.
    """
    replaces = run.output.form == "table" and run.output.paper.width is not None
    while True:
        begun = time.monotonic()
        try:
            data = once()
        except CtlError as error:
            if error.code not in PASSING:
                raise
            run.talk.report(error)
        else:
            if replaces:
                run.output.clear()
            run.output.show(data, run.command.shape)
            run.output.flush()
        time.sleep(max(0.0, interval_seconds - (time.monotonic() - begun)))


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets, so that what is being written is written to its end.

    A second Ctrl-C interrupts as ever: somebody may wait for a reader that reads no more.
    """
    is_stopped = threading.Event()

    def stop(*_: object) -> None:
        is_stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield is_stopped
    finally:
        is_stopped.set()
        signal.signal(signal.SIGINT, before)
