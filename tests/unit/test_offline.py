"""`karma check` and `karma repair` on directories made by hand: what they find, mend, lose and keep."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest
from handmade import DAY, NOW, Node, State, add, flip, read, state_of

from karma import offline
from karma.errors import ConfigError, DirectoryInUseError
from karma.offline import check as checking
from karma.offline.repair import Plan
from karma.storage import manifest, recovery, wal
from karma.storage.disk import Disk
from karma.storage.snapshot import list_snapshots


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "data")


def run(*arguments: object) -> tuple[int, str, str]:
    """Return the exit code, the output and what was said beside it."""
    written: list[str] = []
    said: list[str] = []
    code = offline.main(
        [str(argument) for argument in arguments], written.append, said.append, lambda: NOW + 500.5
    )
    return code, "".join(written), "".join(said)


def check(directory: Path) -> tuple[int, dict[str, Any]]:
    code, text, _ = run("check", "--directory", directory, "--output=json")
    report: dict[str, Any] = orjson.loads(text)
    return code, report


def repair(directory: Path, *more: str) -> tuple[int, dict[str, Any]]:
    code, text, _ = run("repair", f"--directory={directory}", "--output=json", *more)
    outcome: dict[str, Any] = orjson.loads(text)
    return code, outcome


def verdicts(report: dict[str, Any], status: str) -> dict[str, str]:
    return {file["file"]: file["message"] for file in report["files"] if file["status"] == status}


def only_loss(outcome: dict[str, Any]) -> str:
    (loss,) = [step["loss"] for step in outcome["steps"] if step["loss"] is not None]
    return str(loss)


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "karma.lock"
    }


def kept(before: dict[str, str], directory: Path) -> bool:
    """Whether every file that was there is still there, under any name."""
    return set(before.values()) <= set(digests(directory).values())


def tree_of(node: Node, series: str, newest: int = 1) -> Path:
    """Return the path of a series' n-th newest snapshot."""
    return sorted(node.directory.glob(f"*_{series}.tree"))[-newest]


def two_snapshots(node: Node, keep_bytes: int = 0) -> None:
    """Snapshots of two series at LSN 4 and 7, and two entries behind them."""
    node.write(add("api", 1, 10), add("web", 2, 20), add("api", 3, 30), add("web", 2, 1, idempotency_key="k"))
    node.snapshot_all(keep_bytes)
    node.write(add("api", 1), add("web", 2), add("api", 1))
    node.snapshot_all(keep_bytes)
    node.write(add("api", 1, 100), add("web", 2, 200))


# -- Healthy directories -----------------------------------------------------------------------------


def test_a_healthy_directory_is_ok_and_stays_as_it_is(node: Node) -> None:
    two_snapshots(node, keep_bytes=1000)
    before = digests(node.directory)
    code, report = check(node.directory)
    assert (code, report["status"]) == (0, "ok")
    assert {name: report[name] for name in ("series", "keys", "buckets", "last_lsn", "log_entries")} == {
        "series": 2,
        "keys": 3,
        "buckets": 3,
        "last_lsn": 9,
        "log_entries": 2,
    }
    names = {file["file"] for file in report["files"]}
    assert names == {name for name in before if not name.endswith(".meta.json")}
    assert repair(node.directory)[1]["steps"] == []
    assert digests(node.directory) == before


def test_an_empty_directory_is_fit_to_start_on(tmp_path: Path) -> None:
    code, report = check(tmp_path)
    assert (code, report["status"], report["files"], report["last_lsn"]) == (0, "ok", [], 0)


def test_text_has_a_line_for_each_file_and_a_summary(node: Node) -> None:
    two_snapshots(node)
    code, text, _ = run("check", "-d", node.directory)
    assert code == 0
    assert 'series "api", 2 keys, LSN 7' in text
    assert "2 entries, LSN 8 to 9" in text
    assert "ok: 2 series, 3 keys, 3 buckets, last LSN 9, 2 log entries\n" in text
    rows = [line for line in text.splitlines() if line.startswith("ok   ")]
    assert len(rows) == 9
    assert len({row.index(row.split(maxsplit=2)[2]) for row in rows}) == 1


