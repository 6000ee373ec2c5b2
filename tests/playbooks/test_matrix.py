"""The fault matrix: each step of each book meets each fault, and each cell ends done, undone or paused.

What must hold in every cell, while writers write to every node:

- a run that stopped says how to go on, and going on leads to done or undone;
- at the end one node takes writes, the others follow it, and all hold the same;
- a promotion opens one epoch, whatever happened to who ordered it, and an undone switchover opens none;
- no write that was acknowledged is lost by a planned change of roles, and none counts twice; an emergency
  loses no more than it showed, unless it had called that unknown;
- never do two nodes take writes, not even one after the other and back;
- nothing was done without an intent in the journal, and no step's action counts as done twice.

`make matrix` runs all of it: every fault at every step of switchover and failover, three faults at every step
of the other books. A test run takes a seeded sample (KARMA_MATRIX_CELLS, 40; KARMA_MATRIX_SEED).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from harness import ROOT, Refused, until
from playbooks.fleet import NAMES, Fleet, Node

from karma_playbooks.catalog import BY_NAME
from karma_playbooks.history import History, fold
from karma_playbooks.journal import Journal
from karma_playbooks.library import BOOKS, load_book

FAULTS = (
    "killed before intent",
    "killed after intent",
    "killed after effect",
    "cut before effect",
    "cut after effect",
    "sshd hung",
    "target killed",
    "disk full on target",
    "disk full in journal",
    "host key changed",
    "sudo refused",
    "drain stalls",
    "second operator",
    "old master back",
    "Ctrl-C",
)
OTHERS = ("killed after intent", "cut after effect", "target killed")
"""What the books beside switchover and failover are tried with."""
SAMPLE = os.environ.get("KARMA_MATRIX_CELLS", "40")
SEED = int(os.environ.get("KARMA_MATRIX_SEED", "7"))
MOST_RESUMES = 4
DAY = 20260505


class Cell(NamedTuple):
    """One fault at one step of one book."""

    book: str
    step: str
    fault: str


FOUND = [
    Cell("switchover", "promote", "killed after effect"),
    Cell("switchover", "promote", "second operator"),
]
"""Cells that were red in a whole run; each test run plays them."""


def all_cells() -> list[Cell]:
    found = []
    for path in sorted(BOOKS.glob("*.yml")):
        book = load_book(path.stem, Path("/nowhere"))
        faults = FAULTS if book.name in {"switchover", "failover"} else OTHERS
        for step in book.steps:
            if step.id in {"unverified", "replay", "master"}:
                continue
            for fault in faults:
                has_intent = BY_NAME[step.call.action].changes
                if not has_intent and fault in {"killed after intent", "cut after effect"}:
                    continue
                if fault == "sudo refused" and BY_NAME[step.call.action].place != "host":
                    continue
                if fault == "old master back" and book.name != "failover":
                    continue
                if (
                    fault == "target killed"
                    and book.name == "failover"
                    and step.id in {"death", "stop", "fence"}
                ):
                    continue
                found.append(Cell(book.name, step.id, fault))
    return found


def chosen_cells() -> list[Cell]:
    cells = all_cells()
    return cells if SAMPLE == "all" else sorted({*Random(SEED).sample(cells, int(SAMPLE)), *FOUND})


class Ack(NamedTuple):
    """A write that was acknowledged: when it was sent, and when the answer was there."""

    key: int
    sent: float
    received: float


class Writer(threading.Thread):
    """Adds 1 to keys of its own on one node, as far as it takes writes, and remembers the answers.

    Each write has an idempotency key and is sent again until it is answered.
    """

    def __init__(self, node: Node, first_key: int) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._key = first_key
        self._ending = threading.Event()
        self.acknowledged: list[Ack] = []
        self.problems: list[str] = []

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                with self._node.server.connect(2.0) as connection:
                    self._write(connection)
            except (OSError, AssertionError, ValueError):
                self._ending.wait(0.05)

    def _write(self, connection: Any) -> None:
        while not self._ending.is_set():
            sent, key = time.monotonic(), self._key
            about = {"key": key, "bucket": DAY, "idempotency_key": f"w{key}"}
            reply = connection.call("counter.increment", series="w", **about)
            if reply["success"]:
                self.acknowledged.append(Ack(key, sent, time.monotonic()))
                self._key += 1
            elif reply["error_code"] not in {"forbidden", "storage_error"}:
                self.problems.append(str(reply))
            self._ending.wait(0.004 if reply["success"] else 0.02)

    def stop(self) -> None:
        self._ending.set()
        self.join()


class Cells:
    """A fleet on which one cell after another is played."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.count = 0
        self.is_broken = False
        """A cell failed, so that nobody knows what it left behind."""
        self._key = 0
        self.sudo_flag = fleet.folder / "refuse-sudo"
        for each in fleet.sshds.values():
            folder = each.folder / "bin"
            folder.mkdir()
            script = folder / "sudo"
            # It does what sudo would do, as this user, unless it is told to refuse.
            script.write_text(
                "#!/bin/sh\n"
                f"if [ -e {self.sudo_flag} ]; then echo 'sudo: a password is required'; exit 1; fi\n"
                'while [ "$1" != -- ]; do shift; done; shift\nexec "$@"\n'
            )
            script.chmod(0o755)

    # -- The cluster between two cells
    # ---------------------------------------------------------------------------

    def settle(self) -> tuple[Node, Node, Node]:
        """Bring the nodes into order: all up, one master that takes writes, two followers; returns them."""
        for node in self.fleet.nodes.values():
            if node.pid is None:
                node.start()
            until(lambda node=node: node.ask("system.ping") == "pong")  # type: ignore[misc]
        nodes = list(self.fleet.nodes.values())
        masters = [node for node in nodes if is_writable(node)]
        master = masters[0] if masters else max(nodes, key=rank)
        until(lambda: self._is_master(master))
        others = [node for node in nodes if node is not master]
        for node in others:
            until(lambda node=node: follows(node, master))  # type: ignore[misc]
        until(lambda: is_equal(nodes), 40.0, why=lambda: [node.status() for node in nodes])
        return master, others[0], others[1]

    @staticmethod
    def _is_master(node: Node) -> bool:
        if not is_writable(node):
            # A node that was down when its run ended holds that run's lease and fence still.
            node.ask("replication.resume", force=True)
            if not is_writable(node):
                node.ask("replication.promote", force=True)
        return is_writable(node)

    # -- One cell
    # ------------------------------------------------------------------------------------------------

    def play(self, cell: Cell) -> None:
        self.count += 1
        self.is_broken = True
        master, to, other = self.settle()
        epoch = master.status()["epoch"]
        writers = [Writer(node, self._next_keys()) for node in self.fleet.nodes.values()]
        for writer in writers:
            writer.start()
        until(lambda: any(len(writer.acknowledged) > 10 for writer in writers))
        if cell.book == "failover":
            master.kill()
            until(lambda: all(node.status()["replication_state"] == "connecting" for node in (to, other)))
            to, other = sorted((to, other), key=rank, reverse=True)
        params, victim = self._cast(cell, master, to)
        if cell.book == "rejoin-old-master":
            master.kill()
            # The run before, whose controller was killed, may hold a lease for some seconds yet.
            to.ask("replication.promote", force=True)
            until(lambda: follows(other, to))
            master.start()
            until(lambda: master.status()["fenced_by"] is not None)
            epoch = to.status()["epoch"]
        if cell.book == "unfence":
            master.ask("replication.fence", epoch=epoch, reason="the cell wants it")
        state = self.fleet.folder / f"state-{self.count}"
        story: list[Any] = []
        try:
            history = self._to_its_end(cell, params, victim, state, story)
            time.sleep(0.2)
        finally:
            for writer in writers:
                writer.stop()
        try:
            self._check(cell, history, writers, epoch, state)
        except BaseException as error:
            error.add_note(json.dumps(story, indent=1)[-6000:])
            raise
        self.is_broken = False

    def _next_keys(self) -> int:
        self._key += 1_000_000
        return self._key

    def _cast(self, cell: Cell, master: Node, to: Node) -> tuple[dict[str, str], str]:
        """The parameters of a book, and the node that the fault meets: mostly the step's own."""
        match cell.book:
            case "switchover":
                is_old = (
                    cell.step in {"pause", "still", "fence", "repoint-old"} and cell.fault != "drain stalls"
                )
                return {"to": to.name}, (master if is_old else to).name
            case "failover":
                is_old = cell.step in {"death", "stop", "fence"} or cell.fault == "old master back"
                return {"to": to.name, "from": master.name}, (master if is_old else to).name
            case "rejoin-old-master":
                return {"node": master.name}, master.name
            case "fence" | "unfence":
                return {"node": master.name}, master.name
            case "backup-and-verify":
                folder = self.fleet.folder / f"backup-{self.count}"
                return {"node": to.name, "folder": str(folder)}, to.name
            case "rolling-upgrade":
                return {"command": "true", "back": "true", "version": "2.0.0"}, to.name
            case "rolling-restart":
                return {}, to.name
        return {"node": to.name}, to.name

    def _to_its_end(
        self, cell: Cell, params: dict[str, str], victim: str, state: Path, story: list[Any]
    ) -> History | None:
        """Run, and go on as long as the run says that it can."""
        found = self._controller(cell, params, victim, state, story)
        if "refused" in found and found.get("run") is None and not runs_in(state):
            return None
        (run,) = runs_in(state)
        # A cell that never comes to its step proves nothing.
        assert story[0]["code"] == -9 or any(line.startswith(f"{cell.step}: ") for line in found["told"]), (
            found
        )
        history = history_in(state, run)
        killed = cell.fault.startswith("killed") or cell.fault == "disk full in journal"
        if found.get("ending") is None:
            assert killed or "refused" in found, found
        elif found["ending"] == "paused":
            assert any(line.startswith("paused") for line in found["told"]), found
        for _ in range(MOST_RESUMES):
            if history.is_over:
                return history
            self._revive(cell, params)
            found = self._controller(cell._replace(fault=""), params, victim, state, story, resume=run)
            history = history_in(state, run)
        assert history.is_over, (history.state, history.why)
        return history

    def _revive(self, cell: Cell, params: dict[str, str]) -> None:
        """What an operator does before going on: start what is down, except a dead master."""
        if cell.fault == "target killed":
            for node in self.fleet.nodes.values():
                if node.pid is None and node.name != params.get("from"):
                    node.start()

    def _controller(
        self, cell: Cell, params: dict[str, str], victim: str, state: Path, story: list[Any], resume: str = ""
    ) -> dict[str, Any]:
        has_sudo = cell.fault == "sudo refused" or bool(resume and self._has_sudo)
        self._has_sudo = has_sudo
        spec = {
            "book": cell.book,
            "params": params,
            "fault": cell.fault,
            "step": cell.step,
            "victim": victim,
            "state": str(state),
            "resume": resume,
            "entries": {name: entry._asdict() for name, entry in self.fleet.entries(sudo=has_sudo).items()},
            "host_keys": {
                name: each.known_host.split(" ", 1)[1].strip() for name, each in self.fleet.sshds.items()
            },
            "sshd_pids": {name: each.process.pid for name, each in self.fleet.sshds.items() if each.process},
            "sudo_flag": str(self.sudo_flag),
        }
        ran = subprocess.run(
            [sys.executable, "-m", "playbooks.controller"],
            input=json.dumps(spec),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT / "tests",
            timeout=100,
        )
        story.append(
            {"resume": resume, "code": ran.returncode, "out": ran.stdout[-3000:], "err": ran.stderr[-3000:]}
        )
        if ran.returncode == -9:
            return {"told": []}
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    _has_sudo = False

    # -- What must hold
    # --------------------------------------------------------------------------------------------

    def _check(
        self, cell: Cell, history: History | None, writers: list[Writer], epoch: int, state: Path
    ) -> None:
        ending = history.state if history is not None else "refused"
        assert not [problem for writer in writers for problem in writer.problems]
        if history is not None:
            self._check_journal(history, state)
        abouts = list(filter(None, map(status_of, self.fleet.nodes.values())))
        number = max(about["epoch"] for about in abouts)
        if cell.book == "switchover":
            writable = [about for about in abouts if may_write(about)]
            assert len(writable) == 1 or cell.fault == "target killed", (ending, writable)
            assert number == epoch + (ending == "done"), (ending, number, epoch)
        if cell.book == "failover" and ending == "done":
            assert number == epoch + 1
        if cell.book in {"switchover", "failover"}:
            check_one_writer(writers)
        if cell.book == "backup-and-verify" and ending == "done":
            assert (self.fleet.folder / f"backup-{self.count}").is_dir()
        master, *_ = self.settle()
        keys = [ack.key for writer in writers for ack in writer.acknowledged]
        values: dict[int, int] = {}
        for at in range(0, len(keys), 500):
            found = master.ask("counter.batch_sum", series="w", keys=keys[at : at + 500])
            values |= {each["key"]: each["value"] for each in found}
        assert all(value <= 1 for value in values.values()), "a write counts twice"
        lost = [key for key, value in values.items() if value != 1]
        if cell.book not in {"failover", "rejoin-old-master"}:
            assert not lost, f"{ending}: acknowledged and lost: {lost[:20]}"
        if cell.book == "failover" and history is not None and history.state == "done":
            loss = history.header["plan"]["loss"]
            assert not loss["is_exact"] or len(lost) <= loss["entries"], (len(lost), loss)

    def _check_journal(self, history: History, state: Path) -> None:
        assert not history.open_attempts(), history.open_attempts()
        counted: dict[tuple[str, str, int], int] = {}
        for attempt in history.attempts:
            if attempt.outcome == "done" and not attempt.has_lapsed:
                place = attempt.step, attempt.target, attempt.place
                counted[place] = counted.get(place, 0) + 1
        assert all(count == 1 for count in counted.values()), counted
        intents = {
            f"{a.step}.{a.target}.{a.number if a.place < 0 else f'undo{a.place}.{a.number}'}"
            for a in history.attempts
        }
        for each in self.fleet.sshds.values():
            folder = each.home / ".karma-playbook" / history.run
            jobs = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
            assert set(jobs) <= intents, (jobs, intents)
            # What the hosts themselves say: no command succeeded twice, unless it was done anew on purpose.
            good = [name.rpartition(".")[0] for name in jobs if read(folder / name / "status") == "0"]
            anew = [f"{a.step}.{a.target}" for a in history.attempts if a.has_lapsed]
            assert all(good.count(name) == 1 for name in good if name not in anew), good


