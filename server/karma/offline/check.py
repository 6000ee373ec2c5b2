"""`karma check`: everything that a start of the server would find in a directory, and what it would not tell.

Three verdicts on a file: ``ok``; ``warning``, where the server starts and loses nothing that was durable
(it cuts a torn tail itself); ``damaged``, where it refuses to start or would lose something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from karma.core import buckets
from karma.errors import DamagedDataError
from karma.offline import reading
from karma.offline.losses import many, spell
from karma.offline.reading import Aside, Hole, LogFile, Tree
from karma.storage import install, manifest, node_file, recovery, snapshot, wal
from karma.storage.disk import Disk
from karma.storage.node_file import Node
from karma.storage.recovery import Recovered

Status = Literal["ok", "warning", "damaged"]
_RANK: Final[dict[Status, int]] = {"ok": 0, "warning": 1, "damaged": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to say of one file, named from the directory."""

    file: str
    status: Status
    message: str
    offset_bytes: int | None = None
    lsn: int | None = None


@dataclass(slots=True)
class Checked:
    """What was found in a directory."""

    directory: Path
    files: list[Finding] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    log: list[LogFile] = field(default_factory=list)
    retained: list[LogFile] = field(default_factory=list)
    aside: Aside = field(default_factory=Aside)
    recovered: Recovered | None = None
    """What the server would start with, None when it would not start or has to finish an exchange first."""
    refusal: DamagedDataError | None = None
    """Why it would not start."""

    @property
    def status(self) -> Status:
        """The worst of all verdicts."""
        verdicts: list[Status] = [finding.status for finding in self.files]
        if self.recovered is not None and self.recovered.warnings:
            verdicts.append("warning")
        return max(verdicts, key=_RANK.__getitem__, default="ok")

    @property
    def has_log(self) -> bool:
        """Whether snapshots need metadata to count."""
        return (
            bool(self.log) or self.aside.truncated_lsn is not None or self.aside.truncated_problem is not None
        )

    @property
    def holes(self) -> list[Hole]:
        """The log's holes in order; from the first without proof on it is the torn tail."""
        return [hole for file in self.log for hole in file.holes]

    def report(self) -> dict[str, Any]:
        """Return everything as JSON."""
        recovered = self.recovered
        counts: dict[str, int | None] = dict.fromkeys(
            ("series", "keys", "buckets", "last_lsn", "log_entries")
        )
        if recovered is not None:
            counters = [series.counters for series in recovered.store.series.values()]
            counts = {
                "series": len(counters),
                "keys": sum(map(len, counters)),
                "buckets": sum(sum(map(buckets.bucket_count, each.values())) for each in counters),
                "last_lsn": recovered.last_lsn,
                "log_entries": recovered.log_entries,
            }
        return {
            "status": self.status,
            "directory": str(self.directory),
            "files": [
                {
                    "file": finding.file,
                    "status": finding.status,
                    "message": finding.message,
                    "offset_bytes": finding.offset_bytes,
                    "lsn": finding.lsn,
                }
                for finding in self.files
            ],
            **counts,
            "warnings": [] if recovered is None else recovered.warnings,
        }


def check(disk: Disk, directory: Path, now_unix: int) -> Checked:
    """Look at every file of a data directory, then at the whole. Changes nothing."""
    checked = Checked(directory, aside=reading.look_aside(disk, directory))
    if checked.aside.is_exchanging:
        # Of the other files some are moved and some are not: alone they mean nothing.
        message = "a kill interrupted the exchange of the data here for a source's; the server finishes it"
        checked.files.append(Finding(install.INCOMING_NAME, "warning", message))
        return checked
    truncated_lsn = checked.aside.truncated_lsn
    checked.trees = reading.list_trees(disk, directory, checked.aside.last_set, truncated_lsn or 0)
    if checked.aside.last_set_problem is not None:
        checked.aside.last_set = reading.assume_set(checked.trees, truncated_lsn or 0)
    covered_lsn = truncated_lsn
    if covered_lsn is None:
        newest = finished(checked.trees, has_log=True).values()
        covered_lsn = min((tree.lsn or 0 for tree in newest), default=0)
    if checked.aside.truncated_problem is not None:
        # Where the log should start is what this file would tell.
        covered_lsn = 2**64
    checked.log = reading.survey(
        disk, recovery.log_files(disk, directory), (truncated_lsn or 0) + 1, covered_lsn
    )
    checked.retained = reading.survey(
        disk, wal.list_segments(disk, directory / wal.RETAINED_NAME), 1, covered_lsn=2**64
    )
    for tree in checked.trees:
        checked.files.append(_judge_tree(checked, tree))
    for file in checked.retained + checked.log:
        checked.files += _judge_log_file(checked, file)
    checked.files += _judge_indexes(disk, checked)
    checked.files += _judge_aside(disk, checked)
    _judge_whole(disk, checked, now_unix)
    return checked


