"""The names under which vLLM exports what the table holds, for gateways, autoscalers and dashboards that go by them.

Names, types and the label `model_name` are those of vLLM's engine (its V1 metrics, `vllm/v1/metrics/loggers.py`); the
buckets of histograms are ours. Each is a view: nothing is counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from argosy_services import metrics
from argosy_services.instruments import Distribution, Histogram, Instrument, Kind, Labels, Spec, Value

_LABELS = ("model_name", "engine")
# vLLM numbers the engines of one process; there is one.
_ENGINE = "0"

Values = Iterable[tuple[Labels, float | Distribution]]


@dataclass(frozen=True, slots=True)
class Alias:
    """A metric of vLLM, out of which of ours it comes (`sources`), and how to read it."""

    spec: Spec
    sources: tuple[str, ...]
    now: Callable[[], Values]


@dataclass(frozen=True, slots=True)
class AdaptersAtWork:
    """Adapters that requests of an engine use or wait for, by name, and how many slots it has."""

    slots: int
    running: tuple[str, ...]
    waiting: tuple[str, ...]


_adapters: dict[str, Callable[[], AdaptersAtWork]] = {}


def watch_adapters(model: str, reading: Callable[[], AdaptersAtWork]) -> None:
    """Says where to read which adapters of an engine are at work."""
    _adapters[model] = reading


def _same(name: str, source: Instrument[Value] | Instrument[Histogram]) -> Alias:
    """A row under another name."""

    def now() -> Values:
        return [((model, _ENGINE), series.now()) for (model,), series in source.now()]

    spec = source.spec
    return Alias(Spec(name, spec.kind, spec.unit, _LABELS, spec.help, spec.buckets), (spec.name,), now)


def _sum(name: str, help: str, *sources: Instrument[Value]) -> Alias:
    """The sum of several counters."""

    def now() -> Values:
        totals: dict[str, float] = {}
        for source in sources:
            for (model,), series in source.now():
                totals[model] = totals.get(model, 0.0) + series.now()
        return [((model, _ENGINE), total) for model, total in totals.items()]

    return Alias(Spec(name, "counter", "tokens", _LABELS, help), tuple(source.spec.name for source in sources), now)


def _ratio(name: str, help: str, part: Instrument[Value], whole: Instrument[Value]) -> Alias:
    """One gauge over another."""

    def now() -> Values:
        parts = {labels: series.now() for labels, series in part.now()}
        return [
            ((model, _ENGINE), parts.get((model,), 0.0) / max(1.0, series.now())) for (model,), series in whole.now()
        ]

    return Alias(Spec(name, "gauge", "ratio", _LABELS, help), (part.spec.name, whole.spec.name), now)


def _by_finish(name: str, help: str) -> Alias:
    def now() -> Values:
        reasons = {"stop": "stop", "length": "length", "failed": "error", "cancelled": "abort"}
        return [
            ((model, _ENGINE, reasons[finish]), series.now())
            for (model, finish), series in metrics.SEQUENCES_FINISHED.now()
        ]

    return Alias(
        Spec(name, "counter", "requests", (*_LABELS, "finished_reason"), help),
        (metrics.SEQUENCES_FINISHED.spec.name,),
        now,
    )


def _lora_info() -> Alias:
    def now() -> Values:
        for reading in list(_adapters.values()):
            found = reading()
            yield (str(found.slots), ",".join(found.running), ",".join(found.waiting)), time.time()

    labels = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
    kind: Kind = "gauge"
    text = "Adapters at work, in the labels; the value is the time of the reading, in seconds since 1970."
    return Alias(Spec("vllm:lora_requests_info", kind, "seconds", labels, text), (), now)


ALIASES: tuple[Alias, ...] = (
    _same("vllm:num_requests_running", metrics.SEQUENCES_RUNNING),
    _same("vllm:num_requests_waiting", metrics.SEQUENCES_WAITING),
    _ratio(
        "vllm:kv_cache_usage_perc",
        "Share of the key-value cache in use, 0 to 1.",
        metrics.KV_BLOCKS_IN_USE,
        metrics.KV_BLOCKS_TOTAL,
    ),
    _lora_info(),
    _sum("vllm:prompt_tokens", "Prompt tokens.", metrics.PROMPT_TOKENS, metrics.CACHED_PROMPT_TOKENS),
    _same("vllm:generation_tokens", metrics.GENERATED_TOKENS),
    _sum(
        "vllm:prefix_cache_queries",
        "Prompt tokens that were looked for in the prefix cache.",
        metrics.PROMPT_TOKENS,
        metrics.CACHED_PROMPT_TOKENS,
    ),
    _same("vllm:prefix_cache_hits", metrics.CACHED_PROMPT_TOKENS),
    _same("vllm:num_preemptions", metrics.PREEMPTIONS),
    _by_finish("vllm:request_success", "Sequences that ended."),
    _same("vllm:request_prompt_tokens", metrics.SEQUENCE_PROMPT_TOKENS),
    _same("vllm:request_generation_tokens", metrics.SEQUENCE_GENERATED_TOKENS),
    _same("vllm:iteration_tokens_total", metrics.BATCH_TOKENS),
    _same("vllm:time_to_first_token_seconds", metrics.TIME_TO_FIRST_TOKEN),
    _same("vllm:inter_token_latency_seconds", metrics.INTER_TOKEN),
    _same("vllm:request_time_per_output_token_seconds", metrics.TIME_PER_OUTPUT_TOKEN),
    _same("vllm:time_per_output_token_seconds", metrics.INTER_TOKEN),
    _same("vllm:e2e_request_latency_seconds", metrics.END_TO_END),
    _same("vllm:request_queue_time_seconds", metrics.QUEUE_SECONDS),
    _same("vllm:request_prefill_time_seconds", metrics.PREFILL_SECONDS),
    _same("vllm:request_decode_time_seconds", metrics.DECODE_SECONDS),
)
