"""Every node of the target, asked at the same time: what topology, check and --wait-until judge."""

from __future__ import annotations

from dataclasses import dataclass

from karma_client import fleet
from karma_client.errors import KarmaError
from karmactl.diagnostics import CtlError, Exit
from karmactl.failures import translated
from karmactl.run import Run


@dataclass(frozen=True, slots=True)
class NodeState(fleet.NodeState):
    """What one node said; its error is in the words of karmactl."""

    error: CtlError | None = None


def read(run: Run) -> list[NodeState]:
    """Ask every node of the target, at the same time."""
    return run.each(lambda node: _state(run, node))


def _state(run: Run, node: str) -> NodeState:
    try:
        return NodeState(
            node,
            run.at(node, "system.health"),
            run.at(node, "replication.status"),
            run.at(node, "system.stats"),
        )
    except KarmaError as error:
        return NodeState(node, error=translated(error, run))


def exit_code(verdict: fleet.Verdict) -> Exit:
    """Return 0, 8 or 9."""
    return {"healthy": Exit.OK, "degraded": Exit.UNHEALTHY, "split brain": Exit.SPLIT_BRAIN}[verdict.health]
