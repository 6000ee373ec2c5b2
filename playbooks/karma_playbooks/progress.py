"""Where each step of a run stands, on each of its targets. Pure: folded from the journal's entries.

While a run is under way here, `begin` and `say` add what no journal holds: that a look was begun, and what
commands print.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from karma_playbooks.history import Attempt, Entry, History
from karma_playbooks.plan import Plan, PlannedStep, Work

OUTPUT_LINES = 500
"""Lines of output that are remembered of each step and target, from the end; and lines for the operator."""
Phase = Literal["waiting", "running", "done", "failed", "unknown", "undoing", "undone", "left out"]
"""failed: it did not work. unknown: nobody knows whether it happened, or whether it worked."""


def _lines() -> deque[str]:
    return deque(maxlen=OUTPUT_LINES)


@dataclass(slots=True)
class Part:
    """One step on one target ("" for a step of no node). Times are unix milliseconds, 0 when not known."""

    step: PlannedStep
    target: str
    work: Work | None
    phase: Phase = "waiting"
    began_unix_ms: int = 0
    ended_unix_ms: int = 0
    error: str = ""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What was looked at last: the evidence."""
    output: deque[str] = field(default_factory=_lines)
    """The last lines that the step's command printed."""

    @property
    def is_busy(self) -> bool:
        """Whether something is being done here."""
        return self.phase in {"running", "undoing"}

    def seconds(self, now_unix_ms: int) -> float | None:
        """Return how long it took, or has taken so far; None when nobody knows."""
        end = now_unix_ms if self.is_busy else self.ended_unix_ms
        return max(end - self.began_unix_ms, 0) / 1000 if self.began_unix_ms and end else None

    def turn(self, phase: Phase, unix_ms: int, error: str = "") -> None:
        """Stand elsewhere from now on."""
        is_beginning = phase in {"running", "undoing"}
        if is_beginning and phase != self.phase:
            self.began_unix_ms, self.ended_unix_ms = unix_ms, 0
        if not is_beginning:
            self.ended_unix_ms = unix_ms
        self.phase, self.error = phase, error


class Progress:
    """A run, from its plan and what happened."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.history = History("")
        self.told = _lines()
        """What the operator was told."""
        self._parts: dict[tuple[str, str], Part] = {}
        for step in plan.steps:
            for work in step.works:
                self._parts[step.id, work.target] = Part(step, work.target, work)
            if not step.works:
                self._parts[step.id, ""] = Part(step, "", None, "left out", error=step.skipped)

    @staticmethod
    def of(entries: Iterable[Entry]) -> Progress:
        """Return the progress that a run's journal tells. Raises StopIteration for an empty one."""
        found = iter(entries)
        first = next(found)
        progress = Progress(Plan.of_json(first.data["plan"]))
        for entry in (first, *found):
            progress.take(entry)
        return progress

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every step on every target, as planned."""
        return tuple(self._parts.values())

    def attempts(self, part: Part) -> list[Attempt]:
        """Return what was tried on a part, in order."""
        return [
            each for each in self.history.attempts if (each.step, each.target) == (part.step.id, part.target)
        ]

    # -- What happens ------------------------------------------------------------------------------------

    def begin(self, step: str, target: str, unix_ms: int) -> None:
        """Something is begun, or begun to be undone, on a target."""
        self._part(step, target).turn("undoing" if self.history.is_undoing else "running", unix_ms)

    def say(self, step: str, target: str, text: str) -> None:
        """A command printed something."""
        self._part(step, target).output.extend(text.splitlines())

    def _part(self, step: str, target: str) -> Part:
        # What this machine does for a step that has nodes is told of the first of them.
        found = self._parts.get((step, target))
        return found or next(part for part in self.parts if part.step.id == step)

    def take(self, entry: Entry) -> None:
        """Go on by one entry of the journal."""
        if not self.history.run:
            self.history = History(entry.run)
        self.history.take(entry)
        if entry.kind == "state":
            if entry.data["state"] != "running":
                self._settle(entry)
            return
        part = self._parts.get((entry.data.get("step", ""), entry.data.get("target", "")))
        if part is not None:
            self._take(part, entry)

    @staticmethod
    def _take(part: Part, entry: Entry) -> None:
        data, at = entry.data, entry.unix_ms
        match entry.kind, data.get("outcome"):
            case "intent", _:
                part.turn("running" if data["place"] < 0 else "undoing", at)
            case "outcome", "done":
                # What was done still has to be seen; what was undone, too.
                part.error = data.get("error", "")
            case "outcome", "failed" | "unknown" as outcome:
                part.turn(outcome, at, data.get("error", ""))
            case "evidence", _:
                part.turn("done", at)
            case "seen", _:
                part.turn("done", at)
                part.found = data.get("found") or {}
            case "lapsed", _:
                is_undone = data["why"] == "undone"
                part.turn("undone" if is_undone else "waiting", at, "" if is_undone else data["why"])

    def _settle(self, entry: Entry) -> None:
        """The run turned round, stopped or ended: say what became of what was under way."""
        why = self.history.why
        for part in self._blamed(why):
            attempt = self.history.last(part.step.id, part.target)
            if part.phase == "undoing":
                part.turn("failed", entry.unix_ms, part.error or why)
            elif attempt is not None and not attempt.has_lapsed and attempt.outcome != "failed":
                is_sure = attempt.outcome == "done" and self.history.is_undoing
                part.turn("failed" if is_sure else "unknown", entry.unix_ms, part.error or why)
            elif why.startswith(f"{part.step.id}: "):
                part.turn("failed", entry.unix_ms, why)
            else:
                part.turn("waiting", entry.unix_ms)

    def _blamed(self, why: str) -> Iterator[Part]:
        """What is busy; without a witness of looks that began, the first one of the step that failed."""
        busy = [part for part in self.parts if part.is_busy]
        yield from busy
        named = [part for part in self.parts if why.startswith(f"{part.step.id}: ")]
        if not busy and not any(part.phase in {"failed", "unknown"} for part in named):
            yield from [part for part in named if part.phase == "waiting"][:1]
