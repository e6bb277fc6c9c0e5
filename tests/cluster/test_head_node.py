"""A head node that dies: with Redis behind it the fleet serves on without it, and is one again when it is back.

Two nodes on this machine, as KubeRay has them: a head without replicas and a worker with all of them. The test needs a
`redis-server` on the PATH, or wherever ARGOSY_TEST_REDIS_SERVER says.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

import argosy
from argosy_services.cluster.control import Control
from argosy_services.cluster.local import ClusterError
from argosy_services.cluster.serve_config import environment, serve_config
from argosy_services.models.types import LocalModel
from argosy_services.settings import ClusterSettings, GenerationSettings, Settings
from argosy_services.testing import free_ports

_REDIS = os.environ.get("ARGOSY_TEST_REDIS_SERVER") or shutil.which("redis-server")

pytestmark = pytest.mark.skipif(_REDIS is None, reason="no redis-server on the PATH")


@contextmanager
def _process(command: list[str], log: Path, variables: dict[str, str]) -> Iterator[psutil.Process]:
    """A process that is gone at the end, with all that it started."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
    process = psutil.Process(started.pid)
    try:
        yield process
    finally:
        _kill(process)
        started.wait()


def _kill(process: psutil.Process) -> None:
    """What a machine that loses its power does to its processes."""
    if process.is_running():
        for each in (process, *process.children(recursive=True)):
            if each.is_running():
                each.kill()


def _wait_for_port(port: int) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < give_up, f"nothing listens on port {port}"
            time.sleep(0.1)
        else:
            return


def _wait_until_whole(control: Control) -> None:
    give_up = time.monotonic() + 120
    while True:
        try:
            states = control.states()
        except ClusterError:
            if time.monotonic() > give_up:
                raise
        else:
            if states and all(state.ready for state in states):
                return
            assert time.monotonic() < give_up, states
        time.sleep(0.5)


def test_the_fleet_outlives_its_head_node(smollm2: LocalModel, minilm: LocalModel, tmp_path: Path) -> None:
    ports = free_ports(6)
    redis_port, gcs_port, dashboard_port, http_port, grpc_port, worker_port = ports
    settings = Settings(
        port=grpc_port,
        generation=GenerationSettings(model=smollm2.name, dtype="float32", kv_cache_tokens=12_288, threads=1),
        embeddings={"model": minilm.name},  # type: ignore[arg-type]
        cluster=ClusterSettings(http_port=http_port, dashboard_port=dashboard_port, drain_seconds=5),
        log_level="warning",
    )
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    ray += ["--node-ip-address", "127.0.0.1"]
    head_command = [*ray, "--head", "--port", str(gcs_port), "--num-cpus", "0"]
    head_command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
    head_command += ["--dashboard-agent-listen-port", str(free_ports(1)[0])]
    worker_command = [*ray, "--address", f"127.0.0.1:{gcs_port}", "--num-cpus", "4"]
    worker_command += ["--dashboard-agent-listen-port", str(free_ports(1)[0])]
    # Those that KubeRay sets from gcsFaultToleranceOptions.
    variables = {
        **environment(settings),
        "RAY_REDIS_ADDRESS": f"127.0.0.1:{redis_port}",
        "RAY_external_storage_namespace": "argosy",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        # Both proxies are on one machine here.
        "RAY_SERVE_WORKER_PROXY_GRPC_PORT": str(worker_port),
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_ports(1)[0]),
    }
    redis_command = [str(_REDIS), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    # Short, because sockets lie there.
    temporary = Path(tempfile.mkdtemp(prefix="argosy-"))
    head_command += ["--temp-dir", str(temporary)]
    log = tmp_path / "log"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        stack.enter_context(_process([*redis_command, "--save", ""], log, {}))
        _wait_for_port(redis_port)
        head = stack.enter_context(_process(head_command, log, variables))
        _wait_for_port(gcs_port)
        stack.enter_context(_process(worker_command, log, variables))
        control = Control(f"http://127.0.0.1:{dashboard_port}")
        control.deploy(serve_config(settings), starting=lambda: True)
        for _ in control.follow(180):
            pass
        client = stack.enter_context(argosy.Client(f"127.0.0.1:{worker_port}", timeout=120))
        options = {"max_tokens": 200, "temperature": 0.0, "ignore_eos": True}
        undisturbed = client.generation.generate("The sea is", **options).choices[0].token_ids  # type: ignore[arg-type]

        with client.generation.stream("The sea is", **options) as stream:  # type: ignore[arg-type]
            next(iter(stream))
            _kill(head)
            assert stream.result().choices[0].token_ids == undisturbed
        alone_until = time.monotonic() + 15
        answered = 0
        while time.monotonic() < alone_until:
            found = client.generation.generate("The sea is", max_tokens=16, temperature=0.0, ignore_eos=True)
            assert found.choices[0].token_ids == undisturbed[:16]
            assert client.embeddings.embed(["a ship"]).vectors
            answered += 1
        print(f"\n{answered} answers without a head node")

        # A new machine would not have it, and Ray takes the worker's processes for those of a cluster here.
        (temporary / "ray_current_cluster").unlink()
        back = time.monotonic()
        stack.enter_context(_process(head_command, log, variables))
        _wait_until_whole(control)
        print(f"the fleet is whole {time.monotonic() - back:.1f} s after the head node's start")
        assert client.generation.generate("The sea is", **options).choices[0].token_ids == undisturbed  # type: ignore[arg-type]
        with argosy.Client(f"127.0.0.1:{grpc_port}", timeout=120) as through_head:
            assert through_head.generation.generate("The sea is", **options).choices[0].token_ids == undisturbed  # type: ignore[arg-type]
        # What it is told now is done: the controller that is back rules.
        more = settings.cluster.model_copy(
            update={"tokenization": settings.cluster.tokenization.model_copy(update={"min": 2})}
        )
        control.deploy(serve_config(settings.model_copy(update={"cluster": more})))
        give_up = time.monotonic() + 60
        while not any(
            found.running == 2
            for state in control.states()
            for found in state.deployments
            if found.name == "Tokenization"
        ):
            assert time.monotonic() < give_up, control.states()
            time.sleep(0.5)
