"""The table of instruments for Ray, whose agent on each node exports what its processes tell it.

Writing to an instrument costs the same in both runtimes: a thread hands to Ray, every few seconds, what has changed
since the last time. Ray keeps of a histogram how many values fell into each bucket, and so nothing is lost by giving it
a value of the right bucket. Its agent forgets gauges that are not repeated, and so all of them are.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog
from ray import serve
from ray.util import metrics as ray_metrics

from argosy_services.instruments import Distribution, Labels, Spec
from argosy_services.metrics import TABLE
from argosy_services.vllm_names import ALIASES, Values

log = structlog.get_logger("argosy.cluster")

_EVERY_S = 5.0


class RayExporter:
    """Hands the table to Ray until it is stopped. One for a process, which must be one of Ray's."""

    def __init__(self, *, vllm_names: bool) -> None:
        context = serve.get_replica_context()
        # Without them the replicas of a node would count on top of each other.
        self._own = {"deployment": context.deployment, "replica": context.replica_id.unique_id}
        self._vllm_names = vllm_names
        self._made: dict[str, Any] = {}
        self._before: dict[tuple[str, Labels], float | Distribution] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="argosy-metrics", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Hands over what is left and ends."""
        self._stopped.set()
        self._thread.join(_EVERY_S)

    def _run(self) -> None:
        while True:
            last = self._stopped.wait(_EVERY_S)
            try:
                self._hand_over()
            except Exception as error:
                # Whatever it is, requests go on without metrics; those of the next round include what is missing.
                log.warning("metrics could not be handed to Ray", cause=f"{type(error).__name__}: {error}")
            if last:
                return

    def _hand_over(self) -> None:
        for row in TABLE:
            self._tell(row.spec, ((labels, series.now()) for labels, series in row.now()))
        if self._vllm_names:
            for alias in ALIASES:
                self._tell(alias.spec, alias.now())

    def _tell(self, spec: Spec, values: Values) -> None:
        for labels, value in values:
            tags = {**self._own, **dict(zip(spec.labels, map(str, labels), strict=True))}
            if spec.kind == "gauge":
                self._instrument(spec).set(value, tags)
                continue
            before = self._before.get((spec.name, labels))
            if isinstance(value, Distribution):
                counts = before.counts if isinstance(before, Distribution) else (0,) * len(value.counts)
                for place, (count, old) in enumerate(zip(value.counts, counts, strict=True)):
                    for _ in range(count - old):
                        self._instrument(spec).observe(_within(spec.buckets, place), tags)
            else:
                grown = value - (before if isinstance(before, float) else 0.0)
                if grown > 0:
                    self._instrument(spec).inc(grown, tags)
            self._before[spec.name, labels] = value

    def _instrument(self, spec: Spec) -> Any:
        made = self._made.get(spec.name)
        if made is None:
            # Ray has no colons in names.
            name, keys = spec.name.replace(":", "_"), (*self._own, *spec.labels)
            if spec.kind == "histogram":
                made = ray_metrics.Histogram(name, spec.help, list(spec.buckets), keys)
            elif spec.kind == "counter":
                made = ray_metrics.Counter(name, spec.help, keys)
            else:
                made = ray_metrics.Gauge(name, spec.help, keys)
            self._made[spec.name] = made
        return made


def _within(buckets: tuple[float, ...], place: int) -> float:
    """A value of a bucket: its middle, as Ray's own agent takes it."""
    if place == len(buckets):
        return buckets[-1] * 2.0
    lower = buckets[place - 1] if place else 0.0
    return (lower + buckets[place]) / 2.0
