"""What the README and examples/ show is run as it stands, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Examples that need more than a server and the SDK say so near their top.
NEEDS_MORE = re.compile(r"^(# )?requires: ", re.MULTILINE)
SECONDS = 120
# Where the README's reader has a server.
DEFAULT_ADDRESS = "127.0.0.1:50051"

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not NEEDS_MORE.search(path.read_text()[:1000]))
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())


def run(address: str, directory: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")}
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**environment, "ARGOSY_ADDRESS": address},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_there_is_something_to_run() -> None:
    assert EXAMPLES
    assert BLOCKS


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_an_example_runs_and_prints_something(example: Path, address: str, tmp_path: Path) -> None:
    assert run(address, tmp_path, str(example)).strip()


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(block: str, address: str, tmp_path: Path) -> None:
    run(address, tmp_path, "-c", block.replace(DEFAULT_ADDRESS, address))


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 40
