"""Commands that look at servers."""

from __future__ import annotations

from karmactl.table.entries import TEXT, Command, Option, listing, thing

MATCH = Option("match", help="only names that contain TEXT", metavar="TEXT")

COMMANDS: tuple[Command, ...] = (
    Command(
        "ping",
        "observe.ping",
        "Ask every node for a sign of life and time it.",
        ("system.ping",),
        shape=listing("node", "status:state", "took_ms:ms", "error"),
        examples=(
            ("ping", "the server on this machine"),
            ("ping --node 10.0.0.1:8080 --node 10.0.0.2:8080", "two others"),
        ),
        details="Exit code 5 when no node answers, 7 when only some do.",
        can_watch=True,
    ),
    Command(
        "health",
        "topology.health",
        "Show status, role and uptime of every node.",
        ("system.health", "replication.status", "system.stats"),
        shape=listing("node", "status:state", "role", "uptime_seconds:seconds", "wal_enabled", "error"),
        examples=(
            ("health --wait-until healthy --timeout 30", "return as soon as all is well"),
            ("health --watch 2", "look again every two seconds"),
        ),
        details="Exit code 8 when a node is not ok, or cannot be reached; 5 when none can.",
        can_watch=True,
        can_wait=True,
    ),
    Command(
        "stats",
        "observe.stats",
        "Show every counter and gauge of a node.",
        ("system.stats",),
        options=(MATCH,),
        shape=thing(),
        examples=(
            ("stats --match wal", "what the log is like"),
            ("stats --fields keys,rss_bytes --output csv", "two figures for a script"),
        ),
        details="Of several nodes the first that answers is asked.",
        can_watch=True,
    ),
    Command(
        "metrics",
        "observe.metrics",
        "Print a node's metrics as Prometheus reads them.",
        ("system.metrics",),
        shape=listing("metric", "labels", "value:number"),
        examples=(("metrics > karma.prom", "a file for the textfile collector"),),
        details="As a table it is the text itself; the other formats give one object a sample.",
        can_watch=True,
    ),
    Command(
        "clients",
        "observe.clients",
        "List a node's open connections.",
        ("system.clients",),
        shape=listing(
            "id:number",
            "address",
            "age_seconds:seconds",
            "idle_seconds:seconds",
            "requests:number",
            "last_op",
            "buffered_in_bytes:bytes",
            "buffered_out_bytes:bytes",
            "access",
        ),
        examples=(("clients --watch 1", "who is there, again every second"),),
        can_watch=True,
        instead="on the server's machine, `ss -tn` lists its connections",
        given_effect="read",
    ),
    Command(
        "latency",
        "observe.latency",
        "Show latency percentiles of each operation.",
        ("system.latency",),
        options=(
            Option("total", "flag", "since the start of the server instead of the last minute"),
            MATCH,
        ),
        shape=listing("op", "count:number", "p50_us:us", "p95_us:us", "p99_us:us", "max_us:us"),
        examples=(("latency --watch 5", "the last minute, again every five seconds"),),
        can_watch=True,
        instead="`karmactl stats --match latency` shows averages",
    ),
    Command(
        "check",
        "check.check",
        "Check every node for a monitoring system.",
        ("system.health", "replication.status", "system.stats"),
        options=(
            Option("format", "choice", "what to print", "nagios", choices=("nagios", "prometheus", "json")),
            Option("warn-lag", "number", "entries behind that are a warning", 1000, metavar="N"),
            Option("crit-lag", "number", "entries behind that are critical", 10_000, metavar="N"),
            Option("warn-disk", "float", "percent of disk left that is a warning", 20.0, metavar="PERCENT"),
            Option("crit-disk", "float", "percent of disk left that is critical", 10.0, metavar="PERCENT"),
            Option("warn-p99", "float", "milliseconds of p99 that are a warning", metavar="MS"),
            Option("crit-p99", "float", "milliseconds of p99 that are critical", metavar="MS"),
        ),
        shape=TEXT,
        examples=(
            ("check", "one line for Nagios, Icinga, Sensu"),
            ("check --format prometheus > karmactl.prom", "for the textfile collector"),
        ),
        details="Exit codes are those of Nagios: 0 ok, 1 warning, 2 critical, 3 unknown.",
    ),
)
