"""karma-playbook.5: from the schema of playbooks and the table of their actions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roff import Markup, Page, bold, italic, joined, sentence

import karma_playbooks
from karma import __version__
from karma_playbooks.catalog import ACTIONS, Action
from karma_playbooks.format import SCOPES
from karma_playbooks.schema import PARAM_KINDS, SCHEMA
from karma_playbooks.values import CONNECTIVES, OPERATORS
from karmactl.commands.playbooks import TEMPLATE

_MORE = {
    "playbook": "its name: small letters, digits and dashes",
    "title": "what it is for, in a sentence",
    "details": "more about it",
    "params": "what the operator may choose, by name: see PARAMETERS",
    "steps": "what is done, in order: see STEPS",
    "id": "its name, by which later steps refer to it",
    "action": "what is done: see ACTIONS",
    "args": "the action's arguments, by name",
    "targets": "the nodes it is done to: see TARGETS",
    "retry": "`times` to try again, and seconds to `wait` between tries",
}
"""Of keys that the schema does not describe."""
_OWN = {"params": "the name of a parameter", "steps": "the id of an earlier step, and what its action tells"}
"""What stands behind these in references."""
_PLACES = {"karma": "at the node's port", "host": "on the node's host", "here": "in karmactl"}


def playbook(edited: str) -> Page:
    """Return the page of the format."""
    page = Page("karma-playbook", 5, "playbooks of karmactl", version=__version__, edited=edited)
    page.heading("SYNOPSIS")
    page.synopsis([bold("$XDG_CONFIG_HOME/karmactl/playbooks/*.yml")])
    page.heading("DESCRIPTION")
    page.paragraph(
        "A playbook says how a piece of work on a fleet is done: steps, how each is seen to have happened, "
        "and what takes it back. karmactl-playbook(1) plans it, shows the plan, asks, and carries it out. "
        "`karmactl playbook new NAME` writes one to begin with; `karmactl playbook lint FILE` names what is "
        "wrong by file and line; `karmactl playbook lint --schema` prints the JSON Schema.",
        "The format is YAML without its surprises: no aliases, no tags, no keys given twice, no `yes` that "
        "turns into true. There are no expressions and no code in it.",
        "A step that changes something needs `verify`, and `undo` or `irreversible`. Between a pause and a "
        "promotion no step may use a host, a webhook or a person, because writers wait. No step may promote "
        "without an earlier one that fences.",
    )
    page.heading("KEYS")
    page.paragraph("What has a question mark here and below may be left out.")
    _keys(page, SCHEMA)
    page.heading("STEPS")
    _keys(page, SCHEMA["$defs"]["step"])
    page.paragraph(
        "Calls of `verify` and `undo` have `action`, `args` and `targets`; without targets they are those of "
        "the step."
    )
    page.heading("PARAMETERS")
    page.paragraph(
        f"Each has a `kind` and a `help`, and may have a `default`, without which it must be given: `--param "
        f"NAME=VALUE`. Kinds are {_words(PARAM_KINDS)}."
    )
    page.heading("TARGETS")
    page.paragraph(
        "A node's name, a reference to one or several, a list of these, or `{of: TARGETS, except: TARGETS}`. "
        "Without targets an action is done once, here."
    )
    page.heading("VALUES")
    page.item(bold("{ref: steps.drain.lsn}"), "The value itself, whatever its type.")
    page.item(bold('"epoch ${cluster.next_epoch}"'), "A text with references in it; `$$` is a dollar.")
    page.item(
        bold("{eq: [{ref: params.mode}, fast]}"),
        f"A condition: one of {_words(OPERATORS)} with two operands; "
        f"{_words(CONNECTIVES)} put conditions together.",
    )
    page.paragraph("A reference begins with one of:")
    for scope, names in SCOPES.items():
        page.item(bold(scope), f"Then {_OWN[scope] if names is None else _words(sorted(names))}.")
    page.heading("ACTIONS")
    for action in ACTIONS:
        _action(page, action)
    page.heading("ENVIRONMENT")
    page.items(
        {
            "XDG_CONFIG_HOME": "Where own playbooks are: in `karmactl/playbooks/` below it, or below "
            "`~/.config`."
        }
    )
    page.heading("FILES")
    page.items(
        {
            "$XDG_CONFIG_HOME/karmactl/playbooks/*.yml": "Own playbooks, found by name. Others are named by "
            "their path.",
        }
    )
    page.heading("EXIT STATUS")
    page.paragraph(
        "`karmactl playbook lint` ends with 2 when something is wrong; for all others see "
        "karmactl-playbook(1)."
    )
    page.heading("EXAMPLES")
    page.example("What `karmactl playbook new nightly-look` writes:", TEMPLATE.format(name="nightly-look"))
    fence = Path(karma_playbooks.__file__).with_name("books") / "fence.yml"
    page.example("One of ours, which changes something:", fence.read_text(encoding="utf-8"))
    page.see_also("karmactl-playbook(1)", "karmactl(1)", "karma-protocol(7)")
    return page


def _keys(page: Page, schema: Mapping[str, Any]) -> None:
    for name, about in schema["properties"].items():
        words = f"One of {_words(about['enum'])}." if "enum" in about and name != "action" else ""
        tag = joined(bold(name), Markup("" if name in schema["required"] else "?"))
        page.item(tag, sentence(about.get("description") or _MORE[name]), words)


def _words(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _action(page: Page, action: Action) -> None:
    page.subheading(action.name)
    facts = [action.help, f"Done {_PLACES[action.place]}."]
    facts.append("Changes something." if action.changes else "Changes nothing.")
    if action.outputs:
        facts.append(f"Tells {_words(action.outputs)}.")
    page.paragraph(" ".join(facts))
    for arg in action.args:
        name = joined(bold(arg.name), Markup("" if arg.required else "?"))
        page.item(joined(name, italic(arg.kind), by=" "), sentence(arg.help))
