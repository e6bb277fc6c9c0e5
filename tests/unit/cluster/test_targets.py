"""The files that Prometheus reads, and what becomes of those whose process was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from argosy_services.cluster.targets import Target

PROCESS = """
import sys
from pathlib import Path
from argosy_services.cluster.targets import Target

kept = Target(Path(sys.argv[1]), sys.argv[2], "127.0.0.1:1", {})
print("ready", flush=True)
sys.stdin.read()
"""


def begin(directory: Path, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(directory), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_target_is_there_until_it_is_withdrawn(tmp_path: Path) -> None:
    target = Target(tmp_path / "metrics", "agents-x", "127.0.0.1:9", {"replica": "x"})
    (file,) = (tmp_path / "metrics").glob("*.json")
    assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:9"], "labels": {"replica": "x"}}]
    target.withdraw()
    assert list((tmp_path / "metrics").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    elsewhere = tmp_path / "engine-far@another-machine.json"
    elsewhere.write_text('[{"targets": ["10.0.0.9:1"], "labels": {"replica": "far"}}]')
    killed, living = begin(tmp_path, "engine-killed"), begin(tmp_path, "engine-living")
    try:
        kill(killed)
        left = {file.name.partition("@")[0] for file in tmp_path.iterdir()}
        assert left == {"engine-far", "engine-killed", "engine-living"}
        own = Target(tmp_path, "engine-own", "127.0.0.1:9", {"replica": "own"})
        left = {file.name.partition("@")[0] for file in tmp_path.iterdir()}
        assert left == {"engine-far", "engine-living", "engine-own"}
        own.withdraw()
    finally:
        kill(living)
