"""The books on real nodes with real OpenSSH daemons when nothing goes wrong; and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Proxy
from harness import until
from playbooks.fleet import REASON, Fleet, events, journal_text, play, sitting

from karma_events import EventLog, fold
from karma_playbooks.actions import Act, WrongError, function
from karma_playbooks.control import Request
from karma_playbooks.errors import PlaybookError
from karma_playbooks.history import History
from karma_playbooks.library import load_book
from karma_playbooks.transports.ssh import SshShell


def write(fleet: Fleet, name: str, count: int, series: str = "s") -> None:
    for key in range(count):
        fleet.nodes[name].ask("counter.increment", series=series, key=key)


def roles(fleet: Fleet) -> dict[str, str]:
    return {name: node.status()["role"] for name, node in fleet.nodes.items()}


def read_lock(fleet: Fleet, name: str) -> dict[str, Any]:
    """Who holds the lock, as the file next to a node's data directory says; empty for no one."""
    (folder,) = fleet.nodes[name].directory.parent.glob(f"{name}.lock-*")
    newest = max(folder.iterdir(), key=lambda path: int(path.name))
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


def are_equal(fleet: Fleet) -> bool:
    sums = [json.dumps(node.ask("replication.checksum")) for node in fleet.nodes.values()]
    return len(set(sums)) == 1


