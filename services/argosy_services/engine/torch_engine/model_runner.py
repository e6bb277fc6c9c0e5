"""From a step's work to logits: the only module that brings scheduler, cache, adapters and decoder together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from argosy_services.engine.torch_engine.attention import PagedAttention
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows


class ModelRunner:
    """Runs the decoder over scheduled work. Lives on the engine's thread."""

    def __init__(self, decoder: Decoder, pool: KvPool, adapters: AdapterSlots) -> None:
        self._decoder = decoder
        self._pool = pool
        self._adapters = adapters

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        """Computes the work, writes its keys and values, and gives the logits float32 `[rows, vocab]` that
        `wanted_rows` names."""
        # One-token items first, as attention wants them.
        ordered = sorted(work, key=lambda item: item.count > 1)
        device = self._decoder.device
        token_ids = torch.tensor([token for item in ordered for token in item.token_ids()], device=device)
        positions = torch.tensor(
            [position for item in ordered for position in range(item.start, item.start + item.count)], device=device
        )
        attention = PagedAttention(self._decoder.config, self._pool, ordered, device)
        hidden = self._decoder.hidden(token_ids, positions, attention, self._adapters.of_batch(ordered, device))
        rows, spans = wanted_rows(ordered)
        if not rows:
            return torch.empty(0, self._decoder.config.vocab_size), []
        return self._decoder.logits(hidden[torch.tensor(rows, device=device)]), spans

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest token, int64 `[rows]`."""
        return logits.argmax(dim=-1)

    def settle(self) -> bool:
        """Nothing to prepare."""
        return False

    def close(self) -> None:
        """Nothing to give back."""
