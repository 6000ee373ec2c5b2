"""Manual pages in the macros of man(7), from plain text: what groff and mandoc both take without a warning.

Texts are plain; words between `back quotes` become bold. What is bold or italic beyond that comes from
`bold` and `italic` and goes where `Markup` is taken.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import NewType

Markup = NewType("Markup", str)
"""Text in roff's own language."""

WIDTH = 78
"""Of a line of the source; mandoc wants no more than 80 bytes."""
_LETTERS = {
    "\\": "\\e",
    # A bare one may print as a hyphen that no shell takes for a dash, and so on.
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
}


def escaped(text: str) -> Markup:
    """Return plain text as roff has it, in ASCII."""
    return Markup(
        "".join(
            _LETTERS.get(letter) or (letter if letter.isascii() else f"\\[u{ord(letter):04X}]")
            for letter in text
        )
    )


def bold(text: str) -> Markup:
    """Return plain text in bold."""
    return Markup(f"\\fB{escaped(text)}\\fR")


def italic(text: str) -> Markup:
    """Return plain text in italics."""
    return Markup(f"\\fI{escaped(text)}\\fR")


def joined(*parts: Markup, by: str = "") -> Markup:
    """Return markup put together, with a plain text in between."""
    return Markup(escaped(by).join(parts))


def marked(text: str) -> Markup:
    """Return a text with its `quoted` words in bold."""
    words = re.split(r"`([^`]+)`", text)
    return Markup("".join(bold(word) if at % 2 else escaped(word) for at, word in enumerate(words)))


def sentence(text: str) -> str:
    """Return a text as a sentence; nothing stays nothing."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


class Page:
    """One page, written from top to bottom. `edited` is its date, `about` the line of NAME."""

    def __init__(self, name: str, section: int, about: str, *, version: str, edited: str) -> None:
        self.name = name
        self.section = section
        self._lines = [
            ".\\\" Made by `make man` from the program's own tables: change those, not this file.",
            f'.TH {escaped(name.upper())} {section} {edited} "karma {version}" Karma',
        ]
        self.heading("NAME")
        self._fill(Markup(f"{escaped(name)} \\- {marked(about)}"))

    @property
    def text(self) -> str:
        """The source of the page."""
        return "\n".join(self._lines) + "\n"

    def heading(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f'.SH "{escaped(title)}"')

    def subheading(self, title: str) -> None:
        """Begin a part of a section."""
        self._lines.append(f'.SS "{escaped(title)}"')

    def paragraph(self, *texts: str) -> None:
        """Add paragraphs of text."""
        for text in texts:
            self.marked_paragraph(marked(text))

    def marked_paragraph(self, text: Markup) -> None:
        """Add a paragraph of markup."""
        # After a heading a paragraph begins by itself, and mandoc calls the macro superfluous.
        if not self._lines[-1].startswith((".SH", ".SS")):
            self._lines.append(".PP")
        self._fill(text)

    def synopsis(self, usages: Iterable[Markup]) -> None:
        """Add lines that say how something is called, each on a line of its own."""
        for number, usage in enumerate(usages):
            if number:
                self._lines.append(".br")
            self._fill(usage)

    def item(self, tag: Markup, *texts: str) -> None:
        """Add an entry of a list: a tag, and behind it a text."""
        self._lines += [".TP", _safe(tag)]
        # Without a text the next macro would be taken for it.
        self._fill(marked(" ".join(filter(None, texts))) or Markup("\\&"))

    def items(self, rows: Mapping[str, str]) -> None:
        """Add entries whose tags are bold words."""
        for word, text in rows.items():
            self.item(bold(word), text)

    def example(self, text: str, code: str) -> None:
        """Add lines that can be typed or copied, and before them what they do."""
        if text:
            self.paragraph(text)
        if not self._lines[-1].startswith((".SH", ".SS")):
            self._lines.append(".PP")
        self._lines += [
            ".RS 4",
            ".EX",
            *(_safe(escaped(line)) for line in code.rstrip("\n").split("\n")),
            ".EE",
            ".RE",
        ]

    def see_also(self, *names: str) -> None:
        """Add the last section: other pages, as ``karma(1)``."""
        self.heading("SEE ALSO")
        self.paragraph(", ".join(names))

    def _fill(self, text: Markup) -> None:
        lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
        self._lines += [_safe(Markup(line)) for line in lines]


def _safe(line: Markup) -> str:
    """A line that is no request of roff's, whatever it begins with."""
    return f"\\&{line}" if line.startswith((".", "'")) else line
