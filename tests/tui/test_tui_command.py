"""`karmactl tui` and `karmactl record` as commands: what they refuse, need, and leave behind."""

import subprocess
import sys
from pathlib import Path

import ctl
import duckdb
import pytest
from harness import Server, free_port


def test_the_dashboard_wants_a_terminal() -> None:
    ended = ctl.karmactl("tui")
    assert ended.code == 4
    assert "the dashboard needs a terminal" in ended.stderr
    assert ended.stdout == ""


def test_a_recording_is_made_or_shown_but_not_both() -> None:
    ended = ctl.karmactl("tui", "--record", "a.parquet", "--replay", "b.parquet", columns=80, typed="")
    assert ended.code == 2
    assert "--record and --replay exclude each other" in ended.stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [("--replay", "there is no recording"), ("--record", "is there already")],
)
def test_recordings_that_cannot_be_used_are_refused(option: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    if option == "--record":
        path.touch()
    ended = ctl.karmactl("tui", option, str(path), columns=200, typed="")
    assert ended.code == 2
    assert words in ended.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("textual", ("tui",), "pip install 'karma[tui]'"),
        ("duckdb", ("record", "x.parquet"), "pip install 'karma[sql]'"),
    ],
)
def test_what_is_not_installed_is_named(
    module: str, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in {"karma_tui", "textual"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    ended = ctl.karmactl(*arguments, columns=200, typed="")
    assert ended.code == 2
    assert words in ended.stderr


def test_a_recorder_keeps_nodes_that_live_and_nodes_that_do_not(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    with Server(tmp_path / "data") as server:
        node = f"127.0.0.1:{server.port}"
        path = tmp_path / "kept.parquet"
        ended = ctl.karmactl(
            "record", str(path), "--for", "1", "--interval", "0.2", "--node", node, "--node", dead
        )
    assert ended.code == 0, ended.stderr
    assert str(path) in ended.stdout
    with duckdb.connect() as connection:
        query = f"SELECT node, role, error IS NULL FROM '{path}' GROUP BY ALL ORDER BY role"
        found = connection.execute(query).fetchall()
    assert found == [(node, "master", True), (dead, "unreachable", False)]


def test_a_service_that_is_stopped_saves_what_it_has(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        path = tmp_path / "kept.parquet"
        command = [
            sys.executable,
            "-m",
            "karmactl",
            "record",
            str(path),
            "--node",
            f"127.0.0.1:{server.port}",
        ]
        with subprocess.Popen([*command, "--interval", "0.1"], stderr=subprocess.PIPE, text=True) as recorder:
            assert recorder.stderr is not None
            assert "until Ctrl-C" in recorder.stderr.readline()
            part = tmp_path / "kept.parquet.part"
            while not (part.exists() and part.stat().st_size):
                assert recorder.poll() is None
            recorder.terminate()
            assert recorder.wait(30) == 0
    assert path.stat().st_size
    assert not part.exists()
