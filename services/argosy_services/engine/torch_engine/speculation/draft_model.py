"""Guesses of a smaller model with the same tokenizer (speculative decoding: Leviathan et al., 2023; Chen et al., 2023).

Its keys and values lie in a pool of its own at the places that the sequence's blocks name, so that it needs no books:
what it did not compute itself, or what another sequence's blocks brought along, only makes guesses worse. It chooses
tokens as the request asks for it and with the same random numbers as the model will, which makes the two agree often.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch

from argosy_services.engine.torch_engine.runners import Runner
from argosy_services.engine.torch_engine.sampler import Sampler
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Row
from argosy_services.engine.torch_engine.step import Work


@dataclass(slots=True)
class _Known:
    """How many tokens of a sequence the draft model has computed, and into which blocks; how many were `seen` to be
    of its vocabulary, and whether one is `foreign` to it."""

    tokens: int = 0
    seen: int = 0
    foreign: bool = False
    blocks: list[int] = field(default_factory=list)


class DraftModel:
    """Guesses for several sequences at once. Lives on the engine's thread."""

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        *,
        own_vocab_size: int,
        vocab_size: int,
        context: int,
        block_tokens: int,
        step_tokens: int,
    ) -> None:
        """`vocab_size` is that of the model whose tokens are guessed, `step_tokens` what is computed in one step."""
        self.context = context
        self.seconds = 0.0
        self._runner = runner
        self._sampler = sampler
        self._own_vocab_size = own_vocab_size
        self._vocab_size = vocab_size
        self._block_tokens = block_tokens
        self._step_tokens = step_tokens
        self._room = step_tokens
        self._known: dict[Sequence, _Known] = {}

    def forget(self, sequence: Sequence) -> None:
        """Drops what is known of a sequence."""
        self._known.pop(sequence, None)

    def begin_step(self) -> None:
        """There is room for the tokens of one more step."""
        self._room = self._step_tokens

    def catch_up(self, sequence: Sequence) -> bool:
        """Whether the model can guess what follows a sequence in this step; otherwise computes what the step has room
        for."""
        known = self._known.setdefault(sequence, _Known())
        if self._is_foreign(known, sequence):
            return False
        kept = next(
            (at for at, pair in enumerate(zip(known.blocks, sequence.table, strict=False)) if pair[0] != pair[1]),
            min(len(known.blocks), len(sequence.table)),
        )
        # The last token is computed in any case: its logits are the first guess.
        known.tokens = min(known.tokens, kept * self._block_tokens, len(sequence.tokens) - 1)
        known.blocks = list(sequence.table)
        missing = len(sequence.tokens) - known.tokens
        if missing <= self._room:
            self._room -= missing
            return True
        if self._room:
            self._runner.run([Work(sequence, known.tokens, self._room)])
            known.tokens += self._room
            self._room = 0
        return False

    def guess(self, sequences: Items[Sequence], lengths: Items[int]) -> list[tuple[int, ...]]:
        """As many tokens as asked for, after each of some sequences that were caught up with."""
        started = time.perf_counter()
        guesses: dict[Sequence, tuple[int, ...]] = dict.fromkeys(sequences, ())
        for made in range(max(lengths)):
            work = [
                self._next(sequence, guesses[sequence])
                for sequence, length in zip(sequences, lengths, strict=True)
                if made < length
            ]
            logits, spans = self._runner.run(work)
            rows = [Row(span.work.sequence, span.work.draft) for span in spans]
            for row, token in zip(rows, self._sampler.tokens(self._fit(logits), rows), strict=True):
                guesses[row.sequence] += (max(token, 0),)
        for sequence in sequences:
            self._known[sequence].tokens = len(sequence.tokens)
        each = (time.perf_counter() - started) / sum(lengths)
        self.seconds = 0.9 * self.seconds + 0.1 * each if self.seconds else each
        return [guesses[sequence] for sequence in sequences]

    def _is_foreign(self, known: _Known, sequence: Sequence) -> bool:
        """Whether a sequence has a token that only the other model knows."""
        new = sequence.tokens[known.seen :]
        known.foreign = known.foreign or max(new, default=0) >= self._own_vocab_size
        known.seen = len(sequence.tokens)
        return known.foreign

    def _next(self, sequence: Sequence, guess: tuple[int, ...]) -> Work:
        if guess:
            return Work(sequence, len(sequence.tokens) + len(guess) - 1, 1, guess)
        start = self._known[sequence].tokens
        return Work(sequence, start, len(sequence.tokens) - start)

    def _fit(self, logits: torch.Tensor) -> torch.Tensor:
        """As many columns as the other model has: with one tokenizer, what is missing or too much is padding."""
        missing = self._vocab_size - logits.shape[-1]
        if missing <= 0:
            return logits[:, : self._vocab_size].contiguous() if missing else logits
        return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
