"""LoRA adapters."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias


class AdapterState(enum.StrEnum):
    """Where an adapter is in its life. UNLOADED and FAILED are final."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    FETCHING = "fetching"
    VALIDATING = "validating"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"

    @property
    def settled(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (AdapterState.READY, AdapterState.UNLOADED, AdapterState.FAILED)


class AdapterTier(enum.StrEnum):
    """Where the weights of an adapter are; UNKNOWN where the server that was asked cannot tell, or it is not loaded."""

    UNKNOWN = "unknown"
    SLOT = "slot"
    MEMORY = "memory"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class AdapterFailure:
    """Why an adapter failed: a reason for programs, a message for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A picture of a LoRA adapter; `revision` grows with each change of any adapter of the server."""

    name: str
    version: str
    base_model: str
    source: str
    state: AdapterState
    failure: AdapterFailure | None
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    active_leases: int
    create_time: datetime | None
    update_time: datetime | None
    revision: int
    pinned: bool = False
    tier: AdapterTier = AdapterTier.UNKNOWN


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for versions of adapters. `targets` are their weights by version, relative to each other."""

    name: str
    targets: dict[str, int]
    revision: int
    create_time: datetime | None

    def share(self, version: str) -> float:
        """Which share of the requests a version gets, 0 to 1."""
        return self.targets.get(version, 0) / sum(self.targets.values())


@dataclass(frozen=True, slots=True)
class SnapshotComplete:
    """Event of a watch: every adapter was sent once; what follows are changes."""

    revision: int


AdapterEvent: TypeAlias = Adapter | SnapshotComplete
