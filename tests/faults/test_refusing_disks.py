"""Disks that are full or read-only when a server starts, and directories that leave a running one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, counters_of, free_port, until

DAY = 20260505
ITEMS = [[key, DAY, 1] for key in range(20)]


@pytest.fixture
def data(tiny_disk: Path, tmp_path: Path) -> Path:
    """A data directory on the small disk; what the server prints goes elsewhere."""
    (tiny_disk / "data").mkdir()
    (tmp_path / "data").symlink_to(tiny_disk / "data")
    return tmp_path / "data"


@pytest.fixture
def refuse(tiny_disk: Path, remount: Callable[[str], None], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Let the small disk refuse changes, in the way that the test's parameter says, or take them again."""

    def change(*, refuses: bool) -> None:
        if request.param == "read-only":
            remount("ro" if refuses else "rw")
        elif refuses:
            with (tiny_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        else:
            (tiny_disk / "ballast").unlink()

    yield change
    remount("rw")


WAYS = pytest.mark.parametrize("refuse", ["full", "read-only"], indirect=True)


def filled(server: Server) -> dict[str, Any]:
    """Give a server data in snapshots and in the log; returns its counters."""
    with server.connect() as connection:
        connection.ask("series.batch_add", series="a", items=ITEMS)
        connection.ask("snapshot.create_all")
        connection.ask("series.batch_add", series="a", items=ITEMS)
        connection.ask("counter.increment", series="b", key=1, bucket=DAY, idempotency_key="k")
        return counters_of(connection)


@WAYS
@pytest.mark.parametrize("left", ["whole", "torn", "no lock file", "unsynced"])
def test_a_server_starts_on_a_disk_that_refuses_changes_and_recovers_by_itself(
    data: Path, refuse: Callable[..., None], left: str
) -> None:
    http_port = free_port()
    with Server(data, http_port=http_port, wal_fsync=left != "unsynced") as server:
        before = filled(server)
        epoch = server.ask("replication.status")["epoch"]
        server.kill()
        if left == "torn":
            with (data / "karma.wal").open("ab") as log:
                log.write(b'{"v":2,"lsn":4,"entry":{"v":2,"op":"counter.incr')
        if left == "no lock file":
            (data / "karma.lock").unlink()
        refuse(refuses=True)
        server.restart()
        with server.connect() as connection:
            assert counters_of(connection) == before
            assert connection.refuse("counter.increment", series="a", key=1)[0] == "storage_error"
            assert connection.refuse("snapshot.create_all")[0] == "storage_error"
            assert connection.refuse("ingest.begin", stream_id="s", mode="add")[0] == "storage_error"
            assert connection.ask("snapshot.verify")["status"] == "ok"
            page = connection.ask("replication.entries", after_lsn=1)
            assert [entry["lsn"] for entry in page["entries"]] == [2, 3]
            health = connection.ask("system.health")
            assert health["status"] == "storage_error"
            assert health["storage_error"] in ("No space left on device", "Read-only file system")
            assert "karma_storage_failing 1\n" in connection.ask("system.metrics")
            assert counters_of(connection) == before
            refuse(refuses=False)
            assert connection.ask("counter.increment", series="b", key=2, bucket=DAY) == 1
            assert connection.ask("system.health")["status"] == "ok"
            assert "karma_storage_failing 0\n" in connection.ask("system.metrics")
            assert connection.ask("replication.status")["epoch"] == epoch + 1
            assert connection.ask("snapshot.create_all") == "OK"
            retry = connection.call("counter.increment", series="b", key=1, bucket=DAY, idempotency_key="k")
            assert retry["idempotent"] is True
            after = counters_of(connection)
        assert after["b"] == {"1": {str(DAY): 1}, "2": {str(DAY): 1}}
        server.kill()
        server.restart()
        with server.connect() as connection:
            assert counters_of(connection) == after
            epochs = connection.ask("replication.status")["epochs"]
        assert [each["start_lsn"] for each in epochs if each["epoch"] == epoch + 1] == [4]


@WAYS
def test_a_disk_that_takes_changes_again_is_noticed_without_a_write(
    data: Path, refuse: Callable[..., None]
) -> None:
    with Server(data) as server:
        filled(server)
        server.kill()
        refuse(refuses=True)
        server.restart()
        assert server.ask("system.health")["status"] == "storage_error"
        refuse(refuses=False)
        until(lambda: server.ask("system.health")["status"] == "ok")
        assert server.stop() == 0


@WAYS
def test_a_server_that_could_never_write_ends_well_and_leaves_all_as_it_was(
    data: Path, refuse: Callable[..., None]
) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "karma.lock"}

    with Server(data) as server:
        before = filled(server)
        server.kill()
        refuse(refuses=True)
        as_it_was = files()
        server.restart()
        assert server.stop() == 0
        assert files() == as_it_was
        refuse(refuses=False)
        server.restart()
        with server.connect() as connection:
            assert counters_of(connection) == before


