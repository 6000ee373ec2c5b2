"""Actions over the protocol: roles, fences, waiting, evidence."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from karma_client import KarmaError
from karma_playbooks import values
from karma_playbooks.actions import Act, NotDoneError, UnsureError, WrongError
from karma_playbooks.cluster import NodeFacts, rank

_SHORTEST_SECONDS = 0.005
_LONGEST_SECONDS = 0.2
CANARY = "__karma_canary"
_FROM_STATS = ("version", "uptime_seconds")
Progress = Literal["not under way", "being decided", "taken"]
"""Of an order: a node that is deciding may still refuse; what is taken stays so through a restart."""


async def poll(act: Act, look: Callable[[], Awaitable[str]]) -> None:
    """Look until it returns no reason to go on, at most `within_seconds` (once if left out).

    Raises NotDoneError with the last reason, or UnsureError when it could not even be looked at.
    """
    deadline = time.monotonic() + float(act.args.get("within_seconds") or 0)
    seen_at = time.monotonic()
    pause = _SHORTEST_SECONDS
    while True:
        problem: Exception
        try:
            if not (reason := await look()):
                return
            problem = NotDoneError(reason)
        except (NotDoneError, UnsureError) as error:
            problem = error
        now = time.monotonic()
        if isinstance(problem, NotDoneError):
            seen_at = now
        is_blind = act.blind_seconds is not None and now - seen_at > act.blind_seconds
        if now >= deadline or is_blind:
            raise problem
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_SECONDS)


def view(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `karma.expect` can look at, of a replication.status."""
    fence = status.get("fenced_by")
    is_paused = status.get("paused_until") is not None
    return {
        "role": status["role"],
        "epoch": status.get("epoch"),
        "lsn": status["wal_current_lsn"],
        "lag_entries": status.get("replication_lag_entries"),
        "state": status.get("replication_state"),
        "source": status.get("source"),
        "node_id": status.get("node_id"),
        "writable": status["role"] == "master" and not fence and not is_paused,
        "paused": is_paused,
        "fenced": bool(fence),
        "fenced_epoch": fence["epoch"] if fence else None,
        "following": status["role"] == "slave"
        and status.get("replication_state") in {"following", "polling"},
    }


async def expect_(act: Act) -> Mapping[str, Any]:
    """Hold a node's fields against what is wanted."""
    wanted = act.args["is"]

    async def look() -> str:
        found = view(await act.ask("replication.status"))
        if any(name in wanted for name in _FROM_STATS):
            stats = await act.ask("system.stats")
            found |= {name: stats.get(name) for name in _FROM_STATS}
        act.found = found
        wrong = [
            f"{name} is {found[name]!r}, not {value!r}" for name, value in wanted.items()
            if not values.fits(found[name], _source(act, name, value))
        ]  # fmt: skip
        return f"{act.target}: {', '.join(wrong)}" if wrong else ""

    await poll(act, look)
    return {name: act.found[name] for name in ("lsn", "epoch", "role", "fenced_epoch")}


def _source(act: Act, name: str, value: Any) -> Any:
    """A node that is named as a source stands for its address."""
    if name == "source" and isinstance(value, str) and value in act.world.entries:
        host, port = act.world.entries[value].endpoint
        return f"{host}:{port}"
    return value


async def caught_up_(act: Act) -> Mapping[str, Any]:
    """Wait for a follower."""
    allowed = int(act.args.get("entries") or 0)

    async def look() -> str:
        mine, theirs = (
            await act.ask("replication.status"),
            await act.ask("replication.status", act.args["source"]),
        )
        lag = theirs["wal_current_lsn"] - mine["wal_current_lsn"]
        act.found = {
            "lsn": mine["wal_current_lsn"],
            "lag_entries": max(lag, 0),
            "state": view(mine)["state"],
        }
        if not view(mine)["following"]:
            return f"{act.target} is {view(mine)['state']}: {mine.get('replication_reason')}"
        return f"{act.target} is {lag} entries behind, more than {allowed}" if lag > allowed else ""

    await poll(act, look)
    return act.found


