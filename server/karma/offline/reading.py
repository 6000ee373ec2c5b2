"""The files of a data directory, looked at one by one: what is damaged does not hide what follows.

The server's own reading (`storage.recovery`) stops at the first problem, because it must not start then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from karma.core.idempotency import Records
from karma.core.ingest import Streams
from karma.errors import DamagedDataError
from karma.storage import install, manifest, node_file, recovery, snapshot, wal
from karma.storage.disk import Disk
from karma.storage.manifest import Manifest
from karma.storage.node_file import Node
from karma.storage.recovery import Recovered
from karma.storage.snapshot import SnapshotFile
from karma.storage.wal import Line, Segment


def load(disk: Disk, directory: Path, now_unix: int) -> Recovered:
    """Return what a server would start with. Raises DamagedDataError where it would refuse."""
    return recovery.read(disk, directory, Records(), now_unix)


def iterate_log(disk: Disk, directory: Path) -> Iterator[Line]:
    """Yield every entry that can be read, in LSN order, from the segments kept for followers on.

    What cannot be read is passed over: whoever must know compares LSNs, which rise by one in a whole log.
    """
    segments = wal.list_segments(disk, directory / wal.RETAINED_NAME) + recovery.log_files(disk, directory)
    last_lsn = 0
    for found in recovery.scan_lines(disk, segments, 1):
        if found.line is not None and found.line.lsn > last_lsn:
            last_lsn = found.line.lsn
            yield found.line


def read_log(directory: Path) -> Iterator[Line]:
    """Yield every entry that can be read; see `iterate_log`. For tools, which have no disk of their own."""
    return iterate_log(Disk(), directory)


# -- The log -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Hole:
    """A place in the log where entries are missing or cannot be read."""

    segment: Segment
    offset_bytes: int
    lsn: int
    """The first LSN that is missing."""
    reason: str
    next_lsn: int | None = None
    """The first LSN behind it that can be read, None when there is none."""
    proof: str | None = None
    """Why it was durable once; None for a torn tail."""
    is_start: bool = False
    """The log begins with it: what can be read starts behind what snapshots hold."""


@dataclass(slots=True)
class LogFile:
    """What one log file holds."""

    segment: Segment
    entries: int = 0
    first_lsn: int = 0
    last_lsn: int = 0
    holes: list[Hole] = field(default_factory=list)
    index_problem: str | None = None


def survey(disk: Disk, segments: list[Segment], first_lsn: int, covered_lsn: int) -> list[LogFile]:
    """Read log files to their ends and return what each holds.

    `first_lsn` is due in a file whose name does not tell. A log that starts behind `covered_lsn + 1` has a
    hole there.
    """
    files = {segment: LogFile(segment) for segment in segments}
    points = {segment: _index_of(disk, files[segment]) for segment in segments}
    unproven: list[Hole] = []
    hole: Hole | None = None
    is_start = True
    for found in recovery.scan_lines(disk, segments, first_lsn):
        file, line = files[found.segment], found.line
        due_lsn, problem = found.lsn, found.problem
        is_late = is_start and line is not None and line.lsn > covered_lsn + 1
        if is_late and line is not None:
            due_lsn, problem = (
                covered_lsn + 1,
                f"the log starts at LSN {line.lsn} where {covered_lsn + 1} is due",
            )
        is_readable = line is not None and line.lsn >= due_lsn
        if problem is not None and hole is None:
            hole = Hole(found.segment, found.offset_bytes, due_lsn, problem, is_start=is_late)
            file.holes.append(hole)
            unproven.append(hole)
        for earlier in list(unproven):
            earlier.proof = recovery.proof(line, earlier.lsn)
            if earlier.proof is None and is_start and is_readable:
                earlier.proof = "no crash leaves a log without its beginning"
            if earlier.proof is not None:
                unproven.remove(earlier)
        if line is not None and is_readable:
            if hole is not None:
                hole.next_lsn = line.lsn
                hole = None
            file.first_lsn = file.first_lsn or line.lsn
            file.last_lsn = line.lsn
            file.entries += 1
            if points[found.segment].pop(line.lsn, found.offset_bytes) != found.offset_bytes:
                file.index_problem = f"it has a wrong offset for LSN {line.lsn}"
        is_start = False
    for segment, left in points.items():
        if left and files[segment].index_problem is None:
            files[segment].index_problem = f"it names LSN {min(left)}, which the segment does not hold"
    return list(files.values())


def _index_of(disk: Disk, file: LogFile) -> dict[int, int]:
    try:
        return dict(wal.read_index(disk, file.segment))
    except FileNotFoundError:
        pass
    except ValueError as error:
        file.index_problem = str(error)
    return {}


# -- Snapshots -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Tree:
    """A `.tree` file and its metadata, of which either may be damaged or missing."""

    path: Path
    stem: str
    """What stands for the series in the file name."""
    timestamp: int
    file: SnapshotFile | None = None
    """None when the metadata cannot be read, or the `.tree` is missing."""
    problem: str | None = None
    """Why the counters cannot be read."""
    metadata_problem: str | None = None
    has_metadata: bool = True
    """False where only the manifest tells of the file."""
    keys: int = 0

    @property
    def metadata_path(self) -> Path:
        """Where its metadata is, or would be."""
        return self.path.with_name(self.path.name + ".meta.json")

    @property
    def is_unfinished(self) -> bool:
        """Whether it has no metadata: a kill came between the two, unless somebody removed them."""
        return self.file is not None and self.file.metadata_file is None

    @property
    def lsn(self) -> int | None:
        """The LSN that it holds everything up to, None when nothing tells."""
        return None if self.file is None else self.file.last_lsn


class _OneFile(Disk):
    """A directory of which only one file is listed, so that others' metadata do not stop a look at it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def list_names(self, directory: Path) -> list[str]:
        """Return the one name, if it is there."""
        return [name for name in super().list_names(directory) if name == self._name]


