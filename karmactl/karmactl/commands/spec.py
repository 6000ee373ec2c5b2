"""spec and version: karmactl described for programs."""

from __future__ import annotations

from typing import Any

from karma import __version__
from karmactl import table
from karmactl.diagnostics import MEANINGS
from karmactl.output import Shown, as_json, said
from karmactl.run import Run
from karmactl.settings import GLOBALS
from karmactl.table.entries import Command

NAGIOS = {0: "ok", 1: "warning", 2: "critical", 3: "unknown"}


def spec(run: Run) -> str | dict[str, Any]:
    """Describe every command. It is JSON whatever --output says, except as JSON lines."""
    data = {
        "name": "karmactl",
        "version": __version__,
        "exit_codes": {str(int(code)): meaning for code, meaning in MEANINGS.items()},
        "global_options": [
            {
                "name": setting.flag,
                "short": f"-{setting.short}" if setting.short else None,
                "kind": setting.kind,
                "help": setting.help,
                "environment": setting.env or None,
                "in_file": setting.in_file,
                "many": setting.many,
                "choices": list(setting.choices),
            }
            for setting in GLOBALS
        ],
        "commands": [describe(command) for command in table.COMMANDS],
    }
    if run.output.form == "table":
        return as_json(data, indent=2)
    return data


def describe(command: Command) -> dict[str, Any]:
    """Return one command of the specification."""
    return {
        "name": command.name,
        "help": command.help,
        "details": command.details or None,
        "effect": command.effect,
        "token": command.token,
        "operations": list(command.ops),
        "arguments": [_plain(argument) for argument in command.arguments],
        "options": [
            {
                **_plain(option),
                "name": f"--{option.name}",
                "short": f"-{option.short}" if option.short else None,
            }
            for option in command.options
        ],
        "confirmation": command.danger or None,
        "can_watch": command.can_watch,
        "can_wait": command.can_wait,
        "output": {
            "shape": command.shape.kind,
            "fields": [{"name": column.name, "kind": column.kind} for column in command.shape.columns],
        },
        "exit_codes": {str(code): text for code, text in NAGIOS.items()} if command.name == "check" else None,
        "examples": [
            {"command": f"karmactl {line}", "help": text or None} for line, text in command.examples
        ],
    }


def _plain(entry: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in entry._asdict().items()
    }


def version(_run: Run) -> Shown:
    """Print the version."""
    return said(f"karmactl {__version__}", {"version": __version__})
