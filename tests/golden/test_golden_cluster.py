"""Several nodes, dead nodes, tokens, and a server of Karma 1.0.1."""

from collections.abc import Iterator

import ctl
import pytest
from ctl import Step
from harness import FIXTURES, Server, free_port


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses by name: two masters that know nothing of each other, a slave, one where nobody listens."""
    folder = tmp_path_factory.mktemp("cluster")
    with (
        Server(folder / "master") as master,
        Server(folder / "other") as other,
        Server(
            folder / "slave",
            role="slave",
            replication_source_host="127.0.0.1",
            replication_source_port=master.port,
        ) as slave,
        Server(folder / "guarded", auth_token="secret-1", read_auth_token="secret-2") as guarded,
    ):
        master.ask("counter.increment", series="api_requests", key=1)
        assert master.ask("replication.wait", lsn=1, acks=1, timeout_ms=20_000)["acks"] == 1
        found = {"MASTER": master, "OTHER": other, "SLAVE": slave, "GUARDED": guarded}
        yield {
            **{name: f"127.0.0.1:{server.port}" for name, server in found.items()},
            "DEAD": f"127.0.0.1:{free_port()}",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "GOOD_TOKEN": "secret-1",
            "READ_TOKEN": "secret-2",
            "OLD_TOKEN": "secret-3",
        }


TOGETHER = {
    "topology-slave": ("topology", "MASTER", "SLAVE"),
    "topology-dead": ("topology", "MASTER", "DEAD"),
    "topology-strangers": ("topology", "MASTER", "OTHER", "SLAVE"),
    "topology-masterless": ("topology", "SLAVE"),
    "topology-unreachable": ("topology", "DEAD"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_topologies_are_drawn_as_they_were(name: str, nodes: dict[str, str]) -> None:
    command, *members = TOGETHER[name]
    environ = {**nodes, "KARMACTL_NODES": ",".join(nodes[member] for member in members)}
    ctl.compare(name, ctl.transcript((command,), environ))


STORIES: dict[str, list[str | Step]] = {
    "nodes-partly-dead": [
        "ping --node $MASTER --node $DEAD --fields node,status",
        "health --node $MASTER --node $DEAD --fields node,status,role",
        "replication status --node $MASTER --node $DEAD --fields node,role,state,lsn,error",
        "snapshot create --node $MASTER --node $OTHER",
        "replication promote --node $MASTER --node $OTHER",
    ],
    "check-dead": [
        "check --node $MASTER --node $DEAD --warn-disk 0 --crit-disk 0",
        "check --node $MASTER --node $DEAD --warn-disk 0 --crit-disk 0 --format prometheus",
        "check --node $MASTER --node $OTHER --warn-disk 0 --crit-disk 0",
        "check --node $SLAVE --warn-disk 0 --crit-disk 0",
        "check --node $MASTER --warn-disk 101 --crit-disk 0",
        "check --node $GUARDED",
    ],
    "nodes-dead": [
        "ping --node $DEAD",
        "get api_requests 1 --node $DEAD",
        "add api_requests 1 --node $DEAD",
        "health --node $DEAD --wait-until healthy --timeout 300ms",
        "check --node $DEAD",
    ],
    "roles": [
        "get api_requests 1 --node $SLAVE",
        "add api_requests 1 --node $SLAVE",
        "add api_requests 1 --node $SLAVE --node $MASTER",
    ],
    "tokens": [
        "series list --node $GUARDED",
        "series list --node $GUARDED --token-env GOOD_TOKEN",
        "series list --node $GUARDED --token-env OLD_TOKEN",
        "series list --node $GUARDED --token-env NO_SUCH_VARIABLE",
        "series list --node $GUARDED --token-file /no/such/file",
        "series create fresh --node $GUARDED --token-env READ_TOKEN",
        "series list --node $GUARDED --token-env GOOD_TOKEN --token-file /no/such/file",
        "ping --node $GUARDED --node $MASTER --token-env NO_SUCH_VARIABLE",
        "-v series list --node $GUARDED --token-env GOOD_TOKEN",
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_as_it_was(name: str, nodes: dict[str, str]) -> None:
    ctl.compare(name, ctl.story(STORIES[name], nodes, is_volatile=name == "check-dead"))


def test_no_token_is_ever_printed(nodes: dict[str, str]) -> None:
    for steps in STORIES.values():
        assert "secret-" not in ctl.story(steps, nodes)


def test_a_server_of_version_1_0_1() -> None:
    lines = [
        "ping --fields status",
        "health --fields status,role",
        "replication status --fields role,state,epoch,lsn,lag_entries",
        "topology",
        "stats --fields trees,keys",
        "series list",
        "limit consume emails 7 --limit 3",
        "limit check emails 7 --limit 3",
        "clients",
        "latency",
        "replication promote --yes",
        "replication follow 10.0.0.1 --yes",
        "replication pause --yes",
        "replication resume",
        "replication fence --epoch 2 --reason moved --yes",
        "replication unfence --epoch 2 --yes",
        "replication wait",
        "replication checksum",
    ]
    transcript = FIXTURES / "snapshot-and-wal" / "transcript.ndjson"
    with ctl.original(transcript) as peer:
        ctl.compare("karma-1.0.1", ctl.story(lines, {"KARMACTL_NODES": peer.address}))