# -- The command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["check"], "--directory: needs a value"),
        (["check", "--directory"], "--directory: needs a value"),
        (["check", "--directory", "--output=json"], "--directory: needs a value"),
        (["check", "--directory=/nowhere/at/all"], "is not a directory"),
        (["check", "--output=xml"], "--output: 'xml' is not text or json"),
        (["check", "--yes=true"], "karma check has no such option"),
        (["repair", "--yes=1"], "--yes: '1' is not true or false"),
        (["repair", "there"], "'there': karma repair has no such option"),
    ],
)
def test_a_wrong_command_line_names_the_option(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*arguments)
    assert problem in str(caught.value)


@pytest.mark.parametrize("command", ["check", "repair"])
def test_help_is_shown(command: str) -> None:
    for flag in ("-h", "--help"):
        code, text, _ = run(command, flag, "--directory")
        assert code == 0
        assert f"usage: karma {command} --directory=PATH" in text
        assert max(map(len, text.splitlines())) <= 100


def test_a_directory_in_use_is_refused(node: Node) -> None:
    two_snapshots(node)
    lock = Disk().lock(node.directory)
    with pytest.raises(DirectoryInUseError):
        run("check", "--directory", node.directory)
    with pytest.raises(DirectoryInUseError):
        run("repair", "--directory", node.directory, "--yes=true")
    lock.release()
    assert check(node.directory)[0] == 0


# -- The log -----------------------------------------------------------------------------------------


def test_a_torn_tail_is_a_warning_and_repair_cuts_it(node: Node) -> None:
    two_snapshots(node)
    log = node.directory / "karma.wal"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"v":2,"lsn":10,"ent')
    code, report = check(node.directory)
    assert (code, report["status"]) == (0, "warning")
    (finding,) = (file for file in report["files"] if file["status"] == "warning")
    assert (finding["file"], finding["offset_bytes"], finding["lsn"]) == ("karma.wal", len(whole), 10)
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert [step["loss"] for step in outcome["steps"]] == [None]
    assert log.read_bytes() == whole
    (cut,) = Path(outcome["folder"]).glob("*from-lsn-10")
    assert cut.read_bytes() == b'{"v":2,"lsn":10,"ent'
    assert state_of(read(node.directory).store) == node.state


def damaged_log(node: Node) -> tuple[State, dict[str, str]]:
    """Entries 1 to 12 in three files, of which 6 cannot be read; returns what 1 to 5 make, and the files."""
    node.write(add("api", 1), add("web", 1, 5))
    node.rotate()
    for key in range(3):
        node.write(add("api", key, 7))
    expected = node.state
    expected = {name: {key: dict(days) for key, days in keys.items()} for name, keys in expected.items()}
    node.write(add("web", 3, 11))
    node.write(
        add("web", 9, 13), {"op": "counter.decrement", "series": "api", "key": 1, "bucket": DAY, "value": 2}
    )
    node.write(
        {"op": "series.batch_add", "series": "api", "granularity": "day", "items": [[5, DAY, 6], [6, DAY, 7]]}
    )
    node.rotate()
    node.write(add("new", 1), {"op": "tree.create", "series": "other"})
    node.write(add("api", 1, 3, idempotency_key="k", consume={"limit": 9, "window": "day", "used": 5}))
    node.write({"op": "system.compact"})
    segment = node.directory / wal.segment_name(3)
    offset = segment.read_bytes().index(b'"value":11')
    flip(segment, offset + 9)
    return expected, digests(node.directory)


def test_damage_in_the_middle_of_the_log_is_named_with_its_place(node: Node) -> None:
    damaged_log(node)
    code, report = check(node.directory)
    assert (code, report["status"], report["last_lsn"]) == (1, "damaged", None)
    (finding,) = (file for file in report["files"] if file["status"] == "damaged")
    lines = (node.directory / wal.segment_name(3)).read_bytes().splitlines(keepends=True)
    assert finding["file"] == wal.segment_name(3)
    assert (finding["offset_bytes"], finding["lsn"]) == (sum(map(len, lines[:3])), 6)
    assert "--dry-run=true" in report["next"]


