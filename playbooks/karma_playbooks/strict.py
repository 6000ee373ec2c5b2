"""YAML, strictly: one document of plain mappings, lists, texts, numbers, true, false and null, with its
lines.

Refused, because each has cost somebody a night: keys given twice, anchors and aliases, tags, and words that
YAML 1.1 takes for something else than they look like (`no`, `010`, `1:30`, `2026-05-05`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

Path = tuple[str | int, ...]
MAX_BYTES = 1_000_000

_ODD_WORD = re.compile(r"y|n|yes|no|on|off|true|false|null", re.IGNORECASE)
_PLAIN_WORD = frozenset({"true", "false", "null"})
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_ODD_NUMBER = re.compile(
    r"[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9]*)?|0[0-9xob].*|\+[0-9].*|[-+]?[0-9][0-9_.]*[eE_].*|[-+]?\.[0-9].*|"
    r"[0-9]+\.|\d{4}-\d\d?-\d\d?.*|[-+]?\.(?:inf|nan)",
    re.IGNORECASE,
)


class Problem(NamedTuple):
    """What is wrong, and where: `FILE:LINE`."""

    place: str
    text: str


@dataclass(slots=True)
class Document:
    """A document's value, and the line of each of its parts by path."""

    file: str
    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> str:
        """Return where a part is, or the nearest part around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.file}:{self.lines.get(path, 1)}"

    def blame(self, path: Path, text: str) -> None:
        """Note a problem of a part."""
        self.problems.append(Problem(self.place(path), text))


def load(text: str, file: str) -> Document:
    """Return a document; whatever is wrong is among its problems."""
    document = Document(file)
    if len(text.encode()) > MAX_BYTES:
        document.problems.append(Problem(f"{file}:1", f"it is longer than {MAX_BYTES} bytes"))
        return document
    try:
        _refuse_events(document, text)
        nodes = list(yaml.compose_all(text, Loader=yaml.BaseLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        what = getattr(error, "problem", None) or "it is no YAML"
        document.problems.append(Problem(f"{file}:{line}", f"it is no YAML: {what}"))
        return document
    if len(nodes) != 1:
        document.problems.append(Problem(f"{file}:1", f"it holds {len(nodes)} documents; one is wanted"))
    elif not document.problems:
        document.value = _value(document, nodes[0], ())
    return document


def _refuse_events(document: Document, text: str) -> None:
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        place = f"{document.file}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            document.problems.append(Problem(place, f"*{event.anchor} is an alias; write the value out"))
        elif getattr(event, "anchor", None):
            document.problems.append(Problem(place, f"&{event.anchor} is an anchor; write values out"))
        elif getattr(event, "tag", None):
            document.problems.append(Problem(place, f"{event.tag} is a tag; only plain values are taken"))


def _value(document: Document, node: Any, path: Path) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(document, each, (*path, at)) for at, each in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            document.lines[*path, str(key)] = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                document.blame(path, "a key must be a word")
            elif key in found:
                document.blame((*path, key), f"the key {key} is given twice")
            else:
                found[key] = None
                value = _value(document, value_node, (*path, key))
                document.lines[*path, key] = key_node.start_mark.line + 1
                found[key] = value
        return found
    return _scalar(document, node, path)


def _scalar(document: Document, node: Any, path: Path) -> Any:
    text: str = node.value
    if node.style is not None:
        return text
    if text in _PLAIN_WORD or text == "":
        return {"true": True, "false": False}.get(text)
    if _ODD_WORD.fullmatch(text):
        document.blame(
            path, f'{text} may be read as true or false: write true or false, or "{text}" in quotes'
        )
    elif _INTEGER.fullmatch(text):
        return int(text)
    elif _DECIMAL.fullmatch(text):
        return float(text)
    elif _ODD_NUMBER.fullmatch(text):
        document.blame(path, f'{text} is read differently by different programs: put "{text}" in quotes')
    return text
