"""What of a configuration is perhaps not meant: a server says so at its start, and --check-config does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Server


def check_config(*options: str, **environ: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KARMA_")}
    command = [sys.executable, "-m", "karma.app", "--check-config", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean | environ)
    return done.returncode, done.stdout, done.stderr


def test_a_mistyped_token_leaves_no_server_open(tmp_path: Path) -> None:
    with Server(tmp_path / "data", {"KARMA_AUTH_TOKN": "sekrit"}, wait=False) as server:
        assert server.process.wait(30) == 1
        text = server.output.read_text()
    assert "ERROR: KARMA_AUTH_TOKN: there is no such variable; did you mean KARMA_AUTH_TOKEN?" in text
    assert "sekrit" not in text
    code, _, stderr = check_config(KARMA_AUTH_TOKN="sekrit")
    assert code == 1
    assert "KARMA_AUTH_TOKN" in stderr


def test_a_variable_without_effect_and_a_readable_secret_are_mentioned(tmp_path: Path) -> None:
    file = tmp_path / "karma.toml"
    file.write_text('auth-token = "sekrit"\n')
    file.chmod(0o644)
    environ = {"KARMA_DEPLOYMENT_COLOUR": "blue", "KARMA_CONFIG": str(file)}
    with Server(tmp_path / "data", environ) as server:
        doubts = [event["message"] for event in server.events() if event["event"] == "configuration"]
    assert [doubt.split()[0] for doubt in doubts] == ["KARMA_DEPLOYMENT_COLOUR", str(file)]
    code, _, stderr = check_config(**environ)
    assert code == 0
    assert [line.split()[1] for line in stderr.splitlines()] == ["KARMA_DEPLOYMENT_COLOUR", str(file)]
    assert "sekrit" not in stderr


@pytest.mark.parametrize(("text", "mode"), [('auth-token = "s"\n', 0o640), ("port = 0\n", 0o644)])
def test_a_file_without_a_secret_or_for_its_group_is_not_mentioned(
    tmp_path: Path, text: str, mode: int
) -> None:
    file = tmp_path / "karma.toml"
    file.write_text(text)
    file.chmod(mode)
    assert check_config(f"--config={file}")[2] == ""


def test_a_slave_without_a_source_says_so_until_it_has_one(tmp_path: Path) -> None:
    with Server(tmp_path / "master") as master, Server(tmp_path / "slave", role="slave") as slave:
        assert slave.wait_for_event("no_source")["level"] == "warning"
        slave.ask("replication.follow", host="127.0.0.1", port=master.port, rebuild=True)
        slave.kill()
        slave.restart()
        assert "no_source" not in [event["event"] for event in slave.events()]
        assert "no_source" not in [event["event"] for event in master.events()]
