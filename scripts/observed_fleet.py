"""A real `argosy serve` under load with a real Prometheus beside it, for tests and pictures of the dashboards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fleet_load import KEYS, run_load, write_adapters

import argosy
from argosy_services.testing import free_ports

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "argosy" / "prometheus"
# A machine without the package.
UNAVAILABLE = 3

# What Grafana puts in place of the variables: everything, and a window of some scrapes of one second.
VARIABLES = {
    "${prefix}": "",
    "$model": ".*",
    "$instance": ".*",
    "$server_hour": "0.10",
    "$__rate_interval": "10s",
    "$__range": "60s",
}


class PrometheusUnavailableError(Exception):
    """Prometheus cannot be had on this machine; the message says why."""


def binaries() -> tuple[Path, Path]:
    """The programs prometheus and promtool, unpacked on first use. Raises PrometheusUnavailableError."""
    script = ROOT / "scripts" / "install_prometheus.sh"
    done = subprocess.run([script, CACHE], check=False, capture_output=True, text=True, timeout=120)
    if done.returncode == UNAVAILABLE:
        raise PrometheusUnavailableError(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"{script} failed with {done.returncode}: {done.stderr}")
    return CACHE / "usr/bin/prometheus", CACHE / "usr/bin/promtool"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus; `url` has no path."""

    url: str

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The samples of an instant. Raises ValueError with Prometheus's words where the query is wrong."""
        return self._get("query", query=expr, time=at or time.time())["result"]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The samples over a time, all in seconds. Raises ValueError where the query is wrong."""
        return self._get("query_range", query=expr, start=start, end=end, step=step)["result"]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with the state of its last evaluation."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: object) -> Any:
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
            ) as page:
                return json.load(page)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error


@dataclass(frozen=True, slots=True)
class Observed:
    """A fleet that worked from `start` to `end`, in seconds since 1970, and the Prometheus that watched it."""

    prometheus: Prometheus
    metrics_url: str
    start: float
    end: float


@contextmanager
def observed_fleet(seconds: float) -> Iterator[Observed]:
    """Starts both, works for so many seconds, and leaves both running until the end of the block.

    Raises PrometheusUnavailableError, or TimeoutError where either does not start.
    """
    program, _ = binaries()
    with tempfile.TemporaryDirectory(prefix="argosy-observed-") as made:
        directory = Path(made)
        adapters = directory / "adapters"
        write_adapters(adapters)
        port, metrics_port, prometheus_port = free_ports(3)
        with (
            _process(
                [str(Path(sys.executable).with_name("argosy")), "serve"],
                directory / "fleet.log",
                _settings(adapters, port, metrics_port),
            ),
            running_prometheus(program, fast_configuration(directory, metrics_port), prometheus_port) as prometheus,
        ):
            with argosy.Client(f"127.0.0.1:{port}", api_key=KEYS[0]) as client:
                client.wait_until_ready(timeout=60)
            _until_scraped(prometheus)
            start = time.time()
            run_load(f"127.0.0.1:{port}", adapters, seconds)
            yield Observed(prometheus, f"http://127.0.0.1:{metrics_port}/metrics", start, time.time())


def panels() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every panel of every committed dashboard, with its dashboard."""
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield board, panel


def interpolate(expr: str) -> str:
    """The query as Grafana sends it."""
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr


def fast_configuration(directory: Path, metrics_port: int) -> Path:
    """deploy/prometheus as it stands, with seconds in place of quarters of minutes and the address of one server."""
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    configuration = yaml.safe_load(re.sub(r"\b15s\b", "1s", text))
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
    rules = (DEPLOY / "prometheus/rules.yaml").read_text().replace("interval: 15s", "interval: 1s")
    (directory / "rules.yaml").write_text(rules)
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path


def _settings(adapters: Path, port: int, metrics_port: int) -> dict[str, str]:
    """So small that a few callers fill it: sequences wait, are put back and are refused."""
    return {
        "ARGOSY_PORT": str(port),
        "ARGOSY_METRICS_PORT": str(metrics_port),
        "ARGOSY_API_KEYS": ",".join(KEYS),
        "ARGOSY_LOG_LEVEL": "warning",
        "ARGOSY_ADAPTERS__ROOTS": json.dumps([str(adapters)]),
        "ARGOSY_ADAPTERS__CACHE_DIR": str(adapters.with_name("adapter-cache")),
        "ARGOSY_DATABASE__DSN": f"sqlite:///{adapters.with_name('argosy.db')}",
        "ARGOSY_GENERATION__THREADS": "1",
        "ARGOSY_GENERATION__KV_CACHE_TOKENS": "1536",
        "ARGOSY_GENERATION__MAX_BATCH": "8",
        "ARGOSY_GENERATION__MAX_ADAPTERS": "2",
        "ARGOSY_GENERATION__MAX_WAITING": "8",
        "ARGOSY_GENERATION__SPECULATION": "prompt_lookup",
    }


@contextmanager
def running_prometheus(program: Path, configuration: Path, port: int) -> Iterator[Prometheus]:
    """A Prometheus for the length of a `with` block, which keeps its data beside its configuration.

    Raises TimeoutError where it does not start.
    """
    directory = configuration.parent
    command = [
        str(program),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with _process(command, directory / "prometheus.log", {}):
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        _wait(f"{prometheus.url}/-/ready", directory / "prometheus.log")
        yield prometheus


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
        try:
            yield
        except TimeoutError as error:
            error.add_note(log.read_text()[-2000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(timeout=45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def _until_scraped(prometheus: Prometheus, seconds: float = 20) -> None:
    """Growth is seen from the first sample on."""
    give_up = time.monotonic() + seconds
    while not prometheus.query("argosy_ready == 1"):
        if time.monotonic() > give_up:
            raise TimeoutError("Prometheus has not read the page of metrics")
        time.sleep(0.1)


def _wait(url: str, log: Path, seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{url} did not answer: {log.read_text()[-2000:]}") from error
            time.sleep(0.1)
