"""The router as Ray Serve ships it: pickled by value, with its module."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID
from ray.serve.request_router import ReplicaID, RequestRouter

from argosy_services.cluster import roster, router
from argosy_services.cluster.placement import ReplicaView
from argosy_services.cluster.wire import Contact


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A router as another process has it."""
    cloudpickle.register_pickle_by_value(router)
    try:
        pickled = cloudpickle.dumps(router.EngineRouter)
    finally:
        cloudpickle.unregister_pickle_by_value(router)
    # A process knows the classes again that it has pickled itself.
    monkeypatch.setattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
    kind = cloudpickle.loads(pickled)
    assert kind is not router.EngineRouter
    return object.__new__(kind)


async def test_gateways_learn_where_replicas_are_and_what_they_report(
    shipped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster.ENGINES, "members", {})
    taken_over: list[Any] = []
    monkeypatch.setattr(RequestRouter, "update_replicas", lambda _, replicas: taken_over.append(replicas))
    application = DeploymentID(name="Engine", app_name="generation")
    contacts = {name: Contact("127.0.0.1", port, bytes([port])) for port, name in enumerate("ab")}
    replicas = [
        SimpleNamespace(
            replica_id=ReplicaID(name, application), replica_metadata=contact.published(), routing_stats=stats
        )
        for (name, contact), stats in zip(contacts.items(), ({"sequences": 3}, None), strict=True)
    ]
    replicas.append(
        SimpleNamespace(replica_id=ReplicaID("starting", application), replica_metadata={}, routing_stats={})
    )
    shipped.update_replicas(replicas)
    assert roster.ENGINES.members == {
        "a": roster.Member(contacts["a"], ReplicaView(sequences=3)),
        "b": roster.Member(contacts["b"], ReplicaView()),
    }
    assert taken_over == [replicas]
    assert await shipped.choose_replicas(replicas) == [replicas]
    shipped.update_replicas([])
    assert roster.ENGINES.members == {}
