"""A GGUF file of every architecture that is converted gives back the weights and the configuration it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

from argosy_services.engine.torch_engine.architectures import parse_config, read_config
from argosy_services.models import gguf as conversion
from argosy_services.models.errors import ConversionError
from argosy_services.models.gguf_config import GgufFile, complete

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", {}),
    "llama, biases, tied": (
        "llama",
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama 3.2": ("llama", "LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, stretched": ("llama", "LlamaConfig", {"rope_parameters": LINEAR}),
    "qwen 2": ("qwen2", "Qwen2Config", {}),
    "qwen 2, yarn": ("qwen2", "Qwen2Config", {"rope_parameters": YARN}),
    "qwen 3": ("qwen3", "Qwen3Config", {}),
    "gemma 2": (
        "gemma2",
        "Gemma2Config",
        {"query_pre_attn_scalar": 16, "sliding_window": 8, "attn_logit_softcapping": 40.0},
    ),
    "gemma 3": (
        "gemma3",
        "Gemma3TextConfig",
        {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE},
    ),
}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the reader back that a conversion replaces: it is made for a process of its own."""
    monkeypatch.setattr(gguf, "GGUFReader", gguf.GGUFReader)


def _model(case: str) -> tuple[str, Any]:
    """The file's architecture, and a random model in float32 whose weights are exact in bfloat16."""
    import transformers

    architecture, name, changes = CASES[case]
    torch.manual_seed(1)
    vocabulary = len(_tokens(architecture))
    config = getattr(transformers, name)(**{**SIZES, "vocab_size": vocabulary, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter).bfloat16().float()
    return architecture, model


def _tokens(architecture: str) -> list[str]:
    if architecture.startswith("gemma"):
        letters = [chr(code) for code in range(33, 127)]
        spaces = [" " * count for count in (2, 3)]
        return ["<eos>", "<bos>", "<pad>", "<unk>", "<end_of_turn>", *spaces, *_bytes(), "▁", *letters]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĠĠ"]


def _bytes() -> list[str]:
    return [f"<0x{code:02X}>" for code in range(256)]


def _write(path: Path, architecture: str, model: Any, changes: dict[str, np.ndarray] | None = None) -> None:
    """Writes a model as llama.cpp's converter does."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _write_rope(writer, architecture, config)
    _write_tokenizer(writer, architecture)
    for name, tensor in {**_tensors(architecture, model), **(changes or {})}.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_rope(writer: gguf.GGUFWriter, architecture: str, config: Any) -> None:
    rope = config.rope_parameters
    if architecture in {"gemma2", "gemma3"}:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "gemma3":
        rope = rope["full_attention"]
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in {"linear", "yarn"}:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_tokenizer(writer: gguf.GGUFWriter, architecture: str) -> None:
    tokens = _tokens(architecture)
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    if architecture.startswith("gemma"):
        kinds[3:7] = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.USER_DEFINED] * 2
        kinds[7 : 7 + 256] = [gguf.TokenType.BYTE] * 256
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(2)
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2" if architecture.startswith("qwen") else "smollm")
        writer.add_token_merges(["Ġ Ġ"])
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)


def _tensors(architecture: str, model: Any) -> dict[str, np.ndarray]:
    config = model.config
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.numpy()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        tensors[names.get_name(name, (".weight", ".bias"))] = np.ascontiguousarray(data)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        rotation = model.model.rotary_emb
        plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        tensors["rope_freqs.weight"] = (plain / rotation.inv_freq).float().numpy()
    return tensors


@pytest.mark.parametrize("case", CASES)
def test_weights_and_configuration_survive(case: str, tmp_path: Path) -> None:
    architecture, model = _model(case)
    _write(tmp_path / "tiny.gguf", architecture, model)
    (tmp_path / "out").mkdir()

    conversion.main([str(tmp_path / "tiny.gguf"), str(tmp_path / "out")])

    converted = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert converted.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(converted[name], tensor, rtol=0, atol=0, msg=name)
    end_of_turn = 4 if architecture.startswith("gemma") else 2
    given = read_config(tmp_path / "out")
    wanted = parse_config(
        {**model.config.to_dict(), "architectures": [type(model).__name__], "rms_norm_eps": given.norm_eps},
        {"eos_token_id": [0, end_of_turn]},
    )
    assert given.norm_eps == pytest.approx(model.config.rms_norm_eps)
    assert given == wanted


@pytest.mark.parametrize(("name", "architecture", "layers"), [("Gemma2", "gemma2", 46), ("Gemma3Text", "gemma3", 62)])
def test_gemma_27b_scales_scores_by_another_size(name: str, architecture: str, layers: int) -> None:
    import transformers

    fields = {"general.architecture": architecture, f"{architecture}.attention.key_length": 16}
    for count, expected in ((layers, 8), (layers - 1, 16)):
        config = getattr(transformers, f"{name}Config")(**{**SIZES, "num_hidden_layers": count})
        complete(config, GgufFile(fields, frozenset(), None))
        assert config.query_pre_attn_scalar == expected


def test_tensors_without_a_place_and_places_without_a_tensor_are_refused(tmp_path: Path) -> None:
    architecture, model = _model("qwen 2")
    arguments = [str(tmp_path / "tiny.gguf"), str(tmp_path)]
    _write(tmp_path / "tiny.gguf", architecture, model, {"blk.0.attn_output.bias": np.zeros(32, dtype=np.float32)})
    with pytest.raises(ConversionError, match="of its 40 tensors are weights of a qwen2 model, which lacks 0"):
        conversion.main(arguments)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}, "are not those of Llama 3"),
        ({"rope_factors_long.weight": np.ones(8, dtype=np.float32)}, "tensors are weights of a llama model"),
    ],
)
def test_rotations_that_are_not_known_are_refused(changes: dict[str, np.ndarray], problem: str, tmp_path: Path) -> None:
    architecture, model = _model("llama")
    _write(tmp_path / "tiny.gguf", architecture, model, changes)
    with pytest.raises(ConversionError, match=problem):
        conversion.main([str(tmp_path / "tiny.gguf"), str(tmp_path)])


def test_an_architecture_that_cannot_be_served_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "phi3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConversionError, match="'phi3' is not among those that are converted: gemma2"):
        conversion.main([str(tmp_path / "tiny.gguf"), str(tmp_path)])
