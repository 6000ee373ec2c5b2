"""What a run has done so far, read from its journal's entries. Pure: the same entries tell the same story.

An attempt is `open` between its intent and a sure outcome: then nobody knows whether it happened, and
somebody has to look before anything is done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal["done", "failed", "unknown"]
"""failed: it surely did not happen. unknown: it may have."""
State = Literal["requested", "running", "undoing", "done", "undone", "paused", "superseded"]
"""superseded: another node became master meanwhile, so that nothing is left to do or to take back."""
Cause = Literal["failure", "operator"]
"""Why a run is taken back: a step failed, or the operator called it off."""
FINAL = frozenset({"done", "undone", "superseded"})
GENESIS = "0" * 64


class Entry(NamedTuple):
    """One line of a run's journal. `digest` chains it to the one before."""

    run: str
    number: int
    unix_ms: int
    kind: str
    data: Mapping[str, Any]
    digest: str

    def line(self) -> str:
        """Return it as a line of JSON, as it travels between machines."""
        return json.dumps(self._asdict(), ensure_ascii=False, sort_keys=True)


def digest_of(before: str, run: str, number: int, unix_ms: int, kind: str, data: Mapping[str, Any]) -> str:
    """Return an entry's digest: SHA-256 over the digest before it and its own canonical JSON."""
    text = json.dumps([before, run, number, unix_ms, kind, data], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def broken_at(entries: Iterable[Entry]) -> int | None:
    """Return the number of the first entry that does not follow from the one before, None if all do."""
    before, expected = GENESIS, 1
    for entry in entries:
        wanted = digest_of(before, entry.run, entry.number, entry.unix_ms, entry.kind, entry.data)
        if entry.number != expected or entry.digest != wanted:
            return expected
        before, expected = entry.digest, expected + 1
    return None


@dataclass(slots=True)
class Attempt:
    """One try to carry out an action on a target. `place` in the step's undo list; -1 is the step itself."""

    step: str
    target: str
    number: int
    place: int = -1
    outcome: Outcome | None = None
    output: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    is_verified: bool = False
    has_lapsed: bool = False
    began_unix_ms: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it may or may not have happened."""
        return self.outcome in (None, "unknown")


@dataclass(slots=True)
class History:
    """A run. `header` is what was requested; `epoch` counts who carried it out, one after another."""

    run: str
    header: Mapping[str, Any] = field(default_factory=dict)
    state: State = "requested"
    is_undoing: bool = False
    """Whether it was turned round; a run that stopped on its way back goes on back."""
    why: str = ""
    cause: Cause = "failure"
    epoch: int = 0
    began_unix_ms: int = 0
    ended_unix_ms: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ruler: str | None = None
    """Of a superseded run: the node that is master instead, if there is one."""
    rejoin: tuple[str, ...] = ()
    """Of a superseded run: the nodes that are to follow the master again, with their tails saved."""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What steps gave back, by step; of several targets the last."""
    length: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in FINAL

    def last(self, step: str, target: str, place: int = -1) -> Attempt | None:
        """Return the newest attempt."""
        found = [a for a in self.attempts if (a.step, a.target, a.place) == (step, target, place)]
        return found[-1] if found else None

    def happened(self, step: str, target: str) -> bool:
        """Return whether the step's own action is known to have happened, and still counts."""
        attempt = self.last(step, target)
        return attempt is not None and attempt.outcome == "done" and not attempt.has_lapsed

    def open_attempts(self) -> list[Attempt]:
        """Return those of which nobody knows whether they happened."""
        return [attempt for attempt in self.attempts if attempt.is_open]

    def take(self, entry: Entry) -> None:
        """Go on by one entry."""
        data = entry.data
        self.length = entry.number
        self.ended_unix_ms = entry.unix_ms
        match entry.kind:
            case "requested":
                self.header, self.began_unix_ms = data, entry.unix_ms
            case "accepted":
                self.epoch = data["epoch"]
            case "intent":
                about = data["step"], data["target"], data["attempt"], data["place"]
                self.attempts.append(Attempt(*about, began_unix_ms=entry.unix_ms))
            case "outcome":
                attempt = self._attempt(data)
                attempt.outcome, attempt.error = data["outcome"], data.get("error", "")
                attempt.output = data.get("output") or {}
                if attempt.outcome == "done" and attempt.place < 0:
                    self.outputs.setdefault(attempt.step, {}).update(attempt.output)
            case "evidence":
                self._attempt(data).is_verified = True
            case "lapsed":
                self._attempt(data).has_lapsed = True
            case "seen":
                self.outputs.setdefault(data["step"], {}).update(data.get("output") or {})
            case "note":
                self.notes.append(data["text"])
            case "state":
                self.state, self.why = data["state"], data.get("why", "")
                self.cause = data.get("cause", self.cause)
                self.ruler, self.rejoin = data.get("ruler"), tuple(data.get("rejoin", ()))
                self.is_undoing = self.state == "undoing" or (self.is_undoing and self.state == "paused")

    def _attempt(self, data: Mapping[str, Any]) -> Attempt:
        for attempt in reversed(self.attempts):
            about = attempt.step, attempt.target, attempt.number, attempt.place
            if about == (data["step"], data["target"], data["attempt"], data["place"]):
                return attempt
        raise ValueError(f"entry about {data['step']} without its intent")


def fold(run: str, entries: Iterable[Entry]) -> History:
    """Return what entries tell."""
    history = History(run)
    for entry in entries:
        history.take(entry)
    return history
