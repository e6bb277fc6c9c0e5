"""What the chart makes of every file below ci/ is what Kubernetes, KubeRay and the Prometheus Operator take."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from observed_fleet import PrometheusUnavailableError, binaries, running_prometheus

from argosy_services.testing import free_ports

from .conftest import CHART, ROOT, Manifest, Render, of_kind, pod_templates

# The oldest that the chart takes, one in the middle, and the newest whose schemas there are.
KUBERNETES = ("1.27", "1.32", "1.37")
CUSTOM = ("ray.io", "monitoring.coreos.com")
# There is no schema of KEDA's here.
UNCHECKED = ("keda.sh",)


def _group(manifest: Manifest) -> str:
    return manifest["apiVersion"].rpartition("/")[0]


def test_helm_has_nothing_to_say(helm: Callable[..., Any], case: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", case)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(manifests: Render, case: Path, version: str) -> None:
    checked = 0
    for manifest in manifests(case):
        if _group(manifest) not in (*CUSTOM, *UNCHECKED):
            kubernetes_validate.validate(manifest, version, strict=True)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_pods_of_ray(manifests: Render, case: Path, version: str) -> None:
    for name, template in pod_templates(manifests(case)):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": name, **pod["metadata"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_custom_resources_fit_their_definitions(manifests: Render, case: Path) -> None:
    schemas = _schemas()
    for manifest in manifests(case):
        if _group(manifest) in CUSTOM:
            version = manifest["apiVersion"].rpartition("/")[2]
            jsonschema.Draft202012Validator(schemas[manifest["kind"]][version]).validate(manifest)


def test_a_field_that_no_definition_has_is_found() -> None:
    schema = _schemas()["PodMonitor"]["v1"]
    monitor = {"spec": {"selector": {}, "podMetricsEndpoints": [{"port": "metrics", "intervall": "1s"}]}}
    with pytest.raises(jsonschema.ValidationError, match="intervall"):
        jsonschema.Draft202012Validator(schema).validate(monitor)


def test_keda_scales_the_deployment(manifests: Render) -> None:
    found = manifests(CHART / "ci/embedded-keda-values.yaml")
    (scaled,) = of_kind(found, "ScaledObject")
    (deployment,) = of_kind(found, "Deployment")
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "4096"
    # The metric is one that servers have.
    name = re.search(r"argosy_\w+", trigger["metadata"]["query"])
    assert name is not None
    assert f"`{name[0]}`" in (ROOT / "docs/metrics.md").read_text()


def test_the_same_values_give_the_same_bytes(helm: Callable[..., Any], case: Path) -> None:
    first, second = (helm("template", "fleet", CHART, "--values", case).stdout for _ in range(2))
    assert first == second
    assert first


def test_selectors_find_the_pods(manifests: Render, case: Path) -> None:
    """Fails when a selector asks for a label that pods do not have."""
    found = manifests(case)
    # KubeRay sets these on the pods that it makes.
    pods = [
        {**template["metadata"]["labels"], "ray.io/group": name, "ray.io/serve": "true"}
        for name, template in pod_templates(found)
    ]
    selectors = [
        manifest["spec"]["selector"].get("matchLabels", manifest["spec"]["selector"])
        for manifest in found
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "Deployment", "PodMonitor")
    ]
    selectors += [manifest["spec"]["podSelector"]["matchLabels"] for manifest in of_kind(found, "NetworkPolicy")]
    selectors += [
        spread["labelSelector"]["matchLabels"]
        for _, template in pod_templates(found)
        for spread in template["spec"].get("topologySpreadConstraints", ())
    ]
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector


def test_what_monitors_ask_for_is_there(manifests: Render, case: Path) -> None:
    found = manifests(case)
    services = {port["name"] for service in of_kind(found, "Service") for port in service["spec"]["ports"]}
    pods = {
        port["name"]
        for _, template in pod_templates(found)
        for container in template["spec"]["containers"]
        for port in container["ports"]
    }
    for monitor in of_kind(found, "ServiceMonitor"):
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= services
    for monitor in of_kind(found, "PodMonitor"):
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= pods


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_rules_find_what_monitors_bring(manifests: Render, kind: str) -> None:
    """Fails when series come under a job or a name that no rule reads."""
    monitors = [monitor for case in sorted((CHART / "ci").glob("*.yaml")) for monitor in of_kind(manifests(case), kind)]
    assert monitors
    for monitor in monitors:
        for endpoint in monitor["spec"]["podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"]:
            if endpoint["port"] != "metrics":
                continue
            assert {"targetLabel": "job", "replacement": "argosy"} in endpoint["relabelings"]
            rules = endpoint.get("metricRelabelings", ())
            assert kind == "ServiceMonitor" or [
                functools.reduce(_renamed, rules, name)
                for name in ("ray_argosy_ready", "ray_vllm_num_requests_waiting", "ray_node_cpu")
            ] == ["argosy_ready", "vllm:num_requests_waiting", "ray_node_cpu"]


# Labels that the Prometheus Operator gives the targets of a monitor, besides those of `relabelings`.
TARGET_LABELS = {
    "ServiceMonitor": {"namespace", "service", "pod", "container", "endpoint", "job", "instance"},
    "PodMonitor": {"namespace", "pod", "container", "endpoint", "job", "instance"},
}


@pytest.mark.parametrize("kind", TARGET_LABELS)
def test_metrics_keep_their_own_labels(manifests: Render, kind: str) -> None:
    """Fails where Prometheus would rename a label, by which rules and dashboards then find nothing."""
    rows = re.findall(r"(?m)^\| `argosy_\w+` \| \w+ \| [^|]+ \| ([^|]+) \|", (ROOT / "docs/metrics.md").read_text())
    own = {label for row in rows for label in re.findall(r"`(\w+)`", row)}
    assert {"service", "method", "model"} <= own
    for case in sorted((CHART / "ci").glob("*.yaml")):
        for monitor in of_kind(manifests(case), kind):
            for endpoint in monitor["spec"]["podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"]:
                given = {rule["targetLabel"] for rule in endpoint["relabelings"]} | TARGET_LABELS[kind]
                assert endpoint.get("honorLabels") or not own & given


def test_prometheus_finds_the_services_of_calls(manifests: Render, tmp_path: Path) -> None:
    """A real one, with what the Prometheus Operator makes of the ServiceMonitor."""
    try:
        program, _ = binaries()
    except PrometheusUnavailableError as error:
        pytest.skip(str(error))
    (monitor,) = of_kind(manifests(CHART / "ci/embedded-keda-values.yaml"), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    snake_case = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    target = dict.fromkeys(TARGET_LABELS["ServiceMonitor"] - {"job", "instance"}, "fleet-argosy")
    with _page('argosy_rpc_total{service="GenerationService"} 1\nargosy_ready 1\n') as address:
        job = {
            "job_name": "serviceMonitor/models/fleet-argosy/0",
            "scrape_interval": "1s",
            "honor_labels": endpoint.get("honorLabels", False),
            "static_configs": [{"targets": [address], "labels": target}],
            "relabel_configs": [
                {snake_case.get(key, key): value for key, value in rule.items()} for rule in endpoint["relabelings"]
            ],
        }
        configuration = tmp_path / "prometheus.yml"
        configuration.write_text(yaml.safe_dump({"scrape_configs": [job]}))
        (port,) = free_ports(1)
        with running_prometheus(program, configuration, port) as prometheus:
            give_up = time.monotonic() + 20
            while not (calls := prometheus.query('argosy_rpc_total{job="argosy"}')):
                assert time.monotonic() < give_up
                time.sleep(0.1)
            (ready,) = prometheus.query("argosy_ready")
    assert calls[0]["metric"]["service"] == "GenerationService"
    # Those without such a label have the Service's name, by which the ScaledObject asks.
    assert ready["metric"]["service"] == "fleet-argosy"


@contextmanager
def _page(text: str) -> Iterator[str]:
    """A server of one page of metrics, by its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_helm_says_what_follows_from_the_values(helm: Callable[..., Any]) -> None:
    """NOTES.txt, which `helm template` leaves out."""

    def notes(*values: str) -> str:
        arguments = [word for value in ("insecure=true", *values) for word in ("--set", value)]
        done = helm("install", "fleet", CHART, "--namespace", "models", "--dry-run=client", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    assert "port-forward service/fleet-argosy 50051:50051\n" in notes()
    assert "port-forward service/fleet-argosy 50051:443\n" in notes("service.port=443")
    alone = "adapters, aliases and agent runs of its own"
    assert alone in notes("replicas=2")
    assert alone not in notes("replicas=2", "database.existingSecret=dsn")
    assert alone not in notes()
    on_ray = notes("mode=ray", "database.existingSecret=dsn")
    assert "port-forward service/fleet-argosy 50051\n" in on_ray
    assert "engines do not see the files of adapters" in on_ray
    assert "WARNING: persistence" not in notes("persistence.enabled=true")


def _renamed(name: str, rule: dict[str, Any]) -> str:
    return re.sub(f"^{rule['regex']}$", rule["replacement"].replace("$1", r"\1"), name)


def test_every_dashboard_comes_in_a_config_map(manifests: Render) -> None:
    files = {file.name: file.read_text() for file in (CHART / "files/dashboards").glob("*.json")}
    found = of_kind(manifests(CHART / "ci/ray-cpu-values.yaml"), "ConfigMap")
    brought = {
        name: text
        for each in found
        if "grafana_dashboard" in each["metadata"]["labels"]
        for name, text in each["data"].items()
    }
    assert {name: text.strip() for name, text in brought.items()} == {
        name: text.strip() for name, text in files.items()
    }


def test_rules_come_as_they_are_or_are_missed_by_name(helm: Callable[..., Any]) -> None:
    rules = CHART / "files/rules.yaml"
    case = CHART / "ci/minimal-values.yaml"
    done = helm("template", "fleet", CHART, "--values", case, "--set", "metrics.prometheusRule.enabled=true")
    if not rules.is_file():
        assert "files/rules.yaml" in done.stderr
        return
    (rule,) = of_kind([each for each in yaml.safe_load_all(done.stdout) if each], "PrometheusRule")
    assert rule["spec"]["groups"] == yaml.safe_load(rules.read_text())["groups"]
    jsonschema.Draft202012Validator(_schemas()["PrometheusRule"]["v1"]).validate(rule)


@functools.cache
def _schemas() -> dict[str, dict[str, Any]]:
    """Schemas of custom resources by kind and version; they are not part of the project."""
    directories = [parent / "shared/crds" for parent in Path(__file__).parents]
    directory = next((directory for directory in directories if directory.is_dir()), None)
    if directory is None:
        pytest.skip("there is no ../shared/crds with the schemas of KubeRay and the Prometheus Operator")
    found = [json.loads(file.read_text()) for file in directory.glob("*.schema.json")]
    return {each["kind"]: {name: _strict(part) for name, part in each["versions"].items()} for each in found}


def _strict(schema: Any) -> Any:
    """The same schema, which refuses what it does not list."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(part) for key, part in schema.items()}
    listed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    # Of metadata these schemas say only that it is an object.
    if listed and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    return strict
