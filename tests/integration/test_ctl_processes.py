"""karmactl as a process: what it loads, pipes that break, Ctrl-C, prompts, completion in real shells."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ctl import Terminal
from harness import Server

BIN = Path(sys.executable).parent
KARMACTL = str(BIN / "karmactl")
SECONDS = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("processes") / "data", max_request_bytes=1_000_000) as server:
        with server.connect() as connection:
            items = [[key, 20260505, 1] for key in range(10_000)]
            connection.ask("series.batch_add", series="api_requests", items=items)
            connection.ask("tree.create", series="emails")
        yield server


@pytest.fixture
def environ(server: Server, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KARMA", "COLUMNS"))}
    return {
        **kept,
        "PATH": f"{BIN}:{kept['PATH']}",
        "KARMACTL_NODES": f"127.0.0.1:{server.port}",
        "XDG_CONFIG_HOME": str(tmp_path),
    }


def run(environ: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_a_plain_command_loads_nothing_heavy(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "karmactl").mkdir()
    (tmp_path / "karmactl" / "config.toml").write_text('[contexts.other]\nnodes = ["db1:8080"]\n')
    program = (
        "import sys\nfrom karmactl import cli\n"
        "sys.argv = ['karmactl', 'ping']\n"
        "assert cli.main() == 0\n"
        "print(*sys.modules)"
    )
    ended = run(environ, sys.executable, "-c", program)
    assert ended.returncode == 0, ended.stderr
    loaded = {name.partition(".")[0] for name in ended.stdout.splitlines()[-1].split()}
    heavy = {
        "textual",
        "duckdb",
        "_duckdb",
        "numpy",
        "asyncio",
        "uvloop",
        "prompt_toolkit",
        "tomlkit",
        "ssl",
        "difflib",
        "csv",
    }
    assert loaded & heavy == set()
    assert {"karmactl", "karma_client", "click"} <= loaded


@pytest.mark.parametrize(("options", "count"), [((), 10_000), (("--limit", "1500"), 1500)])
def test_a_long_series_comes_whole_and_in_order(
    environ: dict[str, str], options: tuple[str, ...], count: int
) -> None:
    ended = run(environ, KARMACTL, "series", "keys", "api_requests", "-o", "jsonl", *options)
    assert [json.loads(line)["key"] for line in ended.stdout.splitlines()] == list(range(count))


def test_a_reader_that_goes_away_is_no_error(environ: dict[str, str]) -> None:
    for form in ("table", "json", "jsonl", "csv"):
        line = f"karmactl series keys api_requests --output {form} | head -2; echo ${{PIPESTATUS[0]}}"
        ended = run(environ, "bash", "-c", line)
        assert ended.stderr == ""
        assert ended.stdout.splitlines()[-1] == "0"
        assert len(ended.stdout.splitlines()) == 3


def test_a_reader_that_never_was_is_no_error(environ: dict[str, str]) -> None:
    ended = run(environ, "bash", "-c", "karmactl ping | true; echo ${PIPESTATUS[0]}; karmactl --help | true")
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_a_full_disk_is_said_and_is_no_success(environ: dict[str, str]) -> None:
    ended = run(environ, "bash", "-c", f"{KARMACTL} ping > /dev/full")
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr


def test_letters_that_the_terminal_lacks_are_spelt_as_numbers(environ: dict[str, str]) -> None:
    ended = run(
        {**environ, "PYTHONIOENCODING": "ascii"}, KARMACTL, "latency", "--match", "batch_add", "--total"
    )
    assert ended.returncode == 0
    assert "\\xb5s" in ended.stdout


def test_ctrl_c_ends_a_watch_with_130(environ: dict[str, str]) -> None:
    command = [KARMACTL, "series", "top", "api_requests", "-n", "1", "--watch", "0.05", "-o", "jsonl"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    assert lines == [{"rank": 1, "key": 0, "value": 1}] * 3
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_watch_survives_a_node_that_comes_back(environ: dict[str, str], tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        command = [KARMACTL, "ping", "--watch", "0.05", "-o", "jsonl", "--node", f"127.0.0.1:{server.port}"]
        with subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "pong" in process.stdout.readline()
            server.kill()
            while "connect" not in (line := process.stderr.readline()):
                assert line
            server.restart(port=server.port)
            while process.stdout.readline().find("pong") < 0:
                pass
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)
    assert process.returncode == 130


def test_a_person_is_asked_and_answers(environ: dict[str, str]) -> None:
    run(environ, KARMACTL, "series", "create", "doomed")
    terminal = Terminal(environ, KARMACTL, "series", "drop", "doomed")
    terminal.wait_for("to go on:")
    terminal.type("doomed\n")
    assert terminal.end() == 0
    assert "dropped" in terminal.seen
    assert "doomed" not in run(environ, KARMACTL, "series", "list").stdout


def test_ctrl_c_at_a_question_does_nothing(environ: dict[str, str]) -> None:
    run(environ, KARMACTL, "series", "create", "spared")
    terminal = Terminal(environ, KARMACTL, "series", "drop", "spared")
    terminal.wait_for("to go on:")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "spared" in run(environ, KARMACTL, "series", "list").stdout


def test_a_table_is_repainted_while_it_is_watched(environ: dict[str, str]) -> None:
    terminal = Terminal(environ, KARMACTL, "series", "list", "--watch", "0.05")
    for _ in range(3):
        terminal.wait_for("\x1b[H\x1b[2J\x1b[3J")
        terminal.seen = terminal.seen.partition("\x1b[3J")[2]
    terminal.type("\x03")
    assert terminal.end() == 130


def test_the_editor_opens_the_file_and_it_is_checked(environ: dict[str, str], tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf \'[contexts.a]\\nnodes = ["%s"]\\n\' "$ADDRESS" > "$1"\n')
    editor.chmod(0o755)
    for address, code in (("db1:8080", 0), ("db1:0", 2)):
        terminal = Terminal(
            {**environ, "EDITOR": str(editor), "ADDRESS": address}, KARMACTL, "context", "edit"
        )
        assert terminal.end() == code, terminal.seen


# -- Completion ------------------------------------------------------------------------------------------


def proposals(environ: dict[str, str], *words: str) -> list[str]:
    """What the bash script is given for the last of these words."""
    asked = {
        "_KARMACTL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    ended = run({**environ, **asked}, KARMACTL)
    assert ended.stderr == ""
    return [line.partition(",")[2] for line in ended.stdout.split()]


def test_words_options_and_live_values_are_proposed(environ: dict[str, str]) -> None:
    (Path(environ["XDG_CONFIG_HOME"]) / "karmactl").mkdir()
    file = Path(environ["XDG_CONFIG_HOME"]) / "karmactl" / "config.toml"
    file.write_text('[contexts.prod]\nnodes = ["db1:8080"]\n')
    assert proposals(environ, "karmactl", "snap") == ["snapshot"]
    assert {"list", "top", "drop"} <= set(proposals(environ, "karmactl", "series", ""))
    assert proposals(environ, "karmactl", "series", "top", "--li") == ["--limit"]
    assert proposals(environ, "karmactl", "series", "top", "api") == ["api_requests"]
    assert proposals(environ, "karmactl", "ping", "--context", "p") == ["prod"]
    assert proposals(environ, "karmactl", "ping", "--node", "") == ["db1:8080"]
    assert proposals(environ, "karmactl", "call", "tree.su") == ["tree.summary"]
    assert proposals(environ, "karmactl", "series", "list", "--output", "js") == ["json", "jsonl"]


def test_completion_fails_in_silence(environ: dict[str, str]) -> None:
    dead = {**environ, "KARMACTL_NODES": "127.0.0.1:1"}
    assert proposals(dead, "karmactl", "series", "top", "") == []
    wrong = {**environ, "KARMACTL_CONTEXT": "nothing"}
    assert proposals(wrong, "karmactl", "series", "top", "") == []


def script(environ: dict[str, str], shell: str, folder: Path) -> Path:
    ended = run(environ, KARMACTL, "completion", shell)
    assert (ended.returncode, ended.stderr) == (0, "")
    path = folder / "script"
    path.write_text(ended.stdout)
    return path


def test_bash_completes(environ: dict[str, str], tmp_path: Path) -> None:
    source = script(environ, "bash", tmp_path)
    program = (
        f"source {source}; COMP_WORDS=(karmactl series top api); COMP_CWORD=3; "
        "_karmactl_completion karmactl api top; echo ${COMPREPLY[@]}"
    )
    ended = run(environ, "bash", "--norc", "-c", program)
    assert ended.stdout == "api_requests\n", ended.stderr


def test_zsh_completes(environ: dict[str, str], tmp_path: Path, needs: Callable[[str], Path]) -> None:
    zsh = needs("zsh")
    script(environ, "zsh", tmp_path).rename(tmp_path / "_karmactl")
    (tmp_path / ".zshrc").write_text(
        f"PROMPT='ready> '\nfpath=({tmp_path} $fpath)\nautoload -U compinit\ncompinit -u -d {tmp_path}/dump\n"
    )
    terminal = Terminal(
        {**environ, "ZDOTDIR": str(tmp_path), "TERM": "dumb"}, str(zsh), "-o", "no_global_rcs", "-i"
    )
    terminal.wait_for("ready> ")
    terminal.type("echo karmactl; karmactl series info api\t")
    terminal.wait_for("api_requests")
    terminal.type("\nexit\n")
    terminal.end()
    assert "key_count" in terminal.seen


def test_fish_completes(environ: dict[str, str], tmp_path: Path, needs: Callable[[str], Path]) -> None:
    fish = needs("fish")
    source = script(environ, "fish", tmp_path)
    home = {**environ, "HOME": str(tmp_path)}
    ended = run(
        home, str(fish), "--no-config", "-c", f"source {source}; complete -C 'karmactl series top api'"
    )
    assert ended.stdout.split()[:1] == ["api_requests"], ended.stderr


def test_the_terminal_decides_about_colours_not_the_pipe(environ: dict[str, str]) -> None:
    assert shutil.which("karmactl", path=environ["PATH"]) == KARMACTL
    assert "\x1b" not in run(environ, KARMACTL, "ping").stdout
    coloured = Terminal({**environ, "TERM": "xterm"}, KARMACTL, "ping")
    assert coloured.end() == 0
    assert "\x1b[32mpong" in coloured.seen
    plain = Terminal({**environ, "TERM": "xterm", "NO_COLOR": "1"}, KARMACTL, "ping")
    assert plain.end() == 0
    assert "\x1b" not in plain.seen