def finished(trees: list[Tree], *, has_log: bool) -> dict[str, Tree]:
    """Return each series' newest snapshot of those that count, by what stands for it in file names."""
    newest: dict[str, Tree] = {}
    for tree in trees:
        if tree.file is not None and tree.problem is None and (tree.lsn is not None or not has_log):
            newest.setdefault(tree.stem, tree)
    return newest


def lost_metadata_lsn(checked: Checked, tree: Tree) -> int | None:
    """Return the LSN of a snapshot whose metadata is gone, where it can be known.

    create_all gives the idempotency snapshot the timestamp of the series' files, and truncates the log
    when all are written. A series' newest file with that timestamp is therefore of the same LSN.
    """
    aside = checked.aside
    if tree.lsn is not None:
        return None
    newest = next(other for other in checked.trees if other.stem == tree.stem)
    if newest is not tree or tree.problem is not None:
        return None
    if tree.path.name in aside.last_set.files:
        return aside.last_set.lsn
    if tree.timestamp != aside.records_unix:
        return None
    older = finished([other for other in checked.trees if other is not tree], has_log=True).get(tree.stem)
    if older is not None and older.lsn == aside.truncated_lsn:
        # A kill came in a later snapshot of the same LSN, which nothing depends on.
        return None
    return aside.records_lsn if aside.records_lsn == aside.truncated_lsn else None


# -- Verdicts ------------------------------------------------------------------------------------


def _judge_tree(checked: Checked, tree: Tree) -> Finding:
    name = tree.path.name
    others = [other for other in checked.trees if other.timestamp > tree.timestamp]
    newer = finished(others, has_log=checked.has_log).get(tree.stem)
    if tree.metadata_problem is not None:
        return Finding(tree.metadata_path.name, "damaged", tree.metadata_problem)
    if tree.file is None and not tree.has_metadata:
        return Finding(name, "damaged", recovery.NOT_IN_SET.format(lsn=checked.aside.last_set.lsn))
    if tree.file is None:
        return Finding(tree.metadata_path.name, "damaged", "the snapshot that it describes is missing")
    if tree.problem is not None:
        if newer is not None:
            return Finding(
                name, "warning", f"{tree.problem}; the server does not need it, {newer.path.name} is newer"
            )
        if tree.lsn is None and checked.has_log:
            return Finding(name, "warning", f"{tree.problem}; it has no metadata and counts for nothing")
        if is_dropped(checked, tree, checked.aside.truncated_lsn or 0):
            return Finding(
                name, "warning", f"{tree.problem}; its series was dropped before the log was truncated"
            )
        return Finding(name, "damaged", tree.problem, lsn=tree.lsn)
    if tree.lsn is None:
        if not checked.has_log:
            return Finding(name, "ok", f'series "{tree.stem}", {many(tree.keys, "key")}, no metadata')
        lsn = lost_metadata_lsn(checked, tree)
        if lsn is not None:
            return Finding(
                name, "damaged", "its metadata is missing, though the log was truncated for it", lsn=lsn
            )
        return Finding(name, "warning", "it was never finished (no metadata) and counts for nothing")
    series = tree.file.series
    if newer is None and is_dropped(checked, tree, checked.aside.truncated_lsn or 0):
        return Finding(
            name, "warning", f'series "{series}" was dropped before the log was truncated', lsn=tree.lsn
        )
    return Finding(name, "ok", f'series "{series}", {many(tree.keys, "key")}, LSN {tree.lsn}', lsn=tree.lsn)


def is_dropped(checked: Checked, tree: Tree, truncated_lsn: int) -> bool:
    """Whether a newest snapshot belongs to a series that Karma 1.0 dropped, see `storage.recovery`."""
    is_ours = checked.aside.streams_lsn is not None and checked.aside.streams_lsn >= truncated_lsn
    return not is_ours and tree.lsn is not None and tree.lsn < truncated_lsn


