"""The table against prometheus_client's own instruments, and its bounds."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Reference
from prometheus_client.parser import text_string_to_metric_families

from argosy_services import metrics
from argosy_services.instruments import OTHER, Limits, Table
from argosy_services.metrics_page import registry
from argosy_services.settings import MetricsSettings

BUCKETS = (0.01, 0.1, 1, 10)


def table(**bounds: int) -> Table:
    return Table(Limits(dict(bounds)))


def test_a_histogram_has_the_buckets_of_prometheus_client() -> None:
    """Fails when a value on a bucket's edge goes to its neighbour."""
    ours = table().histogram("h", "seconds", "h", ("model",), buckets=BUCKETS).labels(model="m")
    own = CollectorRegistry()
    reference = Reference("h", "h", ["model"], buckets=BUCKETS, registry=own).labels(model="m")
    drawn = random.Random(5)
    for value in (*BUCKETS, 0.0, 11.0, *(drawn.expovariate(1) for _ in range(500))):
        ours.observe(value)
        reference.observe(value)
    found, total = ours.now(), 0
    for end, count in zip((*BUCKETS, float("inf")), found.counts, strict=True):
        total += count
        name = "+Inf" if end == float("inf") else str(float(end))
        assert total == own.get_sample_value("h_bucket", {"model": "m", "le": name})
    assert found.sum == pytest.approx(own.get_sample_value("h_sum", {"model": "m"}))
    assert found.count == 504 + 2


def test_a_value_that_occurs_several_times_is_counted_so() -> None:
    histogram = table().histogram("h", "seconds", "h", ("model",), buckets=BUCKETS).labels(model="m")
    histogram.observe(0.5, 3)
    assert histogram.now().counts == (0, 0, 3, 0, 0)
    assert histogram.now().sum == pytest.approx(1.5)


def test_nothing_is_lost_between_threads() -> None:
    counter = table().counter("c", "calls", "c", ("model",)).labels(model="m")
    histogram = table().histogram("h", "seconds", "h", ("model",), buckets=BUCKETS).labels(model="m")

    def work() -> None:
        for _ in range(20_000):
            counter.inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter.now() == histogram.now().count == 80_000


def test_a_label_takes_so_many_values_and_one_for_the_rest() -> None:
    row = table(adapter=3).counter("c", "requests", "c", ("model", "adapter"))
    for number in range(10):
        row.labels(model="m", adapter=f"a{number}").inc()
    assert {labels: series.now() for labels, series in row.now()} == {
        ("m", "a0"): 1,
        ("m", "a1"): 1,
        ("m", "a2"): 1,
        ("m", OTHER): 7,
    }


def test_the_bounds_of_several_labels_do_not_multiply() -> None:
    limits = Limits({"adapter": 100, "tenant": 100}, max_series=50)
    row = Table(limits).counter("c", "requests", "c", ("tenant", "adapter"))
    for number in range(10_000):
        row.labels(tenant=f"t{number % 100}", adapter=f"a{number // 100}").inc()
    assert len(row.now()) <= 51
    assert sum(series.now() for _, series in row.now()) == 10_000


def test_what_was_idle_makes_room() -> None:
    limits = Limits({"adapter": 1, "model": 1}, fleeting=frozenset({"adapter"}), idle_s=0.0)
    made = Table(limits)
    row = made.counter("c", "requests", "c", ("adapter",))
    kept = made.counter("d", "requests", "d", ("model",))
    for name in ("first", "second"):
        kept.labels(model=name).inc()
        row.labels(adapter=name).inc()
    assert [labels for labels, _ in row.now()] == [("second",)]
    assert [labels for labels, _ in kept.now()] == [("first",), (OTHER,)]
    limits.idle_s = 60.0
    row.labels(adapter="third").inc()
    assert [labels for labels, _ in row.now()] == [("second",), (OTHER,)]


def test_what_comes_and_goes_is_read_when_it_is_exported() -> None:
    limits = Limits(max_series=3)
    row = Table(limits).gauge("g", "boolean", "g", ("adapter",))
    there = {("a",): 1.0, ("b",): 1.0}
    row.read_rows("m", lambda: there)
    assert {labels: series.now() for labels, series in row.now()} == there
    del there["a",]
    assert [labels for labels, _ in row.now()] == [("b",)]
    there.update({(str(number),): 1.0 for number in range(10)})
    assert len(row.now()) == 3


def test_what_is_muted_counts_nothing() -> None:
    limits = Limits(muted=True)
    row = Table(limits).counter("c", "requests", "c", ("model",))
    row.labels(model="m").inc()
    assert row.labels(model="m").now() == 0
    assert row.now() == []


def test_a_missing_label_is_an_error() -> None:
    with pytest.raises(KeyError):
        table().counter("c", "requests", "c", ("model", "adapter")).labels(model="m")


def test_a_name_stands_in_the_table_once() -> None:
    made = table()
    made.counter("c", "requests", "c")
    with pytest.raises(ValueError, match="twice"):
        made.gauge("c", "requests", "c")


def test_the_page_is_what_prometheus_reads(pretend: Callable[..., None]) -> None:
    pretend(metrics.SEQUENCES_RUNNING, "page", 3)
    metrics.RPC_TOTAL.labels(service="s", method='"\\\n', code="OK", reason="").inc(2)
    metrics.INTER_TOKEN.labels(model="page").observe(0.004, 2)
    page = generate_latest(registry()).decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["argosy_sequences_running", (("model", "page"),)] == 3
    labels = (("code", "OK"), ("method", '"\\\n'), ("reason", ""), ("service", "s"))
    assert samples["argosy_rpc_total", labels] == 2
    assert samples["argosy_inter_token_seconds_bucket", (("le", "0.0025"), ("model", "page"))] == 0
    assert samples["argosy_inter_token_seconds_bucket", (("le", "0.005"), ("model", "page"))] == 2
    assert samples["argosy_inter_token_seconds_sum", (("model", "page"),)] == pytest.approx(0.008)
    assert "vllm:" not in page
    assert "process_cpu_seconds_total" in page


def test_tenants_have_digests_or_their_configured_names() -> None:
    tenant = "0123456789abcdef0123456789abcdef"
    digest = metrics.tenant_label(tenant)
    assert digest not in tenant
    assert len(digest) == 8
    assert metrics.tenant_label("") == metrics.NO_TENANT
    metrics.configure(MetricsSettings(tenant_names={digest: "harbour"}))
    try:
        assert metrics.tenant_label(tenant) == "harbour"
    finally:
        metrics.configure(MetricsSettings())
    assert metrics.tenant_label(tenant) == digest
