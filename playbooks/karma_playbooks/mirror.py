"""Copies of a run's journal on the hosts, so that another machine can go on when this one is gone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from karma_playbooks.errors import PlaybookError
from karma_playbooks.history import Entry, broken_at
from karma_playbooks.journal import Journal
from karma_playbooks.shell_words import words
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.world import World


@dataclass(slots=True)
class Mirror:
    """The copies of one run. A host that cannot be reached is left out, and tried again with the next
    entries.
    """

    world: World
    journal: Journal
    run: str
    _sent: dict[str, int] = field(default_factory=dict)

    async def bring_up_to_date(self) -> list[str]:
        """Append to each copy what it lacks; returns the hosts where that failed, with the reason."""
        entries = self.journal.entries(self.run)
        found = await asyncio.gather(*(self._send(name, entries) for name in self.world.hosts()))
        return [problem for problem in found if problem]

    async def _send(self, name: str, entries: list[Entry]) -> str:
        known = self._sent.get(name, 0)
        missing = entries[known:]
        if not missing:
            return ""
        host = self.world.host(name)
        # The first time the copy is written anew: an earlier controller may have left half a line.
        redirect = ">>" if known else ">"
        lines = words(entry.line() for entry in missing)
        script = (
            f'umask 077\nrun={host.path(self.run)}\nmkdir -p "$run" || exit 1\n'
            f"printf '%s\\n' {lines} {redirect} \"$run/journal.jsonl\" || exit 1\n"
        )
        try:
            ran = await self.world.ask_host(name, script)
        except (UnreachableError, LinkLostError) as error:
            return f"{name}: {error}"
        if ran.code:
            return f"{name}: {ran.errors.strip() or f'exit code {ran.code}'}"
        self._sent[name] = entries[-1].number
        return ""


async def fetch(world: World, run: str) -> list[Entry]:
    """Return the longest whole copy of a run that the hosts have. Raises PlaybookError when there is none."""
    copies = await asyncio.gather(*(_copy(world, name, run) for name in world.hosts()))
    best = max(copies, key=len, default=[])
    if not best:
        raise PlaybookError(
            f"neither this machine's journal nor a host knows a run {run}",
            "`karmactl playbook history` lists the runs of this machine",
            "not found",
        )
    return best


async def _copy(world: World, name: str, run: str) -> list[Entry]:
    script = f"cat {world.host(name).path(run, 'journal.jsonl')} 2>/dev/null\n"
    try:
        ran = await world.ask_host(name, script)
    except (UnreachableError, LinkLostError):
        return []
    found = []
    for line in ran.output.split("\n"):
        try:
            found.append(Entry(**json.loads(line)))
        except (TypeError, ValueError):
            break
    wrong = broken_at(found)
    return found if wrong is None else found[: wrong - 1]
