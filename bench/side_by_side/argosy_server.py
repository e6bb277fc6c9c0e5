"""Argosy as its users have it: `argosy serve` in a process of its own, called through the SDK."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import argosy
from side_by_side.base import Request, TokenTimes
from side_by_side.process import LOAD_S, START_S, OwnProcess, free_port

_ARGOSY = Path(sys.executable).with_name("argosy")


class ArgosyServer:
    """A server on free ports. `adapters` are directories by name, all in one directory, loaded by `start`."""

    def __init__(self, log: Path, environment: Mapping[str, str], adapters: Mapping[str, Path]) -> None:
        port, metrics_port = free_port(), free_port()
        # What one measurement loads must not come back in the next.
        self._made = tempfile.TemporaryDirectory(prefix="argosy-peers-")
        settings = {
            "ARGOSY_DATABASE__DSN": f"sqlite:///{self._made.name}/argosy.db",
            "ARGOSY_ADAPTERS__CACHE_DIR": f"{self._made.name}/adapter-cache",
            "ARGOSY_PORT": str(port),
            "ARGOSY_METRICS_PORT": str(metrics_port),
            "ARGOSY_LOG_LEVEL": "warning",
            "ARGOSY_ADAPTERS__ROOTS": json.dumps(sorted({str(path.parent) for path in adapters.values()})),
        }
        self.versions: Mapping[str, str] = {"argosy": argosy.__version__}
        self._adapters = adapters
        self._own = OwnProcess([_ARGOSY, "serve"], {**settings, **environment}, log)
        self._client = argosy.AsyncClient(
            f"127.0.0.1:{port}", timeout=LOAD_S, api_key=os.environ.get("ARGOSY_API_KEYS", "").split(",")[0] or None
        )

    async def start(self) -> None:
        """Starts the server, waits until all of its services are ready, and loads the adapters."""
        await self._own.start()
        await self._own.ready(self._client.wait_until_ready(timeout=START_S))
        for name, directory in self._adapters.items():
            await self._client.adapters.load(name, directory)

    async def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Opens a stream for each request."""
        started = time.perf_counter()
        try:
            return await asyncio.gather(*(self._stream(request, started) for request in requests))
        except argosy.ArgosyError as error:
            raise self._own.failure(str(error)) from error

    async def stop(self) -> None:
        """Closes the client and ends the server."""
        await self._client.close()
        await self._own.stop()
        self._made.cleanup()

    async def _stream(self, request: Request, started: float) -> list[float]:
        times: list[float] = []
        async with self._client.generation.stream(
            request.prompt,
            max_tokens=request.max_tokens,
            temperature=0.0,
            ignore_eos=True,
            adapter=request.adapter,
        ) as stream:
            async for event in stream:
                if isinstance(event, argosy.Delta):
                    times += [time.perf_counter() - started] * len(event.token_ids)
        return times
