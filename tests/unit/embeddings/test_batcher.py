"""How texts are cut and mixed into batches. The encoder here computes a sum, slowly where a test needs time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from argosy_services.embeddings.batcher import Batcher, cut
from argosy_services.embeddings.types import EmbeddingModelInfo, Pooling
from argosy_services.errors import ArgosyError, Reason


class Adder:
    """An encoder whose vector is (sum of ids, number of ids). It waits for a permit before each batch."""

    def __init__(self, name: str = "adder", permits: int = 1_000_000) -> None:
        self.info = EmbeddingModelInfo(name, "Adder", 2, 100, Pooling.MEAN, False, "", "float32", 0)
        self.batches: list[list[list[int]]] = []
        self.cores: list[int] = []
        self.permits = threading.Semaphore(permits)
        self.entered = threading.Semaphore(0)

    def embed(self, batch: Sequence[Sequence[int]], cores: int = 1) -> NDArray[np.float32]:
        self.cores.append(cores)
        self.batches.append([list(ids) for ids in batch])
        self.entered.release()
        if not self.permits.acquire(timeout=10):
            raise TimeoutError("no permit came")
        if any(token_id < 0 for ids in batch for token_id in ids):
            raise ZeroDivisionError("a poisonous id")
        return np.array([(sum(ids), len(ids)) for ids in batch], np.float32)

    async def has_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


@contextmanager
def running(budget: int = 100, most: int = 1000, threads: int = 1) -> Iterator[Batcher]:
    batcher = Batcher(max_batch_tokens=budget, max_waiting_texts=most, threads=threads)
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.close()


async def embed(batcher: Batcher, encoder: Adder, ids: list[list[int]]) -> list[list[float]]:
    with batcher.admit(len(ids)) as job:
        return (await job.run(encoder, ids)).tolist()


def texts(*lengths: int, value: int = 1) -> list[list[int]]:
    return [[value] * length for length in lengths]


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=200), budget=st.integers(16, 2000))
def test_slices_hold_every_text_within_the_budget(lengths: list[int], budget: int) -> None:
    slices = cut(lengths, budget)
    assert sorted(place for piece in slices for place in piece.places) == list(range(len(lengths)))
    for piece in slices:
        assert piece.tokens == sum(lengths[place] for place in piece.places)
        assert piece.tokens <= budget or len(piece.places) == 1
    for left, right in itertools.pairwise(slices):
        assert max(lengths[place] for place in left.places) <= min(lengths[place] for place in right.places)
        assert left.tokens + lengths[right.places[0]] > budget


def test_texts_of_one_length_are_neighbours() -> None:
    assert [piece.places for piece in cut([5, 250, 6, 249, 5], 1000)] == [[0, 4, 2, 3, 1]]
    assert [piece.places for piece in cut([5, 250, 6, 249, 5], 300)] == [[0, 4, 2, 3], [1]]


def test_the_last_slices_let_the_cores_end_together() -> None:
    tokens = [piece.tokens for piece in cut([64] * 100, 1024, cores=2)]
    assert tokens == [1024] * 5 + [640, 320, 256, 64]


async def test_vectors_come_back_in_the_order_of_the_call() -> None:
    lengths = [30, 2, 77, 2, 51, 1, 100, 3] * 5
    with running() as batcher:
        vectors = await embed(batcher, Adder(), texts(*lengths, value=2))
    assert vectors == [[2.0 * length, float(length)] for length in lengths]


async def test_a_text_longer_than_the_budget_is_computed_alone() -> None:
    adder = Adder()
    with running(budget=16) as batcher:
        assert await embed(batcher, adder, texts(40, 3)) == [[40.0, 40.0], [3.0, 3.0]]
    assert sorted(map(len, adder.batches)) == [1, 1]


async def test_waiting_calls_share_a_batch() -> None:
    adder = Adder(permits=0)
    with running() as batcher:
        first = asyncio.create_task(embed(batcher, adder, texts(10)))
        await adder.has_entered()
        others = [asyncio.create_task(embed(batcher, adder, texts(8, value=value))) for value in range(5)]
        await asyncio.sleep(0)
        adder.permits.release(2)
        await first
        assert await asyncio.gather(*others) == [[[8.0 * value, 8.0]] for value in range(5)]
    assert [len(batch) for batch in adder.batches] == [1, 5]


async def test_a_call_of_many_texts_starves_nobody() -> None:
    adder = Adder(permits=0)
    with running(most=20_000) as batcher:
        many = asyncio.create_task(embed(batcher, adder, texts(*[10] * 10_000)))
        await adder.has_entered()
        one = asyncio.create_task(embed(batcher, adder, texts(90)))
        await asyncio.sleep(0)
        adder.permits.release(3)
        await asyncio.wait_for(one, 10)
        assert not many.done()
        assert len(adder.batches) <= 4
        adder.permits.release(2000)
        assert len(await many) == 10_000


async def test_a_call_is_spread_over_the_threads() -> None:
    adder = Adder(permits=0)
    with running(budget=10_000, threads=4) as batcher:
        call = asyncio.create_task(embed(batcher, adder, texts(*[100] * 20)))
        for _ in range(4):
            await adder.has_entered()
        adder.permits.release(8)
        assert await call == [[100.0, 100.0]] * 20
    assert sorted(map(len, adder.batches)) == [1, 2, 2, 2, 2, 3, 3, 5]


async def test_a_batch_takes_the_cores_that_nobody_else_wants() -> None:
    adder = Adder(permits=0)
    with running(budget=2000, threads=3) as batcher:
        calls = [asyncio.create_task(embed(batcher, adder, texts(1024)))]
        await adder.has_entered()
        calls += [asyncio.create_task(embed(batcher, adder, texts(1024))) for _ in range(2)]
        for _ in range(2):
            await adder.has_entered()
        adder.permits.release(3)
        await asyncio.gather(*calls)
        adder.permits.release()
        await embed(batcher, adder, texts(300))
    assert adder.cores[0] == 3
    assert adder.cores[3] == 1


async def test_a_call_ends_once_where_two_of_its_batches_fail() -> None:
    adder = Adder(permits=0)
    with running(threads=2) as batcher:
        call = asyncio.create_task(embed(batcher, adder, texts(90, 90, value=-1)))
        for _ in range(2):
            await adder.has_entered()
        adder.permits.release(2)
        with pytest.raises(ZeroDivisionError, match="poisonous"):
            await call
        adder.permits.release()
        assert await embed(batcher, adder, texts(4)) == [[4.0, 4.0]]


async def test_calls_of_many_texts_take_turns() -> None:
    adder = Adder(permits=0)
    with running() as batcher:
        calls = [asyncio.create_task(embed(batcher, adder, texts(*[90] * 3, value=value))) for value in (1, 2)]
        await adder.has_entered()
        adder.permits.release(6)
        await asyncio.gather(*calls)
    assert [batch[0][0] for batch in adder.batches] == [1, 2, 1, 2, 1, 2]


async def test_models_do_not_share_a_batch() -> None:
    adders = [Adder("a", permits=0), Adder("b", permits=0)]
    with running() as batcher:
        calls = [asyncio.create_task(embed(batcher, adder, texts(5, 6))) for adder in adders]
        for adder in adders:
            adder.permits.release(5)
        assert await asyncio.gather(*calls) == [[[5.0, 5.0], [6.0, 6.0]]] * 2
    assert [len(adder.batches) for adder in adders] == [1, 1]


async def test_the_work_of_a_caller_that_left_is_dropped() -> None:
    adder = Adder(permits=0)
    with running(most=30) as batcher:
        gone = asyncio.create_task(embed(batcher, adder, texts(*[90] * 30)))
        await adder.has_entered()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        adder.permits.release(10)
        # Its 29 waiting texts no longer count, and none of them is computed.
        assert len(await embed(batcher, adder, texts(*[80] * 5, value=2))) == 5
    assert [batch[0][0] for batch in adder.batches] == [1, 2, 2, 2, 2, 2]


async def test_more_waiting_texts_than_allowed_are_refused() -> None:
    adder = Adder(permits=0)
    with running(most=10) as batcher:
        running_one = asyncio.create_task(embed(batcher, adder, texts(90)))
        await adder.has_entered()
        waiting = asyncio.create_task(embed(batcher, adder, texts(*[90] * 8)))
        await asyncio.sleep(0)
        with pytest.raises(ArgosyError) as caught:
            await embed(batcher, adder, texts(1, 1, 1))
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.metadata == {"limit": "10", "value": "11"}
        assert 0.1 <= (caught.value.retry_after_s or 0) <= 30
        fits = asyncio.create_task(embed(batcher, adder, texts(1, 1)))
        adder.permits.release(50)
        await asyncio.gather(running_one, waiting, fits)
        assert len(await embed(batcher, adder, texts(*[1] * 50))) == 50


async def test_a_fault_reaches_the_callers_of_its_batch_only() -> None:
    adder = Adder()
    with running() as batcher:
        with pytest.raises(ZeroDivisionError, match="poisonous"):
            await embed(batcher, adder, [[-1]])
        assert await embed(batcher, adder, texts(4)) == [[4.0, 4.0]]


async def test_closing_ends_what_waits() -> None:
    adder = Adder(permits=0)
    with running() as batcher:
        last = asyncio.create_task(embed(batcher, adder, texts(90)))
        await adder.has_entered()
        waits = asyncio.create_task(embed(batcher, adder, texts(90)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        while not batcher._closed:
            await asyncio.sleep(0.001)
        adder.permits.release()
        await closing
        assert await last == [[90.0, 90.0]]
        with pytest.raises(ArgosyError) as caught:
            await waits
        assert caught.value.reason is Reason.DRAINING
        with pytest.raises(ArgosyError) as caught:
            await embed(batcher, adder, texts(1))
        assert caught.value.reason is Reason.DRAINING
