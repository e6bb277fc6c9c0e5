"""The reader against PEFT: same files, same change of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from argosy_services.engine.torch_engine.lora.patterns import PatternError, PatternTable
from argosy_services.engine.torch_engine.lora.reader import read_peft_adapter
from argosy_services.errors import ArgosyError, Reason

# PEFT asks transformers for a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
        )
    )


def shapes(model: nn.Module) -> Mapping[str, tuple[int, int]]:
    return {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path != "lm_head"
    }


def train(directory: Path, **options: object) -> None:
    """Saves an adapter with random factors, as after training."""
    model = get_peft_model(new_model(), LoraConfig(init_lora_weights=False, **options))  # type: ignore[arg-type]
    model.save_pretrained(directory)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "lora_alpha": 16, "target_modules": LINEAR},
        {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "layers_to_transform": [0, 2]},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEAR,
            "rank_pattern": {"down_proj": 2, r"^model\.layers\.1\.self_attn\.(q|k)_proj": 7, "layers.1.*": 3},
            "alpha_pattern": {r"layers\.[02]\..*_proj": 32, "^model.layers.1.mlp.up_proj": 5},
        },
        {
            "r": 6,
            "lora_alpha": 9,
            "target_modules": LINEAR,
            "use_rslora": True,
            "rank_pattern": {"o_proj": 1},
            "alpha_pattern": {"v_proj": 1},
        },
        {"r": 2, "target_modules": "all-linear", "exclude_modules": ["up_proj"]},
        {"r": 2, "target_modules": r".*\.1\..*(q|down)_proj"},
    ],
    ids=["plain", "rslora", "some-layers", "patterns", "rslora-patterns", "all-linear", "regex"],
)
def test_the_change_is_that_of_peft(tmp_path: Path, options: dict[str, object]) -> None:
    train(tmp_path, **options)
    base = new_model()
    adapter = read_peft_adapter(tmp_path, shapes=shapes(base), max_rank=8, dtype=torch.float32, base_model="tiny")
    merged = PeftModel.from_pretrained(new_model(), str(tmp_path)).merge_and_unload()
    changed = set()
    for path in shapes(base):
        before, after = base.get_submodule(path).weight, merged.get_submodule(path).weight
        if path in adapter.modules:
            pair = adapter.modules[path]
            torch.testing.assert_close(before + pair.b @ pair.a, after, rtol=1e-6, atol=1e-6)
        if not torch.equal(before, after):
            changed.add(path)
    assert changed == adapter.modules.keys()
    assert adapter.rank == max(pair.a.shape[0] for pair in adapter.modules.values())


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_of_a_changed_base_are_refused_for_cause(tmp_path: Path, start: str) -> None:
    """PEFT changes the base model's weights when it loads these; on the original weights they are wrong."""
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start)  # type: ignore[arg-type]
    model = get_peft_model(new_model(), config)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] == start
    base, path = new_model(), "model.layers.0.self_attn.q_proj"
    held = model.get_base_model().get_submodule(path).get_base_layer().weight
    assert not torch.allclose(base.get_submodule(path).weight, held, atol=1e-5)
    with pytest.raises(ArgosyError) as caught:
        read_peft_adapter(tmp_path, shapes=shapes(base), max_rank=8, dtype=torch.float32, base_model="tiny")
    assert caught.value.reason is Reason.ADAPTER_INVALID
    assert start in caught.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"bias": "lora_only"},
        {"layer_replication": [(0, 3), (1, 3)]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
    ],
    ids=lambda options: options["target_modules"][0] if "target_modules" in options else next(iter(options)),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_can_train_and_we_cannot_serve_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    model = new_model()
    if options.get("bias"):
        model = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "attention_bias": True}))
    config = LoraConfig(r=2, **{"target_modules": ["q_proj"], **options})  # type: ignore[arg-type]
    get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ArgosyError) as caught:
        read_peft_adapter(tmp_path, shapes=shapes(new_model()), max_rank=8, dtype=torch.float32, base_model="tiny")
    assert caught.value.reason is Reason.ADAPTER_INVALID


PATHS = [f"model.layers.{layer}.{part}" for layer in (0, 1, 11) for part in ("self_attn.q_proj", "mlp.up_proj")]
PIECES = st.sampled_from(
    [
        "q_proj",
        "up_proj",
        "_proj",
        "layers",
        "model",
        "mlp",
        "1",
        "0",
        ".",
        r"\.",
        "^",
        "$",
        ".*",
        r"\d+",
        "[01]",
        "(q|up)",
    ]
)


@settings(max_examples=500, deadline=None)
@given(keys=st.lists(st.lists(PIECES, min_size=1, max_size=5).map("".join), min_size=1, max_size=3, unique=True))
def test_patterns_match_as_in_peft(keys: list[str]) -> None:
    values = {key: number for number, key in enumerate(keys)}
    try:
        table = PatternTable(values, PATHS)
    except PatternError:
        return
    for path in PATHS:
        assert table.get(path, -1) == values.get(get_pattern_key(keys, path), -1)
