"""The books beside switchover and failover, on real nodes and hosts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from harness import Server, until
from playbooks.fleet import Fleet, events, play, sitting
from playbooks.test_books import are_equal, write

from karma_playbooks.catalog import service_argv
from karma_playbooks.inventory import Entry


def pids(fleet: Fleet) -> dict[str, int | None]:
    return {name: node.pid for name, node in fleet.nodes.items()}


def test_a_follower_is_rebuilt(fleet: Fleet) -> None:
    write(fleet, "a", 30)
    _, ending = fleet.play("rebuild-follower", node="b")
    assert ending == "done", fleet.told
    until(lambda: are_equal(fleet))
    assert list(fleet.nodes["b"].directory.glob("discarded-*"))


def test_the_master_is_never_rebuilt(fleet: Fleet) -> None:
    write(fleet, "a", 3)
    for book in ("rebuild-follower", "rejoin-old-master"):
        assert fleet.play(book, node="a")[1] == "undone"
    assert fleet.nodes["a"].status()["role"] == "master"


def test_an_old_master_s_tail_is_saved_and_replayed_once(fleet: Fleet) -> None:
    old, new = fleet.nodes["a"], fleet.nodes["b"]
    write(fleet, "a", 5)
    until(lambda: are_equal(fleet))
    # The followers hear nothing more; the master goes on alone, and dies.
    for name in "bc":
        fleet.nodes[name].kill()
    old.ask("counter.increment", series="s", key=100, value=7)
    old.ask("counter.increment", series="s", key=101, value=1, idempotency_key="mine")
    old.ask("series.batch_add", series="s", items=[[102, 20260505, 3]])
    old.ask("counter.decrement", series="s", key=1, value=1)
    old.kill()
    for name in "bc":
        fleet.nodes[name].server.restart()
    new.ask("replication.promote")
    fleet.nodes["c"].ask("replication.follow", host="127.0.0.1", port=new.port)
    old.server.restart()
    until(lambda: old.status()["fenced_by"] is not None)
    run, ending = fleet.play("rejoin-old-master", node="a", replay="yes")
    assert ending == "done", fleet.told
    folder = fleet.state / run
    lost = [json.loads(line) for line in (folder / "lost.jsonl").read_text().splitlines()]
    assert [entry["op"] for entry in lost] == [
        "counter.increment", "counter.increment", "series.batch_add", "counter.decrement",
    ]  # fmt: skip
    assert json.loads((folder / "replayed.json").read_text()) == {"sent": 3, "refused": []}
    sums = [new.ask("counter.sum", series="s", key=key) for key in (100, 101, 102, 1)]
    # The decrement is in the file, for a person to judge.
    assert sums == [7, 1, 3, 1]
    until(lambda: are_equal(fleet))


def test_followers_are_restarted_one_after_another(fleet: Fleet) -> None:
    before = pids(fleet)
    _, ending = fleet.play("rolling-restart", with_master="yes")
    assert ending == "done", fleet.told
    after = pids(fleet)
    assert all(after[name] not in (None, before[name]) for name in "abc")
    assert fleet.nodes["a"].status()["role"] == "master"


def test_an_upgrade_that_brings_another_version_is_taken_back(fleet: Fleet) -> None:
    marks = fleet.folder / "installed"
    params = {
        "command": f"{sys.executable} -c \"open('{marks}', 'a').write('new ')\"",
        "back": f"{sys.executable} -c \"open('{marks}', 'a').write('old ')\"",
    }
    _, ending = fleet.play("rolling-upgrade", version="2.0.0", **params)
    assert ending == "done", fleet.told
    assert marks.read_text() == "new new "


def test_no_more_hosts_at_once_than_allowed(start_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    fleet, mark = start_fleet(None), tmp_path / "mark"
    path = tmp_path / "all.yml"
    script = f"echo in >> {mark}; sleep 0.5; echo out >> {mark}"
    path.write_text(
        "playbook: all\ntitle: t\nloses: nothing\nsteps:\n"
        "  - id: all\n    targets: {ref: cluster.nodes}\n    action: ssh.exec\n    parallel: 8\n"
        f"    args: {{argv: [sh, -c, {json.dumps(script)}]}}\n"
        "    verify:\n      - {action: ssh.check, args: {argv: ['true']}}\n    irreversible: it is a mark\n"
    )
    world = fleet.world()
    world.max_hosts = 1
    with fleet.playbooks(world) as playbooks:
        _, ending = sitting(playbooks, lambda: play(playbooks, str(path), {}))
    assert ending == "done", fleet.told
    assert mark.read_text().split() == ["in", "out"] * 3


def test_a_backup_is_checked_and_can_be_started(fleet: Fleet, tmp_path: Path) -> None:
    write(fleet, "a", 25)
    until(lambda: are_equal(fleet))
    folder = tmp_path / "backup"
    _, ending = fleet.play("backup-and-verify", folder=str(folder))
    assert ending == "done", fleet.told
    with Server(folder) as server:
        assert [server.ask("counter.sum", series="s", key=key) for key in range(25)] == [1] * 25
    _, ending = fleet.play("backup-and-verify", folder=str(folder))
    assert ending != "done"
    assert any("is there already" in line for line in fleet.told)


def test_a_node_is_fenced_and_unfenced(fleet: Fleet) -> None:
    assert fleet.play("fence", node="a")[1] == "done"
    assert fleet.nodes["a"].status()["fenced_by"]["epoch"] == 2
    assert fleet.play("unfence", node="a")[1] == "done"
    assert fleet.nodes["a"].status()["fenced_by"] is None


def test_nobody_is_unfenced_beside_another_master(fleet: Fleet) -> None:
    assert fleet.play("switchover", to="b")[1] == "done"
    fleet.nodes["c"].ask("replication.promote")
    assert events(fleet.nodes["c"]).count("promoted") == 1
    until(lambda: fleet.nodes["b"].status()["fenced_by"] is not None)
    assert fleet.play("unfence", node="b")[1] == "undone"


# -- systemd, by a stand-in that records what it is told: no test here starts a real unit


def test_systemd_is_told_what_to_do(start_fleet: Callable[..., Fleet], sshd: Path) -> None:
    fleet = start_fleet(sshd)
    for name, each in fleet.sshds.items():
        folder = each.folder / "bin"
        folder.mkdir()
        script = folder / "systemctl"
        process = Entry(
            name, fleet.nodes[name].address, directory=str(fleet.nodes[name].directory), service="process",
            service_command=fleet.nodes[name].service_command,
        )  # fmt: skip
        # It carries the order out as a process would be, so that the book's checks see a real server.
        words = " ".join(f"'{word}'" for word in service_argv("VERB", process)[4:])
        body = service_argv("VERB", process)[2]
        text = f'#!/bin/sh\necho "$@" >> {each.folder}/told\nverb=$1; [ "$verb" = is-active ] && verb=is\n'
        (folder / "backend").write_text(body)
        script.write_text(f'{text}exec sh {folder}/backend "$verb" {words.partition(" ")[2]}\n')
        script.chmod(0o755)
    world = fleet.world(service="karma.service")
    fleet.world = lambda **_: world  # type: ignore[method-assign]
    _, ending = fleet.play("rolling-restart")
    assert ending == "done", fleet.told
    told = {name: (each.folder / "told").read_text() for name, each in fleet.sshds.items() if name != "a"}
    assert all(
        text.startswith("restart karma.service\nis-active karma.service\n") for text in told.values()
    ), told
    assert not (fleet.sshds["a"].folder / "told").exists()
