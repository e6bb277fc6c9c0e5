"""Which replica a sequence goes to, and how many there are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from argosy_services.cluster.placement import ReplicaView, rank
from argosy_services.cluster.scaling import EmbeddingScaling, EngineScaling
from argosy_services.engine.base import Request


def asking(beginning: int, adapter: str | None = None) -> Request:
    return Request("a", prompt=[beginning] * 100, max_tokens=1, adapter=adapter)


def test_prompts_that_begin_alike_go_to_one_replica() -> None:
    views = {name: ReplicaView() for name in "abc"}
    homes = {beginning: rank(views, asking(beginning))[0] for beginning in range(40)}
    assert all(rank(views, asking(beginning))[0] == home for beginning, home in homes.items())
    assert set(homes.values()) == {"a", "b", "c"}


def test_tenants_who_share_no_cache_share_no_home() -> None:
    views = {name: ReplicaView() for name in "abc"}
    homes = {rank(views, replace(asking(1), tenant=str(tenant)))[0] for tenant in range(40)}
    assert homes == {"a", "b", "c"}


def test_a_replica_less_moves_only_its_own_prompts() -> None:
    views = {name: ReplicaView() for name in "abc"}
    without = {name: view for name, view in views.items() if name != "c"}
    for beginning in range(40):
        home = rank(views, asking(beginning))[0]
        assert home == "c" or rank(without, asking(beginning))[0] == home


def test_a_home_with_much_more_to_do_is_passed_over() -> None:
    for beginning in range(20):
        home, other = rank({name: ReplicaView() for name in "ab"}, asking(beginning))
        assert rank({home: ReplicaView(sequences=8), other: ReplicaView()}, asking(beginning)) == [home, other]
        assert rank({home: ReplicaView(sequences=9), other: ReplicaView()}, asking(beginning)) == [other, home]


def test_holders_of_the_adapter_come_first_and_the_full_last() -> None:
    views = {
        "full": ReplicaView(kv_use=0.95, adapters=frozenset({"x@1"})),
        "behind": ReplicaView(waiting_tokens=5_000),
        "holder": ReplicaView(adapters=frozenset({"x@1"})),
        "empty": ReplicaView(),
    }
    ranked = rank(views, asking(1, "x@1"))
    assert ranked[:2] == ["holder", "empty"]
    assert set(ranked[2:]) == {"full", "behind"}


def test_an_engine_that_is_started_again_draws_no_sequences_for_its_idleness() -> None:
    views = {"full": ReplicaView(sequences=60, kv_use=0.95), "again": ReplicaView.read({"ready": False})}
    for beginning in range(20):
        assert rank(views, asking(beginning)) == ["full", "again"]


def test_replicas_that_have_reported_nothing_take_sequences() -> None:
    assert set(rank({"a": ReplicaView.read({}), "b": ReplicaView()}, asking(1))) == {"a", "b"}
    assert rank({}, asking(1)) == []


def context(metrics: dict[str, dict[str, float]] | None, target: int = 1, requests: float = 1) -> SimpleNamespace:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=target, total_num_requests=requests)


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        ({"waiting_tokens": {"a": 0.0}, "kv_use": {"a": 0.1}}, 1),
        ({"waiting_tokens": {"a": 5_000.0}, "kv_use": {"a": 0.1}}, 3),
        ({"waiting_tokens": {"a": 0.0, "b": 0.0}, "kv_use": {"a": 0.7, "b": 0.7}}, 2),
        ({"waiting_tokens": {"a": 0.0}, "kv_use": {"a": 0.9}}, 2),
        ({"adapter_misses": {"a": 20.0}}, 3),
    ],
)
def test_engines_follow_what_limits_them_most(metrics: dict[str, dict[str, float]], wanted: int) -> None:
    assert EngineScaling()(context(metrics)) == (wanted, {})


def test_an_idle_engine_may_go_and_a_waiting_request_wakes_one() -> None:
    idle = {"waiting_tokens": {"a": 0.0}, "kv_use": {"a": 0.0}}
    assert EngineScaling()(context(idle, requests=0))[0] == 0
    assert EngineScaling()(context(None, target=0, requests=0))[0] == 0
    assert EngineScaling()(context(None, target=0, requests=2))[0] == 1
    assert EngineScaling()(context(None, target=3, requests=2))[0] == 3


def test_embedders_follow_the_texts_that_wait() -> None:
    assert EmbeddingScaling()(context({"waiting_texts": {"a": 600.0, "b": 0.0}}))[0] == 3
    assert EmbeddingScaling()(context({"waiting_texts": {"a": 0.0}}, requests=0))[0] == 0
    assert EmbeddingScaling()(context(None, target=2))[0] == 2
