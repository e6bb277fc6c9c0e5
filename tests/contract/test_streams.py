"""Many streams at once: all finish, cancelled ones free everything, nobody's tokens change for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import argosy
from argosy_services.testing import RunningFleet

PROMPTS = [f"Log entry {index}. The wind came from the {'north' if index % 2 else 'south'} and" for index in range(64)]
TOKENS = 24


async def read(client: argosy.AsyncClient, prompt: str, *, stop_after: int | None = None) -> tuple[int, ...]:
    """The token ids of a greedy stream, cancelled after `stop_after` of them."""
    ids: list[int] = []
    stream = client.generation.stream(prompt, max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    async with stream:
        async for event in stream:
            if isinstance(event, argosy.Delta):
                ids.extend(event.token_ids)
                if stop_after is not None and len(ids) >= stop_after:
                    return tuple(ids)
    return tuple(ids)


@pytest.mark.usefixtures("nothing_leaks")
async def test_64_streams_finish(fleet: RunningFleet) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=240) as client:
        answers = await asyncio.gather(*(read(client, prompt) for prompt in PROMPTS))
    assert [len(answer) for answer in answers] == [TOKENS] * 64


@pytest.mark.usefixtures("nothing_leaks")
async def test_cancelling_32_of_64_leaves_the_others_alone(fleet: RunningFleet, metric: Callable[..., float]) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=240) as client:
        alone = {index: await read(client, PROMPTS[index]) for index in (0, 10, 20)}
        answers = await asyncio.gather(
            *(read(client, prompt, stop_after=5 if index % 2 else None) for index, prompt in enumerate(PROMPTS))
        )
        assert [len(answer) for answer in answers[::2]] == [TOKENS] * 32
        assert all(5 <= len(answer) < TOKENS for answer in answers[1::2])
        for index, expected in alone.items():
            assert answers[index] == expected
        for _ in range(200):
            if metric("argosy_kv_blocks_in_use") == 0:
                break
            await asyncio.sleep(0.05)
    assert metric("argosy_kv_blocks_in_use") == 0


@pytest.mark.usefixtures("nothing_leaks")
def test_streamed_text_is_the_whole_answer(client: argosy.Client) -> None:
    prompt = [{"role": "user", "content": "Repeat: naïve café 🚢 漢字 — done"}]
    stream = client.generation.stream(prompt, max_tokens=40, temperature=0.0)
    pieces = list(stream.text())
    whole = client.generation.generate(prompt, max_tokens=40, temperature=0.0)
    assert "".join(pieces) == whole.text == stream.final.text
    assert whole.text == client.tokenization.decode(whole.choices[0].token_ids)
    assert len(pieces) > 3


@pytest.mark.usefixtures("nothing_leaks")
def test_choices_options_and_accounts(client: argosy.Client) -> None:
    answer = client.generation.generate(
        "The sea is", max_tokens=12, n=3, seed=11, temperature=1.0, logprobs=2, stop=["."], ignore_eos=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) > 1
    assert all("." not in choice.text for choice in answer.choices)
    assert all(len(choice.logprobs) == len(choice.token_ids) for choice in answer.choices)
    assert answer.usage.prompt_tokens == client.tokenization.count_tokens("The sea is")
    assert answer.usage.completion_tokens == sum(len(choice.token_ids) for choice in answer.choices)
    assert answer.timings.total
    again = client.generation.generate(
        "The sea is", max_tokens=12, n=3, seed=11, temperature=1.0, stop=["."], ignore_eos=True
    )
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


@pytest.mark.usefixtures("nothing_leaks")
def test_scores_prefer_what_is_likely(client: argosy.Client) -> None:
    scores = client.generation.score([("The capital of France is", " Paris"), ("The capital of France is", " fish")])
    assert scores.scores[0].logprob > scores.scores[1].logprob
    answer = client.generation.generate("The capital of France is", max_tokens=3, temperature=0.0, logprobs=0)
    ids = answer.choices[0].token_ids
    same = client.generation.score([("The capital of France is", ids)]).scores[0]
    assert same.is_greedy
    given = sum(entry.chosen.logprob for entry in answer.choices[0].logprobs)
    assert same.logprob == pytest.approx(given, abs=1e-3)


@pytest.mark.usefixtures("nothing_leaks")
def test_structured_answers_keep_their_form(client: argosy.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"harbour": {"type": "string", "maxLength": 16}, "depth": {"type": "integer", "maximum": 99}},
        "required": ["harbour", "depth"],
        "additionalProperties": False,
    }
    for seed in range(4):
        value = client.generation.generate("JSON: ", json_schema=schema, max_tokens=90, seed=seed).json()
        assert set(value) == {"harbour", "depth"}
    picked = client.generation.generate("Port or starboard? ", choice=["port", "starboard"], max_tokens=9, seed=1)
    assert picked.text in {"port", "starboard"}
