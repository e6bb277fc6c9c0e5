"""The end of a run that nobody works on, made of its record alone: its tools and its model may be gone."""

from __future__ import annotations

from collections.abc import Sequence

from argosy_services.agents.memory import Answer, ToolRequest
from argosy_services.agents.store import RunStore
from argosy_services.agents.types import ModelReplied, Outcome, Recorded, RunFinished, RunState, Usage


async def end_unattended(store: RunStore, run_id: str) -> None:
    """Notes that the run's owner ended it. Raises RunTakenError where somebody else has written meanwhile."""
    recorded = await store.events(run_id)
    seconds = recorded[-1].seconds if recorded else 0.0
    usage, calls, answer = Usage(), 0, None
    for one in recorded:
        match one.event:
            case ModelReplied():
                usage = usage.plus(one.event.usage)
            case ToolRequest():
                calls += 1
            case Answer():
                answer = one.event.text
            case _:
                pass
    end = RunFinished(Outcome.CANCELLED, steps_in(recorded), calls, usage, seconds)
    last = Recorded(len(recorded) + 1, end, seconds=seconds)
    await store.append(run_id, [last], RunState.FINISHED, outcome=Outcome.CANCELLED, answer=answer)


def steps_in(recorded: Sequence[Recorded]) -> int:
    """How many steps left something in the record."""
    return max((getattr(one.event, "step", 0) for one in recorded), default=0)
