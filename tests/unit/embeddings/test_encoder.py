"""What is served, and what is refused with its reason. That vectors are right is tested under tests/reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from argosy_services.embeddings import attention
from argosy_services.embeddings.attention import attend
from argosy_services.embeddings.encoder import Encoder
from argosy_services.embeddings.linear import Projection
from argosy_services.embeddings.packing import Group, pack
from argosy_services.embeddings.pooling import pool
from argosy_services.embeddings.types import Pooling
from argosy_services.engine.dtypes import compute_dtype
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel

from ..processors import REDUCED


def test_the_bundled_model_is_described(encoder: Encoder) -> None:
    info = encoder.info
    assert (info.architecture, info.dimensions, info.max_input_tokens) == ("BertModel", 384, 256)
    assert (info.pooling, info.normalizes, info.dtype) == (Pooling.MEAN, True, "float32")
    assert info.tokenizer_fingerprint == encoder.tokenizer.fingerprint
    assert info.parameter_count == 22_565_376


@pytest.mark.parametrize(
    ("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 5e-3), pytest.param("int16", 0, marks=REDUCED)]
)
def test_neighbours_do_not_change_a_vector(minilm: LocalModel, dtype: str, atol: float) -> None:
    encoder = Encoder.load(minilm, dtype)
    texts = ["a much longer text " * 20, "one text", "another text", "no", "a much longer text " * 100]
    ids = [encoding.ids for encoding in encoder.tokenize(texts)]
    together = encoder.embed(ids)
    assert together.dtype == np.float32
    assert together.shape == (5, 384)
    for alone, vector in zip(ids, together, strict=True):
        np.testing.assert_allclose(vector, encoder.embed([alone])[0], atol=atol)


def test_texts_are_cut_to_what_the_model_takes(encoder: Encoder) -> None:
    whole, cut = encoder.tokenize(["word " * 254, "word " * 300])
    assert (len(whole.ids), whole.truncated_tokens) == (256, 0)
    assert (len(cut.ids), cut.truncated_tokens, cut.ids) == (256, 46, whole.ids)


def test_packing_and_pooling_by_hand() -> None:
    packed = pack([[7, 8, 9], [5, 6], [3, 4]])
    assert packed.ids.tolist() == [5, 6, 3, 4, 7, 8, 9]
    assert packed.positions.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert packed.groups == [Group(0, 2, 2), Group(4, 1, 3)]
    states = torch.tensor([[1.0, 2.0], [3.0, 6.0], [0.0, 5.0], [1.0, 5.0], [9.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert pool(Pooling.MEAN, states, packed).tolist() == [[3.0, 1.0], [2.0, 4.0], [0.5, 5.0]]
    assert pool(Pooling.CLS, states, packed).tolist() == [[9.0, 0.0], [1.0, 2.0], [0.0, 5.0]]


def test_attention_in_bfloat16_is_that_of_float32() -> None:
    torch.manual_seed(0)
    lengths = [3, 3, 3, 40, 600]
    packed = pack([[0] * length for length in lengths])
    qkv = torch.randn(sum(lengths), 3 * 4 * 8)
    exact = attend(qkv, 4, packed.groups)
    start = 0
    for length in lengths:
        query, key, value = qkv[start : start + length].view(length, 3, 4, 8).permute(1, 2, 0, 3)
        by_hand = torch.softmax(query @ key.transpose(1, 2) / 8**0.5, -1) @ value
        torch.testing.assert_close(exact[start : start + length], by_hand.transpose(0, 1).flatten(1))
        start += length
    torch.testing.assert_close(attend(qkv.bfloat16(), 4, packed.groups).float(), exact, atol=0.03, rtol=0.03)


def test_attention_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(7 * 5, 3 * 8).bfloat16()
    whole = attend(qkv, 2, [Group(0, 7, 5)])
    monkeypatch.setattr(attention, "_SCORES", 2 * 25 * 3)
    torch.testing.assert_close(attend(qkv, 2, [Group(0, 7, 5)]), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_linear_layers_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fused: bool) -> None:
    torch.manual_seed(0)
    weight, bias, states, residual = (torch.randn(*shape) for shape in ((48, 32), (48,), (5, 32), (5, 48)))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: fused)
    projection = Projection((weight / 6).to(dtype), bias.to(dtype))
    narrow = states.to(dtype)
    expected = narrow.float() @ (weight / 6).to(dtype).float().T + bias.to(dtype).float()
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(projection(narrow).float(), expected, **tolerance)
    torch.testing.assert_close(projection.gelu(narrow).float(), torch.nn.functional.gelu(expected), **tolerance)
    added = projection.added(narrow, residual.to(dtype)).float()
    torch.testing.assert_close(added, expected + residual.to(dtype).float(), **tolerance)


def test_auto_takes_a_type_that_the_processor_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert compute_dtype("auto") is dtype
        assert (compute_dtype("float32"), compute_dtype("bfloat16")) == (torch.float32, torch.bfloat16)


@REDUCED
def test_auto_takes_the_kernels_where_bfloat16_is_slow(
    minilm: LocalModel, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert Encoder.load(minilm, "auto").info.dtype == "int16"
    # Eight heads of 48 numbers.
    other = spoil(config={"num_attention_heads": 8})
    assert Encoder.load(other, "auto").info.dtype == "float32"
    with pytest.raises(
        ArgosyError, match=r"embeddings.dtype int16 needs the native kernels, but the size of a head 48"
    ):
        Encoder.load(other, "int16")


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, Pooling.CLS),
        ({"pooling_mode_mean_tokens": None, "pooling_mode": "cls"}, Pooling.CLS),
        ({"pooling_mode": "mean"}, Pooling.MEAN),
    ],
)
def test_pooling_is_read_in_every_spelling(spoil: Any, pooling: dict[str, Any], expected: Pooling) -> None:
    assert Encoder.load(spoil(**{"1_Pooling__config": pooling})).info.pooling is expected


def test_a_bare_encoder_takes_the_mean_and_its_positions(spoil: Any) -> None:
    info = Encoder.load(spoil(modules=None, sentence_bert_config=None)).info
    assert (info.pooling, info.normalizes, info.max_input_tokens) == (Pooling.MEAN, False, 512)


def test_the_limit_may_stand_with_the_tokenizer(spoil: Any) -> None:
    model = spoil(sentence_bert_config={"max_seq_length": None}, tokenizer_config={"model_max_length": 100})
    assert Encoder.load(model).info.max_input_tokens == 100


def test_the_limit_never_exceeds_the_positions(spoil: Any) -> None:
    assert Encoder.load(spoil(sentence_bert_config={"max_seq_length": 9999})).info.max_input_tokens == 512


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config": {"architectures": ["RobertaModel"]}}, "RobertaModel; served: BertModel"),
        ({"config": {"hidden_act": "relu"}}, "hidden_act relu"),
        ({"config": {"position_embedding_type": "relative_key"}}, "position_embedding_type relative_key"),
        ({"config": {"is_decoder": True}}, "is_decoder True"),
        ({"config": {"quantization_config": {"bits": 4}}}, "quantization_config"),
        ({"config": {"num_hidden_layers": None}}, "no num_hidden_layers"),
        ({"config": {"num_hidden_layers": 7}}, "lack encoder.layer.6"),
        ({"config": {"intermediate_size": 100}}, "shape"),
        ({"config": {"num_attention_heads": 7}}, "384 .* 7 heads"),
        ({"config": {"vocab_size": 30000}}, "30522 ids, its weights 30000"),
        ({"config": None}, "no config.json"),
        ({"modules": [*MODULES, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]}, "Dense"),
        ({"modules": [{**MODULES[0], "path": "0_Transformer"}, MODULES[1]]}, "0_Transformer"),
        ({"1_Pooling__config": {"pooling_mode_mean_tokens": False}}, "pools by nothing"),
        ({"1_Pooling__config": {"pooling_mode_cls_token": True}}, "cls"),
        ({"1_Pooling__config": {"pooling_mode": "lasttoken"}}, "lasttoken"),
        ({"1_Pooling__config": None}, "no 1_Pooling/config.json"),
        ({"config_sentence_transformers": {"default_prompt_name": "query"}}, "prompt"),
        ({"tokenizer": {"post_processor": None, "truncation": None}}, "empty text"),
        (
            {"sentence_bert_config": {"do_lower_case": True}, "tokenizer": {"normalizer": {"type": "NFC"}}},
            "lower-cased",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(spoil: Any, files: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArgosyError, match=f"model 'spoiled': .*{reason}") as caught:
        Encoder.load(spoil(**files))
    assert caught.value.reason is Reason.NOT_SUPPORTED


def test_lower_casing_that_the_tokenizer_does_anyway_is_served(spoil: Any) -> None:
    Encoder.load(spoil(sentence_bert_config={"do_lower_case": True}))


def test_broken_or_missing_weights_are_refused(spoil: Any) -> None:
    model = spoil()
    weights = model.path / "model.safetensors"
    weights.unlink()
    with pytest.raises(ArgosyError, match="safetensors"):
        Encoder.load(model)
    weights.write_bytes(b"\x00" * 100)
    with pytest.raises(ArgosyError, match="not a safetensors file"):
        Encoder.load(model)


def test_weights_of_another_type_are_computed_in_float32(spoil: Any, encoder: Encoder) -> None:
    model = spoil()
    path = model.path / "model.safetensors"
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(halves, path)
    half = Encoder.load(model)
    ids = [encoding.ids for encoding in encoder.tokenize(["one text"])]
    assert half.embed(ids).dtype == np.float32
    np.testing.assert_allclose(half.embed(ids), encoder.embed(ids), atol=0.01)