def test_a_lossy_repair_needs_a_yes_and_says_what_goes(node: Node) -> None:
    _, before = damaged_log(node)
    code, outcome = repair(node.directory)
    assert code == 1
    assert "--yes=true" in outcome["next"]
    assert outcome["folder"] is None
    assert digests(node.directory) == before
    (step,) = outcome["steps"]
    assert step["done"] is False
    assert step["lost"] == {
        "entries": 7,
        "lsns": [[7, 13]],
        "ops": {
            "counter.increment": 3,
            "counter.decrement": 1,
            "series.batch_add": 1,
            "tree.create": 1,
            "system.compact": 1,
        },
        "series": {
            "web": {"entries": 1, "keys": 1, "added": 13, "subtracted": 0},
            "api": {"entries": 3, "keys": 3, "added": 16, "subtracted": 2},
            "new": {"entries": 1, "keys": 1, "added": 1, "subtracted": 0},
            "other": {"entries": 1, "keys": 0, "added": 0, "subtracted": 0},
        },
    }
    assert "what LSN 6 held, which cannot be read" in step["loss"]


def test_a_log_damaged_in_the_middle_is_cut_there_and_its_rest_is_kept(node: Node) -> None:
    expected, before = damaged_log(node)
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == expected
    assert read(node.directory).last_lsn == 5
    folder = Path(outcome["folder"])
    after = digests(node.directory)
    assert {before[name] for name in before if "00003.segment" not in name} <= set(after.values())
    requests = [orjson.loads(line) for line in (folder / "lost-requests.ndjson").read_bytes().splitlines()]
    assert [request["lsn"] for request in requests] == list(range(7, 14))
    assert requests[0] == {**add("web", 9, 13), "lsn": 7}
    assert requests[5] == {**add("api", 1, 3), "idempotency_key": "k", "lsn": 12}
    assert outcome["lost_requests"] == str(folder / "lost-requests.ndjson")
    plan = orjson.loads((folder / "repair.json").read_bytes())
    assert plan["steps"][0]["done"] is True
    again = Node(node.directory, first_lsn=6)
    again.wal.append([orjson.dumps(add("api", 1))], NOW * 1000)
    assert read(node.directory).last_lsn == 6


def test_a_dry_run_changes_nothing(node: Node) -> None:
    _, before = damaged_log(node)
    code, outcome = repair(node.directory, "--dry-run=true", "--yes=true")
    assert (code, outcome["dry_run"], outcome["folder"]) == (1, True, None)
    assert outcome["next"].endswith("--yes=true")
    assert digests(node.directory) == before
    code, text, _ = run("repair", "--directory", node.directory, "--dry-run", "true")
    assert code == 1
    assert f"  1. {wal.segment_name(3)}\n     does   keep the log up to LSN 5" in text
    assert (
        "     LOSES  what LSN 6 held, which cannot be read; 7 entries that can still be read, LSN 7 to 13"
        in text
    )
    assert digests(node.directory) == before


def test_every_hole_is_reported(node: Node) -> None:
    for key in range(8):
        node.write(add("api", key))
    log = node.directory / "karma.wal"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = b"x" * 20 + b"\n" + b"y" * 30 + b"\n"
    del lines[4]
    lines[-1] = lines[-1][:-5]
    log.write_bytes(b"".join(lines))
    _, report = check(node.directory)
    holes = [(file["status"], file["lsn"]) for file in report["files"]]
    assert holes == [("damaged", 2), ("damaged", 5), ("warning", 8)]
    _, outcome = repair(node.directory, "--yes=true")
    assert "what LSN 2, 5 held" in only_loss(outcome)
    assert outcome["steps"][0]["lost"]["lsns"] == [[3, 4], [6, 7]]
    assert read(node.directory).last_lsn == 1


