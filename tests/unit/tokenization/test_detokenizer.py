"""Streamed text is exactly the decoded text, and never holds a piece of a character."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.detokenizer import byte_level_bytes

KINDS = ("byte_level", "word_piece", "byte_fallback", "unigram", "word_level", "end_of_word")
BATCHES = st.lists(st.lists(st.integers(0, 2**31), max_size=6), max_size=20)
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("▁é😀👩\u200d\u0301 .,'hel\n")), max_size=60)


_FIRST_FALLBACK_BYTE = 3


@pytest.fixture(scope="module")
def byte_ids(byte_level: Tokenizer) -> dict[int, int]:
    """The tokens of a single byte; a vocabulary may lack bytes that UTF-8 never uses."""
    vocabulary = json.loads(byte_level.json)["model"]["vocab"]
    return {piece[0]: token_id for token, token_id in vocabulary.items() if len(piece := byte_level_bytes(token)) == 1}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def stream(tokenizer: Tokenizer, batches: Sequence[Sequence[int]], *, skip: bool) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*map(detokenizer.push, batches), detokenizer.flush()]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES, skip=st.booleans())
def test_any_ids_stream_to_the_text_that_they_decode_to(
    tokenizer: Tokenizer, batches: list[list[int]], skip: bool
) -> None:
    # Beyond the vocabulary by a few: such ids give nothing.
    batches = [[token_id % (tokenizer.info.vocabulary_size + 3) for token_id in batch] for batch in batches]
    ids = [token_id for batch in batches for token_id in batch]
    assert "".join(stream(tokenizer, batches, skip=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_every_piece_of_a_text_is_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    pieces = stream(tokenizer, [[token_id] for token_id in ids], skip=True)
    assert "".join(pieces) == decoded
    if "\ufffd" not in decoded:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=40))
def test_bytes_that_are_no_text_stream_as_they_decode(
    byte_fallback: Tokenizer, byte_level: Tokenizer, byte_ids: dict[int, int], data: bytes
) -> None:
    ids = [_FIRST_FALLBACK_BYTE + byte for byte in data]
    assert "".join(stream(byte_fallback, [[token_id] for token_id in ids], skip=True)) == byte_fallback.decode(ids)

    data = bytes(byte for byte in data if byte in byte_ids)
    ids = [byte_ids[byte] for byte in data]
    pieces = stream(byte_level, [[token_id] for token_id in ids], skip=True)
    assert "".join(pieces) == byte_level.decode(ids) == data.decode(errors="replace")


def test_a_character_of_several_tokens_comes_with_its_last_one(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a😀b")
    detokenizer = byte_level.detokenizer()
    assert [detokenizer.push([token_id]) for token_id in ids] == ["a", "", "", "😀", "b"]
    assert detokenizer.flush() == ""


def test_a_cut_character_is_replaced_only_at_the_end(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a😀")[:-1]
    detokenizer = byte_level.detokenizer()
    assert [detokenizer.push([token_id]) for token_id in ids] == ["a", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_a_run_of_fallback_bytes_is_given_when_it_ends(byte_fallback: Tokenizer) -> None:
    ids = byte_fallback.encode("h日o", add_special_tokens=False)
    detokenizer = byte_fallback.detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert pieces == ["h", "", "", "", "日o"]


def test_special_tokens_are_left_out_or_shown(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("hi<|im_end|>")
    assert "".join(stream(byte_level, [ids], skip=True)) == "hi"
    assert "".join(stream(byte_level, [ids], skip=False)) == "hi<|im_end|>"


def test_after_a_flush_a_new_text_starts(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the hel new lo")
    detokenizer = tokenizer.detokenizer()
    first = detokenizer.push(ids) + detokenizer.flush()
    assert detokenizer.push(ids) + detokenizer.flush() == first == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", ["byte_level", "word_piece", "byte_fallback"], indirect=True)
def test_the_cost_of_a_token_does_not_grow_with_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello 日本 world é ", add_special_tokens=False) * 20_000
    detokenizer = tokenizer.detokenizer()
    start = time.perf_counter()
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    # Quadratic work on these 200,000 tokens and more would take minutes.
    assert time.perf_counter() - start < 5
    assert len("".join(pieces)) > 100_000
