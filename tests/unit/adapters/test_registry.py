"""The registry against a model of it, by random steps."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from argosy_services.adapters import registry as module
from argosy_services.adapters.registry import Adapter, AdapterRegistry, IllegalTransitionError, LeaseTicket
from argosy_services.adapters.store import Wanted
from argosy_services.adapters.types import FINAL, AdapterState
from argosy_services.errors import ArgosyError, Reason

S = AdapterState
NAMES = st.sampled_from(["a", "b", "c"])
LEGAL = {
    S.PENDING: "FETCHING DRAINING FAILED",
    S.FETCHING: "VALIDATING DRAINING FAILED",
    S.VALIDATING: "LOADING DRAINING FAILED",
    S.LOADING: "READY DRAINING FAILED",
    S.READY: "DRAINING",
    S.DRAINING: "UNLOADED FAILED",
    S.UNLOADED: "",
    S.FAILED: "",
}


def clock() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(_ticks))


_ticks = itertools.count()
_numbers = itertools.count(1)


def wanted(name: str) -> Wanted:
    return Wanted(next(_numbers), name, "file:///x", "model", pinned=False)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.registry = AdapterRegistry(clock)
        self.states: dict[str, AdapterState] = {}
        self.adapters: dict[str, Adapter] = {}
        self.tickets: list[LeaseTicket] = []
        self.keys: set[str] = set()
        self.revision = 0

    def teardown(self) -> None:
        for ticket in self.tickets:
            self.registry.give_back(ticket)
        self.registry.clear()

    @rule(name=NAMES)
    def accept(self, name: str) -> None:
        if self.states.get(name, S.FAILED) not in FINAL:
            with pytest.raises(IllegalTransitionError):
                self.registry.accept(wanted(name))
            return
        adapter = self.registry.accept(wanted(name))
        assert adapter.key not in self.keys
        self.keys.add(adapter.key)
        self.adapters[name], self.states[name] = adapter, S.PENDING
        self.revision += 1

    @precondition(lambda self: self.adapters)
    @rule(data=st.data(), state=st.sampled_from(list(S)))
    def move(self, data: st.DataObject, state: AdapterState) -> None:
        name = data.draw(st.sampled_from(sorted(self.adapters)))
        if state.name not in LEGAL[self.states[name]].split():
            with pytest.raises(IllegalTransitionError):
                self.registry.move(self.adapters[name], state)
            return
        before = self.adapters[name].record
        self.registry.move(self.adapters[name], state, rank=8)
        self.states[name] = state
        self.revision += 1
        after = self.adapters[name].record
        assert before.state is not after.state  # the old picture did not change
        assert after.updated > before.updated
        assert after.created == before.created
        assert after.rank == 8

    @precondition(lambda self: self.adapters)
    @rule(data=st.data())
    def step_forward(self, data: st.DataObject) -> None:
        """Random states seldom lead to READY by themselves."""
        name = data.draw(st.sampled_from(sorted(self.adapters)))
        following = LEGAL[self.states[name]].split()
        if following:
            state = S[following[0]]
            self.registry.move(self.adapters[name], state)
            self.states[name] = state
            self.revision += 1

    @rule(name=NAMES)
    def lease(self, name: str) -> None:
        if self.states.get(name) is S.READY:
            self.tickets.append(self.registry.lease(self.adapters[name], lambda: None))
            return
        with pytest.raises(ArgosyError) as caught:
            self.registry.lease(self.registry.get(name), lambda: None)
        expected = Reason.ADAPTER_NOT_READY if name in self.states else Reason.ADAPTER_NOT_FOUND
        assert caught.value.reason is expected

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(ticket)
        self.registry.give_back(ticket)

    @invariant()
    def agrees_with_the_model(self) -> None:
        registry = self.registry
        assert registry.revision == self.revision
        assert {adapter.name: adapter.state for adapter in registry.adapters()} == self.states
        for name, adapter in self.adapters.items():
            assert registry.get(name) is adapter
            mine = [ticket for ticket in self.tickets if ticket.adapter is adapter]
            assert registry.picture(adapter).active_leases == len(mine)
        revisions = [adapter.record.revision for adapter in registry.adapters()]
        assert len(set(revisions)) == len(revisions)
        assert max(revisions, default=0) == self.revision


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_every_state_has_its_row() -> None:
    assert {state: frozenset(S[name] for name in names.split()) for state, names in LEGAL.items()} == module._NEXT


def test_only_the_latest_final_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FINAL", 3)
    registry = AdapterRegistry()
    live = registry.accept(wanted("live"))
    for number in range(5):
        registry.move(registry.accept(wanted(f"n{number}")), S.FAILED)
    assert sorted(adapter.name for adapter in registry.adapters()) == ["live", "n2", "n3", "n4"]
    assert registry.find("live") is live
    registry.clear()


async def test_news_reach_everybody_who_listens_and_nobody_else() -> None:
    registry = AdapterRegistry()
    with registry.news() as first, registry.news() as second:
        adapter = registry.accept(wanted("a"))
        assert first.is_set()
        assert second.is_set()
        first.clear()
    registry.move(adapter, S.FAILED)
    assert not first.is_set()
    await asyncio.sleep(0)
    registry.clear()
