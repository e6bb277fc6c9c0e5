"""Tokens to text, one choice at a time, with the real tokenizer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from argosy_services.engine.base import Finish, StepOutput
from argosy_services.generation.answer import ChoiceWriter
from argosy_services.generation.types import ChoiceFinished, FinishReason
from argosy_services.tokenization.backend import Tokenizer

from .conftest import EOS
from .scripted import logprob_of

STOP = FinishReason.STOP


def steps(tokens: list[int], cuts: list[int], finish: Finish) -> list[StepOutput]:
    """The tokens as an engine brings them, cut after the given positions."""
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(tokens)}), len(tokens)]
    parts = [tokens[start:end] for start, end in itertools.pairwise(bounds)]
    return [
        StepOutput("r", tuple(part), tuple(map(logprob_of, part)), finish if number == len(parts) else None)
        for number, part in enumerate(parts, 1)
    ]


def write_all(writer: ChoiceWriter, outputs: list[StepOutput]) -> tuple[str, list[int]]:
    """Text and tokens of all deltas; checks on the way that log-probabilities belong to their tokens."""
    text, token_ids = "", []
    for output in outputs:
        writer.read(output)
        delta = writer.write()
        assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids)
        assert "\ufffd" not in delta.text
        text += delta.text
        token_ids += delta.token_ids
    assert writer.token_count == len(token_ids)
    return text, token_ids


@pytest.mark.parametrize("text", ["Hello, world!", "🙂🇩🇪👩‍👩‍👧 and ü漢字", "  two  spaces\n\n", "naïve — “quoted”"])
def test_text_is_whole_whatever_the_tokens_are(tokenizer: Tokenizer, text: str) -> None:
    ids = [*tokenizer.encode(text), EOS]
    writer = ChoiceWriter(3, tokenizer.detokenizer(), (), frozenset({EOS}))
    outputs = steps(ids, list(range(len(ids))), Finish.STOP)
    assert write_all(writer, outputs) == (text, ids)
    assert writer.finished == ChoiceFinished(3, STOP, stop_token_id=EOS)


def test_half_a_character_shows_only_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 🧿")[:-1]
    writer = ChoiceWriter(0, tokenizer.detokenizer(), (), frozenset({EOS}))
    texts = []
    for output in steps(ids, list(range(len(ids))), Finish.LENGTH):
        writer.read(output)
        texts.append(writer.write().text)
    *before, last = texts
    assert "".join(before) == "ok" + " " * ("".join(before).endswith(" "))
    assert last.endswith("\ufffd")
    assert writer.finished == ChoiceFinished(0, FinishReason.LENGTH)


def test_a_stop_token_is_counted_but_not_shown(tokenizer: Tokenizer) -> None:
    (comma,) = tokenizer.encode(",")
    ids = [*tokenizer.encode("one"), comma]
    writer = ChoiceWriter(0, tokenizer.detokenizer(), (), frozenset({EOS, comma}))
    assert write_all(writer, steps(ids, [], Finish.STOP)) == ("one", ids)
    assert writer.finished == ChoiceFinished(0, STOP, stop_token_id=comma)


def test_an_end_token_that_does_not_end_leaves_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one"), EOS, *tokenizer.encode(" two")]
    writer = ChoiceWriter(0, tokenizer.detokenizer(), (), frozenset())
    assert write_all(writer, steps(ids, [1, 2], Finish.LENGTH)) == ("one two", ids)


def test_a_grammar_ends_an_answer_without_a_stop(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("yes")
    writer = ChoiceWriter(0, tokenizer.detokenizer(), (), frozenset({EOS}))
    assert write_all(writer, steps(ids, [], Finish.STOP)) == ("yes", ids)
    assert writer.finished == ChoiceFinished(0, STOP)


def test_a_stop_string_over_tokens_ends_the_answer_with_its_last_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Observation: nothing at all")
    writer = ChoiceWriter(0, tokenizer.detokenizer(), ("vation: no",), frozenset({EOS}))
    text, token_ids = write_all(writer, steps(ids, list(range(len(ids))), Finish.LENGTH))
    assert text == "Obser"
    assert token_ids == ids[: len(token_ids)]
    assert "vation: no" in tokenizer.decode(token_ids)
    assert "vation: no" not in tokenizer.decode(token_ids[:-1])
    assert writer.finished == ChoiceFinished(0, STOP, stop_string="vation: no")


def test_an_unfinished_stop_string_is_text_after_all(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("Stop here, St"), EOS]
    writer = ChoiceWriter(0, tokenizer.detokenizer(), ("Stop there",), frozenset({EOS}))
    assert write_all(writer, steps(ids, list(range(len(ids))), Finish.STOP)) == ("Stop here, St", ids)
    assert writer.finished == ChoiceFinished(0, STOP, stop_token_id=EOS)


def test_a_stop_string_that_the_last_token_completes_counts_more_than_length(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a b c")
    writer = ChoiceWriter(0, tokenizer.detokenizer(), (" c",), frozenset({EOS}))
    assert write_all(writer, steps(ids, [], Finish.LENGTH)) == ("a b", ids)
    assert writer.finished == ChoiceFinished(0, STOP, stop_string=" c")


@given(
    text=st.text("ab é🙂漢.", min_size=1, max_size=20),
    stops=st.lists(st.text("ab é🙂漢.", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 60)),
)
@settings(deadline=None)
def test_how_tokens_are_cut_into_steps_changes_nothing(
    tokenizer: Tokenizer, text: str, stops: list[str], cuts: list[int]
) -> None:
    ids = tokenizer.encode(text)
    assume(tokenizer.decode(ids) == text)

    def read(cuts: list[int]) -> tuple[object, ...]:
        writer = ChoiceWriter(0, tokenizer.detokenizer(), tuple(stops), frozenset({EOS}))
        return (*write_all(writer, steps(ids, cuts, Finish.LENGTH)), writer.finished)

    by_token = read(list(range(len(ids))))
    assert read(cuts) == by_token
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert by_token[0] == (text[: min(ends)].removesuffix(longest_at(text, min(ends), stops)) if ends else text)


def longest_at(text: str, end: int, stops: list[str]) -> str:
    return max((stop for stop in stops if text[:end].endswith(stop)), key=len)
