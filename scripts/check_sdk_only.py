"""Installs the wheel without extras, at the lowest and at the newest dependencies, and looks at what users would get.

`import argosy` must work in both, take less than half a second, and bring along nothing but gRPC and protobuf.

usage: python scripts/check_sdk_only.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORT_SECONDS = 0.5
FOREIGN = ("argosy_services", "huggingface_hub", "numpy", "pydantic", "structlog", "torch", "transformers", "typer")
IN_WHEEL = (
    "argosy/__init__.py",
    "argosy/py.typed",
    "argosy/api/generation/v1/generation_service_pb2.py",
    "argosy/api/generation/v1/generation_service_pb2.pyi",
    "argosy/api/generation/v1/generation_service_pb2_grpc.py",
    "argosy_services/embedded.py",
    "argosy_services/agents/prompts/*.yaml",
)
# Run in a fresh process: seconds that the import takes, and which of the foreign modules it brought along.
PROBE = f"""
import json, sys, time
start = time.perf_counter()
import argosy
seconds = time.perf_counter() - start
import argosy.api.generation.v1.generation_service_pb2_grpc
print(json.dumps([seconds, [name for name in {FOREIGN!r} if name in sys.modules]]))
"""


def main() -> int:
    """Returns 1 where something is not as it should be."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        wheel = _build(directory)
        problems = _missing(wheel)
        for name, requirements in (("lowest", _floors()), ("newest", [])):
            problems += _try_out(directory / name, wheel, requirements, name)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def _build(directory: Path) -> Path:
    _pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    (wheel,) = directory.glob("argosy-*.whl")
    return wheel


def _missing(wheel: Path) -> list[str]:
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    return [f"the wheel lacks {wanted}" for wanted in IN_WHEEL if not any(name.match(wanted) for name in names)]


def _floors() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [requirement.split(",")[0].replace(">=", "==") for requirement in project["dependencies"]]


def _try_out(directory: Path, wheel: Path, requirements: list[str], name: str) -> list[str]:
    venv.create(directory, with_pip=False)
    python = str(directory / "bin/python")
    _pip("--python", python, "install", str(wheel), *requirements)
    # The first run writes the byte code; of the others the fastest tells what the import itself costs.
    runs = [json.loads(_run(python, "-W", "error", "-c", PROBE)) for _ in range(4)][1:]
    seconds, foreign = min(runs)
    print(f"import argosy at the {name} dependencies: {seconds:.2f} s")
    problems = [f"import argosy brings along {module}" for module in foreign]
    if seconds > IMPORT_SECONDS:
        problems.append(f"import argosy takes {seconds:.2f} s, at most {IMPORT_SECONDS} s are allowed")
    return problems


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd="/").stdout


if __name__ == "__main__":
    sys.exit(main())
