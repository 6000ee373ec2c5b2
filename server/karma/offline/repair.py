"""`karma repair`: a plan from what `check` found, shown with what each step would lose, then carried out.

Nothing is deleted: what a step cuts or replaces goes to ``repaired-<unix>/``, with `PLAN_NAME`, and with
`REQUESTS_NAME` for entries that can still be read but no longer applied.

A kill in the middle leaves a directory that `check` and another repair understand, because each step
adds before it takes away: a rebuilt snapshot is whole before the damaged one moves, the cut part of the
log is copied before the log is cut, and the log files behind it move last. Until they have moved they are
still damage to the server, never a log to go on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import orjson

from karma.core.buckets import Counter
from karma.offline import check, losses, rebuild
from karma.offline.check import Checked, name_in
from karma.offline.losses import Losses, many, spell
from karma.offline.reading import Hole, Tree
from karma.storage import install, manifest, node_file, recovery, snapshot, wal
from karma.storage.disk import Disk
from karma.storage.manifest import Manifest
from karma.storage.wal import Line

PLAN_NAME: Final = "repair.json"
REQUESTS_NAME: Final = "lost-requests.ndjson"

Act = Callable[[Path], None]
"""Carries a step out; takes the folder for what it replaces."""


@dataclass(slots=True)
class Step:
    """One change to a directory."""

    file: str
    action: str
    act: Act
    loss: str | None = None
    """What is lost for good; None when nothing that was durable is."""
    losses: Losses = field(default_factory=Losses)
    is_done: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the step as JSON."""
        return {
            "file": self.file,
            "action": self.action,
            "loss": self.loss,
            "lost": self.losses.as_json() if self.losses.entries else None,
            "done": self.is_done,
        }


