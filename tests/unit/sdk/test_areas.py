"""Tokenization, embeddings, adapters and agents, over the wire and through both faces."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.scripted import ScriptedServer

import argosy
from argosy.api.adapters.v1 import adapters_service_pb2
from argosy.api.agents.v1 import agents_service_pb2
from argosy.api.embeddings.v1 import embeddings_service_pb2
from argosy.api.tokenization.v1 import tokenization_service_pb2

MESSAGES = [{"role": "user", "content": "Hello"}]

# ---- Tokenization ----


async def test_encode(face: Face, server: ScriptedServer) -> None:
    encoding = await face.call(lambda c: c.tokenization.encode("héllo you", byte_spans=True, tokens=True))
    assert encoding == argosy.Encoding((6, 3), ((0, 6), (7, 10)), ("héllo", "you"), 0, answers.FINGERPRINT)
    assert server.calls[0].request.add_special_tokens is True
    assert not server.calls[0].request.HasField("max_tokens")


async def test_encode_batch(face: Face, server: ScriptedServer) -> None:
    encodings = await face.call(
        lambda c: c.tokenization.encode_batch(
            ["a", "bb cc"], model="small", add_special_tokens=False, max_tokens=4, truncate="left"
        )
    )
    assert [encoding.ids for encoding in encodings] == [(1,), (2, 2)]
    assert server.calls[0].request == tokenization_service_pb2.EncodeRequest(
        model="small",
        texts=["a", "bb cc"],
        add_special_tokens=False,
        max_tokens=4,
        truncation_side=tokenization_service_pb2.TRUNCATION_SIDE_LEFT,
    )


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda c: c.tokenization.encode_batch("text"), TypeError, "not one text"),
        (lambda c: c.tokenization.encode("x", truncate="middle"), ValueError, "'left' or 'right'"),
        (lambda c: c.tokenization.encode("x", max_tokens=-1), ValueError, "max_tokens"),
        (lambda c: c.tokenization.decode([-1]), ValueError, r"inputs\[0\]"),
        (lambda c: c.embeddings.embed(["x"], dimensions=-1), ValueError, "dimensions"),
        (lambda c: c.agents.run("x", tools="calculator").result(), TypeError, "tools"),
        (lambda c: c.agents.run("x", budget=argosy.AgentBudget(max_steps=-1)).result(), ValueError, "budget.max_steps"),
    ],
)
async def test_wrong_use(face: Face, use: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        await face.call(use)


async def test_decode(face: Face, server: ScriptedServer) -> None:
    assert await face.call(lambda c: c.tokenization.decode([2, 1], skip_special_tokens=False)) == "xx x"
    assert await face.call(lambda c: c.tokenization.decode_batch([[1], [2]])) == ["x", "xx"]
    assert [call.request.skip_special_tokens for call in server.calls] == [False, True]


async def test_count_tokens(face: Face) -> None:
    assert await face.call(lambda c: c.tokenization.count_tokens("a b c")) == 3
    assert await face.call(lambda c: c.tokenization.count_tokens(MESSAGES)) == 42
    assert await face.call(lambda c: c.tokenization.count_tokens_batch(["a", "a b"])) == [1, 2]


async def test_too_few_results_break_the_contract(face: Face, server: ScriptedServer) -> None:
    server.answers["Encode"] = tokenization_service_pb2.EncodeResponse()
    server.answers["Decode"] = tokenization_service_pb2.DecodeResponse()
    server.answers["CountTokens"] = tokenization_service_pb2.CountTokensResponse()
    for use in (
        lambda c: c.tokenization.encode("x"),
        lambda c: c.tokenization.decode([1]),
        lambda c: c.tokenization.count_tokens("x"),
    ):
        with pytest.raises(argosy.ProtocolError, match="0 results for 1"):
            await face.call(use)


async def test_render_chat(face: Face, server: ScriptedServer) -> None:
    plain = await face.call(lambda c: c.tokenization.render_chat(MESSAGES, add_generation_prompt=False))
    assert plain == argosy.RenderedChat("<2>Hello", (), answers.FINGERPRINT)
    assert (await face.call(lambda c: c.tokenization.render_chat(MESSAGES, ids=True))).ids == (1, 2, 3)
    assert [call.request.chat.add_generation_prompt for call in server.calls] == [False, True]


async def test_get_tokenizer(face: Face) -> None:
    tokenizer = await face.call(lambda c: c.tokenization.get_tokenizer())
    assert tokenizer.special_tokens == (argosy.SpecialToken("<|end|>", 0),)
    # 0 is an id; None means that there is no such token.
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, None)


async def test_download_tokenizer(face: Face, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("an older one")
    paths = await face.call(lambda c: c.tokenization.download_tokenizer(tmp_path / "." / "", model="small"))
    assert paths == [tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"]
    assert paths[0].read_bytes() == b'{"version": "1.0"}'
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    "parts",
    [
        answers.tokenizer_file("../escape.json", b"{}"),
        answers.tokenizer_file("/etc/passwd", b"{}"),
        answers.tokenizer_file(".hidden", b"{}"),
        answers.tokenizer_file("a\\b", b"{}"),
        answers.tokenizer_file("", b"{}"),
        [*answers.tokenizer_file("twice.json", b"{}"), *answers.tokenizer_file("twice.json", b"{}")],
        answers.tokenizer_file("t.json", b"{}", sha256="0" * 64),
        answers.tokenizer_file("t.json", b"{}", size=1),
        answers.tokenizer_file("t.json", b"{}", size=3),
        answers.tokenizer_file("t.json", b"{}", size=1 << 40),
        answers.tokenizer_file("t.json", b"{}")[1:],
        [part for number in range(20) for part in answers.tokenizer_file(f"{number}.json", b"{}")],
        [],
    ],
    ids=lambda parts: str(len(parts)),
)
async def test_nothing_of_a_bad_download_stays(
    face: Face, server: ScriptedServer, tmp_path: Path, parts: list[Any]
) -> None:
    (tmp_path / "t.json").write_text("kept")
    server.answers["StreamTokenizerFiles"] = parts
    with pytest.raises(argosy.ProtocolError):
        await face.call(lambda c: c.tokenization.download_tokenizer(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert (tmp_path / "t.json").read_text() == "kept"


# ---- Embeddings ----


@pytest.mark.parametrize("packed", [True, False])
async def test_embed(face: Face, server: ScriptedServer, packed: bool) -> None:
    result = await face.call(lambda c: c.embeddings.embed(["a", "bcd"], packed=packed, normalize=False, dimensions=3))
    assert result.vectors == [[1.0, 1.0, 0.0], [3.0, 1.0, 0.0]]
    assert len(result) == 2
    assert result[-1].tolist() == [3.0, 1.0, 0.0]
    assert [row.tolist() for row in result] == result.vectors
    assert result.tokens == (1, 3)
    assert result.truncated == (False, False)
    with pytest.raises(IndexError):
        result[2]
    request = server.calls[0].request
    assert request.format == (
        embeddings_service_pb2.EMBEDDING_FORMAT_PACKED if packed else embeddings_service_pb2.EMBEDDING_FORMAT_FLOATS
    )
    assert (request.normalize, request.HasField("truncate"), request.dimensions) == (False, False, 3)


@pytest.mark.parametrize("packed", [True, False])
async def test_vectors_as_an_array_without_a_copy(face: Face, packed: bool) -> None:
    result = await face.call(lambda c: c.embeddings.embed(["a", "bcd"], packed=packed))
    array = result.numpy()
    assert array.dtype == np.float32
    assert array.shape == (2, 3)
    assert array.tolist() == result.vectors
    assert np.shares_memory(array, np.asarray(result.buffer))


async def test_one_text_is_not_a_list_of_characters(face: Face, server: ScriptedServer) -> None:
    assert len(await face.call(lambda c: c.embeddings.embed("word"))) == 1
    assert list(server.calls[0].request.texts) == ["word"]


@pytest.mark.parametrize("packed", [b"", b"\0" * 11, b"\0" * 16, b"\0" * 13])
async def test_vectors_of_the_wrong_size_break_the_contract(face: Face, server: ScriptedServer, packed: bytes) -> None:
    response = embeddings_service_pb2.EmbedResponse(packed=packed, dimensions=3)
    response.embeddings.add(tokens=1)
    server.answers["Embed"] = response
    with pytest.raises(argosy.ProtocolError):
        await face.call(lambda c: c.embeddings.embed("x"))


async def test_the_embedding_model(face: Face) -> None:
    model = await face.call(lambda c: c.embeddings.get_model("tiny-embedder"))
    assert (model.dimensions, model.pooling, model.normalizes) == (3, argosy.Pooling.MEAN, True)


# ---- Adapters ----


async def test_load_waits_until_the_adapter_is_ready(face: Face, server: ScriptedServer) -> None:
    adapter = await face.call(lambda c: c.adapters.load("pirate", Path("/adapters/pirate"), base_model="small"))
    assert adapter.state is argosy.AdapterState.READY
    assert adapter.create_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    load, watch = server.calls
    assert load.request == adapters_service_pb2.LoadAdapterRequest(
        name="pirate", source="file:///adapters/pirate", base_model="small"
    )
    assert watch.request == adapters_service_pb2.WatchAdaptersRequest(names=["pirate"], until_settled=True)
    assert watch.time_remaining is not None
    # On the wire gRPC rounds long times up to whole seconds.
    assert watch.time_remaining < 602


async def test_load_without_waiting(face: Face, server: ScriptedServer) -> None:
    adapter = await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate", wait=False))
    assert adapter.state is argosy.AdapterState.PENDING
    assert len(server.calls) == 1


async def test_an_adapter_that_is_ready_already_is_not_watched(face: Face, server: ScriptedServer) -> None:
    server.answers["LoadAdapter"] = adapters_service_pb2.LoadAdapterResponse(adapter=answers.adapter("READY"))
    await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate"))
    assert len(server.calls) == 1


async def test_a_failed_adapter_raises_what_is_wrong_with_it(face: Face, server: ScriptedServer) -> None:
    server.answers["WatchAdapters"] = answers.watch("PENDING", "VALIDATING", "FAILED")
    with pytest.raises(argosy.WrongBaseModelError, match="trained for another model") as caught:
        await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate"))
    assert caught.value.reason == "WRONG_BASE_MODEL"
    assert caught.value.metadata == {"adapter": "pirate"}


async def test_an_adapter_that_someone_unloads_meanwhile(face: Face, server: ScriptedServer) -> None:
    server.answers["WatchAdapters"] = answers.watch("LOADING", "UNLOADED")
    with pytest.raises(argosy.AdapterNotReadyError):
        await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate"))


async def test_a_watch_that_ends_too_early(face: Face, server: ScriptedServer) -> None:
    server.answers["WatchAdapters"] = answers.watch("LOADING")
    with pytest.raises(argosy.ProtocolError):
        await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate"))


async def test_whoever_waits_for_an_adapter_lets_the_server_end_the_watch(face: Face, server: ScriptedServer) -> None:
    cancelled: list[bool] = []

    def watch(_: object) -> Iterator[object]:
        yield from answers.watch("LOADING", "READY")
        cancelled.append(server.calls_of("WatchAdapters")[0].ended.wait(0.3))

    server.answers["WatchAdapters"] = watch
    assert (await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate"))).state == "ready"
    assert cancelled == [False]


async def test_loading_and_waiting_share_one_deadline(face: Face, server: ScriptedServer) -> None:
    server.delays["LoadAdapter"] = 0.5
    server.answers["WatchAdapters"] = [*answers.watch("LOADING"), 30.0]
    with pytest.raises(argosy.DeadlineExceededError):
        await face.call(lambda c: c.adapters.load("pirate", "file:///adapters/pirate", timeout=2.0))
    remaining = server.calls[1].time_remaining
    assert remaining is not None
    assert remaining < 1.55


async def test_unload(face: Face, server: ScriptedServer) -> None:
    server.answers["WatchAdapters"] = answers.watch("DRAINING", "UNLOADED")
    adapter = await face.call(lambda c: c.adapters.unload("pirate", drain_timeout=2.5))
    assert adapter.state is argosy.AdapterState.UNLOADED
    assert server.calls[0].request.drain_timeout.ToMilliseconds() == 2500
    adapter = await face.call(lambda c: c.adapters.unload("pirate", wait=False))
    assert adapter.state is argosy.AdapterState.DRAINING
    assert not server.calls[2].request.HasField("drain_timeout")


async def test_list_get_and_watch(face: Face, server: ScriptedServer) -> None:
    assert [adapter.name for adapter in await face.drain(lambda c: c.adapters.list())] == ["pirate"]
    assert (await face.call(lambda c: c.adapters.get("pirate"))).target_modules == ("q_proj", "v_proj")
    events = await face.drain(lambda c: c.adapters.watch())
    assert [event if isinstance(event, argosy.SnapshotComplete) else event.state for event in events] == [
        argosy.AdapterState.PENDING,
        argosy.SnapshotComplete(5),
        argosy.AdapterState.LOADING,
        argosy.AdapterState.READY,
    ]
    assert server.calls_of("WatchAdapters")[0].time_remaining is None


# ---- Agents ----


async def test_a_run(face: Face, server: ScriptedServer) -> None:
    budget = argosy.AgentBudget(max_steps=4, max_tokens=100, max_duration=1.5)
    events = await face.drain(lambda c: c.agents.run("17 * 23?", tools=["calculator"], budget=budget, temperature=0.0))
    assert [type(event) for event in events] == [
        argosy.RunStarted,
        argosy.ThoughtDelta,
        argosy.ThoughtDelta,
        argosy.ToolRequested,
        argosy.ToolReturned,
        argosy.Answer,
        argosy.RunFinished,
    ]
    assert events[0].budget == argosy.AgentBudget(8, 2048, 120.0)
    assert events[3].arguments == {"expression": "17 * 23"}
    assert (events[4].observation, events[4].is_error, events[4].duration) == ("391", False, 0.002)
    assert (events[-1].outcome, events[-1].duration) == (argosy.RunOutcome.ANSWERED, 3.0)
    spec = server.calls[0].request.spec
    assert (spec.budget.max_steps, spec.budget.max_tokens, spec.budget.max_duration.ToMilliseconds()) == (4, 100, 1500)
    assert spec.HasField("temperature")
    assert not spec.HasField("seed")


async def test_the_answer_of_a_run(face: Face) -> None:
    assert await face.call(lambda c: c.agents.run("x").result()) == "It is 391."


def test_the_answer_while_a_run_goes_on(client: argosy.Client) -> None:
    run = client.agents.run("x")
    assert (run.answer, run.finished) == (None, None)
    assert run.result() == run.answer == "It is 391."
    assert run.finished is not None


async def test_a_run_without_its_end(face: Face, server: ScriptedServer) -> None:
    server.answers["RunAgent"] = answers.run_agent()[:-1]
    with pytest.raises(argosy.ProtocolError, match="run-1"):
        await face.call(lambda c: c.agents.run("x").result())


async def test_tool_arguments_that_are_no_json_object(face: Face, server: ScriptedServer) -> None:
    for arguments in ("{", "[1]"):
        events = answers.run_agent()
        events[4].tool_requested.arguments_json = arguments
        server.answers["RunAgent"] = events
        with pytest.raises(argosy.ProtocolError, match="tool's arguments"):
            await face.call(lambda c: c.agents.run("x").result())


async def test_an_event_from_the_future_is_skipped(face: Face, server: ScriptedServer) -> None:
    future = agents_service_pb2.RunAgentResponse.FromString(b"\x08\x09" + b"\xfa\x01\x02hi")
    server.answers["RunAgent"] = [*answers.run_agent()[:2], future, *answers.run_agent()[2:]]
    assert len(await face.drain(lambda c: c.agents.run("x"))) == 7


async def test_tools(face: Face) -> None:
    assert await face.drain(lambda c: c.agents.list_tools()) == [
        argosy.ToolInfo("calculator", "Computes an expression.", {"type": "object"})
    ]
