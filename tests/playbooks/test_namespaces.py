"""Machines with networks of their own: each node with its OpenSSH daemon in a network namespace, the operator
in another one, and cables that are pulled out. karmactl runs as an operator types it.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.cluster import NAMES, NamespaceNetwork, Node
from harness import until
from playbooks.fleet import KARMA, Sshd, keygen
from playbooks.test_cli import write_context

from karma_playbooks.inventory import Entry

A, B, C, OPERATOR = range(4)
DAY = 20260505


class Site:
    """Three machines with a node and a daemon each, and that of the operator."""

    def __init__(self, network: NamespaceNetwork, folder: Path, sshd: Path) -> None:
        self.network = network
        self.home = folder / "desk"
        self._folder = folder
        keygen(folder / "id")
        self.nodes: list[Node] = []
        self.sshds: list[Sshd] = []
        self._processes: list[subprocess.Popen[str]] = []
        for index, name in enumerate(NAMES):
            slave = {
                "role": "slave",
                "replication_source_host": network.host(A),
                "replication_source_port": 7000,
            }
            options = {} if index == A else slave
            self.nodes.append(Node(index, folder / name, network, read_timeout=0, **options))
            place = network.host(index), network.prefix(index)
            self.sshds.append(Sshd(sshd, folder / f"host-{name}", folder / "id", *place))
        (folder / "known_hosts").write_text("".join(each.known_host for each in self.sshds))
        write_context(self.home, map(self._entry, range(3)))
        until(lambda: all(node.status()["replication_state"] == "following" for node in self.nodes[1:]))

    def _entry(self, index: int) -> Entry:
        node, sshd = self.nodes[index], self.sshds[index]
        words = [f"--bind={self.network.host(index)}", "--port=7000", f"--directory={node.server.directory}"]
        return Entry(
            node.name,
            f"{self.network.host(index)}:7000",
            ssh_host=sshd.address,
            ssh_port=sshd.port,
            ssh_user=getpass.getuser(),
            ssh_identity=str(self._folder / "id"),
            ssh_known_hosts=str(self._folder / "known_hosts"),
            directory=str(node.server.directory),
            service="process",
            service_command=(*KARMA, *words),
            karma_command=tuple(KARMA),
        )

    def karmactl(self, *words: str) -> subprocess.Popen[str]:
        """Start karmactl on the operator's machine."""
        places = {name: str(self.home / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
        places |= {"XDG_CONFIG_HOME": str(self.home / "config"), "HOME": str(self.home), "USER": "ada"}
        asked = ["--context", "prod", "--confirm", "prod", "--timeout", "1"]
        command = [*self.network.prefix(OPERATOR), sys.executable, "-m", "karmactl", *words, *asked]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **places})
        self._processes.append(process)
        return process

    def ended(self, *words: str) -> tuple[int, str, str]:
        """Run karmactl to its end; returns exit code, stdout and stderr."""
        process = self.karmactl(*words)
        stdout, stderr = process.communicate(timeout=100)
        return process.returncode, stdout, stderr

    def write(self, node: Node, *keys: int) -> None:
        for key in keys:
            node.ask("counter.increment", series="s", key=key, bucket=DAY)

    def are_equal(self) -> bool:
        return len({json.dumps(node.ask("replication.checksum")) for node in self.nodes}) == 1

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        for node in self.nodes:
            node.server.kill()
        for each in self.sshds:
            each.stop()


@pytest.fixture
def site(
    tmp_path: Path, sshd: Path, needs: Callable[[str], Path], can_make_namespaces: None
) -> Iterator[Site]:
    needs("ip")
    with NamespaceNetwork(tmp_path, ["operator"]) as network:
        found = Site(network, tmp_path, sshd)
        try:
            yield found
        finally:
            found.close()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read what karmactl says until it says that."""
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


def promotions(node: Node) -> int:
    return [event["event"] for event in node.server.events()].count("promoted")


@pytest.mark.timeout(240)
def test_a_cable_pulled_out_in_the_middle_pauses_the_run_and_it_goes_on(site: Site) -> None:
    site.write(site.nodes[A], *range(20))
    process = site.karmactl("switchover", "--to", "b", "--reason", "a cable is pulled out")
    # Behind the plan, which asks every node, and before c is told whom to follow.
    seen = read_until(process, "\npromote: ")
    site.network.isolate(C, "cut")
    _, rest = process.communicate(timeout=200)
    assert process.returncode == 11, seen + rest
    (line,) = [line for line in rest.splitlines() if line.startswith("next: karmactl playbook resume ")]
    run = line.split()[4].rstrip(",")
    # The master role has moved all the same, and nobody else takes writes.
    assert site.nodes[B].status()["role"] == "master"
    assert site.nodes[A].status()["role"] == "slave"
    site.write(site.nodes[B], *range(20, 40))

    site.network.heal()
    code, stdout, stderr = site.ended("playbook", "resume", run, "--output", "json")
    assert code == 0, stderr
    assert json.loads(stdout)["state"] == "done"
    until(lambda: site.nodes[C].status()["source"] == f"{site.network.host(B)}:7000")
    until(site.are_equal)
    assert [promotions(node) for node in site.nodes] == [0, 1, 0]
    assert [site.nodes[C].ask("counter.sum", series="s", key=key) for key in range(40)] == [1] * 40


@pytest.mark.timeout(240)
def test_a_master_that_is_cut_off_is_replaced_and_comes_back_fenced(site: Site) -> None:
    old = site.nodes[A]
    site.write(old, *range(10))
    until(site.are_equal)
    site.network.isolate(A, "cut")
    # It lives, and somebody on its side of the cut still writes there.
    site.write(old, 100, 101, 102)
    lost = "connecting"
    until(lambda: all(site.nodes[each].status()["replication_state"] == lost for each in (B, C)), 60.0)

    # Its host is cut off as well, so the operator's word that it is off must do.
    code, _, stderr = site.ended("failover", "--reason", "its switch is dead", "--fence-unverified")
    assert code == 0, stderr
    assert "nobody can tell: unknown" in stderr
    (new,) = [node for node in site.nodes[1:] if node.status()["role"] == "master"]
    site.write(new, *range(10, 20))

    # The cable is back: the old master hears of the new one, and takes no more writes.
    site.network.heal()
    until(lambda: old.status()["fenced_by"])
    with old.connect() as connection:
        assert connection.refuse("counter.increment", series="s", key=1, bucket=DAY)[0] == "forbidden"
    words = ("--param", "node=a", "--param", "replay=yes", "--reason", "its switch is new", "--yes")
    code, _, stderr = site.ended("playbook", "run", "rejoin-old-master", *words)
    assert code == 0, stderr
    until(site.are_equal)
    keys: list[Any] = [*range(20), 100, 101, 102]
    assert [new.ask("counter.sum", series="s", key=key) for key in keys] == [1] * len(keys)
