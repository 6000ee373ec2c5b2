"""Where the steps of a run stand, and how that is told: from journals alone, and with what a witness adds."""

import pytest
from playing import FAILED, NOON_MS, RUN, Noted, chained, planned, switched, undone_restart

from karma_playbooks.progress import OUTPUT_LINES, Progress
from karma_playbooks.wording import consent, plain, plan_lines, run_words
from karma_tui import run_views
from karma_tui.player import Wish


def progress_of(noted: list[Noted]) -> Progress:
    return Progress.of(chained(RUN, noted, NOON_MS))


def phases(progress: Progress) -> dict[str, str]:
    return {run_views.part_key(part): part.phase for part in progress.parts}


def attempted(step: str, target: str, outcome: str, error: str = "", place: int = -1) -> list[Noted]:
    tried = {"step": step, "target": target, "attempt": 1, "place": place}
    return [
        ("intent", {**tried, "action": "", "command": ""}),
        ("outcome", {**tried, "outcome": outcome, "output": {}, "error": error}),
    ]


def state(name: str, why: str = "") -> Noted:
    return "state", {"state": name, "why": why}


def test_a_journal_tells_what_is_done_runs_and_waits() -> None:
    found = phases(progress_of(switched(7)))
    assert found["fit db2"] == found["fence db1"] == "done"
    assert found["repoint-others db3"] == "running"
    assert found["seen db1"] == found["seen db3"] == "waiting"
    assert set(phases(progress_of(switched(99))).values()) == {"done"}


def test_seconds_run_on_while_something_is_done_and_stop_with_it() -> None:
    progress = progress_of(switched(7))
    parts = {run_views.part_key(part): part for part in progress.parts}
    begun = parts["repoint-others db3"].began_unix_ms
    assert parts["repoint-others db3"].seconds(begun + 4200) == 4.2
    assert parts["promote db2"].seconds(begun + 99_000) == 1.0
    # When a look began, no journal says.
    assert parts["fit db2"].seconds(begun) is None
    progress.begin("seen", "db1", begun)
    assert parts["seen db1"].seconds(begun + 10) == 0.01


def test_an_open_attempt_of_a_run_that_stopped_is_unknown() -> None:
    progress = progress_of([*switched(7), state("paused", "nobody knows whether repoint-others happened")])
    assert phases(progress)["repoint-others db3"] == "unknown"


def test_what_was_done_and_not_seen_is_unknown_and_failed_once_it_is_undone() -> None:
    done = [*switched(1), *attempted("pause", "db1", "done")[1:]]
    assert phases(progress_of([*done, state("paused", "it cannot be seen")]))["pause db1"] == "unknown"
    assert phases(progress_of([*done, state("undoing", "pause: still writable")]))["pause db1"] == "failed"


def test_undoing_takes_back_step_by_step() -> None:
    noted = [*switched(2), state("undoing", "still: db1: role is 'slave', not 'master'")]
    assert phases(progress_of(noted))["still db1"] == "failed"
    noted += attempted("pause", "db1", "done", place=0)
    progress = progress_of(noted)
    assert phases(progress)["pause db1"] == "undoing"
    assert phases(progress_of([*noted, state("paused", "cannot be seen")]))["pause db1"] == "failed"
    lapsed = {"step": "pause", "target": "db1", "attempt": 1, "place": -1}
    noted += [("lapsed", {**lapsed, "why": "undone"}), state("undone", "still: …")]
    assert phases(progress_of(noted))["pause db1"] == "undone"
    noted[-2] = ("lapsed", {**lapsed, "why": "it no longer held"})
    assert phases(progress_of(noted))["pause db1"] == "waiting"


def test_a_look_that_was_broken_off_waits_again() -> None:
    progress = progress_of(switched(2))
    progress.begin("still", "db1", NOON_MS)
    assert phases(progress)["still db1"] == "running"
    entries = chained(RUN, [*switched(2), state("paused", "the operator stopped it")], NOON_MS)
    progress.take(entries[-1])
    assert phases(progress)["still db1"] == "waiting"


def test_of_a_look_that_failed_one_target_is_blamed() -> None:
    found = phases(Progress.of(chained(FAILED, undone_restart(), NOON_MS)))
    assert (found["followers db2"], found["followers db3"]) == ("failed", "waiting")
    assert found["master "] == "left out"


def test_a_failed_attempt_that_is_tried_again_runs() -> None:
    noted = [*switched(1), *attempted("pause", "db1", "failed", "refused")[1:]]
    progress = progress_of(noted)
    assert phases(progress)["pause db1"] == "failed"
    again = {"step": "pause", "target": "db1", "attempt": 2, "place": -1, "action": "", "command": ""}
    assert phases(progress_of([*noted, ("intent", again)]))["pause db1"] == "running"


def test_output_is_kept_from_its_end() -> None:
    progress = progress_of(switched(7))
    progress.say("repoint-others", "db3", "".join(f"line {number}\n" for number in range(OUTPUT_LINES + 5)))
    (part,) = [part for part in progress.parts if part.step.id == "repoint-others"]
    assert len(part.output) == OUTPUT_LINES
    lines = [plain(line) for line in run_views.part_lines(progress, part)]
    assert lines[-1] == f"  | line {OUTPUT_LINES + 4}"
    table = run_views.parts(progress, NOON_MS, "running")
    (row,) = [row for row in table.rows if row.key == "repoint-others db3"]
    assert row.cells[-1] == f"line {OUTPUT_LINES + 4}"


@pytest.mark.parametrize("ticket", ["", "OPS-1"])
def test_the_command_of_a_plan_says_everything_that_was_filled_in(ticket: str) -> None:
    found = planned(Wish("switchover", {"max_lag": "5000"}, "kernel update", ticket))
    words = ("--ticket", ticket) if ticket else ()
    assert found.words == (
        *("playbook", "run", "switchover", "--param", "max_lag=5000", "--param", "to=db2"),
        *("--reason", "kernel update", *words, "--plan-hash", found.plan.hash),
    )
    assert run_words("mine.yml", {}, found.plan, "x", "")[2] == "mine.yml"


def test_a_plan_says_what_is_at_stake_before_its_steps() -> None:
    plan = planned(Wish("switchover", {})).plan
    summary = [plain(line) for line in run_views.plan_summary(plan)]
    assert summary[0] == "loses nothing"
    assert f"point of no return: promote; hash {plan.hash}" in summary[1]
    assert summary[2].startswith("warning: db4 (db4:8080) does not answer")
    text = "\n".join(plain(line) for line in plan_lines(plan))
    assert "NO UNDO clients write to the new master" in text
    assert "undo    replication.resume at db1" in text
    assert consent(plan) == "run switchover on prod; it loses nothing"