def test_a_switchover_moves_the_role_and_loses_nothing(fleet: Fleet) -> None:
    write(fleet, "a", 50)
    run, ending = fleet.play("switchover", to="c")
    assert ending == "done", fleet.told
    assert roles(fleet) == {"a": "slave", "b": "slave", "c": "master"}
    assert fleet.nodes["c"].status()["epoch"] == 2
    assert all(fleet.nodes["c"].ask("counter.sum", series="s", key=key) == 1 for key in range(50))
    until(lambda: are_equal(fleet))
    for name, event in (
        ("a", "paused"),
        ("a", "fenced"),
        ("a", "following"),
        ("c", "promoted"),
        ("b", "following"),
    ):
        assert events(fleet.nodes[name]).count(event) == 1, (name, event)
    with fleet.playbooks() as playbooks:
        history = playbooks.journal.history(run)
    assert all(attempt.is_verified for attempt in history.attempts)
    # The lock is given back, and a copy of the journal is on every host.
    for name, each in fleet.sshds.items():
        assert read_lock(fleet, name) == {}
        assert fleet.nodes[name].status()["lease"] is None
        lines = (each.home / ".karma-playbook" / run / "journal.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["data"]["state"] == "done"


def test_a_follower_that_lacks_the_last_entries_is_not_promoted(fleet: Fleet) -> None:
    follower = fleet.nodes["c"]
    with Proxy() as proxy:
        link = proxy.link(lambda: fleet.nodes["a"].port)
        follower.ask("replication.follow", host="127.0.0.1", port=link.port)
        until(lambda: follower.status()["replication_state"] == "following")
        # Nothing arrives any more, which the follower itself finds out much later.
        link.set("hole")
        write(fleet, "a", 5)
        _, ending = fleet.play("switchover", to="c", drain_seconds="1")
        assert ending == "undone", fleet.told
        assert any("c is at LSN 0, not 5" in line for line in fleet.told), fleet.told
        assert roles(fleet) == {"a": "master", "b": "slave", "c": "slave"}
        write(fleet, "a", 1)


def test_a_failover_fences_the_dead_master_on_its_host(fleet: Fleet) -> None:
    write(fleet, "a", 20)
    until(lambda: are_equal(fleet))
    fleet.nodes["a"].kill()
    until(lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"))
    run, ending = fleet.play("failover")
    assert ending == "done", fleet.told
    with EventLog.open(fleet.folder / "events") as log:
        found = list(log.read())
    # Since when nobody could write, the followers knew.
    stopped, resumed = (e.envelope for e in found if e.envelope.event_type.startswith("action.writes_"))
    assert "a follower" in stopped.attrs["by"]
    assert fold(found)[run].unavailable_ms == resumed.ts_ms - stopped.ts_ms > 0
    (new,) = [name for name in "bc" if fleet.nodes[name].status()["role"] == "master"]
    # Whoever starts the old master finds it fenced.
    fleet.nodes["a"].server.restart()
    assert fleet.nodes["a"].status()["fenced_by"]["epoch"] == 2
    assert all(fleet.nodes[new].ask("counter.sum", series="s", key=key) == 1 for key in range(20))


def test_a_failover_is_refused_while_a_follower_still_sees_the_master(fleet: Fleet) -> None:
    entries = fleet.entries()
    world = fleet.world()
    # From here the master cannot be reached; its followers know better.
    world.entries = {**entries, "a": entries["a"]._replace(address="127.0.0.1:1")}
    with fleet.playbooks(world) as playbooks:
        _, ending = sitting(playbooks, lambda: play(playbooks, "failover", {"from": "a"}))
    assert ending == "undone"
    assert roles(fleet) == {"a": "master", "b": "slave", "c": "slave"}


def test_a_live_master_is_not_declared_dead(fleet: Fleet) -> None:
    _, ending = fleet.play("failover", **{"from": "a", "to": "b"})
    assert ending == "undone"
    assert any("answers, so it is not dead" in line for line in fleet.told)
    assert "fenced" not in events(fleet.nodes["a"])


def test_an_unverified_fence_is_in_the_journal_as_unknown(fleet: Fleet) -> None:
    fleet.nodes["a"].kill()
    fleet.sshds["a"].stop()
    until(lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"))
    with pytest.raises(PlaybookError, match="the preflight failed") as refused:
        fleet.play("failover")
    assert "--fence-unverified" in refused.value.advice
    assert roles_of_live(fleet) == {"b": "slave", "c": "slave"}
    run, ending = fleet.play("failover", fence_unverified="yes")
    assert ending == "done", fleet.told
    with fleet.playbooks() as playbooks:
        kinds = [(e.kind, e.data.get("outcome")) for e in playbooks.journal.entries(run)]
    assert ("note", "unknown") in kinds


def roles_of_live(fleet: Fleet) -> dict[str, str]:
    return {name: fleet.nodes[name].status()["role"] for name in "bc"}


def test_a_fence_that_cannot_be_seen_promotes_nobody(fleet: Fleet) -> None:
    fleet.nodes["a"].kill()
    until(lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"))
    # A command that says it fenced the directory, and did nothing.
    with fleet.playbooks(fleet.world(karma_command=("true",))) as playbooks:
        _, ending = sitting(playbooks, lambda: play(playbooks, "failover", {}))
    assert ending == "undone"
    assert any("has no fence for epoch 2" in line for line in fleet.told), fleet.told
    # What was stopped is started again, and must be there to be ended.
    until(lambda: fleet.nodes["a"].pid is not None)
    assert roles_of_live(fleet) == {"b": "slave", "c": "slave"}


def test_a_second_failover_soon_after_is_refused(fleet: Fleet) -> None:
    fleet.nodes["a"].kill()
    until(lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"))
    assert fleet.play("failover")[1] == "done"
    with pytest.raises(PlaybookError, match="often wrong"):
        fleet.play("failover", **{"from": "a", "to": "b"})


def test_no_host_is_asked_while_writers_wait(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = SshShell.script

    async def script(self: SshShell, text: str, on_output: Any = None) -> Any:
        asked.append(time.time_ns() // 1_000_000)
        ran = await real(self, text, on_output)
        asked.append(time.time_ns() // 1_000_000)
        return ran

    monkeypatch.setattr(SshShell, "script", script)
    run, ending = fleet.play("switchover", to="b")
    assert ending == "done"
    with fleet.playbooks() as playbooks:
        entries = playbooks.journal.entries(run)
    began = next(e.unix_ms for e in entries if e.kind == "outcome" and e.data["step"] == "pause")
    ended = next(e.unix_ms for e in entries if e.kind == "intent" and e.data["step"] == "promote")
    assert len(asked) > 10
    assert not [at for at in asked if began < at < ended]


def test_a_master_that_wrote_meanwhile_is_found_out(fleet: Fleet) -> None:
    """The fence's answer has the last LSN there will ever be; it must be the one that was drained."""
    write(fleet, "a", 3)
    world = fleet.world()
    args = {"epoch": 2, "reason": "r", "lsn": 2}
    act = Act(world, History("r"), "karma.fence", "a", args, "fence", "r/fence.1", 5.0)

    async def go() -> None:
        with pytest.raises(WrongError, match="ended at LSN 3, not 2"):
            await function("karma.fence")(act)

    with fleet.playbooks(world) as playbooks:
        sitting(playbooks, go)


# -- What is refused before anything is done -------------------------------------------------------------


def test_a_cluster_that_changed_since_the_plan_is_left_alone(fleet: Fleet) -> None:
    async def go() -> None:
        book = load_book("switchover", Path("/nowhere"))
        shown = await playbooks.plan(book, {"to": "b"})
        fleet.nodes["a"].ask("replication.fence", epoch=5, reason="x")
        fleet.nodes["a"].ask("replication.promote")
        await playbooks.run(book, {"to": "b"}, shown, Request("t", REASON))

    with fleet.playbooks() as playbooks, pytest.raises(PlaybookError, match=r"a: epoch 1 → 6"):
        sitting(playbooks, go)
    assert "paused" not in events(fleet.nodes["a"])


def test_a_loss_above_the_bound_is_refused(fleet: Fleet) -> None:
    fleet.nodes["c"].server.process.send_signal(19)
    write(fleet, "a", 30)
    until(lambda: fleet.nodes["b"].status()["wal_current_lsn"] == 30)
    fleet.nodes["c"].server.process.send_signal(18)
    fleet.nodes["a"].kill()
    until(lambda: fleet.nodes["b"].status()["replication_state"] == "connecting")
    wanted = fleet.nodes["b"].status()["wal_current_lsn"] - fleet.nodes["c"].status()["wal_current_lsn"]
    if not wanted:
        pytest.skip("the stopped follower had everything all the same")
    request = Request("t", REASON, max_loss_entries=wanted - 1)
    with fleet.playbooks() as playbooks, pytest.raises(PlaybookError, match="would lose"):
        sitting(playbooks, lambda: play(playbooks, "failover", {"to": "c"}, request))


def test_a_failover_to_one_that_is_behind_tells_what_it_lacks_by_series(fleet: Fleet) -> None:
    write(fleet, "a", 3)
    until(lambda: are_equal(fleet))
    fleet.nodes["c"].kill()
    write(fleet, "a", 4, "mails")
    write(fleet, "a", 2, "calls")
    until(lambda: fleet.nodes["b"].status()["wal_current_lsn"] == 9)
    fleet.nodes["a"].kill()
    fleet.nodes["c"].server.restart()
    with fleet.playbooks() as playbooks:
        book = load_book("failover", Path("/nowhere"))
        plan = sitting(playbooks, lambda: playbooks.plan(book, {"from": "a", "to": "c"}))
    assert (plan.loss.entries, plan.loss.series) == (6, {"mails": 4, "calls": 2})
    assert plan.loss.series_text == "calls (2), mails (4), and of the rest unknown"
    until(lambda: all(fleet.nodes[name].status()["replication_state"] == "connecting" for name in "bc"))
    # Told what it costs, it is still refused while another one has more.
    assert fleet.play("failover", **{"from": "a", "to": "c"})[1] == "undone"
    assert any("b has more than c: LSN 9 against 3" in line for line in fleet.told), fleet.told


def test_two_runs_at_once_are_kept_apart(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.playbooks() as playbooks:
        held = playbooks._lock("other-run", 1, "somebody else")
        sitting(playbooks, held.acquire)
    with fleet.playbooks(state=tmp_path / "another machine") as playbooks:
        with pytest.raises(PlaybookError, match="somebody else"):
            sitting(playbooks, lambda: play(playbooks, "switchover", {}))
        assert "other-run" in sitting(playbooks, playbooks.unlock)
        assert sitting(playbooks, lambda: play(playbooks, "switchover", {}))[1] == "done"


def test_a_minority_of_hosts_is_no_lock(fleet: Fleet) -> None:
    fleet.sshds["a"].stop()
    fleet.sshds["b"].stop()
    with pytest.raises(PlaybookError, match="needs 2 of 3 hosts"):
        fleet.play("switchover")
    assert "paused" not in events(fleet.nodes["a"])


def test_a_changed_host_key_is_refused(start_fleet: Callable[..., Fleet], sshd: Path) -> None:
    fleet = start_fleet(sshd)
    known = fleet.folder / "known_hosts"
    lines = known.read_text().splitlines()
    # The hosts' keys exchanged: each presents one that is known for another.
    keys = [line.split()[1:] for line in lines]
    places = [line.split()[0] for line in lines]
    exchanged = zip(places, keys[1:] + keys[:1], strict=True)
    known.write_text("".join(f"{place} {' '.join(key)}\n" for place, key in exchanged))
    with pytest.raises(PlaybookError, match="host key of"):
        fleet.play("switchover")


def test_nodes_without_hosts_can_switch_over_too(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(None)
    assert fleet.play("switchover")[1] == "done"


def test_nodes_may_share_a_host(start_fleet: Callable[..., Fleet]) -> None:
    """It has one lock and one copy of the journal, however many nodes."""
    fleet = start_fleet(None)
    folder = fleet.folder / "shared"
    with fleet.playbooks(fleet.world(playbook_directory=str(folder))) as playbooks:
        run, ending = sitting(playbooks, lambda: play(playbooks, "switchover", {}))
        length = len(playbooks.journal.entries(run))
    assert ending == "done"
    assert len((folder / run / "journal.jsonl").read_text().splitlines()) == length


def test_nothing_secret_is_in_the_journal(start_fleet: Callable[..., Fleet], sshd: Path) -> None:
    fleet = start_fleet(sshd)
    assert fleet.play("switchover")[1] == "done"
    text = journal_text(fleet)
    assert "PRIVATE KEY" not in text
    assert (fleet.folder / "id").read_text().splitlines()[2] not in text


# -- Runs as events ------------------------------------------------------------------------------------------


def test_runs_are_events_each_once(fleet: Fleet) -> None:
    done, _ = fleet.play("switchover", to="b")
    failed, ending = fleet.play("rebuild-follower", node="b")
    assert ending == "undone"
    with fleet.playbooks() as playbooks:
        # As a process that died before it could note what it had sent.
        playbooks.journal._db.execute("DELETE FROM emitted")
        playbooks.publish()
    with EventLog.open(fleet.folder / "events") as log:
        records = fold(log.read())
        recorded = list(log.read())
    assert {run: str(record.state) for run, record in records.items()} == {
        done: "SUCCEEDED",
        failed: "FAILED",
    }
    types = [each.envelope.event_type for each in recorded if each.envelope.tags["action_id"] == done]
    for kind in ("requested", "accepted", "started", "writes_stopped", "writes_resumed", "succeeded"):
        assert types.count(f"action.{kind}") == 1, types
    dead = [each.envelope.tags["action_id"] for each in recorded if each.topic == "actions.dlq"]
    assert dead == [failed]
