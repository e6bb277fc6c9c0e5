"""The real helm, and what it makes of the chart."""

from __future__ import annotations

import functools
import runpy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/argosy"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm with arguments."""
    binary = runpy.run_path(str(ROOT / "scripts/get_helm.py"))["helm"]()

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run((binary, *arguments), capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def template(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """What `helm template` prints for values; it must succeed."""

    @functools.cache
    def rendered(*arguments: str | Path) -> str:
        done = helm("template", "fleet", CHART, "--namespace", "models", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return rendered


@pytest.fixture(scope="session")
def manifests(template: Callable[..., str]) -> Render:
    """The objects that the chart makes of a file of values and further arguments."""

    def rendered(values: Path, *arguments: str) -> list[Manifest]:
        text = template("--values", values, *arguments)
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]

    return rendered


@pytest.fixture(params=CASES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def case(request: pytest.FixtureRequest) -> Path:
    """Each file of values below ci/."""
    return request.param


def of_kind(found: list[Manifest], kind: str) -> list[Manifest]:
    """Those of a kind."""
    return [manifest for manifest in found if manifest["kind"] == kind]


def pod_templates(found: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every template of a pod with a name for it: `server`, `head`, or that of a worker group."""
    for manifest in of_kind(found, "Deployment"):
        yield "server", manifest["spec"]["template"]
    for manifest in of_kind(found, "RayService"):
        cluster = manifest["spec"]["rayClusterConfig"]
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


def containers(template: Manifest) -> Iterator[Manifest]:
    """All containers of a pod, those before it included."""
    yield from template["spec"].get("initContainers", ())
    yield from template["spec"]["containers"]
