"""Playbooks as files: what is refused, and where it says that it is wrong."""

import json
from pathlib import Path

import pytest

from karma_playbooks import strict, values
from karma_playbooks.catalog import ACTIONS
from karma_playbooks.errors import PlaybookError
from karma_playbooks.format import lint, load
from karma_playbooks.library import BOOKS, load_book
from karma_playbooks.schema import SCHEMA

HEAD = "playbook: p\ntitle: t\nloses: nothing\nparams:\n  n: {kind: node, help: h}\nsteps:\n"
PAUSE = """\
  - id: pause
    targets: a
    action: karma.pause
    args: {ttl_ms: 1000}
    verify: [{action: karma.expect, args: {is: {paused: true}}}]
    undo: [{action: karma.resume}]
"""
FENCE = """\
  - id: fence
    targets: a
    action: karma.fence
    args: {epoch: 2, reason: r}
    verify: [{action: karma.expect, args: {is: {fenced: true}}}]
    irreversible: because
"""
PROMOTE = """\
  - id: promote
    targets: b
    action: karma.promote
    verify: [{action: karma.expect, args: {is: {role: master}}}]
    irreversible: because
"""
WAIT = "  - {id: wait, action: wait, args: {seconds: 1}}\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in BOOKS.glob("*.yml")))
def test_our_books_are_good(name: str) -> None:
    book = load_book(name, Path("/nowhere"))
    assert book.name == name
    assert all(step.title for step in book.steps)


def test_a_good_text_has_no_problems() -> None:
    assert lint(HEAD + PAUSE + FENCE + PROMOTE, "p.yml") == []


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\na: 2", 2, "given twice"),
        ("a: &x 1\nb: *x", 1, "anchor"),
        ("a: &x 1\nb: *x", 2, "alias"),
        ("a: !!python/object:os.system x", 1, "tag"),
        ("a:\n  - yes", 2, "true or false"),
        ("a: No", 1, "true or false"),
        ("a: 1:30", 1, "quotes"),
        ("a: 010", 1, "quotes"),
        ("a: 2026-05-05", 1, "quotes"),
        ("a: 1\n---\nb: 2", 1, "2 documents"),
        ("a: [1\nb: 2", 2, "no YAML"),
        ("", 1, "0 documents"),
        ("x" * (strict.MAX_BYTES + 1), 1, "longer than"),
    ],
)
def test_yaml_that_can_be_misread_is_refused(text: str, line: int, words: str) -> None:
    problems = strict.load(text, "f.yml").problems
    assert any(found.place == f"f.yml:{line}" and words in found.text for found in problems), problems


def test_what_is_plain_is_read_as_it_looks() -> None:
    document = strict.load('a: true\nb: "no"\nc: -3\nd: 1.5\ne: null\nf: yes-man\ng: [x, {h: 0}]\n', "f.yml")
    assert not document.problems
    assert document.value == {
        "a": True, "b": "no", "c": -3, "d": 1.5, "e": None, "f": "yes-man", "g": ["x", {"h": 0}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD.replace("title", "titel") + WAIT, 2, "unknown: titel"),
        (HEAD + WAIT.replace("seconds: 1", "second: 1"), 7, "unknown: second"),
        (HEAD + WAIT.replace("seconds: 1", "seconds: soon"), 7, "does not fit"),
        (HEAD + WAIT.replace("action: wait", "action: sleep"), 7, "sleep"),
        (HEAD + WAIT + WAIT, 8, "id of an earlier step"),
        (HEAD + WAIT.replace("action", "needs: [later], action"), 7, "no earlier step"),
        (HEAD + WAIT.replace("seconds: 1", "seconds: {ref: params.x}"), 7, "no parameter x"),
        (HEAD + WAIT.replace("seconds: 1", "seconds: {ref: steps.x.lsn}"), 7, "no earlier step"),
        (HEAD + WAIT.replace("seconds: 1", "seconds: {ref: cluster.size}"), 7, "there is best"),
        (HEAD + WAIT.replace("seconds: 1", "seconds: {ref: env.HOME}"), 7, "refers to nothing"),
        (HEAD + PAUSE.replace("    targets: a\n", ""), 7, "needs targets"),
        (HEAD + "\n".join(PAUSE.splitlines()[:4]) + "\n    undo: [{action: karma.resume}]\n", 7, "no verify"),
        (HEAD + "\n".join(PAUSE.splitlines()[:5]) + "\n", 7, "either undo"),
        (HEAD + PAUSE.replace("karma.expect, args: {is: {paused: true}}", "karma.resume"), 11, "only looks"),
        (HEAD + PAUSE.replace("ttl_ms: 1000", 'ttl_ms: 1, why: "$x"'), 10, "unknown: why"),
        (HEAD + FENCE.replace("reason: r", 'reason: "$HOME"'), 10, "begins no reference"),
        (HEAD + WAIT.replace("}}", "}, undo: [{action: karma.resume, targets: a}]}"), 7, "nothing to undo"),
        (HEAD + PAUSE + FENCE + WAIT + PROMOTE, 19, "writers would wait"),
        (HEAD + PROMOTE, 7, "no earlier step fences"),
        (HEAD + PAUSE + PROMOTE, 13, "no earlier step fences"),
    ],
)
def test_problems_are_told_with_their_line(text: str, line: int, words: str) -> None:
    problems = lint(text, "p.yml")
    assert any(found.place == f"p.yml:{line}" and words in found.text for found in problems), problems
    with pytest.raises(PlaybookError, match=f"p.yml:{line}"):
        load(text, "p.yml")


