"""Which waiting sequence goes next. Plain Python.

First by priority. Within one, the tenant that was served least goes first, as in the Virtual Token Counter (Sheng et
al., "Fairness in Serving Large Language Models", 2024): each tenant has an account of the tokens that were computed for
it, and one that comes back after a pause is lifted to the level of those that wait, so that nobody saves up service.
Within one tenant the first to arrive goes first. As long as two tenants both wait, their accounts differ by no more
than a prompt or what one batch decodes. All this could let one wait for ever, so that whoever has waited longest has
its turn after so many others.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from argosy_services.engine.base import HIGHEST_PRIORITY, LOWEST_PRIORITY
from argosy_services.engine.torch_engine.heap import Heap
from argosy_services.engine.torch_engine.sequence import Sequence

# So many in a row may go before the one that has waited longest.
PASSES = 15


class FairQueue:
    """Sequences that wait for a place in the batch, and the accounts of their tenants."""

    def __init__(self) -> None:
        self.tokens = 0
        self._levels = {rank: _Level() for rank in range(HIGHEST_PRIORITY, LOWEST_PRIORITY - 1, -1)}
        self._arrivals: Heap[Sequence] = Heap()
        self._passes = 0
        self._tenants: Counter[str] = Counter()
        # As many accounts as there are keys; one that was closed would be opened again without its debts.
        self._served: defaultdict[str, int] = defaultdict(int)
        self._last_to_leave = ""
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._arrivals)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._arrivals

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._arrivals)

    def served(self, tenant: str) -> int:
        """What stands on a tenant's account."""
        return self._served[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Puts tokens on a tenant's account."""
        self._served[tenant] += tokens

    def add(self, sequence: Sequence) -> None:
        """Has a sequence wait. One that was here before gets its old place among those of its tenant."""
        if sequence.number < 0:
            sequence.number = next(self._numbers)
        tenant = sequence.request.tenant
        if not self._tenants[tenant]:
            self._lift(tenant)
        self._tenants[tenant] += 1
        self.tokens += sequence.pending
        self._arrivals.push(sequence, sequence.number)
        self._levels[sequence.rank].add(sequence, self._served)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out that does not wait any longer."""
        self.tokens -= sequence.pending
        self._arrivals.discard(sequence)
        self._levels[sequence.rank].remove(sequence)
        tenant = sequence.request.tenant
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            self._last_to_leave = tenant

    def first(self) -> Sequence | None:
        """The sequence that goes next; None where none waits."""
        if self._passes >= PASSES:
            return self._arrivals.first()
        return next((level.first(self._served) for level in self._levels.values() if level), None)

    def take(self, sequence: Sequence) -> None:
        """The first one has got its place. Nobody puts one back that had its turn."""
        its_turn = self._passes >= PASSES
        self._passes = 0 if sequence is self._arrivals.first() else self._passes + 1
        self.remove(sequence)
        if its_turn:
            sequence.rank = HIGHEST_PRIORITY

    def _lift(self, tenant: str) -> None:
        accounts = [level.least(self._served) for level in self._levels.values() if level]
        self._served[tenant] = max(self._served[tenant], min(accounts, default=self._served[self._last_to_leave]))


class _Level:
    """Those of one priority."""

    def __init__(self) -> None:
        self._queues: dict[str, Heap[Sequence]] = {}
        # By their accounts as they were when last looked at. Accounts only grow, so that the first one whose entry is
        # still true is the least.
        self._tenants: Heap[str] = Heap()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, sequence: Sequence, served: Mapping[str, int]) -> None:
        tenant = sequence.request.tenant
        self._queues.setdefault(tenant, Heap()).push(sequence, sequence.number)
        self._tenants.push(tenant, self._key(tenant, served))

    def remove(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        queue = self._queues[tenant]
        queue.discard(sequence)
        if not queue:
            del self._queues[tenant]
            self._tenants.discard(tenant)

    def first(self, served: Mapping[str, int]) -> Sequence:
        """The oldest of the least served tenant."""
        while True:
            tenant = self._tenants.first()
            if tenant is None:
                raise IndexError("nobody waits here")
            key = self._key(tenant, served)
            if self._tenants.key(tenant) == key:
                return self._oldest(tenant)
            self._tenants.push(tenant, key)

    def least(self, served: Mapping[str, int]) -> int:
        """The smallest account of those that wait here."""
        return served[self.first(served).request.tenant]

    def _key(self, tenant: str, served: Mapping[str, int]) -> tuple[int, int]:
        return served[tenant], self._oldest(tenant).number

    def _oldest(self, tenant: str) -> Sequence:
        sequence = self._queues[tenant].first()
        if sequence is None:
            raise IndexError(f"none of the tenant's sequences waits: {tenant}")
        return sequence
