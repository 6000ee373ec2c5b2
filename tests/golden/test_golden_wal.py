"""wal cat, tail and stat of directories made by hand: every form, and every oddity of two of them."""

from pathlib import Path

import ctl
import pytest
from ctl import Step
from handmade import DAY, Node, add
from harness import Server


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two directories that agree on LSN 1 to 3, and an odd one: LSN 2 is another entry, 3 is missing."""
    folder = tmp_path_factory.mktemp("wal")
    entries = [
        add("api", 42),
        {
            "op": "series.batch_add",
            "series": "api",
            "items": [[1, DAY, 5], [42, DAY, 2]],
            "granularity": "day",
        },
        {"op": "counter.delete_range", "series": "api", "key": 1, "range": {"from": DAY, "to": DAY}},
        add("mail\x1b[31m", 7, 3, idempotency_key="k-1"),
    ]
    Node(folder / "one").write(*entries)
    Node(folder / "two").write(*entries[:3])
    odd = Node(folder / "odd")
    odd.write(entries[0], add("api", 43), add("api", 1), entries[3])
    log = odd.wal._directory / "karma.wal"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], lines[1], lines[3]]))
    (folder / "empty").mkdir()
    return {
        **{name.upper(): str(folder / name) for name in ("one", "two", "odd", "empty", "missing")},
        "XDG_CONFIG_HOME": str(folder / "config"),
    }


def test_every_form(environ: dict[str, str]) -> None:
    ctl.compare("wal-cat", ctl.transcript(("wal", "cat", "--from", environ["ONE"]), environ))
    ctl.compare("wal-stat", ctl.transcript(("wal", "stat", "--from", environ["ONE"]), environ))


def test_directories(environ: dict[str, str]) -> None:
    steps: list[str | Step] = [
        "wal cat --from $ONE --from $TWO",
        Step("wal cat --from $ONE --from $ODD", columns=100),
        "wal stat --from $ONE --from $ODD",
        "wal cat --from $ONE --series api --key 1 --fields lsn,op,key,items",
        "wal cat --from $ONE --op 'counter.*' --from-lsn 2 --to-lsn 3 --output jsonl --fields lsn,op",
        "wal cat --from $ONE --since 2030-01-01",
        "wal cat --from $ONE --until 2030-01-01 --fields lsn",
        "wal cat --from $ONE --since soon",
        "wal cat --from $ONE --fields lns",
        "wal tail --from $ONE -n 1 --fields lsn,op",
        "wal tail --from $ONE -n 0",
        "wal cat --from $EMPTY",
        "wal stat --from $EMPTY --output json",
        "wal cat --from $MISSING",
    ]
    ctl.compare("wal-directories", ctl.story(steps, environ))


def test_a_log_without_its_beginning(tmp_path: Path) -> None:
    with Server(tmp_path / "data", wal_keep_bytes=0) as server:
        environ = {"KARMACTL_NODES": f"127.0.0.1:{server.port}"}
        for key in range(4):
            server.ask("counter.increment", series="api", key=key, bucket=DAY)
        server.ask("snapshot.create_all")
        server.ask("counter.increment", series="api", key=5, bucket=DAY)
        found = ctl.karmactl("wal", "cat", "--fields", "lsn,key", environ=environ)
        assert (found.code, found.stdout) == (0, "5  5\n")
        gone = ctl.karmactl("wal", "cat", "--from-lsn", "2", environ=environ)
        assert gone.code == 4
        assert "the log starts at LSN 5" in gone.stderr
