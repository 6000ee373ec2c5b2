"""Decisions without input or output: how long to wait between tries, and which node is the master."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from karma_client.errors import (
    InvalidArgumentError,
    KarmaError,
    NoMasterError,
    ReplyError,
    SplitBrainError,
    UnreachableError,
)
from karma_client.nodes import Node

BACKOFF_FIRST_SECONDS = 0.02
BACKOFF_MAX_SECONDS = 1.0


def backoff_seconds(attempt: int, chance: float) -> float:
    """Return how long to wait after a failed attempt (1, 2, …); `chance` is a random number of 0 to 1.

    The second attempt follows at once: mostly a pooled connection had ended, or another node is the master
    now. From then on the bound doubles, and the wait is anything up to it, so that clients do not come back
    in step.
    """
    if attempt <= 1:
        return 0.0
    return chance * min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(attempt, 10))


@dataclass(frozen=True)
class Answer:
    """What a node said when it was asked for its replication status, or why it said nothing."""

    node: Node
    status: Mapping[str, Any] | None = None
    error: KarmaError | None = None

    @property
    def is_master(self) -> bool:
        """Whether the node takes writes as a master; a fenced one does not."""
        return (
            self.status is not None
            and self.status.get("role") == "master"
            and not self.status.get("fenced_by")
        )

    @property
    def epoch(self) -> int:
        """The number of the node's epoch; 0 for Karma 1.0, which has none."""
        epoch = (self.status or {}).get("epoch")
        return epoch if isinstance(epoch, int) else 0

    @property
    def source(self) -> Node | None:
        """The node that a slave follows, where it says so."""
        source = (self.status or {}).get("source")
        if isinstance(source, str):
            with contextlib.suppress(InvalidArgumentError):
                return Node.parse(source)
        return None

    def describe(self) -> str:
        """Say in a few words what the node is."""
        if self.status is None:
            return str(self.error)
        if self.status.get("fenced_by"):
            return f"{self.node} is fenced"
        behind = f" of {self.source}" if self.source else ""
        return f"{self.node} is a {self.status.get('role')}{behind}"


def sources(answers: Sequence[Answer]) -> list[Node]:
    """Return the nodes that slaves follow, each once."""
    return list(dict.fromkeys(answer.source for answer in answers if answer.source is not None))


def choose_master(answers: Sequence[Answer]) -> Node:
    """Return the node to send writes to.

    Of several masters only one with a higher epoch than all others is chosen: it was promoted later, and the
    others have not heard of it yet. Raises SplitBrainError when the epochs do not tell, NoMasterError when no
    node is a master, UnreachableError when none was reached, or what a node said (a wrong token).
    """
    masters = [answer for answer in answers if answer.is_master]
    # One node may be listed under two addresses.
    by_id = {(answer.status or {}).get("node_id") or answer.node: answer for answer in reversed(masters)}
    masters = [answer for answer in masters if answer in by_id.values()]
    if len(masters) == 1:
        return masters[0].node
    if masters:
        return _newest(masters)
    refusals = [answer.error for answer in answers if isinstance(answer.error, ReplyError)]
    if refusals:
        raise refusals[0]
    states = "; ".join(answer.describe() for answer in answers)
    if all(answer.status is None for answer in answers):
        raise UnreachableError(f"no node can be reached: {states}")
    asked = {answer.node for answer in answers}
    strangers = ", ".join(str(node) for node in sources(answers) if node not in asked)
    advice = (
        f"{strangers} was not asked, because it is not among the nodes given: add it, or allow follow_hints"
        if strangers
        else "Promote one, or name the master"
    )
    raise NoMasterError(f"none of the nodes is a master that takes writes: {states}. {advice}")


def _newest(masters: Sequence[Answer]) -> Node:
    clusters = {(answer.status or {}).get("cluster_id") for answer in masters}
    ranked = sorted(masters, key=lambda answer: answer.epoch, reverse=True)
    if len(clusters) == 1 and ranked[0].epoch > ranked[1].epoch:
        return ranked[0].node
    names = ", ".join(f"{answer.node} (epoch {answer.epoch})" for answer in masters)
    if len(clusters) > 1:
        raise SplitBrainError(
            f"several masters of different clusters: {names}. Name the nodes of one cluster only"
        )
    raise SplitBrainError(
        f"several masters: {names}. Both may be taking writes, and nothing tells which one is right; "
        "fence one of them, then try again"
    )
