"""README and docs/ held against the program: options, names, links, tables, and examples that are run."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Server

import karma_client
from karma.config import OPTIONS, help_text
from karma.errors import ErrorCode
from karma.offline import main as offline_main
from karma.ops import OPS, Op
from karma.service.latency import OpLatency
from karma.service.metrics import render, render_latencies
from karma_events.actions import KINDS
from karma_sql.tables import MACROS, TABLES
from karmactl import table
from karmactl.build import Help, Invocation
from karmactl.cli import parse
from karmactl.commands.spec import describe
from karmactl.diagnostics import MEANINGS, Exit
from karmactl.settings import GLOBALS

README = ROOT / "README.md"
DEPLOY = ROOT / "deploy"
DOCUMENTS = [
    README,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    # What they name must exist, too.
    *sorted([*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.service")]),
]
PROTOCOL = ROOT / "docs" / "protocol.md"
OPERATIONS = ROOT / "docs" / "operations.md"
CLIENT = ROOT / "docs" / "client.md"
KARMACTL = ROOT / "docs" / "karmactl.md"
SQL = ROOT / "docs" / "sql.md"
EVENTS = ROOT / "docs" / "events.md"
PACKAGES = {path.parent.name for path in ROOT.glob("*/karma*/__init__.py")}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=DOCUMENTS, ids=name_of)
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def fences(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text: (language, content)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def between(text: str, name: str) -> str:
    """What stands between <!-- name --> and <!-- /name -->."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"there is no <!-- {name} --> … <!-- /{name} -->"
    return found[1]


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of every table line, headings included."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def first_code(cell: str) -> str:
    found = re.match(r"`([^`]+)`", cell)
    return found[1] if found else ""


# -- Options, variables, metrics, events -----------------------------------------------------------------


def known_flags() -> set[str]:
    """Every --option of `karma`, of its offline commands and of `karmactl`."""
    described = [describe(command) for command in table.COMMANDS]
    options = [option["name"] for command in described for option in command["options"]]
    texts = [help_text(), " ".join([*options, *(setting.flag for setting in GLOBALS), "--help"])]
    for command in ("check", "repair"):
        offline_main([command, "--help"], texts.append, texts.append, lambda: 0.0)
    return {flag for text in texts for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text)}


GATE_FLAGS = {"full", "cycles", "seed", "jobs", "minutes", "trace"}
"""Options of the gates in tests/faults and tests/simulation."""


