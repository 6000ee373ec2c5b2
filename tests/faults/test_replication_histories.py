"""Histories of a cluster of three under fire: seeded failures and orders while clients write everywhere.

What must hold in each history:

- every acknowledgement is under an epoch that the answering node opened itself, and no LSN of an epoch is
  acknowledged twice: no two nodes ever acknowledge writes under the same pair of number and node id;
- two masters of one cluster stop at first contact;
- a planned switchover loses nothing that was acknowledged;
- what an unplanned one loses is what `replication.follow` with rebuild:true counts: the entries from the
  divergence point to the old master's end; and with sync-replicas on, no write is lost that was
  acknowledged while the master was not degraded (if the operator promotes the best of the others, and
  lets none of them go on with the old master);
- at the end all nodes are equal, and the data are exactly the acknowledged writes that the surviving
  epochs tell, besides those whose answer never came.

The plan of a history is drawn from its seed before it begins: the same seed gives the same actions.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from faults.cluster import (
    Cluster,
    Fault,
    NamespaceNetwork,
    Network,
    Node,
    Pair,
    ProxyNetwork,
    Status,
    first_difference,
    pair_at,
)
from faults.proxy import Proxy
from faults.writers import DAY, MARKERS, QUOTA, SHARED, Ledger, Writer
from harness import ROOT, Refused, until

ACTIONS = 11
FENCE_REASON = "switchover"
SETTLE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a plan. What it does not need of the rest it ignores."""

    action: str
    index: int
    other: int
    fault: Fault
    down_seconds: float
    entries: int
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class Variant:
    """How the nodes of a history are run."""

    is_synced: bool
    sync_replicas: int

    @property
    def options(self) -> dict[str, Any]:
        """Small files and a short memory, so that rotation, gaps and bootstraps come to pass."""
        return {
            "wal_fsync": self.is_synced,
            "sync_replicas": self.sync_replicas,
            "sync_timeout_ms": 250,
            "wal_segment_bytes": 8_000,
            "wal_keep_bytes": 20_000,
            "dump_retention_per_tree": 1,
            "read_timeout": 0,
        }

    @property
    def actions(self) -> dict[str, int]:
        """The actions and how often they come."""
        actions = {
            "kill": 3,
            "terminate": 1,
            "fail_link": 4,
            "isolate": 2,
            "heal": 2,
            "snapshot": 2,
            "pause": 1,
            "switchover": 3,
            "failover": 3,
            "attach": 3,
        }
        if not self.sync_replicas:
            # What no sober operator does while writes wait for replicas.
            actions |= {"promote": 2, "follow": 2, "unfence": 1, "fence_offline": 1}
            if not self.is_synced:
                actions |= {"power_cut": 2}
        return actions


