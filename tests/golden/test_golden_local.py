"""Help of every command, contexts, and what else talks to no server."""

import json
from pathlib import Path

import ctl
import pytest
from ctl import Step

from karmactl import table


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PROD_TOKEN": "secret-1"}


@pytest.mark.parametrize("name", [*table.GROUPS, *(command.name for command in table.COMMANDS)])
def test_help_is_as_it_was(environ: dict[str, str], name: str) -> None:
    steps = [Step(f"{name} --help", columns) for columns in (80, ctl.NARROW)]
    ctl.compare(f"help/{name.replace(' ', '-') or 'karmactl'}", ctl.story(steps, environ))


def test_karmactl_alone_shows_its_help(environ: dict[str, str]) -> None:
    assert ctl.karmactl(environ=environ) == ctl.karmactl("--help", environ=environ)


CONTEXTS: list[str | Step] = [
    "context list",
    "context validate",
    "context add dev --nodes 127.0.0.1:8080",
    "context add prod --nodes db1,db2:8081 --token-from-env PROD_TOKEN --production yes",
    "context add prod --nodes db1",
    "context add broken --nodes db1:99999",
    "context add 'two words' --nodes db1",
    "context list",
    "context list --output json",
    Step("context list", ctl.NARROW),
    "context use prdo",
    "context use prod",
    "context show",
    "context show dev --output csv",
    "context show --node 10.0.0.9 --timeout 2",
    "context edit prod --token-from-file /no/such/file --production no",
    "context edit nothing --production no",
    "context edit --production no",
    "context edit",
    "context show",
    "context validate",
    "ping --context pord",
]


def test_contexts_are_as_they_were(environ: dict[str, str]) -> None:
    ctl.compare("contexts", ctl.story(CONTEXTS, environ))


def test_a_broken_file_of_contexts_is_explained(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "config" / "karmactl" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'current = "prdo"\ncolour = true\n[contexts.prod]\nnodes = ["db1:0"]\n'
        'token = "secret-1"\nproductoin = true\n'
    )
    steps: list[str | Step] = ["ping", "context validate", "context list", "context use prod"]
    text = ctl.story(steps, environ)
    file.write_text("current = \n")
    ctl.compare("contexts-broken", text + "\n" + ctl.story(steps, environ))
    assert "secret-1" not in text


def test_version_and_refusals_are_as_they_were(environ: dict[str, str]) -> None:
    ctl.compare("version", ctl.transcript(("version",), environ) + ctl.story(["--version"], environ))


def test_the_specification_has_every_command(environ: dict[str, str]) -> None:
    found = json.loads(ctl.karmactl("spec", environ=environ).stdout)
    assert [command["name"] for command in found["commands"]] == [command.name for command in table.COMMANDS]
    drop = next(command for command in found["commands"] if command["name"] == "series drop")
    ctl.compare("spec-series-drop", json.dumps(drop, indent=2) + "\n")
    assert set(found) == {"name", "version", "exit_codes", "global_options", "commands"}
