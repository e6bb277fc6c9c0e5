"""How long from starting the process `argosy serve` to health saying SERVING, with cached weights.

usage: python bench/startup.py [RUNS]
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import argosy

ARGOSY = Path(sys.executable).with_name("argosy")


def once() -> float:
    """Seconds from the process's start to readiness."""
    ports = [free_port() for _ in range(2)]
    settings = {"ARGOSY_PORT": str(ports[0]), "ARGOSY_METRICS_PORT": str(ports[1]), "ARGOSY_LOG_LEVEL": "error"}
    started = time.perf_counter()
    process = subprocess.Popen([ARGOSY, "serve"], env={**os.environ, **settings})
    try:
        with argosy.Client(f"127.0.0.1:{ports[0]}") as client:
            client.wait_until_ready(timeout=60)
        return time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    once()  # The first run reads files that the later ones find in memory.
    seconds = [once() for _ in range(runs)]
    print(f"start to ready over {runs} runs: {', '.join(f'{value:.2f}' for value in seconds)} s")
    print(f"median {statistics.median(seconds):.2f} s")
