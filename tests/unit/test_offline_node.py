"""The offline commands and who a node is: its file, its fence, and an exchange of its data cut short."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from handmade import NOW, Node, add, flip, read, state_of

from karma import offline
from karma.core.epochs import Epoch, History
from karma.errors import ConfigError, DamagedDataError, DirectoryInUseError
from karma.offline import check as checking
from karma.offline.repair import Plan
from karma.storage import install, node_file, wal
from karma.storage.disk import Disk
from karma.storage.node_file import Fence

ME = node_file.Node("me", "ours", History((Epoch(1, "me", 1), Epoch(2, "me", 3))))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with six entries, the third of them in a segment of its own, and a node file."""
    node = Node(tmp_path / "data")
    for key in range(6):
        node.write(add("api", key))
        if key in (1, 2):
            node.rotate()
    node.wal.close()
    node_file.save(Disk(), node.directory, ME)
    return node.directory


def run(command: str, directory: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of a command."""
    written: list[str] = []
    code = offline.main(
        [command, f"--directory={directory}", "--output=json", *arguments],
        written.append,
        lambda _text: None,
        lambda: NOW + 0.5,
    )
    found: dict[str, Any] = orjson.loads("".join(written))
    return code, found


def text(command: str, directory: Path, *arguments: str) -> str:
    written: list[str] = []
    offline.main(
        [command, f"--directory={directory}", *arguments],
        written.append,
        lambda _text: None,
        lambda: NOW + 0.5,
    )
    return "".join(written)


def load(directory: Path) -> node_file.Node | None:
    return node_file.load(Disk(), directory)


# -- The node's file ---------------------------------------------------------------------------------------


def test_check_says_who_the_node_is(directory: Path) -> None:
    _, report = run("check", directory)
    (finding,) = (each for each in report["files"] if each["file"] == node_file.NODE_NAME)
    assert (finding["status"], finding["message"]) == ("ok", "node me, master, epoch 2")
    node_file.save(Disk(), directory, replace(ME, role="slave", fence=Fence(7, "x", 1)))
    assert "node me, slave, epoch 2, fenced for epoch 7" in text("check", directory)


def test_a_damaged_node_file_is_only_given_up_with_a_yes(directory: Path) -> None:
    flip(directory / node_file.NODE_NAME, 40)
    code, report = run("check", directory)
    assert (code, report["status"]) == (1, "damaged")
    code, outcome = run("repair", directory)
    (step,) = outcome["steps"]
    assert (code, step["done"]) == (1, False)
    assert "a new node" in step["loss"]
    code, outcome = run("repair", directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert load(directory) is None
    assert list(directory.glob(f"repaired-*/{node_file.NODE_NAME}"))
    assert read(directory).last_lsn == 6


def test_a_repair_that_loses_entries_makes_an_epoch_due(directory: Path) -> None:
    flip(directory / wal.segment_name(3), 30)
    assert run("repair", directory)[0] == 1
    assert load(directory) == ME
    assert run("repair", directory, "--yes=true")[0] == 0
    assert read(directory).last_lsn == 2
    assert load(directory) == replace(ME, epoch_due=True)


def test_a_repair_without_losses_makes_none_due(directory: Path) -> None:
    index = wal.index_path(directory / wal.segment_name(1))
    index.write_bytes(b"x")
    assert run("repair", directory)[0] == 0
    assert load(directory) == ME


class KilledError(Exception):
    """The process ended here."""


class MortalDisk(Disk):
    """A disk on which the process is killed at its nth change."""

    def __init__(self, left: int) -> None:
        self.left = left

    def sync_directory(self, directory: Path) -> None:
        super().sync_directory(directory)
        self.left -= 1
        if self.left < 0:
            raise KilledError


def test_an_epoch_is_due_before_any_entry_is_lost(directory: Path, tmp_path: Path) -> None:
    """A kill in the middle of a repair must not let LSNs come again in an epoch that has them."""
    flip(directory / wal.segment_name(3), 30)
    lost = 0
    for left in range(100):
        copy = tmp_path / str(left)
        shutil.copytree(directory, copy)
        disk = MortalDisk(left)
        plan = Plan(disk, checking.check(disk, copy, NOW), NOW)
        try:
            plan.carry_out(with_losses=True)
        except KilledError:
            pass
        else:
            break
        try:
            is_lost = read(copy).last_lsn < 6
        except DamagedDataError:
            is_lost = False
        node = load(copy)
        assert node is not None
        lost += is_lost
        assert node.epoch_due or not is_lost, left
    assert lost


# -- The fence ---------------------------------------------------------------------------------------------


def test_a_node_is_fenced_in_its_directory(directory: Path) -> None:
    code, report = run("fence", directory, "--epoch=3", "--reason=failover to db2")
    fence = Fence(3, "failover to db2", NOW * 1000 + 500)
    assert (code, report["node_id"], report["fenced_by"]) == (0, "me", fence.describe())
    assert load(directory) == replace(ME, fence=fence)
    assert "failover to db2" in text("fence", directory, "--epoch=4", "--reason=failover to db2")
    # It leaves the data alone.
    assert (run("check", directory)[0], read(directory).last_lsn) == (0, 6)


def test_a_directory_without_an_identity_gets_one_with_its_fence(tmp_path: Path) -> None:
    _, report = run("fence", tmp_path, "--epoch=1", "--reason=why")
    node = load(tmp_path)
    assert node is not None
    assert (node.node_id, node.cluster_id, node.history) == (report["node_id"], None, History())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--reason=why"], "--epoch: needs a value"),
        (["--epoch=3"], "--reason: needs a value"),
        (["--epoch=1", "--reason=why"], "--epoch: Field epoch is 1, below this node's own (2)"),
        (["--epoch=-1", "--reason=why"], "--epoch"),
        (["--epoch=x", "--reason=why"], "--epoch"),
        (["--epoch=3", "--reason="], "--reason"),
        (["--epoch=3", "--reason=two\nlines"], "--reason"),
        (["--epoch=3", "--reason=" + "x" * 513], "--reason"),
    ],
)
def test_a_fence_that_is_none_changes_nothing(directory: Path, arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        run("fence", directory, *arguments)
    assert problem in str(refusal.value)
    assert load(directory) == ME


def test_a_running_or_damaged_node_is_not_fenced(directory: Path) -> None:
    lock = Disk().lock(directory)
    with pytest.raises(DirectoryInUseError):
        run("fence", directory, "--epoch=3", "--reason=why")
    lock.release()
    flip(directory / node_file.NODE_NAME, 40)
    with pytest.raises(DamagedDataError):
        run("fence", directory, "--epoch=3", "--reason=why")


# -- An exchange that was interrupted ------------------------------------------------------------------------


@pytest.fixture
def exchanging(directory: Path) -> Path:
    """A directory in the middle of an exchange: half of the old files are out."""
    new = Node(directory / install.INCOMING_NAME)
    new.write(add("new", 1))
    new.wal.close()
    node_file.save(Disk(), new.directory, replace(ME, role="slave"))
    install.commit(Disk(), directory, "discarded-1")
    (directory / "discarded-1").mkdir()
    (directory / wal.segment_name(1)).rename(directory / "discarded-1" / wal.segment_name(1))
    return directory


def test_check_says_that_files_in_the_middle_of_an_exchange_mean_nothing(exchanging: Path) -> None:
    code, report = run("check", exchanging)
    assert (code, report["status"], report["series"]) == (0, "warning", None)
    (finding,) = report["files"]
    assert (finding["file"], "the server finishes it" in finding["message"]) == (install.INCOMING_NAME, True)
    assert "first finishes" in text("check", exchanging)


def test_repair_finishes_the_exchange(exchanging: Path) -> None:
    code, outcome = run("repair", exchanging, "--dry-run=true")
    (step,) = outcome["steps"]
    assert (code, step["loss"], step["done"]) == (0, None, False)
    code, outcome = run("repair", exchanging)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(exchanging).store).keys() == {"new"}
    node = load(exchanging)
    assert node is not None
    assert node.role == "slave"


def test_a_damaged_manifest_is_given_up_with_a_yes(exchanging: Path) -> None:
    (exchanging / install.INCOMING_NAME / install.MANIFEST_NAME).write_bytes(b"{")
    with pytest.raises(DamagedDataError) as refusal:
        install.finish(Disk(), exchanging)
    assert str(refusal.value).endswith(f"karma repair --directory {exchanging}")
    (exchanging / "discarded-1" / wal.segment_name(1)).rename(exchanging / wal.segment_name(1))
    code, report = run("check", exchanging)
    assert (code, report["status"]) == (1, "damaged")
    code, outcome = run("repair", exchanging)
    (step,) = outcome["steps"]
    assert (code, "rebuild the node" in step["loss"]) == (1, True)
    code, outcome = run("repair", exchanging, "--yes=true")
    assert (code, outcome["status"], read(exchanging).last_lsn) == (0, "ok", 6)


def test_what_was_fetched_so_far_is_fine(directory: Path) -> None:
    Node(directory / install.INCOMING_NAME).write(add("new", 1))
    code, report = run("check", directory)
    assert (code, report["status"]) == (0, "ok")


def test_new_id_needs_a_node_and_lets_the_copy_of_a_master_open_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no karma\.node\.json"):
        run("new-id", tmp_path)
    node_file.save(Disk(), tmp_path, node_file.Node("old", "C", role="slave"))
    assert "Node old in" in text("new-id", tmp_path)
    copy = load(tmp_path)
    assert copy is not None
    assert not copy.epoch_due
    node_file.save(Disk(), tmp_path, node_file.Node("old", "C", role="master"))
    _, report = run("new-id", tmp_path)
    node = load(tmp_path)
    assert node is not None
    assert (report["old_node_id"], report["node_id"], node.epoch_due) == ("old", node.node_id, True)
    assert (node.cluster_id, node.role) == ("C", "master")
