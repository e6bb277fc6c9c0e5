"""Streams: keep-alives, missing ends, and cancellation however the reader leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import Any

import grpc
import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.scripted import Failure, ScriptedServer

import argosy

# One piece of text, and then nothing for longer than any test waits.
ENDLESS: list[Any] = [answers.started(), answers.delta("Once"), 30.0, answers.finished()]


def call_ended(server: ScriptedServer, method: str = "StreamGenerate") -> bool:
    return server.calls_of(method)[0].ended.wait(3)


async def test_events_come_in_order_and_without_keep_alives(face: Face) -> None:
    events = await face.drain(lambda c: c.generation.stream("x"))
    assert [type(event) for event in events] == [
        argosy.Started,
        argosy.Delta,
        argosy.Delta,
        argosy.Delta,
        argosy.ChoiceFinished,
        argosy.Finished,
    ]
    assert events[0] == argosy.Started(argosy.Origin("r-1", "small", "pirate", "a" * 64), 5)
    assert events[1].text == " Par"
    assert events[-1].usage == argosy.Usage(prompt_tokens=5, cached_tokens=2, completion_tokens=3)
    assert events[-1].timings == argosy.Timings(queue=0.25, total=1.5)


async def test_the_final_answer_is_what_generate_would_have_given(face: Face) -> None:
    whole = await face.call(lambda c: c.generation.generate("x"))
    assert await face.call(lambda c: c.generation.stream("x").result()) == whole


async def test_choices_are_told_apart(face: Face, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = [
        answers.started(),
        answers.delta("a", index=0),
        answers.delta("x", index=1),
        answers.delta("b", index=0),
        answers.choice_finished(1),
        answers.delta("c", index=0),
        answers.choice_finished(0),
        answers.finished(),
    ]
    assert await face.drain(lambda c: c.generation.stream("x", n=2).text()) == ["a", "b", "c"]
    assert await face.drain(lambda c: c.generation.stream("x", n=2).text(1)) == ["x"]
    final = await face.call(lambda c: c.generation.stream("x", n=2).result())
    assert [choice.text for choice in final.choices] == ["abc", "x"]


async def test_events_of_one_message_come_one_by_one(face: Face, server: ScriptedServer) -> None:
    apart = await face.drain(lambda c: c.generation.stream("x"))
    first, _, *rest = answers.stream_generate()
    server.answers["StreamGenerate"] = [answers.batch(first, answers.KEEP_ALIVE), answers.batch(*rest)]
    assert await face.drain(lambda c: c.generation.stream("x")) == apart
    assert server.calls_of("StreamGenerate")[0].request.batch_events


async def test_a_failure_after_a_batch_comes_after_its_events(face: Face, server: ScriptedServer) -> None:
    lost = Failure(grpc.StatusCode.UNAVAILABLE)
    server.answers["StreamGenerate"] = [answers.batch(answers.started(), answers.delta("a"), answers.delta("b")), lost]
    seen: list[Any] = []
    with pytest.raises(argosy.ArgosyError):
        await face.drain(lambda c: c.generation.stream("x"), into=seen)
    assert [type(event) for event in seen] == [argosy.Started, argosy.Delta, argosy.Delta]
    assert len(server.calls_of("StreamGenerate")) == 1


def test_what_is_left_of_a_batch_is_dropped_by_closing(client: argosy.Client, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = [answers.batch(answers.started(), answers.delta("a")), 30.0]
    with client.generation.stream("x") as stream:
        assert isinstance(next(stream), argosy.Started)
    assert call_ended(server)
    assert list(stream) == []


@pytest.mark.parametrize(
    "events",
    [
        [],
        [answers.KEEP_ALIVE],
        [answers.started(), answers.delta("half")],
        [answers.started(), answers.finished()],
        [answers.started(), answers.delta("half"), answers.finished()],
    ],
    ids=["nothing", "keep-alive only", "no finished", "no choice", "open choice"],
)
async def test_an_answer_without_its_end_is_an_error(face: Face, server: ScriptedServer, events: list[Any]) -> None:
    server.answers["StreamGenerate"] = events
    with pytest.raises(argosy.ProtocolError):
        await face.call(lambda c: c.generation.stream("x").result())


async def test_a_failure_in_the_middle_comes_after_what_arrived(face: Face, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = [
        answers.started(),
        answers.delta("half"),
        answers.KEEP_ALIVE,
        Failure(grpc.StatusCode.UNAVAILABLE, "DRAINING", retry_after=1.0),
    ]
    texts: list[str] = []
    with pytest.raises(argosy.ServerDrainingError) as caught:
        await face.drain(lambda c: c.generation.stream("x").text(), into=texts)
    assert texts == ["half"]
    assert caught.value.retry_after == 1.0


async def test_a_deadline_ends_a_stream(face: Face, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    with pytest.raises(argosy.DeadlineExceededError):
        await face.drain(lambda c: c.generation.stream("x", timeout=0.3))
    assert call_ended(server)


def test_final_before_the_end_says_what_to_do(client: argosy.Client) -> None:
    with client.generation.stream("x") as stream, pytest.raises(RuntimeError, match="to its end"):
        _ = stream.final


def test_leaving_the_block_cancels(client: argosy.Client, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    with client.generation.stream("x") as stream:
        assert next(stream.text()) == "Once"
    assert call_ended(server)
    assert list(stream) == []


def test_dropping_the_stream_cancels(client: argosy.Client, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    for text in client.generation.stream("x").text():
        assert text == "Once"
        break
    assert call_ended(server)


def test_closing_from_another_thread_ends_the_iteration(client: argosy.Client, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    stream = client.generation.stream("x")
    threading.Timer(0.3, stream.close).start()
    assert list(stream.text()) == ["Once"]
    assert call_ended(server)


@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
def test_ctrl_c_stays_a_keyboard_interrupt_and_cancels(
    client: argosy.Client, server: ScriptedServer, method: str
) -> None:
    server.delays[method] = 30.0
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        client.generation.generate("x") if method == "Generate" else list(client.generation.stream("x"))
    assert call_ended(server, method)


async def test_aio_leaving_the_block_cancels(aclient: argosy.AsyncClient, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    async with aclient.generation.stream("x") as stream:
        assert await anext(stream.text()) == "Once"
    assert await asyncio.to_thread(call_ended, server)
    assert [event async for event in stream] == []


async def test_aio_dropping_the_stream_cancels(aclient: argosy.AsyncClient, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    stream = aclient.generation.stream("x")
    await anext(stream)
    del stream
    gc.collect()
    assert await asyncio.to_thread(call_ended, server)


async def test_aio_closing_from_another_task_ends_the_iteration(
    aclient: argosy.AsyncClient, server: ScriptedServer
) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    stream = aclient.generation.stream("x")

    async def close_soon() -> None:
        await asyncio.sleep(0.3)
        await stream.close()

    closing = asyncio.create_task(close_soon())
    assert [text async for text in stream.text()] == ["Once"]
    await closing
    assert await asyncio.to_thread(call_ended, server)


@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
async def test_aio_cancelling_the_task_cancels_the_call(
    aclient: argosy.AsyncClient, server: ScriptedServer, method: str
) -> None:
    server.delays[method] = 30.0
    if method == "Generate":
        task = asyncio.create_task(aclient.generation.generate("x"))
    else:
        task = asyncio.create_task(aclient.generation.stream("x").result())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(call_ended, server, method)


async def test_aio_timeout_blocks_work(aclient: argosy.AsyncClient, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = ENDLESS
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await aclient.generation.stream("x").result()
    assert await asyncio.to_thread(call_ended, server)


@pytest.mark.parametrize("when", ["at once", "after text"])
async def test_a_cancellation_by_the_server_is_no_cancellation_of_ours(
    face: Face, server: ScriptedServer, when: str
) -> None:
    before = [] if when == "at once" else [answers.started(), answers.delta("half")]
    server.answers["StreamGenerate"] = [*before, Failure(grpc.StatusCode.CANCELLED, message="RST_STREAM")]
    with pytest.raises(argosy.CallCancelledError, match="RST_STREAM"):
        await face.drain(lambda c: c.generation.stream("x"))


async def test_many_streams_at_once(face: Face) -> None:
    results = await asyncio.gather(*(face.call(lambda c: c.generation.stream("x").result()) for _ in range(12)))
    assert {result.text for result in results} == {" Paris."}
