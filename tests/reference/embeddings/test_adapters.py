"""Vectors under adapters: the same as sentence-transformers with PEFT, file by file as they write it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from argosy_services.embeddings.encoder import Encoder
from argosy_services.models.types import LocalModel

from ...unit.embeddings.adapted import running

TEXTS = ["A ship at sea.", "", "The captain wrote a letter to the harbour master. " * 12, "né 😀"]
TARGETS = [["query", "value"], ["query", "key", "value", "attention.output.dense", "intermediate.dense"]]

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def trained(minilm: LocalModel, targets: list[str], directory: Path) -> Any:
    """A sentence-transformers model with an adapter whose factors are not zero, saved into `directory`."""
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(len(targets))
    model = SentenceTransformer(str(minilm.path), device="cpu")
    # PEFT puts its layers into the model itself.
    tuned = get_peft_model(
        model[0].auto_model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, rank_pattern={"query": 4})
    )
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(directory)
    return model


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 3e-6), ("auto", 5e-3)])
@pytest.mark.parametrize("targets", TARGETS, ids=len)
async def test_vectors_under_an_adapter(
    minilm: LocalModel, targets: list[str], dtype: str, atol: float, tmp_path: Path
) -> None:
    reference = trained(minilm, targets, tmp_path / "a")
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    with running(Encoder.load(minilm, dtype)) as (service, adapters, leases):
        weights = adapters.read_adapter(tmp_path / "a")
        await asyncio.wrap_future(adapters.load_adapter(leases.know("a"), weights))
        plain, adapted = await asyncio.gather(service.embed(TEXTS), service.embed(TEXTS, adapter="a"))
    np.testing.assert_allclose(adapted.vectors, expected, atol=atol)
    assert np.abs(plain.vectors - expected).max() > 0.05, "the adapter changes nothing"
