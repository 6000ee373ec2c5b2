"""The dashboard and its recorder."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, listing

POLLED = ("system.health", "replication.status", "system.stats", "system.latency")
_INTERVAL = Option("interval", "seconds", "time between two looks at each node", 1.0, metavar="SECONDS")

COMMANDS: tuple[Command, ...] = (
    Command(
        "tui",
        "dashboard.tui",
        "Show the fleet on one screen: roles, lag, load, data, log, snapshots, playbooks.",
        arguments=(
            Argument(
                "place",
                help="what `:` would take: a screen, a node, series NAME KEY, playbooks runs",
                required=False,
                many=True,
            ),
        ),
        options=(
            _INTERVAL,
            Option("record", "path", "keep what is shown in this Parquet file", metavar="FILE"),
            Option("replay", "path", "show a recording instead of the nodes", metavar="FILE"),
            Option("theme", "choice", "colours", "dark", choices=("dark", "light", "contrast")),
        ),
        examples=(
            ("tui --context prod --read-only", "look, and be sure to change nothing"),
            ("tui series api_requests 42", "straight to one key's days"),
            ("tui --replay incident.parquet", "go through what was recorded"),
        ),
        details="Also installed as `karma-tui`. `?` shows the keys of each screen, `:` jumps anywhere, `q` "
        "leaves. Every screen shows the karmactl command that tells the same. What would change something "
        "asks first; with --read-only nothing is sent that could. Whoever leaves while a playbook runs is "
        "asked, and the run is paused: exit code 11, and stderr says how to go on. Needs the extra "
        "`karma[tui]`, and `karma[playbooks]` for playbooks.",
        given_effect="operation",
    ),
    Command(
        "record",
        "dashboard.record",
        "Record what every node says of itself, for `tui --replay` and for SQL.",
        POLLED,
        (Argument("to", "path", "a Parquet file; with --rotate a folder"),),
        (
            _INTERVAL,
            Option("for", "seconds", "end after so long instead of at Ctrl-C or SIGTERM", metavar="SECONDS"),
            Option("rotate", "seconds", "begin another file every so often, as 1h", metavar="SECONDS"),
        ),
        listing("file", "answers:number", "seconds:seconds"),
        examples=(
            ("record incident.parquet --for 10m", "ten minutes, then end"),
            ("record /var/lib/karma-record --rotate 1h", "as a service"),
        ),
        details="Nodes that are down are recorded as such. While it grows, a recording is FILE.part, which a "
        "crash leaves readable: --replay FILE finds it. Needs the extra `karma[sql]`.",
        instead="latencies are left out of the recording of such a node",
    ),
)
