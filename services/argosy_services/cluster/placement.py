"""Which engine replica suits a sequence: a pure function, without Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from argosy_services.engine.base import Request

# A replica whose cache is so full, or that has so many prompt tokens before it, is left alone while others are not.
_FULL_KV_USE = 0.9
_LONG_BACKLOG_TOKENS = 2_048
# How many sequences more than the least busy one a replica may have and still be chosen for its cached prefix.
_AFFINITY_SLACK = 8
# Prompts that begin with the same so many tokens are likely to share more: a system prompt, a document.
_PREFIX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What an engine replica last told about itself."""

    sequences: int = 0
    waiting_tokens: int = 0
    kv_use: float = 0.0
    adapters: frozenset[str] = frozenset()
    ready: bool = True

    @classmethod
    def read(cls, stats: Mapping[str, Any]) -> ReplicaView:
        """From the routing statistics of a replica; empty ones mean an idle replica."""
        return cls(
            sequences=int(stats.get("sequences", 0)),
            waiting_tokens=int(stats.get("waiting_tokens", 0)),
            kv_use=float(stats.get("kv_use", 0.0)),
            adapters=frozenset(stats.get("adapters", ())),
            ready=bool(stats.get("ready", True)),
        )

    @property
    def busy(self) -> bool:
        """Whether a new sequence would wait there, or push others out."""
        return self.kv_use >= _FULL_KV_USE or self.waiting_tokens >= _LONG_BACKLOG_TOKENS


def rank(replicas: Mapping[str, ReplicaView], request: Request) -> list[str]:
    """The ids of replicas in the order in which they suit a sequence.

    First the one that prompts with this beginning always go to (rendezvous hashing, Thaler and Ravishankar, 1996),
    unless others have much less to do; then those that hold the adapter; then those that would have to load it; then
    those that are full; last those whose engine is being started again, which have nothing to do because they refuse.
    Of each kind those with fewer sequences come first.
    """

    def by_load(kind: Iterable[str]) -> list[str]:
        return sorted(kind, key=lambda name: (replicas[name].sequences, _affinity(request, name)))

    ready = {name for name, view in replicas.items() if view.ready}
    free = {name for name in ready if not replicas[name].busy}
    holders = {name for name in free if request.adapter is None or request.adapter in replicas[name].adapters}
    ranked = [*by_load(holders), *by_load(free - holders), *by_load(ready - free), *by_load(replicas.keys() - ready)]
    if holders:
        home = max(holders, key=lambda name: _affinity(request, name))
        if replicas[home].sequences <= replicas[ranked[0]].sequences + _AFFINITY_SLACK:
            ranked.remove(home)
            ranked.insert(0, home)
    return ranked


def _affinity(request: Request, name: str) -> bytes:
    beginning: Sequence[int] = request.prompt[:_PREFIX_TOKENS]
    text = f"{name}|{request.namespace}|{','.join(map(str, beginning))}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
