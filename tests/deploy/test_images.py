"""What can be told of the images without building them; scripts/check_images.py runs their steps."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from .conftest import ROOT

TARGETS = ("cpu", "cuda", "trtllm")
# All that settings can turn on: nothing can be installed into a file system that is read only.
EXTRAS = ("services", "ray", "tracing")
GLOBALS, STAGES = runpy.run_path(str(ROOT / "scripts/check_images.py"))["stages"](
    (ROOT / "deploy/docker/Dockerfile").read_text()
)


def _requirements(*arguments: str) -> list[Requirement]:
    program = ROOT / "deploy/docker/requirements.py"
    done = subprocess.run([sys.executable, program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Requirement(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_nobody_and_tell_how_they_are(target: str) -> None:
    last = dict(STAGES[target].steps)
    assert last["USER"] == "10001:10001"
    assert last["HEALTHCHECK"].endswith('CMD ["argosy", "health"]')
    assert last["CMD"] == '["argosy", "serve"]'
    assert "org.opencontainers.image.licenses" in last["LABEL"]


def test_bases_have_versions() -> None:
    assert all(re.fullmatch(r"\S+:[\d.]+", image) for image in GLOBALS.values())
    named = {f"${{{name}}}" for name in GLOBALS}
    assert all(stage.base in named | STAGES.keys() for stage in STAGES.values())


def test_what_is_copied_is_not_ignored() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in STAGES.values():
        for keyword, rest in stage.steps:
            if keyword == "COPY":
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists()
                    assert any(source == each or source.startswith(f"{each}/") for each in let_in), source


def test_pinned_versions_are_those_that_the_project_takes() -> None:
    text = (ROOT / "deploy/docker/constraints.txt").read_text()
    pins = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    for requirement in _requirements(*EXTRAS):
        if requirement.name not in ("torch", "pip"):
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement


def test_images_have_all_that_settings_can_turn_on() -> None:
    (step,) = (rest for keyword, rest in STAGES["wheel"].steps if keyword == "RUN" and "requirements.py" in rest)
    asked = re.findall(r"requirements\.py ([a-z ]+?) +(?:>|--without)", step)
    assert [tuple(extras.split()) for extras in asked] == [EXTRAS, EXTRAS]


def test_the_image_of_tensorrt_llm_keeps_its_own_libraries() -> None:
    (step,) = (rest for keyword, rest in STAGES["wheel"].steps if keyword == "RUN" and "--without" in rest)
    without = re.search(r"--without ([a-z -]+) >", step)
    assert without is not None
    names = {requirement.name for requirement in _requirements(*EXTRAS, "--without", *without[1].split())}
    assert not names & {"torch", "transformers", "huggingface-hub"}
    everything = {requirement.name for requirement in _requirements(*EXTRAS)}
    assert everything - names == set(without[1].split())


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cli"]]
    names = {requirement.name for requirement in _requirements("services")}
    assert {Requirement(line).name for line in wanted} <= names
    assert "ray" not in names
