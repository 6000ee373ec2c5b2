"""Values of playbooks: each is read once, when it is planned, and what was planned is what runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbooks.fleet import Fleet, play, sitting

from karma_playbooks import values
from karma_playbooks.actions import hosts
from karma_playbooks.cluster import Cluster, NodeFacts
from karma_playbooks.control import Playbooks
from karma_playbooks.errors import PlaybookError
from karma_playbooks.format import load
from karma_playbooks.inventory import Entry
from karma_playbooks.plan import Plan, make
from karma_playbooks.runner import Ending, Runner

BOOK = """
playbook: say
title: t
loses: nothing
params: {x: {kind: text, help: said}, path: {kind: text, help: a file}}
steps:
  - id: say
    targets: {ref: cluster.nodes}
    action: ssh.exec
    args: {argv: [printf, "%s;", {ref: params.x}, "<${params.x}>", "${params.x} ${run.id}"]}
    verify: [{action: ssh.check, args: {argv: [echo, {ref: params.x}], contains: {ref: params.x}}}]
    undo: [{action: ssh.exec, args: {argv: [touch, "${params.path}.undone"]}}]
  - id: put
    targets: {ref: cluster.nodes}
    action: file.put
    args: {path: {ref: params.path}, content: "${params.x}$$"}
    verify: [{action: file.is, args: {path: {ref: params.path}, content: "${params.x}$$"}}]
    undo: [{action: ssh.exec, args: {argv: [touch, "${params.path}.undone"]}}]
  - id: tell
    action: assert
    args: {that: {eq: [{ref: params.x}, "${params.x}"]}, message: "${params.x}"}
