"""The node's file: all of it comes back, none of it is believed when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from karma.core.epochs import Epoch, History
from karma.errors import DamagedDataError
from karma.storage import node_file
from karma.storage.checked import crc32_hex
from karma.storage.disk import Disk
from karma.storage.node_file import Address, Fence, KnownReplica, Lease, Maintenance, Node, ParkedRun

FULL = Node(
    "aaaaaaaaaaaaaaaa",
    "cccccccccccccccc",
    History((Epoch(1, "bbbbbbbbbbbbbbbb", 1), Epoch(2, "aaaaaaaaaaaaaaaa", 15))),
    role="slave",
    source=Address("db1.example", 8080, "s3cret"),
    is_runtime=True,
    fence=Fence(7, 'failover to "db2"', 1_795_253_093_000, "bbbbbbbbbbbbbbbb", "failover-1"),
    paused_until_unix_ms=1_795_253_093_001,
    pause_ttl_ms=5_000,
    paused_by="switchover-1",
    former_sources=(Address("::1", 8081), Address("db3", 8082, "other")),
    replicas=(KnownReplica("dddddddddddddddd", "10.0.0.4:8080", 12, 1_795_253_000),),
    epoch_due=True,
    must_rebuild=True,
    running="unsynced",
    lease_number=4,
    lease=Lease(4, "switchover-1", "ann on ops1", 60_000),
    parked=(ParkedRun("switchover-2", "to db2", 1_795_253_099_000),),
    maintenance=Maintenance("new disks", 1_795_253_099_000, 6_000_000),
)


@pytest.mark.parametrize("node", [FULL, Node("a"), replace(FULL, role="master", source=None, fence=None)])
def test_a_node_reads_back_as_it_was_saved(tmp_path: Path, node: Node) -> None:
    node_file.save(Disk(), tmp_path, node)
    assert node_file.load(Disk(), tmp_path) == node


def test_a_file_of_a_version_without_leases_is_read(tmp_path: Path) -> None:
    node = replace(FULL, fence=replace(FULL.fence, run=None) if FULL.fence else None, paused_by=None)
    node_file.save(Disk(), tmp_path, node)
    path = tmp_path / node_file.NODE_NAME
    content = orjson.loads(path.read_bytes())
    for name in ("lease_number", "lease", "parked", "maintenance", "paused_by"):
        del content["node"][name]
    del content["node"]["fence"]["run"]
    path.write_bytes(orjson.dumps({**content, "crc32": crc32_hex(orjson.dumps(content["node"]))}))
    expected = replace(node, lease_number=0, lease=None, parked=(), maintenance=None)
    assert node_file.load(Disk(), tmp_path) == expected


def test_without_a_file_there_is_no_node(tmp_path: Path) -> None:
    assert node_file.load(Disk(), tmp_path) is None


class HarmedDisk(Disk):
    """A disk that reads other bytes than it was given."""

    data = b""

    def read_file(self, path: Path) -> bytes:
        return self.data


def test_every_bit_counts(tmp_path: Path) -> None:
    node_file.save(Disk(), tmp_path, FULL)
    whole = (tmp_path / node_file.NODE_NAME).read_bytes()
    disk = HarmedDisk()
    refused = 0
    for at in range(len(whole)):
        for bit in range(8):
            disk.data = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
            try:
                assert node_file.load(disk, tmp_path) == FULL
            except DamagedDataError:
                refused += 1
    assert refused >= 8 * len(whole) - 8, "all but white space"
    for size in range(len(whole) - 1):
        disk.data = whole[:size]
        with pytest.raises(DamagedDataError, match=r"."):
            node_file.load(disk, tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"role": "king"}, "role"),
        ({"running": "fast"}, "running"),
        ({"node_id": None}, "node_id"),
        ({"epochs": {}}, "epochs"),
        ({"fence": {"epoch": 1}}, "reason"),
        ({"epoch_due": 1}, "epoch_due"),
    ],
)
def test_what_no_server_wrote_is_refused_even_with_its_checksum(
    tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    node_file.save(Disk(), tmp_path, FULL)
    path = tmp_path / node_file.NODE_NAME
    node = orjson.loads(path.read_bytes())["node"] | changes
    path.write_bytes(orjson.dumps({"format": 1, "node": node, "crc32": crc32_hex(orjson.dumps(node))}))
    with pytest.raises(DamagedDataError, match=word):
        node_file.load(Disk(), tmp_path)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    (tmp_path / node_file.NODE_NAME).write_bytes(b'{"format":2,"node":{},"crc32":""}')
    with pytest.raises(DamagedDataError, match="format 2"):
        node_file.load(Disk(), tmp_path)


def test_a_token_is_in_no_text(tmp_path: Path) -> None:
    assert "s3cret" not in f"{FULL!r} {FULL.source} {FULL.former_sources}"
    assert [str(each) for each in FULL.former_sources] == ["[::1]:8081", "db3:8082"]
