"""Deploys a fleet to a Ray cluster and tells how it is, through the REST interface of Ray's dashboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from argosy_services.cluster.local import ClusterError

_POLL_S = 0.3
# The dashboard answers some seconds after Ray has started.
_CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One deployment: its status, its replicas by state, and what Ray Serve says about it."""

    application: str
    name: str
    status: str
    replicas: dict[str, int]
    message: str

    @property
    def running(self) -> int:
        """Replicas that take calls."""
        return self.replicas.get("RUNNING", 0)


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """One service of the fleet."""

    name: str
    status: str
    message: str
    deployments: tuple[DeploymentState, ...]

    @property
    def ready(self) -> bool:
        """Whether it takes calls."""
        return self.status == "RUNNING"


class Control:
    """The dashboard of a cluster, at an address such as http://127.0.0.1:8265.

    Without a token, Ray's own variables (RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) say what to show there.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def deploy(self, config: dict[str, Any], starting: Callable[[], bool] = lambda: False) -> None:
        """Makes the cluster run what the configuration says; waits for one that is `starting`. Raises ClusterError."""
        deadline = time.monotonic() + _CONNECT_S
        while True:
            try:
                self._client().deploy_applications(config)
                return
            except (ConnectionError, requests.ConnectionError) as error:
                if time.monotonic() > deadline or not starting():
                    raise self._unreachable() from error
                time.sleep(_POLL_S)
            except RuntimeError as error:
                raise ClusterError(f"the cluster refuses the configuration: {error}") from error

    def states(self) -> list[ApplicationState]:
        """Every application. Raises ClusterError."""
        try:
            details = self._client().get_serve_details()
        except (ConnectionError, requests.RequestException) as error:
            raise self._unreachable() from error
        except RuntimeError as error:
            raise ClusterError(f"the cluster does not answer: {error}") from error
        return [_application(name, found) for name, found in sorted(details.get("applications", {}).items())]

    def follow(self, timeout_s: float) -> Iterator[list[ApplicationState]]:
        """The applications, again and again until all are ready. Raises ClusterError where one fails or is late."""
        deadline = time.monotonic() + timeout_s
        while True:
            states = self.states()
            yield states
            for failed in (state for state in states if state.status == "DEPLOY_FAILED"):
                raise ClusterError(f"{failed.name} cannot be deployed: {failed.message}")
            if states and all(state.ready for state in states):
                return
            if time.monotonic() > deadline:
                late = ", ".join(state.name for state in states if not state.ready)
                raise ClusterError(f"not ready after {timeout_s:g} seconds: {late}; see `argosy status`")
            time.sleep(_POLL_S)

    def shut_down(self) -> None:
        """Drains and removes every application, and leaves the cluster. Raises ClusterError."""
        try:
            self._client().delete_applications()
        except (ConnectionError, requests.RequestException) as error:
            raise self._unreachable() from error
        except RuntimeError as error:
            raise ClusterError(f"the cluster does not answer: {error}") from error

    def _client(self) -> ServeSubmissionClient:
        return ServeSubmissionClient(self._address, headers=dict(self._headers))

    def _unreachable(self) -> ClusterError:
        return ClusterError(
            f"no Ray cluster answers at {self._address}; start one with `argosy up` or give its dashboard's address"
        )


def _application(name: str, found: dict[str, Any]) -> ApplicationState:
    deployments = tuple(
        DeploymentState(
            application=name,
            name=deployment,
            status=state["status"],
            replicas=_counts(state.get("replicas") or []),
            message=state.get("message") or "",
        )
        for deployment, state in sorted((found.get("deployments") or {}).items())
    )
    return ApplicationState(name, found["status"], found.get("message") or "", deployments)


def _counts(replicas: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for replica in replicas:
        counts[replica["state"]] = counts.get(replica["state"], 0) + 1
    return counts
