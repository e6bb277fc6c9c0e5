"""The same ids, places and text as transformers' tokenizers, on 2,000 texts that nobody chose."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argosy_services.tokenization.types import TruncationSide

EMOJI = ["\U0001f469\u200d\U0001f469\u200d\U0001f467 ", "😀", "\U0001f1eb\U0001f1f7"]
MARKS = ["e\u0301", "a\u0308\u0323", "ﬁ", "Ⅻ", "İ", "ß"]
RIGHT_TO_LEFT = ["مرحبا ", "שלום ", "\u202eabc\u202c"]
CONTROLS = ["\u0000", "\u0007", "\ufeff", "\u00a0", "\u200b", "\r\n", "\t", "\ufffd", "\U0010ffff"]
TOKENS = ["<|im_end|>", "<|im_start|>", "[SEP]", "[MASK]", "##ing", " do not ", " 's", " n't", " . ", "▁"]
ODD = [*EMOJI, *MARKS, *RIGHT_TO_LEFT, *CONTROLS, *TOKENS, "日本語", "0123456789", "a" * 32]
PARTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=30), st.sampled_from(ODD), st.text("abc XYZ.,'!-", max_size=20)
)
SHORT = st.lists(PARTS, max_size=8).map("".join)
BATCHES = st.lists(SHORT, min_size=40, max_size=40)
LONGEST = 100_000

EVERY = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=50, **EVERY)
@given(texts=BATCHES, limit=st.integers(2, 40), skip=st.booleans())
def test_texts(pair: Any, texts: list[str], limit: int, skip: bool) -> None:
    """50 batches of 40 texts for each of the two tokenizers."""
    assert_same(pair, texts, limit=limit, skip=skip)


def test_long_texts(pair: Any) -> None:
    draw = random.Random(7)
    texts = []
    for size in (1_000, 10_000, LONGEST):
        text = ""
        while len(text) < size:
            text += draw.choice([*ODD, " word", " and", "xyz", chr(draw.randrange(0x20, 0xD800))])
        texts.append(text)
    assert_same(pair, [*texts, "a" * LONGEST, " " * LONGEST], limit=512, skip=False)


@settings(max_examples=300, **EVERY)
@given(ids=st.lists(st.integers(0, 2**31), max_size=30), skip=st.booleans())
def test_text_of_any_ids(pair: Any, ids: list[int], skip: bool) -> None:
    ids = [token_id % pair.ours.info.vocabulary_size for token_id in ids]
    assert pair.ours.decode(ids, skip_special_tokens=skip) == pair.theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, **EVERY)
@given(ids=st.lists(st.integers(0, 30521), max_size=30))
def test_clean_up_of_spaces_where_the_configuration_asks(cleaning_pair: Any, ids: list[int]) -> None:
    ours = cleaning_pair.ours.decode(ids)
    assert ours == cleaning_pair.theirs.decode(ids, skip_special_tokens=True)
    detokenizer = cleaning_pair.ours.detokenizer()
    assert detokenizer.push(ids) + detokenizer.flush() == ours


def test_clean_up_changes_something(cleaning_pair: Any, minilm_pair: Any) -> None:
    ids = minilm_pair.ours.encode("it ' s")
    assert (minilm_pair.ours.decode(ids), cleaning_pair.ours.decode(ids)) == ("it ' s", "it's")


def test_special_tokens(pair: Any) -> None:
    info = pair.ours.info
    named = (pair.theirs.bos_token_id, pair.theirs.eos_token_id, pair.theirs.pad_token_id)
    assert (info.bos_token_id, info.eos_token_id, info.pad_token_id) == named
    assert info.vocabulary_size == len(pair.theirs)
    special = {token_id for token_id, token in pair.theirs.added_tokens_decoder.items() if token.special}
    assert {token.id for token in info.special_tokens} == special


def assert_same(pair: Any, texts: Sequence[str], *, limit: int, skip: bool) -> None:
    ours, theirs = pair
    expected = theirs(list(texts), return_offsets_mapping=True)
    encodings = ours.encode_batch(texts, byte_spans=True, tokens=True)
    assert [encoding.ids for encoding in encodings] == expected["input_ids"]
    for text, encoding, spans in zip(texts, encodings, expected["offset_mapping"], strict=True):
        assert encoding.byte_spans == byte_spans(text, spans)
        assert encoding.tokens == theirs.convert_ids_to_tokens(encoding.ids)
        assert encoding.truncated_tokens == 0
    plain = [encoding.ids for encoding in ours.encode_batch(texts, add_special_tokens=False)]
    assert plain == theirs(list(texts), add_special_tokens=False)["input_ids"]
    assert ours.count_batch(texts) == [len(encoding.ids) for encoding in encodings]

    for side in TruncationSide:
        theirs.truncation_side = side.value
        cut = theirs(list(texts), truncation=True, max_length=limit)["input_ids"]
        shortened = ours.encode_batch(texts, max_tokens=limit, side=side)
        assert [encoding.ids for encoding in shortened] == cut
        for whole, short in zip(encodings, shortened, strict=True):
            assert short.truncated_tokens == len(whole.ids) - len(short.ids)

    ids = [encoding.ids for encoding in encodings]
    assert ours.decode_batch(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)


def byte_spans(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    starts = [0]
    for character in text:
        starts.append(starts[-1] + len(character.encode()))
    return [(starts[start], starts[end]) for start, end in spans]
