"""Texts from outside: which may become names, and how people are shown the others. Pure.

A control character steers the terminal of whoever lists the series, and one that is invisible or turns the
direction of writing makes a name look like another one. No new name holds one. Those that Karma 1.0 took stay
what they are, and are spelled out where a message or a log repeats them.
"""

from __future__ import annotations

import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters (bidirectional ones among them), surrogates, separators of lines."""


def is_name(text: str) -> bool:
    """Return whether a text may become the name of something new."""
    return text.isprintable() or not any(unicodedata.category(letter) in _UNSAFE for letter in text)


def spelled_out(text: str, keep: str = "") -> str:
    r"""Return a text that cannot steer a terminal: what is not printable, nor to be kept, as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def spelled_out_json(text: str) -> str:
    """Return JSON that means the same, with every character escaped that is not printable."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n " else _json_escape(letter) for letter in text
    )


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
