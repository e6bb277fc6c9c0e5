"""A whole answer out of a stream of events, so that both ways to ask give the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from argosy_services.engine.base import TokenLogprobs
from argosy_services.generation.types import (
    Choice,
    ChoiceFinished,
    Delta,
    Event,
    Finished,
    Generation,
    Started,
)


@dataclass(slots=True)
class _Parts:
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs

    def choice(self, finished: ChoiceFinished) -> Choice:
        return Choice("".join(self.text), tuple(self.token_ids), tuple(self.logprobs), finished)


async def collect(events: AsyncIterator[Event]) -> Generation:
    """Reads a stream to its end. Raises what the stream raises."""
    parts: defaultdict[int, _Parts] = defaultdict(_Parts)
    choices: dict[int, Choice] = {}
    started: Started | None = None
    async for event in events:
        match event:
            case Started():
                started = event
            case Delta():
                parts[event.index].add(event)
            case ChoiceFinished():
                choices[event.index] = parts[event.index].choice(event)
            case Finished() if started is not None:
                ordered = tuple(choices[index] for index in sorted(choices))
                return Generation(started.origin, ordered, event.usage, event.timings)
            case _:
                break
    raise RuntimeError("a stream of events must begin with Started and end with Finished")
