"""The loads that all sides are put under, and the variants of Argosy that some of them compare."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from side_by_side import adapters
from side_by_side.base import Request
from side_by_side.sides import Spec

# Ordinary tokens of SmolLM2: above its special ones and the bytes.
_TOKENS = range(1_000, 49_152)
_PREFIX_TOKENS = 1_000

Load: TypeAlias = Callable[[random.Random], list[Request]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One column of a shape."""

    label: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Shape:
    """A load. `entries` are what is measured under it, from the sides that were asked for.

    A `fresh` shape starts each process anew and counts the start.
    """

    name: str
    load: Load
    entries: Callable[[Sequence[Spec]], list[Entry]]
    fresh: bool = False

    def requests(self, entry: Entry, seed: object) -> list[Request]:
        """The load of one round: equal seeds give equal tokens, to every entry."""
        requests = self.load(random.Random(f"{self.name} {seed}"))
        if not entry.spec.adapters:
            return requests
        names = adapters.names(entry.spec.adapters)
        return [replace(request, adapter=names[number % len(names)]) for number, request in enumerate(requests)]


def uniform(streams: int, prompt: int, answer: int) -> Load:
    """Equal requests with prompts of random tokens."""
    return lambda source: [Request(_tokens(source, prompt), answer) for _ in range(streams)]


def shared_prefix(streams: int, own: int, answer: int) -> Load:
    """Prompts that begin with the same 1,000 tokens."""

    def load(source: random.Random) -> list[Request]:
        prefix = _tokens(source, _PREFIX_TOKENS)
        return [Request(prefix + _tokens(source, own), answer) for _ in range(streams)]

    return load


def mix(streams: int) -> Load:
    """What a chat service sees: one of four system prompts, then lengths that are mostly short and sometimes long."""

    def length(source: random.Random, median: float, shortest: int, longest: int) -> int:
        return min(longest, max(shortest, round(median * source.lognormvariate(0, 0.8))))

    def load(source: random.Random) -> list[Request]:
        systems = [_tokens(source, tokens) for tokens in (96, 160, 256, 384)]
        return [
            Request(source.choice(systems) + _tokens(source, length(source, 64, 8, 512)), length(source, 48, 8, 192))
            for _ in range(streams)
        ]

    return load


def _tokens(source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(source.choices(_TOKENS, k=count))


def _each(specs: Sequence[Spec]) -> list[Entry]:
    return [Entry(spec.label, spec) for spec in specs]


def _equal_only(specs: Sequence[Spec]) -> list[Entry]:
    """Without the program that takes only requests of one length and has no start of its own."""
    return _each([spec for spec in specs if spec.kind != "llama-batched-bench"])


def _cache_on_and_off(specs: Sequence[Spec]) -> list[Entry]:
    off = ("ARGOSY_GENERATION__PREFIX_CACHE", "false")
    return [
        entry
        for spec in specs
        if spec.is_argosy and not spec.variant
        for entry in (
            Entry(spec.label, spec),
            Entry(
                f"{spec.label}, cache off",
                replace(spec, environment=(*spec.environment, off), variant="cache-off"),
            ),
        )
    ]


def _base_and_adapters(specs: Sequence[Spec]) -> list[Entry]:
    return [
        entry
        for spec in specs
        if spec.is_argosy and not spec.variant
        for entry in (
            Entry(f"{spec.label}, base", spec),
            *(
                Entry(f"{spec.label}, adapters on {targets}", replace(spec, adapters=targets))
                for targets in adapters.TARGETS
            ),
        )
    ]


SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        *(Shape(f"decode-{streams}", uniform(streams, 128, 64), _each) for streams in (1, 8, 32, 64)),
        Shape("prefill", uniform(8, 1_024, 1), _each),
        Shape("long-8", uniform(8, 1_024, 64), _each),
        Shape("mix", mix(64), _equal_only),
        Shape("prefix", shared_prefix(32, 24, 16), _cache_on_and_off),
        Shape("adapters", uniform(32, 128, 64), _base_and_adapters),
        Shape("startup", uniform(1, 16, 1), _equal_only, fresh=True),
    )
}
