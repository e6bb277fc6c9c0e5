"""What is tried again, how often and when; over the wire, because that is where it goes wrong."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time

import grpc
import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.scripted import Failure, ScriptedServer

import argosy
from argosy._call import CallPlan
from argosy._config import Config

FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.01)
STARTING = Failure(grpc.StatusCode.UNAVAILABLE, "STARTING", retry_after=0.01)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_refusal_with_a_delay_is_tried_again(face: Face, server: ScriptedServer) -> None:
    server.failures["Generate"] = [FULL, STARTING]
    assert (await face.call(lambda c: c.generation.generate("x"))).text == " Paris."
    calls = server.calls_of("Generate")
    assert len(calls) == 3
    assert len({call.metadata["x-request-id"] for call in calls}) == 1


async def test_a_cluster_whose_front_knows_no_service_yet_is_waited_for(face: Face, server: ScriptedServer) -> None:
    said = "Application 'generation' not found. Ping /ray.serve.RayServeAPIService/ListApplications for more."
    unknown = Failure(grpc.StatusCode.NOT_FOUND, message=said)
    server.failures["LoadAdapter"] = [unknown]
    assert (await face.call(lambda c: c.adapters.load("a", "file:///a"))).name == "pirate"
    server.failures["Generate"] = [unknown] * 5
    with pytest.raises(argosy.ServerStartingError, match="does not serve generation now"):
        await face.call(lambda c: c.generation.generate("x"))


async def test_attempts_are_bounded(face: Face, server: ScriptedServer) -> None:
    server.failures["Generate"] = [FULL] * 5
    with pytest.raises(argosy.QueueFullError) as caught:
        await face.call(lambda c: c.generation.generate("x"))
    assert len(server.calls_of("Generate")) == 3
    assert caught.value.retry_after == pytest.approx(0.01)


async def test_the_servers_delay_is_honoured(face: Face, server: ScriptedServer) -> None:
    server.failures["Encode"] = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.3)]
    await face.call(lambda c: c.tokenization.encode("x"))
    first, second = server.calls_of("Encode")
    assert second.started - first.started >= 0.3


@pytest.mark.parametrize(
    "failure",
    [
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "KV_CACHE_FULL"),
        Failure(grpc.StatusCode.UNAVAILABLE, "ENGINE_FAILED"),
        Failure(grpc.StatusCode.INTERNAL, "INTERNAL", retry_after=0.01),
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=31.0),
    ],
    ids=lambda failure: f"{failure.code.name}-{failure.reason}-{failure.retry_after}",
)
async def test_what_is_not_tried_again(face: Face, server: ScriptedServer, failure: Failure) -> None:
    server.failures["Generate"] = [failure]
    with pytest.raises(argosy.ArgosyError):
        await face.call(lambda c: c.generation.generate("x"))
    assert len(server.calls_of("Generate")) == 1


async def test_no_wait_beyond_the_deadline(face: Face, server: ScriptedServer) -> None:
    server.failures["Generate"] = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=5.0)]
    start = time.monotonic()
    with pytest.raises(argosy.QueueFullError):
        await face.call(lambda c: c.generation.generate("x", timeout=1.0))
    assert time.monotonic() - start < 5.0


async def test_attempts_share_one_deadline(face: Face, server: ScriptedServer) -> None:
    server.failures["Generate"] = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.4)]
    await face.call(lambda c: c.generation.generate("x", timeout=5.0))
    first, second = server.calls_of("Generate")
    told = [int(call.metadata["x-argosy-timeout-ms"]) for call in (first, second)]
    assert 5000 >= told[0] > told[1] + 390
    assert first.time_remaining < 5.2
    assert second.time_remaining < first.time_remaining - 0.35


@pytest.mark.parametrize("before", [[], [answers.KEEP_ALIVE, answers.KEEP_ALIVE]], ids=["at once", "after keep-alives"])
async def test_a_stream_is_tried_again_before_its_first_event(
    face: Face, server: ScriptedServer, before: list[object]
) -> None:
    scripts = [[*before, FULL], answers.stream_generate()]
    server.answers["StreamGenerate"] = lambda _request: scripts.pop(0)
    assert "".join(await face.drain(lambda c: c.generation.stream("x").text())) == " Paris."
    assert len(server.calls_of("StreamGenerate")) == 2


async def test_a_stream_is_never_tried_again_after_its_first_event(face: Face, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = [answers.started(), STARTING]
    seen: list[object] = []
    with pytest.raises(argosy.ServerStartingError):
        await face.drain(lambda c: c.generation.stream("x"), into=seen)
    assert len(seen) == 1
    assert len(server.calls_of("StreamGenerate")) == 1


# What a broken connection looks like: no reason, because no server gave one.
LOST = [Failure(grpc.StatusCode.UNAVAILABLE), Failure(grpc.StatusCode.CANCELLED)]


@pytest.mark.parametrize("lost", LOST, ids=lambda failure: failure.code.name)
async def test_what_only_computes_is_tried_once_more_when_its_connection_breaks(
    face: Face, server: ScriptedServer, lost: Failure
) -> None:
    server.failures["Generate"] = [lost]
    assert (await face.call(lambda c: c.generation.generate("x"))).text == " Paris."
    server.failures["StreamGenerate"] = [lost]
    assert "".join(await face.drain(lambda c: c.generation.stream("x").text())) == " Paris."
    server.failures["Encode"] = [lost, lost]
    with pytest.raises(argosy.ArgosyError):
        await face.call(lambda c: c.tokenization.encode("x"))
    assert len(server.calls_of("Encode")) == 2


# As servers send it, on each engine that a request kills.
ENGINE_FAILED = Failure(grpc.StatusCode.UNAVAILABLE, "ENGINE_FAILED", retry_after=0.01)


async def test_another_engine_is_tried_once(face: Face, server: ScriptedServer) -> None:
    server.failures["Generate"] = [ENGINE_FAILED]
    assert (await face.call(lambda c: c.generation.generate("x"))).text == " Paris."
    server.failures["StreamGenerate"] = [ENGINE_FAILED]
    assert "".join(await face.drain(lambda c: c.generation.stream("x").text())) == " Paris."
    server.failures["LoadAdapter"] = [ENGINE_FAILED]
    assert (await face.call(lambda c: c.adapters.load("a", "file:///a"))).name == "pirate"


@pytest.mark.parametrize(
    "failures",
    [[ENGINE_FAILED] * 2, [ENGINE_FAILED, LOST[0]], [LOST[0], ENGINE_FAILED]],
    ids=["two fail", "one fails and one is lost", "one is lost and one fails"],
)
async def test_a_request_that_kills_engines_does_not_meet_them_all(
    face: Face, server: ScriptedServer, failures: list[Failure]
) -> None:
    server.failures["Generate"] = list(failures)
    with pytest.raises(argosy.UnavailableError):
        await face.call(lambda c: c.generation.generate("x"))
    assert len(server.calls_of("Generate")) == 2
    server.failures["StreamGenerate"] = list(failures)
    with pytest.raises(argosy.UnavailableError):
        await face.drain(lambda c: c.generation.stream("x").text())
    assert len(server.calls_of("StreamGenerate")) == 2


@pytest.mark.parametrize("lost", LOST, ids=lambda failure: failure.code.name)
async def test_what_may_change_something_is_not_done_twice(face: Face, server: ScriptedServer, lost: Failure) -> None:
    for method, use in (
        ("LoadAdapter", lambda c: c.adapters.load("a", "file:///a")),
        ("RunAgent", lambda c: c.agents.run("x").result()),
    ):
        server.failures[method] = [lost]
        with pytest.raises(argosy.ArgosyError):
            await face.call(use)
        assert len(server.calls_of(method)) == 1


async def test_a_server_that_died_in_the_middle_is_given_up_in_the_end(face: Face, server: ScriptedServer) -> None:
    server.delays["Generate"] = 10.0
    threading.Timer(0.3, server.stop).start()
    with pytest.raises(argosy.UnavailableError):
        await face.call(lambda c: c.generation.generate("x"))
    assert len(server.calls_of("Generate")) == 1


@pytest.mark.parametrize("kind", [argosy.Client, argosy.AsyncClient])
async def test_nobody_listens(kind: type) -> None:
    address = f"127.0.0.1:{unused_port()}"
    face = Face(kind(address, retry=argosy.RetryPolicy(max_attempts=2, initial_backoff=0.01)))
    for use in (lambda c: c.generation.generate("x"), lambda c: c.generation.stream("x").result()):
        with pytest.raises(argosy.ConnectError, match=address):
            await face.call(use)
    await face.close()


@pytest.mark.parametrize("kind", [argosy.Client, argosy.AsyncClient])
async def test_a_server_that_comes_a_little_later_is_waited_for(kind: type) -> None:
    port, servers = unused_port(), []
    face = Face(
        kind(f"127.0.0.1:{port}", retry=argosy.RetryPolicy(max_attempts=20, initial_backoff=0.1, multiplier=1.0))
    )

    def start() -> None:
        servers.append(ScriptedServer(port))
        servers[0].answers.update(answers.everything())
        servers[0].start()

    asyncio.get_running_loop().call_later(0.5, start)
    assert (await face.call(lambda c: c.generation.generate("x"))).text == " Paris."
    await face.close()
    servers[0].stop()


def plan(**policy: float) -> CallPlan:
    config = Config(address="a", retry=argosy.RetryPolicy(**policy))  # type: ignore[arg-type]
    return CallPlan(config, "generation", timeout=math.inf, request_id=None)


def test_backoff_grows_and_is_capped() -> None:
    tried = plan(max_attempts=10, initial_backoff=1.0, multiplier=2.0, max_backoff=5.0, jitter=0.0)
    error = argosy.ConnectError("refused")
    assert [tried.retry_in(error) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_refusals_in_between_give_no_further_try_on_another_engine() -> None:
    tried = plan(max_attempts=10, initial_backoff=1.0)
    failed = argosy.EngineFailedError("dead", reason="ENGINE_FAILED", retry_after=1.0)
    full = argosy.QueueFullError("full", reason="QUEUE_FULL", retry_after=1.0)
    assert [tried.retry_in(error) is not None for error in (full, failed, full, failed)] == [True, True, True, False]


def test_jitter_only_lengthens_a_wait() -> None:
    error = argosy.QueueFullError("full", retry_after=2.0)
    waits = [plan(jitter=0.5).retry_in(error) for _ in range(200)]
    assert all(wait is not None and 2.0 <= wait <= 3.0 for wait in waits)
    assert len(set(waits)) > 100


def test_one_attempt_is_no_retry() -> None:
    assert plan(max_attempts=1).retry_in(argosy.ConnectError("refused")) is None


def test_a_policy_without_any_attempt_is_refused() -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        argosy.RetryPolicy(max_attempts=0)
