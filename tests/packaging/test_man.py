"""Manual pages: those of the programs as they are, whole, and to the liking of man and mandoc."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from harness import ROOT

from karma.config import OPTIONS
from karma.errors import ErrorCode
from karma.ops import OPS
from karma_playbooks.catalog import ACTIONS
from karma_playbooks.schema import SCHEMA
from karmactl import table
from karmactl.commands.spec import describe
from karmactl.diagnostics import Exit
from karmactl.settings import GLOBALS
from karmactl.table.entries import Command

MAN = ROOT / "man"
PAGES = sorted(MAN.glob("man?/*.?"))
COMMAND_PAGES = [path for path in PAGES if path.suffix == ".1"]


def name_of(path: Path) -> str:
    return path.name


@cache
def read(name: str) -> str:
    """What a page says, in plain text: roff's escapes undone, lines joined."""
    (path,) = MAN.glob(f"man?/{name}")
    text = re.sub(r"\\f[BIR]|\\&|^\.(?:SH|SS) ", "", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"\\\[u([0-9A-F]{4})\]", lambda found: chr(int(found[1], 16)), text)
    for escape, letter in (("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\(ha", "^"), ("\\(ti", "~")):
        text = text.replace(escape, letter)
    return " ".join(text.replace("\\e", "\\").split())


def section(name: str, title: str) -> str:
    """A section of a page, as roff."""
    (path,) = MAN.glob(f"man?/{name}")
    found = re.search(rf'^\.SH "{title}"\n(.*?)(?=^\.SH |\Z)', path.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{name} has no section {title}"
    return found[1]


def test_the_pages_are_those_of_the_tables(tmp_path: Path) -> None:
    subprocess.run([sys.executable, MAN / "generate.py", tmp_path], check=True, timeout=60)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.glob("man/man?/*")}
    kept = {path.relative_to(ROOT): path.read_text() for path in PAGES}
    assert made.keys() == kept.keys(), "`make man` writes the pages"
    odd = [str(path) for path, text in made.items() if kept[path] != text]
    assert odd == [], "`make man` writes them anew"
    # The scripts are Click's and change with its version; that they work is tried in test_package.py.
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.glob("completions/*/*")) == sorted(
        path.relative_to(ROOT) for path in ROOT.glob("completions/*/*")
    )


def test_each_group_of_commands_has_a_page() -> None:
    names = {path.name for path in PAGES}
    groups = {f"karmactl-{group}.1" for group in table.GROUPS if group}
    others = {"karma.1", "karmactl.1", "karma.conf.5", "karma-playbook.5", "karma-protocol.7"}
    assert names == groups | others


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_man_shows_it_without_a_warning(page: Path, needs: Callable[[str], Path]) -> None:
    # -l reads a file, which the man of other systems does not.
    shown = subprocess.run(
        [needs("man"), "--warnings", "-l", page],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "SEE ALSO" in shown.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mandoc_has_nothing_to_say_about_it(page: Path, needs: Callable[[str], Path]) -> None:
    checked = subprocess.run(
        [needs("mandoc"), "-Tlint", page], capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=name_of)
def test_a_page_of_commands_is_whole(page: Path) -> None:
    for title in ("SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "FILES", "EXIT STATUS"):
        assert section(page.name, title).strip(), title
    assert ".EX" in section(page.name, "EXAMPLES")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_pages_that_it_names_exist(page: Path) -> None:
    named = set(re.findall(r"\b(karma[a-z.-]*)\((\d)\)", read(page.name)))
    assert named
    assert {f"{name}.{number}" for name, number in named} <= {path.name for path in PAGES}


def test_the_server_s_page_has_every_option_and_variable() -> None:
    for option in OPTIONS:
        assert f"--{option.name}=" in read("karma.1")
        assert f"{option.env} As --{option.name}." in read("karma.1")
        assert option.help[1:] in read("karma.1")
        if option.name != "config":
            assert f"Also --{option.name} and {option.env}." in read("karma.conf.5")
            assert option.help[1:] in read("karma.conf.5")


@pytest.mark.parametrize("command", table.COMMANDS, ids=lambda command: command.name.replace(" ", "-"))
def test_a_command_is_on_its_page(command: Command) -> None:
    name = f"karmactl-{command.path[0]}.1" if len(command.path) > 1 else "karmactl.1"
    _, found, own = read(name).partition(f'"karmactl {command.name}')
    assert found
    for option in describe(command)["options"]:
        assert option["name"] in own
    for line, _ in command.examples:
        assert " ".join(f"karmactl {line}".split()) in read(name)


def test_the_main_page_has_every_global_option_and_exit_status() -> None:
    text = read("karmactl.1")
    for setting in GLOBALS:
        assert f"{setting.flag} " in text
        assert setting.env in text
    statuses = re.findall(r"\\fB(\d+)\\fR", section("karmactl.1", "EXIT STATUS"))
    assert [int(status) for status in statuses] == [int(code) for code in Exit]


def read_from_environment() -> set[str]:
    """The names of variables that karmactl's own code looks up."""
    found = set()
    for path in [*(ROOT / "karmactl").rglob("*.py"), *(ROOT / "tui").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^(?:KARMACTL|XDG)_[A-Z_]+$", node.value))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("environ.get"):
                found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def test_the_main_page_has_every_variable_that_is_read() -> None:
    found = read_from_environment()
    assert {"NO_COLOR", "EDITOR", "KARMACTL_NODES", "XDG_STATE_HOME"} <= found
    text = section("karmactl.1", "ENVIRONMENT").replace("\\-", "-")
    assert {name for name in found if name not in text} == set()


def test_the_protocol_s_page_has_every_operation_field_and_error_code() -> None:
    text = read("karma-protocol.7")
    for op in OPS:
        assert f'"{op.name}"' in text
        assert f'{{"op":"{op.name}"' in text
        for name in (*op.aliases, *(field.name for field in op.fields)):
            assert name in text
    codes = {value for name, value in vars(ErrorCode).items() if name.isupper()}
    tags = set(re.findall(r"\\fB(\w+)\\fR", section("karma-protocol.7", "ERROR CODES")))
    assert codes <= tags


def test_the_playbook_s_page_has_every_key_and_action() -> None:
    text = read("karma-playbook.5")
    for action in ACTIONS:
        assert f'"{action.name}"' in text
        for arg in action.args:
            assert arg.help.removesuffix(".")[1:] in text
    for name in (*SCHEMA["properties"], *SCHEMA["$defs"]["step"]["properties"]):
        assert re.search(rf"\.TP {name}\??", text), name
