"""Commands for when something is wrong, or might be."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, listing, thing

COMMANDS: tuple[Command, ...] = (
    Command(
        "doctor",
        "doctor.doctor",
        "Look for trouble: configuration, tokens, reachability, clocks, disks, lag, logs, versions.",
        ("system.health", "replication.status", "system.stats"),
        options=(
            Option("hosts", "flag", "look at the nodes' hosts as well, over SSH: what a playbook would need"),
        ),
        shape=listing("level:state", "place", "check", "finding", "advice"),
        examples=(
            ("doctor --context prod", "every node of a context"),
            ("doctor --context prod --hosts", "and their hosts: keys, sudo, rights, disks, clocks"),
        ),
        details="Exit code 0 when all is well, 8 when something is not, 9 split brain, 5 when no node "
        "answers, 2 when the token cannot be read.",
        can_watch=True,
    ),
    Command(
        "support-bundle",
        "support.bundle",
        "Collect what others need to help into a tar.gz, without tokens.",
        (
            "system.health",
            "system.stats",
            "system.latency",
            "system.metrics",
            "replication.status",
            "snapshot.info",
        ),
        (Argument("file", "path", "karmactl-support-TIME.tar.gz if left out", required=False),),
        shape=thing("file", "bytes:bytes", "files:number", "failed:number"),
        examples=(("support-bundle --context prod", ""),),
        details="Configuration (secrets masked), doctor's findings, and of each node health, stats, latency, "
        "metrics, replication status and snapshots: names of series are in there, their data are not. Exit "
        "code 7 when a node did not tell everything.",
    ),
    Command(
        "bench",
        "bench.bench",
        "Measure throughput and latency with a modest load from here.",
        ("counter.increment", "series.batch_add", "counter.sum", "tree.list", "tree.drop"),
        options=(
            Option("series", "series", "where to write; __karma_bench, dropped afterwards, if left out"),
            Option(
                "only",
                "choice",
                "only this test; may be repeated",
                many=True,
                choices=("increment", "batch", "read"),
            ),
            Option("connections", "number", "connections at a time", 4, metavar="N"),
            Option("pipeline", "number", "requests that leave together", 16, metavar="N"),
            Option("for", "seconds", "how long each test runs", 3.0, metavar="SECONDS"),
            Option("keys", "number", "different keys", 10_000, metavar="N"),
            Option("batch", "number", "items of a batch", 100, metavar="N"),
        ),
        shape=listing(
            "test",
            "requests:number",
            "per_second:number",
            "items_per_second:number",
            "p50_us:us",
            "p95_us:us",
            "p99_us:us",
            "max_us:us",
        ),
        examples=(
            ("bench", "increments, batches and reads, three seconds each"),
            ("bench --only read --series api_requests", "writes nothing"),
            ("bench --only increment --connections 1 --pipeline 1", "one round trip"),
        ),
        details="A latency is that of a whole pipeline. One Python process makes the load, which is busier "
        "than the server: it compares, it does not find limits.",
        given_effect="operation",
    ),
)
