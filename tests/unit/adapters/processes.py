"""Starts `replica.py` and kills it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import argosy

ROOT = Path(__file__).parents[3]
START_S = 30.0


@dataclass
class Process:
    """A running replica and a client of it."""

    process: subprocess.Popen[str]
    client: argosy.Client

    def kill(self) -> None:
        """Ends it as `kill -9` does."""
        self.process.kill()
        self.process.wait(START_S)


@contextmanager
def start(dsn: str, directory: Path, root: Path, *, hold: str = "") -> Iterator[Process]:
    """A replica for the length of a `with` block, at the end of which it is killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HOLD": hold}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.adapters.replica", dsn, str(directory), str(root)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    reading: threading.Thread | None = None
    impatient = threading.Timer(START_S, process.kill)
    impatient.start()
    try:
        port, said = "", ""
        while not port.strip().isdecimal():
            port = process.stdout.readline()
            said += port
            assert port, f"the replica did not start: {said}"
        impatient.cancel()
        # Its log must not fill the pipe.
        reading = threading.Thread(target=process.stdout.read, daemon=True)
        reading.start()
        with argosy.Client(f"127.0.0.1:{port.strip()}", timeout=START_S) as client:
            yield Process(process, client)
    finally:
        impatient.cancel()
        process.kill()
        process.wait(START_S)
        if reading is not None:
            reading.join(START_S)
        process.stdout.close()
