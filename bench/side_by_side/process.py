"""The driver's end: processes of its own, with logs, that end when the driver wants."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from side_by_side.base import Request, SideError, TokenTimes

# vLLM compiles when it starts; on a busy machine that takes minutes.
START_S = 600.0
LOAD_S = 900.0
_STOP_S = 15.0
# A line holds the times of all tokens of a load.
_LINE_BYTES = 1 << 26
_LOG_TAIL = 15


class OwnProcess:
    """One process with a log file.

    Its session is its own: Ctrl-C reaches the driver alone, which then stops it with all that it started.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self._command = [str(part) for part in command]
        self._environment = {**os.environ, **environment}
        self._log = log
        self._process: Process | None = None

    async def start(self, *, pipes: bool = False) -> Process:
        """Starts it. Raises SideError where there is no such program."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=PIPE if pipes else DEVNULL,
                    stdout=PIPE if pipes else log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                    limit=_LINE_BYTES,
                )
            except FileNotFoundError as error:
                raise SideError(f"{self._command[0]} is missing: run `make install-peers`") from error
        return self._process

    async def ready(self, answers: Coroutine[Any, Any, None]) -> None:
        """Waits for `answers`, which asks a server until it does. Raises SideError where it ends or never does."""
        if self._process is None:
            raise RuntimeError("the process was not started")
        asking, ending = asyncio.create_task(answers), asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait((asking, ending), timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise self.failure("ended" if ending.done() else f"was not ready after {START_S:.0f} s")
            await asking
        finally:
            asking.cancel()
            ending.cancel()

    def failure(self, what: str) -> SideError:
        """An error with the end of the log."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return SideError("\n  | ".join([f"{what}; the end of {self._log}:", *lines[-_LOG_TAIL:]]))

    async def stop(self) -> None:
        """Ends it and everything that it started."""
        process = self._process
        if process is None:
            return
        for kind in (signal.SIGTERM, signal.SIGKILL):
            # Also where the process itself has gone: the group holds what it may have left behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kind)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_S)
        self._process = None


class ChildSide:
    """A side behind a pipe; see `child`."""

    def __init__(
        self, python: str | Path, arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str]
    ) -> None:
        here = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        self.versions: Mapping[str, str] = {}
        self._own = OwnProcess([python, "-m", *arguments], {**environment, "PYTHONPATH": path}, log)
        self._process: Process | None = None

    async def start(self) -> None:
        """Starts the child and waits until its engine is loaded."""
        self._process = await self._own.start(pipes=True)
        self.versions = (await self._read(START_S))["versions"]

    async def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs a load in the child."""
        if self._process is None or self._process.stdin is None:
            raise SideError("was not started")
        self._process.stdin.write(json.dumps({"requests": [asdict(request) for request in requests]}).encode() + b"\n")
        with suppress(ConnectionError):  # A child that has gone: what reading says has its log.
            await self._process.stdin.drain()
        return (await self._read(LOAD_S))["times"]

    async def stop(self) -> None:
        """Ends the child."""
        await self._own.stop()
        self._process = None

    async def _read(self, limit_s: float) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise SideError("was not started")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), limit_s)
        except TimeoutError:
            raise self._own.failure(f"said nothing for {limit_s:.0f} s") from None
        if not line:
            raise self._own.failure("ended")
        return json.loads(line)


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
