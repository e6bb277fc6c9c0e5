"""The router as Ray Serve ships it: pickled by value, with its module."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID
from ray.serve.request_router import ReplicaID

from argosy_services.cluster import flights, router
from argosy_services.cluster.placement import ToReplica
from argosy_services.engine.base import Request


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


async def order(router: Any, argument: object) -> list[list[str]]:
    application = DeploymentID(name="Engine", app_name="generation")
    replicas = [SimpleNamespace(replica_id=ReplicaID(name, application), routing_stats={}) for name in "abc"]
    groups = await router.choose_replicas(replicas, SimpleNamespace(args=[argument]))
    return [[found.replica_id.unique_id for found in group] for group in groups]


@pytest.mark.parametrize("name", "abc")
async def test_a_call_for_one_replica_goes_there(shipped: Any, name: str) -> None:
    assert await order(shipped, ToReplica(name)) == [[name]]


async def test_a_call_for_a_replica_that_is_gone_goes_anywhere(shipped: Any) -> None:
    assert await order(shipped, ToReplica("z")) == [["a", "b", "c"]]


async def test_what_was_just_sent_somewhere_counts(shipped: Any) -> None:
    request = Request("r", prompt=[7] * 80, max_tokens=1)
    home = (await order(shipped, request))[0][0]
    names = [f"s{number}" for number in range(9)]
    for name in names:
        flights.FLIGHTS.routed(name, home)
    try:
        assert (await order(shipped, request))[-1] == [home]
    finally:
        for name in names:
            flights.FLIGHTS.ended(name)
    assert (await order(shipped, request))[0] == [home]
