"""Values that are wrong are refused before anything is installed, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from argosy_services.settings import Settings

from .conftest import CHART

RAY = {"mode": "ray"}
# A name for it, the values, where helm must say that it is wrong, and what it must say.
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown mode", {"mode": "swarm"}, "/mode", "'embedded', 'ray'"),
    ("misspelt value", {"replica": 3}, "", "'replica' not allowed"),
    ("misspelt nested value", {"image": {"repo": "argosy"}}, "/image", "'repo' not allowed"),
    (
        "misspelt setting",
        {"settings": {"generation": {"max_batchs": 3}}},
        "/settings/generation",
        "'max_batchs' not allowed",
    ),
    (
        "setting of another type",
        {"settings": {"generation": {"threads": "two"}}},
        "/settings/generation/threads",
        "want integer",
    ),
    (
        "setting out of range",
        {"settings": {"generation": {"max_batch": 0}}},
        "/settings/generation/max_batch",
        "got 0, want 1",
    ),
    ("setting that is no choice", {"settings": {"log_level": "chatty"}}, "/settings/log_level", "'debug', 'info'"),
    ("setting of the chart", {"settings": {"port": 9}}, "/settings", "'port' not allowed"),
    ("secret among settings", {"settings": {"api_keys": "secret-key"}}, "/settings", "'api_keys' not allowed"),
    ("port of the chart", {"settings": {"cluster": {"http_port": 1}}}, "/settings/cluster", "'http_port' not allowed"),
    ("short key", {"apiKeys": {"keys": ["short"]}}, "/apiKeys/keys/0", "got 5, want 8"),
    ("key with a comma", {"apiKeys": {"keys": ["two,keys-in-one"]}}, "/apiKeys/keys/0", "does not match"),
    ("certificate that is none", {"tls": {"certificate": "tls.crt"}}, "/tls/certificate", "does not match"),
    ("replicas as text", {"replicas": "three"}, "/replicas", "got string, want integer"),
    ("no draining", {"drainSeconds": 0}, "/drainSeconds", "got 0, want 1"),
    ("draining beyond the servers'", {"drainSeconds": 4000}, "/drainSeconds", "got 4,000, want 3,600"),
    (
        "memory without unit",
        {"resources": {"limits": {"memory": "8 GB"}}},
        "/resources/limits/memory",
        "does not match",
    ),
    ("size of no disk", {"persistence": {"size": "lots"}}, "/persistence/size", "does not match"),
    ("unknown access mode", {"persistence": {"accessModes": ["RWX"]}}, "/persistence/accessModes/0", "'ReadWriteMany'"),
    ("unknown GPU", {"compile": {"gpu": "h900"}}, "/compile/gpu", "'h100'"),
    ("unknown variant", {"image": {"variant": "rocm"}}, "/image/variant", "'cpu', 'cuda', 'trtllm'"),
    (
        "two autoscalers",
        {"autoscaling": {"enabled": True}, "keda": {"enabled": True}},
        "/keda/enabled",
        "must be false",
    ),
    ("zero pods unseen", {"keda": {"minReplicas": 0}}, "/keda/triggers", "got 0, want 1"),
    ("TLS on Ray", {**RAY, "tls": {"enabled": True}}, "/tls/enabled", "must be false"),
    ("HPA on Ray", {**RAY, "autoscaling": {"enabled": True}}, "/autoscaling/enabled", "must be false"),
    (
        "monitor of the other mode",
        {"metrics": {"podMonitor": {"enabled": True}}},
        "/metrics/podMonitor/enabled",
        "must be false",
    ),
    ("placement on no group", {"ray": {"placement": {"engine": "tpu"}}}, "/ray/placement/engine", "'gateway', 'cpu'"),
    (
        "fault tolerance without Redis",
        {"ray": {"faultTolerance": {"enabled": True}}},
        "/ray/faultTolerance/redisAddress",
        "got 0, want 1",
    ),
    ("toleration that is none", {"tolerations": [{"effect": "Never"}]}, "/tolerations/0/effect", "'NoSchedule'"),
    ("variable without name", {"extraEnv": [{"value": "x"}]}, "/extraEnv/0", "'name'"),
    ("root", {"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser", "got 0, want 1"),
    ("label with a space", {"podLabels": {"team": "my team"}}, "/podLabels/team", "does not match"),
]
# Ways to several pods.
SEVERAL: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 2},
    "autoscaling": {"autoscaling": {"enabled": True}},
    "keda": {"keda": {"enabled": True}},
}
# What only a template can tell.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no keys", {"insecure": False}, "set apiKeys.existingSecret or apiKeys.keys, or insecure=true"),
    (
        "priority without key",
        {"insecure": False, "apiKeys": {"keys": ["12345678"], "priorityKeys": ["87654321"]}},
        "apiKeys.priorityKeys",
    ),
    ("TLS without certificate", {"tls": {"enabled": True}}, "set tls.existingSecret, or tls.certificate and tls.key"),
    (
        "bounds out of order",
        {"autoscaling": {"minReplicas": 9, "maxReplicas": 2}},
        "minReplicas 9 is above maxReplicas 2",
    ),
    ("a claim for one pod", {"replicas": 2, "persistence": {"enabled": True}}, "persistence.accessModes"),
    ("Ray without a database", RAY, "database.existingSecret: in mode ray"),
    *(
        (
            f"one SQLite file for several pods: {name}",
            {**several, "persistence": {"enabled": True, "accessModes": ["ReadWriteMany"]}},
            "database.existingSecret: several pods would write one SQLite file",
        )
        for name, several in SEVERAL.items()
    ),
    (
        "a claim of one's own for several pods",
        {"replicas": 2, "persistence": {"enabled": True, "existingClaim": "models"}},
        "database.existingSecret: several pods",
    ),
]


def _template(helm: Any, tmp_path: Path, values: dict[str, Any]) -> Any:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"insecure": True, **values}))
    return helm("template", "fleet", CHART, "--values", file)


@pytest.mark.parametrize(("values", "where", "what"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_values_are_refused_by_name(
    helm: Any, tmp_path: Path, values: dict[str, Any], where: str, what: str
) -> None:
    done = _template(helm, tmp_path, values)
    assert done.returncode == 1
    # Conditions are told with a line of their own above what they ask for.
    lines = [line.strip() for line in done.stderr.splitlines() if "- at " in line and " failed" not in line]
    (line,) = lines
    assert line.startswith(f"- at '{where}': ")
    assert what in line


@pytest.mark.parametrize(("values", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_values_that_contradict_each_other(helm: Any, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    done = _template(helm, tmp_path, values)
    assert done.returncode == 1
    assert message in done.stderr


def test_what_is_right_is_not_refused(helm: Any, tmp_path: Path) -> None:
    assert _template(helm, tmp_path, {}).returncode == 0


@pytest.mark.parametrize("several", SEVERAL.values(), ids=SEVERAL)
def test_several_pods_share_a_database_or_nothing(helm: Any, tmp_path: Path, several: dict[str, Any]) -> None:
    shared = {"persistence": {"enabled": True, "accessModes": ["ReadWriteMany"]}}
    assert _template(helm, tmp_path, several).returncode == 0
    assert _template(helm, tmp_path, {**several, **shared, "database": {"existingSecret": "dsn"}}).returncode == 0


def _secrets(part: Any, definitions: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the settings that are secrets, with `*` for the names of a map's entries."""
    part = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    if part.get("writeOnly"):
        yield path
    for name, inner in part.get("properties", {}).items():
        yield from _secrets(inner, definitions, (*path, name))
    for name, inner in (("*", part.get("additionalProperties")), ("[]", part.get("items"))):
        if isinstance(inner, dict):
            yield from _secrets(inner, definitions, (*path, name))


