"""From the command table to Click: parsers, help and completion, all made when they are asked for.

Click only parses here: a command's callback returns an `Invocation`, which `cli` carries out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from karma import __version__
from karmactl import table
from karmactl.diagnostics import suggestion, usage
from karmactl.settings import GLOBALS, Global, seconds
from karmactl.table.entries import Argument, Command, Option

U64_MAX = 2**64 - 1
_FLAGS = "karmactl.flags"
MOST_WIDTH = 100
"""Help is no wider: longer lines read badly."""


class Invocation(NamedTuple):
    """A command line, parsed: the command, the global options by key, the handler's parameters."""

    command: Command
    flags: Mapping[str, Any]
    parameters: Mapping[str, Any]


class Help(NamedTuple):
    """A command line that asked for text instead of work."""

    text: str


# -- Values ----------------------------------------------------------------------------------------------


class _Value(click.ParamType[Any]):
    """A kind of value: `parse` raises ValueError with what it takes; `propose` completes it."""

    def __init__(self, name: str, parse: Callable[[str], Any], propose: str = "") -> None:
        self.name = name
        self._parse = parse
        self._propose = propose

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f'"{value}" is not {error}.', param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if not self._propose:
            return super().shell_complete(ctx, param, incomplete)
        from karmactl import completion  # noqa: PLC0415  nothing else needs it

        flags = ctx.meta.get(_FLAGS, {})
        return [
            CompletionItem(text, help=help_text)
            for text, help_text in completion.propose(self._propose, flags, incomplete)
        ]


def _u64(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= U64_MAX):
        raise ValueError("a number of 0 to 2^64-1")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise ValueError("a number above 0")
    return int(text)


def _day(text: str) -> int:
    """A day as the protocol has it, an integer YYYYMMDD."""
    from karma_client.days import day_number  # noqa: PLC0415  help need not load the client
    from karma_client.errors import InvalidArgumentError  # noqa: PLC0415
    from karmactl.days import days_ago  # noqa: PLC0415

    ago = {"today": 0, "yesterday": 1}.get(text)
    digits = text.removeprefix("-").removesuffix("d")
    if ago is None and text == f"-{digits}d" and digits.isascii() and digits.isdigit():
        ago = int(digits)
    try:
        return day_number(text) if ago is None else days_ago(ago)
    except (InvalidArgumentError, OverflowError):
        raise ValueError("a day (UTC), as 2026-05-05, 20260505, today, yesterday or -3d") from None


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError:
        raise ValueError("a time, as 5, 500ms or 2m") from None


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError("a number")
    return value


_TYPES: dict[str, click.ParamType[Any]] = {
    "text": click.STRING,
    "number": _Value("number", _count),
    "float": _Value("number", _float),
    "u64": _Value("number", _u64),
    "day": _Value("day", _day),
    "seconds": _Value("seconds", _seconds),
    "node": _Value("address", str, "node"),
    "series": _Value("series", str, "series"),
    "context": _Value("context", str, "context"),
    "file": _Value("file", str, "file"),
    "operation": _Value("operation", str, "operation"),
    "path": click.Path(),
}


def _type(kind: str, choices: Sequence[str]) -> click.ParamType[Any]:
    return click.Choice(choices) if kind == "choice" else _TYPES[kind]


# -- Parameters ------------------------------------------------------------------------------------------


def _argument(argument: Argument) -> click.Argument:
    metavar = argument.name.upper() + ("..." if argument.many else "")
    return click.Argument(
        [argument.parameter],
        type=_type(argument.kind, argument.choices),
        required=argument.required,
        nargs=-1 if argument.many else 1,
        metavar=metavar if argument.required else f"[{metavar}]",
    )


def _option(option: Option) -> click.Option:
    names = [f"--{option.name}", option.parameter] + ([f"-{option.short}"] if option.short else [])
    if option.kind == "flag":
        return click.Option(names, is_flag=True, default=False, help=option.help)
    # For Click a default of None is one, with which nothing is required any more.
    default = {} if option.default is None else {"default": option.default}
    return click.Option(
        names,
        type=_type(option.kind, option.choices),
        **default,
        show_default=option.default is not None,
        multiple=option.many,
        required=option.required,
        metavar=option.metavar or None,
        help=option.help,
    )


