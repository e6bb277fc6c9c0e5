"""The server as a process: its exit codes, its signals and what it logs."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from argosy.api.embeddings.v1 import embeddings_service_pb2 as pb
from argosy.api.embeddings.v1 import embeddings_service_pb2_grpc as pb_grpc

PROGRAM = Path(__file__).parent / "small_fleet.py"
# Eight threads allocate at the same time; the C library then writes down the arenas that it has.
ALLOCATING = """
import ctypes, threading
from argosy_services import process

process.begin()
library, together = ctypes.CDLL(None), threading.Barrier(8)

def allocate():
    kept = bytearray(100_000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""
KEY = "correct-horse-battery"


class Process:
    """A running server and the log lines it has written."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    def line(self, event: str) -> dict[str, Any]:
        """Reads on until a line of this event."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"no line '{event}' in {self.lines}")

    def end(self) -> int:
        """Waits for the end, reads what is left and returns the exit code."""
        assert self.process.stderr is not None
        self.lines += [json.loads(text) for text in self.process.stderr]
        return self.process.wait(timeout=20)


@contextmanager
def started(**environment: str) -> Iterator[Process]:
    variables = {"ARGOSY_PORT": "0", "ARGOSY_METRICS_PORT": "0", **environment}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")}
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)], env={**kept, **variables}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def test_a_server_starts_answers_and_ends_with_zero() -> None:
    with started(ARGOSY_API_KEYS=KEY) as server:
        ready = server.line("ready")
        assert ready["seconds"] < 30
        with grpc.insecure_channel(ready["address"]) as channel:
            metadata = (("authorization", f"Bearer {KEY}"), ("x-request-id", "abc"))
            pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest(), metadata=metadata, timeout=5)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert [line["event"] for line in server.lines] == ["starting", "loading", "ready", "rpc", "draining", "stopped"]
    assert server.lines[0]["settings"]["api_keys"] == ["**********"]
    assert KEY not in json.dumps(server.lines)
    assert server.lines[3]["request_id"] == "abc"
    assert all(line["timestamp"] and line["level"] == "info" for line in server.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_calls_finish(number: signal.Signals) -> None:
    with started() as server:
        ready = server.line("ready")
        with grpc.insecure_channel(ready["address"]) as channel:
            stub = pb_grpc.EmbeddingsServiceStub(channel)
            stub.Embed(pb.EmbedRequest(), timeout=5)
            call = stub.Embed.future(pb.EmbedRequest(model="slow", texts=["0.5"]), timeout=20)
            time.sleep(0.2)
            server.process.send_signal(number)
            assert server.line("draining")["calls"] == 1
            assert call.result().model == "slow"
        assert server.end() == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with started() as server:
        ready = server.line("ready")
        with grpc.insecure_channel(ready["address"]) as channel:
            call = pb_grpc.EmbeddingsServiceStub(channel).Embed.future(
                pb.EmbedRequest(model="slow", texts=["60"]), timeout=90
            )
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            server.line("draining")
            before = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 128 + signal.SIGTERM
            assert time.monotonic() - before < 5
            assert call.exception(timeout=5).code() is grpc.StatusCode.UNAVAILABLE


def test_calls_that_take_too_long_are_cut_off() -> None:
    with started(ARGOSY_DRAIN_SECONDS="0.2") as server:
        ready = server.line("ready")
        with grpc.insecure_channel(ready["address"]) as channel:
            call = pb_grpc.EmbeddingsServiceStub(channel).Embed.future(
                pb.EmbedRequest(model="slow", texts=["60"]), timeout=90
            )
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            assert call.exception(timeout=10).code() is grpc.StatusCode.UNAVAILABLE
        assert server.end() == 0
    assert "calls cut off" in [line["event"] for line in server.lines]


def test_a_signal_while_loading_is_not_waited_out() -> None:
    with started(ARGOSY_GENERATION__MODEL="slow") as server:
        server.line("loading")
        before = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing", "cannot load the models: no model 'missing'; fetch it with `argosy models pull missing`"),
        ("corrupt", "cannot load the models: ValueError: header too large; check their files with"),
    ],
)
def test_a_failed_load_is_one_clear_line(model: str, message: str) -> None:
    with started(ARGOSY_GENERATION__MODEL=model) as server:
        assert server.end() == 1
    (line,) = [line for line in server.lines if line["level"] == "error"]
    assert line["event"].startswith(message)
    assert "exception" not in line


def test_a_failed_load_shows_its_traceback_where_debugging() -> None:
    with started(ARGOSY_GENERATION__MODEL="corrupt", ARGOSY_LOG_LEVEL="debug") as server:
        assert server.end() == 1
    (line,) = [line for line in server.lines if line["level"] == "error"]
    assert "Traceback" in line["exception"]


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with started(ARGOSY_PORT=str(port)) as server:
            assert server.end() == 1
    (line,) = [line for line in server.lines if line["level"] != "info"]
    assert line["event"].startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use; ")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="only GNU's C library has arenas")
@pytest.mark.parametrize(
    ("given", "arenas"), [({}, 2), ({"MALLOC_ARENA_MAX": "3"}, 3), ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, 4)]
)
def test_many_threads_share_few_arenas_unless_told_otherwise(given: dict[str, str], arenas: int) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", ALLOCATING]
    ran = subprocess.run(command, env={**kept, **given}, capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout.count("<heap nr=") == arenas


def test_a_server_whose_engine_has_failed_ends_to_be_started_anew() -> None:
    with started(ARGOSY_GENERATION__MODEL="fatal") as server:
        assert server.end() == 1
    events = [line["event"] for line in server.lines]
    assert events[-3:] == [
        "an engine has failed for good; the server ends, so that it is started anew",
        "draining",
        "stopped",
    ]
