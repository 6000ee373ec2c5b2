"""Names on the dashboard: none is read as markup, and none reaches the terminal as a control sequence."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest
from rich.text import Text
from textual.app import App
from textual.content import Content

import karma_tui
from karma_tui.screens.modals import Confirm, Explain, LimitPrompt
from karma_tui.target import Target
from karma_tui.widgets.chart import Days, Graph
from karma_tui.widgets.plain import Plain, entitle, say

FOLDER = Path(karma_tui.__file__).parent
ODD = (
    "x[/red]",
    "[@click=app.quit]x[/]",
    "[",
    "[bold]",
    "[/]",
    "$x",
    "[link=file:///]x",
    "\x1b]0;x\x07",
    "a\x9b2J\u202eb",
)


def readable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@pytest.mark.parametrize("odd", ODD)
def test_a_name_is_shown_as_it_is_and_ends_no_screen(odd: str) -> None:
    async def show() -> None:
        app: App[None] = App()
        async with app.run_test(notifications=True) as pilot:
            plain = Plain(odd)
            lines = Plain(Text(f"a\n{odd}", "bold"))
            await app.mount(plain, lines, Graph(odd, str), Days(odd, str))
            say(app, odd, title=odd)
            say(plain, odd, severity="error")
            entitle(plain, odd, odd)
            for screen in (
                LimitPrompt(odd, 1),
                Explain(odd, [(odd, odd)], odd),
                Confirm(odd, odd, odd, Target(("h:1",))),
            ):
                app.push_screen(screen)
                await pilot.pause()
                app.pop_screen()
            await pilot.pause()
            assert plain.visual == Content(readable(odd))
            assert {notice.message for notice in app._notifications} == {readable(odd)}
            strips = app.screen._compositor.render_strips()
            drawn = "".join(segment.text for strip in strips for segment in strip)
            assert drawn.isprintable()
            assert readable(odd) in drawn

    asyncio.run(show())


def calls(tree: ast.AST) -> list[str]:
    """What a module does that Textual may read as markup."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"notify", "from_markup", "render_str"}:
            found.append(node.attr)
        if isinstance(node, ast.Name | ast.alias) and "Static" in {
            getattr(node, "id", ""),
            getattr(node, "name", ""),
        }:
            found.append("Static")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {target.attr for target in targets if isinstance(target, ast.Attribute)}
            found += sorted(names & {"border_title", "border_subtitle", "tooltip", "sub_title"})
    return found


def test_only_one_module_writes_where_markup_is_read() -> None:
    found = {
        str(path.relative_to(FOLDER)): calls(ast.parse(path.read_text()))
        for path in FOLDER.rglob("*.py")
        if path.name != "plain.py"
    }
    # The keys of a screen are buttons, of markup with variables.
    assert {name: what for name, what in found.items() if what} == {"widgets/chrome.py": ["from_markup"]}
    assert calls(ast.parse("self.notify(f'{x}')\nw.border_title = x\ny = Static(x)")) == [
        "border_title",
        "notify",
        "Static",
    ]
