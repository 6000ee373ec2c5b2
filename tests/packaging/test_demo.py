"""`make demo` in a real terminal: a fleet, a killed master, the playbook, and nothing left."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from harness import ROOT
from terminals import Tmux

DEMO = [sys.executable, str(ROOT / "deploy" / "demo.py")]


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )


def test_the_master_is_killed_and_replaced_and_nothing_is_left(tmp_path: Path, terminal: Tmux) -> None:
    terminal.see("ready>")
    terminal.type(f"cd {tmp_path} && {' '.join(DEMO)}; echo left with $?", "Enter")
    terminal.see("healthy", "3/3 nodes")
    ended = demo(tmp_path, "failover", "--yes")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "killing the master, amber" in ended.stdout
    ended = demo(tmp_path, "rejoin", "--yes")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert demo(tmp_path, "ctl", "topology").stdout.count("epoch 2") == 3
    terminal.see("healthy", "3/3 nodes")
    terminal.type("q")
    terminal.see("left with 0")
    proof = re.search(r"(\d+) keyed writes were acknowledged, (\d+) are there: 0 lost", terminal.screen())
    assert proof, terminal.screen()
    assert int(proof[1]) > 0
    assert list(tmp_path.glob(".karma-demo*")) == []
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / ".karma-demo") not in found


def test_without_a_demo_or_a_terminal_it_says_so(tmp_path: Path) -> None:
    assert "start one" in demo(tmp_path, "failover").stderr
    assert "in a terminal" in demo(tmp_path).stderr
    assert list(tmp_path.iterdir()) == []
