"""The vocabulary of adapters."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class AdapterState(enum.Enum):
    """Where an adapter is in its life; see `AdapterState` in adapter.proto."""

    PENDING = "pending"
    FETCHING = "fetching"
    VALIDATING = "validating"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


class AdapterTier(enum.Enum):
    """Where the weights of an adapter are."""

    SLOT = "slot"
    MEMORY = "memory"
    DISK = "disk"


# Nothing follows a final state but a new adapter of the same name. A settled one lasts until somebody acts.
FINAL = frozenset({AdapterState.UNLOADED, AdapterState.FAILED})
SETTLED = FINAL | {AdapterState.READY}
COMING = frozenset({AdapterState.PENDING, AdapterState.FETCHING, AdapterState.VALIDATING, AdapterState.LOADING})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an adapter failed: a reason that programs read and a sentence that people read."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """A picture of one adapter; a new one is made at each change."""

    name: str
    source: str
    base_model: str
    state: AdapterState
    revision: int
    created: datetime
    updated: datetime
    version: str = ""
    failure: Failure | None = None
    rank: int = 0
    target_modules: tuple[str, ...] = ()
    size_bytes: int = 0
    active_leases: int = 0
    pinned: bool = False
    tier: AdapterTier | None = None


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """A version that an alias points at; `weight` is its share of the requests, relative to the others'."""

    version: str
    weight: int


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """What an alias means. `parent` is the revision before it; None: there was none."""

    name: str
    revision: int
    targets: tuple[AliasTarget, ...]
    created: datetime
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class SnapshotComplete:
    """A watch has sent every adapter once, as it was at change number `revision`; changes follow."""

    revision: int
