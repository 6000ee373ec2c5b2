"""--wait-until: ask the nodes again and again until they are as they should be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from karma_client.fleet import judge
from karmactl import fleet
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.fleet import NodeState
from karmactl.run import Run

PAUSE_SECONDS = 0.2
"""Between two looks: short beside what an operator waits for, and no load for a server."""


def wait_until(run: Run, state: str) -> None:
    """Return when every node is as asked. Raises CtlError when the time is up, or for an unknown state."""
    is_reached = condition(state)
    deadline = time.monotonic() + run.settings.wait_seconds
    while True:
        nodes = fleet.read(run)
        missing = is_reached(nodes)
        run.talk.progress(missing and f"waiting for {state}: {missing}")
        if not missing:
            return
        if time.monotonic() + PAUSE_SECONDS > deadline:
            run.talk.progress("")
            raise CtlError(
                Exit.TIMEOUT,
                f"not {state} after {run.settings.wait_seconds:g} s: {missing}",
                fault="cluster",
                advice="--timeout SECONDS waits longer; `karmactl topology` shows every node",
            )
        time.sleep(PAUSE_SECONDS)


def condition(state: str) -> Callable[[Sequence[NodeState]], str]:
    """Return a function that says what is missing for a state, "" when it is reached. Raises CtlError."""
    if state == "healthy":
        return lambda nodes: "; ".join(judge(nodes).problems)
    if state == "caught-up":
        return _behind
    name, equals, number = state.partition("=")
    if name == "lsn" and equals and number.isascii() and number.isdigit():
        return lambda nodes: _below(nodes, int(number))
    raise usage(f'"{state}" is nothing to wait for', "write --wait-until healthy, caught-up or lsn=N")


def _behind(nodes: Sequence[NodeState]) -> str:
    newest = max(node.lsn for node in nodes)
    late = [
        f"{node.address} is {max(newest - node.lsn, node.lag_entries or 0)} entries behind"
        for node in nodes
        if node.error is None and (node.lsn < newest or node.lag_entries)
    ]
    return "; ".join([*_silent(nodes), *late])


def _below(nodes: Sequence[NodeState], lsn: int) -> str:
    late = [f"{node.address} is at LSN {node.lsn}" for node in nodes if node.error is None and node.lsn < lsn]
    return "; ".join([*_silent(nodes), *late])


def _silent(nodes: Sequence[NodeState]) -> list[str]:
    return [f"{node.address} is {node.state}" for node in nodes if node.error is not None]
