"""The one way for data into a shell script. Pure.

The texts of scripts are constants. What comes from a playbook, an inventory or an operator enters one only as
words that `word` quotes and as file names that `file_name` encodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote


class UnusableWordError(ValueError):
    """A text that no command can receive as a word."""


def word(text: str) -> str:
    """Return a text as one word of a POSIX shell, whatever is in it.

    Always in quotes, which also keep a reserved word or an assignment from being one. Raises
    UnusableWordError.
    """
    if "\0" in text:
        raise UnusableWordError(f"a command cannot receive {text!a}: it contains a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UnusableWordError(f"a command cannot receive {text!a}: it is not valid UTF-8")
    return "'" + text.replace("'", "'\\''") + "'"


def words(texts: Iterable[object]) -> str:
    """Return the words of a command as a POSIX shell reads them. Raises UnusableWordError."""
    return " ".join(word(str(text)) for text in texts)


def file_name(text: str) -> str:
    """Return a name as one component of a path: percent-encoded where it is not plain, a leading dot too."""
    encoded = quote(text, safe=":", errors="surrogatepass")
    return "%2E" + encoded[1:] if encoded.startswith(".") else encoded or "%"