def test_secrets_among_settings_are_refused(helm: Any, tmp_path: Path) -> None:
    """They would lie in a ConfigMap, or in what Ray Serve is told, for all to read."""
    schema = Settings.model_json_schema()
    definitions = schema.pop("$defs")
    found = list(_secrets(schema, definitions))
    assert {("agents", "mcp", "*", "headers", "*"), ("database", "dsn")} <= set(found)
    for path in found:
        value: Any = "postgresql://me:not-for-others@host/name"
        for name in reversed(path):
            value = [value] if name == "[]" else {"search" if name == "*" else name: value}
        for mode in ("embedded", "ray"):
            values = {"mode": mode, "database": {"existingSecret": "dsn"}, "settings": value}
            done = _template(helm, tmp_path, values)
            assert done.returncode == 1, path
            assert "not-for-others" not in done.stderr
            assert path[0] in done.stderr


def test_whoever_has_a_secret_is_told_where_to_put_it(helm: Any, tmp_path: Path) -> None:
    mcp = {"search": {"url": "https://x", "headers": {"Authorization": "Bearer x"}}}
    said = _template(helm, tmp_path, {"settings": {"agents": {"mcp": mcp}}}).stderr
    assert "settings.agents.mcp.search.headers: " in said
    assert '{"search": {"headers": {"NAME": "SECRET"}}}' in said
    assert "ARGOSY_AGENTS__MCP by extraEnv" in said
    said = _template(helm, tmp_path, {"settings": {"database": {"dsn": "postgresql://x/y"}}}).stderr
    assert "settings.database.dsn: " in said
    assert "database.existingSecret" in said


def test_every_value_is_documented() -> None:
    """Each leaf of values.yaml has a row in README.md, or is part of a value that has one."""
    rows = {line.split("`")[1] for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| `")}

    def leaves(part: Any, path: str = "") -> list[str]:
        if isinstance(part, dict) and part and path not in rows:
            return [leaf for key, value in part.items() for leaf in leaves(value, f"{path}.{key}".lstrip("."))]
        return [path]

    assert not set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()))) - rows
