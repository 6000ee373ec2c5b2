"""The run lock of a cluster: a lease in a majority of its nodes, and a file next to each data directory.

The nodes' leases (`votes`) are what keeps two operators apart, wherever they sit and however they call the
cluster. A node that is down votes by the file on its host; on nodes that answer the file keeps others off a
run that stopped half-way, and shows where its journal is. Both belong to the cluster's id.

Files are numbered, one for each holder there ever was. The highest number says who holds the lock, in which
epoch of the run, or that it is free (`{}`). A taker adds the number after the one that it read, by a hard
link, which the file system makes for exactly one. Numbers are never used again: a slow taker cannot mistake
what was given back and taken meanwhile for what it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from karma_playbooks.errors import PlaybookError
from karma_playbooks.shell_words import word
from karma_playbooks.transports.shell import LinkLostError, UnreachableError
from karma_playbooks.votes import Refusal, Votes
from karma_playbooks.world import World

T = TypeVar("T")
_FREE: Mapping[str, Any] = {}
_RENEWALS = 3
"""How many times in its length a lease is renewed."""


class LostLockError(Exception):
    """Another run holds the lock now; nothing may be done any more."""


class NoMajorityError(Exception):
    """Too few nodes answer to be sure that no other run holds the lock."""


class _Seen(NamedTuple):
    """What a host says of the lock: the highest number, 0 before the first, and its holder."""

    number: int
    holder: Mapping[str, Any]


@dataclass(slots=True)
class Lock:
    """The lock of one cluster. `holder` is what others read: run, epoch, operator, machine, since.

    With `is_unverified` it goes on without a majority, on the operator's word that no other run is under way.
    """

    world: World
    cluster: str
    holder: dict[str, Any]
    is_unverified: bool = False
    held: list[str] = field(default_factory=list)
    """The nodes whose host holds the file for this run."""
    doubt: str = ""
    """Why no majority holds the lock for this run, which goes on by the operator's word; empty else."""
    _before: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Whom the hosts named before this one."""
    _claim: str = field(default_factory=lambda: secrets.token_hex(8))
    """Tells this attempt from another one for the same run and epoch."""
    _votes: Votes = field(init=False)
    _keeper: asyncio.Task[None] | None = None
    _is_bound: bool = False
    """A lease was shortened for a promotion under way: nothing renews it meanwhile."""
    _lost: str = ""

    def __post_init__(self) -> None:
        about = self.holder
        name = "{operator} on {machine} ({claim})".format(**about, claim=self._claim)
        self._votes = Votes(self.world.ask, list(self.world.entries), about["run"], name, time.monotonic)

    @property
    def _hosts(self) -> list[str]:
        """A node of each place with a file: one for each data directory."""
        found: dict[tuple[Any, ...], str] = {}
        for name, entry in self.world.entries.items():
            if entry.has_host:
                at = entry.directory or entry.playbook_directory
                found.setdefault((entry.ssh_host, entry.ssh_port, entry.ssh_user, at), name)
        return list(found.values())

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
        await self._votes.look()
        votes, run = self._votes, self.holder["run"]
        leased = {n: each for n, each in votes.others().items() if each.run != run or not takeover}
        # A minority's leases are of a run that is over: those nodes were down when it gave them back.
        if leased and (self.is_unverified or len(votes.voters) - len(leased) < votes.needed):
            raise held_by(_holder_of(next(iter(leased.values()))), run)
        found = dict(zip(self._hosts, await self._read_all(self._hosts), strict=True))
        seen = {name: each for name, each in found.items() if isinstance(each, _Seen)}
        problems = {name: each for name, each in found.items() if isinstance(each, str)}
        open_ = {n: each for n, each in seen.items() if self._may_follow(each.holder, takeover=takeover)}
        others = {name: each for name, each in seen.items() if name not in open_}
        if others and (len(open_) < self._majority or self.is_unverified):
            raise held_by(next(iter(others.values())).holder, self.holder["run"])
        self._need_hosts(len(open_), problems)
        try:
            await self._take(open_, problems, leased)
            for name in leased:
                await votes.take_over(name)
            for name, each in others.items():
                # The majority has forgotten that holder, and no link led here to tell so.
                if await _answer(self._add(name, each.number, self._mine)) is True:
                    self.held.append(name)
        except BaseException:
            await self.give_up()
            raise
        self.world.guard = self
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        return [f"{name}: {problem}" for name, problem in problems.items()]

    async def _take(
        self, open_: Mapping[str, _Seen], problems: dict[str, str], leased: Collection[str]
    ) -> None:
        """Take leases and files, in an order that all runs share. Raises PlaybookError."""
        refusals: dict[str, Refusal] = {}
        for name in self._votes.voters:
            may_take = self._votes.can_lease(name) and name not in leased
            if may_take and (refusal := await self._votes.take(name)) is not None:
                if refusal.run:
                    raise held_by(_holder_of(refusal), self.holder["run"])
                refusals[name] = refusal
        self._before = {name: each.holder for name, each in open_.items()}
        for name, each in open_.items():
            answer = await _answer(self._add(name, each.number, self._mine))
            if answer is True:
                self.held.append(name)
            elif answer is False:
                (now,) = await self._read_all([name])
                raise held_by(now.holder if isinstance(now, _Seen) else _FREE, self.holder["run"])
            else:
                problems[name] = answer
        self._need_hosts(len(self.held), problems)
        self._need_votes(refusals, problems)

    def _may_follow(self, holder: Mapping[str, Any], *, takeover: bool) -> bool:
        is_ours = holder.get("run") == self.holder["run"]
        return not holder or (is_ours and (takeover or bool(holder.get("is_parked"))))

    def _need_hosts(self, count: int, problems: Mapping[str, str]) -> None:
        if self._hosts and count < self._majority:
            self._need(f"{self._majority} of {len(self._hosts)} hosts", problems)

    def _need_votes(self, refusals: Mapping[str, Refusal], problems: Mapping[str, str]) -> None:
        votes = self._votes
        # Where every node that answers is a Karma 1.0, there are no votes but this machine's and the hosts'.
        is_original = votes.statuses and not any(map(votes.can_lease, votes.names))
        if is_original or self._is_sure():
            return
        silent = {name: "it does not answer" for name in votes.voters if name not in votes.statuses}
        why = {**silent, **problems, **{name: each.text for name, each in refusals.items()}}
        if votes.strangers:
            why[f"{votes.strangers} more nodes of this cluster"] = "they are not in this context"
        self._need(f"{votes.needed} of {len(votes.voters) + votes.strangers} nodes", why)

    def _need(self, what: str, problems: Mapping[str, str]) -> None:
        """Go on without a majority if the operator said so. Raises PlaybookError."""
        why = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        text = f"the run lock needs {what}: {why}"
        if not self.is_unverified:
            raise PlaybookError(
                text,
                "nothing was done; make them reachable, or take those that are gone out of the context. If "
                "you know that no one else changes this cluster: --lock-unverified",
                "unreachable",
            )
        self.doubt = text

    @property
    def _files(self) -> int:
        """The votes of nodes that are down: the files on their hosts, which do not run out."""
        return sum(name in self.held for name in self._votes.voters if name not in self._votes.statuses)

    def _is_sure(self) -> bool:
        return self._votes.sure_until(self._files) > self._votes.clock()

    async def check(self) -> None:
        """Raise LostLockError if another run holds the lock, NoMajorityError if that cannot be ruled out."""
        self._is_bound = False
        for answer in await self._read_all(self.held):
            if isinstance(answer, _Seen) and answer.holder.get("claim") != self._claim:
                raise LostLockError(f"the run lock is held by {describe(answer.holder)} now")
        await self._renew()
        if self._lost:
            raise LostLockError(self._lost)
        if self._votes.leases and not self.doubt and not self._is_sure():
            raise NoMajorityError("the majority of the nodes has not answered for too long")

    async def _renew(self) -> None:
        for name, refusal in (await self._votes.renew()).items():
            if refusal.run:
                self._lost = f"the lease of {name} is held by {refusal.run} of {refusal.holder} now"

    async def _keep(self) -> None:
        """Look around from time to time while the run goes on."""
        while not self._lost:
            await asyncio.sleep(self._votes.lease_ms / 1000 / _RENEWALS)
            if not self._is_bound:
                await self.look_around()

    async def look_around(self) -> None:
        """Renew the leases and ask for those not granted yet; `check` fails if another run has one."""
        votes = self._votes
        await self._renew()
        missing = [name for name in votes.voters if name not in votes.leases]
        if missing and not self._lost:
            await votes.look()
            for name in filter(votes.can_lease, missing):
                refusal = await votes.take(name)
                if refusal is not None and refusal.run:
                    self._lost = f"the lease of {name} is held by {refusal.run} of {refusal.holder}"

    def order(self, name: str) -> dict[str, Any]:
        """Return what an order to a node carries, so that it counts under this lock only."""
        lease = self._votes.leases.get(name)
        return {"run": self.holder["run"], **({"lease": lease.number} if lease else {})}

    async def bind(self, name: str) -> str:
        """Let a promotion of a node count only while the majority is sure; returns why it cannot, or ""."""
        if self.doubt or name not in self._votes.leases:
            return ""
        self._is_bound = True
        refusal = await self._votes.bind(name, self._files)
        return refusal.text or f"{refusal.run} holds its lease" if refusal is not None else ""

    async def retake(self, name: str) -> None:
        """Let no order to a node that is still on its way count any more."""
        self._is_bound = False
        if name in self._votes.leases:
            await self._votes.retake(name)

    async def release(self) -> None:
        """Give the lock back where it is held."""
        await self._let_go(dict.fromkeys(self._hosts, _FREE))
        self.held = []

    async def give_up(self) -> None:
        """Leave the lock as it was before it was taken."""
        await self._let_go(self._before)
        self.held = []

    async def park(self) -> None:
        """Keep others away from a run that stopped half-way, and let whoever resumes it in."""
        parked = {**self._mine, "is_parked": True}
        await self._let_go(dict.fromkeys(self._hosts, parked))

    async def _let_go(self, holders: Mapping[str, Mapping[str, Any]]) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        await self._hand_back(holders)
        await self._votes.release()
        self.world.guard = None

    async def note_cooldown(self, seconds: float) -> None:
        """Let the nodes tell every machine for a while that this run replaced a master."""
        await self._votes.note_cooldown(int((time.time() + seconds) * 1000))

    def cooldowns(self) -> dict[str, float]:
        """Return the failovers that nodes told of, with the unix time until which each counts."""
        return self._votes.cooldowns()

    async def break_(self) -> list[Mapping[str, Any]]:
        """Take the lock away from whoever holds it; returns who that was."""
        leased = [_holder_of(refusal) for refusal in await self._votes.break_()]
        answers = dict(zip(self._hosts, await self._read_all(self._hosts), strict=True))
        found = {name: each for name, each in answers.items() if isinstance(each, _Seen) and each.holder}
        await asyncio.gather(*(_answer(self._add(name, each.number, _FREE)) for name, each in found.items()))
        return [*(each.holder for each in found.values())] or [*leased]

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
[ -d "$lock" ] || lock=$home
at=0
for each in "$lock"/*; do each=${each##*/}; [ "$each" -gt "$at" ] 2>/dev/null && at=$each; done
echo "$at"; [ "$at" -eq 0 ] || cat "$lock/$at"
"""
        number, _, text = (await self._script(name, script)).partition("\n")
        return _Seen(int(number), _parsed(text) if int(number) else _FREE)

    async def _add(self, name: str, number: int, holder: Mapping[str, Any]) -> bool:
        """Add a holder after the one of that number; False when somebody else did."""
        entry = self.world.entries[name]
        # Once, for all logins: what follows needs no more rights than anyone has on /tmp.
        as_root = 'sudo -n -- mkdir -p -m 1777 "$lock" 2>/dev/null' if entry.sudo else ""
        script = f"""
[ -d "$lock" ] || mkdir -p "$lock" 2>/dev/null || {as_root or ":"}
[ -d "$lock" ] || {{ lock=$home; mkdir -p "$lock"; }}
[ -d "$lock" ] && printf '%s\\n' {word(json.dumps(holder))} > "$lock/.new.$$" || exit 1
if ln "$lock/.new.$$" "$lock/{number + 1}" 2>"$lock/.why.$$"; then echo added
elif [ -e "$lock/{number + 1}" ]; then echo late
else cat "$lock/.why.$$" >&2; failed=1; fi
rm -f "$lock/.new.$$" "$lock/.why.$$"; exit "${{failed:-0}}"
"""
        return (await self._script(name, script)).strip() == "added"

    async def _script(self, name: str, script: str) -> str:
        key = self._votes.cluster_id or self.cluster
        directory = self.world.entries[name].directory
        home = self.world.host(name).path("locks", key)
        # Where other logins look too. The login's own folder serves where nothing can be put there.
        lock = word(f"{directory}.lock-{key}") if directory else home
        # In braces: a shell that got half of it, because the connection broke, does nothing.
        text = f"{{\numask 002\nhome={home}\nlock={lock}\n{script}\n}}\n"
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


def _holder_of(refusal: Refusal) -> dict[str, Any]:
    return {"run": refusal.run, "lease_of": refusal.holder, "expires_in_ms": refusal.expires_in_ms}


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
    if "lease_of" in holder:
        return "{run} of {lease_of}, for another {seconds:.0f} s unless renewed".format(
            **holder, seconds=holder["expires_in_ms"] / 1000
        )
    return "{run} (epoch {epoch}) of {operator} on {machine}, since {since}".format(**holder)


def names(found: Sequence[Mapping[str, Any]]) -> str:
    """Return holders in words, each once."""
    return "; ".join(dict.fromkeys(map(describe, found)))
