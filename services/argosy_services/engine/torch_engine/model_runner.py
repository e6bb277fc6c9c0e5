"""From a step's work to logits: the only module that brings scheduler, cache, adapters and decoder together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.attention import PagedAttention
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.scheduler import Work


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Rows `first` to `first + count` of a step's logits belong to `work`; row i predicts the token after position
    `position + i`."""

    work: Work
    first: int
    count: int
    position: int


class ModelRunner:
    """Runs the decoder over scheduled work. Lives on the engine's thread."""

    def __init__(self, decoder: Decoder, pool: KvPool, adapters: AdapterSlots) -> None:
        self._decoder = decoder
        self._pool = pool
        self._adapters = adapters

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        """Computes the work, writes its keys and values, and gives the logits float32 `[rows, vocab]` that are needed:
        the last of each item that completes its sequence, or those before each scored token."""
        # One-token items first, as attention wants them.
        ordered = sorted(work, key=lambda item: item.count > 1)
        device = self._decoder.device
        token_ids = torch.tensor(
            [token for item in ordered for token in item.sequence.tokens[item.start : item.start + item.count]],
            device=device,
        )
        positions = torch.tensor(
            [position for item in ordered for position in range(item.start, item.start + item.count)], device=device
        )
        attention = PagedAttention(self._decoder.config, self._pool, ordered, device)
        hidden = self._decoder.hidden(token_ids, positions, attention, self._adapters.of_batch(ordered, device))
        rows, spans = _wanted_rows(ordered)
        if not rows:
            return torch.empty(0, self._decoder.config.vocab_size), []
        return self._decoder.logits(hidden[torch.tensor(rows, device=device)]), spans


def _wanted_rows(work: Sequence[Work]) -> tuple[list[int], list[RowSpan]]:
    rows: list[int] = []
    spans: list[RowSpan] = []
    base = 0
    for item in work:
        wanted = _wanted_positions(item)
        if wanted:
            spans.append(RowSpan(item, len(rows), len(wanted), wanted.start))
            rows.extend(base + position - item.start for position in wanted)
        base += item.count
    return rows, spans


def _wanted_positions(item: Work) -> range:
    end = item.start + item.count
    score_from = item.sequence.request.score_from
    if score_from is None:
        return range(end - 1, end) if item.completes else range(0)
    return range(max(item.start, score_from - 1), min(end, len(item.sequence.tokens) - 1))
