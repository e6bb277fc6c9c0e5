"""A side's end of the pipe: lines of JSON in on standard input, lines of JSON out. Only the standard library.

    driver: {"requests": [{"prompt": [1, 2], "max_tokens": 64, "adapter": ""}]}
    child:  {"versions": {"torch": "2.13.0"}} once it is ready, then {"times": [[0.1, 0.2]]} for each line

The end of the input ends the child. What fails ends it too, with a traceback in its log.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from side_by_side.base import Request, TokenTimes


class Runner(Protocol):
    """An engine in this process."""

    def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs all requests at once."""
        ...


def serve(load: Callable[[], Runner], packages: Sequence[str]) -> None:
    """Loads an engine and answers the driver until it closes the pipe. `packages` are those whose versions count."""
    # Libraries print to standard output, so that keeps to the log, and the pipe gets a descriptor of its own.
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    runner = load()
    send({"versions": {package: version(package) for package in packages}})
    for line in sys.stdin:
        requests = [
            Request(tuple(given["prompt"]), given["max_tokens"], given["adapter"])
            for given in json.loads(line)["requests"]
        ]
        send({"times": runner.generate(requests)})
