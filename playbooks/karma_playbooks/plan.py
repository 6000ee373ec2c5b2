"""From a playbook, parameters and facts to a plan: every step with its command and undo, and a hash. Pure.

The hash covers what an operator agrees to: the playbook's digest, the parameters, which node is who (id,
address, role, epoch), and every command. LSNs, lag and the loss move all the time and stay outside; the loss
has a bound of its own, `max_loss_entries`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from karma_playbooks import catalog, preflight, values
from karma_playbooks.cluster import Cluster, NodeFacts
from karma_playbooks.errors import PlaybookError
from karma_playbooks.format import Book, Call, Param, Step
from karma_playbooks.inventory import Entry
from karma_playbooks.preflight import Check
from karma_playbooks.shell_words import UnusableWordError, words


@dataclass(frozen=True, slots=True)
class Doing:
    """One action on one node (None for those of no node), its arguments resolved as far as a plan can."""

    action: str
    node: str | None
    args: Mapping[str, Any]
    command: str


@dataclass(frozen=True, slots=True)
class Work:
    """What a step does to one target, how that is seen, and what takes it back."""

    target: str
    doing: Doing
    verify: tuple[Doing, ...]
    undo: tuple[Doing, ...]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, ready to be carried out. `in_window`: writers wait from a pause on, so nothing slow may be
    done.
    """

    id: str
    title: str
    changes: bool
    works: tuple[Work, ...]
    irreversible: str
    skipped: str
    approval: bool
    in_window: bool
    timeout_seconds: float
    retries: int
    retry_wait_seconds: float
    parallel: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Entries that will be given up: how many at least, whether that is all, and of which series.

    `series` has those of which that is known; the others are `of_unknown_series`.
    """

    entries: int
    is_exact: bool
    series: Mapping[str, int]
    text: str

    @property
    def of_unknown_series(self) -> int:
        """Of how many of the entries nobody can tell the series."""
        return max(self.entries - sum(self.series.values()), 0)

    @property
    def series_text(self) -> str:
        """The loss by series in words, "" where nothing is lost; what nobody can tell is called unknown."""
        known = [f"{name} ({count})" for name, count in sorted(self.series.items())]
        if self.of_unknown_series:
            known.append(f"unknown ({self.of_unknown_series})")
        if not self.is_exact:
            known.append("and of the rest unknown" if known else "unknown")
        return ", ".join(known)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `run` will do. `nodes` and `steps` are what the hash covers, with digest and parameters."""

    playbook: str
    title: str
    digest: str
    cluster: str
    cluster_id: str
    is_production: bool
    params: Mapping[str, Any]
    nodes: tuple[Mapping[str, Any], ...]
    steps: tuple[PlannedStep, ...]
    loss: Loss
    warnings: tuple[str, ...]
    preflight: tuple[Check, ...] = ()
    hash: str = field(default="")

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """What the preflight found that keeps the plan from being carried out."""
        return tuple(check for check in self.preflight if check.level == "failed")

    @property
    def point_of_no_return(self) -> str | None:
        """The first step that nothing takes back."""
        return next((step.id for step in self.steps if step.irreversible and not step.skipped), None)

    @property
    def is_blind(self) -> bool:
        """Whether it promotes although nobody can see that the old master is off."""
        return bool(self.params.get("fence_unverified"))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        found = {**asdict(self), "point_of_no_return": self.point_of_no_return}
        found["loss"]["of_unknown_series"] = self.loss.of_unknown_series
        found["preflight"] = [check._asdict() for check in self.preflight]
        return found

    @staticmethod
    def of_json(data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` gave."""
        known = {name: value for name, value in data.items() if name != "point_of_no_return"}
        steps = tuple(
            PlannedStep(**{**step, "works": tuple(_work_of(work) for work in step["works"])})
            for step in data["steps"]
        )
        loss = Loss(**{name: data["loss"][name] for name in Loss.__dataclass_fields__})
        changed = {"steps": steps, "loss": loss, "nodes": tuple(data["nodes"])}
        checks = tuple(Check(**each) for each in data.get("preflight", ()))
        return Plan(**{**known, "warnings": tuple(data["warnings"]), "preflight": checks, **changed})


def _work_of(data: Mapping[str, Any]) -> Work:
    verify, undo = (tuple(Doing(**each) for each in data[name]) for name in ("verify", "undo"))
    return Work(data["target"], Doing(**data["doing"]), verify, undo)


# -- Parameters ------------------------------------------------------------------------------------------


def parse(param: Param, text: str) -> Any:
    """Return the value of a parameter given as text. Raises PlaybookError."""
    match param.kind:
        case "number":
            try:
                number = int(text) if text.lstrip("-").isdecimal() else float(text)
            except ValueError:
                raise _wrong(param, text, "a number") from None
            if not math.isfinite(number):
                raise _wrong(param, text, "a number")
            return number
        case "flag":
            if text not in {"true", "false", "yes", "no"}:
                raise _wrong(param, text, "yes or no")
            return text in {"true", "yes"}
        case "words":
            try:
                return shlex.split(text)
            except ValueError:
                raise _wrong(param, text, "words, quoted as in a shell") from None
    return text


def _wrong(param: Param, text: str, takes: str) -> PlaybookError:
    return PlaybookError(f'"{text}" cannot be the parameter {param.name}: it takes {takes}', param.help)


def _params(book: Book, given: Mapping[str, str], cluster: Cluster) -> dict[str, Any]:
    for name in given:
        if name not in book.params:
            known = ", ".join(book.params) or "none"
            raise PlaybookError(f"{book.name} has no parameter {name}", f"it has {known}")
    found = {}
    for name, param in book.params.items():
        if name in given:
            value = parse(param, given[name])
        elif param.has_default:
            try:
                value = values.resolve(param.default, lambda ref: _lookup(ref, cluster, {}, None))
            except PlaybookError as error:
                text = f"nothing can be chosen for the parameter {name}: {error.message}"
                raise PlaybookError(
                    text, f"look at `karmactl topology`, or give {name}", "refused"
                ) from error
        else:
            raise PlaybookError(
                f"{book.name} needs the parameter {name}: {param.help}", f"give --param {name}=…"
            )
        if values.is_open(value):
            raise PlaybookError(f"parameter {name}: its default uses what only the run can tell")
        if param.kind == "node" and value is not None:
            try:
                value = cluster.node(str(value)).name
            except KeyError as error:
                raise PlaybookError(f"parameter {name}: {error.args[0]}") from error
        found[name] = value
    return found


# -- The plan --------------------------------------------------------------------------------------------


def make(book: Book, given: Mapping[str, str], cluster: Cluster) -> Plan:
    """Return the plan of a playbook for a cluster as it is. Raises PlaybookError when there is none."""
    params = _params(book, given, cluster)
    maker = _Maker(cluster, params)
    steps = []
    is_paused = False
    for step in book.steps:
        planned = maker.step(step, in_window=is_paused)
        if not planned.skipped:
            is_paused = (
                is_paused or step.call.action in catalog.STOPS_WRITES
            ) and step.call.action != "karma.promote"
        steps.append(planned)
    nodes = tuple(_identity(node) for node in cluster.nodes)
    covered = {
        "digest": book.digest,
        "params": params,
        "nodes": nodes,
        "steps": [_covered(step) for step in steps if not step.skipped],
    }
    return Plan(
        playbook=book.name,
        title=book.title,
        digest=book.digest,
        cluster=cluster.name,
        cluster_id=cluster.cluster_id,
        is_production=cluster.is_production,
        params=params,
        nodes=nodes,
        steps=tuple(steps),
        loss=estimate(book.loses, cluster, params),
        warnings=tuple(_warnings(cluster, steps)),
        preflight=preflight.checks(cluster, _needs(steps)),
        hash=hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16],
    )


def _identity(node: NodeFacts) -> dict[str, Any]:
    status = node.status
    return {
        "name": node.name,
        "node_id": status.get("node_id"),
        "address": node.entry.address,
        "role": node.role,
        "epoch": status.get("epoch"),
        "host": node.place,
    }


def _covered(step: PlannedStep) -> list[Any]:
    doings = [each for work in step.works for each in (work.doing, *work.verify, *work.undo)]
    return [step.id, step.irreversible, [doing.command for doing in doings]]


class _Maker:
    """Resolves steps against one cluster and one set of parameters."""

    def __init__(self, cluster: Cluster, params: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._params = params
        self._entries = {node.name: node.entry for node in cluster.nodes}
        self._left_out: set[str] = set()

    def step(self, step: Step, *, in_window: bool) -> PlannedStep:
        try:
            works, skipped = self._works(step)
        except PlaybookError as error:
            raise PlaybookError(f"step {step.id}: {error.message}", error.advice, "refused") from error
        if skipped:
            self._left_out.add(step.id)
        return PlannedStep(
            id=step.id,
            title=step.title,
            changes=step.about.changes,
            works=works,
            irreversible=step.irreversible,
            skipped=skipped,
            approval=step.approval,
            in_window=in_window,
            timeout_seconds=step.timeout_seconds,
            retries=step.retries,
            retry_wait_seconds=step.retry_wait_seconds,
            parallel=step.parallel,
        )

    def _works(self, step: Step) -> tuple[tuple[Work, ...], str]:
        try:
            if not values.holds(step.when, self._look(None)):
                return (), "its condition does not hold"
        except values.Later:
            raise PlaybookError("its condition uses what only the run can tell") from None
        if step.about.place == "here":
            targets: list[str] = [""]
        else:
            targets = self._targets(step.call.targets)
        works = tuple(self._work(step, target) for target in targets)
        return works, "" if works else "there is no node to do it to"

    def _work(self, step: Step, target: str) -> Work:
        return Work(
            target,
            self._doing(step.call, target),
            tuple(self._doings(step.verify, target)),
            tuple(self._doings(step.undo, target)),
        )

    def _doings(self, calls: Sequence[Call], target: str) -> list[Doing]:
        return [
            self._doing(call, each)
            for call in calls
            for each in ([target] if call.targets is None else self._targets(call.targets))
        ]

    def _doing(self, call: Call, target: str) -> Doing:
        args = catalog.fitted(call.action, values.resolve(dict(call.args), self._look(target or None)))
        for arg in catalog.BY_NAME[call.action].args:
            if arg.kind == "node" and isinstance(args.get(arg.name), str):
                args[arg.name] = self._node(args[arg.name])
        entry = self._entries.get(target) if catalog.BY_NAME[call.action].place != "here" else None
        if catalog.BY_NAME[call.action].place == "host" and entry is not None and not entry.has_host:
            raise PlaybookError(
                f"{entry.name} has no host to run commands on",
                'add ssh_host = "…" to the node in its context',
            )
        command = catalog.command(call.action, args, entry)
        if entry is not None and catalog.BY_NAME[call.action].place == "host":
            _check_words(catalog.argv(call.action, args, entry))
        return Doing(call.action, entry.name if entry else None, args, command)

    def _targets(self, targets: Any) -> list[str]:
        if isinstance(targets, Mapping) and "of" in targets:
            left_out = set(self._targets(targets["except"]))
            return [name for name in self._targets(targets["of"]) if name not in left_out]
        found = values.resolve(targets, self._look(None))
        names = found if isinstance(found, list) else [found]
        flat = [
            name
            for each in names
            for name in (each if isinstance(each, list) else [each])
            if name is not None
        ]
        return list(dict.fromkeys(self._node(name) for name in flat))

    def _node(self, name: Any) -> str:
        try:
            return self._cluster.node(str(name)).name
        except KeyError as error:
            raise PlaybookError(str(error.args[0])) from error

    def _look(self, target: str | None) -> values.Lookup:
        entry = self._entries.get(target) if target else None

        def look(name: str) -> Any:
            scope, _, rest = name.partition(".")
            step = rest.partition(".")[0]
            if scope == "steps" and step in self._left_out:
                raise KeyError(f"{step} is left out, so it gives nothing back")
            return _lookup(name, self._cluster, self._params, entry)

        return look


def _check_words(argv: Sequence[Any]) -> None:
    try:
        words(each for each in argv if not values.is_open(each))
    except UnusableWordError as error:
        raise PlaybookError(str(error)) from error


def _lookup(name: str, cluster: Cluster, params: Mapping[str, Any], entry: Entry | None) -> Any:
    scope, _, rest = name.partition(".")
    match scope:
        case "cluster":
            return cluster.lookup(rest)
        case "params":
            return params[rest]
        case "node":
            if entry is None:
                raise KeyError("there is no node here")
            return getattr(entry, rest)
    raise values.Later


# -- What it costs ---------------------------------------------------------------------------------------


def estimate(loses: str, cluster: Cluster, params: Mapping[str, Any]) -> Loss:
    """Return what a playbook gives up, as far as the nodes that answered can tell."""
    match loses:
        case "nothing":
            return Loss(0, is_exact=True, series={}, text="nothing")
        case "the branch":
            branch = cluster.node(params["node"]).branch
            if branch is None:
                return Loss(0, is_exact=True, series={}, text="nothing: its history is part of the master's")
            return Loss(
                branch.entries,
                is_exact=True,
                series=branch.series,
                text=f"{branch.entries} entries from LSN {branch.from_lsn} on that only this node has",
            )
    chosen = cluster.node(params["to"])
    old = cluster.old_master
    seen = max((node.lsn + node.lag_entries for node in cluster.followers), default=chosen.lsn)
    if old is not None and old.is_reachable:
        missing = max(old.lsn, seen) - chosen.lsn
        text = f"{missing} entries that {old.name} has alone"
        return Loss(missing, is_exact=True, series=chosen.missing, text=text)
    missing = max(seen - chosen.lsn, 0)
    silent_ms = chosen.status.get("lag_ms") or 0
    return Loss(
        missing,
        is_exact=False,
        series=chosen.missing,
        text=f"{missing} entries are known to be missing on {chosen.name}; what the silent master took in "
        f"the last {silent_ms / 1000:.1f} s, nobody can tell: unknown",
    )


def _needs(steps: Sequence[PlannedStep]) -> preflight.Needs:
    doings = [
        each for step in steps for work in step.works for each in (work.doing, *work.verify, *work.undo)
    ]
    return preflight.Needs(
        hosts={
            doing.node for doing in doings if catalog.BY_NAME[doing.action].place == "host" and doing.node
        },
        masters={doing.node for doing in doings if doing.action == "karma.promote" and doing.node},
    )


def _warnings(cluster: Cluster, steps: Sequence[PlannedStep]) -> list[str]:
    found = [f"{node.entry.words} does not answer: {node.error}" for node in cluster.nodes if node.error]
    if not any(node.entry.has_host or "lease_number" in node.status for node in cluster.nodes):
        found.append("no host is known, so nothing but this machine's journal keeps a second run away")
    clusters = {node.status["cluster_id"] for node in cluster.nodes if node.status.get("cluster_id")}
    if len(clusters) > 1:
        found.append(f"the nodes belong to {len(clusters)} clusters")
    found += [
        f"{node.name} is {node.lag_entries} entries behind"
        for node in cluster.followers
        if node.lag_entries > 1000
    ]
    if not any(step.works for step in steps):
        found.append("there is nothing to do")
    return found
