"""Which tokens the next step computes. Plain Python, so that its decisions can be tested without a model.

Continuous batching (Yu et al., Orca, 2022) with chunked prefill (Agrawal et al., Sarathi, 2023): each step first gives
every decoding sequence its one token, then fills the rest of its token budget with prompts, those admitted before new
ones. Known beginnings of prompts are shared and not computed again. When blocks run out the youngest sequence is put
back to the queue and computed again later.
"""

from __future__ import annotations

import time
from collections import deque

from argosy_services.engine.torch_engine.kv_cache import BlockAllocator, extend_digests
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work


class Scheduler:
    """Owns the queue, the batch and the blocks."""

    def __init__(self, blocks: BlockAllocator, *, max_batch: int, max_step_tokens: int) -> None:
        self.blocks = blocks
        self.max_batch = max_batch
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens that sequences in the queue must have computed."""
        return sum(sequence.pending for sequence in self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence at the end of the queue."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.blocks.release(sequence.table)

    def schedule(self) -> list[Work]:
        """The next step's work; empty only when there is nothing to do."""
        work: list[Work] = []
        budget = self.max_step_tokens
        preemptions = self.preemptions
        # Decoding sequences first: nobody's next token waits for somebody else's prompt.
        for sequence in sorted(self.running, key=lambda running: running.pending > 1):
            if budget == 0 or sequence not in self.running:
                continue
            budget -= self._extend(sequence, budget, work)
        if self.preemptions > preemptions:
            # What was just put back must not return in the same step, and its work is void.
            return [item for item in work if item.sequence.table]
        self._admit(budget, work)
        return work

    def _extend(self, sequence: Sequence, budget: int, work: list[Work]) -> int:
        count = min(sequence.pending, budget)
        while not self.blocks.grow(sequence.table, sequence.computed + count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return 0
        work.append(Work(sequence, sequence.computed, count))
        return count

    def _admit(self, budget: int, work: list[Work]) -> None:
        while self.waiting and budget and len(self.running) < self.max_batch:
            sequence = self.waiting[0]
            known = self._known_prefix(sequence)
            in_use = len(known) - self.blocks.unused(known)
            # One token more than the prompt, so that an admitted sequence is not put back at once.
            if self.blocks.needed(sequence.pending + 1) - in_use > self.blocks.free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            self.blocks.share(sequence.table, known)
            sequence.computed = len(known) * self.blocks.block_tokens
            if not sequence.admitted:
                sequence.admitted, sequence.cached = time.monotonic(), sequence.computed
            budget -= self._extend(sequence, budget, work)

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a sequence already; the logits that it waits for are still computed."""
        size = self.blocks.block_tokens
        extend_digests(sequence.digests, sequence.tokens, size, sequence.request.adapter or "")
        first_wanted = (
            len(sequence.tokens) - 1 if sequence.request.score_from is None else sequence.request.score_from - 1
        )
        return self.blocks.find(sequence.digests[: first_wanted // size])

    def advance(self, work: list[Work]) -> None:
        """Takes note that a step's work was computed, drafts aside, and makes its full blocks known."""
        size = self.blocks.block_tokens
        for item in work:
            sequence = item.sequence
            sequence.computed += item.count - len(item.draft)
            extend_digests(sequence.digests, sequence.tokens, size, sequence.request.adapter or "")
            for index in range(item.start // size, sequence.computed // size):
                self.blocks.remember(sequence.table[index], sequence.digests[index])

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.table)
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def check_integrity(self) -> None:
        """Raises RuntimeError where blocks leaked or a sequence holds the wrong number of them."""
        self.blocks.check_integrity([sequence.table for sequence in self.running])
        for sequence in self.running:
            if len(sequence.table) < self.blocks.needed(sequence.computed):
                raise RuntimeError(f"sequence {sequence.request.id} has too few blocks")
        if any(sequence.table for sequence in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks")
