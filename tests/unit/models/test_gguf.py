"""GGUF files become safetensors in bfloat16, with a tokenizer that has the file's ids."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from argosy_services.models.errors import ConversionError
from argosy_services.models.progress import Stage
from argosy_services.models.store import ModelStore

WIDTH, HIDDEN, HEADS = 32, 48, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
MERGED = ["ĠĠ", "10"]
"""Two spaces, and a pair of digits that a tokenizer which splits digits first can never produce."""

pytestmark = pytest.mark.slow


def _write(path: Path, pre: str) -> dict[str, np.ndarray]:
    """A llama with one layer and a byte-level vocabulary; returns its tensors by their GGUF names."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *MERGED]
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH, WIDTH),
        "blk.0.attn_v": (WIDTH, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH),
        "blk.0.ffn_down": (WIDTH, HIDDEN),
        "output_norm": (WIDTH,),
    }
    tensors = {f"{name}.weight": rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges(["Ġ Ġ", "1 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_weights_and_ids_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = _write(tmp_path / "Tiny.gguf", pre="smollm")
    store = ModelStore(tmp_path / "models")
    stages: list[Stage] = []

    model = store.pull((tmp_path / "Tiny.gguf").as_uri(), lambda stage, done, total: stages.append(stage))

    assert model.name == "Tiny"
    assert list(dict.fromkeys(stages)) == [Stage.CONVERTING, Stage.CHECKING]
    assert store.verify("Tiny") == []
    weights = load_file(model.path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        torch.testing.assert_close(weights[ours], torch.from_numpy(tensors[theirs]).bfloat16(), rtol=0, atol=0)

    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    assert tokenizer.get_vocab()["<|im_start|>"] == 1
    assert tokenizer.encode("<|im_start|>a  10").tokens == ["<|im_start|>", "a", "ĠĠ", "1", "0"]


def test_an_unknown_way_to_split_text_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "Tiny.gguf", pre="a-new-one")
    store = ModelStore(tmp_path / "models")
    with pytest.raises(ConversionError, match=r"'a-new-one'.*pull a safetensors checkpoint"):
        store.pull((tmp_path / "Tiny.gguf").as_uri())
    assert store.list() == []
    assert list((tmp_path / "models" / ".staging").iterdir()) == []


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Tiny.gguf").write_bytes(b"GGUF\0 but not really")
    with pytest.raises(ConversionError, match="cannot be converted"):
        ModelStore(tmp_path / "models").pull((tmp_path / "Tiny.gguf").as_uri())
