"""What a run may be asked for."""

from __future__ import annotations

from collections.abc import Sequence

from argosy_services.agents.strategies.chain import PLACEHOLDER
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.tools.registry import FINAL_ANSWER
from argosy_services.agents.tools.schema import NAME, ClientTool, SchemaRefusedError
from argosy_services.agents.types import AgentSpec, Strategy
from argosy_services.errors import ArgosyError, Reason, invalid_field
from argosy_services.rpc import validate

MAX_TASK_BYTES = 64 << 10
MAX_STEPS = 64
MAX_TOKENS = 131_072
MAX_SECONDS = 3_600.0
MAX_TOOL_CALLS = 256
MAX_TEMPERATURE = 100.0
MAX_VOTES = 32
MAX_CHAIN = 32
MAX_CLIENT_TOOLS = 64
MAX_PASSAGES = 1_024
MAX_PASSAGE_BYTES = 8 << 10
MAX_DESCRIPTION_BYTES = 2 << 10


def check(spec: AgentSpec) -> None:
    """Raises INVALID_FIELD, INPUT_TOO_LARGE or TOO_MANY_INPUTS."""
    if not spec.task.strip():
        raise invalid_field("spec.task", "must not be empty", limit="at least 1 byte", value=len(spec.task.encode()))
    validate.text_size("spec.task", spec.task, limit_bytes=MAX_TASK_BYTES)
    budget = spec.budget
    validate.number("spec.budget.max_steps", budget.max_steps, low=1, high=MAX_STEPS)
    validate.number("spec.budget.max_tokens", budget.max_tokens, low=1, high=MAX_TOKENS)
    validate.number("spec.budget.max_duration", budget.max_seconds, low=0, high=MAX_SECONDS, above_low=True)
    validate.number("spec.budget.max_tool_calls", budget.max_tool_calls, low=0, high=MAX_TOOL_CALLS)
    validate.number("spec.temperature", spec.temperature, low=0, high=MAX_TEMPERATURE)
    validate.number("spec.votes", spec.votes, low=1, high=MAX_VOTES)
    _check_chain(spec)
    if len(spec.passages) > MAX_PASSAGES:
        validate.count("spec.passages", len(spec.passages), limit=MAX_PASSAGES)
    for place, passage in enumerate(spec.passages):
        validate.text_size(f"spec.passages[{place}]", passage, limit_bytes=MAX_PASSAGE_BYTES)


def client_tools(spec: AgentSpec, taken: Sequence[Tool]) -> list[ClientTool]:
    """The tools that the caller carries out; their names must not be those of `taken`.

    Raises INVALID_FIELD or TOO_MANY_INPUTS.
    """
    if len(spec.client_tools) > MAX_CLIENT_TOOLS:
        validate.count("spec.client_tools", len(spec.client_tools), limit=MAX_CLIENT_TOOLS)
    names = {tool.name for tool in taken} | {FINAL_ANSWER}
    tools: list[ClientTool] = []
    for place, given in enumerate(spec.client_tools):
        field = f"spec.client_tools[{place}]"
        if not NAME.fullmatch(given.name):
            raise invalid_field(f"{field}.name", "is no name for a tool", limit=NAME.pattern, value=given.name)
        if given.name in names:
            raise invalid_field(f"{field}.name", "is taken", limit="a name of its own", value=given.name)
        validate.text_size(f"{field}.description", given.description, limit_bytes=MAX_DESCRIPTION_BYTES)
        try:
            tools.append(ClientTool(given.name, given.description, given.parameters, given.effect))
        except SchemaRefusedError as error:
            raise invalid_field(
                f"{field}.parameters_json_schema", str(error), limit="a JSON schema of type object", value=given.name
            ) from error
        names.add(given.name)
    return tools


def check_approvals(spec: AgentSpec, tools: Sequence[Tool]) -> None:
    """Raises TOOL_NOT_FOUND: a policy with a name that is misspelt would approve of everything."""
    names = {tool.name for tool in tools}
    for name in spec.approve_tools:
        if name not in names:
            raise ArgosyError(
                Reason.TOOL_NOT_FOUND,
                f"spec.approval names '{name[:100]}', which is no tool of this run; "
                f"there are: {', '.join(sorted(names)) or 'none'}",
                tool=name,
            )


def _check_chain(spec: AgentSpec) -> None:
    if spec.strategy is not Strategy.CHAIN:
        if spec.chain:
            raise invalid_field("spec.chain", "is for AGENT_STRATEGY_CHAIN", limit="no prompts", value=len(spec.chain))
        return
    validate.count("spec.chain", len(spec.chain), limit=MAX_CHAIN)
    known = {"task"}
    for place, prompt in enumerate(spec.chain):
        field = f"spec.chain[{place}]"
        if not prompt.name.isidentifier() or prompt.name in known | {"item"}:
            raise invalid_field(f"{field}.name", "is no new name", limit="an identifier of its own", value=prompt.name)
        validate.text_size(f"{field}.template", prompt.template, limit_bytes=MAX_TASK_BYTES)
        available = known | ({"item"} if prompt.for_each else set())
        for used in PLACEHOLDER.findall(prompt.template):
            if used not in available:
                raise _unknown(f"{field}.template", available, used)
        for part, name in (("for_each", prompt.for_each), ("when", prompt.when)):
            if name and name not in known:
                raise _unknown(f"{field}.{part}", known, name)
        known.add(prompt.name)


def _unknown(field: str, known: set[str], value: str) -> ArgosyError:
    return invalid_field(field, "names no earlier answer", limit=", ".join(sorted(known)), value=value)
