"""What is looked at before anything changes: each host and each node, what is wrong and what to do. Pure.

A host is asked by one script that changes nothing and prints one fact a line; `checks` judges the answers. A
check that fails stops a run only where the plan needs it: elsewhere it is a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Literal, NamedTuple

from karma_playbooks.cluster import Clock, Cluster, NodeFacts
from karma_playbooks.inventory import Entry, Phase
from karma_playbooks.shell_words import word, words

Level = Literal["ok", "warning", "failed"]

MIN_FREE_KB = 64 * 1024
"""Free disk below which no node should become master: a log segment of the usual size does not fit."""
SECONDS = 20.0
"""What a host has to answer the script: it starts karma once."""
MAX_CLOCK_SECONDS = 2.0
"""How far clocks may be apart without a word; a time service keeps them within milliseconds."""

_PHASES: tuple[tuple[Phase, str], ...] = (
    ("config", "check ~/.ssh/config and the node's ssh_… keys in its context"),
    ("reachable", "check that the host is up and that ssh reaches it from here"),
    ("host key", "compare the key with the host's owner before you change known_hosts"),
    ("key", "`ssh-add` the key, or name the right one as ssh_identity in the context"),
    ("shell", "log in by hand with ssh and look at what the login shell does"),
)
"""The steps to a host in their order, and what to do where one of them fails."""


NODE_CHECKS = frozenset({"node", "node clock", "version"})
"""Those that ask the node and not its host."""


class Check(NamedTuple):
    """One thing that was looked at. `place` is the node's name; `advice` is empty where all is well."""

    place: str
    name: str
    level: Level
    text: str
    advice: str = ""


class Needs(NamedTuple):
    """What a plan needs: nodes on whose hosts it runs commands, and nodes that it makes master."""

    hosts: Collection[str] = ()
    masters: Collection[str] = ()


# -- Asking ----------------------------------------------------------------------------------------------


def script(entry: Entry, secret: str | None) -> str:
    """Return the script that a host is asked with; `secret` is the password for sudo, if there is one."""
    if not entry.sudo:
        run = '"$@" </dev/null'
    elif secret is None:
        run = 'sudo -n -- "$@" </dev/null'
    else:
        run = f"printf '%s\\n' {word(secret)} | sudo -S -p '' -- \"$@\""
    return f"""
say() {{ printf '%s %s\\n' "$1" "$2"; }}
run() {{ {run}; }}
say clock "$(date -u +%s)"
command -v setsid >/dev/null 2>&1 && say setsid yes
run true >/dev/null 2>&1 && say sudo yes
directory={word(entry.directory)}
if [ "$directory" ]; then
    run test -d "$directory" 2>/dev/null && say directory yes
    run test -r "$directory" -a -w "$directory" -a -x "$directory" 2>/dev/null && say writable yes
    {{ run test ! -e "$directory/karma.wal" || run test -r "$directory/karma.wal" -a -w "$directory/karma.wal"
    }} 2>/dev/null && say log yes
    say free_kb "$(run df -Pk -- "$directory" 2>/dev/null | awk 'NR == 2 {{ print $4 }}')"
fi
version=$(run {words(entry.karma_command)} --version 2>/dev/null) && say karma "$version"
:
"""


def parse(output: str) -> dict[str, str]:
    """Return the facts that the script printed; a line that is not one of them is ignored."""
    return {name: value.strip() for name, _, value in (line.partition(" ") for line in output.splitlines())}


# -- Judging ---------------------------------------------------------------------------------------------


def checks(cluster: Cluster, needs: Needs) -> tuple[Check, ...]:
    """Return every check of every node, in the order of the nodes."""
    return tuple(
        check
        for node in cluster.nodes
        for check in (*_node(node, needs), *_host(node, needs), *_version(node, cluster))
    )


def _node(node: NodeFacts, needs: Needs) -> Iterator[Check]:
    if not node.is_reachable:
        # A dead master is what a failover is for; each step that needs the node says so itself.
        yield Check(node.name, "node", "warning", node.error, "`karmactl topology` shows every node")
        return
    yield Check(node.name, "node", "ok", f"answers at {node.entry.address}")
    if node.clock is not None:
        yield _clock(node, "node clock", node.clock, needs)


