"""The end of a run that nobody works on, made of its record alone: its tools and its model may be gone."""

from __future__ import annotations

from collections.abc import Sequence

from argosy_services.agents.runlog import RunLog
from argosy_services.agents.store import RunStore
from argosy_services.agents.types import Outcome, Recorded, RunFinished, Usage


async def end_unattended(store: RunStore, run_id: str) -> None:
    """Notes that the run's owner ended it. Raises RunTakenError where somebody else has written meanwhile."""
    recorded = await store.events(run_id)
    seconds = recorded[-1].seconds if recorded else 0.0
    run_log = RunLog(store, run_id, recorded)
    run_log.seconds = lambda: seconds
    usage = Usage()
    for reply in run_log.replies.values():
        usage = usage.plus(reply.usage)
    await run_log.record(RunFinished(Outcome.CANCELLED, steps_in(recorded), len(run_log.requested), usage, seconds))


def steps_in(recorded: Sequence[Recorded]) -> int:
    """How many steps left something in the record."""
    return max((getattr(one.event, "step", 0) for one in recorded), default=0)
