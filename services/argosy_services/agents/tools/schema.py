"""Tools whose arguments are described by a JSON schema from outside: of the caller, or of another program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from argosy_services.agents.tools.base import Effect, InvalidArgumentsError, ToolError

MAX_SCHEMA_BYTES = 16 << 10
MAX_DEPTH = 12

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

# What a schema leaves open: a model that repeats itself must come to an end within a call.
MAX_STRING_CHARS = 200
MAX_LIST_ITEMS = 16
MAX_INTEGER = 10**15

# Python's regular expressions can take for ever where the engine's, which the arguments were written under, cannot.
_NOT_CHECKED_AGAIN = ("pattern", "patternProperties")
# Keywords that hold values, or what has been put in place.
_VALUES = ("enum", "const", "default", "examples", "$defs", "definitions")


class SchemaRefusedError(ValueError):
    """A schema cannot be used for a tool; the message says why, as the end of a sentence."""


class SchemaTool:
    """A tool with a JSON schema. Subclasses say how it runs."""

    timeout_s: float = 30.0
    per_minute: int = 0
    trusted: bool = False
    needs_approval: bool = False

    def __init__(self, name: str, description: str, parameters: Mapping[str, object], effect: Effect) -> None:
        """Raises SchemaRefusedError."""
        self.name = name
        self.description = description
        self.effect = effect
        self.parameters = usable(parameters)
        self._validator = Draft202012Validator(_checkable(self.parameters))

    @property
    def shown(self) -> Mapping[str, Any]:
        """All of the schema."""
        return self.parameters

    def validate(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """The arguments themselves. Raises InvalidArgumentsError."""
        problems = [
            f"{problem.json_path}: {problem.message[:200]}"
            for problem in self._validator.iter_errors(cast(Any, arguments))
        ]
        if problems:
            raise InvalidArgumentsError("; ".join(problems[:5]))
        return arguments


class ClientTool(SchemaTool):
    """A tool that the caller of a run carries out."""

    async def run(self, arguments: Any) -> str:
        """Never called: the run waits for its caller."""
        raise ToolError("this tool is carried out by the caller of the run")


def usable(schema: Mapping[str, object]) -> dict[str, Any]:
    """The schema with its definitions in place of references, so that it can stand inside another one, and with bounds
    where it has none: 200 characters of a text, 16 items of a list, 15 digits of an integer.

    Raises SchemaRefusedError for what is no schema of an object, too large, too deep, or refers to itself or elsewhere.
    """
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise SchemaRefusedError(f"has more than {MAX_SCHEMA_BYTES} bytes")
    definitions = {
        f"#/{place}/{name}": definition
        for place in ("$defs", "definitions")
        for name, definition in _mapping(schema.get(place, {})).items()
    }
    inlined = _bounded(_inlined({"type": "object", "properties": {}, **schema}, definitions, 0))
    result = {key: value for key, value in inlined.items() if key not in ("$defs", "definitions", "$schema", "title")}
    if result["type"] != "object":
        raise SchemaRefusedError("is not of type object")
    try:
        Draft202012Validator.check_schema(result)
    except SchemaError as error:
        raise SchemaRefusedError(f"is no JSON schema: {error.message[:200]}") from error
    if len(json.dumps(result)) > 4 * MAX_SCHEMA_BYTES:
        raise SchemaRefusedError("is too large with its definitions in place")
    return result


def _inlined(node: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    if depth > MAX_DEPTH * 2:
        raise SchemaRefusedError(f"is nested more than {MAX_DEPTH} deep, or refers to itself")
    if isinstance(node, list):
        return [_inlined(item, definitions, depth + 1) for item in node]
    if not isinstance(node, Mapping):
        return node
    if "$ref" in node:
        target = definitions.get(str(node["$ref"]))
        if target is None:
            raise SchemaRefusedError(f"refers to {str(node['$ref'])[:100]}, which it does not define")
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return _inlined({**_mapping(target), **rest}, definitions, depth + 1)
    return {key: value if key in _VALUES else _inlined(value, definitions, depth + 1) for key, value in node.items()}


def _bounded(node: Any) -> Any:
    if isinstance(node, list):
        return [_bounded(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: value if key in _VALUES else _bounded(value) for key, value in node.items()}
    if "enum" in made or "const" in made:
        return made
    match made.get("type"):
        case "string" if not {"pattern", "format"} & made.keys():
            return {"maxLength": MAX_STRING_CHARS, **made}
        case "array":
            return {"maxItems": max(MAX_LIST_ITEMS, made.get("minItems", 0)), **made}
        case "integer":
            lowest = {"minimum": -MAX_INTEGER} if "exclusiveMinimum" not in made else {}
            highest = {"maximum": MAX_INTEGER} if "exclusiveMaximum" not in made else {}
            return {**lowest, **highest, **made}
    return made


def _mapping(node: object) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise SchemaRefusedError("has definitions that are no objects")
    return node


def _checkable(node: Any) -> Any:
    if isinstance(node, list):
        return [_checkable(item) for item in node]
    if isinstance(node, dict):
        return {
            key: _checkable(value)
            for key, value in node.items()
            if key not in _NOT_CHECKED_AGAIN or not _is_rule(value)
        }
    return node


def _is_rule(value: object) -> bool:
    # A property may be named "pattern": its value is a schema of its own, that of the keyword a string.
    return isinstance(value, str) or (isinstance(value, dict) and "type" not in value)
