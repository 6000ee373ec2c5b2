"""Recovery checkpoints: durable, numbered for followers, equal on all of them in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karma.core.epochs import History
from karma.errors import ErrorCode, RequestError
from karma.replication.follower import Follower, Here, Page
from karma.service.checkpoints import Checkpoints
from karma.storage.disk import Disk


class MemoryDisk(Disk):
    """A disk that keeps its files in memory, and may be full."""

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.is_full = False

    def write_file(self, path: Path, chunks: Iterable[bytes]) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.files[path] = b"".join(chunks)
        return len(self.files[path])

    def read_file(self, path: Path) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None


Make = Callable[..., Checkpoints]


@pytest.fixture
def make() -> Make:
    """`make(disk)` loads what a disk holds, as a process does at its start."""
    ids = map(str, count(1))

    def loaded(disk: MemoryDisk | None = None) -> Checkpoints:
        found = Checkpoints(disk or MemoryDisk(), Path("/data"), lambda: 1000.9, new_id=ids.__next__)
        found.load()
        return found

    return loaded


def test_the_newest_of_each_source_is_kept(make: Make) -> None:
    disk = MemoryDisk()
    found = make(disk)
    assert (found.last_unix, found.status(None)) == (0, {"checkpoint_count": 0, "checkpoints": []})
    found.put("p", "7", None)
    put = found.put("p", "page-8", "9")
    assert put == {"source": "p", "offset": "page-8", "event_id": "9", "updated_at_unix": 1000}
    found.put("q", None, "e")
    again = make(disk)
    assert again.by_source == found.by_source
    assert again.status("p") == {"checkpoint_count": 1, "checkpoints": [put]}
    assert again.status("x")["checkpoint_count"] == 0
    assert again.last_unix == 1000


def test_what_the_disk_refuses_is_not_there(make: Make) -> None:
    disk = MemoryDisk()
    found, changes = make(disk), []
    found.on_change = lambda: changes.append(1)
    found.put("p", "1", None)
    position = found.boot_id, 1
    disk.is_full = True
    with pytest.raises(RequestError) as refusal:
        found.put("p", "2", None)
    assert refusal.value.code == ErrorCode.STORAGE_ERROR
    assert found.by_source["p"]["offset"] == "1"
    assert (found.after(*position), changes) == (None, [1])


def test_a_follower_gets_what_was_put_since_it_last_asked(make: Make) -> None:
    found = make()
    for source in "abc":
        found.put(source, "1", None)
    boot_id = found.boot_id
    sent = found.after("", 0)
    assert sent is not None
    assert ([each["source"] for each in sent[0]], sent[1]) == (["a", "b", "c"], [boot_id, 3])
    assert found.after(boot_id, 3) is None
    found.put("a", "2", None)
    sent = found.after(boot_id, 3)
    assert sent is not None
    assert ([each["source"] for each in sent[0]], sent[1]) == (["a"], [boot_id, 4])


def test_a_page_is_bounded_and_the_next_goes_on(make: Make) -> None:
    found = make()
    for number in range(250):
        found.put(f"s{number}", str(number), None)
    position, seen, pages = ("", 0), [], 0
    while (sent := found.after(*position)) is not None:
        seen += [each["source"] for each in sent[0]]
        position, pages = (sent[1][0], sent[1][1]), pages + 1
    assert (seen, pages) == ([f"s{number}" for number in range(250)], 3)


def test_a_position_of_another_process_counts_for_nothing(make: Make) -> None:
    disk = MemoryDisk()
    found = make(disk)
    assert found.after("elsewhere", 99) == ([], [found.boot_id, 0]), "not even when there is nothing"
    found.put("p", "1", None)
    again = make(disk)
    sent = again.after(found.boot_id, 1)
    assert sent is not None
    assert (len(sent[0]), sent[1]) == (1, [again.boot_id, 1])


def test_what_a_source_does_not_have_is_dropped(make: Make) -> None:
    disk = MemoryDisk()
    found = make(disk)
    for source in "abc":
        found.put(source, "1", None)
    boot_id = found.boot_id
    newer = {"source": "b", "offset": "2", "event_id": None, "updated_at_unix": 5}
    found.receive([newer], frozenset("abc"))
    assert (found.boot_id, set(found.by_source)) == (boot_id, set("abc"))
    found.receive([], frozenset("bc"))
    assert (set(found.by_source), found.by_source["b"]) == (set("bc"), newer)
    assert found.boot_id != boot_id, "followers of this node see it all anew"
    assert make(disk).by_source == found.by_source


# -- Down a chain of followers -------------------------------------------------------------------------------


class Chain:
    """A master, its follower and that one's follower, as far as checkpoints go."""

    def __init__(self, make: Make, nodes: int = 3) -> None:
        self.make = make
        self.disks = [MemoryDisk() for _ in range(nodes)]
        self.nodes = [make(disk) for disk in self.disks]
        self.followers = [Follower(10) for _ in range(nodes)]

    def connect(self, index: int) -> None:
        self.followers[index].handshake(HERE)

    def restart(self, index: int) -> None:
        self.nodes[index] = self.make(self.disks[index])
        self.followers[index] = Follower(10)

    def bootstrap(self, index: int) -> None:
        """Its files are exchanged for others, without checkpoints."""
        self.disks[index].files.clear()
        self.nodes[index].load()

    def pull(self, index: int, *, is_refused: bool = False) -> bool:
        """Let a node ask the one before it; returns whether there was news."""
        source, mine, follower = self.nodes[index - 1], self.nodes[index], self.followers[index]
        sent = source.after(*follower.checkpoint_position)
        response: dict[str, Any] = {"source_lsn": 0, "epoch": 0, "epoch_node_id": "", "entries": []}
        if sent is not None:
            response |= {"checkpoints": sent[0], "checkpoint_position": sent[1]}
            response |= {"checkpoint_count": len(source.by_source)}
        page = follower.page({"protocol_version": 2, "success": True, "response": response}, HERE, 0)
        assert isinstance(page, Page)
        if page.checkpoint_position is None:
            return False
        self.disks[index].is_full = is_refused
        try:
            mine.receive(page.checkpoints, page.checkpoint_sources)
            follower.checkpoint_position = page.checkpoint_position
        except RequestError:
            self.connect(index)
        finally:
            self.disks[index].is_full = False
        return True