def test_a_missing_segment_loses_what_is_behind_it(node: Node) -> None:
    for key in range(4):
        node.write(add("api", key), add("api", key))
        node.rotate()
    (node.directory / wal.segment_name(3)).unlink()
    code, report = check(node.directory)
    assert code == 1
    assert "LSN 3 to 4" in verdicts(report, "damaged")[wal.segment_name(5)]
    assert "segment is missing" in verdicts(report, "warning")[wal.segment_name(3) + ".idx"]
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert "what LSN 3 to 4 held" in only_loss(outcome)
    assert state_of(read(node.directory).store) == {"api": {0: {DAY: 2}}}


def test_a_log_without_its_beginning_loses_all_of_it(node: Node) -> None:
    two_snapshots(node)
    node.rotate()
    node.write(add("api", 1))
    (node.directory / wal.segment_name(8)).unlink()
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert "what LSN 8 to 9 held" in only_loss(outcome)
    assert state_of(read(node.directory).store) == {
        "api": {1: {DAY: 12}, 3: {DAY: 30}},
        "web": {2: {DAY: 22}},
    }


def test_an_entry_of_a_newer_version_ends_the_log(node: Node) -> None:
    node.write(add("api", 1))
    node.wal.append([b'{"v":2,"op":"series.rename","series":"api","items":7,"key":[]}'], NOW * 1000)
    node.wal.append([orjson.dumps(add("api", 2))], NOW * 1000)
    code, report = check(node.directory)
    assert code == 1
    assert "no write that this version knows" in verdicts(report, "damaged")["karma.wal"]
    code, outcome = repair(node.directory, "--yes=true")
    assert code == 0
    assert outcome["steps"][0]["lost"]["lsns"] == [[2, 3]]
    assert state_of(read(node.directory).store) == {"api": {1: {DAY: 1}}}


def test_damage_in_what_snapshots_hold_loses_nothing(node: Node) -> None:
    """A kill between the snapshots and the truncation, and damage in the log that was to go."""
    two_snapshots(node)
    node.rotate()
    node.write(add("api", 5))
    node.write_snapshots()
    node.write(add("api", 6))
    flip(node.directory / wal.segment_name(8), 30)
    before = digests(node.directory)
    assert check(node.directory)[0] == 1
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert [step["loss"] for step in outcome["steps"]] == [None]
    assert state_of(read(node.directory).store) == node.state
    assert kept({name: digest for name, digest in before.items() if name != "karma.wal.lsn"}, node.directory)


def test_snapshots_that_are_behind_keep_damage_in_the_log_lossy(node: Node) -> None:
    two_snapshots(node)
    node.write(add("api", 5))
    node.snapshot("api")
    node.rotate()
    node.write(add("web", 6, 17))
    flip(node.directory / wal.segment_name(8), 30)
    _, outcome = repair(node.directory)
    assert outcome["steps"][0]["lost"]["series"] == {
        "web": {"entries": 2, "keys": 2, "added": 217, "subtracted": 0},
    }


def test_damage_in_segments_kept_for_followers_is_a_warning(node: Node) -> None:
    two_snapshots(node, keep_bytes=10_000)
    flip(node.directory / "retained" / wal.segment_name(5), 30)
    code, report = check(node.directory)
    assert (code, report["status"]) == (0, "warning")
    assert "followers" in verdicts(report, "warning")[f"retained/{wal.segment_name(5)}"]


# -- Snapshots ---------------------------------------------------------------------------------------


def test_a_damaged_snapshot_falls_back_on_an_older_one_and_the_log(node: Node) -> None:
    two_snapshots(node)
    node.snapshot("api")
    node.write(add("api", 1, 1000))
    flip(tree_of(node, "api"), 40)
    before = digests(node.directory)
    code, report = check(node.directory)
    assert code == 1
    assert list(verdicts(report, "damaged")) == [tree_of(node, "api").name]
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state
    assert kept(before, node.directory)


