"""Commands about what happened: events, and the actions that they tell of."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Option, Shape, columns, listing, thing

NAME = Option(
    "name", help="only actions of this name, as switchover; may be repeated", metavar="NAME", many=True
)
SINCE = Option("since", help="requested since: 7d (ago), 2026-05-05, 2026-05-05T12:00:00Z", metavar="TIME")

COMMANDS: tuple[Command, ...] = (
    Command(
        "events tail",
        "events.tail",
        "Print the newest events, and with --follow those that come.",
        options=(
            Option(
                "topic", help="only this topic, as actions.result; may be repeated", metavar="NAME", many=True
            ),
            Option("follow", "flag", "go on with events that come, until Ctrl-C", short="f"),
            Option("lines", "u64", "events to begin with; 10, or all with --since", metavar="N", short="n"),
            Option("since", help="from this time on: 10m (ago), 2026-05-05T12:00:00Z", metavar="TIME"),
            Option(
                "consumer",
                help="all events behind those that this name was shown already, which is remembered",
                metavar="NAME",
            ),
        ),
        shape=Shape(
            "list",
            columns("topic", "offset:number", "ts", "event_type", "entity_id", "correlation_id")
            + columns("idempotency_key", "source", "tags", "attrs"),
        ),
        examples=(
            ("events tail -f", "what happens, as it happens"),
            ("events tail --topic actions.dlq --since 7d", "what failed for good this week"),
            ("events tail --consumer mailer -o jsonl", "each event once, for a program"),
        ),
        details="Events of playbook runs on this machine. Of one topic they come in order; topics are merged "
        "by time. A consumer's events count as shown once they are written to stdout: after a break some "
        "come again, none is left out.",
    ),
    Command(
        "events query",
        "events.query",
        "Ask the ledger of events with SQL.",
        arguments=(Argument("sql", "text", "a query, in DuckDB's SQL"),),
        shape=listing(),
        examples=(
            ('events query "SELECT event_type, count(*) AS n FROM events GROUP BY ALL ORDER BY n DESC"', ""),
            ('events query "SELECT * FROM transitions WHERE NOT is_legal"', "what should not have happened"),
            ('events query "SELECT name, avg(took_ms) FROM actions GROUP BY name" -o csv', ""),
            ('events query "DESCRIBE actions"', "what there is to ask for"),
        ),
        details="There are events, transitions (what each event did to its action) and actions. Times are "
        "UTC, tags and attrs JSON: tags->>'action_id'. It reads a copy in memory and reaches no files. Needs "
        "the extra: pip install 'karma[sql]'.",
    ),
    Command(
        "actions list",
        "actions.list_",
        "List actions, newest first: playbook runs and what became of them.",
        options=(
            Option(
                "state",
                "choice",
                "only actions in this state; may be repeated",
                many=True,
                choices=("REQUESTED", "ACCEPTED", "STARTED", "RETRYING", "SUCCEEDED", "FAILED", "CANCELLED"),
            ),
            NAME,
            SINCE,
            Option("limit", "number", "so many at most", metavar="N", short="n"),
        ),
        shape=listing(
            "action_id",
            "name",
            "state:state",
            "requested_unix:time",
            "took_ms:duration",
            "unavailable_ms:duration",
            "error",
        ),
        examples=(
            ("actions list -n 5", "the newest five"),
            ("actions list --state FAILED --since 30d", ""),
            ("actions list --name failover -o json", "with everything that is known"),
        ),
        can_watch=True,
    ),
    Command(
        "actions show",
        "actions.show",
        "Show one action with its events.",
        arguments=(Argument("id", "text", "its id, or how only this one's begins"),),
        shape=thing(
            "action_id",
            "name",
            "entity_id",
            "correlation_id",
            "state:state",
            "requested_unix:time",
            "took_ms:duration",
            "acknowledge_ms:duration",
            "recover_ms:duration",
            "unavailable_ms:duration",
            "error",
        ),
        examples=(("actions show 20260505T120000Z-switchover", ""), ("actions show 20260505 -o json", "")),
        details="Exit code 3 when there is no such action.",
        can_watch=True,
    ),
    Command(
        "actions mttr",
        "actions.mttr",
        "Show how long actions took to be acknowledged and to recover, by name.",
        options=(NAME, SINCE),
        shape=listing(
            "name",
            "actions:number",
            "succeeded:number",
            "mean_acknowledge_ms:duration",
            "mean_recover_ms:duration",
            "mean_unavailable_ms:duration",
            "max_unavailable_ms:duration",
        ),
        examples=(("actions mttr", ""), ("actions mttr --name failover --since 90d", "")),
        details="Acknowledge: from request to acceptance. Recover: from when the incident was known (or "
        "first requested) to the first success among its actions. Unavailable: from when writes were told to "
        "stop, or a dead master was last heard of, to when a node acknowledged that it takes them; clients "
        "may need longer to find it. `actions show` tells how each end is known. JSON has failures and "
        "maxima, too.",
        can_watch=True,
    ),
)
