"""Every pod of the chart: what it may do, how it is probed, how it ends, and what it is told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from argosy_services.cluster.serve_config import environment
from argosy_services.settings import Settings

from .conftest import CHART, Manifest, Render, containers, of_kind, pod_templates

# What a Secret holds, in a form that the servers accept.
SECRETS = {
    "ARGOSY_DATABASE__DSN": "postgresql://argosy:secret@database/argosy",
    "ARGOSY_AGENTS__MCP": '{"search": {"headers": {"Authorization": "Bearer secret"}}}',
}
WRITABLE = {"/tmp", "/var/cache/argosy", "/var/lib/argosy"}


@pytest.fixture
def pods(manifests: Render, case: Path) -> list[tuple[str, Manifest]]:
    return list(pod_templates(manifests(case)))


def test_pods_are_as_restricted_as_pod_security_can_make_them(pods: list[tuple[str, Manifest]]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, profile Restricted, and some more."""
    assert pods
    for _, template in pods:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all(
            volume.keys() & {"emptyDir", "configMap", "secret", "persistentVolumeClaim"} for volume in _volumes(spec)
        )
        for container in containers(template):
            _assert_confined(container["securityContext"])
            assert not any("hostPort" in port for port in container.get("ports", ()))


def test_the_autoscalers_container_is_as_restricted(manifests: Render, case: Path) -> None:
    for service in of_kind(manifests(case), "RayService"):
        _assert_confined(service["spec"]["rayClusterConfig"]["autoscalerOptions"]["securityContext"])


def test_only_the_autoscaler_has_a_token_of_kubernetes(pods: list[tuple[str, Manifest]]) -> None:
    for name, template in pods:
        assert template["spec"]["automountServiceAccountToken"] is (name == "head")
        # KubeRay makes an account for the autoscaler only where none is named.
        assert ("serviceAccountName" in template["spec"]) is (name != "head")


def test_all_that_is_written_to_is_mounted(pods: list[tuple[str, Manifest]]) -> None:
    for _, template in pods:
        volumes = {volume["name"] for volume in _volumes(template["spec"])}
        for container in containers(template):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert mounts.keys() >= WRITABLE
            assert {mount["name"] for mount in mounts.values()} <= volumes
            env = _env(container)
            assert env["HOME"]["value"] == env["XDG_CACHE_HOME"]["value"] == "/var/cache/argosy"
            # A runtime cannot make the place of a mount within one that is read only.
            read_only = [path for path, mount in mounts.items() if mount.get("readOnly")]
            assert not any(path.startswith(f"{other}/") for path in mounts for other in read_only)


