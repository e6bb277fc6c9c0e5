"""The events of one run in this process: shown at once to who follows, and written down before anything depends on
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from argosy_services import tracing
from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.store import RunStore
from argosy_services.agents.types import (
    ApprovalDecided,
    ApprovalRequested,
    Event,
    ModelReplied,
    Outcome,
    Recorded,
    RunFinished,
    RunState,
    ToolStarted,
)

# How often a run that waits looks for what was left at another server.
_POLL_S = 0.25


class RunLog:
    """Everything that happened in a run. The record is also the journal that a resumed run is carried on from: what
    stands in it is not done again.
    """

    def __init__(self, store: RunStore, run_id: str, recorded: Sequence[Recorded] = ()) -> None:
        """`recorded` are the events of a run that goes on."""
        self.run_id = run_id
        self.seconds: Callable[[], float] = lambda: 0.0
        self.replies: dict[str, ModelReplied] = {}
        self.requested: dict[str, ToolRequest] = {}
        self.observed: dict[str, Observation] = {}
        self.started: set[str] = set()
        self.decided: dict[str, ApprovalDecided] = {}
        self.asked: set[str] = set()
        self.answer: Answer | None = None
        self.outcome: Outcome | None = None
        self._store = store
        self._events: list[Recorded] = []
        self._held: list[Event] = []
        self._written = len(recorded)
        self._writing = asyncio.Lock()
        self._news = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None
        for one in recorded:
            self._add(one)

    def show(self, event: Event) -> None:
        """Shows an event at once; it is written down with the next one that is recorded."""
        if self._writing.locked():
            # The number that it would get is being written down for another event.
            self._held.append(event)
        else:
            self._add(Recorded(len(self._events) + 1, event, seconds=self.seconds()))

    async def record(self, event: Event, key: str = "") -> None:
        """Shows an event once it is written down. Raises RunTakenError and STORE_UNAVAILABLE; the event then did not
        happen. A caller that is cancelled leaves it to be written: the database does not stop half-way.
        """
        writing = asyncio.ensure_future(self._record(event, key))
        writing.add_done_callback(_note_failure)
        with tracing.span("write down"):
            await asyncio.shield(writing)

    async def _record(self, event: Event, key: str) -> None:
        async with self._writing:
            waiting = self._events[self._written :]
            one = Recorded(len(self._events) + 1, event, key, self.seconds())
            waiting.append(one)
            outcome = event.outcome if isinstance(event, RunFinished) else None
            answer = event if isinstance(event, Answer) else self.answer
            await self._store.append(
                self.run_id, waiting, self._state_with(event), outcome=outcome, answer=answer and answer.text
            )
            self._add(one)
            self._written = one.sequence
        held, self._held = self._held, []
        for shown in held:
            self.show(shown)

    def close(self, error: Exception | None = None) -> None:
        """Nothing follows; whoever follows gets the error, if there is one."""
        self._closed, self._error = True, error
        self._wake()

    def nudge(self) -> None:
        """Something was left for the run."""
        self._wake()

    @property
    def written(self) -> int:
        """How many events are written down."""
        return self._written

    async def follow(self, after: int = 0) -> AsyncGenerator[Recorded]:
        """The events behind number `after`, and those to come. Raises what ended the run."""
        while True:
            while after < len(self._events):
                after += 1
                yield self._events[after - 1]
            if self._closed:
                if self._error is not None:
                    raise self._error
                return
            await self._news.wait()

    async def input(self, key: str) -> str:
        """Waits for what is left for the run under a key. Raises RunTakenError where it was ended elsewhere."""
        while True:
            # Taken before the look, so that what comes in between is not missed.
            news = self._news
            body = await self._store.input(self.run_id, key)
            if body is not None:
                return body
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S if self._store.shared else None):
                    await news.wait()

    def _add(self, one: Recorded) -> None:
        self._events.append(one)
        self._note(one)

    def _note(self, one: Recorded) -> None:
        match one.event:
            case ModelReplied():
                self.replies[one.key] = one.event
            case ToolRequest():
                self.requested[one.event.call_id] = one.event
            case ApprovalRequested():
                self.asked.add(one.event.call_id)
            case ApprovalDecided():
                self.decided[one.event.call_id] = one.event
            case ToolStarted():
                self.started.add(one.event.call_id)
            case Observation():
                self.observed[one.event.call_id] = one.event
            case Answer():
                self.answer = one.event
            case RunFinished():
                self.outcome = one.event.outcome
            case _:
                pass
        self._wake()

    def _state_with(self, event: Event) -> RunState:
        if isinstance(event, RunFinished):
            return RunState.FINISHED
        asked, decided, observed = set(self.asked), set(self.decided), set(self.observed)
        waiting = {call_id for call_id, request in self.requested.items() if request.by_client}
        match event:
            case ApprovalRequested():
                asked.add(event.call_id)
            case ApprovalDecided():
                decided.add(event.call_id)
            case Observation():
                observed.add(event.call_id)
            case ToolRequest(by_client=True):
                waiting.add(event.call_id)
            case _:
                pass
        if asked - decided - observed:
            return RunState.AWAITING_APPROVAL
        return RunState.AWAITING_RESULT if waiting - observed else RunState.RUNNING

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _note_failure(writing: asyncio.Future[None]) -> None:
    """Takes the error of a writing that nobody waits for any more: the next one meets it as well."""
    if not writing.cancelled():
        writing.exception()
