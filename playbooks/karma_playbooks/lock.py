"""The run lock: a directory on a majority of the hosts, with a numbered file for each holder there ever was.

The highest number says who holds it, in which epoch of the run, or that nobody does (`{}`). Whoever
wants it adds the number after the one that it read, by a hard link, which the file system makes for
exactly one. Numbers are never used again: who was slow cannot take what was given back and taken meanwhile
for what it saw. Moving the holder's folder away instead would let the second of two take it away from the
first.

Hosts are taken in the order of the inventory, so that of several the one that gets the first gets them all.
Two operators, or one who resumes while the first machine is still at it, must never act at the same time.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from karma_playbooks.errors import PlaybookError
from karma_playbooks.shell_words import word
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.world import World

T = TypeVar("T")
_FREE: Mapping[str, Any] = {}


class LostLockError(Exception):
    """Somebody else holds the lock now; nothing may be done any more."""


class _Seen(NamedTuple):
    """What a host says of the lock: the highest number, 0 before the first, and its holder."""

    number: int
    holder: Mapping[str, Any]


@dataclass(slots=True)
class Lock:
    """The lock of one cluster. `holder` is what others read: run, epoch, operator, machine, since."""

    world: World
    cluster: str
    holder: dict[str, Any]
    held: list[str] = field(default_factory=list)
    _before: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Whom the hosts named before this one."""
    _claim: str = field(default_factory=lambda: secrets.token_hex(8))
    """Tells this attempt from another one for the same run and epoch."""

    @property
    def _hosts(self) -> list[str]:
        return self.world.hosts()

    @property
    def _majority(self) -> int:
        return len(self._hosts) // 2 + 1

    @property
    def _mine(self) -> Mapping[str, Any]:
        return {**self.holder, "claim": self._claim}

    async def acquire(self, *, takeover: bool = False) -> list[str]:
        """Take the lock; returns what is odd about that. Raises PlaybookError, with nothing held.

        That of the same run is taken on if the run was parked, or with `takeover`; that of another one never.
        """
        found = dict(zip(self._hosts, await self._read_all(self._hosts), strict=True))
        seen = {name: each for name, each in found.items() if isinstance(each, _Seen)}
        problems = {name: each for name, each in found.items() if isinstance(each, str)}
        open_ = {n: each for n, each in seen.items() if self._may_follow(each.holder, takeover=takeover)}
        others = {name: each for name, each in seen.items() if name not in open_}
        if others and len(open_) < self._majority:
            raise held_by(next(iter(others.values())).holder, self.holder["run"])
        self._need_majority(len(open_), problems)
        self._before = {name: each.holder for name, each in open_.items()}
        for name, each in open_.items():
            answer = await _answer(self._add(name, each.number, self._mine))
            if answer is True:
                self.held.append(name)
            elif answer is False:
                (now,) = await self._read_all([name])
                await self.give_up()
                raise held_by(now.holder if isinstance(now, _Seen) else _FREE, self.holder["run"])
            else:
                problems[name] = answer
        if len(self.held) < self._majority:
            await self.give_up()
        self._need_majority(len(self.held), problems)
        for name, each in others.items():
            # Whoever held a majority is gone: only here nobody could tell so, because no link led here then.
            if await _answer(self._add(name, each.number, self._mine)) is True:
                self.held.append(name)
        return [f"{name}: {problem}" for name, problem in problems.items()]

    def _may_follow(self, holder: Mapping[str, Any], *, takeover: bool) -> bool:
        is_ours = holder.get("run") == self.holder["run"]
        return not holder or (is_ours and (takeover or bool(holder.get("is_parked"))))

    def _need_majority(self, count: int, problems: Mapping[str, str]) -> None:
        if self._hosts and count < self._majority:
            why = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise PlaybookError(
                f"the run lock needs {self._majority} of {len(self._hosts)} hosts: {why}",
                "nothing was done; make the hosts reachable, or take them out of the context",
                "unreachable",
            )

    async def check(self) -> None:
        """Raise LostLockError if a host that answers names another holder, or none."""
        for answer in await self._read_all(self.held):
            if isinstance(answer, _Seen) and answer.holder.get("claim") != self._claim:
                raise LostLockError(f"the run lock is held by {describe(answer.holder)} now")

    async def release(self) -> None:
        """Give the lock back where it is held."""
        await self._hand_back(dict.fromkeys(self._hosts, _FREE))
        self.held = []

    async def give_up(self) -> None:
        """Leave the lock as it was before it was taken."""
        await self._hand_back(self._before)
        self.held = []

    async def park(self) -> None:
        """Keep others away from a run that stopped half-way, and let whoever resumes it in."""
        parked = {**self._mine, "is_parked": True}
        await self._hand_back(dict.fromkeys(self._hosts, parked))

    async def break_(self) -> list[Mapping[str, Any]]:
        """Take the lock away from whoever holds it; returns who that was."""
        answers = dict(zip(self._hosts, await self._read_all(self._hosts), strict=True))
        found = {name: each for name, each in answers.items() if isinstance(each, _Seen) and each.holder}
        await asyncio.gather(*(_answer(self._add(name, each.number, _FREE)) for name, each in found.items()))
        return [each.holder for each in found.values()]

    async def _hand_back(self, holders: Mapping[str, Mapping[str, Any]]) -> None:
        """Name other holders, on those hosts that name this one: also where the answer to that was lost."""
        for name, answer in zip(holders, await self._read_all(holders), strict=True):
            if isinstance(answer, _Seen) and answer.holder.get("claim") == self._claim:
                await _answer(self._add(name, answer.number, holders[name]))

    # -- On one host -------------------------------------------------------------------------------------

    async def _read_all(self, names: Iterable[str]) -> list[_Seen | str]:
        return await asyncio.gather(*(_answer(self._read(name)) for name in names))

    async def _read(self, name: str) -> _Seen:
        script = """
at=0
for each in "$lock"/*; do each=${each##*/}; [ "$each" -gt "$at" ] 2>/dev/null && at=$each; done
echo "$at"; [ "$at" -eq 0 ] || cat "$lock/$at"
"""
        number, _, text = (await self._script(name, script)).partition("\n")
        return _Seen(int(number), _parsed(text) if int(number) else _FREE)

    async def _add(self, name: str, number: int, holder: Mapping[str, Any]) -> bool:
        """Add a holder after the one of that number; False when somebody else did."""
        script = f"""
mkdir -p "$lock" && printf '%s\\n' {word(json.dumps(holder))} > "$lock/.new.$$" || exit 1
if ln "$lock/.new.$$" "$lock/{number + 1}" 2>"$lock/.why.$$"; then echo added
elif [ -e "$lock/{number + 1}" ]; then echo late
else cat "$lock/.why.$$" >&2; failed=1; fi
rm -f "$lock/.new.$$" "$lock/.why.$$"; exit "${{failed:-0}}"
"""
        return (await self._script(name, script)).strip() == "added"

    async def _script(self, name: str, script: str) -> str:
        host = self.world.host(name)
        # In braces: a shell that got half of it, because the connection broke, does nothing.
        text = f"{{\numask 077\nlock={host.path('locks', self.cluster)}\n{script}\n}}\n"
        ran = await self.world.ask_host(name, text)
        if ran.code:
            raise UnreachableError(ran.errors.strip() or f"exit code {ran.code}")
        return ran.output


async def _answer(work: Awaitable[T]) -> T | str:
    """The answer of a host, or in words why there is none."""
    try:
        return await work
    except (UnreachableError, LinkLostError) as error:
        return str(error)


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    # A file that a power cut emptied names nobody, and is no lock given back.
    return found if isinstance(found, dict) else {"run": None}


def held_by(holder: Mapping[str, Any], run: str) -> PlaybookError:
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


def describe(holder: Mapping[str, Any]) -> str:
    """Return a lock's holder in words."""
    if not holder:
        return "nobody"
    if not holder.get("run"):
        return "somebody who left no name"
    return "{run} (epoch {epoch}) of {operator} on {machine}, since {since}".format(**holder)


def names(found: Sequence[Mapping[str, Any]]) -> str:
    """Return holders in words, each once."""
    return "; ".join(dict.fromkeys(map(describe, found)))
