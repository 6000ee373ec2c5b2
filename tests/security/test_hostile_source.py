"""A source that lies: its follower takes in nothing that no request could bring, says why, and goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.peers import Answer, FakeMaster, Peer, entry, failure, success
from harness import Server, until

DAY = 20260505
MEGABYTES_5 = "x" * (5 << 20)
MAX_STATUS_BYTES = 65_536
MAX_DIRECTORY_BYTES = 1 << 20
ABOUT = FakeMaster.ABOUT | {"source_lsn": 3, "path": ["fake"]}
HISTORY = [{"epoch": 1, "node_id": "fake", "start_lsn": 1}]


def add(series: str) -> dict[str, Any]:
    return {"v": 2, "op": "counter.increment", "series": series, "key": 1, "bucket": DAY, "value": 1}


def bootstrap(*files: Any, chunk: Callable[[dict[str, Any]], Any] | None = None) -> Callable[[Any], Answer]:
    """Return a source whose log is gone, so that its snapshots are fetched: these files."""

    def script(request: dict[str, Any]) -> Answer:
        match request["op"]:
            case "replication.status":
                return success({**ABOUT, "epochs": HISTORY})
            case "snapshot.info":
                return success({"truncated_lsn": 3, "files": list(files)})
            case "snapshot.fetch_chunk" if chunk is not None:
                return success(chunk(request))
        return failure("replication_gap", "gone", reason="gap", first_lsn=4)

    return script


def file(**fields: Any) -> dict[str, Any]:
    metadata = {"tree": "a", "file": "1_a.tree", "timestamp": 1, "last_lsn": 3, "bytes": 10}
    return {"file": "1_a.tree", "bytes": 10, "last_lsn": 3, "metadata": metadata, **fields}


def part(data_base64: Any = "", **fields: Any) -> dict[str, Any]:
    return {"metadata": {}, "total_bytes": 10, "data_base64": data_base64, **fields}


def page(*entries: Any, **more: Any) -> Callable[[Any], Answer]:
    """Return a source with an honest handshake and this page."""
    script = FakeMaster(3, lambda after_lsn: script.page(after_lsn, entries[after_lsn:], **more))
    return script


def greeting(**more: Any) -> Callable[[Any], Answer]:
    return lambda _: success({**ABOUT, "epochs": HISTORY, "entries": [], "next_lsn": 0, **more})


def checkpoint(**fields: Any) -> dict[str, Any]:
    known = {"source": "s", "offset": 1, "event_id": None, "updated_at_unix": 1, **fields}
    return {"checkpoints": [known], "checkpoint_position": ["boot", 1], "checkpoint_count": 1}


SOURCES: dict[str, tuple[Callable[[Any], Answer], str]] = {
    # What it does, and words of the follower's reason.
    "a petabyte": (bootstrap(file(bytes=10**15)), "are free"),
    "less than nothing": (bootstrap(file(bytes=-1)), "Field bytes"),
    "a size of text": (bootstrap(file(bytes="10")), "Field bytes"),
    "more than all files together may have": (bootstrap(*[file(bytes=10**12)] * 1_000), "are free"),
    "a name of five megabytes": (bootstrap(file(file=MEGABYTES_5 + ".tree")), "Field file"),
    "a path": (bootstrap(file(file="../../1_a.tree")), "Field file"),
    "another file of the directory": (bootstrap(file(file="karma.node.json")), "Field file"),
    "a snapshot of the far future": (bootstrap(file(file="999999999999999_a.tree")), "Field file"),
    "a snapshot of no time": (bootstrap(file(file="a.tree")), "Field file"),
    "metadata that are a list": (bootstrap(file(metadata=["x"])), "metadata of 1_a.tree"),
    "metadata of five megabytes": (bootstrap(file(metadata={"tree": MEGABYTES_5})), "metadata of 1_a.tree"),
    "metadata of another LSN": (bootstrap(file(metadata={"last_lsn": 2**64 - 1})), "another LSN"),
    "a checksum that is a list": (bootstrap(file(metadata={"crc32": []})), "Field crc32"),
    "files that are text": (bootstrap("1_a.tree"), "Each of files must be an object"),
    "a part that is longer than asked": (
        bootstrap(file(), chunk=lambda _: part("A" * 4 * (1 << 20))),
        "longer than was asked for",
    ),
    "a part that is no base64": (bootstrap(file(), chunk=lambda _: part("?")), "cannot be used"),
    "a part that is an object": (bootstrap(file(), chunk=lambda _: part({})), "cannot be used"),
    "a part whose metadata are a list": (
        bootstrap(file(), chunk=lambda _: part("QUFB", metadata=["x"])),
        "cannot be used",
    ),
    "a series of five megabytes": (page(entry(1, add(MEGABYTES_5))), "series of entry 1"),
    "an idempotency key of five megabytes": (
        page(entry(1, {**add("a"), "idempotency_key": MEGABYTES_5})),
        "idempotency_key of entry 1",
    ),
    "an LSN that is no number of 64 bits": (page(source_lsn=10**30), "Field source_lsn"),
    "an LSN of text": (page(source_lsn="3"), "Field source_lsn"),
    "a lag that no reply can say": (page(lag_bytes=10**30), "Field lag_bytes"),
    "a lag below nothing": (page(lag_bytes=-1), "Field lag_bytes"),
    "a checkpoint's source of five megabytes": (page(**checkpoint(source=MEGABYTES_5)), "Field source"),
    "a checkpoint's offset that is a list": (page(**checkpoint(offset=[1])), "Field offset"),
    "a checkpoint of a negative time": (page(**checkpoint(updated_at_unix=-1)), "Field updated_at_unix"),
    "a checkpoint that is a number": (page(**checkpoint() | {"checkpoints": [7]}), "cannot be used"),
    "a position that is a number": (page(**checkpoint() | {"checkpoint_position": 7}), "checkpoint_position"),
    "a way of a thousand nodes": (greeting(path=[f"n{number}" for number in range(1_000)]), "Field path"),
    "a way of markup": (greeting(path=["[/red]"]), "Field path"),
    "a way of numbers": (greeting(path=[1]), "Field path"),
    "a master's address with a control character": (greeting(master="\x1b[2J:1"), "Field master"),
    "a cluster of five megabytes": (greeting(cluster_id=MEGABYTES_5), "Field cluster_id"),
    "a node id of five megabytes": (
        greeting(epochs=[{"epoch": 1, "node_id": MEGABYTES_5, "start_lsn": 1}]),
        "node_id of epoch 1",
    ),
    "an epoch below nothing": (
        greeting(epochs=[{"epoch": -1, "node_id": "fake", "start_lsn": 1}]),
        "out of bounds",
    ),
    "an error of five megabytes": (lambda _: failure("internal_error", MEGABYTES_5), "xxxx"),
    "an error with a terminal's words": (lambda _: failure("internal_error", "\x1b]0;pwned\x07"), "pwned"),
}


def size_of(directory: Path) -> int:
    return sum(Path(folder, name).stat().st_size for folder, _, names in os.walk(directory) for name in names)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_follower_refuses_what_no_request_could_bring(tmp_path: Path, kind: str) -> None:
    script, words = SOURCES[kind]
    options: dict[str, Any] = {"role": "slave", "replication_source_host": "127.0.0.1", "wal_fsync": False}
    with (
        Peer(script) as peer,
        Server(tmp_path / "data", replication_source_port=peer.port, **options) as slave,
        slave.connect() as connection,
    ):
        until(
            lambda: words in (connection.ask("replication.status")["replication_reason"] or ""),
            why=lambda: connection.ask("replication.status")["replication_reason"],
        )
        status = connection.ask("replication.status")
        assert status["replication_reason"].isprintable()
        assert len(json.dumps(status)) < MAX_STATUS_BYTES
        assert connection.ask("tree.list") == []
        assert connection.ask("recovery.status")["checkpoint_count"] == 0
        assert size_of(slave.directory) < MAX_DIRECTORY_BYTES
        assert "internal_error" not in {event["event"] for event in slave.events()}
        connection.ask("replication.promote")
        connection.ask("counter.increment", series="a", key=1, bucket=DAY)
        assert connection.ask("replication.status")["wal_current_lsn"] == 1
    assert max(map(len, slave.output.read_text().splitlines())) < MAX_STATUS_BYTES


def test_a_disk_without_the_reserve_gets_no_bootstrap(tiny_disk: Path) -> None:
    directory = tiny_disk / "data"
    options: dict[str, Any] = {"role": "slave", "replication_source_host": "127.0.0.1", "wal_fsync": False}
    # Two megabytes: it would fit, with less than a twentieth left.
    script = bootstrap(file(bytes=(2 << 20) - 120_000), chunk=lambda _: part("QUFB"))
    with (
        Peer(script) as peer,
        Server(directory, replication_source_port=peer.port, **options) as slave,
        slave.connect() as connection,
    ):
        until(
            lambda: "kept for the log" in (connection.ask("replication.status")["replication_reason"] or "")
        )
        assert size_of(directory) < MAX_DIRECTORY_BYTES // 10
