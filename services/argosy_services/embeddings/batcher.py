"""Puts the texts of many calls into batches and computes these, one on each core.

A batch costs its tokens, without padding, so texts of all lengths go together, whoever sent them. A call of many texts
is cut into slices, and calls take turns slice by slice: a short call waits for a batch or two, however many texts
others sent before it.

A batch keeps to one core where others can use the rest: cores that compute by themselves never wait for each other,
which those of one batch do after every operation, for long where something else has taken one of them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from argosy_services import metrics
from argosy_services.embeddings.types import EmbeddingModelInfo
from argosy_services.errors import ArgosyError, Reason

# Fewer tokens are not worth a core of their own.
_LEAST_TOKENS = 256
_LEAST_RETRY_S = 0.1
_MOST_RETRY_S = 30.0


class BatchEncoder(Protocol):
    """What computes a batch."""

    @property
    def info(self) -> EmbeddingModelInfo: ...

    def embed(self, batch: Sequence[Sequence[int]], cores: int = 1) -> NDArray[np.float32]:
        """Token ids of some texts to float32 [texts, dimensions], on `cores` cores. Blocks; for several threads."""
        ...


@dataclass(slots=True)
class Slice:
    """Texts that are computed together: their places in their call, and how many tokens they have."""

    places: list[int] = field(default_factory=list)
    tokens: int = 0

    def takes(self, other: Slice, budget: int) -> bool:
        """Whether `other` may join: within the budget, or where there is nothing yet."""
        return not self.places or self.tokens + other.tokens <= budget

    def add(self, other: Slice) -> None:
        """Lets `other` join."""
        self.places += other.places
        self.tokens += other.tokens


def cut(lengths: Sequence[int], budget: int, cores: int = 1) -> list[Slice]:
    """Slices of at most `budget` tokens out of texts of the given lengths, shortest first.

    So texts of one length, which an encoder can attend to in one product, are neighbours. A text longer than the
    budget is a slice of its own. None is more than a core's share of what is left, so that the cores end together
    (guided self-scheduling, Polychronopoulos and Kuck, 1987).
    """
    slices = [Slice()]
    left = sum(lengths)
    room = _room(left, budget, cores)
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        one = Slice([place], lengths[place])
        if not slices[-1].takes(one, room):
            slices.append(Slice())
            room = _room(left, budget, cores)
        slices[-1].add(one)
        left -= one.tokens
    return slices


def _room(left: int, budget: int, cores: int) -> int:
    return min(budget, max(_LEAST_TOKENS, -(-left // cores)))


class Job:
    """The texts of one call, from admission until their vectors are there."""

    def __init__(self, batcher: Batcher, texts: int) -> None:
        self._batcher = batcher
        self.waiting = texts
        self.slices: deque[Slice] = deque()
        self.ids: Sequence[Sequence[int]] = ()
        self.encoder: BatchEncoder
        self.vectors: NDArray[np.float32]
        self.done: Future[None] = Future()
        self.missing = texts
        self.queued = self.started = self.finished = 0.0

    async def run(self, encoder: BatchEncoder, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Computes the vectors of `ids`, which has a list for each admitted text: float32 [texts, dimensions].

        Raises DRAINING where the batcher is closed first.
        """
        self.ids, self.encoder = ids, encoder
        self.vectors = np.empty((len(ids), encoder.info.dimensions), np.float32)
        self._batcher.queue(self)
        await asyncio.wrap_future(self.done)
        return self.vectors

    @property
    def queue_s(self) -> float:
        """Seconds until the first batch."""
        return self.started - self.queued

    @property
    def compute_s(self) -> float:
        """Seconds from the first batch to the end of the last."""
        return self.finished - self.started

    def end(self, error: Exception | None = None) -> None:
        """Wakes the caller, unless it has left."""
        self.finished = time.monotonic()
        if not self.done.done() and self.done.set_running_or_notify_cancel():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


@dataclass(slots=True)
class Batch:
    """Slices of several calls that are computed together, and what they are as a whole."""

    encoder: BatchEncoder
    parts: list[tuple[Job, Slice]] = field(default_factory=list)
    whole: Slice = field(default_factory=Slice)
    cores: int = 1


