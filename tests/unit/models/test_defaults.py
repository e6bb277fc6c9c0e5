"""The two models that are known by name, as they were pulled from their packages."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from argosy_services.models.types import LocalModel


def test_the_language_model(smollm2: LocalModel) -> None:
    config = json.loads((smollm2.path / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["vocab_size"]) == ("llama", 576, 49152)
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (30, 3)
    assert "<|im_start|>" in (smollm2.path / "chat_template.jinja").read_text()
    with safe_open(smollm2.path / "model.safetensors", framework="pt") as weights:
        assert weights.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"
        assert len(weights.keys()) == 272


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("x =  5", [104, 446, 256, 37]),
        ("<|im_start|>", [1]),
    ],
)
def test_the_language_model_splits_text_as_it_was_trained(smollm2: LocalModel, text: str, ids: list[int]) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))
    assert tokenizer.encode(text).ids == ids


def test_the_embedding_model(minilm: LocalModel) -> None:
    config = json.loads((minilm.path / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("bert", 384, 6)
    assert json.loads((minilm.path / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    tokenizer = Tokenizer.from_file(str(minilm.path / "tokenizer.json"))
    assert tokenizer.encode("hello world").tokens[:4] == ["[CLS]", "hello", "world", "[SEP]"]
    with safe_open(minilm.path / "model.safetensors", framework="pt") as weights:
        assert weights.get_slice("embeddings.word_embeddings.weight").get_shape() == [30522, 384]
