"""The dashboard in a real terminal: tmux sends keys and tells what is on the screen, and how it was left."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Server
from terminals import Tmux

KARMACTL = Path(sys.executable).with_name("karmactl")
SLOW = """\
playbook: slow
title: Waits.
loses: nothing
steps:
  - {id: wait, title: Nothing happens., action: wait, args: {seconds: 100}, timeout: 110}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        with server.connect() as connection:
            for key in range(50):
                connection.ask("counter.increment", series="api_requests", key=key, value=key + 1)
            connection.ask("tree.create", series="mails")
        yield server


def start(terminal: Tmux, server: Server, *words: str) -> None:
    terminal.see("ready>")
    terminal.type("echo before", "Enter")
    line = f"{KARMACTL} tui --node 127.0.0.1:{server.port} {' '.join(words)}; echo left with $?"
    terminal.type(line, "Enter")
    terminal.see("healthy", "1/1 nodes")
    assert terminal.ask("alternate_on") == "1"


def test_start_drill_down_filter_quit_leaves_the_terminal_clean(terminal: Tmux, server: Server) -> None:
    start(terminal, server)
    terminal.type("2")
    terminal.see("api_requests", "mails")
    terminal.type("/", "api")
    terminal.until(lambda: "mails" not in terminal.screen(), "the filter")
    terminal.type("Enter")
    terminal.until(lambda: "/api" not in terminal.screen(), "the end of the prompt")
    terminal.type("Enter")
    terminal.see("api_requests: page 1", "50 keys, the last")
    terminal.type("G", "Enter")
    terminal.see("api_requests 49: 30 days", "50 in these 30 days")
    terminal.type("Escape")
    terminal.see("api_requests: page 1")
    terminal.type(":", "wal", "Enter")
    terminal.see("counter.increment", "wal of all nodes")
    terminal.type("q")
    terminal.see("left with 0")
    terminal.until(terminal.is_clean, "a clean terminal")
    assert "before" in terminal.screen()


def test_sql_is_typed_completed_run_and_cancelled(terminal: Tmux, server: Server) -> None:
    server.ask("snapshot.create_all")
    start(terminal, server)
    terminal.type("0")
    terminal.see("Tab completes what is begun")
    terminal.type("select sum(value) as used from cou", "Tab", "\\;", "Enter")
    terminal.see("from counters;", "1275")
    # What terminals send for Ctrl-Enter, too.
    terminal.type("C-c", "select count(*) as keys from totals", "C-j")
    terminal.see("50", "keys from totals")
    terminal.type("C-c", "select sum(a.range * b.range) from range(10000000) a, range(10000000) b", "F5")
    terminal.see("Esc cancels")
    terminal.type("C-c")
    terminal.see("cancelled")
    terminal.type("Escape")
    terminal.see("edit", "jump")
    terminal.type("q")
    terminal.see("left with 0")
    terminal.until(terminal.is_clean, "a clean terminal")


def test_ctrl_c_and_sigterm_leave_it_clean_too(terminal: Tmux, server: Server) -> None:
    start(terminal, server)
    terminal.type("C-c")
    terminal.see("left with")
    terminal.until(terminal.is_clean, "a clean terminal")
    terminal.type("clear", "Enter")
    start(terminal, server, "--read-only")
    terminal.see("READ-ONLY")
    shell = terminal.ask("pane_pid")
    (child,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    terminal.see("left with")
    terminal.until(terminal.is_clean, "a clean terminal")


@pytest.mark.parametrize("how", ["q", "SIGTERM"])
def test_a_run_is_paused_before_it_is_left_and_how_to_go_on_is_said(
    how: str, terminal: Tmux, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / ".config" / "karmactl" / "playbooks"
    folder.mkdir(parents=True)
    (folder / "slow.yml").write_text(SLOW)
    start(terminal, server, "playbooks")
    terminal.see("slow")
    terminal.type("/", "slow")
    terminal.until(lambda: "switchover" not in terminal.screen(), "the filter")
    terminal.type("Enter")
    terminal.until(lambda: "/slow" not in terminal.screen(), "the end of the prompt")
    terminal.type("Enter")
    terminal.see("plan slow")
    terminal.type("test", "Enter")
    terminal.see("nothing was done yet")
    terminal.type("r")
    terminal.see("This will run slow")
    terminal.type(f"127.0.0.1:{server.port}", "Enter")
    terminal.see("under way; leaving this screen lets it go on", "running")
    if how == "q":
        terminal.type("q")
        terminal.see("leave the dashboard?")
        terminal.type("p")
    else:
        shell = terminal.ask("pane_pid")
        (child,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
    terminal.see("paused: the operator stopped it", "next: karmactl playbook resume slow-", "left with 11")
    terminal.until(terminal.is_clean, "a clean terminal")
    terminal.type("clear", "Enter")
    terminal.type(f"{KARMACTL} playbook history", "Enter")
    terminal.see("paused")


def test_a_smaller_window_is_followed(terminal: Tmux, server: Server) -> None:
    start(terminal, server)
    terminal("resize-window", "-x", "80", "-y", "24")
    terminal.until(lambda: len(terminal.screen().splitlines()) <= 24, "24 lines")
    terminal.see("127.0.0.1", "jump")
    terminal.type("q")
    terminal.until(terminal.is_clean, "a clean terminal")
