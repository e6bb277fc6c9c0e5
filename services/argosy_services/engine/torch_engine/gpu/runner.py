"""From a step's work to logits on a GPU; takes the place of `model_runner.ModelRunner`."""

from __future__ import annotations

from collections.abc import Sequence as Items
from contextlib import nullcontext

import torch

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.gpu.adapters import GpuAdapters
from argosy_services.engine.torch_engine.gpu.attention import PromptAttention
from argosy_services.engine.torch_engine.gpu.decode_step import DecodeStep
from argosy_services.engine.torch_engine.gpu.decoder import GpuDecoder
from argosy_services.engine.torch_engine.gpu.run_ahead import RunAhead
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows


class GpuRunner:
    """Runs the decoder over scheduled work. Lives on the engine's thread.

    Items of one token go through `DecodeStep`, whatever else is in the step; pieces of prompts and guessed tokens
    follow in one flat batch, launched operation by operation.
    """

    def __init__(
        self, decoder: GpuDecoder, pool: KvPool, adapters: GpuAdapters, decode: DecodeStep, *, ahead: bool
    ) -> None:
        """`ahead`: decode steps may be started before they are asked for; see `run_ahead.py`."""
        self._decoder = decoder
        self._pool = pool
        self._adapters = adapters
        self._max_rows = decode.max_rows
        self._decode = RunAhead(decode, enabled=ahead)
        # Triton launches on the thread's current device.
        self._device = torch.cuda.device(decoder.device) if decoder.device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def run(self, work: Items[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        """Computes the work, writes its keys and values, and gives the logits float32 `[rows, vocab]` that
        `wanted_rows` names. They are overwritten by the next call."""
        with self._device:
            return self._run(work)

    def warm_up(self, scratch: int) -> None:
        """Compiles what pieces of prompts need, by one of two tokens in the block `scratch`, which no sequence has."""
        sequence = Sequence.of(Request("warm-up", [0, 0], 1))
        sequence.table.append(scratch)
        self.run([Work(sequence, 0, 2)])

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest token, int64 `[rows]`."""
        known = self._decode.likeliest(logits)
        return logits.argmax(dim=-1) if known is None else known

    def settle(self) -> bool:
        """Nothing to prepare."""
        return False

    def close(self) -> None:
        """Nothing to give back."""

    def _run(self, work: Items[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        singles = [item for item in work if item.count == 1]
        decodes = singles[: self._max_rows]
        others = [*singles[len(decodes) :], *(item for item in work if item.count > 1)]
        rows, spans = wanted_rows([*decodes, *others])
        first = [row for row in rows if row < len(decodes)]
        # Sent before anything runs, for sending waits for what does.
        batch = _Batch(self._decoder, self._pool, self._adapters, others) if others else None
        rest = torch.tensor([row - len(decodes) for row in rows[len(first) :]], device=self._decoder.device)
        parts = [torch.empty(0, self._decoder.config.vocab_size, device=self._decoder.device)]
        if not decodes:
            self._decode.forget()
        else:
            alone = len(first) == len(rows) == len(decodes) and batch is None
            logits = self._decode.run(decodes, alone=alone)
            if alone:
                return logits, spans
            # Indexing by a list would wait for the device.
            parts.append(logits if len(first) == len(decodes) else logits[first])
        if batch is not None:
            hidden = batch.hidden()
            if len(rest):
                parts.append(self._decoder.logits(hidden[rest]))
        return torch.cat(parts), spans


class _Batch:
    """Any work in one flat batch, in its order."""

    def __init__(self, decoder: GpuDecoder, pool: KvPool, adapters: GpuAdapters, work: Items[Work]) -> None:
        self._decoder = decoder
        tokens = [token for item in work for token in item.token_ids()]
        positions = [position for item in work for position in range(item.start, item.start + item.count)]
        self._tokens = torch.tensor(tokens, device=decoder.device)
        self._positions = torch.tensor(positions, device=decoder.device)
        self._attention = PromptAttention(decoder.config, pool, decoder.kernels, work, decoder.device)
        self._adapters = adapters.of_batch(work, decoder.kernels)

    def hidden(self) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]`."""
        return self._decoder.hidden(self._tokens, self._positions, self._attention, self._adapters)
