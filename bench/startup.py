"""How long from starting the process `argosy serve` to health saying SERVING, with cached weights.

usage: python bench/startup.py [RUNS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import argosy
from argosy_services.testing import free_ports

ARGOSY = Path(sys.executable).with_name("argosy")


@contextmanager
def server(**settings: str) -> Iterator[str]:
    """The address of an `argosy serve` with these settings that has just been started, with a database of its own."""
    port, metrics_port = free_ports(2)
    own = {"ARGOSY_PORT": str(port), "ARGOSY_METRICS_PORT": str(metrics_port), "ARGOSY_LOG_LEVEL": "error"}
    with TemporaryDirectory(prefix="argosy-bench-") as made:
        own |= {"ARGOSY_DATABASE__DSN": f"sqlite:///{made}/argosy.db", "ARGOSY_ADAPTERS__CACHE_DIR": f"{made}/adapters"}
        environment = {**os.environ, **own, **settings}
        # An installed package has its bytecode; a checkout writes it in the first run.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen([ARGOSY, "serve"], env=environment)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def once() -> float:
    """Seconds from the process's start to readiness."""
    started = time.perf_counter()
    with server() as address, argosy.Client(address) as client:
        client.wait_until_ready(timeout=60)
        return time.perf_counter() - started


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    once()  # The first run reads files that the later ones find in memory.
    seconds = [once() for _ in range(runs)]
    print(f"start to ready over {runs} runs: {', '.join(f'{value:.2f}' for value in seconds)} s")
    print(f"median {statistics.median(seconds):.2f} s")
