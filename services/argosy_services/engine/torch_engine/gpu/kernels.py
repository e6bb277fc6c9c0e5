"""What the GPU path computes with kernels of its own, and the words in which it asks for that. Without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from argosy_services.engine.torch_engine.config import Activation
from argosy_services.engine.torch_engine.models.rope import Turn

# Ranks of adapters are rounded up to a multiple of it.
RANK_TILE = 16
# Rows of a prompt that are multiplied with an adapter's factors at once.
PIECE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer's keys and values, each `[kv_heads, slots, head_dim]`; see `kv_pool.py`."""

    keys: torch.Tensor
    values: torch.Tensor
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the cache is divided: `tokens` of a block, and the block `scratch` that no sequence has."""

    tokens: int
    scratch: int


@dataclass(frozen=True, slots=True)
class Scoring:
    """How queries and keys become scores: `scale`, `softcap` and `window` as `DecoderConfig` and `LayerKind` say."""

    scale: float
    softcap: float | None
    window: int | None


@dataclass(frozen=True, slots=True)
class Prompts:
    """Pieces of prompts in one flat batch.

    `tables` int32 `[sequences, width]` are their blocks; `spans` int32 `[sequences, 3]` the first row of each piece in
    the batch, its position and its tokens; `tasks` int32 `[programs, 2]` a sequence and a first query vector each, as
    the kernels divide them (`Kernels.tasks_of`).
    """

    tables: torch.Tensor
    spans: torch.Tensor
    tasks: torch.Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's factors of all adapters: `a` `[slots, rank, in]` and `b` `[slots, out, rank]`. Of each slot so many
    are in use as `ranks` int32 `[slots]` says, the others are zeros."""

    a: torch.Tensor
    b: torch.Tensor
    ranks: torch.Tensor


class Kernels(Protocol):
    """The kernels. Each result is new memory unless it says otherwise."""

    def norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool) -> torch.Tensor:
        """RMSNorm over the last dimension of `[tokens, size]` or `[tokens, heads, size]`."""
        ...

    def add_norm(
        self, states: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of `states` and `added` `[tokens, size]`, and its norm."""
        ...

    def place(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        turn: Turn | None,
        cache: Cache,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Turns `query` `[tokens, heads, head_dim]` and `key` `[tokens, kv_heads, head_dim]` unless `turn` is None,
        and stores keys and values at int64 `slots` `[tokens]` of the cache. Gives the queries."""
        ...

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """`activation(gate) * up`, each `[tokens, size]`."""
        ...

    def attend_decodes(
        self, query: torch.Tensor, cache: Cache, tables: torch.Tensor, positions: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attends with one token of each sequence, `query` `[rows, heads, head_dim]`, whose key is in the cache.

        `tables` int32 `[rows, width]` are the sequences' blocks, `positions` int64 `[rows]` the tokens' places. Gives
        `[rows, heads * head_dim]`.
        """
        ...

    def attend_prompts(self, query: torch.Tensor, cache: Cache, prompts: Prompts, scoring: Scoring) -> torch.Tensor:
        """The same with `query` `[tokens, heads, head_dim]` of pieces of prompts."""
        ...

    def tasks_of(self, counts: list[int], group: int, vector_bytes: int) -> list[tuple[int, int]]:
        """The `Prompts.tasks` of pieces of `counts` tokens whose key-value heads have `group` query heads each, of
        `vector_bytes` bytes."""
        ...

    def add_low_rank(
        self,
        states: torch.Tensor,
        outs: Sequence[torch.Tensor],
        factors: Sequence[Factors],
        slots: torch.Tensor,
    ) -> None:
        """Adds to each of up to three `outs` `[rows, out]`, in place, the product of `states` `[rows, in]` with the
        factors of each row's slot, int64 `[rows]`, -1 for a row without adapter."""
        ...

    def add_low_rank_pieces(
        self,
        states: torch.Tensor,
        outs: Sequence[torch.Tensor],
        factors: Sequence[Factors],
        pieces: torch.Tensor,
    ) -> None:
        """The same for rows that come in pieces of one adapter: int32 `[pieces, 3]` are a first row, a number of rows
        of at most `PIECE_ROWS`, and a slot."""
        ...

    def advance(self, numbers: torch.Tensor, tables: torch.Tensor, likeliest: torch.Tensor, blocks: Blocks) -> None:
        """Makes the inputs of a decode step those of the step after it, in place, if each row goes on with its
        `likeliest` token, int64 `[rows]`.

        `numbers` int64 `[4, rows]` and `tables` int32 `[rows, width]` are those of `decode_step.py`. Rows in the block
        `scratch` are padding and stay as they are.
        """
        ...
