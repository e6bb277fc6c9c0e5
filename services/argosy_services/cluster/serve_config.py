"""From settings to what Ray Serve is told: its configuration, and the environment of Ray's processes.

Plain data without Ray, so that it can be printed, compared and checked for freshness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from argosy_services.cluster.notice import HEALTH_CHECK_PERIOD_S
from argosy_services.process import ARENAS
from argosy_services.rpc.dispatch import SERVICES
from argosy_services.settings import Replicas, Settings, default_data_dir, live_fields

_APP = "argosy_services.ray_app"
_CLUSTER = "argosy_services.cluster"
# Calls that one replica works at. What an engine or a batcher cannot take it refuses itself, with a reason.
_MANY = 1_000
# Each machine's own.
_LOCAL = {"tls_certificate", "tls_key"}
# Of the sections of other services, and of the cluster's: names of models, and where the fleet keeps its notes.
SHARED = frozenset({"model", "dashboard_port"})
# Sections that concern all.
COMMON = frozenset({"metrics", "tracing"})
_ROUTING_STATS_S = 0.5

_SMALL = {
    # Handles and the proxy speak gRPC with replicas, at half the cost of actor calls, and a dead proxy's streams end.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
_PRODUCTION = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # A reload of HAProxy must not cut the longest stream.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": "1000",
    "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": "1000",
}


def environment(settings: Settings) -> dict[str, str]:
    """Variables that every Ray process of the fleet must be started with."""
    cluster = settings.cluster
    profile = _PRODUCTION if cluster.profile == "production" else _SMALL
    dsn = settings.database.dsn.get_secret_value()
    return {
        # Not part of the configuration, which everybody may read.
        **({"ARGOSY_DATABASE__DSN": dsn} if dsn else {}),
        **profile,
        # Ray starts its workers at 15, behind whatever else runs on the machine, and callers wait for them.
        "RAY_worker_niceness": "0",
        # A worker of Ray has its heaps before a replica could limit them; see `process.begin`.
        "MALLOC_ARENA_MAX": str(ARENAS),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(cluster.haproxy_stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(cluster.haproxy_metrics_port),
        # Finds a dead proxy in a second instead of ten.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(settings.max_message_bytes),
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(max(settings.max_message_bytes, 64 << 20)),
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }


def serve_config(settings: Settings) -> dict[str, Any]:
    """The configuration that Ray Serve's REST interface and `serve deploy` take (`ServeDeploySchema`)."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.host, "port": settings.cluster.http_port},
        "grpc_options": {"port": settings.port, "grpc_servicer_functions": _servicer_functions()},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [_application(settings, area, _deployments(settings)[area]) for area in _areas()],
    }


def _areas() -> list[str]:
    return [name.split(".")[2] for name in SERVICES]


def _servicer_functions() -> list[str]:
    adders = [
        f"argosy.api.{area}.v1.{area}_service_pb2_grpc.add_{area.title()}ServiceServicer_to_server" for area in _areas()
    ]
    return [f"{_CLUSTER}.hooks.install", *adders]


def _application(settings: Settings, area: str, deployments: list[dict[str, Any]]) -> dict[str, Any]:
    given, live = _split(settings, area)
    for deployment in deployments:
        deployment["user_config"] = live
    return {
        "name": area,
        "route_prefix": f"/{area}",
        "import_path": f"{_APP}:{area}",
        "args": given,
        "deployments": deployments,
    }


