"""What every replica does first: settings, logs, traces, metrics for Ray, and a page of them for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve

from argosy._version import __version__
from argosy_services import logs, metrics, metrics_page, process, tracing
from argosy_services.cluster.notice import StopNotice
from argosy_services.cluster.ray_metrics import RayExporter
from argosy_services.cluster.targets import Target
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.gate import Gate
from argosy_services.settings import Settings

_FLUSH_S = 1.0


class Replica:
    """The surroundings of one replica of a deployment."""

    def __init__(self, given: Mapping[str, object]) -> None:
        """`given` are settings that go before those of the environment. Call it in the replica, once."""
        process.begin()
        self._given = given
        self.reconfigure({})
        self.auth = Authenticator.of(self.settings)
        self.gate = Gate()
        self.gate.open()
        self._notice = StopNotice(self.gate)
        self._tracing = tracing.start(self.settings.tracing, version=__version__)
        metrics.configure(self.settings.metrics)
        metrics.BUILD_INFO.labels(version=__version__, runtime="ray").set(1)
        self._exporter = RayExporter(vllm_names=self.settings.metrics.vllm_names)
        self._exporter.start()
        self._target = _publish_metrics(self.settings)

    def ready(self) -> None:
        """Everything is loaded."""
        process.loaded()
        metrics.READY.set(1)

    def checked(self) -> None:
        """Its health was checked, so Ray Serve keeps it; for replicas that can be watched."""
        self._notice.checked()

    def reconfigure(self, live: Mapping[str, object]) -> Settings:
        """Takes over settings while it runs; returns all that are now in force."""
        merged = dict(self._given)
        for name, value in live.items():
            before = merged.get(name)
            merged[name] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        self.settings = Settings(**merged)  # type: ignore[arg-type]
        logs.configure(self.settings.log_level, self.settings.log_format)
        return self.settings

    def close(self) -> None:
        """Withdraws the metrics' address, and sends the last of them and of the spans."""
        self._target.withdraw()
        self._exporter.stop()
        if self._tracing is not None:
            self._tracing.stop(_FLUSH_S)


def _publish_metrics(settings: Settings) -> Target:
    """Serves the metrics of this process on a free port and writes down where."""
    port, _ = metrics_page.serve(settings.metrics_host, 0, vllm_names=settings.metrics.vllm_names)
    context = serve.get_replica_context()
    name = context.replica_id.unique_id
    return Target(
        settings.metrics_targets,
        f"{context.app_name}-{name}",
        f"{settings.metrics_host}:{port}",
        {"application": context.app_name, "deployment": context.deployment, "replica": name},
    )
