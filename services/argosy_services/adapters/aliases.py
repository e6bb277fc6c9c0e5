"""What aliases mean on this replica, and which version answers a request that names one."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

from argosy_services.adapters.alias_store import alias_not_found
from argosy_services.adapters.types import AliasRecord, AliasTarget


class Aliases:
    """The aliases in force. A new meaning is taken over once every version of it is ready here; until then the former
    one holds, so that no request meets a version that its replica is still loading. Where no version of a former one
    can answer, as after a restart, the new one holds at once: its requests wait instead of failing. Plain bookkeeping.
    """

    def __init__(self) -> None:
        self._in_force: dict[str, AliasRecord] = {}

    def take_over(self, wanted: Sequence[AliasRecord], ready: Callable[[str], bool]) -> None:
        """Takes over what aliases should mean and forgets others. `ready` says whether a version can answer here."""
        self._in_force = {record.name: self._choose(record, ready) for record in wanted}

    def resolve(self, alias: str, sticky_key: str) -> str:
        """The version that answers. Raises ALIAS_NOT_FOUND.

        Versions get requests in proportion to their weights. Requests with one sticky key get the same version for as
        long as the weights stay; where they change, only as many keys move as must.
        """
        record = self._in_force.get(alias)
        if record is None:
            raise alias_not_found(alias)
        return pick(record.targets, _place(alias, sticky_key) if sticky_key else random.random())  # noqa: S311

    def _choose(self, record: AliasRecord, ready: Callable[[str], bool]) -> AliasRecord:
        former = self._in_force.get(record.name)
        if former is None or all(map(ready, _answering(record))) or not any(map(ready, _answering(former))):
            return record
        return former


def pick(targets: Sequence[AliasTarget], place: float) -> str:
    """The version whose share of [0, 1) holds `place`."""
    left = place * sum(target.weight for target in targets)
    for target in targets:
        left -= target.weight
        if left < 0:
            return target.version
    return targets[-1].version


def _answering(record: AliasRecord) -> list[str]:
    return [target.version for target in record.targets if target.weight]


def _place(alias: str, sticky_key: str) -> float:
    digest = hashlib.sha256(f"{alias}\0{sticky_key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
