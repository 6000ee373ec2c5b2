"""Commands on hosts: once, detached, and never lost sight of. The same over SSH and on this machine."""

from __future__ import annotations

import asyncio
import getpass
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from faults.proxy import Proxy
from harness import until
from playbooks.fleet import Sshd, keygen

from karma_playbooks.inventory import Entry
from karma_playbooks.transports.host import Finished, Host, NotStartedError, UnknownError
from karma_playbooks.transports.local import LocalShell
from karma_playbooks.transports.shell import Shell, UnreachableError
from karma_playbooks.transports.ssh import SshShell

T = TypeVar("T")
KEY = "run-1/step.1"


class Hosts:
    """Daemons of one user, and hosts behind them."""

    def __init__(self, folder: Path, sshd: Path) -> None:
        self.folder = folder
        keygen(folder / "id")
        self.daemons = [Sshd(sshd, folder / name, folder / "id") for name in ("one", "two")]
        (folder / "known_hosts").write_text("".join(each.known_host for each in self.daemons))

    def entry(self, **changes: Any) -> Entry:
        about = {
            "ssh_host": "127.0.0.1",
            "ssh_port": self.daemons[0].port,
            "ssh_user": getpass.getuser(),
            "ssh_identity": str(self.folder / "id"),
            "ssh_known_hosts": str(self.folder / "known_hosts"),
        }
        return Entry("one", "127.0.0.1:1", **{**about, **changes})

    def close(self) -> None:
        for each in self.daemons:
            each.stop()


@pytest.fixture
def hosts(tmp_path: Path, sshd: Path) -> Iterator[Hosts]:
    found = Hosts(tmp_path, sshd)
    yield found
    found.close()


@pytest.fixture(params=["local", "ssh"])
def shell(request: pytest.FixtureRequest) -> Callable[[], Shell]:
    if request.param == "local":
        return LocalShell
    hosts: Hosts = request.getfixturevalue("hosts")
    return lambda: SshShell(hosts.entry())


def on(shell: Callable[[], Shell], folder: Path, work: Callable[[Host], Coroutine[Any, Any, T]]) -> T:
    """Do something with a host whose runs are kept in a folder."""

    async def go() -> T:
        host = Host(shell(), str(folder))
        try:
            return await work(host)
        finally:
            await host.shell.close()

    return asyncio.run(go())


