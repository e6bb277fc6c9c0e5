"""A chat model that writes what a test tells it to, and tools with known behaviour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field

from argosy_services.agents.ports import Chunk, Completion
from argosy_services.agents.service import AgentsService
from argosy_services.agents.store import RunStore
from argosy_services.agents.tools.base import Arguments, BuiltInTool, Effect, Tool, ToolError
from argosy_services.errors import model_not_found
from argosy_services.storage.database import Database

MODEL = "scripted-model"


def action(tool: str, **arguments: object) -> str:
    return json.dumps({"tool": tool, "arguments": arguments})


def answer(text: str) -> str:
    return action("final_answer", answer=text)


@dataclass
class ScriptedModel:
    """Writes its texts in turn, a word at a time; a word counts as a token. A text may be an exception to raise.

    A completion of more than `max_tokens` words is cut there, as an engine does it.
    """

    texts: Sequence[str | Exception]
    asked: list[Completion] = field(default_factory=list)
    closed: int = 0
    before: Callable[[Completion], object] | None = None

    def check_model(self, model: str) -> str:
        if model not in ("", MODEL):
            raise model_not_found(model, [MODEL])
        return MODEL

    def announces_tools(self, model: str) -> bool:
        return False

    async def complete(self, completion: Completion) -> AsyncIterator[Chunk]:
        text = self.texts[len(self.asked)]
        self.asked.append(completion)
        try:
            if self.before is not None:
                waiting = self.before(completion)
                if asyncio.iscoroutine(waiting):
                    await waiting
            if isinstance(text, Exception):
                raise text
            words = text.split(" ")
            written = words[: completion.max_tokens]
            for place, word in enumerate(written):
                await asyncio.sleep(0)
                yield Chunk(f" {word}" if place or completion.form is None else word)
            yield Chunk(
                "",
                finished=True,
                stopped_at_length=len(written) < len(words),
                prompt_tokens=100,
                cached_tokens=40,
                completion_tokens=len(written),
            )
        finally:
            self.closed += 1


@contextmanager
def agents(
    model: ScriptedModel,
    tools: Sequence[Tool],
    directory: Path | None = None,
    *,
    shared: bool = False,
    **options: Any,
) -> Iterator[AgentsService]:
    """A service whose runs are kept in a directory, a new one unless it is given; `shared` with other services."""
    with TemporaryDirectory() as fresh:
        database = Database(f"sqlite:///{(directory or Path(fresh)).absolute()}/runs.db")
        store = RunStore(database, shared=shared)
        store.prepare()
        try:
            yield AgentsService(model, tools, store, **{"max_running": 4, **options})
        finally:
            database.close()


class EchoArguments(Arguments):
    text: str = Field(max_length=20)


@dataclass
class Echo(BuiltInTool):
    """Repeats its text, after `delay_s`; fails for the text "fail" and has a bug for "bug"."""

    name: str = "echo"
    description: str = "Repeats a text."
    arguments: type[Arguments] = EchoArguments
    timeout_s: float = 5.0
    effect: Effect = Effect.READ
    delay_s: float = 0.0
    calls: list[str] = field(default_factory=list)

    async def run(self, arguments: EchoArguments) -> str:
        self.calls.append(arguments.text)
        await asyncio.sleep(self.delay_s)
        if arguments.text == "fail":
            raise ToolError("nothing to repeat; send another text")
        if arguments.text == "bug":
            raise RuntimeError("a fault of ours")
        return f"heard {arguments.text}"
