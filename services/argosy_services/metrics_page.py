"""The page that Prometheus reads, in the embedded runtime: the table of instruments, and what the process takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from argosy_services.instruments import Distribution, Labels, Spec
from argosy_services.metrics import TABLE
from argosy_services.vllm_names import ALIASES

Values = Iterable[tuple[Labels, float | Distribution]]


class TableCollector(Collector):
    """The table in the form of prometheus_client."""

    def __init__(self, *, vllm_names: bool) -> None:
        self._vllm_names = vllm_names

    def collect(self) -> Iterable[Metric]:
        """Every row, as it is now. Runs on a thread of the page's server."""
        for row in TABLE:
            yield _family(row.spec, ((labels, series.now()) for labels, series in row.now()))
        if self._vllm_names:
            for alias in ALIASES:
                yield _family(alias.spec, alias.now())


def registry(*, vllm_names: bool = False) -> CollectorRegistry:
    """Everything that the page shows."""
    made = CollectorRegistry()
    made.register(TableCollector(vllm_names=vllm_names))
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


def serve(host: str, port: int, *, vllm_names: bool) -> tuple[int, Callable[[], None]]:
    """Serves the page, on a free port for port 0; returns the port and what ends it. Raises OSError."""
    server, thread = start_http_server(port, host, registry(vllm_names=vllm_names))

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, close


def _family(spec: Spec, values: Values) -> Metric:
    if spec.kind == "histogram":
        family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        for labels, value in values:
            if isinstance(value, Distribution):
                family.add_metric(labels, _cumulative(spec.buckets, value), value.sum)
        return family
    make = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    simple = make(spec.name, spec.help, labels=spec.labels)
    for labels, value in values:
        if not isinstance(value, Distribution):
            simple.add_metric(labels, value)
    return simple


def _cumulative(buckets: tuple[float, ...], value: Distribution) -> list[tuple[str, float]]:
    names = (*map(floatToGoString, buckets), "+Inf")
    total, rows = 0, []
    for name, count in zip(names, value.counts, strict=True):
        total += count
        rows.append((name, float(total)))
    return rows
