"""Tokenizers of every kind that detokenizers tell apart: two real ones and small ones made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer

MakeTokenizer = Callable[..., Tokenizer]


@pytest.fixture(scope="session")
def byte_level(smollm2: LocalModel) -> Tokenizer:
    return Tokenizer.load(smollm2)


@pytest.fixture(scope="session")
def word_piece(minilm: LocalModel) -> Tokenizer:
    return Tokenizer.load(minilm)


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> MakeTokenizer:
    """Loads a tokenizer from files made of it and of `files`: JSON values by file name without extension."""

    def make(library: tokenizers.Tokenizer | dict[str, Any], **files: Any) -> Tokenizer:
        directory = tmp_path_factory.mktemp("model")
        content = library if isinstance(library, dict) else json.loads(library.to_str())
        for name, value in {"tokenizer": content, **files}.items():
            (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return Tokenizer.load(LocalModel("small", "file://", directory, fingerprint="0" * 64, size_bytes=0))

    return make


@pytest.fixture(scope="session")
def byte_fallback(make_tokenizer: MakeTokenizer, byte_fallback_json: dict[str, Any]) -> Tokenizer:
    """As Llama 2 has it: pieces with a mark for the space, bytes for the rest, one leading space dropped."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return make_tokenizer(byte_fallback_json, tokenizer_config=named)


@pytest.fixture(scope="session")
def byte_fallback_json() -> dict[str, Any]:
    """The tokenizer.json of `byte_fallback`."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrdé", "▁h", "el", "▁hel"]
    merges = [("▁", "h"), ("e", "l"), ("▁h", "el")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return json.loads(library.to_str())


@pytest.fixture(scope="session")
def unigram(make_tokenizer: MakeTokenizer) -> Tokenizer:
    """As T5 has it: SentencePiece's unigrams."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("re", -3.5), ("é", -4.0), *((c, -5.0) for c in "ther ")]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return make_tokenizer(library)


@pytest.fixture(scope="session")
def word_level(make_tokenizer: MakeTokenizer) -> Tokenizer:
    """Without any decoder: words with spaces between them."""
    library = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "new": 1, "york": 2, "": 3}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return make_tokenizer(library)


@pytest.fixture(scope="session")
def end_of_word(make_tokenizer: MakeTokenizer) -> Tokenizer:
    """As CLIP has it: what a token gives depends on whether it is the last one."""
    vocabulary = {"<unk>": 0, "lo</w>": 1, "w": 2, "est</w>": 3}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    library.decoder = decoders.BPEDecoder("</w>")
    return make_tokenizer(library)
