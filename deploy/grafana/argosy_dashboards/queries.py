"""PromQL that the panels have in common. `$prefix`, `$model` and `$instance` are variables of every dashboard."""

from __future__ import annotations

from dataclasses import dataclass

INSTANCE = 'instance=~"$instance"'
MODEL = 'model=~"$model"'
# Codes of calls that failed through no fault of the caller, as deploy/prometheus/rules.yaml has them.
FAULTS = 'code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE"'

# Of a request's usage what was generated, which is what costs.
COMPLETION = ("argosy_usage_tokens_total", MODEL, 'kind="completion"')


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str


def series(name: str, *matchers: str) -> str:
    """The selector of a metric of the chosen instances."""
    return f"${{prefix}}{name}{{{', '.join((INSTANCE, *matchers))}}}"


def total(name: str, *matchers: str, by: str = "") -> str:
    """The sum of a gauge."""
    return f"{_sum(by)}({series(name, *matchers)})"


def rate(name: str, *matchers: str, by: str = "") -> str:
    """How fast a counter grows, each second."""
    return f"{_sum(by)}(rate({series(name, *matchers)}[$__rate_interval]))"


def increase(name: str, *matchers: str, by: str = "") -> str:
    """How much a counter has grown over the time that is shown."""
    return f"{_sum(by)}(increase({series(name, *matchers)}[$__range]))"


def quantile(q: float, name: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram, interpolated within its bucket."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', *matchers, by=labels)})"


def mean(name: str, *matchers: str, by: str = "") -> str:
    """The mean of a histogram."""
    return f"{rate(f'{name}_sum', *matchers, by=by)} / {rate(f'{name}_count', *matchers, by=by)}"


def named(expr: str) -> str:
    """Services by a short name: generation, where the label has argosy.api.generation.v1.GenerationService."""
    return f'label_replace({expr}, "service", "$1", "service", "argosy[.]api[.](.+)[.]v1[.].+")'


def quantiles(name: str, *matchers: str) -> tuple[Query, ...]:
    """Median, 95th and 99th percentile."""
    return tuple(
        Query(quantile(q, name, *matchers), legend) for q, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"