def test_a_damaged_snapshot_is_rebuilt_from_segments_kept_for_followers(node: Node) -> None:
    two_snapshots(node, keep_bytes=10_000)
    flip(tree_of(node, "api"), 40)
    before = digests(node.directory)
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert [step["loss"] for step in outcome["steps"]] == [None]
    assert state_of(read(node.directory).store) == node.state
    assert kept(before, node.directory)
    newest = next(each for each in list_snapshots(Disk(), node.directory) if each.series == "api")
    assert newest.last_lsn == 7


def test_without_older_snapshots_segments_from_the_first_lsn_do(node: Node) -> None:
    node.write(add("api", 1), add("web", 2))
    node.snapshot_all(keep_bytes=10_000)
    node.write(add("api", 1))
    flip(tree_of(node, "api"), 40)
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state


def test_a_snapshot_whose_log_is_gone_costs_a_range_of_its_series(node: Node) -> None:
    two_snapshots(node)
    flip(tree_of(node, "api"), 40)
    before = digests(node.directory)
    code, outcome = repair(node.directory)
    assert code == 1
    assert digests(node.directory) == before
    assert (
        only_loss(outcome)
        == 'of series "api" what the entries with LSN 5 to 7 changed: no log file holds them'
    )
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    # 2 of LSN 5 and 7 are lost; the log behind the truncation is not.
    assert state_of(read(node.directory).store) == {
        "api": {1: {DAY: 110}, 3: {DAY: 30}},
        "web": {2: {DAY: 222}},
    }
    assert kept(before, node.directory)


def test_a_series_without_any_other_snapshot_cannot_be_restored(node: Node) -> None:
    node.write(add("api", 1), add("web", 2))
    node.snapshot_all()
    node.write(add("api", 1, 5))
    flip(tree_of(node, "api"), 40)
    code, outcome = repair(node.directory)
    assert code == 1
    assert 'series "api" cannot be restored' in only_loss(outcome)
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == {"api": {1: {DAY: 5}}, "web": {2: {DAY: 1}}}


def test_a_missing_snapshot_is_found_by_its_metadata(node: Node) -> None:
    two_snapshots(node, keep_bytes=10_000)
    tree_of(node, "api").unlink()
    code, report = check(node.directory)
    assert code == 1
    assert list(verdicts(report, "damaged").values()) == ["the snapshot that it describes is missing"]
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state


def test_a_missing_pair_is_found_by_the_truncation(node: Node) -> None:
    two_snapshots(node, keep_bytes=10_000)
    for path in node.directory.glob(f"{tree_of(node, 'api').name}*"):
        path.unlink()
    code, report = check(node.directory)
    assert code == 1
    (message,) = verdicts(report, "damaged").values()
    assert "the set of snapshots at LSN 7 has this file" in message
    (node.directory / manifest.MANIFEST_NAME).unlink()
    code, report = check(node.directory)
    assert 'newest of series "api"' in verdicts(report, "damaged")[tree_of(node, "api").name]
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state


def test_an_older_snapshot_that_is_damaged_is_not_needed(node: Node) -> None:
    two_snapshots(node)
    flip(tree_of(node, "api", 2), 40)
    code, report = check(node.directory)
    assert (code, report["status"]) == (0, "warning")
    code, outcome = repair(node.directory)
    assert (code, outcome["status"], len(outcome["steps"])) == (0, "ok", 1)
    assert state_of(read(node.directory).store) == node.state


@pytest.mark.parametrize("harm", ["garbage", "gone"])
def test_metadata_are_written_anew_where_their_lsn_is_known(node: Node, harm: str) -> None:
    two_snapshots(node)
    metadata = Path(f"{tree_of(node, 'api')}.meta.json")
    if harm == "gone":
        metadata.unlink()
    else:
        metadata.write_bytes(b"{")
    code, report = check(node.directory)
    assert code == 1
    assert len(verdicts(report, "damaged")) == 1
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert [step["loss"] for step in outcome["steps"]] == [None]
    assert state_of(read(node.directory).store) == node.state


