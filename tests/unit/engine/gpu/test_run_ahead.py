"""Decode steps that are started before they are asked for: used where they are what comes next, and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from argosy_services.engine.base import Request, Sampling
from argosy_services.engine.torch_engine.gpu.run_ahead import _REST
from argosy_services.engine.torch_engine.gpu.runner import GpuRunner
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.model_runner import ModelRunner
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work

from .plain import PlainKernels
from .tiny import BLOCK_TOKENS, LLAMA, POSITIONS, Padded, Plain, prompts, random_weights

GREEDY = Sampling(temperature=0.0)


class Watched(Padded):
    """A runner that counts the steps that it was made to wait for and those that it started ahead."""

    def __init__(self, *, ahead: bool = True) -> None:
        super().__init__(LLAMA, random_weights(LLAMA), PlainKernels(), ahead=ahead)
        self.asked = self.ahead = 0
        run, again = self.step.run, self.step.again

        def counted_run(work: list[Work]) -> object:
            self.asked += 1
            return run(work)

        def counted_again(work: list[Work]) -> object:
            self.ahead += 1
            return again(work)

        self.step.run, self.step.again = counted_run, counted_again  # type: ignore[method-assign,assignment]

    def counts(self) -> tuple[int, int]:
        return self.asked, self.ahead


def sequences(*lengths: int, sampling: Sampling = GREEDY, max_tokens: int = 100) -> list[Sequence]:
    """Sequences with room for all that follows, each in blocks of its own."""
    made = []
    for index, tokens in enumerate(prompts(*lengths)):
        sequence = Sequence.of(Request(str(index), tokens, max_tokens, sampling))
        sequence.table.extend(range(8 * index, 8 * index + 8))
        made.append(sequence)
    return made


def prefill(padded: Padded, made: list[Sequence]) -> None:
    padded.runner.run([Work(sequence, 0, len(sequence.tokens) - 1) for sequence in made if len(sequence.tokens) > 1])


def work_of(made: list[Sequence]) -> list[Work]:
    return [Work(sequence, len(sequence.tokens) - 1, 1) for sequence in made]


def step(padded: Padded, made: list[Sequence]) -> torch.Tensor:
    """Computes and takes the next token of each; gives what was drawn."""
    logits, spans = padded.runner.run(work_of(made))
    drawn = padded.runner.greedy(logits)
    for span, token in zip(spans, drawn.tolist(), strict=True):
        span.work.sequence.tokens.append(token)
    return drawn


def expected(made: list[Sequence], tokens: int) -> list[list[int]]:
    """What torch's operators answer, one sequence at a time."""
    plain = Plain(LLAMA, random_weights(LLAMA)).runner
    answers = []
    for sequence in made:
        alone = replace(sequence, tokens=list(sequence.request.prompt))
        start = 0
        while alone.generated < tokens:
            logits, _ = plain.run([Work(alone, start, len(alone.tokens) - start)])
            start = len(alone.tokens)
            alone.tokens.append(int(logits.argmax()))
        answers.append(alone.tokens)
    return answers


def test_a_running_batch_waits_for_its_first_step_only() -> None:
    padded, made = Watched(), sequences(5, 20, 1)
    prefill(padded, made)
    for _ in range(40):
        step(padded, made)
    assert [sequence.tokens for sequence in made] == expected(made, 40)
    assert padded.counts() == (1, 40)


def test_nothing_runs_ahead_where_that_is_off() -> None:
    padded, made = Watched(ahead=False), sequences(5, 20)
    prefill(padded, made)
    for _ in range(5):
        step(padded, made)
    assert padded.counts() == (5, 0)


def test_a_sequence_that_ends_takes_nothing_from_the_others() -> None:
    padded, made = Watched(), sequences(5, 20, 1, 9)
    prefill(padded, made)
    wanted = expected(made, 12)
    for _ in range(6):
        step(padded, made)
    rest = [made[0], made[2], made[3]]
    for _ in range(6):
        step(padded, rest)
    assert [sequence.tokens for sequence in rest] == [wanted[0], wanted[2], wanted[3]]
    # The step that was under way serves the rest; the one after it has to be asked for, once.
    assert padded.counts() == (2, 6 + 5)


def test_prompts_beside_a_batch_use_what_was_started() -> None:
    padded, made = Watched(), sequences(5, 20, 30)
    wanted = expected(made, 8)
    running, late = made[:2], made[2]
    prefill(padded, running)
    for _ in range(3):
        step(padded, running)
    logits, spans = padded.runner.run([*work_of(running), Work(late, 0, 30)])
    for span, token in zip(spans, logits.argmax(dim=-1).tolist(), strict=True):
        span.work.sequence.tokens.append(token)
    assert padded.counts() == (1, 3), "the prompt is computed beside it, and nothing is started for three rows"
    for _ in range(4):
        step(padded, made)
    assert [sequence.tokens for sequence in made] == [
        answer[: len(one.tokens)] for answer, one in zip(wanted, made, strict=True)
    ]
    assert padded.counts() == (2, 3 + 4)


def take_another_token(made: list[Sequence]) -> None:
    made[0].tokens[-1] = (made[0].tokens[-1] + 1) % LLAMA.vocab_size


