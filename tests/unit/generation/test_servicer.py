"""The service as clients see it: a real server on loopback and the generated stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from argosy.api.common.v1 import chat_pb2, usage_pb2
from argosy.api.generation.v1 import generation_pb2, generation_service_pb2, generation_service_pb2_grpc
from argosy_services.engine.base import Request
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.servicer import GenerationServicer
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.dispatch import MethodTable
from argosy_services.rpc.gate import Gate

from .conftest import EOS, Stage, eventually
from .scripted import Script, logprob_of

TokenIds = usage_pb2.TokenIds
Spec = generation_pb2.GenerationSpec
Sampling = generation_pb2.SamplingParams
Form = generation_pb2.StructuredOutput
GenerateRequest = generation_service_pb2.GenerateRequest
Event = generation_service_pb2.StreamGenerateResponse
StreamGenerateRequest = generation_service_pb2.StreamGenerateRequest
ScoreRequest = generation_service_pb2.ScoreRequest
ScoreItem = generation_service_pb2.ScoreItem
Stub = generation_service_pb2_grpc.GenerationServiceStub

LONG = "on and on " * 40


@asynccontextmanager
async def served(stage: Stage, auth: Authenticator | None = None) -> AsyncIterator[str]:
    """A server with this one service; gives its address."""
    gate, auth = Gate(), auth or Authenticator()
    gate.open()
    methods = MethodTable(gate, auth)
    servicer = GenerationServicer(stage.service, gate, auth)
    generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, methods)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(grace=None)


@pytest.fixture
async def stub(stage: Stage) -> AsyncIterator[Stub]:
    async with served(stage) as address, grpc.aio.insecure_channel(address) as channel:
        yield Stub(channel)


async def read(stub: Stub, asked: Spec) -> list[Event]:
    return [event async for event in stub.StreamGenerate(StreamGenerateRequest(spec=asked))]


def spec(**fields: object) -> Spec:
    return Spec(**{"text": "Say something", **fields})


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info


async def test_a_whole_answer(stub: Stub, stage: Stage) -> None:
    stage.says("Hello 🙂, world", "Bye. Never said", cached_tokens=2)
    sampling = Sampling(n=2, logprobs=1, stop=[" Never"], seed=1, temperature=0)
    call = stub.Generate(GenerateRequest(spec=spec(sampling=sampling)), metadata=(("x-request-id", "mine"),))
    answer = await call
    assert answer.origin == generation_pb2.Origin(request_id="mine", model=stage.service.model("").name)
    first, second = answer.choices
    ids = [*stage.ids("Hello 🙂, world"), EOS]
    assert (first.index, first.text, list(first.token_ids)) == (0, "Hello 🙂, world", ids)
    assert first.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert (first.stop_token_id, first.HasField("stop_string")) == (EOS, False)
    assert (second.index, second.text, second.stop_string) == (1, "Bye.", " Never")
    assert not second.HasField("stop_token_id")
    assert [entry.chosen.token_id for entry in first.logprobs] == ids
    assert first.logprobs[0].chosen.logprob == pytest.approx(logprob_of(ids[0]).logprob)
    assert [likely.token_id for likely in first.logprobs[0].top] == [ids[0], 0]
    prompt = stage.tokenizer.encode("Say something")
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (len(prompt), 2)
    assert answer.usage.completion_tokens == len(first.token_ids) + len(second.token_ids)
    assert answer.timings.prefill.ToNanoseconds() == 500_000_000
    assert answer.timings.total.ToNanoseconds() > answer.timings.tokenization.ToNanoseconds() > 0
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


async def test_a_stream(stub: Stub, stage: Stage) -> None:
    answer = "Hello 🙂🇩🇪, 漢字"
    stage.says(answer)
    events = await read(stub, spec())
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["choice_finished", "finished"]
    assert set(kinds[1:-2]) == {"delta"}
    assert "".join(event.delta.text for event in events) == answer
    assert [token for event in events for token in event.delta.token_ids] == [*stage.ids(answer), EOS]
    assert events[0].started.prompt_tokens == events[-1].finished.usage.prompt_tokens
    assert events[-1].finished.usage.completion_tokens == len(stage.ids(answer)) + 1
    assert events[-2].choice_finished.stop_token_id == EOS


async def test_events_that_are_there_together_come_in_one_message_to_whoever_asks_for_it(
    stub: Stub, stage: Stage
) -> None:
    stage.says("Hello 🙂", "Good bye")
    asked = StreamGenerateRequest(spec=spec(sampling=Sampling(n=2)), batch_events=True)
    messages = [message async for message in stub.StreamGenerate(asked)]
    batches = [list(message.batch.events) for message in messages if message.HasField("batch")]
    assert all(len(batch) > 1 for batch in batches)
    assert [event.WhichOneof("event") for event in batches[-1][-3:]] == ["delta", "choice_finished", "finished"]
    events = [event for message in messages for event in (message.batch.events or [message])]
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1], kinds.count("choice_finished")) == ("started", "finished", 2)
    assert "batch" not in kinds
    texts = ["".join(event.delta.text for event in events if event.delta.index == index) for index in range(2)]
    assert texts == ["Hello 🙂", "Good bye"]


async def test_all_forms_of_prompts_and_options_reach_the_engine(stub: Stub, stage: Stage) -> None:
    stage.says("yes")
    chat = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hi")])
    sampling = Sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.5,
        logit_bias={7: -1.5},
        seed=9,
        max_tokens=4,
        min_tokens=1,
        stop_token_ids=[8],
        ignore_eos=True,
        logprobs=0,
    )
    choice = generation_pb2.TextChoice(options=["yes", "no"])
    await stub.Generate(GenerateRequest(spec=Spec(chat=chat, sampling=sampling, structured_output=Form(choice=choice))))
    await stub.Generate(
        GenerateRequest(spec=Spec(tokens=TokenIds(ids=[3, 4]), structured_output=Form(lark="start: /a/")))
    )
    first, second = stage.engine.submitted
    drawn = first.sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p) == (0.5, 3, 0.75, 0.25)
    assert (drawn.repetition_penalty, drawn.presence_penalty, drawn.frequency_penalty) == (1.5, -0.5, 0.5)
    assert (dict(drawn.logit_bias), drawn.seed, drawn.logprobs) == ({7: -1.5}, 9, 0)
    assert (first.max_tokens, first.min_tokens, first.stop_token_ids) == (4, 1, {8})
    assert stage.tokenizer.decode(first.prompt, skip_special_tokens=False).endswith(
        "Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert first.grammar is not None
    assert (second.prompt, second.sampling.temperature, second.sampling.logprobs) == ([3, 4], 1.0, None)
    assert second.grammar is not None
    assert second.grammar.source == "start: /a/"


async def test_a_score(stub: Stub, stage: Stage) -> None:
    def script(request: Request) -> Script:
        return Script(request.prompt[request.score_from :])

    stage.engine.script = script
    items = [
        ScoreItem(context_text="The sky is", continuation_text=" blue"),
        ScoreItem(context_tokens=TokenIds(ids=[5, 6]), continuation_tokens=TokenIds(ids=[7, 8])),
    ]
    answer = await stub.Score(ScoreRequest(items=items, adapter="pirate"))
    assert answer.origin.adapter_version == "v1"
    assert [token.token_id for token in answer.scores[1].tokens] == [7, 8]
    assert answer.scores[1].logprob == pytest.approx(-0.015)
    assert all(score.is_greedy for score in answer.scores)
    assert answer.usage.prompt_tokens == 4 + len(stage.ids("The sky is")) + len(stage.ids(" blue"))
    assert not answer.timings.HasField("decode")


async def test_models(stub: Stub, stage: Stage) -> None:
    (model,) = (await stub.ListModels(generation_service_pb2.ListModelsRequest())).models
    assert model == (await stub.GetModel(generation_service_pb2.GetModelRequest())).model
    assert model == (await stub.GetModel(generation_service_pb2.GetModelRequest(name=model.name))).model
    assert (model.is_default, model.max_context_tokens, model.vocabulary_size) == (True, 512, 49_152)
    assert model.tokenizer_fingerprint == stage.tokenizer.fingerprint
    assert model.model_fingerprint == stage.service.model("").model_fingerprint


@pytest.mark.parametrize(
    ("wrong", "reason", "metadata"),
    [
        (Spec(), "INVALID_FIELD", {"field": "spec.prompt"}),
        (Spec(text=""), "INVALID_FIELD", {"field": "spec.prompt"}),
        (Spec(chat=chat_pb2.ChatPrompt()), "INVALID_FIELD", {"field": "spec.chat.messages"}),
        (spec(structured_output=Form()), "INVALID_FIELD", {"field": "spec.structured_output.form"}),
        (spec(structured_output=Form(regex="broken")), "INVALID_GRAMMAR", {"field": "spec.structured_output.regex"}),
        (spec(sampling=Sampling(n=0)), "INVALID_FIELD", {"field": "spec.sampling.n"}),
        (spec(sampling=Sampling(max_tokens=0)), "INVALID_FIELD", {"field": "spec.sampling.max_tokens"}),
        (spec(sampling=Sampling(top_p=float("nan"))), "INVALID_FIELD", {"field": "spec.sampling.top_p"}),
        (spec(sampling=Sampling(max_tokens=600)), "PROMPT_TOO_LONG", {"field": "spec.prompt", "limit": "512"}),
        (spec(priority=3), "INVALID_FIELD", {"field": "spec.priority", "value": "3"}),
        (spec(priority=-3), "INVALID_FIELD", {"field": "spec.priority", "value": "-3"}),
        (spec(cache_salt="é" * 129), "INPUT_TOO_LARGE", {"field": "spec.cache_salt", "limit": "256", "value": "258"}),
        (spec(model="gpt-17"), "MODEL_NOT_FOUND", {"model": "gpt-17"}),
        (spec(adapter="parrot"), "ADAPTER_NOT_FOUND", {"adapter": "parrot"}),
        (spec(tokenizer_fingerprint="0"), "TOKENIZER_MISMATCH", {"value": "0"}),
    ],
)
async def test_both_ways_to_ask_refuse_alike(
    stub: Stub, stage: Stage, wrong: Spec, reason: str, metadata: dict[str, str]
) -> None:
    stage.says("never")
    with pytest.raises(grpc.aio.AioRpcError) as whole:
        await stub.Generate(GenerateRequest(spec=wrong))
    with pytest.raises(grpc.aio.AioRpcError) as streamed:
        await read(stub, wrong)
    info = error_info(whole.value)
    assert info.reason == reason
    assert metadata.items() <= dict(info.metadata).items()
    assert streamed.value.code() == whole.value.code()
    assert error_info(streamed.value) == info
    assert stage.engine.submitted == []


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (ScoreItem(continuation_text="x"), "items[0].context"),
        (ScoreItem(context_text="x"), "items[0].continuation"),
    ],
)
async def test_half_an_item_is_refused(stub: Stub, item: ScoreItem, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Score(ScoreRequest(items=[item]))
    assert error_info(refused.value).metadata["field"] == field


async def test_a_failure_in_the_middle_comes_after_the_text_so_far(stub: Stub, stage: Stage) -> None:
    stage.says(LONG, fail_at=5, error=ArgosyError(Reason.ENGINE_FAILED, "it broke", retry_after_s=1.0))
    events: list[Event] = []

    async def listen() -> None:
        async for event in stub.StreamGenerate(StreamGenerateRequest(spec=spec())):
            events.append(event)

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await listen()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert {event.WhichOneof("event") for event in events} == {"started", "delta", None}
    assert "".join(event.delta.text for event in events) == stage.tokenizer.decode(stage.ids(LONG)[:5])


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_client_that_goes_away_frees_the_engine(stub: Stub, stage: Stage, waiting: bool) -> None:
    stage.engine.step_s = 0.002
    stage.says(LONG)
    if waiting:
        stage.engine.going.clear()
    asked = StreamGenerateRequest(spec=spec(adapter="pirate", sampling=Sampling(n=3)))
    call = stub.StreamGenerate(asked)
    await call.read()
    if not waiting:
        await call.read()
    assert len(stage.engine.running) == 3
    call.cancel()
    await eventually(lambda: not stage.engine.running)
    await eventually(lambda: stage.leases.held == 0)
    assert len(stage.engine.cancelled) == 3
    stage.engine.going.set()


async def test_a_channel_that_breaks_frees_the_engine(stage: Stage) -> None:
    stage.engine.going.clear()
    stage.says(LONG)
    async with served(stage) as address:
        channel = grpc.aio.insecure_channel(address)
        unary = asyncio.ensure_future(Stub(channel).Generate(GenerateRequest(spec=spec())))
        await eventually(lambda: bool(stage.engine.running))
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await unary
        await eventually(lambda: not stage.engine.running)
    stage.engine.going.set()


async def test_the_deadline_of_a_call_frees_the_engine(stub: Stub, stage: Stage) -> None:
    stage.engine.step_s = 0.01
    stage.says(LONG)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await stub.Generate(GenerateRequest(spec=spec(adapter="pirate")), timeout=0.1)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: stage.leases.held == 0)
    await stage.idle()
    assert len(stage.engine.cancelled) == 1


async def test_one_callers_request_id_twice_at_once_is_no_harm(stub: Stub, stage: Stage) -> None:
    stage.says("same for both")
    metadata = (("x-request-id", "twice"),)
    answers = await asyncio.gather(*(stub.Generate(GenerateRequest(spec=spec()), metadata=metadata) for _ in range(8)))
    assert {answer.choices[0].text for answer in answers} == {"same for both"}
    assert {answer.origin.request_id for answer in answers} == {"twice"}


async def test_tenant_priority_salt_and_deadline_reach_the_engine(stage: Stage) -> None:
    keys = ["an-ordinary-key", "an-important-key"]
    tenants = set()
    async with (
        served(stage, Authenticator(keys, priority_keys=keys[1:])) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for key, priority in zip(keys, (-2, 2), strict=True):
            stage.engine.submitted.clear()
            stage.says("one two")
            given = {"metadata": (("authorization", f"Bearer {key}"),), "timeout": 30}
            asked = spec(priority=priority, cache_salt="pepper")
            await Stub(channel).Generate(GenerateRequest(spec=asked), **given)
            assert [event async for event in Stub(channel).StreamGenerate(StreamGenerateRequest(spec=asked), **given)]
            stage.scripts[:] = [Script([5])]
            item = ScoreItem(context_text="a", continuation_text="b")
            await Stub(channel).Score(ScoreRequest(items=[item], priority=priority, cache_salt="pepper"), **given)
            assert len(stage.engine.submitted) == 3
            for request in stage.engine.submitted:
                assert (request.priority, request.cache_salt) == (priority, "pepper")
                assert request.timeout_s is not None
                # It travels rounded up.
                assert 25 < request.timeout_s < 30.5
                tenants.add(request.tenant)
    assert len(tenants) == 2
    assert not any(key in tenant for key in keys for tenant in tenants)


async def test_an_ordinary_key_may_not_go_before_others(stage: Stage) -> None:
    async with (
        served(stage, Authenticator(["an-ordinary-key"])) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        header = (("authorization", "Bearer an-ordinary-key"),)
        item = ScoreItem(context_text="a", continuation_text="b")
        calls = {
            "spec.priority": Stub(channel).Generate(GenerateRequest(spec=spec(priority=1)), metadata=header),
            "priority": Stub(channel).Score(ScoreRequest(items=[item], priority=1), metadata=header),
        }
        for field, call in calls.items():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            info = error_info(refused.value)
            assert (info.reason, info.metadata["field"], info.metadata["limit"]) == ("NOT_PERMITTED", field, "0")
    assert stage.engine.submitted == []
