"""Tail salvage: what a node has and the master has not, exported, and sent again where that counts it once.

    lost.jsonl     every entry as a request, with the LSN it had
    replay.jsonl   those that can be sent again: increments, and writes with an idempotency key
    replayed.json  how many of them were answered

Increments without a key get one, so that sending them twice counts once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from karma.offline import losses
from karma_playbooks.actions import Act, NotDoneError
from karma_playbooks.cluster import diverged_at

ADDING = frozenset({"counter.increment", "series.batch_add"})
_NOT_SENT = ("v", "lsn", "op")


class _Line(NamedTuple):
    lsn: int
    entry: Mapping[str, Any]


async def salvage_(act: Act) -> Mapping[str, Any]:
    """Export a branch. Raises NotDoneError when the node still takes writes: the branch would grow."""
    mine = await act.ask("replication.status")
    theirs = await act.ask("replication.status", act.args["master"])
    if mine["role"] == "master" and not mine.get("fenced_by"):
        raise NotDoneError(f"{act.target} takes writes: fence it first")
    lsn = diverged_at(mine, theirs)
    lines: list[_Line] = []
    after = mine["wal_current_lsn"] if lsn is None else lsn - 1
    while page := (await act.ask("replication.entries", after_lsn=after))["entries"]:
        lines += [_Line(found["lsn"], found["entry"]) for found in page]
        after = page[-1]["lsn"]
    expected = 0 if lsn is None else mine["wal_current_lsn"] - lsn + 1
    if len(lines) != expected:
        raise NotDoneError(
            f"{act.target} tells {len(lines)} of its {expected} entries: its log was truncated"
        )
    folder = Path(act.args["folder"])
    count = await asyncio.to_thread(_write, folder, lines, mine["node_id"])
    act.world.say(act.step, act.target, f"{len(lines)} entries, {count} to replay, are in {folder}\n")
    act.found = {"folder": str(folder), **losses.count(cast("Any", lines)).as_json()}
    return {"entries": len(lines), "replayable": count, "has_branch": lsn is not None}


def _write(folder: Path, lines: list[_Line], node_id: str) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    requests = list(losses.requests(cast("Any", lines)))
    again = list(_replayable(requests, node_id))
    (folder / "lost.jsonl").write_bytes(b"".join(requests))
    (folder / "replay.jsonl").write_text("".join(json.dumps(request) + "\n" for request in again))
    return len(again)


def _replayable(requests: list[bytes], node_id: str) -> Iterator[dict[str, Any]]:
    for line in requests:
        request = json.loads(line)
        if request["op"] in ADDING:
            request.setdefault("idempotency_key", f"salvage-{node_id}-{request['lsn']}")
        if "idempotency_key" in request:
            request.pop("granularity", None)
            yield request


async def salvage_good_(act: Act) -> None:
    """Count the lines of the file."""
    path = Path(act.args["folder"]) / "lost.jsonl"
    try:
        found = len(await asyncio.to_thread(_lines, path))
    except (OSError, ValueError) as error:
        raise NotDoneError(f"{path} cannot be read: {error}") from error
    act.found = {"lines": found}
    if found != act.args["entries"]:
        raise NotDoneError(f"{path} holds {found} entries, not {act.args['entries']}")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def replay_(act: Act) -> Mapping[str, Any]:
    """Send what can be sent again. What the master refuses is counted and left in the file."""
    folder = Path(act.args["folder"])
    requests = await asyncio.to_thread(_lines, folder / "replay.jsonl")
    refused = []
    for request in requests:
        fields = {name: value for name, value in request.items() if name not in _NOT_SENT}
        try:
            await act.ask(request["op"], **fields)
        except NotDoneError as error:
            refused.append({"lsn": request["lsn"], "why": str(error)})
    sent = len(requests) - len(refused)
    (folder / "replayed.json").write_text(json.dumps({"sent": sent, "refused": refused}))
    act.world.say(act.step, act.target, f"{sent} of {len(requests)} were sent again\n")
    return {"sent": sent}


async def replayed_(act: Act) -> None:
    """Compare what was answered with what was to be sent."""
    folder = Path(act.args["folder"])
    try:
        done = json.loads((folder / "replayed.json").read_text())
        wanted = len(await asyncio.to_thread(_lines, folder / "replay.jsonl"))
    except (OSError, ValueError) as error:
        raise NotDoneError(f"nothing was sent again yet: {error}") from error
    act.found = {"sent": done["sent"], "refused": len(done["refused"])}
    if done["sent"] + len(done["refused"]) != wanted:
        raise NotDoneError(f"{done['sent']} of {wanted} were answered")
