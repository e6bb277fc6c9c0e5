"""Which tokens the next step computes. Plain Python, so that its decisions can be tested without a model.

Continuous batching (Yu et al., Orca, 2022) with chunked prefill (Agrawal et al., Sarathi, 2023): each step first gives
every decoding sequence its one token, then fills the rest of its token budget with prompts, those admitted before new
ones of the same priority. Known beginnings of prompts are shared and not computed again. When blocks run out, or
sequences of higher priority wait, some are put back to the queue and computed again later: those of the lowest
priority, of them those of the tenant that was served most, of them the youngest. While a prompt is computed, sequences
of lower priority pause, so that its first token comes as if they were not there.

A prompt that is shorter than the batch is computed before the batch's next tokens, in a step of its own, where steps of
few rows are seen to be cheap: its first token then does not wait for the others' next ones, which wait for less than
another step. Where a step takes as long with few rows as with many, as on a GPU, they stay together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from argosy_services.engine.base import LOWEST_PRIORITY
from argosy_services.engine.torch_engine.fair_queue import FairQueue
from argosy_services.engine.torch_engine.heap import Heap
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator, extend_digests
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work
from argosy_services.engine.torch_engine.step_seconds import StepSeconds

# On a tenant's account a generated token weighs more than one of a prompt, of which a step computes many at once.
DECODE_WEIGHT = 2
# So many steps in a row may pass lower priorities by.
PAUSES = 4
# What has a priority below 0 is the background. For so many seconds after a prompt that is not, it gets this part of a
# step's tokens and places: whoever comes next waits for a short step.
BACKGROUND = 8
ALERT_S = 1.0
# A prompt has a step of its own only where no more than this part of the batch's step is there without any rows.
MOST_FIXED = 1 / 4


class Scheduler:
    """Owns the queue, the batch and the blocks.

    With `spare_tokens` each sequence gets the room for so many tokens more than the step computes, where there is some.
    """

    def __init__(self, blocks: BlockAllocator, *, max_batch: int, max_step_tokens: int, spare_tokens: int = 0) -> None:
        self.blocks = blocks
        self.max_batch = max_batch
        self.max_step_tokens = max_step_tokens
        self.spare_tokens = spare_tokens
        self.waiting = FairQueue()
        self.running: dict[Sequence, None] = {}  # In the order in which they came in.
        self.admitted: list[Sequence] = []  # For the first time, by the last step that was scheduled.
        self.preemptions = 0
        self.seconds = StepSeconds()
        self.lost_tokens = 0  # Computed, and to be computed again because of a preemption.
        self._deadlines: Heap[Sequence] = Heap()
        self._put_back: set[Sequence] = set()  # In the step that is being scheduled.
        self._pauses = 0
        self._turn = 0
        self._urgent_at = -ALERT_S
        self._was_ahead = False  # The last step, of the others'.

    @property
    def waiting_tokens(self) -> int:
        """Tokens that sequences in the queue must have computed."""
        return self.waiting.tokens

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence into the queue."""
        self.waiting.add(sequence)
        if sequence.deadline is not None:
            self._deadlines.push(sequence, sequence.deadline)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks."""
        if sequence in self.running:
            del self.running[sequence]
        else:
            self.waiting.remove(sequence)
        self._deadlines.discard(sequence)
        self.blocks.release(sequence.table)

    def expired(self, now: float) -> list[Sequence]:
        """Sequences that nobody waits for any more, running or not. They are to be removed."""
        late: list[Sequence] = []
        while (sequence := self._deadlines.first()) is not None and self._deadlines.key(sequence) <= now:
            self._deadlines.discard(sequence)
            late.append(sequence)
        return late

    def schedule(self) -> list[Work]:
        """The next step's work; empty only when there is nothing to do."""
        work: list[Work] = []
        self.admitted.clear()
        self._put_back.clear()
        urgent = self._most_urgent_prompt()
        floor = self._floor(urgent)
        active = [running for running in self.running if running.request.priority >= floor]
        short = self._short_steps(urgent)
        # Decoding sequences first: nobody's next token waits for the prompt of an equal.
        decoding = [running for running in active if running.pending <= 1]
        prompts = [running for running in active if running.pending > 1]
        self._was_ahead = not self._was_ahead and not prompts and self._admit_ahead(decoding, work)
        if self._was_ahead:
            return self._standing(work)
        budget = self._extend_all(self._some_of(decoding) if short else decoding, work)
        if short and urgent < 0:
            budget = min(budget, max(1, self.max_step_tokens // BACKGROUND))
        for sequence in sorted(prompts, key=lambda running: -running.rank):
            budget = self._admit(budget, work, above=sequence.rank)
            budget -= self._extend(sequence, budget, work)
        self._admit(budget, work, above=floor - 1)
        if not self._standing(work):
            # All that had their turn were put back: the others do not wait for theirs.
            self._extend_all(decoding, work)
        return self._standing(work)

    def _admit_ahead(self, decoding: list[Sequence], work: list[Work]) -> bool:
        """Lets in prompts that are to be computed before the next tokens of `decoding`; gives whether there are any."""
        first = self.waiting.first()
        if first is None or not decoding or first.rank < (most := max(each.request.priority for each in decoding)):
            return False
        rows = min(len(decoding), self.max_step_tokens)
        if self._unknown(first, self._known_prefix(first)) > rows or not self._small_steps_are_cheap(rows):
            return False
        self._admit(rows, work, above=most - 1, whole=True)
        return bool(self._standing(work))

    def _small_steps_are_cheap(self, rows: int) -> bool:
        """Whether a small step before one of `rows` rows costs little more than its own rows, or is to be tried."""
        share = self.seconds.fixed_share(rows)
        if share is None or share <= MOST_FIXED:
            return True
        self.seconds.doubt()
        return False

    def _standing(self, work: list[Work]) -> list[Work]:
        """Without the work of what was put back, which is void."""
        return [item for item in work if item.sequence not in self._put_back] if self._put_back else work

    def _short_steps(self, urgent: int) -> bool:
        """Whether background work is done in short steps, because somebody who matters more may come at any time."""
        now = time.monotonic()
        if urgent >= 0:
            self._urgent_at = now
        return now - self._urgent_at < ALERT_S

    def _some_of(self, decoding: list[Sequence]) -> list[Sequence]:
        """Of the background's sequences as many as a short step takes, in turns, and all others."""
        background = [running for running in decoding if running.request.priority < 0]
        count = max(1, self.max_batch // BACKGROUND)
        if len(background) <= count:
            return decoding
        self._turn = (self._turn + count) % len(background)
        chosen = set((background + background)[self._turn : self._turn + count])
        return [running for running in decoding if running.request.priority >= 0 or running in chosen]

    def _most_urgent_prompt(self) -> int:
        """The highest priority of the prompts that are to be computed."""
        prompts = [running.request.priority for running in self.running if running.pending > 1]
        if (first := self.waiting.first()) is not None:
            prompts.append(first.request.priority)
        return max(prompts, default=LOWEST_PRIORITY)

    def _floor(self, urgent: int) -> int:
        """The lowest priority that the next step works for."""
        if self._pauses < PAUSES and any(running.request.priority < urgent for running in self.running):
            self._pauses += 1
            return urgent
        self._pauses = 0
        return LOWEST_PRIORITY

    def _extend_all(self, sequences: Iterable[Sequence], work: list[Work]) -> int:
        budget = self.max_step_tokens
        for sequence in sequences:
            budget -= self._extend(sequence, budget, work)
        return budget

    def _extend(self, sequence: Sequence, budget: int, work: list[Work]) -> int:
        count = min(sequence.pending, budget)
        if count == 0 or sequence not in self.running:
            return 0
        while not self.blocks.grow(sequence.table, sequence.computed + count):
            victim = max(self.running, key=self._expendable)
            self._preempt(victim)
            if victim is sequence:
                return 0
        if self.spare_tokens:
            self.blocks.grow(sequence.table, sequence.computed + count + self.spare_tokens)
        work.append(Work(sequence, sequence.computed, count))
        return count

    def _admit(self, budget: int, work: list[Work], above: int, *, whole: bool = False) -> int:
        """Lets in those that wait as far as there is room, only higher priorities than `above`, and with `whole` only
        those that the budget has room for to the end; gives what is left of the budget.
        """
        while budget and (sequence := self.waiting.first()) is not None:
            if sequence in self._put_back or sequence.rank <= above:
                break
            known = self._known_prefix(sequence)
            if whole and self._unknown(sequence, known) > budget:
                break
            if not self._make_room(sequence, known):
                sequence.short_of = "places" if len(self.running) >= self.max_batch else "blocks"
                break
            self.waiting.take(sequence)
            self.running[sequence] = None
            self.blocks.share(sequence.table, known)
            sequence.computed = len(known) * self.blocks.block_tokens
            if sequence.admitted:
                sequence.requeued += time.monotonic() - sequence.preempted[-1]
            else:
                sequence.admitted, sequence.cached = time.monotonic(), sequence.computed
                self.admitted.append(sequence)
                self._charge(sequence, len(sequence.tokens), after=sequence.computed, weight=1)
            budget -= self._extend(sequence, budget, work)
        return budget

    def _make_room(self, sequence: Sequence, known: list[int]) -> bool:
        """Whether a sequence can come in; those of lower priority are put back for it."""
        while not self._fits(sequence, known):
            victim = max(self.running, key=self._expendable, default=None)
            if victim is None or victim.rank >= sequence.rank:
                return False
            self._preempt(victim)
        return True

    def _fits(self, sequence: Sequence, known: list[int]) -> bool:
        in_use = len(known) - self.blocks.unused(known)
        # One token more than the prompt, so that an admitted sequence is not put back at once.
        needed = min(self.blocks.needed(sequence.pending + 1), self.blocks.total)
        return len(self.running) < self.max_batch and needed - in_use <= self.blocks.free

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a sequence already; the logits that it waits for are still computed."""
        size = self.blocks.block_tokens
        extend_digests(sequence.digests, sequence.tokens, size, sequence.namespace)
        first_wanted = (
            len(sequence.tokens) - 1 if sequence.request.score_from is None else sequence.request.score_from - 1
        )
        return self.blocks.find(sequence.digests[: first_wanted // size])

    def _unknown(self, sequence: Sequence, known: list[int]) -> int:
        """Tokens of a waiting sequence that are to be computed beside its known blocks."""
        return sequence.pending - len(known) * self.blocks.block_tokens

    def advance(self, work: list[Work]) -> None:
        """Takes note that a step's work was computed, drafts aside."""
        for item in work:
            self.accept(item.sequence, item.count - len(item.draft))

    def accept(self, sequence: Sequence, count: int) -> None:
        """Takes note that a sequence's next `count` tokens are computed, and makes its full blocks known."""
        size = self.blocks.block_tokens
        known = sequence.computed // size
        sequence.computed += count
        if sequence.computed > sequence.charged:
            self._charge(sequence, sequence.computed, after=sequence.charged, weight=DECODE_WEIGHT)
        extend_digests(sequence.digests, sequence.tokens, size, sequence.namespace)
        for index in range(known, sequence.computed // size):
            self.blocks.remember(sequence.table[index], sequence.digests[index])

    def _charge(self, sequence: Sequence, tokens: int, *, after: int, weight: int) -> None:
        """Charges for the tokens from `after` on, once: what is computed again is not the tenant's doing."""
        self.waiting.charge(sequence.request.tenant, (tokens - after) * weight)
        sequence.charged = tokens

    def _expendable(self, sequence: Sequence) -> tuple[int, int, int]:
        return -sequence.rank, self.waiting.served(sequence.request.tenant), sequence.number

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self.blocks.release(sequence.table)
        self.lost_tokens += sequence.computed
        sequence.computed = 0
        self.waiting.add(sequence)
        self._put_back.add(sequence)
        sequence.preempted.append(time.monotonic())
        self.preemptions += 1

    def check_integrity(self) -> None:
        """Raises RuntimeError where blocks leaked or a sequence holds the wrong number of them."""
        self.blocks.check_integrity([sequence.table for sequence in self.running])
        for sequence in self.running:
            if len(sequence.table) < self.blocks.needed(sequence.computed):
                raise RuntimeError(f"sequence {sequence.request.id} has too few blocks")
        if any(sequence.table for sequence in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks")
        if self.waiting.tokens != sum(sequence.pending for sequence in self.waiting):
            raise RuntimeError("the tokens that wait were counted wrong")
