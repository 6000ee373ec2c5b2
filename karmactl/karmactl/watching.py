"""--watch: run a reading command again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
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
