"""Since when nobody could write, and until when, as far as a run itself can tell. Pure.

All times are of the clock of the machine that carries the run out, so that no two clocks are compared:

- writes stopped when a pause, or a restart of the master, was *ordered*: from then on one may be refused;
- of a master that died, when a follower last had all it had: nobody saw it later than that;
- writes are on again when a node had *acknowledged* its promotion, the end of a pause, or after a restart
  that it takes writes; a pause that ended by itself ended when its time was over.

So a window holds all of the time in which no node took writes, and none of the time in which clients look for
the new master.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from karma_playbooks.history import Entry, History

_RESTARTS = frozenset({"service.restart", "service.stop"})


class Change(NamedTuple):
    """Writes stopped or resumed: when, and how that is known."""

    what: Literal["stopped", "resumed"]
    unix_ms: int
    by: str


@dataclass(slots=True)
class Window:
    """What one run's journal tells, entry by entry."""

    is_open: bool = False

    def take(self, entry: Entry, history: History) -> Change | None:
        """Go on by one entry, which the history has already; returns what it changes."""
        change = self._change(entry, history)
        if change is None or (change.what == "stopped") == self.is_open:
            return None
        self.is_open = change.what == "stopped"
        return change

    def _change(self, entry: Entry, history: History) -> Change | None:
        data, at = entry.data, entry.unix_ms
        match entry.kind:
            case "seen" if (silent_ms := (data.get("output") or {}).get("silent_ms")) is not None:
                return Change("stopped", at - silent_ms, "the last that a follower had all of the master's")
            case "outcome" if data["outcome"] == "done":
                return self._done(entry, history)
            case "evidence":
                step, target, place = data["step"], data["target"], data["place"]
                if doing_of(history, step, target, place).get("action") in _RESTARTS:
                    return Change("resumed", at, "the master takes writes again")
            case "lapsed":
                attempt = history.last(data["step"], data["target"])
                doing = doing_of(history, data["step"], data["target"], -1)
                if attempt is not None and doing.get("action") == "karma.pause":
                    over = attempt.began_unix_ms + int(doing["args"]["ttl_ms"])
                    return Change("resumed", min(at, over), "the pause ended by itself")
        return None

    def _done(self, entry: Entry, history: History) -> Change | None:
        data = entry.data
        doing = doing_of(history, data["step"], data["target"], data["place"])
        attempt = history.last(data["step"], data["target"], data["place"])
        began = attempt.began_unix_ms if attempt is not None else entry.unix_ms
        action = doing.get("action")
        if action == "karma.pause":
            return Change("stopped", began, "the pause was ordered")
        if action in _RESTARTS and data["place"] < 0 and _was_master(history, doing.get("node")):
            return Change("stopped", began, "a restart of the master was ordered")
        if action == "karma.promote":
            return Change("resumed", entry.unix_ms, "the promotion was acknowledged")
        if action == "karma.resume":
            return Change("resumed", entry.unix_ms, "the end of the pause was acknowledged")
        return None


def doing_of(history: History, step: str, target: str, place: int) -> Mapping[str, Any]:
    """Return an attempt's action as the plan has it; `place` in the undo list, -1 is the step itself."""
    for planned in history.header["plan"]["steps"]:
        for work in planned["works"]:
            if (planned["id"], work["target"]) == (step, target):
                found: Mapping[str, Any] = work["doing"] if place < 0 else work["undo"][place]
                return found
    return {}


def _was_master(history: History, name: str | None) -> bool:
    return any(node["name"] == name and node["role"] == "master" for node in history.header["plan"]["nodes"])
