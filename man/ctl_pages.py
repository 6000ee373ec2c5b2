"""karmactl.1 and a page for each of its groups, from the command table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from roff import Markup, Page, bold, escaped, italic, joined, sentence

from karma import __version__
from karmactl import table
from karmactl.build import effect_text
from karmactl.commands.spec import NAGIOS
from karmactl.diagnostics import MEANINGS, Exit
from karmactl.settings import GLOBALS, Global
from karmactl.table.entries import Argument, Command, Option


class File(NamedTuple):
    """A file or folder of karmactl's; `groups` are those whose page names it, "" the main page."""

    path: str
    about: str
    groups: tuple[str, ...] = ("",)


FILES = (
    File(
        "$XDG_CONFIG_HOME/karmactl/config.toml",
        "Contexts: clusters by name. `karmactl context` writes it.",
        ("", "context"),
    ),
    File(
        "$XDG_CONFIG_HOME/karmactl/playbooks/*.yml", "Own playbooks: see karma-playbook(5).", ("", "playbook")
    ),
    File(
        "$XDG_STATE_HOME/karmactl/journal.db", "What playbook runs intended, did and saw.", ("", "playbook")
    ),
    File(
        "$XDG_STATE_HOME/karmactl/runs/",
        "Files that playbook runs left, such as salvaged entries.",
        ("", "playbook"),
    ),
    File(
        "$XDG_STATE_HOME/karmactl/events/",
        "The event log of this machine.",
        ("", "playbook", "events", "actions"),
    ),
    File("$XDG_STATE_HOME/karmactl/imports/", "Imports that are not finished."),
    File("$XDG_STATE_HOME/karmactl/history, sql_history", "What was typed in the shells."),
    File(
        "$XDG_CACHE_HOME/karmactl/",
        "Snapshots of nodes and decoded ones, for `karmactl sql`; may be deleted.",
        ("", "snapshot"),
    ),
    File("~/.karma-playbook/", "On hosts: commands under way and copies of journals.", ("", "playbook")),
)

VARIABLES = {
    "KARMACTL_TOKEN": "The token, unless `--token-file` or `--token-env` names another one.",
    "NO_COLOR": "Set to anything: no colours.",
    "TERM": "`dumb`: no colours.",
    "COLUMNS": "Width of the terminal, where it does not tell its own.",
    "VISUAL, EDITOR": "The editor that `karmactl context edit` opens; else vi.",
    "XDG_CONFIG_HOME": "The folder above `karmactl/config.toml`; `~/.config` if unset or relative.",
    "XDG_STATE_HOME": "The same for what is remembered; `~/.local/state`.",
    "XDG_CACHE_HOME": "The same for what can be fetched again; `~/.cache`.",
    "SUDO_USER, USER": "Who the journal says carried out a playbook.",
    "HOME": "What ~ stands for.",
}
"""Beside those of the global options."""

GROUPS = tuple(group for group in table.GROUPS if group)


def karmactl(edited: str) -> Page:
    """Return the main page: global options, and every command that has no group."""
    page = Page(
        "karmactl", 1, "command line of karma, a counter database", version=__version__, edited=edited
    )
    page.heading("SYNOPSIS")
    page.synopsis(
        [
            joined(
                bold("karmactl"),
                italic("COMMAND"),
                Markup("[" + italic("ARGUMENTS") + "]"),
                Markup("[" + italic("OPTIONS") + "]"),
                by=" ",
            ),
            joined(bold("karma-tui"), Markup("[" + italic("OPTIONS") + "]"), by=" "),
        ]
    )
    page.heading("DESCRIPTION")
    page.paragraph(
        table.GROUPS[""],
        "The target is `--node`, else KARMACTL_NODES, else `--context`, else KARMACTL_CONTEXT, else the "
        "current context, else 127.0.0.1:8080. Other settings are the option's, else the environment's, else "
        "the context's. Writes go to the master, which is found by asking all nodes; reads go to the first "
        "node that answers.",
        "Data go to standard output, everything said to a person to standard error. `--output` chooses "
        "between a table, JSON, JSON lines and CSV; piped tables have neither colours nor a width. Commands "
        "that change something ask first; where data go away, a name must be typed. Without a terminal "
        "nothing is asked: the command ends with 4 and names the option that was missing.",
        "`karma-tui` is `karmactl tui`.",
    )
    page.heading("OPTIONS")
    page.paragraph("These work before and after every command.")
    for setting in GLOBALS:
        _global(page, setting)
    page.items(
        {"-h, --help": "Explain karmactl, a group or a command.", "-V, --version": "Show the version."}
    )
    page.heading("COMMAND GROUPS")
    for group in GROUPS:
        page.item(joined(bold(f"karmactl-{group}"), Markup("(1)")), table.GROUPS[group])
    for title, commands in table.SECTIONS:
        alone = [command for command in commands if len(command.path) == 1]
        if alone:
            page.heading(f"COMMANDS: {title.upper()}")
            _commands(page, alone)
    page.heading("ENVIRONMENT")
    for setting in GLOBALS:
        if setting.env:
            page.item(
                bold(setting.env),
                f"As `{setting.flag}`" + (", separated by commas." if setting.many else "."),
            )
    page.items(VARIABLES)
    page.heading("FILES")
    _files(page, "")
    page.paragraph("Without the variables these are in `~/.config`, `~/.local/state` and `~/.cache`.")
    page.heading("EXIT STATUS")
    _exits(page)
    page.paragraph(
        "`karmactl check` alone speaks as plugins of Nagios do: "
        + ", ".join(f"{code} {meaning}" for code, meaning in NAGIOS.items())
        + ". A reader of standard output that goes away is no error."
    )
    page.heading("EXAMPLES")
    _examples(page, [command for command in table.COMMANDS if len(command.path) == 1])
    page.see_also(
        *(f"karmactl-{group}(1)" for group in sorted(GROUPS)),
        "karma(1)",
        "karma-playbook(5)",
        "karma-protocol(7)",
    )
    return page