def variant_of(seed: int) -> Variant:
    return Variant(is_synced=seed % 2 == 0, sync_replicas=seed // 2 % 2)


def plan(seed: int, variant: Variant, actions: int = ACTIONS) -> list[Step]:
    """Return what is done in a history."""
    random = Random(seed)
    names, weights = zip(*variant.actions.items(), strict=True)
    steps = []
    for _ in range(actions):
        index = random.randrange(3)
        steps.append(
            Step(
                action=random.choices(names, weights)[0],
                index=index,
                other=random.choice([other for other in range(3) if other != index]),
                fault=random.choice(get_args(Fault)),
                down_seconds=random.choice([0.0, 0.1, 0.4]),
                entries=random.randint(1, 60),
                pause_seconds=random.uniform(0.02, 0.3),
            )
        )
    return steps


class History:
    """A cluster with its writers, and the operator who carries out a plan and checks what comes of it."""

    def __init__(self, cluster: Cluster, variant: Variant, seed: int) -> None:
        self.cluster = cluster
        self.variant = variant
        self.ledger = Ledger()
        self.trace: list[str] = []
        self.figures = dict.fromkeys(
            ("acknowledged", "lost", "switchovers", "failovers", "rebuilds", "bootstraps"), 0
        )
        self.ids = {node.name: node.status()["node_id"] for node in cluster.nodes}
        self._chosen = cluster.nodes[0]
        """Whom the operator made master last."""
        self._writers = [
            Writer(node, self.ledger, seed * 3 + node.index, is_sync=bool(variant.sync_replicas))
            for node in cluster.nodes
        ]

    def run(self, steps: list[Step]) -> None:
        """Carry out a plan."""
        for writer in self._writers:
            writer.start()
        try:
            for step in steps:
                node, other = self.cluster.nodes[step.index], self.cluster.nodes[step.other]
                self._say(f"{step.action} {node.name} ({other.name}, {step.fault}, {step.down_seconds})")
                action: Callable[[Step, Node, Node], str | None] = getattr(self, f"_{step.action}")
                try:
                    outcome = action(step, node, other)
                except (OSError, Refused) as error:
                    outcome = f"{type(error).__name__} {error}"
                self._say(f"    {outcome or 'done'}")
                time.sleep(step.pause_seconds)
            self._heal_all()
            time.sleep(0.1)
        finally:
            for writer in self._writers:
                writer.stop()

    def _say(self, text: str) -> None:
        self.trace.append(f"{time.monotonic() % 1000:8.3f} {text}")

    # -- Failures ------------------------------------------------------------------------------------------

    def _kill(self, step: Step, node: Node, _: Node) -> str | None:
        if not node.is_up:
            return "is down"
        node.kill()
        time.sleep(step.down_seconds)
        node.restart()
        return None

    def _terminate(self, step: Step, node: Node, _: Node) -> str | None:
        if not node.is_up:
            return "is down"
        node.stop()
        time.sleep(step.down_seconds)
        node.restart()
        return None

    def _power_cut(self, step: Step, node: Node, _: Node) -> str:
        if not node.is_up:
            return "is down"
        node.kill()
        lost = node.lose_tail(step.entries)
        node.restart()
        return f"lost {lost} entries"

    def _fail_link(self, step: Step, node: Node, other: Node) -> None:
        self.cluster.network.fail(node.index, other.index, step.fault)

    def _isolate(self, step: Step, node: Node, _: Node) -> None:
        self.cluster.network.isolate(node.index, step.fault)

    def _heal(self, step: Step, node: Node, other: Node) -> None:
        self._heal_all()

    def _heal_all(self) -> None:
        self.cluster.network.heal()
        self.cluster.start_all()

    # -- Orders --------------------------------------------------------------------------------------------

    def _snapshot(self, step: Step, node: Node, _: Node) -> None:
        if step.entries % 2:
            node.ask("snapshot.create_all")
        else:
            node.ask("snapshot.create", series=MARKERS)

    def _pause(self, step: Step, node: Node, _: Node) -> None:
        node.ask("replication.pause", ttl_ms=300)
        if step.entries % 2:
            node.ask("replication.resume")

    def _promote(self, step: Step, node: Node, _: Node) -> None:
        node.ask("replication.promote")
        self._chosen = node

    def _follow(self, step: Step, node: Node, other: Node) -> None:
        # Through a link that swallows everything the order would take 15 seconds to be refused.
        self.cluster.network.mend(node.index, other.index)
        node.follow(other)

    def _unfence(self, step: Step, node: Node, _: Node) -> str | None:
        fence = node.status()["fenced_by"]
        if fence is None:
            return "is not fenced"
        node.ask("replication.unfence", epoch=fence["epoch"])
        return None

    def _fence_offline(self, step: Step, node: Node, _: Node) -> str | None:
        about = node.status()
        if about["role"] != "master":
            return "is a slave"
        node.kill()
        command = [str(ROOT / ".venv" / "bin" / "karma"), "fence", f"--directory={node.server.directory}"]
        command += [f"--epoch={about['epoch'] + 1}", "--reason=failover"]
        subprocess.run(command, check=True, capture_output=True)
        node.restart()
        # Another node may have told it of a higher one since.
        assert node.status()["fenced_by"]["epoch"] >= about["epoch"] + 1
        return None

    def _master(self) -> Node:
        """The master as the operator wants it: up, and taking writes."""
        node = self._chosen
        if not node.is_up:
            node.restart()
        about = node.status()
        if about["role"] != "master" or about["fenced_by"] is not None:
            node.ask("replication.promote")
        return node

    def _attach(self, step: Step, node: Node, _: Node) -> str | None:
        """Bring a node behind the master, whatever it holds."""
        master = self._master()
        if master is node or not node.is_up:
            return "is the master, or down"
        self.cluster.network.mend(node.index, master.index)
        return self._bring_behind(node, master)

    def _switchover(self, step: Step, new: Node, other: Node) -> str | None:
        """Let another node take over in an orderly way; nothing may be lost by that."""
        old = self._master()
        if old is new:
            new = other
        if not new.is_up:
            new.restart()
        self.cluster.network.mend(old.index, new.index)
        new.follow(old)
        with contextlib.suppress(AssertionError):
            until(lambda: new.status()["replication_state"] == "following", 3.0)
        before = old.status()
        fenced = old.ask("replication.fence", epoch=before["epoch"] + 1, reason=FENCE_REASON)
        lsn = fenced["wal_current_lsn"]
        marks = old.ask("recovery.status")

        def has_arrived() -> bool:
            about = new.status()
            return (
                about["wal_current_lsn"] == lsn
                and about["replication_state"] == "following"
                and self._covers(new.ask("recovery.status"), marks)
            )

        try:
            until(has_arrived, 4.0)
        except AssertionError:
            old.ask("replication.unfence", epoch=before["epoch"] + 1)
            return f"undone: {new.name} did not reach LSN {lsn}"
        acked = self._acked_on(old.status())
        promoted = new.ask("replication.promote")
        self._chosen = new
        assert promoted["start_lsn"] == lsn + 1, (promoted, lsn)
        assert promoted["epoch"] > before["epoch"]
        late = [ack for ack in self._acked_on(before) - acked if ack[1] > lsn]
        assert not late, f"acknowledged behind the fence at LSN {lsn}: {late}"
        found = self._markers(new)
        lost = {marker for _, at, markers in acked for marker in markers if at <= lsn} - set(found)
        assert not lost, f"lost in a planned switchover: {sorted(lost)}"
        follows = until(lambda: old.follow(new), why=lambda: self._refusal(old, new))
        assert "lost_entries" not in follows
        self.figures["switchovers"] += 1
        return f"from {old.name} at LSN {lsn}, epoch {promoted['epoch']}"

    @staticmethod
    def _covers(found: Any, wanted: Any) -> bool:
        return all(mark in found["checkpoints"] for mark in wanted["checkpoints"])

    def _acked_on(self, status: Status) -> set[tuple[Pair, int, tuple[int, ...]]]:
        """Return the exact acknowledgements so far that are part of a node's log."""
        with self.ledger.lock:
            acks = list(self.ledger.acks)
        return {
            (ack.pair, ack.lsn, ack.write.markers)
            for ack in acks
            if ack.is_exact and pair_at(status, ack.lsn) == ack.pair
        }

    def _failover(self, step: Step, node: Node, other: Node) -> str | None:
        """The master is gone, or seems to be: another one takes over."""
        old = self._chosen
        if old is node:
            node = other
        about = old.status() if old.is_up else None
        if step.fault in ("cut", "hole"):
            self.cluster.network.isolate(old.index, step.fault)
        elif old.is_up:
            old.kill()
        if self.variant.sync_replicas:
            if about is None:
                return "nobody knows what the master had"
            best = self._best(old, about)
            if best is None:
                return "nobody can take over"
            node = best
        elif not node.is_up:
            return "is down"
        promoted = node.ask("replication.promote")
        self._chosen = node
        self.figures["failovers"] += 1
        return f"{node.name} from {old.name}, {promoted}"

    def _best(self, old: Node, about: Status) -> Node | None:
        """Return who has most of a master's data; None without one, or if the other one cannot follow it."""
        others = self.cluster.others(old)
        for other in others:
            if not other.is_up:
                other.restart()
        self.cluster.network.mend(others[0].index, others[1].index)
        # Of equals in a chain the upper one: it cannot follow the lower one.
        found = [
            (status["wal_current_lsn"], -len(status["path"]), other)
            for other in others
            for status in [other.status()]
            if not status["must_rebuild"]
            # One that never had what this master began with is no replica: it was still being rebuilt.
            and status["wal_current_lsn"] >= about["epochs"][-1]["start_lsn"] - 1
            and all(
                pair_at(status, lsn) == pair_at(about, lsn) for lsn in range(1, status["wal_current_lsn"] + 1)
            )
        ]
        if not found:
            return None
        best = max(found, key=lambda each: each[:2])[2]
        (other,) = (other for other in others if other is not best)
        answer = self._bring_behind(other, best)
        self._say(f"    {other.name} behind {best.name}: {answer}")
        return None if answer.startswith("refused") else best

    def _bring_behind(self, node: Node, master: Node, seconds: float = 2.0) -> str:
        """Let a node follow; one whose history diverged is rebuilt, and says rightly what that costs."""
        try:
            answer = until(lambda: self._try_follow(node, master), seconds)
        except AssertionError:
            return f"refused: {self._refusal(node, master)}"
        return "follows" if answer is True else self._rebuild(node, master)

    @staticmethod
    def _try_follow(node: Node, master: Node) -> Any:
        """Return True, or what the refusal tells of a divergence. Raises as `Node.ask` does."""
        try:
            node.follow(master)
        except Refused as error:
            if error.detail.get("reason") == "diverged":
                return error.detail
            raise
        return True

    @staticmethod
    def _refusal(node: Node, master: Node) -> str:
        try:
            node.follow(master)
        except (OSError, Refused) as error:
            return str(error)
        return "none"

    def _rebuild(self, node: Node, master: Node) -> str:
        """Give up a node's branch; what it says is lost must be what the histories tell."""
        mine, theirs = node.status(), master.status()
        if mine["role"] == "master" and mine["fenced_by"] is None:
            node.ask("replication.fence", epoch=max(mine["epoch"], theirs["epoch"]) + 1, reason="rebuild")
            mine = node.status()
        lsn = first_difference(mine, theirs)
        if mine["must_rebuild"] or lsn is None:
            # An earlier rebuild is under way, or has ended since this node was refused.
            answer = node.follow(master, rebuild=True)
            assert mine["must_rebuild"] or answer["lost_entries"] == 0, (answer, mine, theirs)
            return "was being rebuilt"
        answer = node.follow(master, rebuild=True)
        assert answer["diverged_at_lsn"] == lsn, (answer, mine, theirs)
        lost = answer["lost_entries"]
        expected = mine["wal_current_lsn"] - lsn + 1
        # A slave of a master that was left behind goes on receiving until it is told to follow another one.
        assert lost == expected or (mine["role"] == "slave" and lost > expected), (answer, mine, theirs)
        self.figures["rebuilds"] += 1
        return f"rebuilt behind {master.name}: lost {lost} entries from LSN {lsn} on"

    @staticmethod
    def _markers(node: Node) -> dict[int, int]:
        """Return every marker that a node has, with its value."""
        days = {"from": DAY, "to": DAY}
        if MARKERS not in node.ask("tree.list"):
            return {}
        found = node.ask("tree.series", series=MARKERS, range=days)
        return {int(key): buckets[str(DAY)] for key, buckets in found.items() if buckets}

    # -- The end -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let the masters meet, choose one, bring the others behind it, and compare everything."""
        self._let_masters_meet()
        winner = self._chosen
        for node in self.cluster.others(winner):
            # One that knows of a higher number stops the winner by asking; then that one opens the next.
            until(lambda node=node: self._has_joined(node), SETTLE_SECONDS, why=lambda: self.trace[-1])  # type: ignore[misc]
        assert self._master() is winner
        until(lambda: self._are_equal(winner), SETTLE_SECONDS, why=self.cluster.statuses)
        self._check_data(winner)

    def _has_joined(self, node: Node) -> bool:
        answer = self._bring_behind(node, self._master(), 1.0)
        self._say(f"{node.name} behind {self._chosen.name}: {answer}")
        return not answer.startswith("refused")

    def _let_masters_meet(self) -> None:
        """Two masters of one cluster stop when they meet: after that, one at most takes writes."""
        for node in self.cluster.nodes:
            for other in self.cluster.others(node):
                ours, theirs = node.status(), other.status()
                are_masters = all(
                    about["role"] == "master" and about["fenced_by"] is None for about in (ours, theirs)
                )
                if not are_masters:
                    continue
                self._say(f"{node.name} of epoch {ours['epoch']} meets {other.name} of {theirs['epoch']}")
                until(lambda node=node, other=other: self._meet(node, other), SETTLE_SECONDS)  # type: ignore[misc]
                ours, theirs = node.status(), other.status()
                stopped = {
                    about["node_id"]
                    for about in (ours, theirs)
                    if about["role"] != "master" or about["fenced_by"] is not None
                }
                if ours["epoch"] == theirs["epoch"]:
                    assert len(stopped) == 2, f"both opened the same number: {ours} {theirs}"
                else:
                    lower = min((ours, theirs), key=lambda about: about["epoch"])
                    assert lower["node_id"] in stopped, f"the older epoch goes on: {ours} {theirs}"

    def _meet(self, node: Node, other: Node) -> bool:
        """Let a node ask another one as a follower would; returns whether it got through."""
        try:
            node.follow(other)
        except Refused as error:
            return not any(words in str(error) for words in ("cannot be reached", "connection", "no reply"))
        return True

    def _are_equal(self, winner: Node) -> bool:
        abouts = self.cluster.statuses()
        about = abouts.pop(winner.name)
        if not all(
            other["wal_current_lsn"] == about["wal_current_lsn"] and other["replication_state"] == "following"
            for other in abouts.values()
        ):
            return False
        sums = [node.ask("replication.checksum") for node in self.cluster.nodes]
        assert len({found["lsn"] for found in sums}) == 1, sums
        # Recovery checkpoints have no LSN: they may arrive a moment later.
        return len({found["digest"] for found in sums}) == 1

    def _check_data(self, winner: Node) -> None:
        final, ledger = winner.status(), self.ledger
        assert not ledger.problems, ledger.problems
        survivors = [
            ack
            for ack in ledger.acks
            if ack.lsn <= final["wal_current_lsn"] and pair_at(final, ack.lsn) == ack.pair
        ]
        places: set[tuple[Pair, int]] = set()
        for ack in ledger.acks:
            assert ack.pair[1] == self.ids[ack.node], f"acknowledged under the epoch of another node: {ack}"
            if ack.is_exact:
                assert (ack.pair, ack.lsn) not in places, f"another write was acknowledged there: {ack}"
                places.add((ack.pair, ack.lsn))
        lost = [ack for ack in ledger.acks if ack.is_exact and ack not in survivors]
        unsafe = [ack for ack in lost if ack.is_safe]
        assert not unsafe, f"lost although replicas had acknowledged it: {unsafe}"

        values = self._markers(winner)
        surely = {marker for ack in survivors for marker in ack.write.markers}
        perhaps = {marker for write in ledger.unknown for marker in write.markers}
        assert surely <= set(values), f"acknowledged, and gone: {sorted(surely - set(values))}"
        extra = set(values) - surely - perhaps
        assert not extra, f"neither acknowledged nor in flight, and there: {sorted(extra)}"
        assert set(values.values()) <= {1}, {key: value for key, value in values.items() if value != 1}
        for key, name in ((1, "added"), (2, "consumed")):
            least = sum(getattr(ack.write, name) for ack in survivors if ack.is_exact)
            most = least + sum(getattr(write, name) for write in ledger.unknown)
            found = self._shared(winner, key)
            assert least <= found <= most, f"key {key} holds {found}, not {least} to {most}"
        assert self._shared(winner, 2) <= QUOTA
        self._check_log(winner, {ack.lsn: ack.write.markers for ack in survivors if ack.is_exact})
        self.figures["acknowledged"] += len(ledger.acks)
        self.figures["lost"] += len(lost)
        self.figures["bootstraps"] += sum(
            about["replication_bootstrap_success_count"] for about in self.cluster.statuses().values()
        )

    @staticmethod
    def _shared(node: Node, key: int) -> int:
        try:
            return int(node.ask("counter.sum", series=SHARED, key=key))
        except Refused:
            return 0

    @staticmethod
    def _check_log(node: Node, markers: dict[int, tuple[int, ...]]) -> None:
        """What is left of the log has each write at the LSN under which it was acknowledged."""
        lsn = node.status()["wal_first_lsn"] - 1
        while (page := node.ask("replication.entries", after_lsn=lsn))["count"]:
            for found in page["entries"]:
                entry = found["entry"]
                keys = {entry.get("key"), *(item[0] for item in entry.get("items", ()))}
                missing = set(markers.get(found["lsn"], ())) - keys
                assert not missing, f"{missing} was acknowledged at LSN {found['lsn']}: {entry}"
            lsn = page["next_lsn"]


# -- The tests -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(network: Network, folder: Path, variant: Variant, seed: int) -> Iterator[History]:
    """Give a running cluster; a failure tells how to repeat it and what was done."""
    cluster = Cluster(network)
    history = None
    try:
        cluster.start(folder, **variant.options)
        history = History(cluster, variant, seed)
        yield history
    except BaseException as error:
        error.add_note(
            f"seed {seed}, {variant}: repeat it with --cycles 1 --seed {seed}\n"
            + "\n".join(history.trace if history is not None else ())
        )
        raise
    finally:
        cluster.close()


@pytest.mark.cycles(ci=20, full=200)
def test_nothing_acknowledged_is_lost_and_nobody_writes_beside_the_master(
    seed: int, tmp_path: Path, add_figures: Callable[[dict[str, int]], None]
) -> None:
    variant = variant_of(seed)
    with Proxy() as proxy, running(ProxyNetwork(proxy), tmp_path, variant, seed) as history:
        history.run(plan(seed, variant))
        history.settle()
    add_figures({"histories": 1, **history.figures})


def test_a_plan_comes_from_its_seed_alone() -> None:
    for seed in range(1, 5):
        assert plan(seed, variant_of(seed)) == plan(seed, variant_of(seed))
    assert plan(1, variant_of(1)) != plan(5, variant_of(5))


@pytest.mark.parametrize("namespace_seed", [3, 4])
def test_real_partitions(
    namespace_seed: int, tmp_path: Path, needs: Callable[[str], Path], can_make_namespaces: None
) -> None:
    needs("ip")
    variant = variant_of(namespace_seed)
    with (
        NamespaceNetwork(tmp_path) as network,
        running(network, tmp_path, variant, namespace_seed) as history,
    ):
        history.run(plan(namespace_seed, variant, actions=8))
        history.settle()