async def drain_(act: Act) -> Mapping[str, Any]:
    """Wait until everything has arrived; recovery checkpoints have no LSN and come beside the entries."""
    lsn = act.args["lsn"]
    marks = (await act.ask("recovery.status", act.args["source"]))["checkpoints"]

    async def look() -> str:
        status = await act.ask("replication.status")
        act.found = {"lsn": status["wal_current_lsn"], "wanted": lsn}
        if status["wal_current_lsn"] != lsn:
            return f"{act.target} is at LSN {status['wal_current_lsn']}, not {lsn}"
        mine = (await act.ask("recovery.status"))["checkpoints"]
        missing = [mark["source"] for mark in marks if mark not in mine]
        return f"{act.target} lacks the recovery checkpoints of {', '.join(missing)}" if missing else ""

    await poll(act, look)
    return {"lsn": lsn}


# -- Roles -----------------------------------------------------------------------------------------------


async def pause_(act: Act) -> None:
    """Refuse writes for a while."""
    await act.order("replication.pause", ttl_ms=int(act.args["ttl_ms"]))


async def resume_(act: Act) -> None:
    """End a pause."""
    await act.order("replication.resume")


async def fence_(act: Act) -> Mapping[str, Any]:
    """Refuse writes; the reply leaves when no write is on its way any more, so its LSN is the last."""
    wanted = act.args.get("lsn")
    found = await act.order("replication.fence", epoch=act.args["epoch"], reason=act.args["reason"])
    output = {"lsn": found["wal_current_lsn"]}
    if wanted is not None and found["wal_current_lsn"] != wanted:
        message = (
            f"{act.target} ended at LSN {found['wal_current_lsn']}, not {wanted}: it took writes in between"
        )
        raise WrongError(message, output)
    return output


async def unfence_(act: Act) -> None:
    """Lift a fence; one that is not there needs no lifting."""
    status = await act.ask("replication.status")
    if status.get("fenced_by"):
        force = True if act.args.get("of_any_run") else None
        await act.order("replication.unfence", epoch=act.args["epoch"], force=force)


async def promote_(act: Act) -> Mapping[str, Any]:
    """Make the node master."""
    guard = act.world.guard
    if guard is not None and (problem := await guard.bind(act.target)):
        raise NotDoneError(f"{act.target} is not promoted: {problem}")
    found = await act.order("replication.promote", epoch=act.args.get("epoch"))
    return {"epoch": found["epoch"], "start_lsn": found.get("start_lsn")}


async def follow_(act: Act) -> Mapping[str, Any]:
    """Follow another node."""
    host, port = act.world.entries[act.args["source"]].endpoint
    rebuild = bool(act.args.get("rebuild"))
    found = await act.order("replication.follow", host=host, port=port, rebuild=rebuild or None)
    lost = int(found.get("lost_entries") or 0)
    most = act.args.get("lost_entries")
    if most is not None and lost > most:
        message = f"{act.target} gave up {lost} entries, more than the {most} that were exported"
        raise WrongError(f"{message}: its own folder discarded-… has them", {"lost_entries": lost})
    return {"lost_entries": lost}


async def progress(act: Act) -> Progress:
    """Return how far an order has come that takes its time, when what it leads to is not so yet.

    A node that was told to follow asks its source first, which may take until that answers; then it may fetch
    the source's data for an hour. Raises as `ask` does.
    """
    if act.action != "karma.follow":
        return "not under way"
    status = await act.ask("replication.status")
    source = _source(act, "source", act.args["source"])
    # Whatever is being decided about its role, it may be this.
    if status.get("pending_change") is not None:
        return "being decided"
    if act.args.get("rebuild"):
        # The source says nothing here: it may have been the same before.
        is_taken = status.get("must_rebuild") or status.get("replication_state") == "bootstrapping"
    else:
        is_taken = status["role"] == "slave" and status.get("source") == source
    return "taken" if is_taken else "not under way"


async def snapshot_(act: Act) -> None:
    """Save everything."""
    await act.ask("snapshot.create_all")


