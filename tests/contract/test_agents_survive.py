"""kill -9 of a server in the middle of runs: each ends once it is resumed, and no effect happens twice or is lost.

`ARGOSY_TEST_KILLS=50 pytest tests/contract/test_agents_survive.py` does so fifty times.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import argosy
from argosy_services.models.types import LocalModel

KILLS = int(os.environ.get("ARGOSY_TEST_KILLS", "4"))

# Each call adds a line, and that is the effect.
SERVER = """
import os, time
from mcp.server.fastmcp import FastMCP

server = FastMCP("notes")

@server.tool()
def note(text: str) -> str:
    "Writes a note."
    with open(os.environ["NOTES"], "a") as file:
        file.write("x\\n")
    time.sleep(0.05)
    return "noted"

server.run("stdio")
"""

# What the tiny model does with the task does not matter, as long as it calls the tool.
BUDGET = argosy.AgentBudget(max_steps=4, max_tokens=400, max_tool_calls=6, max_duration=600)


class Server:
    """A fleet in a process of its own, which can be killed and started again."""

    def __init__(self, directory: Path, model: str, embedder: str) -> None:
        script = directory / "notes.py"
        script.write_text(textwrap.dedent(SERVER))
        self.notes = directory / "notes.txt"
        self.notes.touch()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        mcp = {
            "notes": {"command": [sys.executable, str(script)], "approval": "never", "env": {"NOTES": str(self.notes)}}
        }
        self._environment = {
            **os.environ,
            "ARGOSY_PORT": self.address.rpartition(":")[2],
            "ARGOSY_METRICS_PORT": "0",
            "ARGOSY_DATABASE__DSN": f"sqlite:///{directory / 'fleet.db'}",
            "ARGOSY_GENERATION__MODEL": model,
            "ARGOSY_GENERATION__THREADS": "1",
            "ARGOSY_GENERATION__KV_CACHE_TOKENS": "8192",
            "ARGOSY_EMBEDDINGS__MODEL": embedder,
            "ARGOSY_AGENTS__MCP": json.dumps(mcp),
            "ARGOSY_LOG_LEVEL": "error",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def effects(self) -> int:
        """How often the tool was called."""
        return len(self.notes.read_text().splitlines())

    def start(self) -> None:
        command = [sys.executable, "-c", "from argosy_services.cli import main; main()", "serve"]
        self._process = subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while True:
            try:
                with argosy.Client(self.address, timeout=5) as client:
                    assert "notes.note" in {tool.name for tool in client.agents.list_tools()}
                    return
            except argosy.ArgosyError:
                assert time.monotonic() < until, "the server does not start"
                assert self._process.poll() is None, "the server ended"
                time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: LocalModel, minilm: LocalModel) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("survive"), smollm2.name, minilm.name)
    made.start()
    yield made
    made.kill()


def begin(client: argosy.Client, ids: list[str]) -> None:
    """Runs until the server dies or the run ends."""
    run = client.agents.run(
        "Write three notes: one, two, three.",
        tools=["notes.note"],
        strategy="tool_calling",
        tool_required=True,
        budget=BUDGET,
        detached=True,
    )
    with contextlib.suppress(argosy.ArgosyError):
        for event in run:
            if isinstance(event, argosy.RunStarted):
                ids.append(event.run_id)


@pytest.mark.timeout(60 + 40 * KILLS)
def test_runs_survive_kill_9(server: Server) -> None:
    draw = random.Random(7)
    uncertain = resumed = 0
    for _ in range(KILLS):
        before = server.effects
        ids: list[str] = []
        with argosy.Client(server.address, timeout=120) as client:
            thread = threading.Thread(target=begin, args=(client, ids))
            thread.start()
            time.sleep(draw.uniform(0.05, 2.5))
            server.kill()
            thread.join(30)
            assert not thread.is_alive()
        server.start()
        if not ids:
            continue
        with argosy.Client(server.address, timeout=120) as client:
            if client.agents.get(ids[0]).state != argosy.RunState.FINISHED:
                resumed += 1
                client.agents.resume(ids[0]).result()
            assert client.agents.get(ids[0]).state == argosy.RunState.FINISHED
            events = list(client.agents.replay(ids[0]))
        begun = [event for event in events if isinstance(event, argosy.ToolStarted)]
        results = [event for event in events if isinstance(event, argosy.ToolReturned)]
        doubtful = [event for event in results if "may or may not have taken effect" in event.observation]
        certain = [event for event in results if "noted" in event.observation]
        done = server.effects - before
        assert len({event.call_id for event in begun}) == len(begun), "a call was begun twice"
        assert len(certain) <= done <= len(certain) + len(doubtful), "an effect was lost or happened twice"
        assert done <= len(begun)
        uncertain += len(doubtful)
    print(f"{KILLS} kills: {resumed} runs resumed, {uncertain} calls told as uncertain, {server.effects} effects")
