"""A Ray of this machine: started, found and ended by the fleet that needs it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from argosy_services.cluster import serve_config
from argosy_services.settings import Settings

_STOP_S = 30.0


class ClusterError(Exception):
    """Something about the cluster is not as it must be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A Ray that `start` started: its supervisor, a child of this process where `process` is set, and its dashboard.

    `token_file` has what Ray wants to see of whoever talks to it; None where the environment decides that.
    """

    pid: int
    dashboard: str
    token_file: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, compare=False)

    @property
    def token(self) -> str | None:
        """The secret that its dashboard wants."""
        return Path(self.token_file).read_text() if self.token_file else None

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
    token_file = _make_token(settings)
    environment = {
        **os.environ,
        **serve_config.environment(settings),
        **({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_file} if token_file else {}),
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
    ray = LocalRay(process.pid, f"http://127.0.0.1:{settings.cluster.dashboard_port}", token_file, process)
    _note(settings).write_text(json.dumps({"pid": ray.pid, "dashboard": ray.dashboard, "token_file": token_file}))
    return ray


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
    _token_file(settings).unlink(missing_ok=True)
    _forget_metrics(settings)
    return ray is not None


def log_file(settings: Settings) -> Path:
    """What Ray said while it started."""
    return settings.run_dir / "ray.log"


def _note(settings: Settings) -> Path:
    return settings.run_dir / "ray.json"


def _token_file(settings: Settings) -> Path:
    return settings.run_dir / "token"


def _make_token(settings: Settings) -> str | None:
    """A new secret, for the owner's eyes; None where RAY_AUTH_MODE says what shall be.

    Replicas of Ray Serve unpickle what others of the fleet send them, on a port that is open to all: nobody else may.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return None
    file = _token_file(settings)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as secret:
        secret.write(secrets.token_hex(32))
    return str(file)


def _forget_metrics(settings: Settings) -> None:
    for target in settings.metrics_targets.glob("*.json"):
        target.unlink(missing_ok=True)