def test_metadata_of_unknown_lsn_cost_what_the_log_does_not_hold(node: Node) -> None:
    two_snapshots(node)
    node.snapshot("api")
    Path(f"{tree_of(node, 'api')}.meta.json").write_bytes(b"{}")
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state
    Path(f"{tree_of(node, 'api')}.meta.json").write_bytes(b"{}")
    (node.directory / "karma.idempotency.json.meta.json").unlink()
    (node.directory / manifest.MANIFEST_NAME).unlink()
    code, outcome = repair(node.directory)
    assert code == 1
    assert "LSN 5 to 7" in only_loss(outcome)


def test_old_metadata_that_are_damaged_just_go(node: Node) -> None:
    two_snapshots(node)
    Path(f"{tree_of(node, 'api', 2)}.meta.json").write_bytes(b"{")
    assert check(node.directory)[0] == 1
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state


def test_an_unfinished_snapshot_is_a_warning_and_stays(node: Node) -> None:
    two_snapshots(node)
    shutil.copy(tree_of(node, "api"), node.directory / f"{NOW + 400}_api.tree")
    code, report = check(node.directory)
    assert (code, report["status"]) == (0, "warning")
    assert repair(node.directory)[1]["steps"] == []


def test_an_encoded_name_that_only_metadata_told_is_named_by_its_file(node: Node) -> None:
    node.write(add("a/b", 1))
    node.snapshot_all()
    Path(f"{tree_of(node, 'a%2Fb')}.meta.json").write_bytes(b"{")
    (node.directory / "karma.idempotency.json.meta.json").unlink()
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert "name" in only_loss(outcome)
    assert read(node.directory).store.series == {}


def test_a_fallback_across_a_damaged_log_loses_the_range_behind_the_damage(node: Node) -> None:
    two_snapshots(node)
    node.snapshot("api")
    node.write(add("web", 2))
    flip(tree_of(node, "api"), 40)
    flip(node.directory / "karma.wal", 40)
    code, outcome = repair(node.directory)
    assert code == 1
    losses = [step["loss"] for step in outcome["steps"]]
    assert losses[0] == 'of series "api" what LSN 8 to 9 changed: the log is damaged there'
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == {
        "api": {1: {DAY: 12}, 3: {DAY: 30}},
        "web": {2: {DAY: 22}},
    }


def test_a_replacing_stream_that_began_before_the_log_makes_a_rebuild_lossy(node: Node) -> None:
    stream = {"stream_id": "s"}
    node.write(add("api", 1), add("web", 1))
    node.write({"op": "ingest.begin", **stream, "mode": "replace_series", "granularity": "day"})
    node.snapshot_all()
    node.write({"op": "ingest.chunk", **stream, "series": "api", "chunk_seq": 1, "items": [[1, DAY, 50]]})
    node.write({"op": "ingest.commit", **stream})
    node.snapshot_all(keep_bytes=400)
    assert node.wal.first_lsn == 4
    flip(tree_of(node, "api"), 40)
    code, outcome = repair(node.directory)
    assert code == 1
    assert "ingest entries with LSN 4 to 5" in only_loss(outcome)


# -- The files beside them -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "", "99999", "3"])
def test_the_truncated_lsn_is_written_anew(node: Node, text: str) -> None:
    two_snapshots(node)
    (node.directory / "karma.wal.lsn").write_text(text)
    code, report = check(node.directory)
    assert code == 1
    assert verdicts(report, "damaged")
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert (node.directory / "karma.wal.lsn").read_text() == "7\n"
    assert (Path(outcome["folder"]) / "karma.wal.lsn").read_text() == text
    assert state_of(read(node.directory).store) == node.state


@pytest.mark.parametrize("text", ["x", "99999"])
def test_the_truncated_lsn_of_an_empty_log_is_that_of_the_snapshots(node: Node, text: str) -> None:
    two_snapshots(node)
    node.snapshot_all()
    (node.directory / "karma.wal.lsn").write_text(text)
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert (node.directory / "karma.wal.lsn").read_text() == "9\n"
    assert state_of(read(node.directory).store) == node.state