def _host(node: NodeFacts, needs: Needs) -> Iterator[Check]:
    host = node.host
    if host is None:
        return
    is_needed = node.name in needs.hosts
    for phase, advice in _PHASES:
        if host.phase == phase:
            yield _failed(node, phase, host.error, advice, is_needed=is_needed)
            return
        if phase != "config" and node.entry.ssh_host:
            yield Check(node.name, phase, "ok", host.where)
    if host.error:
        yield _failed(node, "shell", host.error, _PHASES[-1][1], is_needed=is_needed)
        return
    facts = host.facts
    for name, is_there, text, advice in _host_facts(node.entry, facts):
        if is_there:
            yield Check(node.name, name, "ok", text)
        else:
            yield _failed(node, name, text, advice, is_needed=is_needed)
    if node.entry.directory:
        yield _disk(node, facts.get("free_kb", ""), needs)
    if host.clock is not None:
        yield _clock(node, "host clock", host.clock, needs)


def _host_facts(entry: Entry, facts: Mapping[str, str]) -> Iterator[tuple[str, bool, str, str]]:
    """Return what a host must have: the name, whether it is there, what was seen, and what to do if not."""

    def fact(key: str, there: str, missing: str) -> tuple[bool, str]:
        return (True, there) if key in facts else (False, missing)

    yield "setsid", *fact("setsid", "is there", "setsid is not there"), "install util-linux on the host"
    if entry.sudo:
        way = (
            "with its password"
            if entry.sudo_password_env or entry.sudo_password_file
            else "without a password"
        )
        advice = "allow it in sudoers, or give the node sudo_password_env or sudo_password_file"
        yield "sudo", *fact("sudo", f"works {way}", f"sudo {way} is refused"), advice
    if entry.directory:
        path = entry.directory
        advice = "correct directory in the node's context"
        yield "directory", *fact("directory", path, f"{path} is not a directory there"), advice
        advice = "log in as the user that runs karma, or set sudo = true"
        if "directory" in facts:
            yield "rights", *fact("writable", f"may write in {path}", f"may not write in {path}"), advice
            yield "log", *fact("log", "may write the log", f"may not write {path}/karma.wal"), advice
    command = " ".join(entry.karma_command)
    advice = 'install karma there, or set karma_command = ["/opt/karma/bin/karma"] of the node'
    yield "karma", *fact("karma", facts.get("karma", ""), f"`{command} --version` does not run"), advice


def _disk(node: NodeFacts, free_kb: str, needs: Needs) -> Check:
    if not free_kb.isdigit():
        return Check(
            node.name, "disk", "warning", "its free space cannot be read", "look at `df` on the host"
        )
    text = f"{int(free_kb) / 1024:,.0f} MB free"
    if int(free_kb) >= MIN_FREE_KB:
        return Check(node.name, "disk", "ok", text)
    return _failed(
        node,
        "disk",
        f"{text}, less than {MIN_FREE_KB // 1024} MB",
        "make room before this node takes writes",
        is_needed=node.name in needs.masters,
    )


def _clock(node: NodeFacts, name: str, clock: Clock, needs: Needs) -> Check:
    if abs(clock.ahead_seconds) < MAX_CLOCK_SECONDS:
        return Check(node.name, name, "ok", "agrees with the clock here")
    where = "ahead of" if clock.ahead_seconds > 0 else "behind"
    text = f"{timedelta(seconds=round(abs(clock.ahead_seconds)))} {where} the clock here"
    if clock.is_other_day:
        text += ": there it is another day (UTC), and writes without a day would count on that one"
    return _failed(
        node,
        name,
        text,
        "let a time service (NTP, chrony) set both clocks",
        is_needed=clock.is_other_day and node.name in needs.masters,
    )


def _version(node: NodeFacts, cluster: Cluster) -> Iterator[Check]:
    versions = {each.version for each in cluster.nodes if each.version}
    if node.version and len(versions) > 1:
        text = f"runs {node.version}; the cluster has {', '.join(sorted(versions))}"
        yield Check(node.name, "version", "warning", text, "use one version, but for the time of an upgrade")
    elif node.version:
        yield Check(node.name, "version", "ok", node.version)


def _failed(node: NodeFacts, name: str, text: str, advice: str, *, is_needed: bool) -> Check:
    return Check(node.name, name, "failed" if is_needed else "warning", text, advice)
