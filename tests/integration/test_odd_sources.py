"""A real slave and sources that are odd, wrong or half: clear states, no crash loop, no wrong data.

The sources here are scripts. What breaks on the way to a real one is the fault tests' matter.
"""

from __future__ import annotations

import base64
import http.client
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest
from harness import Server, free_port, until

from karma.core.entries import entry_crc
from karma.core.ingest import Streams
from karma.storage import snapshot
from karma.storage.disk import Disk

DAY = 20260505
WAIT_SECONDS = 20.0
EPOCHS = [{"epoch": 1, "node_id": "odd", "start_lsn": 1}]
ABOUT = {"node_id": "odd", "cluster_id": "odd-cluster", "epoch": 1, "epoch_node_id": "odd", "role": "master"}


class Source:
    """A scripted source: `answers` by operation, each a reply or a function of the request."""

    def __init__(self) -> None:
        self.lsn = 5
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "replication.entries": self.entries,
            "replication.status": lambda _request: success(**ABOUT, epochs=EPOCHS),
        }
        script = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    request = json.loads(line)
                    script.asked.append(request)
                    reply = script.answers[request["op"]](request)
                    self.wfile.write(
                        reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n"
                    )

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def entries(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer as a master with `lsn` entries does."""
        after_lsn = request["after_lsn"]
        if after_lsn >= self.lsn:
            time.sleep(0.05)
        return self.page([entry(lsn) for lsn in range(after_lsn + 1, self.lsn + 1)])

    def page(self, entries: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        about = {**ABOUT, "epochs": EPOCHS, "path": ["odd"], "source_lsn": self.lsn}
        return success(**about | {"entries": entries} | more)


def success(**response: Any) -> dict[str, Any]:
    return {"protocol_version": 2, "success": True, "response": response, "error_code": None}


def failure(code: str, **detail: Any) -> dict[str, Any]:
    reply = {"protocol_version": 2, "success": False, "response": "no", "error_code": code}
    return reply | ({"error_detail": detail} if detail else {})


def entry(lsn: int, **more: Any) -> dict[str, Any]:
    written = {"v": 2, "op": "counter.increment", "series": "a", "key": lsn, "bucket": DAY, "value": 1}
    crc = entry_crc(lsn, 7, orjson.dumps(written))
    return {"lsn": lsn, "entry": written, "ts": 7, "crc": f"{crc:08x}"} | more


@pytest.fixture
def source() -> Iterator[Source]:
    script = Source()
    yield script
    script.server.shutdown()
    script.server.server_close()


def slave_of(source: Source, directory: Path, **options: Any) -> Server:
    given: dict[str, Any] = {"replication_source_host": "127.0.0.1", "replication_source_port": source.port}
    return Server(directory / "slave", role="slave", **given | options)


def status(node: Server) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("replication.status")
    return found


def follows(node: Server, lsn: int) -> bool:
    found = status(node)
    return bool(found["replication_state"] == "following" and found["wal_current_lsn"] == lsn)


def test_a_good_script_is_followed(source: Source, tmp_path: Path) -> None:
    with slave_of(source, tmp_path) as slave:
        until(lambda: follows(slave, 5))
        assert slave.ask("counter.sum", series="a", key=3) == 1


ODD = {
    "a time before all times": entry(6, ts=-1, crc=None),
    "a text for a time": entry(6, ts="x", crc=None),
    "a checkpoint that is none": {"checkpoints": [{"offset": 1}], "checkpoint_position": ["x", 1]},
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_page_is_not_taken_and_the_next_good_one_is(source: Source, tmp_path: Path, name: str) -> None:
    odd = ODD[name]
    with slave_of(source, tmp_path) as slave:
        until(lambda: follows(slave, 5))
        entries, more = ([odd], {}) if "lsn" in odd else ([], odd)
        source.answers["replication.entries"] = lambda request: (
            source.entries(request)
            if request.get("handshake")
            else source.page(entries, source_lsn=6, **more)
        )
        until(lambda: "cannot be used" in (status(slave)["replication_reason"] or ""))
        assert status(slave)["wal_current_lsn"] == 5
        source.lsn = 6
        source.answers["replication.entries"] = source.entries
        until(lambda: follows(slave, 6))
        assert slave.stop() == 0
        slave.restart()
        until(lambda: follows(slave, 6))


def test_a_host_that_is_none_is_told_and_the_node_can_be_sent_elsewhere(
    source: Source, tmp_path: Path
) -> None:
    with slave_of(source, tmp_path, replication_source_host="a..b") as slave:
        until(lambda: "no host name" in (status(slave)["replication_reason"] or ""))
        with slave.connect() as connection:
            code, message = connection.refuse("replication.follow", host="x" * 100, port=1)
            assert (code, "no host name" in message) == ("replication_error", True)
            connection.ask("replication.follow", host="127.0.0.1", port=source.port)
        until(lambda: follows(slave, 5))


def test_entries_of_an_epoch_are_not_given_up_for_a_gap_at_a_karma_1_0(
    source: Source, tmp_path: Path
) -> None:
    with Server(tmp_path / "node") as node, node.connect() as connection:
        connection.ask("tree.create", series="mine")
        source.answers["replication.entries"] = lambda _request: failure("replication_gap")
        code, message = connection.refuse("replication.follow", host="127.0.0.1", port=source.port)
        assert (code, "diverged_at_lsn 1" in message) == ("replication_error", True)
        assert connection.ask("replication.status")["role"] == "master"
        connection.ask("counter.increment", series="mine", key=1)


def readyz(node: Server) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", node.options["http_port"], timeout=10)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_a_slave_is_ready_while_it_is_not_too_far_behind(source: Source, tmp_path: Path) -> None:
    lsns = {"source_lsn": 5}

    def entries(request: dict[str, Any]) -> dict[str, Any]:
        """Answer as a source that has more than it gives."""
        reply = source.entries(request)
        reply["response"] |= lsns
        return reply

    source.answers["replication.entries"] = entries
    with slave_of(source, tmp_path, http_port=free_port(), ready_max_lag_entries=7) as slave:
        until(lambda: readyz(slave) == (200, "ready\n"))
        for behind, answer in (
            (8, (503, "8 entries behind the source\n")),
            (7, (200, "ready\n")),
            (2**40, (503, f"{2**40} entries behind the source\n")),
        ):
            lsns["source_lsn"] = 5 + behind
            until(lambda: status(slave)["replication_lag_entries"] == lsns["source_lsn"] - 5)
            assert readyz(slave) == answer
            assert status(slave)["replication_state"] == "following"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(lambda _request: failure("unauthorized"), "it answers no", id="a wrong token"),
        pytest.param(lambda _request: b"garbage\n", "Karma 1.0, or none", id="garbage"),
        pytest.param(lambda _request: success(cluster_id="odd-cluster"), "knows", id="no node"),
        pytest.param(lambda _request: success(**ABOUT | {"epoch": "x"}), "is still a master", id="no epoch"),
        pytest.param(
            lambda _request: success(**ABOUT | {"cluster_id": 7}), "another cluster", id="no cluster"
        ),
    ],
)
def test_a_former_master_may_answer_what_it_likes(
    source: Source, tmp_path: Path, answer: Callable[[dict[str, Any]], Any], said: str
) -> None:
    with slave_of(source, tmp_path) as slave:
        until(lambda: follows(slave, 5))
        source.answers["replication.status"] = answer
        slave.ask("replication.promote")
        assert said in slave.wait_for_event("epoch_announced")["message"]
        slave.ask("counter.increment", series="a", key=1)
        if said not in ("knows", "another cluster"):
            # It is told again and again, and what it says one day is heard: another promotion.
            source.answers["replication.status"] = lambda _request: success(**ABOUT | {"epoch": 3})
            fence = until(lambda: status(slave)["fenced_by"])
            assert (fence["epoch"], fence["node_id"]) == (3, "odd")


# -- Bootstraps that do not come to their end --------------------------------------------------------------


class Snapshots:
    """What a source with one snapshot of an empty series and its ingest streams at LSN 3 shows."""

    def __init__(self, source: Source, directory: Path) -> None:
        self.source = source
        self.directory = directory
        source.answers |= {
            "replication.entries": self.entries,
            "snapshot.info": self.info,
            "snapshot.fetch_chunk": self.chunk,
        }
        snapshot.write_tree(Disk(), directory, "a", {}, 3, 1_795_253_093, 0)
        self.write_streams(3)
        self.tree_last_lsn = 3

    def write_streams(self, lsn: int) -> None:
        snapshot.write_streams(Disk(), self.directory, Streams(), lsn)

    def entries(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("node_id") and request["after_lsn"] < 3:
            return failure("replication_gap", reason="gap")
        return self.source.entries(request)

    def info(self, _request: dict[str, Any]) -> dict[str, Any]:
        (tree,) = snapshot.list_snapshots(Disk(), self.directory)
        return success(
            truncated_lsn=3,
            files=[
                {
                    "file": tree.file,
                    "bytes": tree.bytes,
                    "last_lsn": self.tree_last_lsn,
                    "metadata": tree.metadata() | {"last_lsn": self.tree_last_lsn},
                },
                {
                    "file": snapshot.STREAMS_NAME,
                    "bytes": (self.directory / snapshot.STREAMS_NAME).stat().st_size,
                    "last_lsn": 3,
                },
            ],
        )

    def chunk(self, request: dict[str, Any]) -> dict[str, Any]:
        data = (self.directory / request["file"]).read_bytes()
        part = data[request["offset"] :][: request["limit"]]
        return success(metadata={}, total_bytes=len(data), data_base64=base64.b64encode(part).decode())


@pytest.fixture
def snapshots(source: Source, tmp_path: Path) -> Snapshots:
    return Snapshots(source, tmp_path)


def fails(slave: Server, word: str) -> None:
    """Wait until a bootstrap fails for a reason; nothing may have come of it."""
    until(lambda: word in (status(slave)["replication_last_bootstrap_error"] or ""))
    found = status(slave)
    assert (found["wal_current_lsn"], found["replication_bootstrap_success_count"]) == (0, 0)
    assert slave.ask("tree.list") == []


def bootstraps(slave: Server) -> None:
    until(lambda: follows(slave, 5))
    assert slave.ask("tree.list") == ["a"]
    assert slave.ask("counter.sum", series="a", key=5) == 1
    assert status(slave)["replication_bootstrap_success_count"] == 1
    slave.kill()
    slave.restart()
    until(lambda: follows(slave, 5))
    assert status(slave)["epochs"] == EPOCHS


def test_a_good_script_is_bootstrapped_from(source: Source, snapshots: Snapshots, tmp_path: Path) -> None:
    with slave_of(source, tmp_path) as slave:
        bootstraps(slave)


def test_a_file_that_cannot_be_had_is_named_with_its_series(
    source: Source, snapshots: Snapshots, tmp_path: Path
) -> None:
    source.answers["snapshot.fetch_chunk"] = lambda _request: failure("validation_error")
    source.answers["replication.status"] = lambda _request: success(**ABOUT, epochs=EPOCHS, wal_current_lsn=5)
    with slave_of(source, tmp_path) as slave:
        fails(slave, "the source's file 1795253093_a.tree of series a cannot be fetched: the source answers")
        info = snapshots.info({})
        info["response"]["files"][0] |= {"file": "../a.tree"}
        source.answers["snapshot.info"] = lambda _request: info
        fails(slave, "the source's file ../a.tree of series a cannot be used: Field file must be")
        assert (status(slave)["filled"], status(slave)["replication_lag_entries"]) == (False, 5)


def test_a_slave_is_not_ready_while_it_bootstraps(
    source: Source, snapshots: Snapshots, tmp_path: Path
) -> None:
    may_send = threading.Event()

    def chunk(request: dict[str, Any]) -> dict[str, Any]:
        may_send.wait(WAIT_SECONDS)
        return snapshots.chunk(request)

    source.answers["snapshot.fetch_chunk"] = chunk
    with slave_of(source, tmp_path, http_port=free_port()) as slave:
        until(lambda: readyz(slave) == (503, "bootstrapping\n"))
        assert status(slave)["replication_state"] == "bootstrapping"
        may_send.set()
        until(lambda: readyz(slave) == (200, "ready\n"))


def test_streams_that_are_newer_than_what_was_listed_are_fetched_again(
    source: Source, snapshots: Snapshots, tmp_path: Path
) -> None:
    """Entries between the snapshot of the series and that of the streams would be lost."""
    size_bytes = (tmp_path / snapshot.STREAMS_NAME).stat().st_size
    snapshots.write_streams(4)
    assert (tmp_path / snapshot.STREAMS_NAME).stat().st_size == size_bytes
    with slave_of(source, tmp_path) as slave:
        fails(slave, "changed at the source")
        snapshots.write_streams(3)
        bootstraps(slave)


def test_streams_of_two_versions_in_one_are_fetched_again(
    source: Source, snapshots: Snapshots, tmp_path: Path
) -> None:
    whole = (tmp_path / snapshot.STREAMS_NAME).read_bytes()
    (tmp_path / snapshot.STREAMS_NAME).write_bytes(msgpack.packb(0) + whole[1:])
    with slave_of(source, tmp_path) as slave:
        fails(slave, "cannot be used")
        (tmp_path / snapshot.STREAMS_NAME).write_bytes(whole)
        bootstraps(slave)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({"lsn": 4, "entry": {"v": 2}}, id="no op"),
        pytest.param({"lsn": 4, "entry": "x"}, id="a text"),
        pytest.param(entry(4, ts=-1, crc=None), id="a time before all times"),
        pytest.param(entry(4, crc="00000000"), id="another checksum"),
    ],
)
def test_log_that_is_none_does_not_come_in_with_the_snapshots(
    source: Source, snapshots: Snapshots, tmp_path: Path, odd: dict[str, Any]
) -> None:
    # As if one series had a snapshot at LSN 4: the log between the two is fetched with them.
    other = tmp_path / "other"
    other.mkdir()
    tree = snapshot.write_tree(Disk(), other, "b", {}, 4, 1_795_253_093, 1)
    plain = snapshots.info

    def info(request: dict[str, Any]) -> dict[str, Any]:
        reply = plain(request)
        more = {"file": tree.file, "bytes": tree.bytes, "last_lsn": 4, "metadata": tree.metadata()}
        reply["response"]["files"].append(more)
        return reply

    source.answers["snapshot.info"] = info
    chunk = source.answers["snapshot.fetch_chunk"]

    def either(request: dict[str, Any]) -> dict[str, Any]:
        if request["file"] != tree.file:
            found: dict[str, Any] = chunk(request)
            return found
        data = (other / tree.file).read_bytes()
        return success(metadata={}, total_bytes=len(data), data_base64=base64.b64encode(data).decode())

    source.answers["snapshot.fetch_chunk"] = either

    def entries(request: dict[str, Any]) -> dict[str, Any]:
        if not request.get("node_id"):
            return source.page([odd, entry(5)])
        return snapshots.entries(request)

    source.answers["replication.entries"] = entries
    with slave_of(source, tmp_path) as slave:
        fails(slave, "cannot be used")
        source.answers["replication.entries"] = snapshots.entries
        until(lambda: follows(slave, 5))
        assert slave.ask("tree.list") == ["a", "b"]


def test_an_epoch_that_begins_while_data_are_fetched_makes_them_worthless(
    source: Source, snapshots: Snapshots, tmp_path: Path
) -> None:
    epochs = [*EPOCHS, {"epoch": 2, "node_id": "x", "start_lsn": 4}]
    counts = iter(range(1000))
    good = source.answers["replication.status"]
    source.answers["replication.status"] = lambda _request: success(
        **ABOUT, epochs=epochs[: 1 + next(counts) % 2]
    )
    with slave_of(source, tmp_path) as slave:
        fails(slave, "epoch")
        source.answers["replication.status"] = good
        bootstraps(slave)


def test_a_status_that_is_refused_tells_no_epochs(
    source: Source, snapshots: Snapshots, tmp_path: Path
) -> None:
    good = source.answers["replication.status"]
    source.answers["replication.status"] = lambda _request: failure("overloaded")
    with slave_of(source, tmp_path) as slave:
        fails(slave, "status")
        source.answers["replication.status"] = good
        bootstraps(slave)