class Batcher:
    """A queue of calls and the threads that compute them. Calls come in from event loops."""

    def __init__(self, *, max_batch_tokens: int, max_waiting_texts: int, threads: int = 0) -> None:
        """`threads` is their number; 0 makes one for each core."""
        self.limit(max_batch_tokens=max_batch_tokens, max_waiting_texts=max_waiting_texts)
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._waiting = 0
        self._seconds_per_text = 0.01
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"embeddings-{number}", daemon=True)
            for number in range(threads or os.cpu_count() or 1)
        ]
        self._idle = len(self._threads)

    def limit(self, *, max_batch_tokens: int, max_waiting_texts: int) -> None:
        """Changes the limits, for what comes from now on."""
        self._budget = max_batch_tokens
        self._max_waiting = max_waiting_texts

    @property
    def waiting_texts(self) -> int:
        """Texts that have been admitted and not yet computed."""
        return self._waiting

    def start(self) -> None:
        """Starts the threads."""
        metrics.EMBEDDING_WAITING.read(lambda: self._waiting)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads after the batches that run. Calls that still wait end with DRAINING."""
        with self._changed:
            self._closed = True
            jobs, self._jobs = self._jobs, deque()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for job in jobs:
            job.end(_draining())

    @contextmanager
    def admit(self, texts: int) -> Iterator[Job]:
        """A place for the texts of a call, given back when the block ends: what is not yet computed is then dropped.

        Raises QUEUE_FULL where more texts would wait than allowed. A call that finds the queue empty always has place.
        """
        job = Job(self, texts)
        with self._changed:
            if self._closed:
                raise _draining()
            if self._waiting and self._waiting + texts > self._max_waiting:
                raise self._full(texts)
            self._waiting += texts
        try:
            yield job
        finally:
            with self._changed:
                self._waiting -= job.waiting
                job.waiting = 0
                if job in self._jobs:
                    self._jobs.remove(job)

    def queue(self, job: Job) -> None:
        """Takes a job whose texts are known; see `Job.run`."""
        job.slices.extend(cut([len(ids) for ids in job.ids], self._budget, len(self._threads)))
        job.queued = time.monotonic()
        with self._changed:
            if self._closed:
                raise _draining()
            self._jobs.append(job)
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next():
            start = time.monotonic()
            error = _compute(batch)
            metrics.EMBEDDING_SECONDS.labels(model=batch.encoder.info.name).observe(time.monotonic() - start)
            with self._changed:
                self._idle += 1
                for job, piece in batch.parts:
                    job.missing -= len(piece.places)
                    if error or not job.missing:
                        job.end(error)
                if error is None:
                    spent = (time.monotonic() - start) / len(batch.whole.places) / len(self._threads)
                    self._seconds_per_text += 0.1 * (spent - self._seconds_per_text)

    def _next(self) -> Batch | None:
        """The next batch, once there is one. None: the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return None if self._closed else self._take()

    def _take(self) -> Batch:
        batch = Batch(self._jobs[0].encoder)
        passed_over: list[Job] = []
        served: list[Job] = []
        for job in self._jobs:
            piece = job.slices[0]
            if job.encoder is not batch.encoder or not batch.whole.takes(piece, self._budget):
                passed_over.append(job)
                continue
            batch.parts.append((job, job.slices.popleft()))
            batch.whole.add(piece)
            job.started = job.started or time.monotonic()
            job.waiting -= len(piece.places)
            self._waiting -= len(piece.places)
            if job.slices:
                served.append(job)
        self._jobs = deque(passed_over + served)
        if not self._jobs:
            batch.cores = max(1, min(self._idle, batch.whole.tokens // _LEAST_TOKENS))
        self._idle -= 1
        _count(batch.encoder.info.name, batch.whole, self._budget)
        return batch

    def _full(self, texts: int) -> ArgosyError:
        retry_after_s = min(max(self._waiting * self._seconds_per_text, _LEAST_RETRY_S), _MOST_RETRY_S)
        return ArgosyError(
            Reason.QUEUE_FULL,
            f"{self._waiting} texts wait already and {texts} more exceed the {self._max_waiting} that may; "
            f"retry in {retry_after_s:.1f} s or send fewer",
            retry_after_s=retry_after_s,
            limit=self._max_waiting,
            value=self._waiting + texts,
        )


def _compute(batch: Batch) -> Exception | None:
    """Puts the vectors of a batch where its calls want them. Gives the error of a batch that failed."""
    ids = [job.ids[place] for job, piece in batch.parts for place in piece.places]
    try:
        vectors = batch.encoder.embed(ids, batch.cores)
    except Exception as error:
        # Whatever it is, it belongs to these calls alone: each of them reports it, others go on.
        return error
    row = 0
    for job, piece in batch.parts:
        job.vectors[piece.places] = vectors[row : row + len(piece.places)]
        row += len(piece.places)
    return None


def _count(model: str, batch: Slice, budget: int) -> None:
    metrics.EMBEDDED_TEXTS.labels(model=model).inc(len(batch.places))
    metrics.EMBEDDED_TOKENS.labels(model=model).inc(batch.tokens)
    metrics.EMBEDDING_BATCH_TOKENS.labels(model=model).observe(batch.tokens)
    metrics.EMBEDDING_BATCH_FILL.labels(model=model).observe(batch.tokens / budget)


def _draining() -> ArgosyError:
    return ArgosyError(Reason.DRAINING, "the server is shutting down; retry on another one", retry_after_s=1.0)
