"""A Ray of this machine: started, found and ended by the fleet that needs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from argosy_services.cluster import serve_config
from argosy_services.settings import Settings

_STOP_S = 30.0


class ClusterError(Exception):
    """Something about the cluster is not as it must be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A Ray that `start` started: its supervisor, a child of this process where `process` is set, and its dashboard."""

    pid: int
    dashboard: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the supervisor still runs."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


def find(settings: Settings) -> LocalRay | None:
    """The Ray that was started with this data directory and dashboard port, if it still runs."""
    try:
        ray = LocalRay(**json.loads(_note(settings).read_text()))
    except FileNotFoundError:
        return None
    return ray if ray.alive else None


def start(settings: Settings) -> LocalRay:
    """Starts a head node on the loopback, which outlives this process. Raises ClusterError where one runs already."""
    if (ray := find(settings)) is not None:
        raise ClusterError(f"a fleet runs already, as process {ray.pid}; end it with `argosy down`")
    run = settings.run_dir
    run.mkdir(parents=True, exist_ok=True)
    _forget_metrics(settings)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", "127.0.0.1", "--port", "0"),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(settings.cluster.dashboard_port)),
        "--disable-usage-stats",
    ]
    environment = {
        **os.environ,
        **serve_config.environment(settings),
        # Whoever ends the fleet drains its services first; Ray itself waits for actors that never end on their own.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    with (run / "ray.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter, and numbers
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ray = {"pid": process.pid, "dashboard": f"http://127.0.0.1:{settings.cluster.dashboard_port}"}
    _note(settings).write_text(json.dumps(ray))
    return LocalRay(**ray, process=process)


@contextmanager
def running(settings: Settings) -> Iterator[LocalRay]:
    """A Ray for the length of a `with` block. Raises ClusterError."""
    ray = start(settings)
    try:
        yield ray
    finally:
        stop(settings)
        if ray.process is not None:
            ray.process.wait()


def stop(settings: Settings) -> bool:
    """Ends the Ray of this data directory and waits for it. False: none ran. Raises ClusterError where it stays."""
    ray = find(settings)
    if ray is not None:
        os.kill(ray.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while ray.alive:
            if time.monotonic() > deadline:
                raise ClusterError(f"process {ray.pid} does not end; look into {log_file(settings)} or kill it")
            time.sleep(0.1)
    _note(settings).unlink(missing_ok=True)
    _forget_metrics(settings)
    return ray is not None


def log_file(settings: Settings) -> Path:
    """What Ray said while it started."""
    return settings.run_dir / "ray.log"


def _note(settings: Settings) -> Path:
    return settings.run_dir / "ray.json"


def _forget_metrics(settings: Settings) -> None:
    for target in settings.metrics_targets.glob("*.json"):
        target.unlink(missing_ok=True)