async def snapshot_good_(act: Act) -> None:
    """Restore the snapshots aside; that of everything must not be older than asked."""
    most_seconds = act.args.get("max_age_seconds")
    act.found = dict(await act.ask("snapshot.verify"))
    latest = (await act.ask("replication.status"))["latest_snapshots"]
    newest = max((about["timestamp"] for about in latest), default=0)
    now = (await act.ask("system.stats"))["server_time_unix_ms"] / 1000
    if most_seconds is not None and newest and now - newest > most_seconds:
        raise NotDoneError(f"{act.target}: its newest snapshot is {now - newest:.0f} s old")


# -- Evidence --------------------------------------------------------------------------------------------


def _canary_key(run: str) -> int:
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:6])


async def canary_(act: Act) -> Mapping[str, Any]:
    """Count one, under an idempotency key: however often it is sent, it is one."""
    key = _canary_key(act.history.run)
    await act.ask("counter.increment", series=CANARY, key=key, value=1, idempotency_key=act.history.run)
    return {"key": key}


async def canary_seen_(act: Act) -> None:
    """Wait until the node has it."""
    key = _canary_key(act.history.run)

    async def look() -> str:
        value = await act.ask("counter.sum", series=CANARY, key=key)
        act.found = {"value": value}
        return "" if value == 1 else f"{act.target} has {value} in place of the canary's 1"

    await poll(act, look)


async def dead_(act: Act) -> Mapping[str, Any]:
    """Ask the node itself and everybody who should hear from it."""
    silence = ""
    for attempt in range(int(act.args.get("tries") or 3)):
        if attempt:
            await asyncio.sleep(_LONGEST_SECONDS)
        try:
            await act.world.ask(act.target, "system.ping")
        except KarmaError as error:
            silence = str(error)
        else:
            raise NotDoneError(f"{act.target} answers, so it is not dead: use switchover, or fence it first")
    witnesses = {}
    statuses = {}
    for name in act.world.entries:
        if name == act.target:
            continue
        try:
            statuses[name] = await act.world.ask(name, "replication.status")
        except KarmaError:
            witnesses[name] = "does not answer"
    ids = {status.get("node_id") for status in statuses.values()}
    for name, status in statuses.items():
        witnesses[name] = str(status.get("replication_state") or status["role"])
        # By id: an address may be another one from there. Who follows a slave that answers says nothing
        # about the master.
        if view(status)["following"] and status.get("source_node_id") not in ids:
            raise NotDoneError(
                f"{name} still follows {act.target}, which lives: only from here it cannot be reached"
            )
        if status["role"] == "master" and not status.get("fenced_by"):
            raise NotDoneError(f"{name} is master already")
    act.found = {"node": silence, "witnesses": witnesses}
    if all(word == "does not answer" for word in witnesses.values()):
        raise NotDoneError("no other node can be asked: it may be this machine that is cut off")
    # 0 is of a follower that was started since, and does not remember.
    lags_ms = [int(status.get("lag_ms") or 0) for status in statuses.values() if status["role"] == "slave"]
    silent_ms = min(filter(None, lags_ms), default=None)
    return {"witnesses": witnesses, "silent_ms": silent_ms}


async def best_(act: Act) -> Mapping[str, Any]:
    """Compare the node with every other follower."""
    entries = act.world.entries
    mine = NodeFacts(entries[act.target], await act.ask("replication.status"))
    if mine.status.get("must_rebuild"):
        raise NotDoneError(f"{act.target} is being rebuilt and is not complete")
    act.found = {"lsn": mine.lsn, "epoch": rank(mine)[0], "others": {}}
    for name in entries:
        if name == act.target:
            continue
        try:
            other = NodeFacts(entries[name], await act.world.ask(name, "replication.status"))
        except KarmaError:
            continue
        act.found["others"][name] = other.lsn
        if other.role == "slave" and rank(other)[:2] > rank(mine)[:2]:
            raise NotDoneError(f"{name} has more than {act.target}: LSN {other.lsn} against {mine.lsn}")
    return {"lsn": mine.lsn, "epoch": rank(mine)[0]}
