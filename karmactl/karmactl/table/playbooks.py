"""Commands that change a whole fleet, step by step."""

from __future__ import annotations

from karmactl.table.entries import Argument, Command, Guide, Option, listing, thing

_ALONE = "no tool can move roles on such a server: restart it with other --role options"
_OPS = ("replication.status", "replication.promote")
_NAME = Argument("name", "text", "name of a playbook, or a file that ends in .yml")
_RUN = Argument("run-id", "text", "the run's id, as playbook history lists it")
_PARAM = Option("param", help="a parameter of the playbook; may be repeated", metavar="NAME=VALUE", many=True)
_REQUEST = (
    Option("reason", help="why, for the journal and whoever finds a fence", required=True, metavar="TEXT"),
    Option("ticket", help="a ticket it belongs to", metavar="TEXT"),
    Option("plan-hash", help="refuse unless the plan is still this one", metavar="HASH"),
    Option(
        "max-loss-entries", "u64", "refuse to lose more entries; what the plan shows if left out", metavar="N"
    ),
)
_TO = Option("to", "node", "the follower to promote; the one that has the most if left out", metavar="NODE")
_ENDED = thing("run", "playbook", "state:state", "why", "next")
_CODES = "Exit code 0 done, 4 refused with nothing done, 10 undone, 11 paused: stderr says how to go on."

GUIDE: tuple[Guide, ...] = (
    (
        "To carry one out, on a machine that reaches the nodes",
        (
            ("1. playbook list", "what there is; switchover and failover are commands of their own, too"),
            ("2. playbook show NAME", "what one is for, its parameters and its steps"),
            (
                "3. playbook plan NAME",
                "every command it would give now, its checks and undo, what will be lost; changes nothing",
            ),
            ("4. playbook run NAME --reason TEXT", "shows that again, asks, and does it step by step"),
            ("5. playbook status", "what was done, what nobody knows, and what to type next"),
        ),
    ),
    (
        "How a run ends",
        (
            ("done (exit code 0)", "every step was done, and seen to have worked"),
            ("refused (4)", "nothing was done; the message says what to change"),
            ("undone (10)", "a step failed and all was taken back: mend what it names, begin anew"),
            (
                "superseded (10)",
                "another node became master meanwhile: what it left is named, with how to rejoin it",
            ),
            (
                "paused (11)",
                "mend what it names, then `playbook resume RUN`: it looks first, and does nothing twice",
            ),
            (
                "Ctrl-C",
                "the step under way ends, then all is taken back; twice stops at once, as a crash would",
            ),
            (
                "this machine died",
                "on another one: `playbook resume RUN --takeover`; the hosts have the journal",
            ),
        ),
    ),
    (
        "What a context says of each node ([[contexts.NAME.nodes]], `context edit`)",
        (
            ("name, address", "what plans call it; where Karma listens, as the other nodes reach it"),
            (
                "ssh_host, ssh_port, ssh_user, ssh_identity, ssh_jump",
                "the way to its host; what is left out comes from ~/.ssh/config. A switchover does without",
            ),
            ("ssh_timeout", "seconds for connecting and for a short script, where a link is slow"),
            ("ssh_known_hosts", "a file of host keys instead of your own; they are always checked"),
            ("directory", "its data directory on the host"),
            ("service", 'its unit of systemd, or "process" with service_command = ["karma", …]'),
            ("karma_command", 'how karma is called there, as ["/opt/karma/bin/karma"]'),
            (
                "sudo = true",
                "commands through sudo; its password is in sudo_password_env or sudo_password_file, if any",
            ),
        ),
    ),
)

