"""The tokens that grammars rule out in a step, computed beside the model's work on the same step."""

from __future__ import annotations

from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par, fill_next_token_bitmask_par_with_draft_tokens

from argosy_services.engine.torch_engine.grammar import Matcher
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Forbidden, Row
from argosy_services.engine.torch_engine.step import Work

_WORD = 32


class StepMasks:
    """What grammars rule out in one step; waits for the thread that computes it once it is asked."""

    def __init__(self, tokens: Future[torch.Tensor], first: dict[Sequence, int]) -> None:
        self._tokens = tokens
        self._first = first

    def of(self, rows: Items[Row], device: torch.device) -> Forbidden | None:
        """What is ruled out in these rows of the step."""
        places = {
            index: first + len(row.ahead)
            for index, row in enumerate(rows)
            if (first := self._first.get(row.sequence)) is not None
        }
        if not places:
            return None
        tokens = self._tokens.result()
        if list(places.values()) != list(range(len(tokens))):
            tokens = tokens[list(places.values())]
        return Forbidden(list(places), tokens.to(device))


class MaskMaker:
    """Computes all masks of a step in one native call, on a thread of its own. Used by one engine's thread.

    The masks of a step depend on tokens that are known before it, so that the model need not wait for them nor they for
    the model. Meanwhile the matchers belong to this thread.
    """

    def __init__(self, vocab_size: int, threads: int) -> None:
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // _WORD)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._native = LLExecutor(num_threads=threads)

    def start(self, work: Items[Work]) -> StepMasks | None:
        """Begins with the masks of the items after which a token is drawn; those of drafted tokens included."""
        wanted: list[tuple[LLMatcher, int, list[int]]] = []
        first: dict[Sequence, int] = {}
        rows = 0
        for item in work:
            matcher = item.sequence.matcher
            if isinstance(matcher, Matcher) and item.completes:
                wanted.append((matcher.native, rows, list(item.draft)))
                first[item.sequence] = rows
                rows += 1 + len(item.draft)
        return StepMasks(self._thread.submit(self._compute, wanted, rows), first) if wanted else None

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False)

    def _compute(self, wanted: list[tuple[LLMatcher, int, list[int]]], rows: int) -> torch.Tensor:
        """Bool `[rows, vocab]`. A row after a drafted token that a grammar refuses is not used."""
        allowed = np.full((rows, self._words), -1, dtype=np.int32)
        plain = [(matcher, row) for matcher, row, draft in wanted if not draft]
        if plain:
            fill_next_token_bitmask_par(self._native, plain, allowed)
        if len(plain) < len(wanted):
            drafting = [item for item in wanted if item[2]]
            fill_next_token_bitmask_par_with_draft_tokens(self._native, drafting, allowed)
        forbidden = np.unpackbits((~allowed).view(np.uint8), axis=1, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(forbidden.view(np.bool_))
