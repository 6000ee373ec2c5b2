"""What keeps a run from beginning: each cause on real hosts, and nothing is changed on any node."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playbooks.fleet import Fleet, Sshd
from playbooks.test_cli import Desk

from karma_playbooks.cluster import Clock, Cluster, HostFacts, NodeFacts
from karma_playbooks.inventory import Entry
from karma_playbooks.preflight import Needs, checks

Inject = Callable[[Fleet, Path], dict[str, dict[str, Any]]]
"""Breaks something about b's host, or returns what a context would wrongly say of nodes."""


def put_program(host: Sshd, name: str, text: str) -> None:
    path = host.folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def host_is_down(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del folder
    fleet.sshds["b"].stop()
    return {}


def host_key_changed(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del folder
    path = fleet.folder / "known_hosts"
    theirs = fleet.sshds["c"].known_host.split()[1:]
    lines = [line.split() for line in path.read_text().splitlines()]
    wrong = fleet.sshds["b"].known_host.split()[0]
    path.write_text(
        "".join(" ".join([host, *(theirs if host == wrong else key)]) + "\n" for host, *key in lines)
    )
    return {}


def key_is_refused(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del folder
    (fleet.sshds["b"].folder / "authorized_keys").write_text("")
    return {}


def config_is_broken(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del fleet
    (folder / ".ssh").mkdir(parents=True, exist_ok=True)
    (folder / ".ssh" / "config").write_text("Port many\n")
    return {}


def login_runs_no_shell(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del folder
    keys = fleet.sshds["b"].folder / "authorized_keys"
    keys.write_text(f'command="echo not today; exit 1" {keys.read_text()}')
    return {}


def no_setsid(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    programs = folder / "programs"
    programs.mkdir(parents=True)
    for name in ("sh", "date", "df", "awk", "test", "true"):
        (programs / name).symlink_to(str(shutil.which(name)))
    keys = fleet.sshds["b"].folder / "authorized_keys"
    keys.write_text(f'command="PATH={programs} exec sh -s" {keys.read_text()}')
    return {}


def sudo_refuses(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del folder
    put_program(fleet.sshds["b"], "sudo", "echo 'sudo: a password is required' >&2; exit 1")
    return {"b": {"sudo": True}}


def wrong_directory(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del fleet
    return {"b": {"directory": str(folder / "not-there")}}


def no_rights(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    """A login that is not the user that runs karma: root may write anywhere, so the tests' sudo is nobody."""
    del folder
    if os.geteuid() != 0:
        return {"b": {"directory": "/usr"}}
    drop = 'while [ "$1" != -- ]; do shift; done; shift\nexec setpriv --reuid 65534 --clear-groups "$@"'
    put_program(fleet.sshds["b"], "sudo", drop)
    return {"b": {"sudo": True, "directory": "/usr"}}


def no_karma(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del fleet, folder
    return {"b": {"karma_command": ("no-such-karma",)}}


def other_day(fleet: Fleet, folder: Path) -> dict[str, dict[str, Any]]:
    del folder
    put_program(fleet.sshds["b"], "date", 'exec /bin/date --date "2 days ago" "$@"')
    return {}


CAUSES: dict[str, tuple[str, str, Inject]] = {
    "config": ("rolling-restart", "Port", config_is_broken),
    "reachable": ("rolling-restart", "cannot be reached", host_is_down),
    "host key": ("rolling-restart", "the host key of", host_key_changed),
    "key": ("rolling-restart", "accepts none of the keys", key_is_refused),
    "shell": ("rolling-restart", "printed: not today", login_runs_no_shell),
    "setsid": ("rolling-restart", "setsid is not there", no_setsid),
    "sudo": ("rolling-restart", "sudo without a password is refused", sudo_refuses),
    "directory": ("rolling-restart", "is not a directory there", wrong_directory),
    "rights": ("rolling-restart", "may not write in", no_rights),
    "karma": ("rolling-restart", "`no-such-karma --version` does not run", no_karma),
    "host clock": ("switchover", "it is another day", other_day),
}


def state_of(fleet: Fleet) -> list[dict[str, Any]]:
    names = ("role", "epoch", "fenced_by", "paused_until", "source", "wal_current_lsn")
    return [{name: node.status().get(name) for name in names} for node in fleet.nodes.values()]


def desk_of(fleet: Fleet, home: Path, changes: dict[str, dict[str, Any]]) -> Desk:
    wrong = {name: entry._replace(**changes.get(name, {})) for name, entry in fleet.entries().items()}
    fleet.entries = lambda **_: wrong  # type: ignore[method-assign]
    return Desk(fleet, home)


@pytest.mark.parametrize("check", CAUSES)
def test_a_cause_stops_the_run_before_anything_changed(
    fleet: Fleet, tmp_path: Path, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, message, inject = CAUSES[check]
    home = tmp_path / "desk"
    monkeypatch.setenv("HOME", str(home))
    desk = desk_of(fleet, home, inject(fleet, home))
    before = state_of(fleet)
    params = ("--param", "to=b") if book == "switchover" else ()
    ended = desk("playbook", "run", book, *params, "--reason", "x", "--confirm", "prod", columns=200)
    assert ended.code == 4, ended.stderr
    assert f"✗ b: {check}: " in ended.stderr
    assert message in ended.stderr
    assert "next: " in ended.stderr
    assert "the preflight failed, so nothing was done" in ended.stderr
    assert state_of(fleet) == before
    assert desk("playbook", "history", "--output", "json").stdout == "[]\n"
    for host in fleet.sshds.values():
        assert not (host.home / ".karma-playbook").exists()


def test_a_full_disk_of_the_candidate_stops_the_switchover(
    fleet: Fleet, tmp_path: Path, tiny_disk: Path
) -> None:
    desk = desk_of(fleet, tmp_path / "desk", {"b": {"directory": str(tiny_disk)}})
    before = state_of(fleet)
    ended = desk("switchover", "--to", "b", "--reason", "x", "--confirm", "prod", columns=200)
    assert (ended.code, "✗ b: disk: " in ended.stderr) == (4, True), ended.stderr
    assert state_of(fleet) == before
    # Of a node that stays a follower it is a warning.
    other = desk("playbook", "plan", "switchover", "--param", "to=c", "--output", "json")
    rows = json.loads(other.stdout)["preflight"]
    assert [row["level"] for row in rows if (row["place"], row["name"]) == ("b", "disk")] == ["warning"]


def test_a_healthy_fleet_passes_and_doctor_shows_the_same(fleet: Fleet, tmp_path: Path) -> None:
    desk = desk_of(fleet, tmp_path / "desk", {})
    planned = desk("playbook", "plan", "switchover", "--param", "to=b", columns=200)
    names = "node, node clock, reachable, host key, key, shell, setsid, directory, rights, log, karma, disk"
    assert f"✓ a, b, c: {names}" in planned.stdout
    rows = json.loads(desk("doctor", "--hosts", "--output", "json").stdout)
    of_hosts = {row["check"] for row in rows if row["place"] == "b"}
    assert {"host key", "karma", "disk", "host clock"} <= of_hosts


def test_doctor_finds_what_a_run_would_stop_at(fleet: Fleet, tmp_path: Path) -> None:
    desk = desk_of(fleet, tmp_path / "desk", no_karma(fleet, tmp_path))
    found = desk("doctor", "--hosts", "--output", "json")
    assert found.code == 8, found.stderr
    (row,) = [row for row in json.loads(found.stdout) if row["check"] == "karma" and row["place"] == "b"]
    assert row["level"] == "critical"
    assert "no-such-karma" in row["finding"]
    assert "karma_command" in row["advice"]


# -- Judging -------------------------------------------------------------------------------------------------

ENTRY = Entry("b", "10.0.0.2:8080", ssh_host="b", directory="/var/lib/karma")
FACTS = {
    "setsid": "yes",
    "sudo": "yes",
    "directory": "yes",
    "writable": "yes",
    "log": "yes",
    "karma": "karma 2",
}


def level_of(name: str, needs: Needs, **changes: Any) -> str:
    host = HostFacts("ssh b", {**FACTS, "free_kb": "9999999"}, Clock(0, is_other_day=False))
    about: dict[str, Any] = {"status": {"role": "slave"}, "host": host, **changes}
    found = checks(Cluster("prod", is_production=True, nodes=(NodeFacts(ENTRY, **about),)), needs)
    (level,) = {check.level for check in found if check.name == name}
    return level


def test_a_clock_matters_most_where_it_changes_the_day_of_a_new_master() -> None:
    slow, other_day = Clock(-90, is_other_day=False), Clock(-90, is_other_day=True)
    assert level_of("node clock", Needs(masters={"b"}), clock=Clock(0.5, is_other_day=False)) == "ok"
    assert level_of("node clock", Needs(masters={"b"}), clock=slow) == "warning"
    assert level_of("node clock", Needs(masters={"b"}), clock=other_day) == "failed"
    assert level_of("node clock", Needs(hosts={"b"}), clock=other_day) == "warning"


@pytest.mark.parametrize("missing", ["setsid", "directory", "writable", "log", "karma"])
def test_what_a_host_lacks_stops_only_plans_that_need_the_host(missing: str) -> None:
    facts = {name: text for name, text in FACTS.items() if name != missing}
    host = HostFacts("ssh b", {**facts, "free_kb": "9999999"})
    name = {"writable": "rights"}.get(missing, missing)
    assert level_of(name, Needs(hosts={"b"}), host=host) == "failed"
    assert level_of(name, Needs(hosts={"a"}), host=host) == "warning"


def test_nodes_of_two_versions_are_a_warning() -> None:
    nodes = (NodeFacts(ENTRY, version="2.0"), NodeFacts(ENTRY._replace(name="c"), version="2.1"))
    found = checks(Cluster("prod", is_production=True, nodes=nodes), Needs())
    assert [check.level for check in found if check.name == "version"] == ["warning", "warning"]
