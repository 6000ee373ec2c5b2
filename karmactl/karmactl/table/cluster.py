"""Commands about several nodes and their roles."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, Shape, columns, listing, thing

_ALONE = "a server without it changes roles only by its start options: --role and --replication-source-host"
_STATUS = columns(
    "node",
    "role:state",
    "state:state",
    "epoch:number",
    "lsn:number",
    "lag_entries:number",
    "lag_ms:ms",
    "source",
    "error",
)
_CHANGED = thing("node")

_FORCE = Option("force", "flag", "though a run fenced, paused or leased the node; logged and counted there")

COMMANDS: tuple[Command, ...] = (
    Command(
        "topology",
        "topology.topology",
        "Draw the nodes as a tree with roles, epochs and lag, and judge it.",
        ("system.health", "replication.status", "system.stats"),
        options=(Option("max-lag", "number", "entries behind that are too many", 10_000, metavar="N"),),
        shape=thing("health:state", "problems", "nodes"),
        examples=(
            ("topology --context prod", "every node of a context"),
            ("topology --wait-until healthy", "return when all is well"),
        ),
        details="Exit code 0 healthy, 8 degraded, 9 split brain. It only looks: there is no automatic "
        "failover.",
        can_watch=True,
        can_wait=True,
    ),
    Command(
        "replication status",
        "replication.status",
        "Show role, LSN and lag of every node.",
        ("system.health", "replication.status", "system.stats"),
        shape=Shape("list", _STATUS),
        examples=(
            ("replication status --wait-until caught-up", "return when every follower has everything"),
            ("replication status --output json", "everything that the nodes say"),
        ),
        details="Works with Karma 1.0 too, which knows no epochs. Exit code 7 when some nodes do not answer.",
        can_watch=True,
        can_wait=True,
    ),
    Command(
        "replication watch",
        "replication.watch",
        "Show replication status again every second, or as --watch says.",
        ("system.health", "replication.status", "system.stats"),
        shape=Shape("list", _STATUS),
        examples=(("replication watch", "until Ctrl-C"),),
        can_watch=True,
    ),
    Command(
        "replication promote",
        "replication.promote",
        "Make a slave the master, without a restart.",
        ("replication.status", "replication.promote"),
        options=(_FORCE,),
        shape=_CHANGED,
        examples=(("replication promote --node 10.0.0.2:8080", ""),),
        details="Fence the old master first, or two nodes take writes. Nothing does this by itself: there is "
        "no automatic failover.",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "replication follow",
        "replication.follow",
        "Make a node a slave of another.",
        ("replication.status", "replication.follow"),
        (Argument("source", "node", "address of the node to follow"),),
        (
            Option(
                "source-token-env",
                help="variable with the token that the source wants, if not the replication-token",
                metavar="NAME",
            ),
            Option(
                "rebuild", "flag", "give up a history that diverged; the old data is moved aside on the node"
            ),
            _FORCE,
        ),
        _CHANGED,
        examples=(
            ("replication follow 10.0.0.2:8080 --node 10.0.0.1:8080", "10.0.0.1 follows 10.0.0.2"),
            (
                "replication follow 10.0.0.2:8080 --node 10.0.0.1:8080 --rebuild",
                "though its own history diverged",
            ),
        ),
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "replication pause",
        "replication.pause",
        "Refuse writes for a while; they go on by themselves afterwards.",
        ("replication.pause",),
        options=(Option("for", "seconds", "how long", 30.0, metavar="SECONDS"), _FORCE),
        shape=_CHANGED,
        examples=(("replication pause --for 10s", ""),),
        danger="question",
        instead="nothing on that server stops writes except stopping it",
        given_effect="write",
    ),
    Command(
        "replication resume",
        "replication.resume",
        "Take writes again before a pause ends.",
        ("replication.resume",),
        options=(_FORCE,),
        shape=_CHANGED,
        examples=(("replication resume", ""),),
        instead="such a server cannot be paused either",
        given_effect="write",
    ),
    Command(
        "replication fence",
        "replication.fence",
        "Refuse writes for good, until unfenced, promoted or made a follower.",
        ("replication.fence",),
        options=(
            Option("epoch", "number", "epoch of the master that replaces it", required=True, metavar="N"),
            Option("reason", help="why, for whoever finds it", required=True, metavar="TEXT"),
            Option("force", "flag", "also over another run's, or 1,000 epochs and more above the node's own"),
        ),
        shape=_CHANGED,
        examples=(('replication fence --node 10.0.0.1:8080 --epoch 4 --reason "db2 takes over"', ""),),
        danger="question",
        instead="stop that server before another becomes master",
        given_effect="write",
    ),
    Command(
        "replication unfence",
        "replication.unfence",
        "Take a fence away.",
        ("replication.unfence",),
        options=(Option("epoch", "number", "epoch that the fence names", required=True, metavar="N"), _FORCE),
        shape=_CHANGED,
        examples=(("replication unfence --epoch 4", ""),),
        details="Two nodes take writes if another one is master by now: look at `karmactl topology` first.",
        danger="question",
        instead="such a server cannot be fenced either",
        given_effect="write",
    ),
    Command(
        "replication wait",
        "replication.wait",
        "Wait until followers have stored what the master has.",
        ("replication.wait",),
        options=(
            Option("acks", "number", "followers that must have it", 1, metavar="N"),
            Option("lsn", "u64", "up to this LSN; the newest if left out", metavar="N"),
        ),
        shape=thing("lsn:number", "acks:number"),
        examples=(("replication wait --acks 2 --timeout 10", ""),),
        details="Waits --timeout (5 seconds). Exit code 6 when too few had it by then.",
        instead="`karmactl replication status --wait-until caught-up` asks every node",
        given_effect="read",
        least_token="read",  # noqa: S106
    ),
    Command(
        "replication checksum",
        "replication.checksum",
        "Compare the data of all nodes by a digest.",
        ("replication.checksum",),
        shape=listing("node", "lsn:number", "digest", "error"),
        examples=(("replication checksum --context prod", ""),),
        details="Digests are equal where data and LSN are. Exit code 8 when they differ at one LSN.",
        instead="`karmactl series summary` of each node compares totals",
        given_effect="read",
        least_token="read",  # noqa: S106
    ),
)
