"""What it costs to be watched: tokens per second at 32 streams, with nothing and with all that can be turned on.

    python bench/observability.py [pairs of servers]

On: every call is traced, everything is counted, under the names of vLLM as well, kept for Explain, and read by a
scraper every second. Off: nothing of it, and no instrument counts (`metrics.enabled`).

Each side is a server in a process of its own, and the rounds go from one to the other. Two equal processes can differ
by some percent for as long as they live, so that several pairs are started, each side first in turn. The collector and
the scraper are this process.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from serving import served

import argosy
from argosy_services.testing import free_ports, run_test_collector

STREAMS = 32
TOKENS = 64
ROUNDS = 6
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


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """A page of metrics is read every second, as Prometheus does it every fifteen."""
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                page.read()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def compare(settings: Mapping[str, Mapping[str, str]]) -> dict[str, list[float]]:
    """Tokens per second of each side in each round, after one that does not count; servers start in the order given."""
    found: dict[str, list[float]] = {name: [] for name in settings}
    with ExitStack() as running:
        sides = {name: running.enter_context(served(**own)) for name, own in settings.items()}
        for own in settings.values():
            if "ARGOSY_METRICS_PORT" in own:
                running.enter_context(scraped(int(own["ARGOSY_METRICS_PORT"])))
        for number in range(ROUNDS + 1):
            for name in sorted(sides, reverse=number % 2 == 1):
                rate = tokens_per_second(sides[name])
                if number:
                    found[name].append(rate)
    print(", ".join(f"{name} {statistics.median(rates):.1f}/s" for name, rates in found.items()), flush=True)
    return found


def main() -> None:
    """Prints the rates of both sides and what the one with everything on loses."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    found: dict[str, list[float]] = {"off": [], "on": []}
    with run_test_collector() as collector:
        watched = {
            "off": {"ARGOSY_METRICS__ENABLED": "false", "ARGOSY_GENERATION__EXPLAIN_REQUESTS": "0"},
            "on": {
                "ARGOSY_TRACING__ENDPOINT": collector.endpoint,
                "ARGOSY_METRICS__VLLM_NAMES": "true",
                "ARGOSY_METRICS_PORT": str(free_ports(1)[0]),
            },
        }
        for number in range(pairs):
            order = sorted(watched, reverse=number % 2 == 1)
            for name, rates in compare({name: watched[name] for name in order}).items():
                found[name] += rates
    calls = sum(span.parent_id == "" for span in collector.spans)
    cost = 1 - statistics.median(on / off for on, off in zip(found["on"], found["off"], strict=True))
    print(f"off {statistics.median(found['off']):.1f} tokens/s, on {statistics.median(found['on']):.1f} tokens/s")
    print(f"{len(collector.spans)} spans of {calls} calls arrived")
    print(f"cost {cost:+.1%} (at most {BAR:.0%})")


if __name__ == "__main__":
    main()