def list_trees(disk: Disk, directory: Path, last_set: Manifest, truncated_lsn: int) -> list[Tree]:
    """Return every `.tree`, and those whose absence makes the server refuse, newest first."""
    trees = []
    for name in disk.list_names(directory):
        timestamp, _, rest = name.partition("_")
        if rest.endswith(".tree") and timestamp.isdigit():
            tree = Tree(directory / name, rest.removesuffix(".tree"), int(timestamp))
            _look_at(disk, tree, last_set)
            trees.append(tree)
    for path in recovery.lost_trees(disk, directory):
        tree_path = path.with_name(path.name.removesuffix(".meta.json"))
        timestamp, _, rest = tree_path.name.partition("_")
        trees.append(
            Tree(tree_path, rest.removesuffix(".tree"), int(timestamp), problem="the file is missing")
        )
    present = {tree.path.name for tree in trees}
    for name in last_set.missing([tree.file for tree in trees if tree.file is not None], truncated_lsn):
        if name not in present:
            timestamp, _, rest = name.partition("_")
            stem, problem = rest.removesuffix(".tree"), "the file is missing"
            trees.append(Tree(directory / name, stem, int(timestamp), problem=problem, has_metadata=False))
    return sorted(trees, key=lambda tree: (-tree.timestamp, tree.stem))


def _look_at(disk: Disk, tree: Tree, last_set: Manifest) -> None:
    try:
        (file,) = snapshot.list_snapshots(_OneFile(tree.path.name), tree.path.parent)
        tree.file = last_set.extend(file)
    except DamagedDataError as error:
        tree.metadata_problem = error.message
    # Without metadata the size is taken as it is, so the counters can be judged by themselves.
    file = tree.file or SnapshotFile(
        tree.stem, tree.path, tree.path.name, tree.timestamp, disk.size_bytes(tree.path)
    )
    if file.metadata_file is None:
        file = replace(file, crc32=last_set.files.get(file.file))
    try:
        tree.keys = len(snapshot.load_tree(disk, file))
    except DamagedDataError as error:
        tree.problem = error.message


def assume_set(trees: list[Tree], truncated_lsn: int) -> Manifest:
    """Return what the manifest must have said where it cannot be read, and extend the files by it.

    The log was truncated for snapshots of all series. Those that are older and are the newest of their series
    were in that set; that a newer file is missing as well, nothing tells.
    """
    newest: dict[str, Tree] = {}
    for tree in trees:
        if tree.lsn is not None and tree.problem is None:
            newest.setdefault(tree.stem, tree)
    files = [tree.file for tree in newest.values() if tree.file is not None]
    crc32s = {file.file: file.crc32 for file in files if file.crc32 is not None}
    assumed = Manifest(truncated_lsn, max((file.timestamp for file in files), default=0), crc32s)
    for tree in newest.values():
        tree.file = None if tree.file is None else assumed.extend(tree.file)
    return assumed


# -- The rest ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Aside:
    """What the files beside snapshots and log hold. A `problem` is why one cannot be read."""

    truncated_lsn: int | None = None
    truncated_problem: str | None = None
    records: int = 0
    records_lsn: int | None = None
    records_problem: str | None = None
    records_file: Path | None = None
    """Which of the two, the records or their metadata, has the problem."""
    records_unix: int | None = None
    """When the records' snapshot was begun, which is when the series' were."""
    streams_lsn: int | None = None
    open_streams: int = 0
    streams_problem: str | None = None
    last_set: Manifest = field(default_factory=Manifest)
    """The last set of snapshots; where its manifest cannot be read, what log and snapshots say of it."""
    last_set_problem: str | None = None
    checkpoints_problem: str | None = None
    node: Node | None = None
    node_problem: str | None = None
    is_exchanging: bool = False
    """Whether a kill interrupted the exchange of these data for a source's."""
    exchange_problem: str | None = None


def look_aside(disk: Disk, directory: Path) -> Aside:
    """Read the files that have one name for ever."""
    aside = Aside()
    try:
        aside.truncated_lsn = wal.read_truncated_lsn(disk, directory)
    except ValueError as error:
        aside.truncated_problem = str(error)
    records = Records()
    try:
        aside.records_lsn = snapshot.load_records(disk, directory, records, Streams())
        metadata = snapshot.describe_records(disk, directory)
        aside.records_unix = None if metadata is None else metadata.get("timestamp")
        aside.records = len(records)
    except DamagedDataError as error:
        aside.records_problem, aside.records_file = error.message, error.file
    try:
        found = snapshot.load_streams(disk, directory)
        if found is not None:
            aside.open_streams, aside.streams_lsn = len(found[0].active), found[1]
    except DamagedDataError as error:
        aside.streams_problem = error.message
    try:
        aside.last_set = manifest.load(disk, directory)
    except DamagedDataError as error:
        aside.last_set_problem = error.message
    try:
        snapshot.load_checkpoints(disk, directory)
    except DamagedDataError as error:
        aside.checkpoints_problem = error.message
    try:
        aside.node = node_file.load(disk, directory)
    except DamagedDataError as error:
        aside.node_problem = error.message
    try:
        aside.is_exchanging = install.read_manifest(disk, directory) is not None
    except DamagedDataError as error:
        aside.exchange_problem = error.message
    return aside
