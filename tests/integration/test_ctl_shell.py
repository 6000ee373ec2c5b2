"""karmactl shell as a person has it: on a pseudo-terminal, key by key."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import ctl
import pytest
from ctl import Shell
from harness import Server

KARMACTL = str(Path(sys.executable).parent / "karmactl")
CTRL_C, CTRL_D, CTRL_R, TAB, UP, RIGHT = "\x03", "\x04", "\x12", "\t", "\x1b[A", "\x1b[C"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("shell") / "data") as running:
        running.ask("counter.increment", series="api_requests", key=42, bucket=20260505, value=17)
        yield running


@pytest.fixture
def environ(server: Server, tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "config" / "karmactl"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        # Under another name: a production node stays one, whatever context it is reached by.
        f'current = "dev"\n[contexts.dev]\nnodes = ["localhost:{server.port}"]\n'
        f'[contexts.prod]\nproduction = true\nnodes = ["127.0.0.1:{server.port}"]\n'
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARMA", "COLUMNS"))}
    return {
        **kept,
        "TERM": "xterm",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


def test_commands_run_and_what_is_wrong_is_said(environ: dict[str, str]) -> None:
    shell = Shell(environ, KARMACTL, "shell")
    shell.command("get api_requests 42", "17")
    shell.command("serie list", "did you mean series")
    shell.command("\\timming", "did you mean \\timing?")
    shell.command("\\timing", "timing is on")
    shell.command("ping --fields status", "took ")
    shell.command("\\?", "explains one")
    shell.command("help get", "Print what a key holds")
    shell.command("shell", "already")
    # A line goes on behind a backslash and inside quotes.
    shell.run("get \\\r", "...")
    shell.run("'api_requests\r", "...")
    shell.run(f"{CTRL_C}get \\\r", "...")
    shell.command("'api_requests' 42", "17")
    shell.leave()


def test_words_series_and_contexts_are_completed_and_explained(environ: dict[str, str]) -> None:
    shell = Shell(environ, KARMACTL, "shell")
    shell.run(f"series info api{TAB}", "_requests")
    shell.command("", "key_count")
    shell.run("context use pro", "pro")
    shell.run(TAB, "d\x1b")
    shell.run("\r", "the current context is prod")
    # Production has another colour, at once.
    shell.next("97;41;1m prod ")
    shell.run("sum ", "Print what several keys hold together")
    shell.leave(f"{CTRL_C}{CTRL_D}")


def test_the_history_is_kept_searched_and_hinted(environ: dict[str, str], tmp_path: Path) -> None:
    shell = Shell(environ, KARMACTL, "shell")
    shell.command("get api_requests 42", "17")
    shell.command("ping --fields status", "pong")
    shell.leave()
    history = tmp_path / "state" / "karmactl" / "history"
    assert history.stat().st_mode & 0o077 == 0
    shell = Shell(environ, KARMACTL, "shell")
    shell.run(f"{CTRL_R}api_re", "quests 42")
    # One Enter takes what was found, the next runs it.
    shell.command("\r", "17")
    shell.run(f"ping{UP}", "--fields")
    shell.command("", "pong")
    shell.run("get", " api_requests 42")
    shell.run(f"{RIGHT}\r", "17")
    shell.leave()


def test_a_command_is_watched_until_ctrl_c(environ: dict[str, str]) -> None:
    shell = Shell(environ, KARMACTL, "shell")
    shell.command("\\watch", "no command to watch")
    shell.run("series list \\watch 50ms\r", "api_requests")
    shell.next("api_requests")
    shell.run(CTRL_C, "interrupted")
    shell.run("\\watch 50ms\r", "api_requests")
    shell.next("api_requests")
    shell.run(CTRL_C, "interrupted")
    shell.command("get api_requests 42 -o json", '"value": 17')
    shell.leave()


def test_options_of_the_shell_hold_inside(environ: dict[str, str]) -> None:
    shell = Shell(environ, KARMACTL, "shell", "--context", "prod", "--read-only")
    shell.command("add api_requests 1", "--read-only forbids")
    shell.leave()


def test_without_a_terminal_there_is_no_shell() -> None:
    ended = ctl.karmactl("shell")
    assert (ended.code, "needs a terminal" in ended.stderr) == (4, True)
