"""The chat model that agents get in one process, over the generation service."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from argosy_services.agents.local_model import LocalChatModel
from argosy_services.agents.ports import ChatModel, Chunk, Completion
from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.types import Chat, ChatMessage, Role

from .conftest import Stage

MESSAGES = (ChatMessage(Role.SYSTEM, "You think."), ChatMessage(Role.USER, "What is 2 + 2?"))
COMPLETION = Completion(MESSAGES, max_tokens=50, prefix="Thought:", stop=("Observation:",), seed=3, temperature=0.5)


async def test_chunks_are_the_text_and_then_the_counts(stage: Stage) -> None:
    stage.says(" easy, it is 4 🙂. Observation: x", cached_tokens=4)
    model: ChatModel = LocalChatModel(stage.service)
    *chunks, last = [chunk async for chunk in model.complete(COMPLETION)]
    assert "".join(chunk.text for chunk in chunks) == " easy, it is 4 🙂. "
    assert all(chunk.text and not chunk.finished for chunk in chunks)
    (request,) = stage.engine.submitted
    assert request.prompt == stage.ids(stage.tokenizer.render_chat(Chat(MESSAGES)) + "Thought:")
    assert (request.sampling.temperature, request.sampling.seed, request.max_tokens) == (0.5, 3, 50)
    assert last == Chunk(
        "",
        finished=True,
        prompt_tokens=len(request.prompt),
        cached_tokens=4,
        completion_tokens=len(stage.ids(" easy, it is 4 🙂. Observation:")),
    )


async def test_an_answer_can_stop_at_its_length(stage: Stage) -> None:
    stage.says("one two three four")
    model = LocalChatModel(stage.service)
    *_, last = [chunk async for chunk in model.complete(replace(COMPLETION, max_tokens=2))]
    assert (last.stopped_at_length, last.completion_tokens) == (True, 2)


async def test_a_schema_is_the_answers_grammar(stage: Stage) -> None:
    schema = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    stage.says("{}")
    model = LocalChatModel(stage.service)
    assert [chunk async for chunk in model.complete(replace(COMPLETION, form=schema))]
    assert stage.engine.submitted[0].grammar == schema


async def test_closing_early_frees_the_engine(stage: Stage) -> None:
    stage.engine.step_s = 0.002
    stage.says("on and on " * 40)
    model = LocalChatModel(stage.service)
    async with aclosing(model.complete(replace(COMPLETION, adapter="pirate"))) as chunks:
        async for _ in chunks:
            break
    await stage.idle()
    assert len(stage.engine.cancelled) == 1


async def test_the_deadline_counts(stage: Stage) -> None:
    stage.engine.step_s = 0.01
    stage.says("on and on " * 40)
    late = replace(COMPLETION, deadline=time.monotonic() + 0.05)
    with pytest.raises(ArgosyError) as refused:
        assert [chunk async for chunk in LocalChatModel(stage.service).complete(late)]
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    await stage.idle()


async def test_models_are_checked(stage: Stage) -> None:
    model = LocalChatModel(stage.service)
    name = stage.service.model("").name
    assert model.check_model("") == model.check_model(name) == name
    with pytest.raises(ArgosyError) as refused:
        model.check_model("gpt-17")
    assert refused.value.reason is Reason.MODEL_NOT_FOUND


async def test_the_tenant_is_that_of_the_run(stage: Stage) -> None:
    stage.says("x")
    model = LocalChatModel(stage.service)
    assert [chunk async for chunk in model.complete(replace(COMPLETION, tenant="somebody"))]
    assert stage.engine.submitted[0].tenant == "somebody"
