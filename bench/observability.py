"""What it costs to be watched: tokens per second at 32 streams, with nothing and with all that can be turned on.

    python bench/observability.py [rounds]

Each side is a server in a process of its own, and both run all the time; the rounds go from one to the other, in turn
first. Every call is traced, and the collector is this process.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from serving import served

import argosy
from argosy_services.testing import run_test_collector

STREAMS = 32
TOKENS = 64
BAR = 0.02


def tokens_per_second(client: argosy.Client) -> float:
    """All streams begin together and have as many tokens."""

    def stream(number: int) -> int:
        answer = client.generation.stream(f"Harbour {number} at night is", max_tokens=TOKENS, ignore_eos=True)
        return answer.result().usage.completion_tokens

    started = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as threads:
        tokens = sum(threads.map(stream, range(STREAMS)))
    return tokens / (time.perf_counter() - started)


def compare(sides: Mapping[str, argosy.Client], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each side in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        order = list(sides) if number % 2 else list(reversed(sides))
        for name in order:
            rate = tokens_per_second(sides[name])
            if number:
                found[name].append(rate)
        if number:
            print(f"round {number}: " + ", ".join(f"{name} {rates[-1]:.1f}/s" for name, rates in found.items()))
    return found


def main() -> None:
    """Prints the rates of both sides and what the one with everything on loses."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with ExitStack() as running:
        collector = running.enter_context(run_test_collector())
        watched = {"ARGOSY_TRACING__ENDPOINT": collector.endpoint}
        sides = {"off": running.enter_context(served()), "on": running.enter_context(served(**watched))}
        found = compare(sides, rounds)
        time.sleep(2)
    calls = sum(span.parent_id == "" for span in collector.spans)
    cost = 1 - statistics.median(on / off for on, off in zip(found["on"], found["off"], strict=True))
    print(f"off {statistics.median(found['off']):.1f} tokens/s, on {statistics.median(found['on']):.1f} tokens/s")
    print(f"{len(collector.spans)} spans of {calls} calls arrived")
    print(f"cost {cost:+.1%} (at most {BAR:.0%})")


if __name__ == "__main__":
    main()
