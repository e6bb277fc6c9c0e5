"""Every served architecture against transformers, on small random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from argosy_services.engine.base import Request, Sampling
from argosy_services.engine.factory import create_engine
from argosy_services.engine.torch_engine.config import UnsupportedModelError, parse_config
from argosy_services.models.types import LocalModel

from .conftest import Collector, settings

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, one key-value head for each head": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama, biases and untied head": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "llama, tied head and own head size": ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 16}),
    "llama 3.1 positions": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "llama, stretched positions": ("LlamaConfig", {"rope_parameters": LINEAR_ROPE}),
    "qwen 2": ("Qwen2Config", {}),
    "qwen 3": ("Qwen3Config", {"head_dim": 16}),
    "mistral, sliding window": ("MistralConfig", {"sliding_window": 24, "head_dim": 8}),
    "mistral, full attention": ("MistralConfig", {"sliding_window": None, "head_dim": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_transformers(family: str, tmp_path: Path, smollm2: LocalModel) -> None:
    import transformers

    name, changes = FAMILIES[family]
    torch.manual_seed(7)
    config = getattr(transformers, name)(**{**SHAPE, **changes})
    reference = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in reference.parameters():
        if parameter.dim() == 1:  # Norms and biases start as ones and zeros, which would hide a mistake.
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    reference.save_pretrained(tmp_path)
    local = LocalModel(name="tiny", source="file://", path=tmp_path, fingerprint="0", size_bytes=0)
    engine = create_engine(
        local, settings(kv_cache_tokens=4096, max_step_tokens=40), (smollm2.path / "tokenizer.json").read_text()
    )
    collector = Collector(engine)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(2, 320, (length,), generator=generator).tolist() for length in (2, 7, 30, 33, 100, 170)]
    answers = collector.run(
        [Request(id=str(index), prompt=prompt, max_tokens=0, score_from=1) for index, prompt in enumerate(prompts)]
        + [
            Request(id=f"g{index}", prompt=prompt, max_tokens=40, sampling=Sampling(temperature=0.0))
            for index, prompt in enumerate(prompts)
        ]
    )
    for index, prompt in enumerate(prompts):
        answer = answers[f"g{index}"].tokens
        with torch.inference_mode():
            scored = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
            continued = reference(torch.tensor([prompt + answer])).logits[0]
        expected = scored[:-1].gather(-1, torch.tensor(prompt[1:])[:, None]).squeeze(1)
        given = torch.tensor([entry.logprob for entry in answers[str(index)].logprobs])
        torch.testing.assert_close(given, expected, atol=2e-4, rtol=1e-4)
        assert continued[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    engine.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8}, "sliding_window"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        parse_config({"architectures": ["LlamaForCausalLM"], **SHAPE, **changes}, {})


def test_missing_and_misshapen_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    local = LocalModel(name="tiny", source="file://", path=tmp_path, fingerprint="0", size_bytes=0)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(47)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight has shape \(47,\)"):
        create_engine(local, settings(), "{}")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"no tensor model\.norm\.weight"):
        create_engine(local, settings(), "{}")
