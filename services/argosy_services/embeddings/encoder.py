"""An embedding model: texts to token ids, token ids to vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from argosy_services.embeddings.bert import BertEncoder
from argosy_services.embeddings.config import SentenceConfig, read_config, unusable
from argosy_services.embeddings.packing import pack
from argosy_services.embeddings.pooling import pool
from argosy_services.embeddings.types import EmbeddingModelInfo
from argosy_services.engine.dtypes import compute_dtype
from argosy_services.engine.torch_engine import native
from argosy_services.engine.torch_engine.lora.reader import LoraPair
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.types import Encoding

log = structlog.get_logger("argosy.embeddings")


class Encoder:
    """A sentence-transformers model. Make it with `load`. Its methods may be called from any thread."""

    def __init__(self, info: EmbeddingModelInfo, tokenizer: Tokenizer, bert: BertEncoder) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self._bert = bert

    @classmethod
    def load(cls, local: LocalModel, dtype: str = "float32") -> Encoder:
        """Reads configuration, tokenizer and weights. Raises NOT_SUPPORTED with what cannot be served.

        `dtype` is "float32", "bfloat16", "int16" or "auto"; see `EmbeddingSettings`.
        """
        config = read_config(local)
        tokenizer = Tokenizer.load(local)
        _check_tokenizer(local, config, tokenizer)
        numbers = _numbers(local, config, dtype)
        bert = BertEncoder.load(local, config.bert, numbers)
        info = EmbeddingModelInfo(
            name=local.name,
            architecture=config.bert.architecture,
            dimensions=config.bert.hidden_size,
            max_input_tokens=tokenizer.info.max_context_tokens,
            pooling=config.pooling,
            normalizes=config.normalizes,
            tokenizer_fingerprint=tokenizer.fingerprint,
            dtype=numbers,
            parameter_count=bert.parameter_count,
        )
        return cls(info, tokenizer, bert)

    def adapted(self, changes: Mapping[str, LoraPair]) -> Encoder:
        """The model with the factors of an adapter; see `BertEncoder.adapted`. Blocks."""
        return Encoder(self.info, self.tokenizer, self._bert.adapted(changes))

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """The layers that adapters may change: by path, (out, in)."""
        return self._bert.shapes

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """The encodings of texts, cut at the end to what the model takes. Blocks."""
        return self.tokenizer.encode_batch(texts, max_tokens=self.info.max_input_tokens)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Sequence[int]], cores: int = 1) -> NDArray[np.float32]:
        """Token ids of one or more texts, each with at least one, to float32 [texts, dimensions]. Not normalised.

        Blocks.
        """
        packed = pack(batch)
        return pool(self.info.pooling, self._bert(packed, cores), packed).numpy()


def _numbers(local: LocalModel, config: SentenceConfig, wanted: str) -> str:
    """What the encoder is computed with: what is asked for, or the fastest that is accurate enough."""
    auto = compute_dtype("auto")
    if wanted not in ("auto", "int16") or (wanted == "auto" and auto is not torch.float32):
        return str(compute_dtype(wanted)).removeprefix("torch.")
    reason = _obstacle(config)
    if reason is None:
        return "int16"
    if wanted == "int16":
        raise unusable(local, f"embeddings.dtype int16 needs the native kernels, but {reason}")
    log.info("embeddings are computed in float32", because=reason)
    return "float32"


def _obstacle(config: SentenceConfig) -> str | None:
    """Why the native kernels do not compute the encoder here; None if they do."""
    if not native.is_supported():
        return "they are for Linux on x86-64"
    from argosy_services.embeddings.native_blocks import obstacle

    return obstacle(config.bert)


def _check_tokenizer(local: LocalModel, config: SentenceConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.info.vocabulary_size > config.bert.vocab_size:
        raise unusable(
            local, f"its tokenizer has {tokenizer.info.vocabulary_size} ids, its weights {config.bert.vocab_size}"
        )
    if not tokenizer.encode(""):
        raise unusable(local, "its tokenizer adds no special tokens, so that an empty text would have no vector")
    if config.lowercases and tokenizer.encode("A") != tokenizer.encode("a"):
        raise unusable(local, "its texts are lower-cased before a tokenizer that does not do so itself")
