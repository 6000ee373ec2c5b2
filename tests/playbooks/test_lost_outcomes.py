"""What is made of an order whose answer was lost: looked at, waited for while under way, never repeated."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from playbooks.fleet import Fleet, Node, events, play, sitting

from karma_playbooks import runner
from karma_playbooks.actions import Act, UnsureError
from karma_playbooks.actions import karma as actions
from karma_playbooks.errors import PlaybookError
from karma_playbooks.history import Entry, History
from karma_playbooks.journal import JournalError

BOOK = """\
playbook: repoint
title: One node follows another one.
loses: nothing
params:
  node: {kind: node, help: the node}
  source: {kind: node, help: whom it follows}
steps:
  - id: repoint
    targets: {ref: params.node}
    action: karma.follow
    args: {source: {ref: params.source}}
    timeout: 60
    verify:
      - action: karma.expect
        args: {is: {following: true, source: {ref: params.source}}, within_seconds: 30}
    irreversible: the old source is gone
"""

HALTING = """\
playbook: halting
title: Halts behind its point of no return until somebody promotes b.
loses: nothing
steps:
  - id: canary
    targets: {ref: cluster.master}
    action: karma.canary
    verify:
      - {action: karma.canary_seen}
    irreversible: it stays
  - id: promoted
    targets: [b]
    action: karma.expect
    args: {is: {role: master}}
"""


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_SHOWING_SECONDS", 0.3)


def repoint(fleet: Fleet, tmp_path: Path) -> tuple[str, History]:
    """Let c follow b by a playbook."""
    path = tmp_path / "repoint.yml"
    path.write_text(BOOK)
    params = {"node": "c", "source": "b"}
    with fleet.playbooks() as playbooks:
        run, ending = sitting(playbooks, lambda: play(playbooks, str(path), params))
        return ending, playbooks.journal.history(run)


def hold_up(node: Node) -> None:
    """Let a node answer nobody for a while."""
    process = node.server.process
    process.send_signal(signal.SIGSTOP)
    threading.Timer(3.0, process.send_signal, (signal.SIGCONT,)).start()


def is_waited_for(fleet: Fleet, tmp_path: Path) -> None:
    """Carry out a follow that loses its answer: it is done once, and seen to be."""
    ending, history = repoint(fleet, tmp_path)
    assert ending == "done", fleet.told
    assert any("is under way" in line for line in fleet.told), fleet.told
    assert [(each.outcome, each.is_verified) for each in history.attempts] == [("done", True)]


def test_a_follow_that_takes_longer_than_the_look_is_under_way(
    start_fleet: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = start_fleet(None)
    real = actions.follow_

    async def follow(act: Act) -> Any:
        # The node asks its source first, which does not answer for long.
        hold_up(fleet.nodes["b"])
        try:
            async with asyncio.timeout(0.5):
                return await real(act)
        except TimeoutError:
            raise UnsureError("the connection broke") from None

    monkeypatch.setattr(actions, "follow_", follow)
    before = events(fleet.nodes["c"]).count("following")
    is_waited_for(fleet, tmp_path)
    assert events(fleet.nodes["c"]).count("following") == before + 1


def test_a_source_whose_data_take_long_to_fetch_is_waited_for(
    start_fleet: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = start_fleet(None)
    real = actions.follow_

    async def follow(act: Act) -> Any:
        await real(act)
        # The order is in force; whoever takes it up hears nothing for a while, as from a large bootstrap.
        hold_up(fleet.nodes["b"])
        fleet.nodes["c"].kill()
        fleet.nodes["c"].server.restart()
        raise UnsureError("the connection broke")

    monkeypatch.setattr(actions, "follow_", follow)
    is_waited_for(fleet, tmp_path)


def test_nothing_is_done_that_the_journal_cannot_take_in(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(None)
    node = fleet.nodes["a"]
    with fleet.playbooks() as playbooks:
        append = playbooks.journal.append

        def refuse(run: str, kind: str, data: Mapping[str, Any]) -> Entry:
            if kind == "intent":
                (pages,) = playbooks.journal._db.execute("PRAGMA page_count").fetchone()
                playbooks.journal._db.execute(f"PRAGMA max_page_count = {pages}")
                data = {**data, "command": "x" * 100_000}
            return append(run, kind, data)

        playbooks.journal.append = refuse  # type: ignore[method-assign]
        with pytest.raises(JournalError):
            sitting(playbooks, lambda: play(playbooks, "fence", {"node": "a"}))
    assert "fenced" not in events(node)


def test_of_two_machines_that_went_on_with_a_run_the_second_is_refused(
    start_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = start_fleet(None)
    path = tmp_path / "halting.yml"
    path.write_text(HALTING)
    with fleet.playbooks() as first, fleet.playbooks(state=tmp_path / "second") as second:
        run, ending = sitting(first, lambda: play(first, str(path), {}))
        assert ending == "paused"
        fleet.nodes["b"].ask("replication.promote")
        # Something that the first one noted, and no host heard of before another machine took over.
        mine = first.journal.append(run, "note", {"text": "alone"})
        assert sitting(second, lambda: second.resume(run, "tester")) == "done"
        with pytest.raises(PlaybookError, match=f"part at entry {mine.number}"):
            sitting(first, lambda: first.resume(run, "tester", takeover=True))


def test_a_follow_that_never_arrived_is_not_taken_for_one_under_way(
    start_fleet: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def vanish(act: Act) -> None:
        raise UnsureError("the connection broke")

    monkeypatch.setattr(actions, "follow_", vanish)
    fleet = start_fleet(None)
    ending, history = repoint(fleet, tmp_path)
    assert ending == "undone", fleet.told
    assert [each.outcome for each in history.attempts] == ["failed"]
    assert fleet.nodes["c"].status()["source"] == fleet.nodes["a"].address
