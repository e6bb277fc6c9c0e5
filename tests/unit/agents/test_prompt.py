"""Prompts are well-formed data, and their examples say what the tools say."""

from __future__ import annotations

import json
from datetime import datetime
from importlib.resources import files

import pytest
from llguidance import LLMatcher, LLTokenizer

from argosy_services.agents.actions import FinalAnswer, action_form, parse_action
from argosy_services.agents.memory import Answer, Memory, Observation, Thought, ToolRequest
from argosy_services.agents.prompt import load_prompt, load_texts, version_of
from argosy_services.agents.strategies import WAYS
from argosy_services.agents.tools.base import Tool, call
from argosy_services.agents.tools.calculator import Calculator
from argosy_services.agents.tools.clock import Clock
from argosy_services.agents.work import ToolCall
from argosy_services.engine.base import Grammar
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.types import Role

NAMES = {file.name.removesuffix(".yaml") for file in files("argosy_services.agents").joinpath("prompts").iterdir()}


def test_every_strategy_has_a_prompt_of_its_own() -> None:
    assert {way.prompt for way in WAYS.values()} == NAMES
    for name in NAMES:
        assert version_of(name).startswith(f"{name}@")


@pytest.mark.parametrize("name", sorted(NAMES - {"react"}))
def test_texts_are_well_formed(name: str) -> None:
    texts = load_texts(name)
    assert texts or name == "chain"
    assert all(text.strip() for text in texts.values())


async def test_prompt_is_well_formed() -> None:
    prompt = load_prompt("react")
    assert prompt.version >= 1
    tools: list[Tool] = [Calculator(), Clock()]
    text = prompt.system_text(tools)
    assert "calculator(expression): Computes" in text
    assert "current_time(timezone): Tells" in text
    assert "{" not in text
    assert prompt.labels.action.startswith("\n"), "a thought ends with its line"
    for example in prompt.examples:
        assert "\n" not in example.thought
        if example.call is None:
            continue
        said = example.call.observation
        then = datetime.fromisoformat(said.split(" ")[2]) if example.call.tool == "current_time" else datetime.min
        at_that_time: dict[str, Tool] = {tool.name: tool for tool in (Calculator(), Clock(lambda then=then: then))}
        result = await call(at_that_time[example.call.tool], example.call.arguments, at_most_s=1)
        assert (result.text, result.status) == (said, "ok")


def test_examples_follow_the_tools() -> None:
    prompt = load_prompt("react")
    used = {example.call.tool if example.call else None for example in prompt.examples_of([Calculator()])}
    assert used == {"calculator", None}
    assert {example.call for example in prompt.examples_of([])} == {None}


def test_memory_is_the_conversation() -> None:
    prompt = load_prompt("react")
    memory = Memory(prompt, "What is 1 + 1?", [Calculator()])
    head = memory.messages()
    assert (head[0].role, head[-1].role, head[-1].content) == (Role.SYSTEM, Role.USER, "What is 1 + 1?")
    assert memory.opening() == "Thought:"
    memory.add(Thought(1, "I need the calculator."))
    assert memory.messages() == head
    assert memory.opening() == "Thought: I need the calculator.\nAction:\n"
    request = ToolRequest(1, "call_1", "calculator", {"expression": "1 + 1"})
    memory.add(request)
    assert not memory.has_result
    memory.add(Observation(1, "call_1", "1 + 1 = 2", is_error=False, seconds=0.0))
    assert memory.has_result
    memory.add(Observation(2, "call_2", "no", is_error=True, seconds=0.0))
    assert not memory.has_result
    assert [(message.role, message.content) for message in memory.messages()[len(head) :]] == [
        (Role.ASSISTANT, f"Thought: I need the calculator.\nAction:\n{request.action()}"),
        (Role.USER, "Observation: 1 + 1 = 2"),
        (Role.USER, "Observation: Error: no"),
    ]


def test_roles_alternate() -> None:
    messages = Memory(load_prompt("react"), "task", [Calculator(), Clock()]).messages()
    roles = [message.role for message in messages]
    assert roles[1:] == [Role.USER, Role.ASSISTANT] * ((len(roles) - 2) // 2) + [Role.USER]


def test_old_steps_are_left_out() -> None:
    memory = Memory(load_prompt("react"), "task", [Calculator()])
    head = len(memory.messages())
    for step in range(1, 65):
        memory.add(Thought(step, f"thought {step}"))
        memory.add(ToolRequest(step, f"call_{step}", "calculator", {"expression": "1"}))
        memory.add(Observation(step, f"call_{step}", "1 = 1", is_error=False, seconds=0.0))
    shown = memory.messages()[head:]
    assert len(shown) == 2 * 12
    assert "thought 53" in shown[0].content


def test_actions_are_read_as_they_are_written() -> None:
    tools = [Calculator(), Clock()]
    request = ToolRequest(3, "call_2", "current_time", {"timezone": "Asia/Tokyo"})
    answer = Answer(4, 'It is "late" – 21:00.\n')
    assert parse_action(request.action(), tools) == ToolCall("current_time", {"timezone": "Asia/Tokyo"})
    assert parse_action(answer.action(), tools) == FinalAnswer(answer.text)


def test_schema_holds_what_is_offered() -> None:
    def names(form: Grammar) -> list[str]:
        return [one["properties"]["tool"]["const"] for one in json.loads(form.source)["anyOf"]]

    assert names(action_form([Calculator(), Clock()])) == ["calculator", "current_time", "final_answer"]
    assert names(action_form([])) == ["final_answer"]
    for one in json.loads(action_form([Calculator(), Clock()]).source)["anyOf"]:
        assert one["required"] == ["tool", "arguments"]
        assert one["additionalProperties"] is False
        assert one["properties"]["arguments"]["additionalProperties"] is False


def test_examples_are_what_the_schema_lets_through(smollm2: LocalModel) -> None:
    # As the engine compiles a schema: the examples have to be spelt as constrained decoding writes.
    grammar = LLMatcher.grammar_from_json_schema(
        action_form([Calculator(), Clock()]).source, overrides={"whitespace_flexible": False}
    )
    tokenizer = LLTokenizer((smollm2.path / "tokenizer.json").read_text(encoding="utf-8"))
    actions = [Answer(2, example.answer).action() for example in load_prompt("react").examples]
    for example in load_prompt("react").examples:
        if example.call is not None:
            actions.append(ToolRequest(1, "", example.call.tool, example.call.arguments).action())
    for text in actions:
        ids = tokenizer.tokenize_str(text)
        assert LLMatcher(tokenizer, grammar).validate_tokens(ids) == len(ids), text
    for text in ('{"tool": "shell"', '{"tool": "calculator", "arguments": {"expression": "the'):
        ids = tokenizer.tokenize_str(text)
        assert LLMatcher(tokenizer, grammar).validate_tokens(ids) < len(ids), text