def test_every_container_says_what_it_needs(pods: list[tuple[str, Manifest]]) -> None:
    for _, template in pods:
        for container in containers(template):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_probes_ask_the_ports_that_servers_have(pods: list[tuple[str, Manifest]]) -> None:
    # Ray's agent has its port on every node; the others are named by what they are for.
    expected = {
        "server": ("grpc", "grpc", "grpc"),
        "head": ("dashboard", "dashboard", "dashboard"),
        "worker": (52365, "http", 52365),
    }
    for name, template in pods:
        container = template["spec"]["containers"][0]
        names = {port["containerPort"]: port["name"] for port in container["ports"]}
        asked = [_asked(container[kind]) for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
        told = tuple(names.get(port, port) for port in asked)
        assert told == expected.get(name, expected["worker"]), name


def test_ports_are_those_that_servers_listen_on(manifests: Render, case: Path) -> None:
    found = manifests(case)
    for name, template in pod_templates(found):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        if name == "server":
            settings = yaml.safe_load(_config(found)["settings.yaml"])
            assert ports == {"grpc": settings["port"], "metrics": settings["metrics_port"]}
        elif name != "head":
            (service,) = of_kind(found, "RayService")
            told = json.loads(service["spec"]["serveConfigV2"])
            assert ports["grpc"] == told["grpc_options"]["port"]
            assert ports["http"] == told["http_options"]["port"]
            (port,) = service["spec"]["serveService"]["spec"]["ports"]
            # Another name, or one that the head has too, and KubeRay takes another port.
            assert port == {"name": "serve", "port": ports["grpc"]}
            assert ports.get("proxy-metrics", 9101) == Settings().cluster.haproxy_metrics_port


def test_a_server_that_speaks_tls_is_not_probed_without(pods: list[tuple[str, Manifest]], case: Path) -> None:
    tls = yaml.safe_load(case.read_text()).get("tls", {}).get("enabled", False)
    for name, template in pods:
        if name == "server":
            probes = {key: part for key, part in template["spec"]["containers"][0].items() if key.endswith("Probe")}
            assert len(probes) == 3
            assert all(("exec" if tls else "grpc") in probe for probe in probes.values())


def test_a_pod_outlives_its_longest_call(pods: list[tuple[str, Manifest]], manifests: Render, case: Path) -> None:
    found = manifests(case)
    for _, template in pods:
        spec = template["spec"]
        stop = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        pause = float(stop[-1])
        assert spec["terminationGracePeriodSeconds"] > pause + _drain_seconds(found)


def test_variables_are_settings(pods: list[tuple[str, Manifest]]) -> None:
    """Fails when a name is misspelt: the servers would not notice."""
    for _, template in pods:
        for container in containers(template):
            for name in _env(container):
                if name.startswith("ARGOSY_") and name != "ARGOSY_CONFIG":
                    assert _is_setting(name), name


def test_servers_start_with_what_they_are_told(
    manifests: Render, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of a pod, read as the server in it reads them."""
    found = manifests(case)
    for name in [name for name in os.environ if name.startswith("ARGOSY_")]:
        monkeypatch.delenv(name)
    for name, template in pod_templates(found):
        for variable, entry in _env(template["spec"]["containers"][0]).items():
            monkeypatch.setenv(variable, entry.get("value", SECRETS.get(variable, "a-secret-of-16-b")))
        if name == "server":
            file = tmp_path / "settings.yaml"
            file.write_text(_config(found)["settings.yaml"])
            monkeypatch.setenv("ARGOSY_CONFIG", str(file))
        settings = Settings()
        assert settings.host == "0.0.0.0"
        assert settings.data_dir == Path("/var/lib/argosy")
        assert bool(settings.api_keys) is not settings.insecure
        for server in settings.agents.mcp.values():
            assert server.headers["Authorization"].get_secret_value() == "Bearer secret"
            # What is no secret comes with the file, and on Ray with what agents are made of.
            assert bool(server.url) is (name == "server")


def test_agents_on_ray_put_secrets_to_what_the_chart_tells_them(
    manifests: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    (service,) = of_kind(manifests(CHART / "ci/ray-cpu-values.yaml"), "RayService")
    given = {each["name"]: each["args"] for each in json.loads(service["spec"]["serveConfigV2"])["applications"]}
    monkeypatch.setenv("ARGOSY_INSECURE", "true")
    monkeypatch.setenv("ARGOSY_AGENTS__MCP", SECRETS["ARGOSY_AGENTS__MCP"])
    (server,) = Settings(**given["agents"]).agents.mcp.values()
    assert (server.url, server.approval) == ("https://search.example.org/mcp", "never")
    assert server.headers["Authorization"].get_secret_value() == "Bearer secret"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "RollingUpdate"),
        ({"persistence.enabled": "true"}, "Recreate"),
        ({"persistence.enabled": "true", "persistence.existingClaim": "models"}, "Recreate"),
        ({"persistence.enabled": "true", "database.existingSecret": "database"}, "Recreate"),
        # Another pod may mount the volume, but not write the SQLite file on it.
        ({"persistence.enabled": "true", "persistence.accessModes": "{ReadWriteMany}"}, "Recreate"),
        (
            {
                "persistence.enabled": "true",
                "persistence.accessModes": "{ReadWriteMany}",
                "database.existingSecret": "database",
            },
            "RollingUpdate",
        ),
        ({"persistence.enabled": "true", "strategy.rollingUpdate.maxSurge": "0"}, None),
        ({"strategy.type": "Recreate"}, "Recreate"),
    ],
)
def test_a_pod_that_has_its_volume_for_itself_goes_first(
    manifests: Render, values: dict[str, str], kind: str | None
) -> None:
    given = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    (deployment,) = of_kind(manifests(CHART / "ci/minimal-values.yaml", *given), "Deployment")
    strategy = deployment["spec"]["strategy"]
    assert strategy.get("type") == kind
    assert ("rollingUpdate" in strategy) is (kind != "Recreate")


def test_pods_may_call_what_they_need(manifests: Render, case: Path) -> None:
    values = yaml.safe_load(case.read_text())
    (policy,) = of_kind(manifests(case), "NetworkPolicy")
    if "egress" not in policy["spec"]:
        assert "Egress" not in policy["spec"]["policyTypes"]
        return
    allowed = {(port["port"], port["protocol"]) for rule in policy["spec"]["egress"] for port in rule.get("ports", ())}
    # Names, and the hub from which models are pulled.
    needed = {(53, "UDP"), (443, "TCP")}
    if values.get("database"):
        needed.add((5432, "TCP"))
    if values.get("mode") == "ray":
        # The API of Kubernetes, for the autoscaler, and other nodes on any port.
        needed.add((6443, "TCP"))
        assert any("ports" not in rule for rule in policy["spec"]["egress"])
        tolerant = values["ray"].get("faultTolerance", {})
        if tolerant.get("enabled"):
            needed.add((int(tolerant["redisAddress"].rpartition(":")[2]), "TCP"))
    assert needed <= allowed


def test_every_process_of_ray_has_rays_variables(manifests: Render, case: Path) -> None:
    values = yaml.safe_load(case.read_text())
    for name, template in pod_templates(manifests(case)):
        if name == "server":
            continue
        env = _env(template["spec"]["containers"][0])
        given = values.get("settings", {})
        cluster = {"profile": "production", **given.get("cluster", {})}
        wanted = environment(Settings(**{**given, "insecure": True, "cluster": cluster}))
        assert {key: env[key]["value"] for key in wanted} == wanted
        assert {key for key in env if key.startswith("RAY_")} == {key for key in wanted if key.startswith("RAY_")}


def test_a_changed_key_replaces_the_pods(manifests: Render) -> None:
    case = CHART / "ci/embedded-keda-values.yaml"
    before, after = (
        dict(pod_templates(manifests(case, *extra)))["server"]["metadata"]["annotations"]
        for extra in ((), ("--set", "apiKeys.keys={another-key-1,battery-staple-2}"))
    )
    assert before["checksum/keys"] != after["checksum/keys"]
    assert before["checksum/settings"] == after["checksum/settings"]


def test_models_are_there_before_servers_start(pods: list[tuple[str, Manifest]], case: Path) -> None:
    wanted = Settings(**yaml.safe_load(case.read_text()).get("settings", {}), insecure=True)
    for name, template in pods:
        pulls = [c["command"] for c in template["spec"].get("initContainers", ()) if c["name"] == "pull-models"]
        expected = [["argosy", "models", "pull", wanted.generation.model, wanted.embeddings.model]]
        assert pulls == ([] if name == "head" else expected)


def test_gpus_compile_before_they_serve(manifests: Render) -> None:
    groups = dict(pod_templates(manifests(CHART / "ci/ray-gpu-trtllm-values.yaml")))
    compiling = {name for name, pod in groups.items() if "compile-engine" in {c["name"] for c in containers(pod)}}
    assert compiling == {"gpu"}
    spec = groups["gpu"]["spec"]
    assert [container["name"] for container in spec["initContainers"]] == ["pull-models", "compile-engine"]
    assert spec["initContainers"][1]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert spec["containers"][0]["image"].endswith("-trtllm")
    assert {toleration["key"] for toleration in spec["tolerations"]} == {"nvidia.com/gpu"}
    assert spec["nodeSelector"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"


def test_compilation_takes_the_arguments_that_it_is_given(manifests: Render) -> None:
    """Fails when `argosy compile` has no such option."""
    from typer.testing import CliRunner

    from argosy_services.cli.app import app

    pod = dict(pod_templates(manifests(CHART / "ci/ray-gpu-trtllm-values.yaml")))["gpu"]
    program, *arguments = pod["spec"]["initContainers"][1]["command"]
    assert program == "argosy"
    # --help comes after the others are parsed.
    result = CliRunner().invoke(app, [*arguments, "--no-such-option"])
    assert "--no-such-option" in result.output
    options = CliRunner(env={"COLUMNS": "200"}).invoke(app, [arguments[0], "--help"]).output
    for argument in arguments[2:]:
        assert argument.split("=")[0] in options


def _assert_confined(context: Manifest) -> None:
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _volumes(spec: Manifest) -> list[Manifest]:
    return spec["volumes"]


def _env(container: Manifest) -> dict[str, Manifest]:
    env = container["env"]
    named = {entry["name"]: entry for entry in env}
    assert len(named) == len(env)
    return named


def _asked(probe: Manifest) -> int | str:
    if "exec" in probe:
        return int(probe["exec"]["command"][-1])
    return (probe.get("grpc") or probe["httpGet"])["port"]


def _config(found: list[Manifest]) -> dict[str, str]:
    return next(
        manifest["data"] for manifest in of_kind(found, "ConfigMap") if manifest["metadata"]["name"] == "fleet-argosy"
    )


def _drain_seconds(found: list[Manifest]) -> float:
    return max(_drains(found))


def _drains(found: list[Manifest]) -> Iterator[float]:
    config = _config(found)
    if "settings.yaml" in config:
        yield yaml.safe_load(config["settings.yaml"])["drain_seconds"]
    for service in of_kind(found, "RayService"):
        for application in json.loads(service["spec"]["serveConfigV2"])["applications"]:
            yield from (deployment["graceful_shutdown_timeout_s"] for deployment in application["deployments"])


def _is_setting(name: str) -> bool:
    section: Any = Settings
    for part in name.removeprefix("ARGOSY_").lower().split("__"):
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return False
        section = field.annotation
    return True