def test_idempotency_records_are_only_given_up_with_a_yes(node: Node) -> None:
    two_snapshots(node)
    flip(node.directory / "karma.idempotency.json", 30)
    before = digests(node.directory)
    code, outcome = repair(node.directory)
    assert code == 1
    assert "up to LSN 7" in only_loss(outcome)
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")
    assert state_of(read(node.directory).store) == node.state
    assert kept(before, node.directory)


def test_records_outlive_their_metadata(node: Node) -> None:
    two_snapshots(node)
    (node.directory / "karma.idempotency.json.meta.json").write_bytes(b"{")
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    found = read(node.directory)
    assert found.store.records.get("k", NOW) is not None
    assert state_of(found.store) == node.state


def test_lost_streams_say_which_of_the_log_s_chunks_go_with_them(node: Node) -> None:
    chunk = {"op": "ingest.chunk", "stream_id": "s", "series": "api"}
    node.write({"op": "ingest.begin", "stream_id": "s", "mode": "add", "granularity": "day"})
    node.write({**chunk, "chunk_seq": 1, "items": [[1, DAY, 5]]})
    node.snapshot_all()
    node.write({**chunk, "chunk_seq": 2, "items": [[1, DAY, 6], [2, DAY, 7]]}, add("api", 1))
    flip(node.directory / "karma.ingest.msgpack", -1)
    code, outcome = repair(node.directory)
    assert code == 1
    (step,) = outcome["steps"]
    assert step["lost"]["lsns"] == [[3, 3]]
    assert step["lost"]["series"]["api"]["keys"] == 2
    code, outcome = repair(node.directory, "--yes=true")
    assert code == 0
    assert state_of(read(node.directory).store) == {"api": {1: {DAY: 6}}}


def test_checkpoints_are_only_given_up_with_a_yes(node: Node) -> None:
    two_snapshots(node)
    (node.directory / "recovery.json").write_bytes(b"{")
    assert check(node.directory)[0] == 1
    code, outcome = repair(node.directory)
    assert code == 1
    assert "checkpoints" in only_loss(outcome)
    code, outcome = repair(node.directory, "--yes=true")
    assert (code, outcome["status"]) == (0, "ok")


@pytest.mark.parametrize("harm", ["header", "offset", "lsn"])
def test_an_index_is_built_anew(node: Node, harm: str) -> None:
    for key in range(300):
        node.write(add("api", key))
    node.rotate()
    index = wal.index_path(node.directory / wal.segment_name(1))
    lines = index.read_bytes().splitlines()
    match harm:
        case "header":
            lines[0] = b"KARMA_WAL_INDEX_V1 size=1"
        case "offset":
            lines[2] = lines[2] + b"1"
        case "lsn":
            lines[2] = b"9" + lines[2]
    index.write_bytes(b"\n".join(lines) + b"\n")
    code, report = check(node.directory)
    assert (code, report["status"]) == (0, "warning")
    assert list(verdicts(report, "warning")) == [index.name]
    code, outcome = repair(node.directory)
    assert (code, outcome["status"]) == (0, "ok")
    assert wal.read_index(Disk(), wal.list_segments(Disk(), node.directory)[0])


# -- Everything at once, and kills -------------------------------------------------------------------------


def ruined(directory: Path) -> State:
    """Make a directory with a bit of everything damaged; returns what can be saved."""
    node = Node(directory)
    two_snapshots(node)
    node.rotate()
    node.write(add("web", 2, 4000))
    node.write(add("web", 2, 5000))
    node.snapshot("api")
    node.write(add("web", 2, 6000))
    node.wal.close()
    flip(tree_of(node, "api"), 40)
    flip(tree_of(node, "web", 2), 40)
    (node.directory / "karma.wal.lsn").write_text("?")
    (node.directory / "recovery.json").write_bytes(b"{")
    flip(node.directory / "karma.idempotency.json", 30)
    index = wal.index_path(node.directory / wal.segment_name(8))
    index.write_bytes(b"x")
    log = node.directory / "karma.wal"
    flip(log, len(log.read_bytes().splitlines()[0]) + 40)
    return {"api": {1: {DAY: 112}, 3: {DAY: 30}}, "web": {2: {DAY: 4222}}}


