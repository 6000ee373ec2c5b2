"""An operator's machine as a process of its own, which one chosen fault meets at one chosen step.

It takes a JSON object on standard input and prints one. Links from it to nodes and hosts lead through a proxy
in
this process, so that cutting them leaves the nodes among themselves alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from faults.proxy import Link, Proxy
from playbooks.fleet import approved

from karma_client import AsyncClient, connect_async
from karma_playbooks import world as world_
from karma_playbooks.control import Playbooks, Request
from karma_playbooks.errors import PlaybookError
from karma_playbooks.history import Entry as JournalEntry
from karma_playbooks.inventory import Entry, entries
from karma_playbooks.journal import Journal
from karma_playbooks.library import load_book
from karma_playbooks.transports.shell import Shell
from karma_playbooks.transports.ssh import SshShell
from karma_playbooks.world import World

CONNECT_SECONDS = 2.0
STALL_SECONDS = 3.0


class Spec:
    """What the test wants of this process."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.state = Path(data["state"])
        self.entries = {name: entries([about])[0] for name, about in data["entries"].items()}
        self.fault: str = data.get("fault", "")
        self.step: str = data.get("step", "")
        self.victim: str = data.get("victim", "")
        """The node that the fault happens to."""


class Trouble:
    """Brings the fault about when its step begins, and takes it away when the step's action is over."""

    def __init__(self, spec: Spec, karma: Mapping[str, Link], ssh: Mapping[str, Link], known: Path) -> None:
        self._spec = spec
        self._karma, self._ssh = karma, ssh
        self._known = known
        self._is_due = bool(spec.fault)
        self._heal: list[Any] = []
        self.journal: FaultyJournal | None = None

    def told(self, text: str) -> None:
        """A step begins, or a run turns round."""
        self.heal()
        if self._is_due and text.startswith(f"{self._spec.step}: "):
            self._begin()

    def before(self, kind: str, data: Mapping[str, Any]) -> None:
        """An entry is about to be written."""
        if not self._is_here(data):
            return
        if kind == "intent" and self._spec.fault == "cut after effect":
            self._break_replies()
        is_over = kind in {"outcome", "seen"}
        if is_over and self._spec.fault == "killed after effect" and self._is_due:
            _die()
        if is_over:
            self.heal()

    def after(self, kind: str, data: Mapping[str, Any]) -> None:
        """An entry was written."""
        if self._is_here(data) and kind == "intent" and self._spec.fault == "killed after intent":
            _die()

    def _is_here(self, data: Mapping[str, Any]) -> bool:
        return data.get("step") == self._spec.step and data.get("place", -1) < 0

    def heal(self) -> None:
        while self._heal:
            self._heal.pop()()

    def _links(self) -> list[Link]:
        return [self._karma[self._spec.victim], self._ssh[self._spec.victim]]

    def _break_replies(self) -> None:
        if self._is_due:
            self._is_due = False
            for link in self._links():
                link.break_after(1)
            self._heal.append(partial(_open, self._links()))

    def _begin(self) -> None:
        if self._spec.fault.startswith("killed after") or self._spec.fault == "cut after effect":
            return
        self._is_due = False
        victim = self._spec.entries[self._spec.victim]
        match self._spec.fault:
            case "killed before intent":
                _die()
            case "Ctrl-C":
                os.kill(os.getpid(), signal.SIGINT)
            case "cut before effect":
                self._set("cut", self._links())
            case "sshd hung":
                self._set("hole", [self._ssh[self._spec.victim]])
            case "target killed":
                _kill(victim)
            case "old master back":
                subprocess.Popen(
                    victim.service_command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            case "disk full on target":
                self._fill_disks(victim)
            case "disk full in journal":
                assert self.journal is not None
                self.journal.fill()
            case "host key changed":
                good = self._known.read_text()
                lines = good.splitlines()
                keys = [line.split(" ", 1)[1] for line in lines]
                wrong = zip((line.split(" ", 1)[0] for line in lines), keys[1:] + keys[:1], strict=True)
                self._known.write_text("".join(f"{place} {key}\n" for place, key in wrong))
                for link in self._ssh.values():
                    link.reset()
                self._heal.append(lambda: self._known.write_text(good))
            case "sudo refused":
                flag = Path(self._spec.data["sudo_flag"])
                flag.touch()
                self._heal.append(lambda: flag.unlink(missing_ok=True))
            case "drain stalls":
                pid = _pid(victim)
                if pid is not None:
                    os.kill(pid, signal.SIGSTOP)
                    timer = threading.Timer(STALL_SECONDS, os.kill, (pid, signal.SIGCONT))
                    timer.start()
            case "second operator":
                self._second_operator()
            case other:
                raise AssertionError(other)

    def _set(self, mode: Any, links: list[Link]) -> None:
        for link in links:
            link.set(mode)
        self._heal.append(partial(_open, links))

    def _fill_disks(self, victim: Entry) -> None:
        """No file of the server and of its host's sessions may grow while the step is under way."""
        pids = [pid for pid in (_pid(victim), *_tree(self._spec.data["sshd_pids"][self._spec.victim])) if pid]
        for pid in pids:
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
            self._heal.append(lambda pid=pid, before=before: _unlimit(pid, before))

    def _second_operator(self) -> None:
        """Another operator begins: on a machine and a login of their own, who calls the cluster otherwise."""
        state = str(self._spec.state) + "-second"
        homes = {
            name: {**about, "playbook_directory": f"{state}/home-{name}"}
            for name, about in self._spec.data["entries"].items()
        }
        data = {**self._spec.data, "fault": "", "state": state, "resume": "", "context": "berlin"}
        data["entries"] = homes
        command = [sys.executable, "-m", "playbooks.controller"]
        # This process waits in the meantime, links and all: the other one has links of its own.
        ran = subprocess.run(command, input=json.dumps(data), capture_output=True, text=True, check=False)
        found = json.loads(ran.stdout)
        assert "refused" in found, found
        # Between the fence and the promotion there is no master that a plan could name.
        reasons = ("a run ", "the run lock", "cannot", "no node takes writes")
        assert any(reason in found["refused"] for reason in reasons), found


class FaultyJournal(Journal):
    """A journal that tells `Trouble` what happens, and can be filled up."""

    def __init__(self, path: Path, trouble: Trouble) -> None:
        super().__init__(path)
        self._met = trouble
        trouble.journal = self

    def append(self, run: str, kind: str, data: Mapping[str, Any]) -> JournalEntry:
        self._met.before(kind, data)
        entry = super().append(run, kind, data)
        self._met.after(kind, data)
        return entry

    def fill(self) -> None:
        """Let SQLite have no page more than it has."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {pages}")


class LinkedWorld(World):
    """A world whose ways lead through links."""

    def shell(self, entry: Entry) -> Shell:
        return SshShell(entry, CONNECT_SECONDS)


def _open(links: list[Link]) -> None:
    for link in links:
        link.set("open")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _pid(entry: Entry) -> int | None:
    words = (Path(entry.directory) / "karma.lock").read_text().split()
    folder = Path(f"/proc/{words[1]}/fd")
    with contextlib.suppress(OSError):
        if any(str(path.readlink()).endswith("/karma.lock") for path in folder.iterdir()):
            return int(words[1])
    return None


def _kill(entry: Entry) -> None:
    if (pid := _pid(entry)) is not None:
        os.kill(pid, signal.SIGKILL)


def _tree(pid: int) -> list[int]:
    """A process with everything below it."""
    found = [pid]
    for child in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if child.read_text().rpartition(")")[2].split()[1] == str(pid):
                found += _tree(int(child.parent.name))
    return found


def _unlimit(pid: int, before: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def main() -> None:
    """Do what standard input says."""
    spec = Spec(json.load(sys.stdin))
    world_.HOST_SECONDS = 3.0
    told: list[str] = []
    answer: dict[str, Any] = {}
    with Proxy() as proxy:
        karma = {name: proxy.link(partial(int, entry.endpoint[1])) for name, entry in spec.entries.items()}
        ssh = {name: proxy.link(partial(int, entry.ssh_port)) for name, entry in spec.entries.items()}
        known = _known_hosts(spec, ssh)
        trouble = Trouble(spec, karma, ssh, known)

        def tell(text: str) -> None:
            told.append(text)
            trouble.told(text)

        ports = {entry.address: karma[name].port for name, entry in spec.entries.items()}

        def connect(address: str) -> AsyncClient:
            place = f"127.0.0.1:{ports[address]}"
            return connect_async(
                place, target="any", timeout_seconds=2.0, connect_timeout_seconds=1.0, max_attempts=1
            )

        linked = {
            name: entry._replace(ssh_port=ssh[name].port, ssh_known_hosts=str(known))
            for name, entry in spec.entries.items()
        }
        world = LinkedWorld(
            linked,
            connect,
            lambda *_: None,
            approved,
            lambda entry: spec.data.get("secret"),
            spec.state,
        )
        journal = FaultyJournal(spec.state / "journal.db", trouble)
        playbooks = Playbooks(world, journal, spec.data.get("context", "matrix"), False, tell)
        try:
            answer["run"], answer["ending"] = asyncio.run(_carry_out(playbooks, spec))
        except PlaybookError as error:
            answer["refused"] = error.message
            answer["advice"] = error.advice
        trouble.heal()
    json.dump({**answer, "told": told}, sys.stdout)


def _known_hosts(spec: Spec, ssh: Mapping[str, Link]) -> Path:
    path = spec.state / f"known_hosts.{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"[127.0.0.1]:{ssh[name].port} {spec.data['host_keys'][name]}\n" for name in spec.entries]
    path.write_text("".join(lines))
    return path


async def _carry_out(playbooks: Playbooks, spec: Spec) -> tuple[str, str]:
    try:
        if spec.data.get("resume"):
            return spec.data["resume"], await playbooks.resume(spec.data["resume"], "tester", takeover=True)
        book = load_book(spec.data["book"], Path("/nowhere"))
        shown = await playbooks.plan(book, spec.data["params"])
        request = Request("tester", "the matrix", ignores_cooldown=True)
        return await playbooks.run(book, spec.data["params"], shown, request)
    finally:
        await playbooks.world.close()


if __name__ == "__main__":
    main()