"""
ODD = (
    "costs $5",
    "${run.id}",
    "${steps.say.output}",
    "${params.path}",
    "$$",
    "$",
    "$(touch PWNED)",
    "${",
    "%s",
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("values") / "fleet", None)
    yield fleet
    fleet.close()


def run(fleet: Fleet, params: Mapping[str, str], book: Path) -> tuple[str, Ending]:
    with fleet.playbooks() as playbooks:
        return sitting(playbooks, lambda: play(playbooks, str(book), params))


def book_at(folder: Path, text: str = BOOK) -> Path:
    path = folder / "say.yml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("odd", ODD)
def test_a_parameter_runs_as_it_was_planned(fleet: Fleet, tmp_path: Path, odd: str) -> None:
    target = tmp_path / "file"
    run_id, ending = run(fleet, {"x": odd, "path": str(target)}, book_at(tmp_path))
    assert ending == "done", fleet.told
    assert target.read_text() == f"{odd}$"
    with fleet.playbooks() as playbooks:
        history = playbooks.journal.history(run_id)
    assert history.outputs["say"]["output"] == f"{odd};<{odd}>;{odd} {run_id};"
    assert not list(fleet.folder.rglob("PWNED"))


REFERENCES = st.sampled_from(["params.t", "run.id", "steps.a.lsn"]).map("${{{}}}".format)
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*ODD, "ref", "$text"]), REFERENCES)).map(
    "".join
)


@given(TEXTS, TEXTS)
def test_what_was_filled_in_is_never_filled_in_again(text: str, run_id: str) -> None:
    def planning(name: str) -> Any:
        if name == "params.t":
            return text
        raise values.Later

    def running(name: str) -> Any:
        assert name in {"run.id", "steps.a.lsn"}
        return run_id if name == "run.id" else {"ref": "run.id"}

    book = [{"ref": "params.t"}, "${params.t}", "a ${params.t} ${run.id} $$", {"ref": "steps.a.lsn"}]
    planned = json.loads(json.dumps(values.resolve(book, planning)))
    assert values.complete(planned, running) == [text, text, f"a {text} {run_id} $", {"ref": "run.id"}]
    assert values.is_met({"eq": [text, text]})


def test_a_condition_compares_texts_as_they_are() -> None:
    assert values.is_met({"eq": ["${run.id}", "${run.id}"]})
    assert not values.is_met({"in": ["$", "costs 5"]})
    assert values.holds({"eq": ["$$5", {"ref": "params.x"}]}, lambda _: "$5")


# -- What planning accepts, running accepts ------------------------------------------------------------------

ONE = "playbook: one\ntitle: t\nloses: nothing\nparams: {x: {kind: %s, help: h%s}}\nsteps:\n"
WAIT = ONE + "  - {id: wait, action: wait, args: {seconds: {ref: params.x}}}\n"
SAY = ONE + "  - {id: say, action: ssh.check, targets: a, args: {argv: [echo, {ref: params.x}]}}\n"
LEFT_OUT = ONE + (
    "  - {id: look, when: {ref: params.x}, action: karma.expect, targets: a, args: {is: {role: master}}}\n"
    "  - {id: note, action: note, args: {text: 'LSN ${steps.look.lsn}'}}\n"
)


def planned(text: str, **params: str) -> Plan:
    entry = Entry("a", "127.0.0.1:1", directory="/data")
    status = {"role": "master", "epoch": 1, "node_id": "a", "wal_current_lsn": 1}
    return make(load(text, "x.yml"), params, Cluster("c", False, (NodeFacts(entry, status),)))


@pytest.mark.parametrize(
    ("text", "x", "words"),
    [
        (WAIT % ("text", ""), "soon", "seconds takes a number"),
        (WAIT % ("number", ""), "-1", "seconds takes a number"),
        (WAIT % ("number", ""), "nan", "a number"),
        (WAIT % ("number", ""), "1e999", "a number"),
        (WAIT % ("number", ""), "²", "a number"),
        (WAIT % ("words", ""), "1 2", "seconds takes a number"),
        (SAY % ("text", ""), "a\0b", "cannot receive"),
        (SAY % ("text", ""), "\udcff", "cannot receive"),
        (SAY % ("words", ""), "a b", "argv takes a list of words"),
        (LEFT_OUT % ("flag", ""), "no", "look is left out"),
        (SAY % ("text", ", default: '${run.id}'"), None, "only the run can tell"),
    ],
)
def test_what_could_not_run_is_not_planned(text: str, x: str | None, words: str) -> None:
    with pytest.raises(PlaybookError, match=words):
        planned(text, **({} if x is None else {"x": x}))


def test_a_number_stands_for_a_text() -> None:
    args = planned(SAY % ("number", ""), x="5").steps[0].works[0].doing.args
    assert args == {"argv": ["echo", 5]}


# -- The way back --------------------------------------------------------------------------------------------


def test_a_value_that_is_missing_in_the_run_turns_it_round_and_locks_nobody_out(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, params = tmp_path / "file", {"x": "x", "path": str(tmp_path / "file")}
    text = BOOK.replace(
        'content: "${params.x}$$"}\n    verify', 'content: "${steps.say.output}"}\n    verify'
    )
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "judged", lambda act, ended: {"code": ended.code})
        assert run(fleet, params, book_at(tmp_path, text))[1] == "undone"
    assert not target.exists()
    assert Path(f"{target}.undone").exists()
    assert run(fleet, params, book_at(tmp_path))[1] == "done", fleet.told


class Crashed(Exception):  # noqa: N818  a machine that dies
    """The controller is gone."""


def test_abort_and_unlock_evaluate_nothing(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"x": "costs $5", "path": str(tmp_path / "file")}

    async def crash(*_: object) -> None:
        raise Crashed

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_prove", crash)
        with pytest.raises(Crashed):
            run(fleet, params, book_at(tmp_path))

    def refuse(*_: object) -> Any:
        raise AssertionError("a value was looked up")

    monkeypatch.setattr(Runner, "_lookup", refuse)
    with fleet.playbooks() as playbooks:
        stopped = playbooks.journal.runs()[0]

        async def give_up(playbooks: Playbooks = playbooks) -> Ending:
            await playbooks.unlock()
            return await playbooks.resume(stopped, "tester", abort=True, takeover=True)

        assert sitting(playbooks, give_up) == "undone", fleet.told
    assert (tmp_path / "file.undone").exists()


def test_an_answer_in_no_known_form_is_unknown_and_ends_in_order(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise KeyError("role")

    params = {"x": "x", "path": str(tmp_path / "file")}
    with monkeypatch.context() as patch:
        patch.setattr("karma_playbooks.actions.hosts.check_", broken)
        run_id, ending = run(fleet, params, book_at(tmp_path))
    assert ending == "paused"
    with fleet.playbooks() as playbooks:
        assert "does not know" in playbooks.journal.history(run_id).why
        assert sitting(playbooks, lambda: playbooks.resume(run_id, "tester", abort=True)) == "undone", (
            fleet.told
        )
