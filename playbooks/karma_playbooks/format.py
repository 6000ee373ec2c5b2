"""A playbook read from its file: strict YAML, the schema, then what no schema can tell.

playbook: switchover
title: …
loses: nothing
params: {to: {kind: node, help: …}}
steps:
  - {id: pause, targets: {ref: cluster.master}, action: karma.pause, args: {ttl_ms: 30000},
     verify: [{action: karma.expect, args: {is: {writable: false}}}],
     undo: [{action: karma.resume}]}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from karma_playbooks import catalog, schema, strict, values
from karma_playbooks.errors import PlaybookError
from karma_playbooks.strict import Document, Path, Problem

DEFAULT_TIMEOUT_SECONDS = 60.0
_LIKE_A_BOOK = re.compile(r"""(?:^|[{,])\s*["']?(?:playbook|loses|steps)["']?\s*:""", re.MULTILINE)
"""A key that only playbooks have."""
SCOPES: Mapping[str, frozenset[str] | None] = {
    "cluster": frozenset(
        {
            "name",
            "master",
            "followers",
            "nodes",
            "reachable",
            "writable",
            "best",
            "epoch",
            "next_epoch",
            "old_master",
        }
    ),
    "node": frozenset({"name", "address", "directory", "service"}),
    "run": frozenset({"id", "operator", "reason", "ticket", "folder"}),
    "params": None,
    "steps": None,
}
"""What references may begin with, and go on with where that is not the playbook's own."""


class Call(NamedTuple):
    """An action with its arguments. `targets` None means those of the step."""

    action: str
    args: Mapping[str, Any]
    targets: Any
    path: Path


class Step(NamedTuple):
    """One step; see the schema for what each field means. Times are seconds."""

    id: str
    title: str
    needs: tuple[str, ...]
    call: Call
    when: Any
    verify: tuple[Call, ...]
    undo: tuple[Call, ...]
    irreversible: str
    timeout_seconds: float
    retries: int
    retry_wait_seconds: float
    parallel: int
    approval: bool

    @property
    def about(self) -> catalog.Action:
        """The action as the table has it."""
        return catalog.BY_NAME[self.call.action]


class Param(NamedTuple):
    """A parameter; without a default it must be given."""

    name: str
    kind: str
    help: str
    default: Any
    has_default: bool


class Book(NamedTuple):
    """A playbook that was found good. `digest` is the SHA-256 of its text."""

    name: str
    title: str
    details: str
    loses: str
    params: Mapping[str, Param]
    steps: tuple[Step, ...]
    text: str
    file: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load(text: str, file: str) -> Book:
    """Return a playbook. Raises PlaybookError with every problem of its text, each with file and line."""
    document = _checked(text, file)
    if document.problems:
        lines = [f"{problem.place}: {problem.text}" for problem in document.problems]
        raise PlaybookError("\n".join(lines), "`karmactl playbook lint FILE` checks it again")
    return _book(document, text)


def lint(text: str, file: str) -> list[Problem]:
    """Return everything that is wrong with a text."""
    return sorted(_checked(text, file).problems, key=lambda problem: int(problem.place.rpartition(":")[2]))


def _checked(text: str, file: str) -> Document:
    if not _LIKE_A_BOOK.search(text):
        # What is wrong with it would be told in its own words, and it may be a file of secrets.
        other = Document(file)
        other.blame((), "it is not a playbook: none of its keys is playbook, loses or steps")
        return other
    document = strict.load(text, file)
    if not document.problems:
        schema.check(document)
    if not document.problems:
        _check(document, _book(document, text))
    return document


def _book(document: Document, text: str) -> Book:
    tree = document.value
    params = {
        name: Param(name, about["kind"], about["help"], about.get("default"), "default" in about)
        for name, about in tree.get("params", {}).items()
    }
    steps = tuple(_step(each, ("steps", at)) for at, each in enumerate(tree["steps"]))
    return Book(
        tree["playbook"],
        tree["title"],
        tree.get("details", ""),
        tree["loses"],
        params,
        steps,
        text,
        document.file,
    )


def _call(tree: Mapping[str, Any], path: Path) -> Call:
    return Call(tree["action"], tree.get("args", {}), tree.get("targets"), path)


def _step(tree: Mapping[str, Any], path: Path) -> Step:
    retry = tree.get("retry", {})
    return Step(
        tree["id"],
        tree.get("title", ""),
        tuple(tree.get("needs", ())),
        _call(tree, path),
        tree.get("when", True),
        tuple(_call(each, (*path, "verify", at)) for at, each in enumerate(tree.get("verify", ()))),
        tuple(_call(each, (*path, "undo", at)) for at, each in enumerate(tree.get("undo", ()))),
        tree.get("irreversible", ""),
        float(tree.get("timeout", DEFAULT_TIMEOUT_SECONDS)),
        retry.get("times", 0),
        float(retry.get("wait", 1.0)),
        tree.get("parallel", 1),
        tree.get("approval", False),
    )


# -- What no schema can tell -----------------------------------------------------------------------------


def _check(document: Document, book: Book) -> None:
    earlier: dict[str, Step] = {}
    is_paused = is_fenced = False
    for at, step in enumerate(book.steps):
        path: Path = ("steps", at)
        if step.id in earlier:
            document.blame((*path, "id"), f"{step.id} is the id of an earlier step, too")
        for need in step.needs:
            if need not in earlier:
                document.blame((*path, "needs"), f"{step.id} needs {need}, which is no earlier step")
        _check_promises(document, step, path)
        for name, value in (("when", step.when), ("targets", step.call.targets), ("args", step.call.args)):
            _check_references(document, book, earlier, value, (*path, name))
        # Checks and undos may use what their own step gave back.
        with_own = {**earlier, step.id: step}
        for call in (*step.verify, *step.undo):
            _check_references(document, book, with_own, [call.args, call.targets], call.path)
        for call in (step.call, *step.verify, *step.undo):
            _check_targets(document, step, call)
        if is_paused and (
            step.about.place == "host" or step.about.name in catalog.NOT_WHILE_PAUSED or step.approval
        ):
            document.blame(
                path, f"{step.id} comes between a pause and the promotion: writers would wait for it"
            )
        is_paused = (
            is_paused or step.call.action in catalog.STOPS_WRITES
        ) and step.call.action != "karma.promote"
        is_fenced = is_fenced or step.call.action in catalog.FENCES
        if step.call.action == "karma.promote" and not is_fenced:
            document.blame(path, f"{step.id} promotes, and no earlier step fences the old master")
        earlier[step.id] = step


def _check_promises(document: Document, step: Step, path: Path) -> None:
    if step.about.changes:
        if not step.verify:
            document.blame(path, f"{step.id} changes something and has no verify")
        if bool(step.undo) == bool(step.irreversible):
            document.blame(
                path, f"{step.id} changes something: it needs either undo, or irreversible with the reason"
            )
    elif step.undo or step.irreversible:
        document.blame(path, f"{step.id} changes nothing, so there is nothing to undo")
    for call in step.verify:
        if catalog.BY_NAME[call.action].changes:
            document.blame(call.path, f"{call.action} changes something; verify only looks")


def _check_targets(document: Document, step: Step, call: Call) -> None:
    about = catalog.BY_NAME[call.action]
    has_targets = call.targets is not None or (call is not step.call and step.call.targets is not None)
    if about.place != "here" and not has_targets:
        document.blame(call.path, f"{call.action} of {step.id} needs targets")
    if about.place == "here" and call.targets is not None:
        document.blame(call.path, f"{call.action} of {step.id} acts on no node and takes no targets")


def _check_references(
    document: Document, book: Book, earlier: Mapping[str, Step], value: Any, path: Path
) -> None:
    try:
        names = list(values.references(value))
    except PlaybookError as error:
        document.blame(path, error.message)
        return
    for name in names:
        for problem in _wrong_name(book, earlier, name):
            document.blame(path, problem)


def _wrong_name(book: Book, earlier: Mapping[str, Step], name: str) -> Iterator[str]:
    scope, _, rest = name.partition(".")
    if not values.is_name(name) or scope not in SCOPES:
        yield f"{name} refers to nothing: references begin with {', '.join(sorted(SCOPES))}"
    elif scope == "params":
        if rest not in book.params:
            yield f"{name}: there is no parameter {rest}"
    elif scope == "steps":
        step_id, _, output = rest.partition(".")
        if step_id not in earlier:
            yield f"{name}: {step_id} is no earlier step"
        elif output not in earlier[step_id].about.outputs:
            gives = ", ".join(earlier[step_id].about.outputs) or "nothing"
            yield f"{name}: {earlier[step_id].call.action} gives back {gives}"
    elif rest not in (SCOPES[scope] or ()):
        yield f"{name}: there is {', '.join(sorted(SCOPES[scope] or ()))}"
