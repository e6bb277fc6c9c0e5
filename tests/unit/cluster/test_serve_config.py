"""What Ray Serve is told."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr
from ray.serve.schema import ServeDeploySchema

from argosy_services.agents.toolbox import Toolbox
from argosy_services.cluster.serve_config import environment, placement, serve_config
from argosy_services.settings import AgentSettings, ClusterSettings, McpServerSettings, Replicas, Settings

# Ray wants the interval set by the environment, as it is, and also warns where it is not set here.
pytestmark = pytest.mark.filterwarnings("ignore:.*metrics_interval_s:DeprecationWarning")


def deployments(settings: Settings) -> dict[str, dict[str, object]]:
    config = serve_config(settings)
    return {found["name"]: found for application in config["applications"] for found in application["deployments"]}


def test_ray_serve_takes_it_and_every_name_in_it_exists() -> None:
    config = serve_config(Settings())
    ServeDeploySchema.model_validate(config)
    paths = [application["import_path"] for application in config["applications"]]
    paths += [path.replace(".install", ":install") for path in config["grpc_options"]["grpc_servicer_functions"][:1]]
    paths += [path.rpartition(".")[0] + ":" + path.rpartition(".")[2] for path in _servicer_functions(config)]
    for path in paths:
        module, _, name = path.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    assert [application["name"] for application in config["applications"]] == [
        "tokenization",
        "generation",
        "embeddings",
        "adapters",
        "agents",
    ]


def _servicer_functions(config: dict[str, dict[str, list[str]]]) -> list[str]:
    return config["grpc_options"]["grpc_servicer_functions"][1:]


def test_no_secret_is_in_it_and_only_what_differs_from_the_defaults() -> None:
    keys = (SecretStr("not-for-others"),)
    settings = Settings(api_keys=keys, priority_keys=keys, drain_seconds=7)
    assert "not-for-others" not in repr(serve_config(settings))
    given = serve_config(settings)["applications"][0]["args"]
    # Nor are secrets masked: each process reads them itself.
    assert given == {"drain_seconds": 7}


SEARCH = {"url": "https://search.example.org/mcp", "headers": {"Authorization": "Bearer not-for-others"}}
FILES = {"command": ["mcp-server-files"], "env": {"TOKEN": "not-for-others", "OTHER": "not-for-others-2"}}


def arguments(settings: Settings) -> dict[str, dict[str, object]]:
    """What the replicas of each service are made with, as Ray Serve hands it on."""
    return {found["name"]: found["args"] for found in json.loads(json.dumps(serve_config(settings)))["applications"]}


def test_secrets_within_sections_are_neither_shipped_nor_masked() -> None:
    given = {"mcp": {"search": {**SEARCH, "approval": "never"}, "files": FILES}, "python": True}
    settings = Settings(agents=given, database={"dsn": "postgresql://me:not-for-others@host/name"})  # type: ignore[arg-type]
    assert "not-for-others" not in repr(serve_config(settings))
    assert "***" not in repr(serve_config(settings))
    assert arguments(settings)["agents"] == {
        "agents": {
            "python": True,
            "mcp": {
                "search": {"url": SEARCH["url"], "approval": "never"},
                "files": {"command": ["mcp-server-files"]},
            },
        }
    }
    assert arguments(settings)["generation"] == {}


@pytest.mark.parametrize("source", ["file", "variable of all servers", "variable of one server"])
def test_replicas_put_their_own_secrets_to_what_they_are_given(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"search": {"headers": SEARCH["headers"]}, "files": {"env": FILES["env"]}}
    if source == "file":
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump({"agents": {"mcp": secret}}))
        monkeypatch.setenv("ARGOSY_CONFIG", str(file))
    elif source == "variable of all servers":
        monkeypatch.setenv("ARGOSY_AGENTS__MCP", json.dumps(secret))
    else:
        # JSON again, because the name of a variable says nothing of capital letters.
        monkeypatch.setenv("ARGOSY_AGENTS__MCP__SEARCH__HEADERS", json.dumps(SEARCH["headers"]))
        monkeypatch.setenv("ARGOSY_AGENTS__MCP__FILES__ENV", json.dumps(FILES["env"]))
    whole = {"mcp": {"search": {**SEARCH, "approval": "never"}, "files": FILES}, "max_running": 3}
    given = arguments(Settings(agents=whole))  # type: ignore[arg-type]

    # As `Replica` does it.
    servers = Settings(**given["agents"]).agents.mcp  # type: ignore[arg-type]
    assert (servers["search"].url, servers["search"].approval) == (SEARCH["url"], "never")
    assert servers["search"].headers["Authorization"].get_secret_value() == "Bearer not-for-others"
    assert {name: value.get_secret_value() for name, value in servers["files"].env.items()} == FILES["env"]
    # The others have the secrets in their environment, too, and no use for them.
    for name in given.keys() - {"agents"}:
        assert not Settings(**given[name]).agents.mcp["search"].complete  # type: ignore[arg-type]


@pytest.mark.parametrize("server", [{}, {"approval": "never"}, {"command": ["x"], "url": "http://x"}])
def test_an_mcp_server_that_is_nowhere_or_twice_is_refused(server: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="either a command or a url"):
        Settings(agents={"mcp": {"search": server}})  # type: ignore[arg-type]


async def test_agents_refuse_an_mcp_server_of_which_they_know_secrets_only() -> None:
    server = McpServerSettings(headers={"Authorization": SecretStr("Bearer not-for-others")})
    with pytest.raises(ConnectionError, match="'search' has secrets and nothing else"):
        await Toolbox(AgentSettings(mcp={"search": server})).open()


def test_sections_that_concern_all_go_to_all() -> None:
    settings = Settings(
        metrics={"max_tenants": 7, "tenant_names": {"1f": "shop"}},  # type: ignore[arg-type]
        tracing={"endpoint": "http://collector:4317"},  # type: ignore[arg-type]
        agents={"delegate": True},  # type: ignore[arg-type]
    )
    given = arguments(settings)
    everywhere = {
        "metrics": {"max_tenants": 7, "tenant_names": {"1f": "shop"}},
        "tracing": {"endpoint": "http://collector:4317"},
    }
    assert given.pop("agents") == {**everywhere, "agents": {"delegate": True}}
    assert len(given) == 4
    assert all(each == everywhere for each in given.values())


def test_what_a_replica_takes_over_is_not_what_it_is_made_of() -> None:
    given = {"max_waiting": 7, "threads": 2}
    config = serve_config(Settings(generation=given, log_level="error", cluster={"engine": {"max": 3}}))  # type: ignore[arg-type]
    applications = {found["name"]: found for found in config["applications"]}
    assert applications["generation"]["args"] == {"generation": {"threads": 2}}
    live = [deployment["user_config"] for deployment in applications["generation"]["deployments"]]
    assert live == [{"log_level": "error", "generation": {"max_waiting": 7}}] * 2
    # Nothing of it concerns the others: they are not restarted.
    assert applications["embeddings"]["args"] == applications["agents"]["args"] == {}


def test_engines_scale_by_our_policy_and_the_registry_is_one() -> None:
    settings = Settings(cluster=ClusterSettings(engine=Replicas(min=0, max=3, cpus=0.5), engine_waiting_tokens=100))
    found = deployments(settings)
    scaling = found["Engine"]["autoscaling_config"]
    assert isinstance(scaling, dict)
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (0, 3)
    assert scaling["policy"]["policy_kwargs"]["waiting_tokens"] == 100
    assert found["Adapters"]["num_replicas"] == 1
    assert "autoscaling_config" not in found["Adapters"]


def test_an_engine_over_four_gpus_has_a_bundle_for_each_on_one_node() -> None:
    engine = deployments(Settings(cluster=ClusterSettings(engine_gpus=4)))["Engine"]
    assert engine["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 1}] * 4
    assert engine["placement_group_strategy"] == "STRICT_PACK"
    assert engine["ray_actor_options"] == {"num_cpus": 1.0}
    assert placement(2, 1)["placement_group_bundles"] == [{"CPU": 2, "GPU": 1}]
    ServeDeploySchema.model_validate(serve_config(Settings(cluster=ClusterSettings(engine_gpus=4))))


@pytest.mark.parametrize(("profile", "proxy"), [("small", None), ("production", "1")])
def test_production_puts_haproxy_before_replicas(profile: str, proxy: str | None) -> None:
    settings = Settings(cluster=ClusterSettings(profile=profile))  # type: ignore[arg-type]
    assert environment(settings).get("RAY_SERVE_ENABLE_HA_PROXY") == proxy
    assert environment(settings)["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] == str(settings.max_message_bytes)