def _global(setting: Global) -> click.Option:
    def remember(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value not in (None, ()):
            flags = ctx.meta.setdefault(_FLAGS, {})
            flags[setting.key] = (*flags.get(setting.key, ()), *value) if setting.many else value

    names = [setting.flag, setting.key] + ([f"-{setting.short}"] if setting.short else [])
    kind = {"is_flag": True} if setting.kind == "flag" else {"type": _type(setting.kind, setting.choices)}
    return click.Option(
        names,
        default=None,
        multiple=setting.many,
        metavar=setting.metavar or None,
        help=setting.help + (f"  [{setting.env}]" if setting.env else ""),
        expose_value=False,
        callback=remember,
        **kind,
    )


def _with_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value and not ctx.resilient_parsing:
        raise HelpAsked(ctx.get_help())


class HelpAsked(Exception):  # noqa: N818  an answer, not an error
    """Somebody asked for help or the version; the text is the argument."""


def _help_option() -> click.Option:
    return click.Option(
        ["--help", "-h"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_with_help,
        help="show this",
    )


def _with_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value and not ctx.resilient_parsing:
        raise HelpAsked(f"karmactl {__version__}")


def _version_option() -> click.Option:
    return click.Option(
        ["--version", "-V"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_with_version,
        help="show the version",
    )


# -- Commands --------------------------------------------------------------------------------------------


class Leaf(click.Command):
    """One command of the table."""

    def __init__(self, entry: Command) -> None:
        self.entry = entry
        own = [*map(_argument, entry.arguments), *map(_option, entry.options)]
        super().__init__(
            entry.path[-1],
            params=[*own, *map(_global, GLOBALS), _help_option()],
            help=entry.help,
            short_help=entry.help.partition(". ")[0].rstrip("."),
            add_help_option=False,
        )

    def invoke(self, ctx: click.Context) -> Invocation:
        """Return what is to be done."""
        return Invocation(self.entry, ctx.meta.get(_FLAGS, {}), ctx.params)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, what it does, arguments, options and examples."""
        entry = self.entry
        words = [
            *(argument.make_metavar(ctx) for argument in self.params if isinstance(argument, click.Argument))
        ]
        formatter.write_usage(ctx.command_path, " ".join([*words, "[OPTIONS]"]))
        formatter.write_paragraph()
        for text in filter(None, (entry.help, entry.details)):
            for paragraph in text.split("\n\n"):
                formatter.write_text(paragraph)
                formatter.write_paragraph()
        formatter.write_text(effect_text(entry))
        _section(
            formatter, "Arguments", [(one.name.upper(), one.help) for one in entry.arguments if one.help]
        )
        own = [param for param in self.params if isinstance(param, click.Option) and param.expose_value]
        _section(formatter, "Options", list(filter(None, (option.get_help_record(ctx) for option in own))))
        if entry.examples:
            with formatter.section("Examples"):
                formatter.write_dl([(f"karmactl {line}", text) for line, text in entry.examples], col_max=48)
        with formatter.section("Options of every command, explained by `karmactl --help`"):
            from textwrap import wrap  # noqa: PLC0415  only help pays for it

            indent = " " * formatter.current_indent
            flags = " ".join(setting.flag for setting in GLOBALS)
            lines = wrap(flags, formatter.width - len(indent), break_on_hyphens=False)
            formatter.write("".join(f"{indent}{line}\n" for line in lines))


def effect_text(entry: Command) -> str:
    """Return in a sentence or two what a command changes, and what it asks before."""
    effects = {
        "local": "Talks to no server.",
        "read": "Changes nothing on the server.",
        "write": "Changes data or state on the server.",
        "operation": "Changes what the operation changes.",
    }
    parts = [effects[entry.effect]]
    if entry.danger == "question":
        parts.append("Asks before it acts; --yes answers.")
    elif entry.danger == "typed":
        parts.append("Data goes away: asks for a name to be typed; --confirm NAME answers.")
    if entry.can_wait:
        parts.append("Takes --wait-until.")
    return " ".join(parts)


def _section(formatter: click.HelpFormatter, title: str, rows: Sequence[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)


class Words(click.Group):
    """A word with commands below it: `karmactl` itself, or `series`. Its commands are built on demand."""

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path
        super().__init__(
            path[-1] if path else "karmactl",
            params=[*map(_global, GLOBALS), _help_option(), *([] if path else [_version_option()])],
            help=table.GROUPS[" ".join(path)],
            add_help_option=False,
            no_args_is_help=False,
            invoke_without_command=True,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the words that may follow."""
        depth = len(self.path)
        return list(
            dict.fromkeys(path[depth] for path in table.BY_PATH if path[:depth] == self.path and path[depth:])
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command or the group of a word, None when there is none."""
        path = (*self.path, cmd_name)
        if path in table.BY_PATH:
            return Leaf(table.BY_PATH[path])
        return Words(path) if " ".join(path) in table.GROUPS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the next word's command. Raises CtlError with proposals for an unknown one."""
        word = args[0]
        if self.get_command(ctx, word) is None and not ctx.resilient_parsing and not word.startswith("-"):
            elsewhere = [f"`karmactl {' '.join(path)}`" for path in table.BY_PATH if path[-1] == word]
            proposals = (
                f"there is {', '.join(elsewhere)};"
                if elsewhere
                else suggestion(word, self.list_commands(ctx))
            )
            name = " ".join((*self.path, word))
            raise usage(
                f'there is no command "{name}"', f"{proposals} `{ctx.command_path} --help` lists all".strip()
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Return what the command below returns, or help when there is none."""
        if not ctx._protected_args and not ctx.args:  # noqa: SLF001  Click has no other way to ask
            return Help(ctx.get_help())
        return super().invoke(ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, and at the top the global options."""
        formatter.write_usage(ctx.command_path, "COMMAND [ARGUMENTS] [OPTIONS]")
        formatter.write_paragraph()
        formatter.write_text(self.help or "")
        for title, words in self._sections(ctx):
            _section(formatter, title, [(word, self._summary(word)) for word in words])
        for title, rows in table.GUIDES.get(" ".join(self.path), ()):
            _section(formatter, title, rows)
        if not self.path:
            options = [option for option in self.params if isinstance(option, click.Option)]
            records = [option.get_help_record(ctx) for option in options]
            _section(
                formatter,
                "Options, before or after the command",
                [(names, text) for names, text in filter(None, records)],
            )
            with formatter.section("Target"):
                formatter.write_text(
                    "--node, else KARMACTL_NODES, else --context, else KARMACTL_CONTEXT, else the current "
                    "context, else 127.0.0.1:8080. Other settings: option, else environment, else the "
                    "context's."
                )

    def _sections(self, ctx: click.Context) -> Iterator[tuple[str, list[str]]]:
        if self.path:
            yield "Commands", self.list_commands(ctx)
            return
        for title, commands in table.SECTIONS:
            yield title, list(dict.fromkeys(command.path[0] for command in commands))

    def _summary(self, word: str) -> str:
        path = (*self.path, word)
        text = table.GROUPS.get(" ".join(path)) or table.BY_PATH[path].help
        return text.partition(". ")[0].rstrip(".")


def root() -> Words:
    """Return `karmactl` as Click sees it."""
    return Words(())
