"""Runs of agents on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from argosy_services.agents.ending import end_unattended
from argosy_services.agents.memory import Answer
from argosy_services.agents.store import RunStore, RunTakenError
from argosy_services.agents.types import AgentSpec, Outcome, Recorded, RunInfo, RunResumed, RunState
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage.database import Database


@pytest.fixture
def store(dsn: str) -> Iterator[RunStore]:
    database = Database(dsn)
    store = RunStore(database, keep_runs=2)
    store.prepare()
    yield store
    database.close()


def new(run_id: str, tenant: str, age_s: float = 0.0) -> RunInfo:
    then = time.time() - age_s
    return RunInfo(run_id, RunState.RUNNING, AgentSpec("task\0"), then, then)


async def test_texts_with_a_nul_are_kept(store: RunStore) -> None:
    await store.create(new("nul", "nul"), "nul")
    await store.append("nul", [Recorded(1, Answer(1, "four\0teen"))], RunState.RUNNING, answer="four\0teen")
    await store.interrupt("nul", 1, "no\0")
    info = await store.get("nul", "nul")
    assert (info.answer, info.error, info.spec.task) == ("four\ufffdteen", "no\ufffd", "task\0")
    assert (await store.events("nul"))[0].event == Answer(1, "four\0teen")
    with pytest.raises(ArgosyError) as caught:
        await store.get("nul\0", "nul")
    assert caught.value.reason is Reason.RUN_NOT_FOUND


async def test_one_of_many_ends_a_run_that_goes_on(store: RunStore) -> None:
    await store.create(new("busy", "busy"), "busy")

    async def work() -> None:
        for sequence in range(1, 200):
            await store.append("busy", [Recorded(sequence, RunResumed(0))], RunState.RUNNING)

    async def cancel() -> None:
        while (await store.get("busy", "busy")).state is not RunState.FINISHED:
            try:
                await end_unattended(store, "busy")
            except RunTakenError:
                await asyncio.sleep(0)

    worker = asyncio.create_task(work())
    await asyncio.gather(*(cancel() for _ in range(3)))
    with pytest.raises(RunTakenError):
        await worker
    info, events = await store.get("busy", "busy"), await store.events("busy")
    assert (info.outcome, info.events) == (Outcome.CANCELLED, len(events))
    assert [one.sequence for one in events] == list(range(1, len(events) + 1))


async def test_what_is_over_is_forgotten(store: RunStore) -> None:
    for place, days in enumerate([30, 20, 10, 0.5, 0]):
        await store.create(new(f"old{place}", "old", days * 86_400), "old")
    assert [run.run_id for run in await store.list("old", before="", limit=9)] == ["old4", "old3", "old2", "old1"]
