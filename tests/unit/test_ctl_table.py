"""The command table: complete, true to the op table, and matched by the handlers it names."""

import inspect
import json
import shlex
from pathlib import Path

import ctl
import pytest

from karma.ops import BY_NAME
from karmactl import build, cli, table
from karmactl.contexts import CONTEXT_KEYS
from karmactl.diagnostics import MEANINGS, Exit
from karmactl.settings import GLOBALS
from karmactl.table.entries import Command, changes

COMING = {
    "replication.promote",
    "replication.follow",
    "replication.pause",
    "replication.resume",
    "replication.fence",
    "replication.unfence",
    "replication.wait",
    "replication.checksum",
}
"""Operations that commands are written for and the op table may not have yet."""

COPING = {"doctor", "support-bundle"}
"""Commands that leave out what the server does not have."""


@pytest.fixture(params=table.COMMANDS, ids=lambda command: command.name)
def command(request: pytest.FixtureRequest) -> Command:
    found: Command = request.param
    return found


def test_its_handler_takes_what_the_table_says(command: Command) -> None:
    parameters = list(inspect.signature(cli.load(command)).parameters.values())[1:]
    named = {one.parameter for one in command.arguments} | {one.parameter for one in command.options}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        assert {parameter.name for parameter in parameters[:-1]} <= named
    else:
        assert {parameter.name for parameter in parameters} == named


def test_its_examples_can_be_typed(command: Command) -> None:
    assert command.examples
    for line, _ in command.examples:
        words = shlex.split(line.partition(" > ")[0].partition(" | ")[0])
        asked = cli.parse(words, 80)
        assert isinstance(asked, build.Invocation)
        assert asked.command.name == command.name


def test_its_operations_exist_and_decide_what_it_is(command: Command) -> None:
    assert set(command.ops) <= set(BY_NAME) | COMING
    if set(command.ops) <= set(BY_NAME) and command.ops:
        ranks = "RWA"
        needed = max((BY_NAME[op].access for op in command.ops), key=ranks.index)
        assert command.token == {"R": "read", "W": "write", "A": "admin"}[needed]
        derived = "write" if any(map(changes, command.ops)) else "read"
        # Of some it depends on what they are asked to do; each request is guarded all the same.
        assert command.effect in {derived, "operation"}


def test_what_an_old_server_lacks_has_a_way_round(command: Command) -> None:
    lacks = [op for op in command.ops if op not in BY_NAME or BY_NAME[op].extension]
    assert bool(command.instead) == bool(lacks) or command.name in COPING


def test_what_destroys_asks_and_only_what_writes_does(command: Command) -> None:
    if command.danger:
        assert command.effect == "write"
    assert not (command.can_watch and command.effect == "write")


def test_it_is_explained(command: Command) -> None:
    assert command.help.endswith(".")
    assert len(command.help) <= 100
    assert all(option.help for option in command.options)
    assert all(argument.help for argument in command.arguments)


def test_its_options_do_not_hide_global_ones(command: Command) -> None:
    assert not {option.name for option in command.options} & {setting.flag[2:] for setting in GLOBALS}
    assert not {option.short for option in command.options} & {
        setting.short for setting in GLOBALS if setting.short
    }


def test_every_group_has_a_line_and_every_line_a_group() -> None:
    groups = {" ".join(command.path[:-1]) for command in table.COMMANDS}
    assert groups == set(table.GROUPS)


def test_every_setting_that_may_stand_in_the_file_is_checked_there() -> None:
    assert {setting.key for setting in GLOBALS if setting.in_file} == set(CONTEXT_KEYS) - {
        "nodes",
        "production",
    }


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Exit)
    assert {int(code) for code in Exit} == {*range(12), 130}


def test_global_options_work_before_and_after_the_command() -> None:
    words = [
        "--node",
        "a",
        "-o",
        "json",
        "series",
        "--node",
        "b",
        "top",
        "x",
        "-n",
        "3",
        "--node",
        "c",
        "-o",
        "csv",
    ]
    asked = cli.parse(words, 80)
    assert isinstance(asked, build.Invocation)
    assert asked.flags == {"node": ("a", "b", "c"), "output": "csv"}
    assert asked.parameters["limit"] == 3


def test_the_specification_is_the_table(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    found = json.loads(ctl.karmactl("spec", environ=environ).stdout)
    for described, command in zip(found["commands"], table.COMMANDS, strict=True):
        assert described["name"] == command.name
        assert described["effect"] in {"local", "read", "write", "operation"}
        assert [option["name"] for option in described["options"]] == [
            f"--{one.name}" for one in command.options
        ]


def test_nothing_reaches_a_server_that_read_only_forbids() -> None:
    for command in table.COMMANDS:
        if command.effect == "write":
            words = [
                *command.path,
                *("1" for argument in command.arguments if argument.required),
                "--read-only",
            ]
            for option in command.options:
                if option.required:
                    words += [f"--{option.name}", "20260505" if option.kind == "day" else "1"]
            if command.name == "series delete-before":
                words[-2] = "2026-05-05"
            # Nobody listens on port 1: reaching for it would end with exit code 5.
            ended = ctl.karmactl(*words, "--node", "127.0.0.1:1")
            assert (ended.code, "forbids" in ended.stderr) == (Exit.REFUSED, True), command.name
