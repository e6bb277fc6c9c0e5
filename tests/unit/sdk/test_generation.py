"""Requests as they reach the server, and answers as they reach the caller."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.scripted import ScriptedServer

import argosy
from argosy._convert import generation as convert
from argosy.api.common.v1 import chat_pb2
from argosy.api.generation.v1 import generation_pb2

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def spec(prompt: Any = "x", **options: Any) -> generation_pb2.GenerationSpec:
    return convert.spec(prompt, options)  # type: ignore[arg-type]


async def test_a_whole_answer(face: Face) -> None:
    answer = await face.call(lambda c: c.generation.generate("The capital of France is"))
    assert answer.text == " Paris."
    assert answer.finish_reason is argosy.FinishReason.STOP
    assert answer.origin.model == "small"
    (choice,) = answer.choices
    assert choice.token_ids == (7, 8, 9)
    assert (choice.stop_string, choice.stop_token_id) == ("\n", None)
    assert [entry.chosen.token_id for entry in choice.logprobs] == [7, 8, 9]
    assert answer.usage.cached_tokens == 2
    assert answer.timings.total == 1.5
    assert answer.timings.decode is None


async def test_both_methods_send_the_same_spec(face: Face, server: ScriptedServer) -> None:
    options = {"model": "small", "adapter": "pirate", "temperature": 0.0, "max_tokens": 3, "json_schema": SCHEMA}
    await face.call(lambda c: c.generation.generate("x", **options))
    await face.call(lambda c: c.generation.stream("x", **options).result())
    first, second = server.calls
    assert first.request.spec == second.request.spec == spec("x", **options)


def test_what_is_not_given_is_not_sent() -> None:
    assert spec("hello") == generation_pb2.GenerationSpec(text="hello")
    assert not spec("hello", temperature=None).HasField("sampling")


def test_zero_is_sent() -> None:
    sampling = spec(temperature=0.0, seed=0, top_k=0, logprobs=0).sampling
    assert all(sampling.HasField(name) for name in ("temperature", "seed", "top_k", "logprobs"))


def test_every_sampling_option_reaches_its_field() -> None:
    values: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
        "logit_bias": {5: -100.0},
        "seed": 2**63,
        "max_tokens": 7,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "stop_token_ids": (1, 2),
        "ignore_eos": True,
        "n": 3,
        "logprobs": 4,
    }
    assert values.keys() == argosy.SamplingOptions.__annotations__.keys()
    assert values.keys() == set(generation_pb2.SamplingParams.DESCRIPTOR.fields_by_name.keys())
    expected = {**values, "stop_token_ids": [1, 2]}
    assert spec(**values).sampling == generation_pb2.SamplingParams(**expected)


def test_one_stop_text_is_not_a_list_of_characters() -> None:
    assert list(spec(stop="END").sampling.stop) == ["END"]


def test_token_ids_as_lists_and_arrays() -> None:
    assert list(spec([1, 2, 3]).tokens.ids) == [1, 2, 3]
    assert list(spec(np.array([1, 2, 3])).tokens.ids) == [1, 2, 3]
    assert spec([]).WhichOneof("prompt") == "tokens"


def test_a_conversation_of_dicts_and_of_messages() -> None:
    call = argosy.ToolCall("weather", {"city": "Paris"}, id="c1")
    dicts = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?", "name": "ann"},
        {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}, "id": "c1"}]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    messages = [
        argosy.ChatMessage("system", "Be brief."),
        argosy.ChatMessage("user", "Weather?", name="ann"),
        argosy.ChatMessage("assistant", tool_calls=[call]),
        argosy.ChatMessage("tool", "rain", tool_call_id="c1"),
    ]
    tool = argosy.Tool("weather", "Tells the weather.", SCHEMA)
    sent = spec(dicts, tools=[tool])
    assert sent == spec(messages, tools=[tool])
    assert [message.role for message in sent.chat.messages] == [
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_USER,
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_TOOL,
    ]
    assert json.loads(sent.chat.messages[2].tool_calls[0].arguments_json) == {"city": "Paris"}
    assert json.loads(sent.chat.tools[0].parameters_json_schema) == SCHEMA
    assert not sent.chat.HasField("add_generation_prompt")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"json_schema": SCHEMA}, generation_pb2.StructuredOutput(json_schema=json.dumps(SCHEMA))),
        ({"json_schema": '{"type": "integer"}'}, generation_pb2.StructuredOutput(json_schema='{"type": "integer"}')),
        ({"regex": "a|b"}, generation_pb2.StructuredOutput(regex="a|b")),
        ({"lark": 'start: "a"'}, generation_pb2.StructuredOutput(lark='start: "a"')),
        (
            {"choice": ["yes", "no"]},
            generation_pb2.StructuredOutput(choice=generation_pb2.TextChoice(options=["yes", "no"])),
        ),
    ],
)
def test_forms_of_an_answer(options: dict[str, Any], expected: generation_pb2.StructuredOutput) -> None:
    assert spec(**options).structured_output == expected


@pytest.mark.parametrize(
    ("prompt", "options", "complaint"),
    [
        ("x", {"temprature": 1.0}, (TypeError, "unknown options: temprature")),
        ("x", {"json_schema": "{}", "regex": "a"}, (ValueError, "json_schema and regex")),
        ("x", {"choice": "yes"}, (TypeError, "choice must be a sequence")),
        ("x", {"top_k": -1}, (ValueError, "top_k: ")),
        ("x", {"temperature": "hot"}, (TypeError, "temperature: ")),
        ("x", {"tools": [argosy.Tool("t", "d")]}, (ValueError, "conversation")),
        ([1, -2], {}, (ValueError, "prompt: ")),
        ([1, "two"], {}, (TypeError, "prompt: ")),
        ([{"role": "robot", "content": "x"}], {}, (ValueError, r"messages\[0\].role must be one of system, user")),
        ([{"role": "user", "text": "x"}], {}, (TypeError, r"messages\[0\]: .*'text'")),
        ([{"role": "user", "content": "x"}, "loose"], {}, (TypeError, r"messages\[1\] must be")),
    ],
)
async def test_wrong_use_is_told_before_anything_is_sent(
    face: Face, server: ScriptedServer, prompt: Any, options: dict[str, Any], complaint: tuple[type[Exception], str]
) -> None:
    with pytest.raises(complaint[0], match=complaint[1]):
        await face.call(lambda c: c.generation.generate(prompt, **options))
    assert server.calls == []


async def test_structured_answers_are_parsed(face: Face, server: ScriptedServer) -> None:
    server.answers["Generate"] = answers.generate('{"city": "Paris"}')
    answer = await face.call(lambda c: c.generation.generate("x", json_schema=SCHEMA))
    assert answer.json() == {"city": "Paris"}


async def test_an_answer_without_choices_breaks_the_contract(face: Face, server: ScriptedServer) -> None:
    empty = answers.generate()
    del empty.choices[:]
    server.answers["Generate"] = empty
    with pytest.raises(argosy.ProtocolError):
        await face.call(lambda c: c.generation.generate("x"))


async def test_a_finish_reason_from_the_future_is_unknown(face: Face, server: ScriptedServer) -> None:
    future = answers.generate()
    future.choices[0].finish_reason = 77  # type: ignore[assignment]
    server.answers["Generate"] = future
    assert (await face.call(lambda c: c.generation.generate("x"))).finish_reason is argosy.FinishReason.UNKNOWN


async def test_scores(face: Face, server: ScriptedServer) -> None:
    scoring = await face.call(lambda c: c.generation.score([("Paris is in", " France"), ([1, 2], [3])], model="small"))
    assert scoring.scores == (argosy.Score(-1.25, True, (argosy.TokenLogprob(7, -1.25),)),)
    request = server.calls[0].request
    assert (request.items[0].context_text, request.items[0].continuation_text) == ("Paris is in", " France")
    assert list(request.items[1].context_tokens.ids) == [1, 2]
    assert list(request.items[1].continuation_tokens.ids) == [3]


async def test_models_come_over_all_pages(face: Face, server: ScriptedServer) -> None:
    models = await face.drain(lambda c: c.generation.list_models(page_size=2))
    assert [model.name for model in models] == ["small", "spare", "tiny"]
    assert [(call.request.page_size, call.request.page_token) for call in server.calls] == [(2, ""), (2, "2")]


async def test_pages_are_fetched_as_they_are_needed(client: argosy.Client, server: ScriptedServer) -> None:
    models = client.generation.list_models()
    assert server.calls == []
    next(models)
    assert len(server.calls) == 1


async def test_one_model(face: Face) -> None:
    model = await face.call(lambda c: c.generation.get_model())
    assert model == argosy.Model(
        name="small",
        architecture="LlamaForCausalLM",
        engine="torch",
        dtype="float32",
        device="cpu",
        parameter_count=134_515_008,
        max_context_tokens=8192,
        vocabulary_size=49_152,
        tokenizer_fingerprint=answers.FINGERPRINT,
        model_fingerprint="e" * 64,
        max_adapters=16,
        max_adapter_rank=64,
        is_default=True,
    )


def test_priority_and_salt_are_fields_of_the_request() -> None:
    assert spec(priority=-2, cache_salt="a") == generation_pb2.GenerationSpec(text="x", priority=-2, cache_salt="a")
    with pytest.raises(TypeError, match="priority"):
        spec(priority="high")


async def test_scores_have_a_standing_as_well(face: Face, server: ScriptedServer) -> None:
    await face.call(lambda c: c.generation.score([("a", "b")], priority=-1, cache_salt="s"))
    assert (server.calls[0].request.priority, server.calls[0].request.cache_salt) == (-1, "s")


async def test_explain(face: Face, server: ScriptedServer) -> None:
    found = await face.call(lambda c: c.generation.explain("req-1"))
    assert server.calls_of("Explain")[-1].request.request_id == "req-1"
    assert found == argosy.Explanation(
        request_id="req-1",
        state=argosy.RequestState.FINISHED,
        reason="",
        model="small",
        adapter="pirate",
        priority=-1,
        arrived=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        seconds=2.0,
        stages=(argosy.StageTime(argosy.Stage.QUEUE, 1.5), argosy.StageTime(argosy.Stage.PREFILL, 0.5)),
        waits=(
            argosy.Wait(argosy.WaitCause.ADAPTER, 0.25, adapter="pirate"),
            argosy.Wait(argosy.WaitCause.QUEUE, 1.5, argosy.Ahead(1, 2, 1, 300), short_of="blocks"),
            argosy.Wait(argosy.WaitCause.PREEMPTION, 0.125, times=2),
        ),
        sequence_count=1,
        prompt_tokens=40,
        cached_tokens=16,
        completion_tokens=8,
    )
