"""When nobody could write, from journals of every kind of run."""

from __future__ import annotations

from typing import Any

import pytest

from karma_playbooks.history import Entry, History
from karma_playbooks.window import Window

PAUSE = {"action": "karma.pause", "node": "a", "args": {"ttl_ms": 15_000}}
STEPS = {
    "dead": ({"action": "karma.dead", "node": "a", "args": {}}, []),
    "pause": (PAUSE, [{"action": "karma.resume", "node": "a", "args": {}}]),
    "restart": ({"action": "service.restart", "node": "a", "args": {}}, []),
    "restart-b": ({"action": "service.restart", "node": "b", "args": {}}, []),
    "promote": ({"action": "karma.promote", "node": "b", "args": {}}, []),
}
PLAN = {
    "nodes": [{"name": "a", "role": "master"}, {"name": "b", "role": "slave"}],
    "steps": [
        {"id": step, "works": [{"target": doing["node"], "doing": doing, "undo": undo}]}
        for step, (doing, undo) in STEPS.items()
    ],
}


def entry(at: int, kind: str, step: str = "", place: int = -1, number: int = 1, **data: Any) -> Entry:
    target = STEPS[step][0]["node"] if step else ""
    about = {"step": step, "target": target, "attempt": number, "place": place}
    return Entry("r", 1, at, kind, {**about, **data} if step else data, "")


def done(began: int, ended: int, step: str, place: int = -1, number: int = 1) -> list[Entry]:
    return [
        entry(began, "intent", step, place, number),
        entry(ended, "outcome", step, place, number, outcome="done"),
    ]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([*done(10, 20, "pause"), *done(30, 45, "promote")], [("stopped", 10), ("resumed", 45)]),
        # Taken back: the fence's own undo comes before, and says nothing about writes.
        ([*done(10, 20, "pause"), *done(30, 35, "pause", 0)], [("stopped", 10), ("resumed", 35)]),
        # It ended by itself while nobody carried the run out, and was ordered anew by who went on.
        (
            [
                *done(10, 20, "pause"),
                entry(60_000, "lapsed", "pause", why="it ended"),
                *done(60_010, 60_020, "pause", number=2),
                *done(60_030, 60_050, "promote"),
            ],
            [("stopped", 10), ("resumed", 15_010), ("stopped", 60_010), ("resumed", 60_050)],
        ),
        # Nobody knew at first; then it was seen that it had not happened.
        (
            [
                entry(10, "intent", "pause"),
                entry(20, "outcome", "pause", outcome="unknown"),
                entry(30, "outcome", "pause", outcome="failed"),
            ],
            [],
        ),
        (
            [
                entry(9_000, "seen", "dead", output={"witnesses": {}, "silent_ms": 4_000}),
                entry(9_500, "seen", "dead", output={"witnesses": {}, "silent_ms": 4_500}),
                *done(9_600, 9_700, "promote"),
            ],
            [("stopped", 5_000), ("resumed", 9_700)],
        ),
        (
            [entry(9_000, "seen", "dead", output={"silent_ms": None}), *done(9_600, 9_700, "promote")],
            [],
        ),
        (
            [*done(10, 500, "restart"), entry(700, "evidence", "restart")],
            [("stopped", 10), ("resumed", 700)],
        ),
        ([*done(10, 500, "restart-b"), entry(700, "evidence", "restart-b")], []),
    ],
)
def test_when_nobody_could_write(entries: list[Entry], expected: list[tuple[str, int]]) -> None:
    history, window = History("r", {"plan": PLAN}), Window()
    found = []
    for each in entries:
        history.take(each)
        if (change := window.take(each, history)) is not None:
            found.append((change.what, change.unix_ms))
    assert found == expected
