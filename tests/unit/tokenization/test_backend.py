"""Encoding, decoding and describing, on real tokenizers and on small ones where a file must be odd."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.types import TruncationSide

MakeTokenizer = Callable[..., Tokenizer]


def test_stored_truncation_and_padding_are_off(word_piece: Tokenizer) -> None:
    assert len(word_piece.encode("word " * 300)) == 302
    assert word_piece.encode("word") == [101, 2773, 102]
    assert json.loads(word_piece.json)["truncation"] is None
    assert json.loads(word_piece.json)["padding"] is None


def test_special_tokens_are_added_unless_refused(word_piece: Tokenizer) -> None:
    assert word_piece.encode("word", add_special_tokens=False) == [2773]
    assert word_piece.count_batch(["word", ""]) == [3, 2]
    assert word_piece.count_batch(["word", ""], add_special_tokens=False) == [1, 0]


@pytest.mark.parametrize(
    ("side", "expected"),
    [(TruncationSide.RIGHT, [101, 2028, 2048, 102]), (TruncationSide.LEFT, [101, 2093, 2176, 102])],
)
def test_truncation_keeps_the_special_tokens(word_piece: Tokenizer, side: TruncationSide, expected: list[int]) -> None:
    (encoding,) = word_piece.encode_batch(["one two three four"], max_tokens=4, side=side, byte_spans=True, tokens=True)
    assert encoding.ids == expected
    assert encoding.truncated_tokens == 2
    assert len(encoding.byte_spans) == len(encoding.tokens) == 4


def test_truncation_may_leave_only_the_special_tokens(word_piece: Tokenizer) -> None:
    (encoding,) = word_piece.encode_batch(["one two"], max_tokens=2)
    assert (encoding.ids, encoding.truncated_tokens) == ([101, 102], 2)


@pytest.mark.parametrize(("add_special_tokens", "least"), [(True, 2), (False, 1)])
def test_a_limit_below_the_special_tokens_is_refused(
    word_piece: Tokenizer, add_special_tokens: bool, least: int
) -> None:
    with pytest.raises(ArgosyError) as caught:
        word_piece.encode_batch(["one"], max_tokens=least - 1, add_special_tokens=add_special_tokens)
    assert caught.value.reason is Reason.INVALID_FIELD
    assert caught.value.metadata == {"field": "max_tokens", "limit": f"at least {least}", "value": str(least - 1)}


def test_byte_spans_are_places_in_utf8(byte_level: Tokenizer) -> None:
    text = "né 😀"
    (encoding,) = byte_level.encode_batch([text], byte_spans=True)
    places = [text.encode()[start:end].decode() for start, end in encoding.byte_spans]
    assert places == ["n", "é", " 😀", "😀"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=80))
@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "word_piece"])
def test_byte_spans_lie_between_characters(request: pytest.FixtureRequest, name: str, text: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    (encoding,) = tokenizer.encode_batch([text], byte_spans=True, add_special_tokens=False)
    assert len(encoding.byte_spans) == len(encoding.ids)
    for start, end in encoding.byte_spans:
        assert start <= end
        text.encode()[start:end].decode()
    # A byte-level vocabulary that lacks a byte drops it; every other byte belongs to a token.
    if name == "byte_level" and tokenizer.decode(encoding.ids) == text:
        covered = {byte for start, end in encoding.byte_spans for byte in range(start, end)}
        assert covered == set(range(len(text.encode())))


def test_fallback_bytes_have_the_span_of_their_character(byte_fallback: Tokenizer) -> None:
    (encoding,) = byte_fallback.encode_batch(["h日"], byte_spans=True, tokens=True)
    assert encoding.tokens == ["<s>", "▁h", "<0xE6>", "<0x97>", "<0xA5>"]
    assert encoding.byte_spans == [(0, 0), (0, 1), (1, 4), (1, 4), (1, 4)]


def test_half_a_surrogate_pair_is_refused(byte_level: Tokenizer) -> None:
    for call in (byte_level.encode_batch, byte_level.count_batch):
        with pytest.raises(ArgosyError, match=r"U\+D83D") as caught:
            call(["fine", "cut \ud83d"])
        assert caught.value.reason is Reason.INVALID_FIELD
        str(caught.value).encode()


def test_decoding_leaves_special_tokens_out_or_shows_them(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>hi<|im_end|>")
    assert byte_level.decode(ids) == "hi"
    assert byte_level.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"
    assert byte_level.decode_batch([ids, []]) == ["hi", ""]


@pytest.mark.parametrize("wrong", [-1, 49152, 2**32 - 1])
def test_ids_outside_the_vocabulary_are_named(byte_level: Tokenizer, wrong: int) -> None:
    byte_level.check_ids("ids", [0, 49151])
    byte_level.check_ids("ids", [])
    with pytest.raises(ArgosyError) as caught:
        byte_level.check_ids("inputs[2].ids", [5, wrong])
    assert caught.value.metadata == {"field": "inputs[2].ids", "limit": "below 49152", "value": str(wrong)}


def test_description_of_the_language_model(byte_level: Tokenizer, smollm2: LocalModel) -> None:
    info = byte_level.info
    assert (info.model, info.vocabulary_size, info.max_context_tokens) == (smollm2.name, 49152, 8192)
    assert (info.bos_token_id, info.eos_token_id, info.pad_token_id) == (1, 2, 2)
    assert info.has_chat_template
    assert [token.id for token in info.special_tokens] == list(range(17))
    assert info.fingerprint == byte_level.fingerprint == Tokenizer.load(smollm2).fingerprint


def test_description_of_the_embedding_model(word_piece: Tokenizer) -> None:
    info = word_piece.info
    assert (info.vocabulary_size, info.max_context_tokens, info.has_chat_template) == (30522, 256, False)
    assert (info.bos_token_id, info.eos_token_id, info.pad_token_id) == (None, None, 0)
    assert [token.text for token in info.special_tokens] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config": {"eos_token": "</s>"}, "config": {"eos_token_id": 1}}, 2),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}}, 2),
        ({"special_tokens_map": {"eos_token": "</s>"}}, 2),
        ({"config": {"eos_token_id": 1}}, 1),
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 1}}, None),
        ({"config": {"eos_token_id": [1, 2]}}, None),
    ],
)
def test_the_end_token_comes_from_the_nearest_file(
    make_tokenizer: MakeTokenizer, byte_fallback_json: dict[str, Any], files: dict[str, Any], expected: int | None
) -> None:
    assert make_tokenizer(byte_fallback_json, **files).info.eos_token_id == expected


def test_a_named_token_is_special_even_where_the_file_forgot_it(
    make_tokenizer: MakeTokenizer, byte_fallback_json: dict[str, Any]
) -> None:
    plain = make_tokenizer(byte_fallback_json)
    named = make_tokenizer(byte_fallback_json, tokenizer_config={"eos_token": "w", "pad_token": "<absent>"})
    assert plain.decode(plain.encode("hellow")) == "hellow"
    assert named.decode(named.encode("hellow")) == "hello"
    assert named.info.pad_token_id is None
    assert named.info.vocabulary_size == plain.info.vocabulary_size


def test_the_fingerprint_ignores_layout_truncation_and_padding(
    make_tokenizer: MakeTokenizer, minilm: LocalModel
) -> None:
    stored = json.loads((minilm.path / "tokenizer.json").read_text(encoding="utf-8"))
    bare = make_tokenizer({**stored, "truncation": None, "padding": None}).fingerprint
    assert stored["truncation"]
    assert stored["padding"]
    assert make_tokenizer(stored).fingerprint == bare
    assert make_tokenizer(dict(reversed(stored.items()))).fingerprint == bare


def test_the_fingerprint_ignores_how_merges_are_spelled(
    make_tokenizer: MakeTokenizer, byte_fallback_json: dict[str, Any]
) -> None:
    joined = copy.deepcopy(byte_fallback_json)
    joined["model"]["merges"] = [" ".join(merge) for merge in joined["model"]["merges"]]
    assert joined != byte_fallback_json
    assert make_tokenizer(joined).fingerprint == make_tokenizer(byte_fallback_json).fingerprint


PARTS = ("merges", "decoder", "normalizer", "post_processor", "added_tokens", "template", "eos")


@pytest.mark.parametrize("part", PARTS)
def test_the_fingerprint_sees_every_part_that_decides(
    make_tokenizer: MakeTokenizer, byte_fallback_json: dict[str, Any], part: str
) -> None:
    changed = copy.deepcopy(byte_fallback_json)
    config = {}
    match part:
        case "merges":
            changed["model"]["merges"].reverse()
        case "added_tokens":
            changed["added_tokens"][2]["special"] = False
        case "template":
            config = {"chat_template": "{{ messages }}"}
        case "eos":
            config = {"eos_token": "</s>"}
        case _:
            changed[part] = None
    fingerprint = make_tokenizer(changed, tokenizer_config=config).fingerprint
    assert fingerprint != make_tokenizer(byte_fallback_json).fingerprint


def test_threads_share_a_tokenizer(byte_level: Tokenizer) -> None:
    texts = [f"text {number} 😀 é" * (number + 1) for number in range(50)]
    expected = [byte_level.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(byte_level.encode, texts)) == expected
        assert list(threads.map(byte_level.decode, expected)) == texts


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    model = LocalModel(name="bare", source="file://", path=tmp_path, fingerprint="", size_bytes=0)
    with pytest.raises(ArgosyError, match="it has no tokenizer") as caught:
        Tokenizer.load(model)
    assert caught.value.reason is Reason.NOT_SUPPORTED


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "Sorcery"}}'])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    model = LocalModel(name="broken", source="file://", path=tmp_path, fingerprint="", size_bytes=0)
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArgosyError, match="model 'broken'") as caught:
        Tokenizer.load(model)
    assert caught.value.reason is Reason.NOT_SUPPORTED
