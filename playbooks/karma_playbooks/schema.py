"""The JSON Schema (2020-12) of a playbook, made from the action table, and documents held against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from karma_playbooks.catalog import ACTIONS, EXPECTABLE, Action
from karma_playbooks.strict import Document, Path
from karma_playbooks.values import CONNECTIVES, OPERATORS

PARAM_KINDS = ("node", "text", "number", "flag", "words")
_ID = "^[a-z][a-z0-9-]{0,60}$"
_REFERENCE = {
    "type": "object",
    "properties": {"ref": {"type": "string"}},
    "required": ["ref"],
    "additionalProperties": False,
}
_CONDITION = {
    "oneOf": [
        {"type": "boolean"},
        {"$ref": "#/$defs/reference"},
        *(
            {
                "type": "object",
                "properties": {name: {"type": "array", "minItems": 2, "maxItems": 2}},
                "required": [name],
                "additionalProperties": False,
            }
            for name in OPERATORS
        ),
        *(
            {
                "type": "object",
                "properties": {
                    name: {"$ref": "#/$defs/condition"}
                    if name == "not"
                    else {"type": "array", "items": {"$ref": "#/$defs/condition"}}
                },
                "required": [name],
                "additionalProperties": False,
            }
            for name in CONNECTIVES
        ),
    ]
}
_TARGETS = {
    "description": "names of nodes, references to one or several, or those of `of` without those of `except`",
    "anyOf": [
        {"type": "string"},
        {"$ref": "#/$defs/reference"},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/reference"}]}},
        {
            "type": "object",
            "properties": {"of": {"$ref": "#/$defs/targets"}, "except": {"$ref": "#/$defs/targets"}},
            "required": ["of", "except"],
            "additionalProperties": False,
        },
    ],
}
_KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "node": {"type": "string"},
    "number": {"type": "number", "minimum": 0},
    "flag": {"type": "boolean"},
    "words": {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"type": ["string", "number"]}, _REFERENCE]},
    },
    "fields": {
        "type": "object",
        "minProperties": 1,
        "properties": {name: {} for name in sorted(EXPECTABLE)},
        "additionalProperties": False,
    },
}


def _args(action: Action) -> dict[str, Any]:
    properties = {}
    for arg in action.args:
        about = _KINDS.get(arg.kind, {"$ref": "#/$defs/condition"})
        properties[arg.name] = {"anyOf": [{"$ref": "#/$defs/reference"}, about], "description": arg.help}
    required = [arg.name for arg in action.args if arg.required]
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _by_action() -> Iterator[dict[str, Any]]:
    for action in ACTIONS:
        needs_args = any(arg.required for arg in action.args)
        yield {
            "if": {"properties": {"action": {"const": action.name}}, "required": ["action"]},
            "then": {"properties": {"args": _args(action)}, **({"required": ["args"]} if needs_args else {})},
        }


_CALL = {
    "action": {"enum": [action.name for action in ACTIONS]},
    "args": {"type": "object"},
    "targets": {"$ref": "#/$defs/targets"},
}
_STEP = {
    "id": {"type": "string", "pattern": _ID},
    "title": {"type": "string", "description": "what it is for, in a sentence"},
    "needs": {"type": "array", "items": {"type": "string"}, "description": "earlier steps it builds on"},
    **_CALL,
    "when": {"$ref": "#/$defs/condition", "description": "left out unless this holds when it is planned"},
    "verify": {
        "type": "array",
        "items": {"$ref": "#/$defs/call"},
        "minItems": 1,
        "description": "how it is seen that it happened: actions that change nothing",
    },
    "undo": {
        "type": "array",
        "items": {"$ref": "#/$defs/call"},
        "minItems": 1,
        "description": "what takes it back, and how that is seen",
    },
    "irreversible": {"type": "string", "minLength": 1, "description": "why nothing takes it back"},
    "timeout": {"type": "number", "exclusiveMinimum": 0, "description": "seconds; 60 if left out"},
    "retry": {
        "type": "object",
        "properties": {
            "times": {"type": "integer", "minimum": 1, "maximum": 100},
            "wait": {"type": "number", "minimum": 0, "description": "seconds between tries"},
        },
        "required": ["times"],
        "additionalProperties": False,
    },
    "parallel": {"type": "integer", "minimum": 1, "description": "nodes at once; 1 if left out"},
    "approval": {"type": "boolean", "description": "ask the operator before it"},
}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A playbook of karmactl",
    "type": "object",
    "properties": {
        "playbook": {"type": "string", "pattern": _ID},
        "title": {"type": "string", "minLength": 1},
        "details": {"type": "string"},
        "loses": {
            "enum": ["nothing", "what no follower has", "the branch"],
            "description": "which entries it gives up: none, those only the master had, or a node's own",
        },
        "params": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
            "additionalProperties": {
                "type": "object",
                "properties": {
                    "kind": {"enum": list(PARAM_KINDS)},
                    "help": {"type": "string", "minLength": 1},
                    "default": {},
                },
                "required": ["kind", "help"],
                "additionalProperties": False,
            },
        },
        "steps": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}},
    },
    "required": ["playbook", "title", "loses", "steps"],
    "additionalProperties": False,
    "$defs": {
        "reference": _REFERENCE,
        "condition": _CONDITION,
        "targets": _TARGETS,
        "call": {
            "type": "object",
            "properties": _CALL,
            "required": ["action"],
            "additionalProperties": False,
            "allOf": list(_by_action()),
        },
        "step": {
            "type": "object",
            "properties": _STEP,
            "required": ["id", "action"],
            "additionalProperties": False,
            "allOf": list(_by_action()),
        },
    },
}
"""What `karmactl playbook lint --schema` prints, for editors."""


SHOWN_LETTERS = 60


def check(document: Document) -> None:
    """Note everything in a document that is not as the schema says."""
    for error in Draft202012Validator(SCHEMA).iter_errors(document.value):
        path: Path = tuple(error.absolute_path)
        document.blame(_blamed(error, path), _words(error, path))


def _blamed(error: Any, path: Path) -> Path:
    """The line of an unknown key is its own, not that of what it is in."""
    if error.validator == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema.get("properties", {})))
        return (*path, unknown[0]) if unknown else path
    return path


def _words(error: Any, path: Path) -> str:
    where = ".".join(str(part) for part in path)
    name = f"{where}: " if where else ""
    match error.validator:
        case "additionalProperties":
            known = sorted(error.schema.get("properties", {}))
            unknown = ", ".join(sorted(set(error.instance) - set(known)))
            return f"{name}unknown: {unknown}; known are {', '.join(known) or 'none'}"
        case "required":
            return f"{name}{error.message}"
        case "anyOf" | "oneOf":
            return f"{name}{_quoted(error.instance)} does not fit: it takes {_takes(error)}"
    return name + str(error.message).replace(repr(error.instance), _quoted(error.instance))


def _quoted(value: Any) -> str:
    """Return a value as it is shown: cut, for it may be all of a file."""
    text = repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def _takes(error: Any) -> str:
    kinds = []
    for each in error.validator_value:
        kind = each.get("type")
        if "$ref" in each:
            kinds.append(each["$ref"].rpartition("/")[2])
        elif kind == "object" and each.get("required"):
            kinds.append(f"{{{each['required'][0]}: …}}")
        elif kind:
            kinds.append(str(kind))
    return " or ".join(dict.fromkeys(kinds))
