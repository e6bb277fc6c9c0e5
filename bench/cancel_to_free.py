"""How long a sequence holds its blocks after its caller has gone: cancelled, or past its deadline.

    python bench/cancel_to_free.py [rounds]

The whole way is measured, on each runtime: from the caller's cancellation, or its deadline, to a page of metrics that
shows no block in use. That page is read every few milliseconds, which are part of every figure.
"""

from __future__ import annotations

import statistics
import sys
import time
import urllib.request
from contextlib import AbstractContextManager

import argosy
from argosy_services.settings import ClusterSettings, GenerationSettings, Settings
from argosy_services.testing import RunningFleet, run_test_cluster, run_test_server_in_thread

DEADLINE_S = 1.0
POLL_S = 0.003
RUNTIMES = ("embedded", "ray-small", "ray-production")


def start(runtime: str) -> AbstractContextManager[RunningFleet]:
    """A fleet of the runtime."""
    settings = Settings(generation=GenerationSettings(threads=1, prefix_cache=False), log_level="warning")
    if runtime == "embedded":
        return run_test_server_in_thread(settings)
    profile = runtime.removeprefix("ray-")
    return run_test_cluster(settings.model_copy(update={"cluster": ClusterSettings(profile=profile)}))  # type: ignore[arg-type]


def blocks_in_use(page: str) -> float:
    """What the engine holds."""
    with urllib.request.urlopen(page) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("argosy_kv_blocks_in_use{"))


def engine_page(fleet: RunningFleet) -> str:
    """The page of metrics of the process that has the engine."""
    for address in fleet.metrics_addresses:
        page = f"http://{address}/metrics"
        with urllib.request.urlopen(page) as answer:
            if "argosy_kv_blocks_total{" in answer.read().decode():
                return page
    raise RuntimeError("no page of metrics tells of an engine")


def until_freed(page: str, since: float) -> float:
    """Milliseconds from `since`, on the monotonic clock, until nothing is in use."""
    while blocks_in_use(page):
        time.sleep(POLL_S)
    return 1000 * (time.monotonic() - since)


def cancelled(client: argosy.Client, page: str) -> float:
    """Milliseconds from closing a stream."""
    stream = client.generation.stream("The sea is", max_tokens=400, ignore_eos=True)
    for _, _ in zip(range(10), stream, strict=False):
        pass
    if not blocks_in_use(page):
        raise RuntimeError("the stream ended before it was cancelled")
    since = time.monotonic()
    stream.close()
    return until_freed(page, since)


def too_late(client: argosy.Client, page: str) -> float:
    """Milliseconds from the deadline of a call."""
    since = time.monotonic() + DEADLINE_S
    try:
        client.generation.generate("The sea is", max_tokens=400, ignore_eos=True, timeout=DEADLINE_S)
    except argosy.DeadlineExceededError:
        return until_freed(page, since)
    raise RuntimeError("the call ended before its deadline")


def main(rounds: int) -> None:
    """Prints one row for each runtime."""
    print("| runtime | cancel: median, most | deadline: median, most |\n| --- | --- | --- |")
    for runtime in RUNTIMES:
        with start(runtime) as fleet, argosy.Client(fleet.address, timeout=60) as client:
            page = engine_page(fleet)
            client.generation.generate("warm", max_tokens=8)
            columns = [[measure(client, page) for _ in range(rounds)] for measure in (cancelled, too_late)]
        figures = [f"{statistics.median(column):.0f} ms, {max(column):.0f} ms" for column in columns]
        print(f"| {runtime} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
