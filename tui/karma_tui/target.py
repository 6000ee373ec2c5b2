"""What the dashboard is pointed at: nodes, how to reach them, and how they are called. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """The nodes of one context. `client_options` are arguments of `connect_async`, token and all.

    `options` are the words that make karmactl mean the same context, as ("--context", "prod").
    """

    nodes: tuple[str, ...]
    context: str = ""
    is_production: bool = False
    is_read_only: bool = False
    tick_seconds: float = 1.0
    options: tuple[str, ...] = ()
    playbooks_path: Path = Path("playbooks")
    """The folder of the person's own playbooks."""
    events_path: Path = Path("events")
    """The folder of this machine's event log."""
    cache_path: Path = Path("cache")
    """The folder of what can be fetched again: snapshots, and what SQL made of them."""
    sql_history_path: Path = Path("sql_history")
    """The file of statements typed before, which the shell of `karmactl sql` writes, too."""
    client_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @property
    def name(self) -> str:
        """What the banner calls it."""
        return self.context or (self.nodes[0] if len(self.nodes) == 1 else f"{len(self.nodes)} nodes")

    def command(self, *words: str, node: str | None = None) -> str:
        """Return the karmactl command line that does the same, ready for a shell.

        Those of one node name it; the others go where the dashboard goes.
        """
        place = (*self._context_words(), "--node", node) if node is not None else self.options
        return " ".join(map(_quoted, ["karmactl", *words, *place]))

    def _context_words(self) -> tuple[str, ...]:
        return ("--context", self.context) if self.context else ()


def _quoted(word: str) -> str:
    """A word for a POSIX shell; in double quotes where that keeps a statement with texts in it readable."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