def check_one_writer(writers: list[Writer]) -> None:
    """No node acknowledged a write that was sent when another one had acknowledged its first already."""
    acks = [writer.acknowledged for writer in writers if writer.acknowledged]
    acks.sort(key=lambda found: found[0].received)
    for earlier, later in pairwise(acks):
        overlap = [ack for ack in earlier if ack.sent > later[0].received]
        assert not overlap, f"two nodes took writes at the same time: {overlap[:3]}"


def read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def runs_in(state: Path) -> list[str]:
    journal = Journal(state / "journal.db")
    try:
        return journal.runs()
    finally:
        journal.close()


def history_in(state: Path, run: str) -> History:
    journal = Journal(state / "journal.db")
    try:
        return fold(run, journal.entries(run))
    finally:
        journal.close()


def status_of(node: Node) -> dict[str, Any] | None:
    """What a node says, None while it is down or starting."""
    try:
        return node.status()
    except OSError:
        return None


def may_write(about: dict[str, Any]) -> bool:
    return about["role"] == "master" and not about["fenced_by"] and not about["paused_until"]


def is_writable(node: Node) -> bool:
    return may_write(node.status())


def rank(node: Node) -> tuple[int, int]:
    about = node.status()
    return max(each["epoch"] for each in about["epochs"]), about["wal_current_lsn"]