def test_what_was_given_up_is_dropped_once_all_pages_are_there(make: Make) -> None:
    chain = Chain(make, nodes=2)
    chain.nodes[1].put("given up", "1", None)
    for number in range(150):
        chain.nodes[0].put(f"s{number}", "1", None)
    chain.connect(1)
    counts = []
    while chain.pull(1):
        counts.append(len(chain.nodes[1].by_source))
    assert counts == [101, 150]


HERE = Here("me", None, History(), 0, 0, None, None, is_empty=True)
STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 4)),
    st.tuples(st.just("many"), st.just(0), st.integers(50, 130)),
    st.tuples(st.just("pull"), st.integers(1, 2), st.just(0)),
    st.tuples(st.just("refuse"), st.integers(1, 2), st.just(0)),
    st.tuples(st.just("connect"), st.integers(1, 2), st.just(0)),
    st.tuples(st.just("restart"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("bootstrap"), st.integers(1, 2), st.just(0)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25))
def test_all_nodes_end_with_the_master_s_whatever_happens_on_the_way(
    make: Make, steps: list[tuple[str, int, int]]
) -> None:
    chain = Chain(make)
    for number, (what, index, which) in enumerate(steps):
        match what:
            case "put":
                # On a slave: what it had as master, on a branch that it gave up.
                chain.nodes[index].put(f"s{which}", str(number), None)
            case "many":
                for each in range(which):
                    chain.nodes[0].put(f"s{each}", str(number), None)
            case "pull" | "refuse":
                chain.pull(index, is_refused=what == "refuse")
            case "connect":
                chain.connect(index)
            case "restart":
                chain.restart(index)
            case _:
                chain.bootstrap(index)
    # In the end each connects once more, as after any change of role, and asks until there is no news.
    for index in (1, 2):
        chain.connect(index)
    for _ in range(20):
        news = [chain.pull(index) for index in (1, 2)]
        if not any(news):
            break
    else:
        pytest.fail("they never come to an end")
    master = chain.nodes[0].by_source
    for node, disk in zip(chain.nodes, chain.disks, strict=True):
        assert node.by_source == master
        assert make(disk).by_source == master
