"""Python functions as tools: the schema comes from type hints, the description from the docstring."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, overload

from argosy.types.agents import ToolEffect

_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_ENTRY = re.compile(r"\s*(\w+)\s*(?:\([^)]*\))?:\s*(.+)")


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that agents may call through their caller. Calling it calls the function."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    effect: ToolEffect
    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...


@overload
def tool(
    *, name: str = ..., description: str = ..., effect: Literal["read", "write"] = ...
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    effect: Literal["read", "write"] = "write",
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Makes a tool of a function: `@tool`, or `@tool(effect="read")` for one that may be called again after a crash.

    Parameters need type hints: str, int, float, bool, None, Literal, list, dict with texts as keys,
    and unions of them. The docstring's first paragraph is the description, its section "Args:" describes parameters.
    Raises TypeError for any other function.
    """

    def make(given: Callable[..., Any]) -> FunctionTool:
        text, arguments = _documented(inspect.getdoc(given) or "")
        parameters = _parameters(given, arguments)
        return FunctionTool(
            name or given.__name__, description or text or given.__name__, parameters, ToolEffect(effect), given
        )

    return make if function is None else make(function)


def as_tool(given: FunctionTool | Callable[..., Any]) -> FunctionTool:
    """A tool, or a function as one with effects. Raises TypeError for anything else."""
    if isinstance(given, FunctionTool):
        return given
    if not callable(given):
        raise TypeError(f"tools must be names, functions or tools (given: {type(given).__name__})")
    return tool(given)


def _parameters(function: Callable[..., Any], described: Mapping[str, str]) -> dict[str, Any]:
    hints = get_type_hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or name not in hints:
            raise TypeError(f"parameter {name} of {function.__name__} must have a name of its own and a type hint")
        properties[name] = _schema(hints[name], f"parameter {name} of {function.__name__}")
        if name in described:
            properties[name] = {**properties[name], "description": described[name]}
        if parameter.default is parameter.empty:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(part, where) for part in inner]}
    if origin in (list, tuple, Sequence) or hint is list:
        return {"type": "array", **({"items": _schema(inner[0], where)} if inner else {})}
    if origin in (dict, Mapping) or hint is dict:
        return {"type": "object", **({"additionalProperties": _schema(inner[1], where)} if inner else {})}
    raise TypeError(f"{where} has a type that no JSON schema is made of: {hint!r}")


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring in one line, and what its section "Args:" says of each parameter."""
    head, _, section = text.partition("Args:")
    arguments: dict[str, str] = {}
    for line in section.splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            arguments[entry[1]] = entry[2].strip()
    return " ".join(head.strip().split("\n\n")[0].split()), arguments