@WAYS
def test_a_slave_on_a_disk_that_refuses_changes_follows_later(
    data: Path, tmp_path: Path, refuse: Callable[..., None]
) -> None:
    with Server(tmp_path / "master") as master:
        filled(master)
        source: dict[str, Any] = {
            "replication_source_host": "127.0.0.1",
            "replication_source_port": master.port,
        }
        with Server(data, role="slave", **source) as slave:
            until(lambda: slave.ask("replication.checksum") == master.ask("replication.checksum"))
            slave.kill()
            refuse(refuses=True)
            slave.restart()
            master.ask("counter.increment", series="c", key=1, bucket=DAY)
            until(lambda: slave.ask("replication.status")["replication_state"] == "storage_error")
            assert slave.ask("tree.list") == ["a", "b"]
            refuse(refuses=False)
            until(lambda: slave.ask("replication.checksum") == master.ask("replication.checksum"))


def test_one_server_at_a_time_has_a_read_only_directory_without_a_lock_file(
    data: Path, tmp_path: Path, remount: Callable[[str], None]
) -> None:
    with Server(data) as server:
        filled(server)
        server.kill()
        (data / "karma.lock").unlink()
        remount("ro")
        server.restart()
        (tmp_path / "link").symlink_to(data.resolve())
        for mode in ("ro", "rw"):
            remount(mode)
            with Server(tmp_path / "link", wait=False) as second:
                assert second.process.wait(30) == 1
                assert "is in use by" in second.output.read_text()


# -- Directories that leave ------------------------------------------------------------------------------


def move(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def replace(directory: Path) -> None:
    move(directory)
    directory.mkdir()


LEAVE: list[Callable[[Path], None]] = [move, replace, shutil.rmtree]


@pytest.mark.parametrize("leave", LEAVE)
def test_a_directory_that_leaves_ends_the_server(tmp_path: Path, leave: Callable[[Path], None]) -> None:
    with Server(tmp_path / "data") as server:
        before = filled(server)
        with server.connect() as connection:
            leave(server.directory)
            until(
                lambda: (
                    connection.call("counter.increment", series="x", key=1)["error_code"] == "storage_error"
                )
            )
            assert connection.refuse("snapshot.create_all")[0] == "storage_error"
            health = connection.ask("system.health")
            assert health["status"] == "storage_error"
            assert "was moved or removed" in health["storage_error"]
        assert server.process.wait(30) == 1
        assert (
            f"ERROR: the data directory {server.directory} was moved or removed" in server.output.read_text()
        )
        if leave is replace:
            assert list(server.directory.iterdir()) == []
            server.directory.rmdir()
        if leave is not shutil.rmtree:
            # What was acknowledged is where the directory went.
            (tmp_path / "moved").rename(server.directory)
            server.restart()
            with server.connect() as connection:
                assert before.items() <= counters_of(connection).items()


def empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)


def replace_log(directory: Path) -> None:
    (directory / "karma.wal").rename(directory / "karma.wal.bak")
    (directory / "karma.wal").touch()


@pytest.mark.parametrize("leave", [empty, replace_log])
def test_a_log_that_leaves_its_directory_ends_the_server(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    with Server(tmp_path / "data", wal_segment_bytes=2000) as server:
        with server.connect() as connection:
            for key in range(100):
                # Rotations give the file another name and are none of this.
                connection.ask("counter.increment", series="a", key=key, bucket=DAY)
            leave(server.directory)
            until(
                lambda: (
                    connection.call("counter.increment", series="x", key=1)["error_code"] == "storage_error"
                )
            )
        assert server.process.wait(30) == 1
        assert (
            f"ERROR: the log {server.directory}/karma.wal was moved or removed" in server.output.read_text()
        )


@pytest.mark.parametrize("leave", LEAVE)
def test_a_clean_end_without_the_directory_is_none(tmp_path: Path, leave: Callable[[Path], None]) -> None:
    with Server(tmp_path / "data") as server:
        filled(server)
        leave(server.directory)
        assert server.stop() == 1
        assert "was moved or removed" in server.output.read_text()
        assert leave is not replace or list(server.directory.iterdir()) == []