def test_a_command_runs_once_under_a_key(shell: Callable[[], Shell], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    argv = ["sh", "-c", 'echo "$1" >> "$2"; echo said "$1"; exit 3', "sh", "it's $HOME; one", str(marks)]
    said: list[str] = []

    async def twice(host: Host) -> list[Finished]:
        first = await host.run(KEY, argv, 20, on_output=said.append)
        return [first, await host.run(KEY, argv, 20)]

    first, second = on(shell, tmp_path / "runs", twice)
    assert first == second == Finished(3, "said it's $HOME; one\n")
    assert marks.read_text() == "it's $HOME; one\n"
    assert "".join(said) == first.output


def test_what_is_given_up_never_starts_later(shell: Callable[[], Shell], tmp_path: Path) -> None:
    marks = tmp_path / "marks"

    async def late(host: Host) -> None:
        assert await host.look(KEY, 20) == "never"
        with pytest.raises(NotStartedError):
            await host.run(KEY, ["touch", str(marks)], 20)

    on(shell, tmp_path / "runs", late)
    time.sleep(0.3)
    assert not marks.exists()


def test_a_command_that_died_is_unknown(shell: Callable[[], Shell], tmp_path: Path) -> None:
    async def die(host: Host) -> None:
        work = asyncio.create_task(host.run(KEY, ["sleep", "60"], 30))
        pid = tmp_path / "runs" / "run-1" / "step.1" / "pid"
        await asyncio.to_thread(until, lambda: pid.exists() and pid.read_text().strip())
        os.killpg(int(pid.read_text()), signal.SIGKILL)
        with pytest.raises(UnknownError, match="left no status"):
            await work

    on(shell, tmp_path / "runs", die)


def test_a_command_that_takes_too_long_is_ended_and_unknown(
    shell: Callable[[], Shell], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    argv = [sys.executable, "-c", f"import time; time.sleep(3); open({str(marks)!r}, 'w')"]

    async def wait(host: Host) -> None:
        with pytest.raises(UnknownError, match="had not ended after 1 s"):
            await host.run(KEY, argv, 1)

    on(shell, tmp_path / "runs", wait)
    time.sleep(3)
    assert not marks.exists()


def test_a_secret_is_read_and_left_nowhere(shell: Callable[[], Shell], tmp_path: Path) -> None:
    secret = "it's a $secret"

    async def read(host: Host) -> Finished:
        return await host.run(KEY, ["sh", "-c", 'read -r word; printf %s "$word" | wc -c'], 20, secret=secret)

    assert on(shell, tmp_path / "runs", read) == Finished(0, f"{len(secret)}\n")
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or secret not in path.read_text(), path


def test_what_cannot_be_kept_is_not_started(tmp_path: Path) -> None:
    """A shell that may write no file stands for a full disk."""

    class Full(LocalShell):
        async def script(self, text: str, on_output: Any = None) -> Any:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            try:
                return await super().script(text, on_output)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    marks = tmp_path / "marks"

    async def start(host: Host) -> None:
        with pytest.raises((NotStartedError, UnknownError)):
            await host.run(KEY, ["mkdir", str(marks)], 20)

    on(Full, tmp_path / "runs", start)
    assert not marks.exists()


# -- Over SSH only -------------------------------------------------------------------------------------------


def test_a_cut_connection_stops_no_command(hosts: Hosts, tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo begun; sleep 2; echo ended"]
    with Proxy() as proxy:
        link = proxy.link(lambda: hosts.daemons[0].port)
        known = hosts.folder / "linked_hosts"
        known.write_text(hosts.daemons[0].known_host.replace(str(hosts.daemons[0].port), str(link.port)))
        entry = hosts.entry(ssh_port=link.port, ssh_known_hosts=str(known))

        async def cut(host: Host) -> Finished:
            work = asyncio.create_task(host.run(KEY, argv, 30))
            output = tmp_path / "runs" / "run-1" / "step.1" / "output"
            await asyncio.to_thread(until, lambda: output.exists() and "begun" in output.read_text())
            await asyncio.to_thread(link.reset)
            return await work

        assert on(lambda: SshShell(entry), tmp_path / "runs", cut) == Finished(0, "begun\nended\n")


def test_a_host_that_hangs_is_given_up(hosts: Hosts, tmp_path: Path) -> None:
    with Proxy() as proxy:
        link = proxy.link(lambda: hosts.daemons[0].port)
        link.set("hole")
        entry = hosts.entry(ssh_port=link.port)

        async def hang(host: Host) -> None:
            with pytest.raises(NotStartedError, match="cannot be reached"):
                await host.run(KEY, ["true"], 20)

        on(lambda: SshShell(entry, connect_seconds=0.5), tmp_path / "runs", hang)


def test_an_unknown_host_key_is_refused(hosts: Hosts) -> None:
    (hosts.folder / "known_hosts").write_text(hosts.daemons[1].known_host)

    async def go() -> None:
        with pytest.raises(UnreachableError, match="host key"):
            await SshShell(hosts.entry()).script("true")

    asyncio.run(go())


def test_a_jump_host_leads_there(hosts: Hosts) -> None:
    jump = f"{getpass.getuser()}@127.0.0.1:{hosts.daemons[1].port}"

    async def go() -> str:
        shell = SshShell(hosts.entry(ssh_jump=jump))
        try:
            return (await shell.script("echo $SSH_CLIENT; echo $HOME")).output
        finally:
            await shell.close()

    assert asyncio.run(go()).splitlines()[1] == str(hosts.daemons[0].home)
    accepted = hosts.daemons[1].folder / "sshd.log"
    until(lambda: "Accepted publickey" in accepted.read_text())