def test_every_option_named_exists(document: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", document.read_text()))
    assert named <= known_flags() | GATE_FLAGS


def test_every_environment_variable_named_exists(document: Path) -> None:
    assert set(re.findall(r"KARMA_[A-Z_]+", document.read_text())) - {"KARMA_WAL_INDEX_V"} <= {
        option.env for option in OPTIONS
    }


def test_every_metric_named_exists(document: Path) -> None:
    latency = OpLatency()
    latency.record(1, 1, 0.0)
    stats: dict[str, Any] = defaultdict(int, replicas=[defaultdict(int)])
    text = render(stats) + render_latencies({"system.ping": latency}) + "# TYPE karma_restoring gauge"
    metrics = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    # A name that goes on after the metric's is a suffix of a histogram.
    named = (
        set(re.findall(r"\bkarma_[a-z][a-z_]+", document.read_text()))
        - PACKAGES
        - {"karma_server", "karma_command"}
    )
    assert {name for name in named if not any(name.startswith(metric) for metric in metrics)} == set()


def test_the_option_table_has_the_defaults_of_the_program() -> None:
    options = {f"--{option.name}": option for option in OPTIONS}
    shown = {
        first_code(row[0]): first_code(row[1]) for row in table_rows(README.read_text()) if len(row) == 3
    }
    shown = {flag: default for flag, default in shown.items() if flag.startswith("--")}
    assert len(shown) > 10
    for flag, default in shown.items():
        value = options[flag].default
        expected = (
            str(value).lower()
            if isinstance(value, bool)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )
        assert default == expected, flag


def test_the_toml_example_is_a_configuration(tmp_path: Path) -> None:
    examples = [content for language, content in fences(OPERATIONS.read_text()) if language == "toml"]
    assert examples
    for example in examples:
        file = tmp_path / "karma.toml"
        # Certificates of an example do not exist here.
        file.write_text(
            "".join(line for line in example.splitlines(keepends=True) if not line.startswith("tls-"))
        )
        command = [sys.executable, "-m", "karma.app", f"--config={file}", "--check-config"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def log_events() -> set[str]:
    """The first argument of every call that writes a log line."""
    found = set()
    for path in (ROOT / "server" / "karma").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            event = node.args[0].value
            if called in {"info", "warning", "error", "progress", "_drop"} and isinstance(event, str):
                found.add(event)
    return {event for event in found if re.fullmatch(r"[a-z_]+", event)}


def test_the_handbook_lists_every_log_event() -> None:
    listed = {first_code(row[0]) for row in table_rows(between(OPERATIONS.read_text(), "events"))} - {""}
    assert listed == log_events()


# -- The protocol ----------------------------------------------------------------------------------------


def ops_table() -> str:
    lines = ["| operation | access | fields | what it does |", "|---|---|---|---|"]
    for op in OPS:
        names = f"`{op.name}`" + "".join(f" (`{alias}`)" for alias in op.aliases)
        access = op.access + (" I" if op.idempotent else "") + (" +" if op.extension else "")
        lines.append(f"| {names} | {access} | {_fields_of(op)} | {op.help} |")
    return "\n".join(lines) + "\n"


def _fields_of(op: Op) -> str:
    return ", ".join(field.name if field.required else f"{field.name}?" for field in op.fields)


def fields_table() -> str:
    """Each field with what it takes. Operations that share a name but not a meaning get a line each."""
    users: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for op in OPS:
        for field in op.fields:
            users[field.name, field.kind.replace("|", "\\|"), field.help].append(op.name)
    names = [name for name, _, _ in users]
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for (name, kind, text), ops in sorted(users.items()):
        of = f" (of {', '.join(f'`{op}`' for op in ops)})" if names.count(name) > 1 and len(ops) < 4 else ""
        lines.append(f"| `{name}`{of} | `{kind}` | {text} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("name", "made"), [("ops", ops_table), ("fields", fields_table)])
def test_the_reference_says_what_the_op_table_says(name: str, made: Callable[[], str]) -> None:
    expected = made()
    assert between(PROTOCOL.read_text(), name) == expected, f"docs/protocol.md should hold:\n{expected}"


def test_every_error_code_is_explained() -> None:
    codes = {value for name, value in vars(ErrorCode).items() if name.isupper()}
    listed = {first_code(row[0]) for row in table_rows(between(PROTOCOL.read_text(), "errors"))} - {""}
    assert listed == codes


def test_every_operation_named_exists(document: Path) -> None:
    known = {name for op in OPS for name in (op.name, *op.aliases)}
    groups = "|".join(sorted({name.partition(".")[0] for name in known}))
    # `recovery.py` or `snapshot.md` is a file.
    named = set(re.findall(rf"`((?:{groups})\.(?!py\b|md\b|json\b)[a-z_]+)`", document.read_text()))
    assert named <= known


# -- The client ------------------------------------------------------------------------------------------


def test_every_name_of_the_client_exists(document: Path) -> None:
    text = document.read_text()
    errors = set(re.findall(r"`([A-Z]\w+Error)\b", text)) - {"TimeoutError"}
    assert {name for name in errors if not hasattr(karma_client, name)} == set()
    methods = set(re.findall(r"\b(?:client|pipeline)\.([a-z]\w+)\(", text)) - {"py"}
    known = (karma_client.Client, karma_client.Pipeline)
    assert {name for name in methods if not any(hasattr(kind, name) for kind in known)} == set()


def test_the_guide_names_every_error_that_is_no_reply() -> None:
    kinds = [getattr(karma_client, name) for name in karma_client.__all__ if name.endswith("Error")]
    replies = karma_client.ReplyError
    expected = {kind.__name__ for kind in kinds if not issubclass(kind, replies) or kind is replies}
    listed = {name for row in table_rows(CLIENT.read_text()) for name in re.findall(r"`(\w+Error)`", row[0])}
    assert listed - {"TimeoutError"} == expected - {"KarmaError"}


# -- karmactl --------------------------------------------------------------------------------------------


def commands_table() -> str:
    lines = ["| command | effect | what it does |", "|---|---|---|"]
    for command in table.COMMANDS:
        words = [argument.name.upper() + ("..." if argument.many else "") for argument in command.arguments]
        lines.append(f"| `{' '.join([command.name, *words])}` | {command.effect} | {command.help} |")
    return "\n".join(lines) + "\n"


def exit_codes_table() -> str:
    return (
        "\n".join(["| code | meaning |", "|---|---|", *(f"| {int(c)} | {MEANINGS[c]} |" for c in Exit)])
        + "\n"
    )


@pytest.mark.parametrize(("name", "made"), [("commands", commands_table), ("exit-codes", exit_codes_table)])
def test_the_handbook_of_karmactl_says_what_its_table_says(name: str, made: Callable[[], str]) -> None:
    expected = made()
    assert between(KARMACTL.read_text(), name) == expected, f"docs/karmactl.md should hold:\n{expected}"


def test_every_command_of_karmactl_that_is_named_exists(document: Path) -> None:
    firsts = {command.path[0] for command in table.COMMANDS}
    for code in re.findall(
        r"[`\" ]karmactl ([a-z][a-z -]*)" if document.suffix != ".md" else r"`karmactl ([a-z][a-z -]*)",
        document.read_text(),
    ):
        first, _, rest = code.strip().partition(" ")
        assert first in firsts, code
        if first in table.GROUPS and re.match(r"[a-z]", rest):
            assert (first, rest.split()[0]) in table.BY_PATH, code


def test_every_call_of_karmactl_that_is_shown_parses(document: Path) -> None:
    """Arguments and options, not only names. What is shown with its output is run below."""
    blocks = [content for language, content in fences(document.read_text()) if language == "sh"]
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.startswith("karmactl ") else []
        # A pipe or a redirection ends the call.
        ends = [position for position, word in enumerate(words) if word in {"|", "<", ">"}]
        if words:
            assert isinstance(parse(words[1 : min(ends, default=len(words))], 80), Invocation | Help), line


# -- SQL -------------------------------------------------------------------------------------------------


def sql_tables_table() -> str:
    lines = ["| table | columns | what is in it |", "|---|---|---|"]
    for one in TABLES:
        columns = ", ".join(f"`{name}` {kind}" for name, kind in one.columns)
        lines.append(f"| `{one.name}` | {columns} | {one.help} |")
    return "\n".join(lines) + "\n"


def sql_macros_table() -> str:
    lines = ["| macro | what it returns |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{macro.call}` | {macro.help} |" for macro in MACROS)]) + "\n"


@pytest.mark.parametrize(("name", "made"), [("tables", sql_tables_table), ("macros", sql_macros_table)])
def test_the_page_about_sql_says_what_its_tables_say(name: str, made: Callable[[], str]) -> None:
    expected = made()
    assert between(SQL.read_text(), name) == expected, f"docs/sql.md should hold:\n{expected}"


def test_every_extra_named_exists(document: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"pip install '[\w.]+\[([\w,]+)\]'", document.read_text()):
        assert set(named.split(",")) <= set(extras), named


# -- Events ----------------------------------------------------------------------------------------------


def kinds_table() -> str:
    lines = ["| topic | type of event | allowed in | state after it |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        allowed = ", ".join(state or "nothing yet" for state in kind.allowed)
        lines.append(f"| `{kind.topic}` | `{name}` | {allowed} | {kind.to or 'the same'} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_events_says_what_the_state_machine_says() -> None:
    expected = kinds_table()
    assert between(EVENTS.read_text(), "kinds") == expected, f"docs/events.md should hold:\n{expected}"


# -- Links -----------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_relative_link_resolves(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target


# -- Examples --------------------------------------------------------------------------------------------


def examples(path: Path) -> list[tuple[str, str]]:
    """(program, expected output) of the examples that a page shows with their output, in order."""
    found = []
    blocks = [*fences(path.read_text()), ("", "")]
    for (language, content), (next_language, next_content) in pairwise(blocks):
        if language == "console":
            for command in content.split("$ ")[1:]:
                line, _, output = command.partition("\n")
                found.append((line, output))
        elif language == "python":
            assert next_language == "text", "a Python example is followed by what it prints"
            found.append((content, next_content))
    return found


WITH_EXAMPLES = [path for path in DOCUMENTS if examples(path)]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_the_examples_print_what_the_page_shows(
    path: Path, tmp_path: Path, needs: Callable[[str], Path]
) -> None:
    needs("nc")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    with Server(tmp_path / "data") as server:
        environment["KARMACTL_NODES"] = f"127.0.0.1:{server.port}"
        for program, expected in examples(path):
            text = program.replace("8080", str(server.port))
            command = [sys.executable, "-c", text] if "\n" in program else ["bash", "-c", text]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                env=environment,
                timeout=30,
            )
            assert (done.stdout, done.stderr) == (expected, ""), program


def test_the_readme_shows_both_ways_to_talk_to_a_server() -> None:
    languages = {language for language, _ in fences(README.read_text())}
    assert {"console", "python"} <= languages