def follows(node: Node, master: Node) -> bool:
    """Whether it follows the master. It is told to once, not again and again: each order begins anew."""
    about = node.status()
    if about["source"] == master.address and about["replication_state"] not in {"diverged", "refused"}:
        return str(about["replication_state"]) == "following"
    with node.server.connect() as connection:
        source = {"host": "127.0.0.1", "port": master.port, "force": True}
        reply = connection.call("replication.follow", **source)
        if not reply["success"] and (reply.get("error_detail") or {}).get("reason") == "diverged":
            connection.call("replication.follow", **source, rebuild=True)
    return False


def is_equal(nodes: list[Node]) -> bool:
    try:
        return len({json.dumps(node.ask("replication.checksum")) for node in nodes}) == 1
    except Refused:
        return False


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Cells]]:
    """The fleet of the cells; one that a cell left in a mess is replaced."""
    made: list[Cells] = []

    def current() -> Cells:
        if not made or made[-1].is_broken:
            sshd = Path("/usr/sbin/sshd")
            if made:
                made[-1].fleet.close()
            folder = tmp_path_factory.mktemp("fleet")
            options = {"max_request_bytes": 1_000_000, "max_response_bytes": 10_000_000}
            made.append(Cells(Fleet(folder / "f", sshd, **options)))
        return made[-1]

    yield current
    for each in made:
        each.fleet.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", chosen_cells(), ids=lambda cell: "-".join(cell).replace(" ", "_"))
def test_every_cell_ends_well(cell: Cell, cells: Callable[[], Cells], sshd: Path) -> None:
    cells().play(cell)


def test_the_matrix_is_as_large_as_promised() -> None:
    cells = all_cells()
    assert len(chosen_cells()) >= 40
    assert {cell.book for cell in cells} == {path.stem for path in BOOKS.glob("*.yml")}
    assert set(NAMES) == {"a", "b", "c"}