class Plan:
    """The steps that mend a directory. Building it changes nothing; `carry_out` does."""

    def __init__(self, disk: Disk, checked: Checked, now_unix: int) -> None:
        self._disk = disk
        self._checked = checked
        self._directory = checked.directory
        self._now_unix = now_unix
        self.folder = self._new_folder()
        self.steps: list[Step] = []
        self._truncated_lsn = checked.aside.truncated_lsn or 0
        self._lost_lines: Callable[[], Iterator[Line]] = lambda: iter(())
        self._series_lsn: dict[str, int] = {}
        self._cut_paths: list[Path] = []
        if checked.aside.is_exchanging:
            # Only then there is something to look at.
            action = "finish the exchange of the data here for a source's, which a kill interrupted"
            path = self._directory / install.INCOMING_NAME
            self._add(path, action, lambda _folder: self._finish_exchange())
            return
        holes = checked.holes
        self._plan_truncated_lsn(holes)
        self._cut = self._cut_at(holes)
        self._plan_set()
        self._plan_snapshots()
        self._plan_log()
        self._plan_aside()
        self._plan_indexes()
        self._plan_refusal()

    @property
    def lossy(self) -> list[Step]:
        """The steps that lose something."""
        return [step for step in self.steps if step.loss is not None]

    def carry_out(self, *, with_losses: bool) -> None:
        """Do the steps, those that lose something only when told to."""
        due = [step for step in self.steps if with_losses or step.loss is None]
        if not due:
            return
        self._disk.make_directory(self.folder)
        self._write_plan()
        node = self._checked.aside.node
        if node is not None and any(step.loss is not None for step in due):
            # LSNs that followers hold may be given out again: an epoch tells the two apart. Noted first, for
            # a kill may come between any two steps.
            node_file.save(self._disk, self._directory, replace(node, epoch_due=True))
        for step in due:
            step.act(self.folder)
            step.is_done = True
        self._write_plan()

    def _write_plan(self) -> None:
        plan = {"directory": str(self._directory), "steps": [step.as_json() for step in self.steps]}
        self._disk.write_file(self.folder / PLAN_NAME, [orjson.dumps(plan, option=orjson.OPT_INDENT_2)])

    def _new_folder(self) -> Path:
        taken = set(self._disk.list_names(self._directory))
        unix = self._now_unix
        while f"repaired-{unix}" in taken:
            unix += 1
        return self._directory / f"repaired-{unix}"

    # -- karma.wal.lsn -------------------------------------------------------------------------

    def _plan_truncated_lsn(self, holes: list[Hole]) -> None:
        """Rewrite the truncation's LSN where it is no number, or where log and snapshots say better."""
        checked, path = self._checked, self._directory / wal.LSN_NAME
        streams_lsn = checked.aside.streams_lsn
        first = next((file for file in checked.log if file.entries), None)
        # The first line may be what is damaged; a segment's name tells where it began.
        first_lsn = None if first is None else first.segment.first_lsn or first.first_lsn
        starts_late = bool(holes) and holes[0].is_start
        is_too_low = starts_late and streams_lsn is not None and (first_lsn or 0) <= streams_lsn + 1
        is_too_high = checked.refusal is not None and checked.refusal.file == path
        if not is_too_low and not is_too_high:
            return
        if first_lsn is not None:
            lsn = first_lsn - 1 if streams_lsn is None else min(first_lsn - 1, streams_lsn)
        elif streams_lsn is not None:
            lsn = streams_lsn
        else:
            known = [newest.lsn or 0 for newest in check.finished(checked.trees, has_log=True).values()]
            lsn = max([checked.aside.records_lsn or 0, *known])
        self._truncated_lsn = lsn
        if starts_late and (first_lsn or 0) <= lsn + 1:
            del holes[0]
        elif not starts_late and first_lsn is not None and first_lsn > lsn + 1:
            segment = next(file.segment for file in checked.log if file.entries)
            reason = f"the log starts at LSN {first_lsn} where {lsn + 1} is due"
            holes.insert(0, Hole(segment, 0, lsn + 1, reason, first_lsn, "snapshots end before it"))

        action = f"write {lsn}, the LSN at which log and snapshots say that the log was truncated"
        self._add(path, action, partial(self._write_truncated_lsn, lsn))

    def _write_truncated_lsn(self, lsn: int, folder: Path) -> None:
        path = self._directory / wal.LSN_NAME
        if path.name in self._disk.list_names(self._directory):
            self._disk.write_file(folder / path.name, [self._disk.read_file(path)])
        self._disk.write_file(path, [b"%d\n" % lsn])

    # -- Snapshots -----------------------------------------------------------------------------

    def _plan_set(self) -> None:
        """Write the manifest anew where it cannot be read, before steps that leave files out of it."""
        if self._checked.aside.last_set_problem is None:
            return
        last_set = self._checked.aside.last_set
        action = f"write it again: the newest snapshot of each series was in the set at LSN {last_set.lsn}"
        self._add(self._directory / manifest.MANIFEST_NAME, action, partial(self._save_set, last_set))

    def _save_set(self, last_set: Manifest, folder: Path) -> None:
        path = self._directory / manifest.MANIFEST_NAME
        if path.name not in self._disk.list_names(folder):
            self._disk.write_file(folder / path.name, [self._disk.read_file(path)])
        manifest.save(self._disk, self._directory, last_set)

    def _plan_snapshots(self) -> None:
        trees = sorted(self._checked.trees, key=lambda tree: (tree.stem, -tree.timestamp))
        for _, group in groupby(trees, key=lambda tree: tree.stem):
            self._plan_series(list(group))

    def _plan_series(self, trees: list[Tree]) -> None:
        """Plan for the snapshots of one series, newest first."""
        name, lsn = _series_of(trees), check.lost_metadata_lsn(self._checked, trees[0])
        if lsn is not None and name is not None:
            self._series_lsn[name] = lsn
            self._plan_new_metadata(trees, name, lsn)
            older = trees[1:]
        else:
            newest = check.finished(trees, has_log=self._checked.has_log).get(trees[0].stem)
            at = len(trees) if newest is None else trees.index(newest)
            # Without damage, a newer one that does not count was never finished.
            self._plan_newest(trees, [tree for tree in trees[:at] if self._is_lost(tree)], newest)
            older = trees[at + 1 :]
        self._plan_move(
            [tree for tree in older if self._is_lost(tree)], "move it aside: a newer one is whole"
        )

    def _is_lost(self, tree: Tree) -> bool:
        """Whether a snapshot is damaged. Beside a log one without metadata is just unfinished."""
        is_unfinished = tree.is_unfinished and self._checked.has_log
        return tree.metadata_problem is not None or (tree.problem is not None and not is_unfinished)

    def _plan_new_metadata(self, trees: list[Tree], name: str, lsn: int) -> None:
        def act(folder: Path) -> None:
            counters = rebuild.load_counters(self._disk, trees[0])
            self._write_tree(trees, name, counters, lsn)
            self._move_tree(trees[0], folder)

        action = f'write the snapshot of series "{name}" anew with metadata: it stands at LSN {lsn}'
        self._add(trees[0].path, f"{action}, as the idempotency snapshot of the same time does", act)

    def _plan_newest(self, trees: list[Tree], lost: list[Tree], newest: Tree | None) -> None:
        """Plan for what is damaged before the newest whole one, which may be missing or too old."""
        if newest is not None and newest.file is not None:
            self._series_lsn[newest.file.series] = newest.lsn or 0
        is_old = newest is not None and newest.lsn is not None and newest.lsn < self._truncated_lsn
        if (lost or is_old) and check.is_dropped(self._checked, (lost or trees)[0], self._truncated_lsn):
            self._plan_move(lost, "move it aside: its series was dropped before the log was truncated")
        elif lost or is_old:
            self._plan_fallback(trees, lost, newest)

    def _plan_fallback(self, trees: list[Tree], lost: list[Tree], newest: Tree | None) -> None:
        """Restore a series from an older snapshot, or from none, and from the log."""
        name, target_lsn = _series_of(trees), self._truncated_lsn
        base_lsn = 0 if newest is None else newest.lsn or 0
        base = "nothing older" if newest is None else f"{newest.path.name} (LSN {base_lsn})"
        if name is None:
            loss = "a series whose name only its damaged metadata told" if newest is None else None
            self._plan_move(lost, "move it aside: nothing tells its name or its LSN", loss)
            return
        self._series_lsn[name] = max(base_lsn, target_lsn)
        if base_lsn >= target_lsn or not self._checked.has_log:
            # The log holds all that came behind the older one, as far as the log itself is whole.
            loss = self._loss_without_log(name, lost, base_lsn)
            self._plan_move(lost, f'move it aside: series "{name}" is restored from {base} and the log', loss)
            return
        rebuilt = rebuild.rebuild(self._disk, self._directory, name, newest, target_lsn)

        def act(folder: Path) -> None:
            if rebuilt.counters is not None:
                self._write_tree(trees, name, rebuilt.counters, target_lsn)
            for tree in lost:
                self._move_tree(tree, folder)

        entries = many(rebuilt.entries, "log entry")
        action = f'restore series "{name}" at LSN {target_lsn} from {base} and {entries}'
        loss = None
        if rebuilt.missing:
            lsns = spell(rebuilt.missing)
            loss = f'of series "{name}" what the entries with LSN {lsns} changed: no log file holds them'
            if newest is None:
                loss = f'series "{name}" cannot be restored: {loss}'
        elif rebuilt.unclear:
            lsns = spell(rebuilt.unclear)
            loss = f'of series "{name}" ingest entries with LSN {lsns}: their beginning is not in the log'
        self._add((lost or trees)[0].path, action, act, loss)

    def _write_tree(self, trees: list[Tree], name: str, counters: dict[int, Counter], lsn: int) -> None:
        ordinals = [
            tree.file.ordinal for tree in trees if tree.file is not None and tree.file.ordinal is not None
        ]
        ordinal = ordinals[0] if ordinals else len(self._checked.trees)
        snapshot.write_tree(self._disk, self._directory, name, counters, lsn, self._now_unix, ordinal)

    def _loss_without_log(self, name: str, lost: list[Tree], base_lsn: int) -> str | None:
        lsns = [tree.lsn for tree in lost if tree.lsn is not None]
        if not self._checked.has_log:
            if not lsns and not base_lsn:
                return f'all of series "{name}": no log and no other snapshot has it, a backup may'
            upto = f" up to LSN {max(lsns)}" if lsns else ""
            return f'of series "{name}" everything behind LSN {base_lsn}{upto}: there is no log'
        cut = self._cut
        if cut is None or cut.proof is None or (lsns and max(lsns) < cut.lsn):
            return None
        lost_lsns = spell([(cut.lsn, max(lsns))]) if lsns else f"{cut.lsn} on"
        return f'of series "{name}" what LSN {lost_lsns} changed: the log is damaged there'

    # -- The log -------------------------------------------------------------------------------

    def _cut_at(self, holes: list[Hole]) -> Hole | None:
        """Return where the log stops being of use: at a hole, or at an entry that nobody can apply."""
        refusal = self._checked.refusal
        for file in self._checked.log:
            path = file.segment.path
            if (
                refusal is not None
                and refusal.file == path
                and refusal.offset_bytes is not None
                and refusal.lsn
            ):
                is_known = any(hole.lsn == refusal.lsn for hole in self._checked.holes)
                if not is_known and (not holes or refusal.lsn < holes[0].lsn):
                    return Hole(
                        file.segment,
                        refusal.offset_bytes,
                        refusal.lsn,
                        refusal.message,
                        refusal.lsn,
                        "it can be read",
                    )
        return holes[0] if holes else None

    def _plan_log(self) -> None:
        cut = self._cut
        if cut is None:
            return
        segments = [file.segment for file in self._checked.log]
        tail = recovery.tail_at(segments, cut.segment, cut.offset_bytes, cut.lsn, cut.reason)
        self._cut_paths = [tail.path, *tail.later]
        files = f" and {many(len(tail.later), 'file')} behind it" if tail.later else ""
        action = f"keep the log up to LSN {cut.lsn - 1} and move {tail.cut_bytes} bytes{files} aside"
        if cut.proof is None:
            act = partial(self._cut_log, tail, writes_requests=False)
            self._add(tail.path, f"{action}: a torn tail ({cut.reason}), as the server cuts it", act)
            return

        def lines() -> Iterator[Line]:
            behind = segments[segments.index(cut.segment) :]
            for found in recovery.scan_lines(self._disk, behind, cut.lsn):
                if found.segment is cut.segment and found.offset_bytes < cut.offset_bytes:
                    continue
                line = found.line
                if line is not None and line.lsn > self._series_lsn.get(str(line.entry.get("series")), 0):
                    yield line

        self._lost_lines = lines
        if self._plan_truncation():
            return
        counted = losses.count(lines())
        gaps = [
            (hole.lsn, hole.next_lsn - 1)
            for hole in self._checked.holes
            if hole.lsn >= cut.lsn and hole.next_lsn is not None and hole.next_lsn > hole.lsn
        ]
        parts = [f"what LSN {spell(gaps)} held, which cannot be read"] if gaps else []
        parts += counted.sentences()
        parts.append(f"followers that hold entries from LSN {cut.lsn} on must be rebuilt")
        act = partial(self._cut_log, tail, writes_requests=True)
        self._add(tail.path, f"{action} ({cut.reason})", act, "; ".join(parts), counted)

    def _plan_truncation(self) -> bool:
        """Plan to end a truncation of the log, where snapshots hold all that the damaged files hold.

        create_all writes the ingest file last: at its LSN each series that existed has a snapshot.
        """
        log, covered_lsn = self._checked.log, self._checked.aside.streams_lsn
        if covered_lsn is None or any(lsn < covered_lsn for lsn in self._series_lsn.values()):
            return False
        for at, file in enumerate(log):
            is_whole = not any(hole.proof for later in log[at:] for hole in later.holes)
            if file.entries and is_whole and file.first_lsn <= covered_lsn + 1:
                covered = self._cut_paths = [each.segment.path for each in log[:at]]
                action = (
                    f"move {many(at, 'log file')} aside: the snapshots at LSN {covered_lsn} hold all of it"
                )
                self._add(covered[0], action, partial(self._truncate, file.first_lsn - 1, covered))
                return True
        return False

    def _truncate(self, lsn: int, covered: list[Path], folder: Path) -> None:
        self._write_truncated_lsn(lsn, folder)
        for path in covered:
            self._move(path, folder)
            self._move(wal.index_path(path), folder)

    def _cut_log(self, tail: recovery.Tail, folder: Path, *, writes_requests: bool) -> None:
        if writes_requests:
            self._disk.write_file(folder / REQUESTS_NAME, losses.requests(self._lost_lines()))
        recovery.cut_tail(self._disk, tail, folder, self._now_unix)

    # -- The rest ------------------------------------------------------------------------------

    def _plan_aside(self) -> None:
        aside, directory = self._checked.aside, self._directory
        if aside.records_file is not None:
            self._plan_records(aside.records_file)
        if aside.streams_problem is not None:
            self._plan_streams()
        if aside.checkpoints_problem is not None:
            path = directory / snapshot.CHECKPOINTS_NAME
            loss = "the recovery checkpoints of all sources: each must send where it stands again"
            self._add(path, "move it aside", partial(self._move, path), loss)
        if aside.exchange_problem is not None:
            path = directory / install.INCOMING_NAME
            loss = (
                "that a source's data were about to take the place of those here: if these are not whole, "
                "rebuild the node from its source"
            )
            self._add(path, "move it aside", partial(self._move, path), loss)
        if aside.node_problem is not None:
            path = directory / node_file.NODE_NAME
            loss = (
                "who the node is, its role, epochs and fence: the next start makes a new node, as a master "
                "one of a cluster of its own. If another node is master, start it as its slave and rebuild it"
            )
            self._add(path, "move it aside", partial(self._move, path), loss)

    def _plan_records(self, damaged: Path) -> None:
        path = self._directory / snapshot.RECORDS_NAME
        metadata = path.with_name(path.name + ".meta.json")
        if damaged == metadata and rebuild.has_records(self._directory):
            action = "move it aside: the records themselves are whole, and the log brings them up to date"
            self._add(metadata, action, partial(self._move, metadata))
            return

        def act(folder: Path) -> None:
            self._move(path, folder)
            self._move(metadata, folder)

        loss = (
            f"idempotency records and committed ingest streams up to LSN {self._truncated_lsn}: a retry of a "
            "write from before is not recognised any more and counts again"
        )
        self._add(path, "move it and its metadata aside", act, loss)

    def _plan_streams(self) -> None:
        path = self._directory / snapshot.STREAMS_NAME
        orphans = list(rebuild.orphaned_chunks(self._disk, self._directory))
        parts = [
            "ingest streams that were open at the last snapshot, with what replace_series streams had staged"
        ]
        if orphans:
            parts.append("what the log holds of them, which cannot be applied without them")
        counted = losses.count(orphans)
        parts += counted.sentences()
        self._add(path, "move it aside", partial(self._move, path), "; ".join(parts), counted)

    def _plan_indexes(self) -> None:
        directory = self._directory
        files = {
            wal.index_path(file.segment.path): file for file in self._checked.retained + self._checked.log
        }
        for folder in (directory / wal.RETAINED_NAME, directory):
            for path in (
                folder / name for name in self._disk.list_names(folder) if name.endswith(".segment.idx")
            ):
                file = files.get(path)
                if file is not None and file.segment.path in self._cut_paths:
                    continue
                if file is None or (file.index_problem is not None and file.holes):
                    self._add(path, "move it aside: it fits no segment", partial(self._move, path))
                elif file.index_problem is not None:
                    self._add(
                        path, "build it anew from its segment", partial(self._rebuild_index, file.segment)
                    )

    def _rebuild_index(self, segment: wal.Segment, folder: Path) -> None:
        self._move(wal.index_path(segment.path), folder)
        wal.write_index(self._disk, segment, wal.index_points(self._disk, segment))

    def _plan_refusal(self) -> None:
        """Plan for a file on which the server does not start and that no other step is about."""
        refusal = self._checked.refusal
        if refusal is None or self.steps:
            return
        name = name_in(self._directory, refusal.file)
        loss = f"what {name} holds ({refusal.message}): nothing else here has it, a backup may"
        self._add(refusal.file, "move it aside", partial(self._move, refusal.file), loss)

    # -- Moving --------------------------------------------------------------------------------

    def _finish_exchange(self) -> None:
        install.finish(self._disk, self._directory)

    def _add(
        self, path: Path, action: str, act: Act, loss: str | None = None, counted: Losses | None = None
    ) -> None:
        self.steps.append(Step(name_in(self._directory, path), action, act, loss, counted or Losses()))

    def _plan_move(self, trees: list[Tree], action: str, loss: str | None = None) -> None:
        for tree in trees:
            self._add(tree.path, action, partial(self._move_tree, tree), loss)

    def _move_tree(self, tree: Tree, folder: Path) -> None:
        # Metadata without its file is what a lost file looks like, so the metadata goes first.
        self._move(tree.metadata_path, folder)
        self._move(tree.path, folder)
        last_set = manifest.load(self._disk, self._directory)
        if tree.path.name in last_set.files:
            self._save_set(last_set.without(tree.path.name), folder)

    def _move(self, path: Path, folder: Path) -> None:
        """Move a file aside, if it is there, where nothing is replaced."""
        if path.name not in self._disk.list_names(path.parent):
            return
        taken, name, number = set(self._disk.list_names(folder)), path.name, 1
        while name in taken:
            number += 1
            name = f"{number}-{path.name}"
        self._disk.rename(path, folder / name)


def _series_of(trees: list[Tree]) -> str | None:
    """Return the name of a series from any of its snapshots, or from the file name where that is the name."""
    for tree in trees:
        if tree.file is not None and tree.lsn is not None:
            return tree.file.series
    stem = trees[0].stem
    # A name that was encoded for the file system cannot be told from one that only looks like it.
    return None if "%" in stem or "~" in stem else stem
