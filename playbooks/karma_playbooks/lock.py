"""The run lock: a directory on a majority of the hosts, with who holds it and in which epoch.

Two operators, or one who resumes while the first machine is still at it, must never act at the same time. The
epoch counts who carries a run out; a holder that finds a higher one inside stops.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from karma_playbooks.errors import PlaybookError
from karma_playbooks.transports.host import Host
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.world import World

SECONDS = 10.0


class LostLockError(Exception):
    """Somebody else holds the lock now; nothing may be done any more."""


@dataclass(slots=True)
class Lock:
    """The lock of one cluster. `holder` is what others read: run, epoch, operator, machine, since."""

    world: World
    cluster: str
    holder: dict[str, Any]
    held: list[str] = field(default_factory=list)

    @property
    def _hosts(self) -> list[str]:
        return self.world.hosts()

    @property
    def _majority(self) -> int:
        return len(self._hosts) // 2 + 1

    async def acquire(self, *, takeover: bool = False) -> list[str]:
        """Take the lock; returns what is odd about that. Raises PlaybookError, with nothing held.

        A lock of the same run is taken on if that run was parked; any other only with `takeover`.
        """
        if not self._hosts:
            return []
        answers = await asyncio.gather(
            *(self._at(self._take(name, takeover=takeover)) for name in self._hosts)
        )
        self.held = [name for name, answer in zip(self._hosts, answers, strict=True) if answer == "held"]
        others = [answer for answer in answers if isinstance(answer, dict)]
        problems = [f"{name}: {answer}" for name, answer in zip(self._hosts, answers, strict=True)
                    if isinstance(answer, str) and answer != "held"]  # fmt: skip
        if others or len(self.held) < self._majority:
            await self.release()
        if others:
            raise held_by(others[0], self.holder["run"])
        if len(self.held) < self._majority and problems:
            raise PlaybookError(
                f"the run lock needs {self._majority} of {len(self._hosts)} hosts: {'; '.join(problems)}",
                "nothing was done; make the hosts reachable, or take them out of the context",
                "unreachable",
            )
        return problems

    async def check(self) -> None:
        """Raise LostLockError unless a majority of those that answer still name this holder."""
        answers = await asyncio.gather(*(self._at(self._read(name)) for name in self.held))
        for answer in answers:
            if isinstance(answer, dict) and (answer.get("run"), answer.get("epoch")) != self._mine:
                raise LostLockError(f"the run lock is held by {describe(answer)} now")

    @property
    def _mine(self) -> tuple[Any, Any]:
        return self.holder["run"], self.holder["epoch"]

    async def release(self) -> None:
        """Give the lock back where it is held."""
        held, self.held = self.held, []
        await asyncio.gather(*(self._at(self._give(name)) for name in held))

    async def park(self) -> None:
        """Keep others away from a run that stopped half-way, and let whoever resumes it in."""
        text = shlex.quote(json.dumps({**self.holder, "is_parked": True}))
        script = (
            f'[ -d "$lock" ] && printf \'%s\\n\' {text} > "$lock/.new" && mv "$lock/.new" "$lock/holder"\n'
        )
        await asyncio.gather(*(self._at(self._give(name, script)) for name in self.held))

    async def break_(self) -> list[dict[str, Any]]:
        """Take the lock away from whoever holds it; returns who that was."""
        answers = await asyncio.gather(*(self._at(self._read(name)) for name in self._hosts))
        found = [answer for answer in answers if isinstance(answer, dict)]
        script = 'rm -rf "$lock"\n'
        await asyncio.gather(*(self._at(self._script(name, script)) for name in self._hosts))
        return found

    # -- On one host -------------------------------------------------------------------------------------

    @staticmethod
    async def _at(work: Any) -> Any:
        """The answer of a host, or in words why there is none."""
        try:
            return await asyncio.wait_for(work, SECONDS)
        except (UnreachableError, LinkLostError) as error:
            return str(error)
        except TimeoutError:
            return "no answer in time"

    async def _script(self, name: str, script: str) -> str:
        host: Host = self.world.host(name)
        word = re.sub(r"[^A-Za-z0-9._-]", "_", self.cluster)
        head = f"umask 077\nlocks={host.base}/locks\nlock=$locks/{word}\n"
        ran = await host.script(head + script)
        if ran.code:
            raise UnreachableError(ran.errors.strip() or f"exit code {ran.code}")
        return ran.output

    async def _take(self, name: str, *, takeover: bool) -> Any:
        written = f"""
mkdir -p "$locks" || exit 1
printf '%s\\n' {shlex.quote(json.dumps(self.holder))} > "$locks/.new.$$" || exit 1
if mkdir "$lock" 2>/dev/null; then mv "$locks/.new.$$" "$lock/holder" && echo held
else rm -f "$locks/.new.$$"; cat "$lock/holder" 2>/dev/null || echo '{{}}'; fi
"""
        other: dict[str, Any] = {}
        for _ in range(2):
            found = (await self._script(name, written)).strip()
            if found == "held":
                return "held"
            other = _parsed(found)
            is_parked = other.get("run") == self.holder["run"] and other.get("is_parked")
            if not (takeover or is_parked):
                return other
            await self._script(name, 'mv "$lock" "$lock.old.$$" && rm -rf "$lock.old.$$"\n')
        return other

    async def _read(self, name: str) -> Any:
        found = await self._script(name, '[ -d "$lock" ] && cat "$lock/holder"; :\n')
        return _parsed(found) if found.strip() else "not held"

    async def _give(self, name: str, script: str = 'rm -rf "$lock"\n') -> None:
        found = await self._read(name)
        if isinstance(found, dict) and (found.get("run"), found.get("epoch")) == self._mine:
            await self._script(name, script)


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def held_by(holder: dict[str, Any], run: str) -> PlaybookError:
    """Return the error of a lock that somebody else holds when `run` wants it."""
    other = holder.get("run")
    if other == run:
        advice = f"if that machine is dead, take over: `karmactl playbook resume {run} --takeover`"
    elif holder.get("is_parked"):
        advice = (
            f"end that one first: `karmactl playbook resume {other}` or `karmactl playbook abort {other}`"
        )
    else:
        advice = "wait for it; if nobody can go on with it: `karmactl playbook unlock`"
    state = "stopped half-way" if holder.get("is_parked") else "is under way"
    return PlaybookError(f"a run {state}: {describe(holder)}; nothing was done", advice, "refused")


def describe(holder: dict[str, Any]) -> str:
    """Return a lock's holder in words."""
    if not holder:
        return "somebody who left no name"
    return "{run} (epoch {epoch}) of {operator} on {machine}, since {since}".format(**holder)


def names(found: Sequence[dict[str, Any]]) -> str:
    """Return holders in words, each once."""
    return "; ".join(dict.fromkeys(map(describe, found)))
