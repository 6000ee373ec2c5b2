"""THE action table: what every action is called, takes, gives back, and whether it changes anything.

The schema, the semantic checks, the plan and `--help` read it; `karma_playbooks.actions` carries actions out.
Each line that `command` returns is what a plan shows and its hash covers.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from karma_playbooks import values
from karma_playbooks.errors import PlaybookError
from karma_playbooks.inventory import Entry

Kind = Literal["text", "number", "flag", "words", "node", "fields", "condition"]
Place = Literal["karma", "host", "here"]
"""Where an action acts: at a node's port, on a node's host, or in the process that runs the playbook."""


class Arg(NamedTuple):
    """One argument of an action."""

    name: str
    kind: Kind
    help: str
    required: bool = False


class Action(NamedTuple):
    """One action. `changes`: it alters something outside of this process, so it needs `verify` and `undo`."""

    name: str
    help: str
    place: Place
    changes: bool
    args: tuple[Arg, ...] = ()
    outputs: tuple[str, ...] = ()


_WITHIN = Arg("within_seconds", "number", "wait so long for it; looks once if left out")

ACTIONS: tuple[Action, ...] = (
    Action(
        "karma.expect", "See whether a node is as expected.", "karma", changes=False,
        args=(Arg("is", "fields", "fields and their values, or {ge: 5}", required=True), _WITHIN),
        outputs=("lsn", "epoch", "role", "fenced_epoch"),
    ),
    Action(
        "karma.caught_up", "Wait until a follower is no more than some entries behind.", "karma",
        changes=False,
        args=(Arg("source", "node", "the node to compare with", required=True),
              Arg("entries", "number", "how far behind it may be"), _WITHIN),
        outputs=("lsn", "lag_entries"),
    ),
    Action("karma.pause", "Refuse writes until resumed, or until the time is over.", "karma", changes=True,
           args=(Arg("ttl_ms", "number", "when the pause ends by itself", required=True),)),
    Action("karma.resume", "End a pause.", "karma", changes=True),
    Action(
        "karma.drain", "Wait until a follower has all up to an LSN, recovery checkpoints too.", "karma",
        changes=False,
        args=(Arg("source", "node", "the node it comes from", required=True),
              Arg("lsn", "number", "the LSN", required=True), _WITHIN),
        outputs=("lsn",),
    ),
    Action(
        "karma.fence", "Refuse writes for good, until unfenced, promoted or following.", "karma",
        changes=True,
        args=(Arg("epoch", "number", "epoch of the master to come", required=True),
              Arg("reason", "text", "why", required=True),
              Arg("lsn", "number", "the node's last LSN must still be this one")),
        outputs=("lsn",),
    ),
    Action("karma.unfence", "Lift a fence.", "karma", changes=True,
           args=(Arg("epoch", "number", "epoch of the fence", required=True),
                 Arg("of_any_run", "flag", "also a fence that another run set"))),
    Action("karma.promote", "Make a node the master.", "karma", changes=True,
           args=(Arg("epoch", "number", "the epoch to open, or none"),), outputs=("epoch", "start_lsn")),
    Action(
        "karma.follow", "Make a node a slave of another.", "karma", changes=True,
        args=(Arg("source", "node", "the node to follow", required=True),
              Arg("rebuild", "flag", "give up a history that diverged; the node keeps it in a folder"),
              Arg("lost_entries", "number", "how many entries that may cost")),
        outputs=("lost_entries",),
    ),
    Action("karma.canary", "Write one count to the hidden series __karma_canary.", "karma", changes=True,
           outputs=("key",)),
    Action("karma.canary_seen", "Wait until a node has the canary's count.", "karma", changes=False,
           args=(_WITHIN,)),
    Action("karma.dead", "See from several sides that a master is gone.", "karma", changes=False,
           args=(Arg("tries", "number", "how often it must not answer"),),
           outputs=("witnesses", "silent_ms")),
    Action("karma.best", "See that no other follower has more than this one.", "karma", changes=False,
           outputs=("lsn", "epoch")),
    Action("karma.snapshot", "Save every series at one LSN.", "karma", changes=True),
    Action("karma.snapshot_good", "Restore the snapshots aside and look at them.", "karma", changes=False,
           args=(Arg("max_age_seconds", "number", "how old the newest may be"),)),
    Action("karma.backup", "Copy the newest snapshots on the host into a new folder.", "host",
           changes=True, args=(Arg("folder", "text", "the folder", required=True),)),
    Action("karma.backup_good", "Check a backup on the host: `karma check`.", "host", changes=False,
           args=(Arg("folder", "text", "the folder", required=True),), outputs=("output",)),
    Action(
        "karma.salvage", "Export the entries that a node has and the master has not.", "karma", changes=False,
        args=(Arg("master", "node", "whom to compare with", required=True),
              Arg("folder", "text", "the folder for the files", required=True)),
        outputs=("entries", "replayable", "has_branch"),
    ),
    Action("karma.salvage_good", "Read the files of a salvage again.", "here", changes=False,
           args=(Arg("folder", "text", "the folder", required=True),
                 Arg("entries", "number", "how many entries there must be", required=True))),
    Action("karma.replay", "Send salvaged writes again, each once.", "karma", changes=True,
           args=(Arg("folder", "text", "the folder of the salvage", required=True),), outputs=("sent",)),
    Action("karma.replayed", "See that every salvaged write was answered.", "here", changes=False,
           args=(Arg("folder", "text", "the folder of the salvage", required=True),)),
    Action("service.start", "Start the node's service.", "host", changes=True),
    Action("service.stop", "Stop the node's service.", "host", changes=True),
    Action("service.restart", "Stop and start the node's service.", "host", changes=True),
    Action("service.is", "See whether the service runs.", "host", changes=False,
           args=(Arg("running", "flag", "whether it must", required=True), _WITHIN)),
    Action(
        "karma.fence_offline", "Fence the directory of a node that is down: `karma fence`.", "host",
        changes=True,
        args=(Arg("epoch", "number", "epoch of the master to come", required=True),
              Arg("reason", "text", "why", required=True)),
    ),
    Action("karma.fenced_offline", "Read from a directory that its node is fenced.", "host", changes=False,
           args=(Arg("epoch", "number", "for at least this epoch", required=True),)),
    Action("ssh.exec", "Run a command on the host: words, never a shell's line.", "host", changes=True,
           args=(Arg("argv", "words", "the command", required=True),), outputs=("output",)),
    Action("ssh.check", "Run a command that changes nothing, as evidence.", "host", changes=False,
           args=(Arg("argv", "words", "the command", required=True),
                 Arg("contains", "text", "what it must print")), outputs=("output",)),
    Action("file.put", "Write a small file on the host.", "host", changes=True,
           args=(Arg("path", "text", "where", required=True), Arg("content", "text", "what", required=True))),
    Action("file.is", "See what a file on the host holds.", "host", changes=False,
           args=(Arg("path", "text", "where", required=True), Arg("content", "text", "what", required=True))),
    Action("wait", "Wait.", "here", changes=False,
           args=(Arg("seconds", "number", "how long", required=True),)),
    Action("assert", "Stop unless a condition holds.", "here", changes=False,
           args=(Arg("that", "condition", "the condition", required=True),
                 Arg("message", "text", "what is wrong if it does not", required=True))),
    Action("confirm", "Ask the operator.", "here", changes=False,
           args=(Arg("message", "text", "the question", required=True),)),
    Action("note", "Write a fact that nobody could verify into the journal.", "here", changes=False,
           args=(Arg("text", "text", "the fact", required=True),)),
    Action("notify", "Tell others: a webhook, or a command of this machine.", "here", changes=False,
           args=(Arg("message", "text", "what to say", required=True),
                 Arg("url", "text", "a webhook that takes JSON"),
                 Arg("url_env", "text", "variable with the webhook's address, where that is a secret"),
                 Arg("header_env", "text", "variable with a secret header, as Authorization: Bearer …"),
                 Arg("argv", "words", "a command of this machine; the message is its last word"))),
)  # fmt: skip
"""Every action."""
BY_NAME: dict[str, Action] = {action.name: action for action in ACTIONS}

STOPS_WRITES = frozenset({"karma.pause"})
FENCES = frozenset({"karma.fence", "karma.fence_offline"})
NOT_WHILE_PAUSED = frozenset({"confirm", "notify", "wait"})
"""Between a pause and the promotion nothing may take as long as a person, a web server or another host."""


def fitted(action: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return an action's arguments, as far as they are known, in the types that it takes; None means left
    out.

    Raises PlaybookError: what is found out here is found out before anything is done.
    """
    values_by_name = {name: value for name, value in args.items() if value is not None}
    for arg in BY_NAME[action].args:
        value = values_by_name.get(arg.name)
        if value is None and arg.required:
            raise PlaybookError(f"{action} needs {arg.name}: {arg.help}")
        if value is not None and not values.is_open(value):
            values_by_name[arg.name] = _fitted(action, arg, value)
    return values_by_name


