"""Which rows of a step become logits."""

from __future__ import annotations

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows


def sequence(prompt: int, *, score_from: int | None = None) -> Sequence:
    return Sequence.of(Request(id="r", prompt=list(range(prompt)), max_tokens=9, score_from=score_from))


def test_a_draft_wants_its_own_rows_and_the_one_before() -> None:
    decoding = Work(sequence(5), start=4, count=3, draft=(70, 71))
    prompt, half = Work(sequence(6), start=2, count=4), Work(sequence(8), start=0, count=3)
    assert decoding.completes
    assert decoding.token_ids() == [4, 70, 71]
    rows, spans = wanted_rows([decoding, half, prompt])
    assert rows == [0, 1, 2, 9]
    assert spans == [RowSpan(decoding, 0, 3, 4), RowSpan(prompt, 3, 1, 5)]


def test_scoring_wants_the_rows_before_the_scored_tokens() -> None:
    scored = sequence(8, score_from=3)
    assert wanted_rows([Work(scored, 0, 2)]) == ([], [])
    first, last = Work(scored, 2, 3), Work(scored, 5, 3)
    assert wanted_rows([first]) == ([0, 1, 2], [RowSpan(first, 0, 3, 2)])
    assert wanted_rows([last]) == ([0, 1], [RowSpan(last, 0, 2, 5)])
