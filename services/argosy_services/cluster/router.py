"""Chooses engine replicas, in every process that holds a handle; the choice itself is `placement.rank`."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from argosy_services.cluster.placement import ReplicaView, rank
from argosy_services.engine.base import Request


class EngineRouter(RequestRouter):
    """Routes sequences by resident adapters, cache use, waiting tokens and the beginning of the prompt.

    Among the replicas of a group Ray Serve takes the one with the shortest queue that accepts.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The candidates in the order in which they suit the request."""
        given = pending_request.args[0] if pending_request is not None and pending_request.args else None
        request = given if isinstance(given, Request) else None
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        views = {name: ReplicaView.read(replica.routing_stats or {}) for name, replica in replicas.items()}
        names = {name: name.unique_id for name in replicas}
        return [[replicas[name] for name in group] for group in rank(views, names, request)]