def groups(edited: str) -> Iterator[Page]:
    """Yield the page of each group."""
    for group in GROUPS:
        yield _group(group, edited)


def _group(group: str, edited: str) -> Page:
    commands = [command for command in table.COMMANDS if command.path[0] == group]
    about = table.GROUPS[group].rstrip(".")
    page = Page(f"karmactl-{group}", 1, about[0].lower() + about[1:], version=__version__, edited=edited)
    page.heading("SYNOPSIS")
    page.synopsis(map(_usage, commands))
    page.heading("DESCRIPTION")
    page.paragraph(table.GROUPS[group], "karmactl(1) tells what all commands have in common.")
    page.heading("COMMANDS")
    _commands(page, commands)
    page.heading("OPTIONS")
    page.paragraph("Beside those of each command, karmactl(1) explains these:")
    page.marked_paragraph(joined(*(bold(setting.flag) for setting in GLOBALS), bold("--help"), by=", "))
    page.heading("ENVIRONMENT")
    page.paragraph("karmactl(1) explains these:")
    page.marked_paragraph(
        joined(*map(bold, [*(setting.env for setting in GLOBALS if setting.env), *VARIABLES]), by=", ")
    )
    page.heading("FILES")
    _files(page, group)
    page.heading("EXIT STATUS")
    _exits(page)
    page.heading("EXAMPLES")
    _examples(page, commands)
    page.see_also("karmactl(1)", "karma(1)", *(["karma-playbook(5)"] if group == "playbook" else []))
    return page


# -- Parts -----------------------------------------------------------------------------------------------


def _usage(command: Command) -> Markup:
    words = [_argument(argument) for argument in command.arguments]
    needed = [_flag(option) for option in command.options if option.required]
    return joined(
        bold(f"karmactl {command.name}"), *words, *needed, Markup("[" + italic("OPTIONS") + "]"), by=" "
    )


def _word(argument: Argument) -> str:
    return argument.name.upper() + ("..." if argument.many else "")


def _argument(argument: Argument) -> Markup:
    return italic(_word(argument)) if argument.required else Markup(f"[{italic(_word(argument))}]")


def _flag(option: Option) -> Markup:
    short = joined(bold(f"-{option.short}"), escaped(", ")) if option.short else Markup("")
    return joined(short, bold(f"--{option.name}"), _value(option.kind, option.metavar, option.choices))


def _value(kind: str, metavar: str, choices: Sequence[str]) -> Markup:
    if kind == "flag":
        return Markup("")
    return joined(
        Markup(" "), joined(*map(bold, choices), by="|") if choices else italic(metavar or kind.upper())
    )


def _global(page: Page, setting: Global) -> None:
    short = joined(bold(f"-{setting.short}"), escaped(", ")) if setting.short else Markup("")
    tag = joined(short, bold(setting.flag), _value(setting.kind, setting.metavar, setting.choices))
    also = [f"`{setting.env}`"] if setting.env else []
    also += [f"`{setting.key}` of a context"] if setting.in_file else []
    page.item(tag, sentence(setting.help), f"Also {' and '.join(also)}." if also else "")


def _commands(page: Page, commands: Sequence[Command]) -> None:
    for command in commands:
        words = [f"[{_word(each)}]" if not each.required else _word(each) for each in command.arguments]
        page.subheading(" ".join(["karmactl", command.name, *words]))
        page.paragraph(command.help, *(part for part in command.details.split("\n\n") if part))
        facts = [effect_text(command)]
        if command.token:
            facts.append(f"Where the server wants a token, a {command.token} token will do.")
        page.paragraph(" ".join(facts))
        for argument in command.arguments:
            if argument.help or argument.choices:
                page.item(_argument(argument), sentence(argument.help), _one_of(argument.choices))
        for option in command.options:
            default = "" if option.default is None else f"It is `{option.default}` if left out."
            page.item(
                _flag(option), sentence(option.help), default, "It must be given." if option.required else ""
            )


def _one_of(choices: Sequence[str]) -> str:
    return f"One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""


def _files(page: Page, group: str) -> None:
    found = {file.path: file.about for file in FILES if group in file.groups}
    page.items(found or {FILES[0].path: FILES[0].about})


def _exits(page: Page) -> None:
    for code in Exit:
        page.item(bold(str(int(code))), sentence(MEANINGS[code]))


def _examples(page: Page, commands: Sequence[Command]) -> None:
    for command in commands:
        for line, text in command.examples:
            page.example(sentence(text) or command.help, f"karmactl {line}")
