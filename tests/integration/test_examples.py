"""The examples, as their first lines say to call them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ROOT, Server, free_port

PROGRAMS = {"quota.py": sys.executable, "quota.rb": "ruby", "quota.sh": "sh"}


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").iterdir()} == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_quota_is_used_up_and_a_dead_server_is_no_answer(
    name: str, tmp_path: Path, needs: Callable[[str], Path]
) -> None:
    needs(PROGRAMS[name])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def ask(port: int) -> tuple[int, str]:
        command = [PROGRAMS[name], str(ROOT / "examples" / name), f"127.0.0.1:{port}", "42", "2"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
        assert (done.returncode == 2) == bool(done.stderr), done.stderr
        return done.returncode, done.stdout

    with Server(tmp_path / "data") as server:
        assert ask(server.port) == (0, "allowed=true used=1 remaining=1\n")
        assert ask(server.port) == (0, "allowed=true used=2 remaining=0\n")
        assert ask(server.port) == (1, "allowed=false used=2 remaining=0\n")
    assert ask(free_port()) == (2, "")
