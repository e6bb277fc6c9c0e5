"""llama.cpp as its users have it: llama-server over HTTP, and its own measuring program."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from side_by_side.base import Request, SideError, TokenTimes
from side_by_side.process import LOAD_S, OwnProcess, free_port

_SLOTS = 64
_CACHE_TOKENS = 65_536
_DATA = b"data: "


class LlamaServer:
    """llama-server with a slot for each stream and one cache for all slots."""

    def __init__(self, programs: Path, model: Path, threads: int, log: Path) -> None:
        port = free_port()
        self.versions: Mapping[str, str] = {}
        self._address = f"http://127.0.0.1:{port}"
        options = {
            "--model": model,
            "--port": port,
            "--ctx-size": _CACHE_TOKENS,
            "--parallel": _SLOTS,
            "--threads": threads,
        }
        self._programs = programs
        self._own = OwnProcess(
            [
                programs / "llama-server",
                "--kv-unified",
                "--no-ui",
                *(str(part) for pair in options.items() for part in pair),
            ],
            {},
            log,
        )
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Starts the server and waits until its model is loaded."""
        self.versions = {"llama.cpp": await version(self._programs)}
        await self._own.start()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LOAD_S)
        )
        await self._own.ready(self._answers(self._session))

    async def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Opens a stream for each request."""
        if self._session is None:
            raise SideError("was not started")
        started = time.perf_counter()
        try:
            return await asyncio.gather(*(self._stream(self._session, request, started) for request in requests))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._own.failure(f"{type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        """Closes the connections and ends the server."""
        if self._session is not None:
            await self._session.close()
        await self._own.stop()

    async def _answers(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with session.get(f"{self._address}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass  # Not listening yet.
            await asyncio.sleep(0.05)

    async def _stream(self, session: aiohttp.ClientSession, request: Request, started: float) -> list[float]:
        asked = {
            "prompt": list(request.prompt),
            "n_predict": request.max_tokens,
            "ignore_eos": True,
            # Greedy, without the other samplers of the default chain.
            "samplers": ["top_k"],
            "top_k": 1,
            "stream": True,
            "return_tokens": True,
        }
        times: list[float] = []
        async with session.post(f"{self._address}/completion", json=asked) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(_DATA):
                    continue
                event = json.loads(line.removeprefix(_DATA))
                now = time.perf_counter() - started
                times += [now] * len(event.get("tokens", ()))
                if event.get("stop"):
                    # Tokens that end within a character come with no event of their own.
                    times += [now] * (event["tokens_predicted"] - len(times))
        return times


class LlamaBatchedBench:
    """llama-batched-bench: llama.cpp without a server. It tells two durations, of all prompts and of all answers, so
    the times of tokens are spread evenly; only loads of equal requests can be given to it.
    """

    def __init__(self, programs: Path, model: Path, threads: int, log: Path) -> None:
        self.versions: Mapping[str, str] = {}
        self._programs = programs
        self._options = ["-m", str(model), "-t", str(threads), "--output-format", "jsonl"]
        self._log = log
        self._own: OwnProcess | None = None

    async def start(self) -> None:
        """Nothing waits between loads: each starts the program anew."""
        self.versions = {"llama.cpp": await version(self._programs)}

    async def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs the program with as many equal requests."""
        lengths = {(len(request.prompt), request.max_tokens) for request in requests}
        if len(lengths) != 1:
            raise SideError("llama-batched-bench takes requests of one length")
        ((prompt, answer),) = lengths
        count = len(requests)
        numbers = {"-c": count * (prompt + answer), "-npp": prompt, "-ntg": answer, "-npl": count}
        command = [self._programs / "llama-batched-bench", *self._options]
        self._own = OwnProcess([*command, *(str(part) for pair in numbers.items() for part in pair)], {}, self._log)
        process = await self._own.start(pipes=True)
        try:
            output, _ = await asyncio.wait_for(process.communicate(), LOAD_S)
        except TimeoutError:
            raise self._own.failure(f"did not end within {LOAD_S:.0f} s") from None
        told = [line for line in output.decode().splitlines() if line.startswith("{")]
        if process.returncode or len(told) != 1:
            raise self._own.failure(f"ended with status {process.returncode}")
        figures: dict[str, Any] = json.loads(told[0])
        step = figures["t_tg"] / answer
        return [[figures["t_pp"] + step * number for number in range(1, answer + 1)] for _ in requests]

    async def stop(self) -> None:
        """Ends the program where it runs."""
        if self._own is not None:
            await self._own.stop()


async def version(programs: Path) -> str:
    """What llama-server calls itself. Raises SideError where it is missing."""
    try:
        process = await asyncio.create_subprocess_exec(
            programs / "llama-server", "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except FileNotFoundError as error:
        raise SideError("llama-server is missing: run `make install-peers`") from error
    output, _ = await process.communicate()
    lines = [line for line in output.decode().splitlines() if line.startswith("version: ")]
    return lines[0].removeprefix("version: ") if lines else "unknown"