@pytest.mark.parametrize(
    "text",
    [
        "sekrit-token\n",
        "root:sekrit:0:0\nx:sekrit:1:1\n",
        "-----BEGIN PRIVATE KEY-----\nsekrit\n",
        "apiVersion: v1\nkind: Secret\nsekrit: sekrit\n",
        '{"sekrit": ["sekrit"]}',
        "- *sekrit\n- &sekrit 1\n- !sekrit 1\n",
        "sekrit: 010\nsekrit: yes\n",
        '[contexts.sekrit]\ntoken_file = "sekrit"\n',
        "",
    ],
)
def test_a_file_that_is_not_a_playbook_is_refused_and_not_shown(text: str) -> None:
    (problem,) = lint(text, "f")
    assert problem.text.startswith("it is not a playbook")
    with pytest.raises(PlaybookError, match="it is not a playbook") as refused:
        load(text, "f")
    assert "sekrit" not in str(refused.value)


def test_a_long_value_is_cut_where_it_is_wrong() -> None:
    long = "x" * 5000
    for text in (
        f"playbook: p\ntitle: [{long}]\nloses: {long}\nsteps: {long}\n",
        f'{{"playbook": ["{long}"]}}',
    ):
        problems = lint(text, "f")
        assert problems
        assert all(len(problem.text) < 300 for problem in problems)


def test_the_schema_is_what_it_says_and_knows_every_action() -> None:
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    Draft202012Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    assert all(f'"{action.name}"' in text for action in ACTIONS)


# -- Values ----------------------------------------------------------------------------------------------


def look(name: str) -> object:
    known = {"params.n": 3, "params.list": [1, 2], "params.text": "x"}
    if name.startswith("steps."):
        raise values.Later
    if name not in known:
        raise KeyError("there is none")
    return known[name]


def test_references_keep_their_type_and_texts_take_them_in() -> None:
    resolved = values.resolve({"a": {"ref": "params.list"}, "b": "n=${params.n} $$", "c": [1, "x"]}, look)
    assert resolved == {"a": [1, 2], "b": "n=3 $", "c": [1, "x"]}


def test_what_only_the_run_knows_stays() -> None:
    value = {"a": {"ref": "steps.x.lsn"}, "b": "${params.n} ${steps.x.lsn}"}
    planned = values.resolve(value, look)
    assert planned == {"a": {"ref": "steps.x.lsn"}, "b": {"$text": [3, " ", {"ref": "steps.x.lsn"}]}}
    assert values.shown(planned) == {"a": {"ref": "steps.x.lsn"}, "b": "3 ${steps.x.lsn}"}


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(PlaybookError, match=r"params\.zzz: there is none"):
        values.resolve({"ref": "params.zzz"}, look)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (True, True),
        ({"eq": [{"ref": "params.n"}, 3]}, True),
        ({"lt": [{"ref": "params.n"}, 3]}, False),
        ({"in": [{"ref": "params.n"}, [1, 3]]}, True),
        ({"not": {"eq": [1, 1]}}, False),
        ({"all": [True, {"ge": [3, 3]}]}, True),
        ({"any": [False, {"ne": [3, 3]}]}, False),
        ({"ref": "params.n"}, True),
    ],
)
def test_conditions(condition: object, expected: bool) -> None:
    assert values.holds(condition, look) is expected


def test_what_cannot_be_compared_is_told() -> None:
    with pytest.raises(PlaybookError, match="cannot be compared"):
        values.holds({"lt": [{"ref": "params.text"}, 3]}, look)