def _judge_log_file(checked: Checked, file: LogFile) -> list[Finding]:
    name = name_in(checked.directory, file.segment.path)
    is_retained = file in checked.retained
    torn = next((hole for hole in checked.holes if hole.proof is None), None)
    findings: list[Finding] = []
    for hole in file.holes:
        lost = (
            f"LSN {hole.lsn}"
            if hole.next_lsn in (None, hole.lsn + 1)
            else f"LSN {hole.lsn} to {(hole.next_lsn or 0) - 1}"
        )
        if is_retained:
            message = f"{hole.reason}; only followers that need {lost} miss it, they must be rebuilt"
            findings.append(Finding(name, "warning", message, hole.offset_bytes, hole.lsn))
        elif hole.proof is not None:
            message = f"{hole.reason}: {lost} cannot be read, but was durable once: {hole.proof}"
            findings.append(Finding(name, "damaged", message, hole.offset_bytes, hole.lsn))
        elif hole is torn:
            message = f"torn tail ({hole.reason}): the server cuts it, it was never known to be durable"
            findings.append(Finding(name, "warning", message, hole.offset_bytes, hole.lsn))
    if not findings:
        held = (
            f"{many(file.entries, 'entry')}, LSN {spell([(file.first_lsn, file.last_lsn)])}"
            if file.entries
            else "empty"
        )
        findings.append(Finding(name, "ok", held, lsn=file.last_lsn or None))
    return findings


def _judge_indexes(disk: Disk, checked: Checked) -> list[Finding]:
    directory = checked.directory
    files = {wal.index_path(file.segment.path): file for file in checked.retained + checked.log}
    findings = []
    for folder in (directory / wal.RETAINED_NAME, directory):
        for path in (folder / name for name in disk.list_names(folder) if name.endswith(".segment.idx")):
            name = name_in(directory, path)
            file = files.get(path)
            problem = "its segment is missing" if file is None else file.index_problem
            if problem is None:
                findings.append(Finding(name, "ok", "fits its segment"))
            else:
                findings.append(
                    Finding(name, "warning", f"{problem}; the server reads the segment without it")
                )
    return findings


def _judge_aside(disk: Disk, checked: Checked) -> list[Finding]:
    directory, aside = checked.directory, checked.aside
    names = set(disk.list_names(directory))
    findings = []

    def judge(name: str, problem: str | None, fine: str, lsn: int | None = None) -> None:
        if problem is not None:
            findings.append(Finding(name, "damaged", problem))
        elif name in names:
            findings.append(Finding(name, "ok", fine, lsn=lsn))

    judge(
        wal.LSN_NAME,
        aside.truncated_problem,
        f"log truncated at LSN {aside.truncated_lsn}",
        aside.truncated_lsn,
    )
    records_name = snapshot.RECORDS_NAME if aside.records_file is None else aside.records_file.name
    at = "" if aside.records_lsn is None else f", LSN {aside.records_lsn}"
    judge(records_name, aside.records_problem, f"{many(aside.records, 'record')}{at}", aside.records_lsn)
    streams = f"{many(aside.open_streams, 'open ingest stream')}, LSN {aside.streams_lsn}"
    judge(snapshot.STREAMS_NAME, aside.streams_problem, streams, aside.streams_lsn)
    last_set = aside.last_set
    members = f"the set of snapshots at LSN {last_set.lsn}: {many(len(last_set.files), 'file')}"
    judge(manifest.MANIFEST_NAME, aside.last_set_problem, members, last_set.lsn)
    judge(snapshot.CHECKPOINTS_NAME, aside.checkpoints_problem, "recovery checkpoints")
    judge(install.INCOMING_NAME, aside.exchange_problem, "what was fetched so far of a source's data")
    judge(node_file.NODE_NAME, aside.node_problem, "" if aside.node is None else _describe_node(aside.node))
    if recovery.REPLICATION_LSN_NAME in names:
        is_number = disk.read_file(directory / recovery.REPLICATION_LSN_NAME).strip().isdigit()
        if is_number:
            findings.append(Finding(recovery.REPLICATION_LSN_NAME, "ok", "a Karma 1.0 slave's last LSN"))
        else:
            message = (
                "it does not hold a decimal LSN; the directory is not taken for a promoted Karma 1.0 slave's"
            )
            findings.append(Finding(recovery.REPLICATION_LSN_NAME, "warning", message))
    return findings


def _describe_node(node: Node) -> str:
    fence = "" if node.fence is None else f", fenced for epoch {node.fence.epoch}"
    return f"node {node.node_id}, {node.role}, epoch {node.history.current.number}{fence}"


def _judge_whole(disk: Disk, checked: Checked, now_unix: int) -> None:
    """Restore the directory as the server would; add what no file alone tells."""
    try:
        checked.recovered = reading.load(disk, checked.directory, now_unix)
    except DamagedDataError as error:
        checked.refusal = error
        name = name_in(checked.directory, error.file)
        known = [finding for finding in checked.files if finding.file == name and finding.status == "damaged"]
        if all(error.lsn not in (None, finding.lsn) for finding in known):
            checked.files = [
                finding for finding in checked.files if finding.file != name or finding.status != "ok"
            ]
            checked.files.append(Finding(name, "damaged", error.message, error.offset_bytes, error.lsn))


def name_in(directory: Path, path: Path) -> str:
    """Return a file's name as seen from the directory."""
    return path.relative_to(directory).as_posix()
