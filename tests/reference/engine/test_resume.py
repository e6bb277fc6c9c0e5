"""A sequence that goes on in another engine ends as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from argosy_services.engine.base import Grammar, GrammarKind, Request, Sampling

from .conftest import Collector

SCHEMA = (
    '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
)


@pytest.mark.parametrize(
    ("sampling", "grammar"),
    [
        (Sampling(temperature=0.0), None),
        (Sampling(temperature=1.0, seed=7), None),
        (Sampling(temperature=0.9, seed=3, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.5), None),
        (Sampling(temperature=1.0, seed=5), Grammar(GrammarKind.JSON_SCHEMA, SCHEMA)),
    ],
    ids=["greedy", "seeded", "penalties", "grammar"],
)
def test_what_follows_is_what_would_have_followed(
    smol: Collector, prompts: list[list[int]], sampling: Sampling, grammar: Grammar | None
) -> None:
    whole = Request("whole", prompts[3], max_tokens=16, sampling=sampling, grammar=grammar, min_tokens=4)
    expected = smol.run([whole])["whole"]
    assert len(expected.tokens) > 4
    rests = [
        replace(whole, id=str(cut), generated=tuple(expected.tokens[:cut])) for cut in range(1, len(expected.tokens))
    ]
    for cut, answer in smol.run(rests).items():
        assert answer.tokens == expected.tokens[int(cut) :], f"after {cut} tokens"
        assert answer.finish is expected.finish