def _split(settings: Settings, area: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What replicas of a service are made with, and what they take over while they run. Both only name what differs
    from the defaults and concerns this service: changing anything else restarts none of its replicas.
    """
    dumped = settings.model_dump(exclude=_LOCAL, exclude_defaults=True)
    everything = to_jsonable_python(_without_secrets(dumped))
    if settings.data_dir == default_data_dir():
        # Each machine has its own home directory.
        del everything["data_dir"]
    fixed: dict[str, Any] = {}
    live: dict[str, Any] = {}
    for name, value in everything.items():
        if not isinstance(value, dict):
            (live if name in live_fields(Settings) else fixed)[name] = value
            continue
        changing = live_fields(type(getattr(settings, name)))
        needed = set(value) if name == area or name in COMMON else set(value) & SHARED
        if rest := {key: value[key] for key in value if key in needed - changing}:
            fixed[name] = rest
        if rest := {key: value[key] for key in value if key in needed & changing}:
            live[name] = rest
    return fixed, live


def _without_secrets(part: Any) -> Any:
    """The same without secrets, and without what held nothing else. Everybody may read the configuration, and a mask
    would go before the secret itself, which replicas read from their environment or file.
    """
    if isinstance(part, Mapping):
        return {key: _without_secrets(value) for key, value in part.items() if not _is_secret(value)}
    if isinstance(part, tuple | list):
        return [_without_secrets(item) for item in part if not _is_secret(item)]
    return part


def _is_secret(part: Any) -> bool:
    """Whether it is a secret, or consists of secrets."""
    if isinstance(part, Mapping | tuple | list) and part:
        return all(map(_is_secret, part.values() if isinstance(part, Mapping) else part))
    return isinstance(part, SecretStr)


def _deployments(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    cluster = settings.cluster
    ongoing = {"target_ongoing_requests": 16}
    embedding_policy = {"policy": {"policy_function": f"{_CLUSTER}.scaling:EmbeddingScaling"}}
    return {
        "tokenization": [_deployment(settings, "Tokenization", cluster.tokenization, ongoing)],
        "generation": [
            _deployment(settings, "Generation", cluster.generation, {"target_ongoing_requests": 256}),
            _engine(settings),
        ],
        "embeddings": [_deployment(settings, "Embeddings", cluster.embeddings, embedding_policy)],
        "adapters": [_deployment(settings, "Adapters", Replicas(), {})],
        "agents": [_deployment(settings, "Agents", cluster.agents, ongoing)],
    }


def _engine(settings: Settings) -> dict[str, Any]:
    cluster = settings.cluster
    limits = {"waiting_tokens": cluster.engine_waiting_tokens, "kv_use": cluster.engine_kv_use}
    policy = {"policy_function": f"{_CLUSTER}.scaling:EngineScaling", "policy_kwargs": limits}
    deployment = _deployment(settings, "Engine", cluster.engine, {"policy": policy})
    deployment["request_router_config"] = {
        "request_router_class": f"{_CLUSTER}.router:EngineRouter",
        "request_routing_stats_period_s": _ROUTING_STATS_S,
    }
    if cluster.engine_gpus > 1:
        del deployment["ray_actor_options"]["num_gpus"]
        deployment.update(placement(cluster.engine.cpus, cluster.engine_gpus))
    return deployment


def placement(cpus: float, gpus: int) -> dict[str, Any]:
    """Bundles of an engine that spans GPUs: one each, on one node, because its parts talk at every layer.

    The replica's own process has its place in the first bundle.
    """
    first: Mapping[str, float] = {"CPU": cpus, "GPU": 1}
    return {
        "placement_group_bundles": [dict(first), *({"CPU": 1, "GPU": 1} for _ in range(gpus - 1))],
        "placement_group_strategy": "STRICT_PACK",
    }


def _deployment(settings: Settings, name: str, replicas: Replicas, scaling: Mapping[str, Any]) -> dict[str, Any]:
    cluster = settings.cluster
    deployment: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": _MANY,
        "graceful_shutdown_timeout_s": cluster.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": 30,
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
    }
    if (scaling and replicas.max > 1) or replicas.min == 0:
        deployment["autoscaling_config"] = {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "upscale_delay_s": cluster.upscale_seconds,
            "downscale_delay_s": cluster.downscale_seconds,
            "metrics_interval_s": 1.0,
            "look_back_period_s": max(2.0, cluster.upscale_seconds),
            **scaling,
        }
    else:
        deployment["num_replicas"] = replicas.min
    return deployment
