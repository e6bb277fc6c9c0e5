"""What the chart tells Ray Serve is what `argosy deploy` would tell it with the same settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from argosy_services.cluster.serve_config import serve_config
from argosy_services.settings import Settings

from .conftest import CHART, Render, of_kind

BASE = CHART / "ci/ray-cpu-values.yaml"
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "of their own defaults": {"generation": {"max_batch": 64}, "log_level": "info", "max_message_bytes": 16 << 20},
    "in place and not": {
        "log_level": "debug",
        "log_format": "console",
        "generation": {
            "model": "hf://somebody/something",
            "max_waiting": 7,
            "dtype": "float32",
            "kv_cache_tokens": 1 << 20,
        },
        "embeddings": {"model": "another", "max_batch_tokens": 99, "threads": 3},
        "adapters": {"roots": ["/srv/adapters", "/srv/more"], "max_size_bytes": 1 << 33},
        "agents": {"max_running": 3},
    },
    "of all services": {
        "tracing": {"endpoint": "http://collector:4317", "sample_ratio": 0.25},
        "metrics": {"max_tenants": 7, "vllm_names": True, "tenant_names": {"0a1b": "shop"}},
        "agents": {"delegate": True},
    },
    "tools of other programs": {
        "agents": {
            "mcp": {
                "search": {"url": "https://search.example.org/mcp", "approval": "never"},
                "files": {"command": ["mcp-server-files", "/srv/docs"], "timeout_s": 5},
            },
            "http_hosts": ["*.example.org"],
        }
    },
    "one of each": {
        "cluster": {
            name: {"min": 1, "max": 1} for name in ("tokenization", "generation", "embeddings", "agents", "engine")
        }
    },
    "down to zero": {"cluster": {"engine": {"min": 0, "max": 1}, "agents": {"min": 0, "max": 5, "cpus": 0.25}}},
    "other scaling": {
        "cluster": {
            **{"upscale_seconds": 0.5, "downscale_seconds": 45.5, "engine_waiting_tokens": 9, "engine_kv_use": 1},
            **{"profile": "small", "embeddings": {"max": 3, "cpus": 2}},
        }
    },
}
ON_GPUS: dict[str, dict[str, Any]] = {
    "one GPU": {"cluster": {"engine": {"min": 1, "max": 8, "gpus": 1, "cpus": 4}}},
    "four GPUs": {
        "generation": {"engine": "tensorrt_llm", "tensorrt_llm": {"tensor_parallel_size": 4}},
        "cluster": {"engine_gpus": 4, "engine": {"min": 2, "max": 2, "cpus": 2}},
    },
}


@pytest.mark.parametrize("name", [*SETTINGS, *ON_GPUS])
def test_it_is_what_the_command_would_deploy(manifests: Render, tmp_path: Path, name: str) -> None:
    given = {**SETTINGS, **ON_GPUS}[name]
    values: dict[str, Any] = {"mode": "ray", "insecure": True, "drainSeconds": 321, "settings": given}
    values["database"] = {"existingSecret": "argosy-database"}
    values["ray"] = {"groups": {"gpu": {"enabled": name in ON_GPUS}}}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))

    (service,) = of_kind(manifests(file), "RayService")
    told = json.loads(service["spec"]["serveConfigV2"])

    cluster = {"profile": "production", **given.get("cluster", {}), "drain_seconds": 321}
    of_the_chart: dict[str, Any] = {"host": "0.0.0.0", "insecure": True, "data_dir": "/var/lib/argosy"}
    wanted = serve_config(Settings(**{**given, **of_the_chart, "cluster": cluster}))
    assert _without_placement(told) == json.loads(json.dumps(wanted))


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_every_case_is_what_ray_serve_reads(manifests: Render) -> None:
    from ray.serve.schema import ServeDeploySchema

    for case in sorted((CHART / "ci").glob("ray-*-values.yaml")):
        (service,) = of_kind(manifests(case), "RayService")
        ServeDeploySchema.model_validate(json.loads(service["spec"]["serveConfigV2"]))


def test_replicas_run_where_their_group_is(manifests: Render) -> None:
    (service,) = of_kind(manifests(BASE, "--set", "ray.placement.agents=cpu"), "RayService")
    offered = {
        group["groupName"]: json.loads(group["rayStartParams"]["resources"].strip("'"))
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    wanted = {
        deployment["name"]: next(iter(deployment["ray_actor_options"]["resources"]))
        for application in json.loads(service["spec"]["serveConfigV2"])["applications"]
        for deployment in application["deployments"]
    }
    assert offered == {"gateway": {"argosy-gateway": 1000}, "cpu": {"argosy-cpu": 1000}}
    assert wanted == {
        **dict.fromkeys(("Tokenization", "Generation", "Adapters"), "argosy-gateway"),
        **dict.fromkeys(("Agents", "Embeddings", "Engine"), "argosy-cpu"),
    }


def test_engines_on_gpus_ask_for_gpus_alone(manifests: Render) -> None:
    (service,) = of_kind(manifests(CHART / "ci/ray-gpu-trtllm-values.yaml"), "RayService")
    generation = json.loads(service["spec"]["serveConfigV2"])["applications"][1]
    (engine,) = (each for each in generation["deployments"] if each["name"] == "Engine")
    assert "resources" not in engine["ray_actor_options"]
    assert engine["placement_group_bundles"] == [{"CPU": 4, "GPU": 1}, {"CPU": 1, "GPU": 1}]


def test_a_service_whose_group_is_off_is_refused(helm: Any) -> None:
    done = helm("template", CHART, "--values", BASE, "--set", "ray.groups.cpu.enabled=false")
    assert done.returncode == 1
    assert "ray.groups.cpu.enabled is false, and engine runs there" in done.stderr


def test_ray_itself_is_the_one_that_is_pinned(manifests: Render) -> None:
    import ray

    (service,) = of_kind(manifests(BASE), "RayService")
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def _without_placement(told: dict[str, Any]) -> dict[str, Any]:
    told = copy.deepcopy(told)
    for application in told["applications"]:
        for deployment in application["deployments"]:
            deployment["ray_actor_options"].pop("resources", None)
    return told
