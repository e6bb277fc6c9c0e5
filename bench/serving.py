"""What the measurements of embeddings and tokenization share: a server in a process of its own, texts, and rounds."""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from startup import server

import argosy


@contextmanager
def served(**settings: str) -> Iterator[argosy.Client]:
    """A client of `argosy serve` with these settings, once it is ready."""
    with server(**settings) as address, argosy.Client(address, timeout=3600) as client:
        client.wait_until_ready(timeout=300)
        yield client


def words(model: Path) -> list[str]:
    """English words that the tokenizer of MiniLM has whole: a text of n of them has n tokens and two special ones."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return [word for word in vocabulary if re.fullmatch("[a-z]{3,}", word)]


def texts_of(model: Path, tokens: range, count: int, seed: int = 0) -> list[str]:
    """Texts whose numbers of tokens are drawn evenly from `tokens`."""
    draw, known = random.Random(seed), words(model)
    return [" ".join(draw.choices(known, k=draw.choice(tokens) - 2)) for _ in range(count)]


def rounds(count: int, sides: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each side in each round. The sides run in turn, so that all meet the same weather."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(count):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            found[name].append(time.perf_counter() - started)
        line = ", ".join(f"{name} {values[-1]:.3f} s" for name, values in found.items())
        print(f"round {number + 1}: {line}", file=sys.stderr, flush=True)
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times faster we are: the median over the rounds, in each of which both met the same weather."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
