"""What all sides have in common. Only the standard library: peers' environments import it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

# For each request the seconds from the load's start at which its tokens came, ascending.
TokenTimes: TypeAlias = list[list[float]]


class SideError(Exception):
    """A side did not start, broke, took too long or answered something else than it was asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """One stream: a prompt of token ids, answered greedily with exactly `max_tokens` tokens, end of text ignored.

    `adapter` names a LoRA adapter; empty is the base model.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    adapter: str = ""


class Side(Protocol):
    """One engine. `versions` are those of what it is made of; filled by `start`."""

    versions: Mapping[str, str]

    async def start(self) -> None:
        """Starts the engine and waits until it is ready. Raises SideError."""
        ...

    async def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs all requests at once. Raises SideError."""
        ...

    async def stop(self) -> None:
        """Ends the engine's process; may be called at any time and again."""
        ...


def checked(requests: Sequence[Request], times: TokenTimes) -> TokenTimes:
    """The times of an answer to `requests`. Raises SideError where a stream is too short or too long."""
    if len(times) != len(requests):
        raise SideError(f"answered {len(times)} of {len(requests)} requests")
    for request, stream in zip(requests, times, strict=True):
        if len(stream) != request.max_tokens:
            raise SideError(f"answered {len(stream)} tokens where {request.max_tokens} were asked for")
    return times
