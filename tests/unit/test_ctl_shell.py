"""The shell's lines: taken apart, continued, completed, explained."""

import pytest

from karmactl.commands.shell import hint, is_open, proposals, split
from karmactl.diagnostics import CtlError


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        ("ping", False),
        ("get 'a", True),
        ('get "a b" 1', False),
        ("get a \\", True),
        ("get a \\\\", False),
        ("", False),
    ],
)
def test_a_line_goes_on_inside_quotes_and_behind_a_backslash(text: str, goes_on: bool) -> None:
    assert is_open(text) is goes_on


def test_lines_are_taken_apart_as_a_shell_does() -> None:
    assert split("get 'a b'  \\\n 7") == ("get", "a b", "7")
    with pytest.raises(CtlError, match="has no end"):
        split("get 'a")


def words(text: str, *base: str) -> list[str]:
    return [word for word, _, _ in proposals(base, text)]


def test_words_and_options_are_proposed() -> None:
    assert words("snap") == ["snapshot"]
    assert words("series to", "--read-only") == ["top"]
    assert words("series top x --li") == ["--limit"]
    assert words("help wal ") == ["cat", "tail", "stat"]
    assert words("\\t") == ["\\timing"]
    assert words("series list \\\n --ou") == ["--output"]
    assert words("get a 1 --output js") == ["json", "jsonl"]
    # Files are not the table's.
    assert words("import da") == []


def test_a_proposal_replaces_the_word_with_its_quotes() -> None:
    assert proposals((), "series 'to")[0][2] == len("'to")


def test_the_command_being_typed_is_explained() -> None:
    assert hint("series top api").startswith("series top SERIES   List the keys")
    assert hint("sum ") == "sum SERIES [KEY...]   Print what several keys hold together, and each of them."
    assert hint("series") == hint("") == hint("nothing") == ""