def move_a_block(made: list[Sequence]) -> None:
    # Its keys and values move along: as after a preemption, only those of the last token are missing.
    made[0].table[(len(made[0].tokens) - 1) // BLOCK_TOKENS] = 31


def go_back(made: list[Sequence]) -> None:
    made[0].tokens.pop()


@pytest.mark.parametrize("change", [take_another_token, move_a_block, go_back])
def test_what_was_started_for_something_else_is_not_used(change: Callable[[list[Sequence]], None]) -> None:
    padded, plain, made = Watched(), Plain(LLAMA, random_weights(LLAMA)).runner, sequences(15, 20)
    prefill(padded, made)
    for _ in range(2):
        step(padded, made)
    asked = padded.asked
    change(made)
    # What lies in the moved block differs, so that both compute it anew.
    works = [Work(sequence, 0, len(sequence.tokens) - 1) for sequence in made]
    if change is move_a_block:
        moved = padded.pool
        for tensors in (moved.keys, moved.values):
            for tensor in tensors:
                tensor[:, 31 * BLOCK_TOKENS : 32 * BLOCK_TOKENS] = tensor[:, BLOCK_TOKENS : 2 * BLOCK_TOKENS]
    plain.run(works)
    torch.testing.assert_close(padded.runner.run(work_of(made))[0], plain.run(work_of(made))[0], atol=1e-4, rtol=1e-4)
    assert padded.asked == asked + 1
    before = padded.counts()
    for _ in range(_REST - 1):
        padded.runner.run(work_of(made))
    assert padded.counts() == (before[0] + _REST - 1, before[1]), "after a miss nothing is started for a while"
    padded.runner.run(work_of(made))
    assert padded.ahead == before[1] + 1


def test_a_step_without_decoding_forgets_what_was_started() -> None:
    padded, made = Watched(), sequences(5, 20)
    running, late = made[:1], made[1:]
    prefill(padded, running)
    step(padded, running)
    prefill(padded, late)
    step(padded, running)
    assert padded.counts() == (2, 2)
    assert running[0].tokens == expected(running, 2)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        replace(GREEDY, logprobs=2),
        replace(GREEDY, repetition_penalty=1.2),
        replace(GREEDY, logit_bias={3: 1.0}),
    ],
)
def test_logits_that_somebody_reads_stay(sampling: Sampling) -> None:
    padded, made = Watched(), [*sequences(5, 20), *sequences(1, 1, 9, sampling=sampling)[2:]]
    prefill(padded, made)
    logits, _ = padded.runner.run(work_of(made))
    plain = Plain(LLAMA, random_weights(LLAMA)).runner
    plain.run([Work(sequence, 0, len(sequence.tokens) - 1) for sequence in made])
    torch.testing.assert_close(logits, plain.run(work_of(made))[0], atol=1e-4, rtol=1e-4)
    assert padded.counts() == (1, 0)


def test_nothing_is_started_beyond_a_sequence_s_room() -> None:
    padded, made = Watched(), sequences(20)
    made[0].table[:] = made[0].table[:2]
    prefill(padded, made)
    for _ in range(12):
        step(padded, made)
    assert padded.counts() == (1, 12), "32 tokens have room, the last of which is started"
    step(padded, made)
    assert padded.ahead == 12


def test_nothing_is_started_beyond_the_context() -> None:
    padded, [sequence] = Watched(), sequences(1, max_tokens=1000)
    sequence.table[:] = range(POSITIONS // BLOCK_TOKENS)
    sequence.tokens[:] = [1] * (POSITIONS - 1)
    step(padded, [sequence])
    assert padded.counts() == (1, 1)
    step(padded, [sequence])
    assert padded.counts() == (1, 1)


def test_nothing_is_started_for_answers_that_are_complete() -> None:
    padded, made = Watched(), sequences(5, 20, max_tokens=3)
    prefill(padded, made)
    for _ in range(3):
        step(padded, made)
    assert padded.counts() == (1, 2)


def eventful(runner: GpuRunner | ModelRunner, seed: int) -> tuple[list[list[int]], int]:
    """What sequences have been answered that come, are cancelled and are put back as `seed` has it, and how often they
    were put back. Those that sample take the second likeliest token."""
    source = random.Random(seed)
    scheduler = Scheduler(BlockAllocator(12, BLOCK_TOKENS), max_batch=6, max_step_tokens=24, spare_tokens=1)
    coming = [
        Sequence.of(
            Request(
                str(index),
                source.choices(range(LLAMA.vocab_size), k=source.randint(1, 40)),
                source.randint(1, 50),
                source.choice((GREEDY, GREEDY, GREEDY, Sampling(temperature=1.0))),
            )
        )
        for index in range(14)
    ]
    made = list(coming)
    while coming or scheduler.running or scheduler.waiting:
        if (coming and source.random() < 0.15) or not (scheduler.running or scheduler.waiting):
            scheduler.add(coming.pop())
        work = scheduler.schedule()
        logits, spans = runner.run(work)
        likeliest = runner.greedy(logits).tolist()
        scheduler.advance(work)
        for span in spans:
            sequence = span.work.sequence
            greedy = sequence.request.sampling.temperature <= 0
            token = likeliest[span.first] if greedy else int(logits[span.first].topk(2).indices[1])
            sequence.tokens.append(token)
            # Whatever the order of a runner's rows.
            cancelled = random.Random(f"{seed} {sequence.request.id} {sequence.generated}").random() < 0.01
            if cancelled or sequence.generated == sequence.request.max_tokens:
                scheduler.remove(sequence)
    scheduler.check_integrity()
    return [sequence.tokens for sequence in made], scheduler.preemptions


def test_answers_are_those_of_the_plain_runner_whatever_happens() -> None:
    started = put_back = 0
    for seed in range(8):
        padded = Watched()
        answers, preemptions = eventful(padded.runner, seed)
        assert (answers, preemptions) == eventful(Plain(LLAMA, random_weights(LLAMA)).runner, seed)
        started, put_back = started + padded.ahead, put_back + preemptions
    assert started > 100
    assert put_back > 5
