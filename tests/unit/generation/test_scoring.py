"""Scores of given continuations."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from argosy_services.engine.base import Request
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.types import ScoreItem, ScoreSpec, Usage

from .conftest import Stage, eventually
from .scripted import TIMINGS, Script

ITEM = ScoreItem("The sky is", " blue today, as ever")
SPEC = ScoreSpec(items=(ITEM,))


def says_what_is_scored(stage: Stage, wrong: frozenset[int] = frozenset()) -> None:
    """Greedy decoding would give what is scored, save for `wrong` tokens. A token's log-probability is -id / 1000."""

    def script(request: Request) -> Script:
        targets = request.prompt[request.score_from :]
        return Script([token + (token in wrong) for token in targets], cached_tokens=1)

    stage.engine.script = script


async def test_a_score_is_the_sum_over_the_continuation(stage: Stage) -> None:
    says_what_is_scored(stage)
    scores = await stage.service.score(SPEC, request_id="req")
    context, continuation = stage.ids(ITEM.context), stage.ids(ITEM.continuation)
    (request,) = stage.engine.submitted
    assert (request.prompt, request.score_from) == (context + continuation, len(context))
    assert (request.max_tokens, request.sampling.logprobs) == (0, 1)
    (score,) = scores.scores
    assert [token.token_id for token in score.tokens] == continuation
    assert score.logprob == pytest.approx(-sum(continuation) / 1000)
    assert score.is_greedy
    assert scores.usage == Usage(len(context + continuation), 1, 0)
    assert (scores.timings.queue_s, scores.timings.prefill_s) == (TIMINGS.queue_s, TIMINGS.prefill_s)
    assert scores.timings.decode_s is None


async def test_one_other_token_is_not_greedy(stage: Stage) -> None:
    says_what_is_scored(stage, wrong=frozenset({stage.ids(ITEM.continuation)[-1]}))
    (score,) = (await stage.service.score(SPEC, request_id="req")).scores
    assert not score.is_greedy


async def test_many_items_keep_their_order_and_leave_room_in_the_queue(stage: Stage) -> None:
    says_what_is_scored(stage)
    items = tuple(ScoreItem((5,) * (1 + number % 7), tuple(range(1, 2 + number % 11))) for number in range(256))
    scores = await stage.service.score(ScoreSpec(items), request_id="req")
    assert [tuple(token.token_id for token in score.tokens) for score in scores.scores] == [
        item.continuation for item in items
    ]
    assert stage.engine.most_running <= 32
    assert scores.usage.prompt_tokens == sum(len(item.context) + len(item.continuation) for item in items)
    assert not stage.engine.running


async def test_an_adapter_scores_and_is_given_back(stage: Stage) -> None:
    says_what_is_scored(stage)
    scores = await stage.service.score(replace(SPEC, adapter="pirate"), request_id="req")
    assert (scores.origin.adapter, scores.origin.adapter_version) == ("pirate", "v1")
    assert stage.engine.submitted[0].adapter == "key-of-pirate"
    assert (stage.leases.given, stage.leases.held) == (1, 0)


@pytest.mark.parametrize(
    ("items", "reason", "field"),
    [
        ((), Reason.INVALID_FIELD, "items"),
        ((ITEM,) * 257, Reason.TOO_MANY_INPUTS, "items"),
        ((ITEM, ScoreItem("", "x")), Reason.INVALID_FIELD, "items[1].context"),
        ((ScoreItem("x", ""),), Reason.INVALID_FIELD, "items[0].continuation"),
        ((ScoreItem((), (1,)),), Reason.INVALID_FIELD, "items[0].context"),
        ((ScoreItem("x", (1, 49_152)),), Reason.INVALID_FIELD, "items[0].continuation"),
        ((ScoreItem((-1,), "x"),), Reason.INVALID_FIELD, "items[0].context"),
        ((ITEM, ScoreItem((1,) * 500, (2,) * 13)), Reason.PROMPT_TOO_LONG, "items[1]"),
        ((ScoreItem("x", (2,) * 513),), Reason.PROMPT_TOO_LONG, "items[0].continuation"),
        ((ScoreItem("x" * ((4 << 20) + 1), "x"),), Reason.INPUT_TOO_LARGE, "items[0].context"),
    ],
)
async def test_what_cannot_be_scored_is_refused_by_its_place(
    stage: Stage, items: tuple[ScoreItem, ...], reason: Reason, field: str
) -> None:
    with pytest.raises(ArgosyError) as refused:
        await stage.service.score(ScoreSpec(items), request_id="req")
    assert (refused.value.reason, refused.value.metadata["field"]) == (reason, field)
    assert stage.engine.submitted == []


async def test_the_fullest_context_is_scored(stage: Stage) -> None:
    says_what_is_scored(stage)
    (score,) = (await stage.service.score(ScoreSpec((ScoreItem((1,) * 500, (2,) * 12),)), request_id="r")).scores
    assert len(score.tokens) == 12


async def test_another_tokenizer_or_model_is_refused(stage: Stage) -> None:
    for spec, reason in (
        (replace(SPEC, tokenizer_fingerprint="f" * 64), Reason.TOKENIZER_MISMATCH),
        (replace(SPEC, model="gpt-17"), Reason.MODEL_NOT_FOUND),
    ):
        with pytest.raises(ArgosyError) as refused:
            await stage.service.score(spec, request_id="req")
        assert refused.value.reason is reason


async def test_a_cancelled_score_frees_everything(stage: Stage) -> None:
    says_what_is_scored(stage)
    stage.engine.going.clear()
    spec = ScoreSpec((ITEM,) * 100, adapter="pirate")
    task = asyncio.create_task(stage.service.score(spec, request_id="req"))
    await eventually(lambda: len(stage.engine.running) == 32)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stage.engine.going.set()
    await stage.idle()
    assert len(stage.engine.submitted) == 32


async def test_a_late_score_frees_everything(stage: Stage) -> None:
    says_what_is_scored(stage)
    stage.engine.step_s = 0.02
    spec = ScoreSpec((ScoreItem((1,) * 9, (2,) * 400),) * 50)
    with pytest.raises(ArgosyError) as late:
        await stage.service.score(spec, request_id="req", deadline=time.monotonic() + 0.05)
    assert late.value.reason is Reason.DEADLINE_EXCEEDED
    await stage.idle()