_LOCK_UNVERIFIED = Option(
    "lock-unverified",
    "flag",
    "though no majority of the nodes can hold the lock: you know that no one else is at it, and type so",
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "switchover",
        "playbooks.switchover",
        "Move the master role to a follower without losing a write.",
        _OPS,
        options=(_TO, *_REQUEST[:3], _LOCK_UNVERIFIED),
        shape=_ENDED,
        examples=(
            ('switchover --reason "kernel update of db1"', "to the follower that has the most"),
            ('switchover --to db2 --reason "kernel update" --dry-run', "show the plan, do nothing"),
        ),
        details="Short for `karmactl playbook run switchover`. Shows the plan and asks. Nothing does this by "
        "itself: there is no automatic failover.\n\n"
        "Before: `karmactl topology` must show one master, and followers that follow it. --dry-run shows "
        "every command with its undo.\n\n"
        "Then writes are paused for a moment, the follower gets the last entries, the old master is fenced "
        "and the follower promoted; the other nodes follow it, and one count must arrive on all of them. "
        "What fails before the promotion is undone, and writes go on. Behind it the run stops as paused: "
        'mend what it names, then type what the line "next:" says.\n\n'
        "Afterwards `karmactl topology` shows the new master, with the old one as its follower. Clients that "
        "know only the old one's address must be told; another switchover leads back.\n\n"
        f"{_CODES} `karmactl playbook --help` tells more.",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "failover",
        "playbooks.failover",
        "Replace a master that is dead; what it had alone is lost.",
        _OPS,
        options=(
            _TO,
            Option("from", "node", "the dead master, where the followers do not tell", metavar="NODE"),
            *_REQUEST,
            Option("fence-unverified", "flag", "nobody can see that it is off: you know it, and type so"),
            Option("no-cooldown", "flag", "though the last failover is minutes ago"),
            _LOCK_UNVERIFIED,
        ),
        shape=_ENDED,
        examples=(
            ('failover --reason "db1 burnt down"', "shows what will be lost, and asks"),
            (
                'failover --reason "db1 is off, I pulled its plug" --fence-unverified',
                "its host cannot be reached",
            ),
        ),
        details="Short for `karmactl playbook run failover`. Refuses while anybody still sees the master. A "
        "person decides this: there is no automatic failover.\n\n"
        "Before: can the master be started again? Then nothing is lost, and this is not needed. Does it "
        "answer? Then switchover. --dry-run shows what will be lost, by series, and what of that nobody can "
        "know.\n\n"
        "Then the old master's service is stopped on its host and its directory fenced, so that it takes no "
        "writes whoever starts it; the follower that has the most is promoted, the others follow it. Where "
        "its host cannot be reached, only you can know that it is off: --fence-unverified, with the "
        "cluster's name typed. If it is not off, two masters take writes until they meet.\n\n"
        "Afterwards, when the old machine is back:\n\n"
        "`karmactl playbook run rejoin-old-master --param node=NAME` saves what it has alone and lets it "
        "follow.\n\n"
        f"{_CODES} `karmactl playbook --help` tells more.",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "playbook list",
        "playbooks.list_",
        "List the playbooks.",
        shape=listing("name", "title", "loses", "file"),
        examples=(("playbook list", "ours, and those beside the configuration in playbooks/*.yml"),),
    ),
    Command(
        "playbook show",
        "playbooks.show",
        "Show a playbook's parameters and steps.",
        arguments=(_NAME,),
        shape=thing("playbook", "title", "details", "loses", "params", "steps"),
        examples=(("playbook show switchover", ""), ("playbook show failover --output json", "for programs")),
    ),
    Command(
        "playbook lint",
        "playbooks.lint",
        "Check files of playbooks.",
        arguments=(Argument("file", "path", "files of playbooks", required=False, many=True),),
        options=(Option("schema", "flag", "print the JSON Schema of playbooks instead, for editors"),),
        shape=listing("place", "problem"),
        examples=(("playbook lint mine.yml", ""), ("playbook lint --schema > playbook.schema.json", "")),
        details="Strict YAML, the schema, then meaning: references, order, and that every change can be "
        "verified and undone, or says why not. Exit code 2 when something is wrong.",
    ),
    Command(
        "playbook new",
        "playbooks.new",
        "Write a playbook to begin with.",
        arguments=(Argument("name", "text", "its name: small letters, digits and dashes"),),
        shape=thing("file"),
        examples=(("playbook new nightly-check", "beside the configuration, in playbooks/"),),
    ),
    Command(
        "playbook plan",
        "playbooks.plan",
        "Show what a playbook would do now: every step, command and undo, and its hash.",
        ("replication.status",),
        (_NAME,),
        (_PARAM,),
        thing("playbook", "hash", "loss", "point_of_no_return", "warnings", "steps"),
        examples=(
            ("playbook plan switchover", ""),
            ("playbook plan switchover --param to=db2 --output json", "for programs"),
        ),
        details="Changes nothing. `karmactl playbook run NAME --plan-hash HASH` does exactly that, or "
        "nothing when the cluster is another one by then.",
    ),
    Command(
        "playbook run",
        "playbooks.run",
        "Plan a playbook, show it, ask, and carry it out.",
        _OPS,
        (_NAME,),
        (
            _PARAM,
            *_REQUEST,
            Option("max-hosts", "number", "hosts that commands run on at once", 8, metavar="N"),
            _LOCK_UNVERIFIED,
        ),
        _ENDED,
        examples=(
            ('playbook run rolling-restart --reason "new kernel"', ""),
            (
                "playbook run backup-and-verify --param folder=/backup/monday --reason nightly --yes",
                "from a timer; in production --confirm NAME",
            ),
        ),
        details="`karmactl playbook show NAME` lists its parameters. Production contexts ask for the "
        f"context's name: --confirm NAME answers. {_CODES}",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "playbook resume",
        "playbooks.resume",
        "Go on with a run that stopped, also on another machine.",
        _OPS,
        (_RUN,),
        (
            Option("takeover", "flag", "the machine that carries it out is dead: take its lock"),
            _LOCK_UNVERIFIED,
        ),
        _ENDED,
        examples=(("playbook resume switchover-20261121-101500-4f3a", ""),),
        details="Looks again at what was done, finds out about what nobody knows, and does nothing twice. "
        f"A run that this machine does not know is fetched from the hosts. {_CODES}",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "playbook abort",
        "playbooks.abort",
        "Take back what a run has done, as long as that is possible.",
        _OPS,
        (_RUN,),
        (
            Option("takeover", "flag", "the machine that carries it out is dead: take its lock"),
            _LOCK_UNVERIFIED,
        ),
        _ENDED,
        examples=(("playbook abort switchover-20261121-101500-4f3a", ""),),
        details=f"Behind the point of no return only resume leads on. {_CODES}",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
    Command(
        "playbook status",
        "playbooks.status",
        "Show a run, and how to go on with it; the newest if left out.",
        arguments=(Argument("run-id", "text", "the run's id; the newest if left out", required=False),),
        options=(Option("entries", "flag", "every entry of its journal"),),
        shape=thing("run", "playbook", "state:state", "why", "next"),
        examples=(("playbook status", ""), ("playbook status RUN --entries --output jsonl", "all of it")),
        details="Reads the journal of this machine. Of each step: done, failed, or unknown, and whether it "
        "was seen to have worked.",
    ),
    Command(
        "playbook history",
        "playbooks.history",
        "List the runs of this machine, newest first.",
        shape=listing("run", "cluster", "state:state", "operator", "reason", "began_unix:time", "took_ms:ms"),
        examples=(("playbook history", ""),),
    ),
    Command(
        "playbook unlock",
        "playbooks.unlock",
        "Break the lock of a run that nobody can go on with.",
        _OPS,
        shape=thing("cluster", "was_held_by"),
        examples=(("playbook unlock --context prod", ""),),
        details="Only when its machine is dead for good: resume with --takeover is the better way.",
        danger="question",
        instead=_ALONE,
        given_effect="write",
    ),
)