def test_all_damage_is_found_and_mended_at_once(tmp_path: Path) -> None:
    expected = ruined(tmp_path / "data")
    before = digests(tmp_path / "data")
    code, report = check(tmp_path / "data")
    assert code == 1
    assert len(verdicts(report, "damaged")) == 5
    assert len(verdicts(report, "warning")) == 2
    code, outcome = repair(tmp_path / "data", "--yes=true")
    assert (code, outcome["status"]) == (0, "ok"), outcome
    assert state_of(read(tmp_path / "data").store) == expected
    del before["karma.wal.lsn"], before["karma.wal"]
    assert kept(before, tmp_path / "data")


class Killed(BaseException):
    """The process ends here."""


class FragileDisk(Disk):
    """A disk on which the n-th change is the last to happen, or the first not to."""

    def __init__(self, changes_left: int) -> None:
        self.changes_left = changes_left

    def move(self, old: Path, new: Path) -> None:
        self._spend()
        super().move(old, new)
        self._spend()

    def sync_directory(self, directory: Path) -> None:
        self._spend()
        super().sync_directory(directory)

    def _spend(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise Killed


def with_kill(directory: Path, changes: int) -> bool:
    """Repair until a change is reached; returns whether it was."""
    disk = FragileDisk(changes)
    plan = Plan(disk, checking.check(disk, directory, NOW + 500), NOW + 500)
    try:
        plan.carry_out(with_losses=True)
    except Killed:
        return True
    return False


def hole(directory: Path) -> State:
    return damaged_log(Node(directory))[0]


def covered(directory: Path) -> State:
    node = Node(directory)
    two_snapshots(node)
    node.rotate()
    node.write(add("api", 5))
    node.write_snapshots()
    node.write(add("api", 6))
    flip(directory / wal.segment_name(8), 30)
    return node.state


def original(directory: Path) -> State:
    """Karma 1.0 wrote it: there, an old snapshot alone is one of a dropped series."""
    node = Node(directory)
    two_snapshots(node)
    flip(tree_of(node, "api"), 40)
    (directory / "karma.ingest.msgpack").unlink()
    return {"api": {1: {DAY: 110}, 3: {DAY: 30}}, "web": {2: {DAY: 222}}}


@pytest.mark.parametrize("make", [ruined, hole, covered, original])
def test_a_kill_at_any_change_leaves_a_directory_that_repairs(
    tmp_path: Path, make: Callable[[Path], State]
) -> None:
    expected = make(tmp_path / "data")
    changes = 0
    while True:
        copy = tmp_path / f"copy-{changes}"
        shutil.copytree(tmp_path / "data", copy)
        before = digests(copy)
        if not with_kill(copy, changes):
            break
        code, outcome = repair(copy, "--yes=true")
        # A snapshot that the kill left unfinished is a warning.
        assert code == 0, (changes, outcome)
        assert state_of(read(copy).store) == expected, changes
        lost = set(before.values()) - set(digests(copy).values())
        assert lost <= {
            before[name] for name in ("karma.wal", "karma.wal.lsn", wal.segment_name(3)) if name in before
        }
        shutil.rmtree(copy)
        changes += 1
    assert changes > 8


# -- The door ------------------------------------------------------------------------------------------


def test_the_log_can_be_iterated_with_what_is_kept_for_followers(node: Node) -> None:
    two_snapshots(node, keep_bytes=10_000)
    lines = list(offline.iterate_log(Disk(), node.directory))
    assert [line.lsn for line in lines] == list(range(1, 10))
    assert lines[0].entry == add("api", 1, 10)
    flip(node.directory / "retained" / wal.segment_name(5), 30)
    assert [line.lsn for line in offline.iterate_log(Disk(), node.directory)] == [1, 2, 3, 4, 6, 7, 8, 9]


def test_a_directory_can_be_loaded(node: Node) -> None:
    two_snapshots(node)
    assert state_of(offline.load(Disk(), node.directory, NOW).store) == node.state
    assert recovery.log_files(Disk(), node.directory)
