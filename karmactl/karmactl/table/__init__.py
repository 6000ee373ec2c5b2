"""THE command table: every command of karmactl, in sections.

Help, completion, `karmactl spec` and the guards read it. Whoever only reads it loads no command's code.
"""

from __future__ import annotations

from collections.abc import Mapping

from karmactl.table import (
    cluster,
    dashboard,
    data,
    diagnosis,
    events,
    local,
    maintenance,
    observe,
    playbooks,
    queries,
    transfer,
)
from karmactl.table.entries import Command, Guide

SECTIONS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    ("Look", observe.COMMANDS),
    ("Dashboard", dashboard.COMMANDS),
    ("Data", data.COMMANDS),
    ("Files and the log", transfer.COMMANDS),
    ("Questions", queries.COMMANDS),
    ("Cluster", cluster.COMMANDS),
    ("Playbooks", playbooks.COMMANDS),
    ("Maintenance", maintenance.COMMANDS),
    ("What happened", events.COMMANDS),
    ("Trouble", diagnosis.COMMANDS),
    ("karmactl itself", local.COMMANDS),
)
COMMANDS: tuple[Command, ...] = tuple(command for _, commands in SECTIONS for command in commands)
BY_PATH: dict[tuple[str, ...], Command] = {command.path: command for command in COMMANDS}

GROUPS: dict[str, str] = {
    "": "The operator's hands for Karma, a database for usage counters.",
    "context": "Clusters by name: nodes, tokens by reference, production mark.",
    "series": "Series: list, look into, create, drop, compact.",
    "limit": "Consume limits and see what is left of them.",
    "snapshot": "Snapshots: take, list, check, download, load.",
    "wal": "The log: print it, follow it live, count it.",
    "replication": "Roles and replication: status, promote, follow, pause, fence.",
    "playbook": "Failover and other work on a fleet: planned, journaled, resumable.",
    "idempotency": "Remembered idempotency keys.",
    "recovery": "Checkpoints of external pipelines.",
    "events": "Events of this machine: follow them, ask about them.",
    "actions": "Playbook runs: what became of them, how long they took.",
}
"""What the words are for that have commands below them."""
GUIDES: Mapping[str, tuple[Guide, ...]] = {"playbook": playbooks.GUIDE}
"""What else the help of such a word says."""
