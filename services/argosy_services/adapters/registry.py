"""What adapters there are, in which state, and who uses them.

Plain bookkeeping without I/O, for one event loop's thread: whatever is done in one call is seen by others as one step.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from argosy_services import metrics
from argosy_services.adapters.store import Wanted
from argosy_services.adapters.types import COMING, FINAL, SETTLED, AdapterRecord, AdapterState, AdapterTier, Failure
from argosy_services.errors import ArgosyError, Reason, adapter_not_found

_MAX_FINAL = 1_000

# From any state before READY an adapter may be unloaded (DRAINING) or found wrong (FAILED). A draining one fails where
# the engine cannot free it.
_NEXT: dict[AdapterState, frozenset[AdapterState]] = {
    AdapterState.PENDING: frozenset({AdapterState.FETCHING, AdapterState.DRAINING, AdapterState.FAILED}),
    AdapterState.FETCHING: frozenset({AdapterState.VALIDATING, AdapterState.DRAINING, AdapterState.FAILED}),
    AdapterState.VALIDATING: frozenset({AdapterState.LOADING, AdapterState.DRAINING, AdapterState.FAILED}),
    AdapterState.LOADING: frozenset({AdapterState.READY, AdapterState.DRAINING, AdapterState.FAILED}),
    AdapterState.READY: frozenset({AdapterState.DRAINING}),
    AdapterState.DRAINING: frozenset({AdapterState.UNLOADED, AdapterState.FAILED}),
    AdapterState.UNLOADED: frozenset(),
    AdapterState.FAILED: frozenset(),
}

Clock = Callable[[], datetime]


class IllegalTransitionError(RuntimeError):
    """An adapter was to go where its state does not lead: a bug of the caller."""


@dataclass(eq=False, slots=True)
class LeaseTicket:
    """One use of an adapter. `on_revoke` asks its holder to end."""

    adapter: Adapter
    on_revoke: Callable[[], None]


@dataclass(eq=False, slots=True)
class Adapter:
    """One adapter from acceptance to its final state; a name that is used again gets another one."""

    record: AdapterRecord
    wanted: Wanted
    tier: Callable[[], AdapterTier | None] = lambda: None
    tickets: set[LeaseTicket] = field(default_factory=set)

    @property
    def key(self) -> str:
        """Names it in its engine. Never used for another content, so that nothing an engine or a request keeps of an
        adapter can be taken for that of its successor.
        """
        return self.wanted.key

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.record.name

    @property
    def state(self) -> AdapterState:
        """Where it is in its life."""
        return self.record.state


class AdapterRegistry:
    """All adapters of a server. `revision` is the number of the last change.

    Adapters in a final state are kept until their name is used again, but no more than the latest thousand: names come
    from callers, who must not fill the memory with them.
    """

    def __init__(self, clock: Clock = lambda: datetime.now(UTC)) -> None:
        self.revision = 0
        self._clock = clock
        self._adapters: dict[str, Adapter] = {}
        self._events: set[asyncio.Event] = set()

    def find(self, name: str) -> Adapter | None:
        """The adapter of that name, if there is one."""
        return self._adapters.get(name)

    def get(self, name: str) -> Adapter:
        """The adapter of that name. Raises ADAPTER_NOT_FOUND."""
        adapter = self._adapters.get(name)
        if adapter is None:
            raise adapter_not_found(name)
        return adapter

    def of_version(self, version: str) -> Adapter | None:
        """An adapter of that version: a READY one if there is any, or else one that is coming."""
        found = [
            adapter
            for adapter in self._adapters.values()
            if version in (adapter.record.version, adapter.wanted.version)
        ]
        return max(
            found, key=lambda adapter: (adapter.state is AdapterState.READY, adapter.state in COMING), default=None
        )

    def adapters(self) -> list[Adapter]:
        """Every adapter."""
        return list(self._adapters.values())

    def picture(self, adapter: Adapter) -> AdapterRecord:
        """An adapter as it is now, its present leases counted."""
        return dataclasses.replace(adapter.record, active_leases=len(adapter.tickets), tier=adapter.tier())

    def accept(self, wanted: Wanted, tier: Callable[[], AdapterTier | None] = lambda: None) -> Adapter:
        """Takes up a new adapter, PENDING. The name must be free or that of an adapter in a final state."""
        name = wanted.name
        old = self._adapters.get(name)
        if old is not None and old.state not in FINAL:
            raise IllegalTransitionError(f"adapter '{name}' is {old.state.value} and cannot be replaced")
        if old is not None:
            self._forget(old)
        self.revision += 1
        now = self._clock()
        record = AdapterRecord(
            name,
            wanted.source,
            wanted.base_model,
            AdapterState.PENDING,
            self.revision,
            now,
            now,
            version=wanted.version,
            pinned=wanted.pinned,
        )
        adapter = Adapter(record, wanted, tier)
        self._adapters[name] = adapter
        metrics.ADAPTERS.labels(state=record.state.value).inc()
        self._tell()
        return adapter

    def move(self, adapter: Adapter, state: AdapterState, **facts: object) -> None:
        """Puts an adapter into its next state; `facts` are other fields of its record that became known.

        Raises IllegalTransitionError.
        """
        if state not in _NEXT[adapter.state]:
            raise IllegalTransitionError(
                f"adapter '{adapter.name}' cannot go from {adapter.state.value} to {state.value}"
            )
        metrics.ADAPTERS.labels(state=adapter.state.value).dec()
        metrics.ADAPTERS.labels(state=state.value).inc()
        if state in SETTLED:
            metrics.ADAPTER_LOADS.labels(result=state.value).inc()
        self.revision += 1
        adapter.record = dataclasses.replace(
            adapter.record,
            state=state,
            revision=self.revision,
            updated=self._clock(),
            **facts,  # type: ignore[arg-type]
        )
        if state in FINAL:
            self._drop_oldest_final()
        self._tell()

    def lease(self, adapter: Adapter, on_revoke: Callable[[], None]) -> LeaseTicket:
        """Notes one more use of a READY adapter. Raises ADAPTER_NOT_READY."""
        if adapter.state is not AdapterState.READY:
            raise not_ready(adapter.record)
        ticket = LeaseTicket(adapter, on_revoke)
        adapter.tickets.add(ticket)
        metrics.ADAPTER_LEASES.inc()
        return ticket

    def give_back(self, ticket: LeaseTicket) -> None:
        """Notes the end of a use."""
        ticket.adapter.tickets.remove(ticket)
        metrics.ADAPTER_LEASES.dec()

    @contextmanager
    def news(self) -> Iterator[asyncio.Event]:
        """An event that is set at each change, for the length of a `with` block."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.remove(event)

    def clear(self) -> None:
        """Forgets every adapter, without telling anybody: the server ends."""
        for adapter in list(self._adapters.values()):
            self._forget(adapter)

    def _forget(self, adapter: Adapter) -> None:
        del self._adapters[adapter.name]
        metrics.ADAPTERS.labels(state=adapter.state.value).dec()

    def _drop_oldest_final(self) -> None:
        final = [adapter for adapter in self._adapters.values() if adapter.state in FINAL]
        if len(final) > _MAX_FINAL:
            self._forget(min(final, key=lambda adapter: adapter.record.revision))

    def _tell(self) -> None:
        for event in self._events:
            event.set()


def not_ready(record: AdapterRecord) -> ArgosyError:
    """An adapter is known but cannot be used in its present state."""
    return ArgosyError(
        Reason.ADAPTER_NOT_READY,
        f"adapter '{record.name}' is {record.state.value}{_advice(record)}",
        adapter=record.name,
        state=record.state.value,
    )


def _advice(record: AdapterRecord) -> str:
    if record.state is AdapterState.FAILED and record.failure:
        return f" ({record.failure.message}); load it again once that is mended"
    if record.state is AdapterState.UNLOADED:
        return "; load it again to use it"
    if record.state is AdapterState.DRAINING:
        return "; it is being unloaded, wait until it is unloaded and load it again"
    return "; follow it with WatchAdapters until it is ready"


def failure_of(error: ArgosyError) -> Failure:
    """An error as a record holds it."""
    return Failure(str(error.reason), error.message)
