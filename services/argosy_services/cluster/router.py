"""Follows Ray Serve's list of engine replicas, in every process that holds a handle.

Sequences go over links, to the replica that `placement.rank` puts first; the calls that go through this router are
for any replica.

Ray Serve pickles this module by value. What its processes share with the rest of the code must live in other modules,
and an object of one must be reached through its module, or this one has a copy of its own.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from argosy_services.cluster import roster
from argosy_services.cluster.placement import ReplicaView
from argosy_services.cluster.wire import Contact


class EngineRouter(RequestRouter):
    """Tells the roster of this process which replicas there are and what they report."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Takes over the replicas that run; Ray Serve calls it for each change and each report."""
        super().update_replicas(replicas)
        roster.ENGINES.members = {
            replica.replica_id.unique_id: roster.Member(
                Contact.read(replica.replica_metadata), ReplicaView.read(replica.routing_stats or {})
            )
            for replica in replicas
            if replica.replica_metadata
        }

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All of them: the one with the fewest calls is taken."""
        return [candidate_replicas]
