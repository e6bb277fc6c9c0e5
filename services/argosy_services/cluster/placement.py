"""Which engine replica suits a sequence: a pure function, without Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from argosy_services.engine.base import Request

T = TypeVar("T")

# A replica whose cache is so full, or that has so many prompt tokens before it, is left alone while others are not.
_FULL_KV_USE = 0.9
_LONG_BACKLOG_TOKENS = 2_048
# How many sequences more than the least busy one a replica may have and still be chosen for its cached prefix.
_AFFINITY_SLACK = 8
# Prompts that begin with the same so many tokens are likely to share more: a system prompt, a document.
_PREFIX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ToReplica:
    """First argument of a call that is for one replica. Another one gets it only where that one is gone."""

    replica: str


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What an engine replica last told about itself."""

    sequences: int = 0
    waiting_tokens: int = 0
    kv_use: float = 0.0
    adapters: frozenset[str] = frozenset()

    @classmethod
    def read(cls, stats: Mapping[str, Any]) -> ReplicaView:
        """From the routing statistics of a replica; empty ones mean an idle replica."""
        return cls(
            sequences=int(stats.get("sequences", 0)),
            waiting_tokens=int(stats.get("waiting_tokens", 0)),
            kv_use=float(stats.get("kv_use", 0.0)),
            adapters=frozenset(stats.get("adapters", ())),
        )

    @property
    def busy(self) -> bool:
        """Whether a new sequence would wait there, or push others out."""
        return self.kv_use >= _FULL_KV_USE or self.waiting_tokens >= _LONG_BACKLOG_TOKENS


def rank(replicas: Mapping[T, ReplicaView], names: Mapping[T, str], request: Request | None) -> list[list[T]]:
    """Replicas in the order in which they suit a sequence, in groups of equally good ones.

    First the one that prompts with this beginning always go to (rendezvous hashing, Thaler and Ravishankar, 1996),
    unless others have much less to do; then those that hold the adapter; then those that would have to load it; last
    those that are full. Of each kind those with fewer sequences come first.
    """
    free = [key for key, view in replicas.items() if not view.busy]
    full = [key for key, view in replicas.items() if view.busy]
    adapter = request.adapter if request is not None else None
    holders = [key for key in free if adapter is None or adapter in replicas[key].adapters]
    others = [key for key in free if key not in set(holders)]
    ahead: list[T] = []
    if request is not None and holders:
        home = max(holders, key=lambda key: _affinity(request, names[key]))
        if replicas[home].sequences <= min(replicas[key].sequences for key in holders) + _AFFINITY_SLACK:
            ahead = [home]
            holders.remove(home)
    return [group for kind in (ahead, holders, others, full) for group in _by_load(replicas, kind)]


def _by_load(replicas: Mapping[T, ReplicaView], kind: Sequence[T]) -> list[list[T]]:
    def load(key: T) -> int:
        return replicas[key].sequences

    return [list(group) for _, group in groupby(sorted(kind, key=load), key=load)]


def _affinity(request: Request, name: str) -> bytes:
    beginning: Sequence[int] = request.prompt[:_PREFIX_TOKENS]
    text = f"{name}|{request.namespace}|{','.join(map(str, beginning))}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