def _fitted(action: str, arg: Arg, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match arg.kind:
        case "text" | "node" if isinstance(value, str) or is_number:
            return str(value)
        case "number" if is_number and math.isfinite(value) and value >= 0:
            return value
        case "flag" if isinstance(value, bool):
            return value
        case "words" if isinstance(value, list) and value and all(map(_is_word, value)):
            return value
        case "fields" if isinstance(value, Mapping):
            return value
        case "condition":
            return value
    raise PlaybookError(f"{action}: {arg.name} takes {_TAKES[arg.kind]}, not {json.dumps(value)}", arg.help)


def _is_word(value: Any) -> bool:
    return values.is_open(value) or (isinstance(value, str | int | float) and not isinstance(value, bool))


_TAKES: Mapping[Kind, str] = {
    "text": "a text",
    "node": "the name of a node",
    "number": "a number of at least 0",
    "flag": "true or false",
    "words": "a list of words",
    "fields": "fields with their values",
}

EXPECTABLE = frozenset(
    {
        "role", "epoch", "lsn", "lag_entries", "state", "source", "writable", "paused", "fenced",
        "fenced_epoch",         "following", "version", "uptime_seconds", "node_id",
    }
)  # fmt: skip
"""What `karma.expect` can look at."""


# -- What will be done, in words -------------------------------------------------------------------------


def command(action: str, args: Mapping[str, Any], entry: Entry | None) -> str:
    """Return what an action comes down to: an operation with its fields, a command with its host."""
    about = BY_NAME[action]
    if about.place == "host":
        assert entry is not None
        return f"{entry.place}: {shlex.join(map(_shown, _without_script(argv(action, args, entry))))}"
    fields = json.dumps(
        {name: values.shown(value) for name, value in args.items() if value is not None}, ensure_ascii=False
    )
    where = f" at {entry.words}" if entry is not None else ""
    op = action.removeprefix("karma.")
    name = f"replication.{op}" if op in _OPERATIONS else action
    return f"{name} {fields}{where}" if args else f"{name}{where}"


_OPERATIONS = frozenset({"pause", "resume", "fence", "unfence", "promote", "follow"})


def _without_script(words: list[Any]) -> list[Any]:
    """Words without `sh -c SCRIPT`, where the script is one of those below; its name stays."""
    for position, word in enumerate(words):
        if isinstance(word, str) and word in {BACKUP_SCRIPT, PROCESS_SCRIPT}:
            return words[: position - 2] + words[position + 1 :]
    return words


def _shown(word: Any) -> str:
    text = values.shown(word)
    return text if isinstance(text, str) else json.dumps(text)


def argv(action: str, args: Mapping[str, Any], entry: Entry) -> list[Any]:
    """Return the words of a host's command. Raises PlaybookError where the inventory lacks what it needs.

    A word is a reference while the run has not told it yet.
    """
    kind, _, verb = action.partition(".")
    match kind, verb:
        case "service", _:
            words = service_argv(verb, entry)
        case "karma", "fence_offline":
            words = [*entry.karma_command, "fence", "--directory", directory(entry)]
            words += ["--epoch", _word(args["epoch"]), "--reason", _word(args["reason"])]
        case "karma", "fenced_offline":
            # Only that much of the file: it may hold the token for the node's source.
            words = ["grep", "-o", '"fence":{"epoch":[0-9]*', "--", f"{directory(entry)}/karma.node.json"]
        case "karma", "backup":
            words = ["sh", "-c", BACKUP_SCRIPT, "karma-backup", directory(entry), _word(args["folder"])]
        case "karma", "backup_good":
            words = [*entry.karma_command, "check", "--directory", _word(args["folder"])]
        case "ssh", _:
            words = [_word(word) for word in args["argv"]]
        case "file", "put":
            words = ["sh", "-c", 'printf %s "$2" > "$1.karma" && mv -- "$1.karma" "$1"', "sh"]
            words += [_word(args["path"]), _word(args["content"])]
        case _:
            words = ["cat", "--", _word(args["path"])]
    return (
        ["sudo", *(["-S", "-p", ""] if _has_password(entry) else ["-n"]), "--", *words]
        if entry.sudo
        else words
    )


def _has_password(entry: Entry) -> bool:
    return bool(entry.sudo_password_env or entry.sudo_password_file)


def _word(value: Any) -> Any:
    return value if isinstance(value, str | Mapping) else str(value)


_WHERE = "to the node in its context: `karmactl playbook --help` tells how"


def directory(entry: Entry) -> str:
    """Return a node's data directory. Raises PlaybookError when the inventory does not say it."""
    if not entry.directory:
        raise PlaybookError(
            f"{entry.name} has no directory in its context", f'add directory = "/var/lib/karma" {_WHERE}'
        )
    return entry.directory


def service_argv(verb: str, entry: Entry) -> list[Any]:
    """Return how a service is started, stopped, restarted or looked at (`is`)."""
    if not entry.service:
        raise PlaybookError(
            f"{entry.name} has no service in its context",
            f'add service = "karma.service", or "process", {_WHERE}',
        )
    if entry.service != "process":
        return ["systemctl", "is-active" if verb == "is" else verb, entry.service]
    if not entry.service_command:
        raise PlaybookError(
            f"{entry.name} is a plain process without a service_command",
            f'add service_command = ["karma", "--directory=/var/lib/karma"] {_WHERE}',
        )
    return ["sh", "-c", PROCESS_SCRIPT, "karma-process", verb, directory(entry), *entry.service_command]


BACKUP_SCRIPT = r"""
directory=$1 folder=$2
[ -e "$folder" ] && { echo "$folder is there already"; exit 1; }
rm -rf "$folder.partial" && mkdir -p "$folder.partial" && cd "$directory" || exit 1
ls | grep '\.tree$' | sort -rn | awk '{ name = $0; sub(/^[0-9]+_/, "", name); if (!seen[name]++) print }' |
    while read -r tree; do cp -p "$tree" "$tree.meta.json" "$folder.partial/" || exit 1; done || exit 1
for name in karma.idempotency.json karma.idempotency.json.meta.json \
    karma.ingest.msgpack karma.snapshots.json karma.wal.lsn recovery.json; do
    if [ -f "$name" ]; then cp -p "$name" "$folder.partial/" || exit 1; fi
done
sync; mv "$folder.partial" "$folder"
"""
"""What docs/operations.md says of copying a running server's directory: snapshots, never the log."""

PROCESS_SCRIPT = r"""
verb=$1 directory=$2; shift 2
pid() {
    lock=$directory/karma.lock
    if [ ! -e "$lock" ]; then
        [ -d "$directory" ] && [ ! -x "$directory" ] && return 2
        return 1
    fi
    [ -r "$lock" ] || return 2
    read -r _ owner _ < "$lock" || return 1
    [ "$owner" ] || return 1
    if [ ! -d "/proc/$owner" ]; then
        grep -q '^[^ ]* /proc [^ ]* [^ ]*hidepid=[^0o]' /proc/mounts && [ "$(id -u)" -ne 0 ] && return 2
        return 1
    fi
    grep -q '^State:[[:space:]]*Z' "/proc/$owner/status" 2>/dev/null && return 1
    if [ ! -r "/proc/$owner/fd" ]; then
        [ -d "/proc/$owner" ] && return 2
        return 1
    fi
    ls -l "/proc/$owner/fd" 2>/dev/null | grep -q '/karma\.lock$' && echo "$owner"
}
look() { owner=$(pid); found=$?
         [ $found -ne 2 ] || { echo "unknown: this user may not look at the process of $directory"; exit 4; }
         return $found; }
stop() { look || return 0; kill -TERM "$owner"; tries=0
         while pid >/dev/null; do tries=$((tries + 1))
             [ $tries -eq 150 ] && kill -KILL "$owner"; sleep 0.1; done; }
start() { look && return 0
          setsid "$@" >>"$directory.log" 2>&1 </dev/null & }
case $verb in
    is) if look; then echo active; else echo inactive; exit 3; fi;;
    stop) stop;;
    start) start "$@";;
    restart) stop; start "$@";;
esac
"""
"""The backend of plain processes, in POSIX sh. The server's lock file has its process id; that the process
holds
the file open tells it from a later one of the same number."""
