"""switchover, failover and the playbook commands as an operator types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ctl import Ended, karmactl
from harness import until
from playbooks.fleet import Fleet, events

from karma_playbooks.inventory import Entry
from karma_playbooks.library import BOOKS

WAIT = "  - {id: wait, title: w, action: wait, args: {seconds: 100}, timeout: 110}\n"
SECRET = "a password that nobody may see"


def write_context(home: Path, entries: Iterable[Entry], *, is_production: bool = True) -> None:
    """Write the configuration of an operator: the context prod."""
    lines = ["[contexts.prod]", f"production = {json.dumps(is_production)}"]
    for entry in entries:
        lines.append("[[contexts.prod.nodes]]")
        about = {name: value for name, value in entry._asdict().items() if value not in ("", (), False)}
        lines += [
            f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}"
            for name, value in about.items()
        ]
    path = home / "config" / "karmactl" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")


class Desk:
    """A machine with a context for the fleet."""

    def __init__(self, fleet: Fleet, home: Path, *, is_production: bool = True, **changes: Any) -> None:
        self.fleet = fleet
        self.home = home
        self.environ = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "USER": "ada",
            "SUDO_WORD": SECRET,
        }
        write_context(home, fleet.entries(**changes).values(), is_production=is_production)

    def __call__(self, *words: str, **options: Any) -> Ended:
        return karmactl(*words, "--context", "prod", environ=self.environ, **options)

    def process(self, *words: str) -> subprocess.Popen[str]:
        """The same as a process of its own, for signals."""
        command = [sys.executable, "-m", "karmactl", *words, "--context", "prod"]
        pipe = subprocess.PIPE
        environ = {**os.environ, **self.environ}
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environ)


@pytest.fixture
def desk(fleet: Fleet, tmp_path: Path) -> Desk:
    return Desk(fleet, tmp_path / "desk")


def test_production_wants_its_name_and_yes_is_none(desk: Desk) -> None:
    refused = desk("switchover", "--to", "b", "--reason", "x", "--yes")
    assert refused.code == 4
    assert "--confirm prod" in refused.stderr
    assert "paused" not in events(desk.fleet.nodes["a"])
    wrong = desk("switchover", "--to", "b", "--reason", "x", "--confirm", "staging")
    assert wrong.code == 4
    typed = desk("switchover", "--to", "b", "--reason", "x", columns=120, typed="prod\n")
    assert typed.code == 0, typed.stderr
    assert "point of no return: promote" in typed.stderr
    assert desk.fleet.nodes["b"].status()["role"] == "master"


def test_a_plan_is_carried_out_by_its_hash_or_not_at_all(desk: Desk) -> None:
    planned = desk("playbook", "plan", "switchover", "--param", "to=c", "--output", "json")
    plan = json.loads(planned.stdout)
    assert plan["loss"]["entries"] == 0
    other = desk("switchover", "--to", "b", "--reason", "x", "--confirm", "prod", "--plan-hash", plan["hash"])
    assert other.code == 4
    assert "the plan's hash is" in other.stderr
    done = desk("switchover", "--to", "c", "--reason", "x", "--confirm", "prod", "--plan-hash", plan["hash"])
    assert done.code == 0, done.stderr


def test_dry_run_shows_and_does_nothing(desk: Desk) -> None:
    shown = desk("switchover", "--reason", "x", "--dry-run")
    assert shown.code == 0, shown.stderr
    assert "replication.promote" in shown.stdout
    assert desk("playbook", "history", "--output", "json").stdout == "[]\n"


def test_who_why_and_what_came_of_it_is_kept(desk: Desk) -> None:
    desk("switchover", "--to", "b", "--reason", "disk is old", "--ticket", "OPS-1", "--confirm", "prod")
    (row,) = json.loads(desk("playbook", "history", "--output", "json").stdout)
    assert (row["state"], row["reason"], row["ticket"]) == ("done", "disk is old", "OPS-1")
    assert row["operator"].startswith("ada@")
    shown = desk("playbook", "status").stdout
    assert "\n  promote on b: done, seen to hold\n" in shown
    status = json.loads(desk("playbook", "status", "--output", "json").stdout)
    assert all(attempt["is_verified"] for attempt in status["attempts"])
    entries = desk("playbook", "status", row["run"], "--entries", "--output", "jsonl").stdout.splitlines()
    assert json.loads(entries[-1])["data"]["state"] == "done"
    actions = json.loads(desk("actions", "list", "--output", "json").stdout)
    assert [action["state"] for action in actions] == ["SUCCEEDED"]


def test_an_undone_run_ends_with_10(desk: Desk) -> None:
    ended = desk(
        "playbook", "run", "rebuild-follower", "--param", "node=a", "--reason", "x", "--confirm", "prod"
    )
    assert ended.code == 10, ended.stderr
    assert "this node is the master" in ended.stderr


def test_a_fence_that_nobody_saw_must_be_typed(fleet: Fleet, tmp_path: Path) -> None:
    """Outside of production, too, where a plain yes does for everything else."""
    desk = Desk(fleet, tmp_path / "desk", is_production=False)
    desk.fleet.nodes["a"].kill()
    refused = desk("failover", "--reason", "x", "--fence-unverified", "--yes")
    assert refused.code == 4
    assert "two masters" in refused.stderr


def test_ctrl_c_undoes_and_says_so(desk: Desk) -> None:
    folder = desk.home / "config" / "karmactl" / "playbooks"
    folder.mkdir()
    (folder / "slow.yml").write_text(
        (BOOKS / "fence.yml").read_text().replace(": fence\n", ": slow\n", 1) + WAIT
    )
    words = ("playbook", "run", "slow", "--param", "node=a", "--reason", "x", "--confirm", "prod")
    process = desk.process(*words)
    try:
        assert process.stderr is not None
        seen = ""
        while "\nwait:" not in seen:
            seen += process.stderr.readline()
        assert desk.fleet.nodes["a"].status()["fenced_by"] is not None
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 10, seen + rest
    assert "Ctrl-C" in rest
    assert desk.fleet.nodes["a"].status()["fenced_by"] is None


def test_another_machine_goes_on_with_a_run(fleet: Fleet, tmp_path: Path) -> None:
    """Behind the point of no return a follower cannot be reached; the first machine is gone, another one ends
    it.
    """
    first, second = Desk(fleet, tmp_path / "first"), Desk(fleet, tmp_path / "second")
    third = fleet.nodes["c"]
    words = ("switchover", "--to", "b", "--reason", "x", "--confirm", "prod", "--timeout", "1")
    process = first.process(*words)
    try:
        assert process.stderr is not None
        seen = ""
        # Behind the plan, which counts on it.
        while "\nfit:" not in seen:
            seen += process.stderr.readline()
        third.server.process.send_signal(signal.SIGSTOP)
        _, rest = process.communicate(timeout=100)
    finally:
        process.kill()
        third.server.process.send_signal(signal.SIGCONT)
    assert process.returncode == 11, seen + rest
    (line,) = [line for line in rest.splitlines() if line.startswith("next: ")]
    run = line.split()[4].rstrip(",")
    assert second("switchover", "--to", "c", "--reason", "x", "--confirm", "prod").code == 4
    gone_on = second("playbook", "resume", run, "--confirm", "prod")
    assert gone_on.code == 0, gone_on.stderr
    assert "are from another machine; a host had them" in gone_on.stderr
    until(lambda: third.status()["source"] == fleet.nodes["b"].address)
    assert events(fleet.nodes["b"]).count("promoted") == 1
    # It cannot be taken back any more, and is over; the first machine learns that from the hosts.
    late = first("playbook", "resume", run, "--confirm", "prod")
    assert (late.code, "there is nothing left to do" in late.stderr) == (4, True), late.stderr
    assert json.loads(first("playbook", "status", run, "--output", "json").stdout)["state"] == "done"
    assert second("playbook", "abort", run, "--confirm", "prod").code == 4


# -- Secrets -------------------------------------------------------------------------------------------------


@pytest.fixture
def traced_sshd(sshd: Path, needs: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """A daemon of which strace writes down every command that it or anything below it starts; and where."""
    trace, script = tmp_path / "trace", tmp_path / "sshd"
    options = f"-f -qq -e trace=execve -s 100000 -o {trace}.$$"
    script.write_text(f'#!/bin/sh\nexec {needs("strace")} {options} {sshd} "$@"\n')
    script.chmod(0o755)
    return script, trace


def test_a_password_for_sudo_is_on_no_command_line_and_in_no_journal(
    start_fleet: Callable[..., Fleet], traced_sshd: tuple[Path, Path], tmp_path: Path
) -> None:
    sshd, trace = traced_sshd
    fleet = start_fleet(sshd)
    for each in fleet.sshds.values():
        script = each.folder / "bin" / "sudo"
        script.parent.mkdir()
        script.write_text(
            "#!/bin/sh\nif [ \"$1\" = -n ]; then echo 'sudo: a password is required' >&2; exit 1; fi\n"
            f'read -r word; [ "$word" = "{SECRET}" ] || {{ echo "sudo: wrong password"; exit 1; }}\n'
            'while [ "$1" != -- ]; do shift; done; shift\nexec "$@"\n'
        )
        script.chmod(0o755)
    desk = Desk(fleet, tmp_path / "desk", sudo=True, sudo_password_env="SUDO_WORD")
    ended = desk("playbook", "run", "rolling-restart", "--reason", "x", "--confirm", "prod")
    assert ended.code == 0, ended.stderr
    started = "".join(path.read_text() for path in tmp_path.glob(f"{trace.name}.*"))
    assert started.count('"karma-process"') >= 4
    assert SECRET not in started
    assert SECRET not in ended.stderr + ended.stdout
    for path in (tmp_path / "desk" / "state").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for each in fleet.sshds.values():
        for path in each.home.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    without = Desk(fleet, tmp_path / "other", sudo=True)
    refused = without("playbook", "run", "rolling-restart", "--reason", "x", "--confirm", "prod")
    assert refused.code == 4, refused.stderr
    assert "sudo without a password is refused" in refused.stderr


# -- Without a cluster ---------------------------------------------------------------------------------------


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def test_a_new_playbook_is_good_listed_and_shown(environ: dict[str, str], tmp_path: Path) -> None:
    assert karmactl("playbook", "new", "my-check", environ=environ).code == 0
    path = tmp_path / "config" / "karmactl" / "playbooks" / "my-check.yml"
    linted = karmactl("playbook", "lint", str(path), environ=environ)
    assert (linted.code, "nothing is wrong" in linted.stderr) == (0, True)
    rows = json.loads(karmactl("playbook", "list", "--output", "json", environ=environ).stdout)
    assert {"switchover", "failover", "my-check"} <= {row["name"] for row in rows}
    assert "karma.expect" in karmactl("playbook", "show", "my-check", environ=environ).stdout
    assert karmactl("playbook", "new", "my-check", environ=environ).code == 4
    assert karmactl("playbook", "new", "switchover", environ=environ).code == 4


def test_lint_tells_file_and_line(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yml"
    path.write_text("playbook: bad\ntitle: no\nsteps: []\n")
    ended = karmactl("playbook", "lint", str(path), "--output", "json", environ=environ)
    assert ended.code == 2
    assert json.loads(ended.stdout)[0]["place"] == f"{path}:2"


def test_the_schema_is_printed(environ: dict[str, str]) -> None:
    ended = karmactl("playbook", "lint", "--schema", environ=environ)
    assert json.loads(ended.stdout)["$schema"].endswith("2020-12/schema")


def test_unknown_names_are_told(environ: dict[str, str]) -> None:
    unknown = karmactl("playbook", "show", "swichover", environ=environ)
    assert (unknown.code, "switchover" in unknown.stderr) == (3, True)
    assert karmactl("playbook", "status", "none", environ=environ).code == 3
