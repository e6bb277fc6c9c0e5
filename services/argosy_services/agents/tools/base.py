"""What a tool is, and how it is called: arguments checked, time bounded, failures told to the model."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import GenerateJsonSchema

MAX_OBSERVATION_CHARS = 2_000


class Effect(enum.Enum):
    """What calling a tool does to the world: READ changes nothing and may be repeated, WRITE may not."""

    READ = "read"
    WRITE = "write"


class Tool(Protocol):
    """Something that a model may call.

    `description` is written for the model, `parameters` is a JSON schema of type object, and `shown` what a model reads
    of it. `timeout_s` bounds one call; it can only end a tool that awaits, so work that blocks belongs on a thread.
    `per_minute` bounds how often the server calls it; 0 does not. What a tool says that is not `trusted` is shown to
    the model as data.
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...
    @property
    def shown(self) -> Mapping[str, Any]: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def effect(self) -> Effect: ...
    @property
    def per_minute(self) -> int: ...
    @property
    def trusted(self) -> bool: ...
    @property
    def needs_approval(self) -> bool: ...

    def validate(self, arguments: Mapping[str, object]) -> Any:
        """The arguments in the form that `run` takes. Raises InvalidArgumentsError."""
        ...

    async def run(self, arguments: Any) -> str:
        """What the tool found. Raises ToolError where it cannot do what is asked."""
        ...


class ToolError(Exception):
    """A tool cannot do what it was asked. The message is for the model: what is wrong, and what would be right."""


class InvalidArgumentsError(Exception):
    """Arguments that the schema of a tool does not allow. The message is for the model."""


class Arguments(BaseModel):
    """The arguments of a tool. The JSON schema of the class is what the model must follow, its validation the check
    that it did; so every text and every list has a greatest length.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class BuiltInTool:
    """What the tools of this package have in common: arguments as a class, and defaults for the rest."""

    name: str
    description: str
    arguments: type[Arguments]
    timeout_s: float = 5.0
    effect: Effect = Effect.READ
    per_minute: int = 0
    trusted: bool = True
    needs_approval: bool = False
    well_known: Collection[str] = ()
    """Arguments whose possible values a model knows without a list of them."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of the arguments."""
        schema = self.arguments.model_json_schema(schema_generator=_Untitled)
        return {key: value for key, value in schema.items() if key not in ("title", "description")}

    @property
    def shown(self) -> Mapping[str, Any]:
        """The same without the lists of values that are well known, which a prompt would have to carry."""
        parameters = self.parameters
        properties = {
            name: {key: value for key, value in schema.items() if key != "enum" or name not in self.well_known}
            for name, schema in parameters["properties"].items()
        }
        return {**parameters, "properties": properties}

    def validate(self, arguments: Mapping[str, object]) -> Arguments:
        """An instance of `arguments`. Raises InvalidArgumentsError."""
        try:
            return self.arguments.model_validate(arguments)
        except ValidationError as error:
            raise InvalidArgumentsError(_problems(error)) from error


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a call: `status` is "ok", "error", "invalid" (arguments) or "timeout"."""

    text: str
    status: str
    seconds: float

    @property
    def is_error(self) -> bool:
        """Whether the text says what went wrong rather than what was found."""
        return self.status != "ok"


async def call(tool: Tool, arguments: Mapping[str, object], *, at_most_s: float) -> ToolResult:
    """Calls a tool with arguments that a model wrote; never with such that are not valid.

    Invalid arguments, a ToolError and a timeout come back as results: the model may do better. Anything else that a
    tool raises is a fault of ours and passes through. The text is whole; `shortened` makes it fit.
    """
    start = time.perf_counter()
    text, status = await _attempt(tool, arguments, min(tool.timeout_s, at_most_s))
    return ToolResult(text, status, time.perf_counter() - start)


async def _attempt(tool: Tool, arguments: Mapping[str, object], timeout_s: float) -> tuple[str, str]:
    try:
        valid = tool.validate(arguments)
    except InvalidArgumentsError as error:
        return str(error), "invalid"
    timer = asyncio.timeout(timeout_s)
    try:
        async with timer:
            return await tool.run(valid), "ok"
    except ToolError as error:
        return str(error), "error"
    except TimeoutError:
        if not timer.expired():
            raise
        return f"{tool.name} did not answer within {timeout_s:g} s", "timeout"


def shortened(text: str) -> str:
    """A text that fits an observation."""
    return text if len(text) <= MAX_OBSERVATION_CHARS else text[: MAX_OBSERVATION_CHARS - 6] + " [...]"


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}" for problem in found)


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
