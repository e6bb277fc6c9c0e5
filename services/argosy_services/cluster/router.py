"""Chooses engine replicas, in every process that holds a handle; the choice itself is `placement.rank`.

Ray Serve pickles this module by value. What its processes share with the rest of the code must live in other modules,
and an object of one must be reached through its module, or this one has a copy of its own.
"""

from __future__ import annotations

from dataclasses import replace

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from argosy_services.cluster import flights
from argosy_services.cluster.placement import ReplicaView, ToReplica, rank
from argosy_services.engine.base import Request


class EngineRouter(RequestRouter):
    """Routes sequences by resident adapters, cache use, waiting tokens and the beginning of the prompt."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The candidates in the order in which they suit the request."""
        given = _first_argument(pending_request)
        if isinstance(given, ToReplica):
            there = [found for found in candidate_replicas if found.replica_id.unique_id == given.replica]
            return [there or candidate_replicas]
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        views = {name: _view(replica) for name, replica in replicas.items()}
        names = {name: name.unique_id for name in replicas}
        request = given if isinstance(given, Request) else None
        return [[replicas[name] for name in group] for group in rank(views, names, request)]


def _view(replica: RunningReplica) -> ReplicaView:
    # What a replica reports may be half a second old; what this process has sent there since is known at once.
    view = ReplicaView.read(replica.routing_stats or {})
    return replace(view, sequences=max(view.sequences, flights.FLIGHTS.count(replica.replica_id.unique_id)))


def _first_argument(pending_request: PendingRequest | None) -> object:
    return pending_request.args[0] if pending_request is not None and pending_request.args else None
