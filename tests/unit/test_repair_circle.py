"""Where a start asks for `karma repair`, repair has something to offer, and in the end the server starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import NOW, Node, add, read

from karma.errors import DamagedDataError
from karma.offline import check as checking
from karma.offline import command
from karma.offline.check import Checked, Finding
from karma.offline.repair import Plan
from karma.storage import snapshot
from karma.storage.disk import Disk
from karma.storage.node_file import NODE_NAME
from karma.storage.node_file import load as load_node

Harm = Callable[[bytes], bytes]
HARMS: dict[str, Harm] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _data: b"",
    "garbage": lambda data: bytes(byte ^ 0x55 for byte in data),
    "longer": lambda data: data + b"\x00" * 7,
}
NAMES = (
    "*_api.tree",
    "*_a%2Fb.tree",
    "*.tree.meta.json",
    snapshot.RECORDS_NAME,
    snapshot.RECORDS_NAME + ".meta.json",
    snapshot.STREAMS_NAME,
    snapshot.CHECKPOINTS_NAME,
    "karma.wal.lsn",
    NODE_NAME,
)


def filled(directory: Path, *, has_log: bool, has_metadata: bool, snapshots: int) -> None:
    """Make a directory; without log and metadata it is as Karma 1.0 leaves one."""
    node = Node(directory)
    for number in range(snapshots):
        node.write(add("api", number, 10), add("a/b", number, 20, idempotency_key=f"k{number}"))
        node.snapshot_all()
    node.write(add("api", 9))
    node.wal.sync()
    node.wal.close()
    snapshot.write_checkpoints(Disk(), directory, [{"source": "s", "offset": "1", "updated_at_unix": NOW}])
    if not has_log:
        for path in directory.glob("karma.wal*"):
            path.unlink()
    if not has_metadata:
        for path in directory.glob("*.meta.json"):
            path.unlink()


def starts(directory: Path) -> str | None:
    """Return why a server would not start on a directory, None when it would."""
    try:
        load_node(Disk(), directory)
        read(directory)
        snapshot.load_checkpoints(Disk(), directory)
    except DamagedDataError as error:
        return error.message
    return None


@pytest.mark.parametrize("has_log", [True, False])
@pytest.mark.parametrize("has_metadata", [True, False])
@pytest.mark.parametrize("snapshots", [1, 2])
def test_what_keeps_a_server_from_starting_can_be_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_log: bool, has_metadata: bool, snapshots: int
) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _fd: None)
    whole = tmp_path / "whole"
    filled(whole, has_log=has_log, has_metadata=has_metadata, snapshots=snapshots)
    refused = 0
    for name in NAMES:
        for harm, change in HARMS.items():
            directory = tmp_path / f"{harm} {name.strip('*_').replace('%', '')}"
            shutil.copytree(whole, directory)
            for path in directory.glob(name):
                path.write_bytes(change(path.read_bytes()))
            for _ in range(6):
                reason = starts(directory)
                if reason is None:
                    break
                refused += 1
                plan = Plan(Disk(), checking.check(Disk(), directory, NOW), NOW)
                assert plan.steps, f"{name} {harm}: {reason}"
                plan.carry_out(with_losses=True)
            assert starts(directory) is None, f"{name} {harm}"
    assert refused > 3


def test_a_damaged_snapshot_without_metadata_and_log_is_moved_aside_and_its_loss_named(
    tmp_path: Path,
) -> None:
    filled(tmp_path / "data", has_log=False, has_metadata=False, snapshots=1)
    (damaged,) = (tmp_path / "data").glob("*_api.tree")
    content = damaged.read_bytes()[:-1]
    damaged.write_bytes(content)
    plan = Plan(Disk(), checking.check(Disk(), tmp_path / "data", NOW), NOW)
    (step,) = plan.steps
    assert step.file == damaged.name
    assert step.loss == 'all of series "api": no log and no other snapshot has it, a backup may'
    plan.carry_out(with_losses=False)
    assert damaged.exists()
    plan.carry_out(with_losses=True)
    assert (plan.folder / damaged.name).read_bytes() == content
    assert starts(tmp_path / "data") is None


def test_a_refusal_that_no_other_step_is_about_moves_its_file_aside(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("x")
    refusal = DamagedDataError(tmp_path / "odd", "it is odd", advice="karma repair")
    plan = Plan(Disk(), Checked(tmp_path, refusal=refusal), NOW)
    (step,) = plan.steps
    assert (step.file, step.loss) == (
        "odd",
        "what odd holds (it is odd): nothing else here has it, a backup may",
    )
    plan.carry_out(with_losses=True)
    assert (plan.folder / "odd").read_text() == "x"


@pytest.mark.parametrize("is_dry", [True, False])
def test_damage_without_a_step_asks_for_a_backup_and_not_for_another_repair(
    tmp_path: Path, is_dry: bool
) -> None:
    checked = Checked(tmp_path, files=[Finding("odd", "damaged", "it is odd")])
    report = command._repair_report(Plan(Disk(), checked, NOW), checked, is_dry=is_dry, with_losses=True)
    assert report["next"] == "restore the directory from a backup: no step that is known here mends it"
