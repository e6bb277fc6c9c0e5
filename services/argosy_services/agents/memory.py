"""What a run remembers: its steps as typed records.

The same records are the events that callers see and the messages that the model sees, and the worked examples of a
prompt are written with them too, so that the three cannot drift apart. The idea is smolagents' memory of steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from argosy_services.agents.prompt import Example, Labels, Prompt
from argosy_services.agents.tools.base import Effect, Tool
from argosy_services.agents.tools.registry import FINAL_ANSWER
from argosy_services.tokenization.types import ChatMessage, Role

# Bounds the prompt of a long run: older steps are left out.
STEPS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Thought:
    """What the model thought before it acted."""

    step: int
    text: str

    def opening(self, labels: Labels) -> str:
        """The beginning of the message whose action follows this thought."""
        return f"{labels.thought}{' ' if self.text else ''}{self.text}{labels.action}"


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """The model asks for a tool. `by_client` is set where the caller of the run carries it out."""

    step: int
    call_id: str
    tool: str
    arguments: Mapping[str, object]
    effect: Effect = Effect.READ
    by_client: bool = False

    def action(self) -> str:
        """The request as the model writes it."""
        return _action(self.tool, self.arguments)


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tool answered, or with `is_error` why it failed. `seconds` is how long it took."""

    step: int
    call_id: str
    text: str
    is_error: bool
    seconds: float

    def message(self, labels: Labels) -> ChatMessage:
        """What the model sees. The role is the user's: few templates of small models know one for tools."""
        return ChatMessage(Role.USER, f"{labels.error if self.is_error else labels.observation}{self.text}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to the task."""

    step: int
    text: str

    def action(self) -> str:
        """The answer as the model writes it."""
        return _action(FINAL_ANSWER, {"answer": self.text})


Record = Thought | ToolRequest | Observation | Answer


class Memory:
    """The records of one run, and the prompt that they make."""

    def __init__(self, prompt: Prompt, task: str, tools: Sequence[Tool]) -> None:
        self._labels = prompt.labels
        self._records: list[Record] = []
        self._head = [
            ChatMessage(Role.SYSTEM, prompt.system_text(tools)),
            *(message for example in prompt.examples_of(tools) for message in _shown(example, prompt.labels)),
            ChatMessage(Role.USER, task),
        ]

    @property
    def has_result(self) -> bool:
        """Whether the last call of a tool succeeded."""
        observations = [record for record in self._records if isinstance(record, Observation)]
        return bool(observations) and not observations[-1].is_error

    def repeats(self, tool: str, arguments: Mapping[str, object]) -> bool:
        """Whether a call was made before and the last one succeeded: to make it again would bring nothing new."""
        before = [(record.tool, record.arguments) for record in self._records if isinstance(record, ToolRequest)]
        return self.has_result and (tool, arguments) in before

    def add(self, record: Record) -> None:
        """Appends what happened next."""
        self._records.append(record)

    def messages(self) -> list[ChatMessage]:
        """The conversation so far, without a thought that no action followed yet."""
        first = self._records[-1].step - STEPS_SHOWN if self._records else 0
        recent = [record for record in self._records if record.step > first]
        return self._head + _messages(recent, self._labels)

    def opening(self) -> str:
        """What the next message starts with: a thought that waits for its action, or the label of one."""
        last = self._records[-1] if self._records else None
        return last.opening(self._labels) if isinstance(last, Thought) else self._labels.thought


def _messages(records: Sequence[Record], labels: Labels) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    opening = ""
    for record in records:
        match record:
            case Thought():
                opening = record.opening(labels)
            case ToolRequest() | Answer():
                messages.append(ChatMessage(Role.ASSISTANT, opening + record.action()))
            case Observation():
                messages.append(record.message(labels))
    return messages


def _shown(example: Example, labels: Labels) -> list[ChatMessage]:
    records: list[Record] = []
    if example.call is not None:
        records += [
            Thought(1, example.thought),
            ToolRequest(1, "", example.call.tool, example.call.arguments),
            Observation(1, "", example.call.observation, is_error=False, seconds=0.0),
        ]
    conclusion = example.thought if example.call is None else example.call.conclusion
    records += [Thought(2, conclusion), Answer(2, example.answer)]
    return [ChatMessage(Role.USER, example.task), *_messages(records, labels)]


def _action(tool: str, arguments: Mapping[str, object]) -> str:
    # With blanks after colons and commas: small models have seen JSON in this spelling most often.
    return json.dumps({"tool": tool, "arguments": dict(arguments)}, ensure_ascii=False)
