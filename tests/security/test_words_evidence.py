"""Decisions come of types and fields: no sentence makes one, and what cannot be read is unknown."""

from __future__ import annotations

import ast
import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import karma_playbooks
from karma_playbooks import catalog
from karma_playbooks.actions import Act, UnsureError, hosts
from karma_playbooks.history import Entry, History
from karma_playbooks.inventory import Entry as Node
from karma_playbooks.outbox import _events
from karma_playbooks.transports.shell import Ran

FOLDER = Path(karma_playbooks.__file__).parent
PLAN = {"playbook": "p"}


def undone(why: str, cause: str | None) -> list[str]:
    """The types of the events of a run that was taken back."""
    history = History("run")
    header = {"plan": PLAN, "cluster": "c"}
    about = {} if cause is None else {"cause": cause}
    entries = [
        Entry("run", 1, 0, "requested", header, ""),
        Entry("run", 2, 0, "accepted", {"epoch": 1}, ""),
        Entry("run", 3, 0, "state", {"state": "undone", "why": why, **about}, ""),
    ]
    for entry in entries:
        history.take(entry)
    return [event.envelope.event_type.rpartition(".")[2] for event in _events(entries[-1], history)]


WORDS = st.sampled_from(["", "declined", "the operator", "did not approve", "interrupted with Ctrl-C", "x"])


@given(WORDS, WORDS)
def test_what_a_reason_says_decides_nothing(before: str, after: str) -> None:
    why = f"say: {before} {after}"
    assert undone(why, "failure") == undone("", "failure")
    assert len(undone(why, "failure")) == 2
    assert undone(why, None) == undone("", "failure")
    assert undone(why, "operator") == undone("", "operator")
    assert len(undone(why, "operator")) == 1


def test_no_code_asks_what_a_message_says() -> None:
    """`"words" in str(error)`, and the like of an error's text, appear nowhere in the engine."""
    found = []
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            texts = [ast.unparse(side) for side in ast.walk(node)] if isinstance(node, ast.Compare) else []
            if any(text in {"str(error)", "error.message", "str(problem)"} for text in texts):
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert found == []


# -- A plain process -----------------------------------------------------------------------------------------


def is_running(directory: Path, user: str = "") -> tuple[int, str]:
    node = Node("a", "127.0.0.1:1", directory=str(directory), service="process", service_command=("true",))
    argv = list(map(str, catalog.service_argv("is", node)))
    if user:
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout.strip()


def test_a_plain_process_runs_or_not(tmp_path: Path) -> None:
    assert is_running(tmp_path / "nowhere") == (3, "inactive")
    assert is_running(tmp_path) == (3, "inactive")
    with (tmp_path / "karma.lock").open("w") as lock:
        lock.write(f"pid {os.getpid()} x\n")
        lock.flush()
        assert is_running(tmp_path) == (0, "active")
    assert is_running(tmp_path) == (3, "inactive")
    (tmp_path / "karma.lock").write_text("pid 4194304 x\n")
    assert is_running(tmp_path) == (3, "inactive")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs another user")
@pytest.mark.parametrize("hidden", ["process", "lock", "directory"])
def test_what_may_not_be_looked_at_is_unknown(hidden: str, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    with (directory / "karma.lock").open("w") as lock:
        lock.write(f"pid {os.getpid()} x\n")
        lock.flush()
        (directory / "karma.lock").chmod(0o600 if hidden == "lock" else 0o644)
        directory.chmod(0o600 if hidden == "directory" else 0o755)
        code, told = is_running(directory, "65534")
    assert code == 4
    assert told.startswith("unknown")


@pytest.mark.parametrize(("code", "is_known"), [(0, True), (3, True), (4, False), (1, False), (127, False)])
def test_a_look_that_failed_proves_nothing(
    code: int, is_known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def look(*_: object) -> Ran:
        return Ran(code, "inactive", "")

    node = Node("a", "127.0.0.1:1", directory="/d", service="karma.service")
    world = SimpleNamespace(entries={"a": node})
    monkeypatch.setattr(hosts, "_look_at", look)
    act = Act(world, History("r"), "service.is", "a", {"running": code == 0}, "s", "r/s", 1.0)  # type: ignore[arg-type]
    if is_known:
        asyncio.run(hosts.service_is_(act))
    else:
        with pytest.raises(UnsureError):
            asyncio.run(hosts.service_is_(act))
