"""One trace for one agent run, over everything that works for it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

import argosy
from argosy_services.testing import Collector, ReceivedSpan, RunningFleet, RunningServer

from ..unit.embeddings.adapted import write_adapter

pytestmark = pytest.mark.usefixtures("nothing_leaks")

RUN_AGENT = "argosy.api.agents.v1.AgentsService/RunAgent"
CALLER = 0xABCDEF0123456789


@contextmanager
def caller(trace_id: int, *, sampled: bool = True) -> Iterator[str]:
    """The code inside belongs to a span of a program that uses OpenTelemetry; gives the trace's id."""
    context = SpanContext(trace_id, CALLER, is_remote=False, trace_flags=TraceFlags(int(sampled)))
    with use_span(NonRecordingSpan(context)):
        yield f"{trace_id:032x}"


@contextmanager
def load(client: argosy.Client, streams: int) -> Iterator[None]:
    """So many streams run all the time, from before the block begins."""
    ended = threading.Event()
    begun = threading.Semaphore(0)

    def stream() -> None:
        while not ended.is_set():
            with client.generation.stream("The harbour at night is", max_tokens=32, ignore_eos=True) as answer:
                for _ in answer.text():
                    begun.release()

    threads = [threading.Thread(target=stream) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert begun.acquire(timeout=60)
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=120)


def trace_of(collector: Collector, trace_id: str, last: str) -> list[ReceivedSpan]:
    """All spans of a trace, once the one named `last`, which ends after the others, has come."""
    give_up = time.monotonic() + 20
    while True:
        found = [span for span in list(collector.spans) if span.trace_id == trace_id]
        # Processes send on their own, each once a second.
        if any(span.name == last for span in found) and orphans(found) == {f"{CALLER:016x}"}:
            time.sleep(1.5)
            return [span for span in list(collector.spans) if span.trace_id == trace_id]
        assert time.monotonic() < give_up, f"incomplete: {Counter(span.name for span in found)}"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def nothing_yet(collector: Collector) -> None:
    """Forgets what fleets of other runtimes have sent."""
    collector.spans.clear()


def orphans(spans: Sequence[ReceivedSpan]) -> set[str]:
    """Parents that are not among the spans."""
    return {span.parent_id for span in spans} - {span.span_id for span in spans}


def covered(spans: Sequence[ReceivedSpan]) -> float:
    """Seconds in which at least one of the spans that have no children was open."""
    parents = {span.parent_id for span in spans}
    seconds, until = 0.0, 0.0
    for span in sorted((span for span in spans if span.span_id not in parents), key=lambda span: span.start):
        seconds += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return seconds


def test_an_agent_run_under_load_is_one_trace_that_accounts_for_its_time(
    client: argosy.Client, collector: Collector, fleet: RunningFleet
) -> None:
    with load(client, streams=6), caller(0x5EED) as trace_id:
        run = client.agents.run("What is 17 * 23 + 4?", tools=["calculator"])
        calls = [event for event in run if isinstance(event, argosy.ToolRequested)]
    assert run.finished is not None
    spans = trace_of(collector, trace_id, last=RUN_AGENT)
    names = Counter(span.name for span in spans)
    root = next(span for span in spans if span.parent_id == f"{CALLER:016x}")
    assert root.name == RUN_AGENT
    assert orphans(spans) == {root.parent_id}
    assert names["invoke_agent"] == 1
    assert names["step"] == run.finished.steps
    assert names["execute_tool calculator"] == len(calls) > 0
    completions = [span for span in spans if "gen_ai.usage.output_tokens" in span.attributes]
    usage = sum(span.attributes["gen_ai.usage.output_tokens"] for span in completions)
    assert usage == run.finished.usage.completion_tokens
    for stage in ("tokenize", "queue", "prefill", "decode"):
        assert names[stage] == len(completions)
    # On a cluster each hop between processes waits for a core, in no span of theirs.
    share = 0.95 if isinstance(fleet, RunningServer) else 0.85
    assert covered(spans) >= share * (root.end - root.start)
    assert not any(span.failed for span in spans)


def test_traces_hold_no_text(client: argosy.Client, collector: Collector) -> None:
    secret = "the password is swordfish 17 * 23"
    with caller(0x5EC4E7) as trace_id:
        client.agents.run(secret, tools=["calculator"], budget=argosy.AgentBudget(max_steps=1)).result()
        client.generation.stream(secret, max_tokens=4).result()
        client.embeddings.embed([secret])
        client.tokenization.encode(secret)
        with pytest.raises(argosy.ArgosyError):
            client.generation.stream(secret, model="swordfish", max_tokens=4).result()
    spans = trace_of(collector, trace_id, last="argosy.api.tokenization.v1.TokenizationService/Encode")
    assert len([span for span in spans if span.parent_id == f"{CALLER:016x}"]) == 5
    assert {"queue", "compute", "tokenize", "prefill"} <= {span.name for span in spans}
    assert "swordfish" not in str([(span.name, span.attributes, span.events) for span in spans])


@pytest.fixture(scope="session")
def sentence_adapter(adapter_root: Path) -> Path:
    """An adapter of the embedding model; written once for all runtimes."""
    return write_adapter(adapter_root / "traced", 0)


def test_texts_that_wait_for_an_adapter_say_so(
    client: argosy.Client, collector: Collector, sentence_adapter: Path
) -> None:
    client.adapters.load("traced", sentence_adapter, base_model="all-minilm-l6-v2")
    try:
        with caller(0xADA) as trace_id:
            client.embeddings.embed(["A ship at sea."], adapter="traced")
    finally:
        client.adapters.unload("traced")
    spans = trace_of(collector, trace_id, last="argosy.api.embeddings.v1.EmbeddingsService/Embed")
    (wait,) = [span for span in spans if span.name == "wait for adapter"]
    (tokenize,) = [span for span in spans if span.name == "tokenize"]
    assert wait.attributes["argosy.adapter"] == "traced"
    assert wait.end <= tokenize.start


def test_callers_decide_whether_their_calls_are_traced(client: argosy.Client, collector: Collector) -> None:
    with caller(0x0FF, sampled=False) as unwanted:
        client.tokenization.encode("quiet")
    client.tokenization.encode("by itself")
    with caller(0xBEEF) as wanted:
        client.tokenization.encode("loud")
    trace_of(collector, wanted, last="argosy.api.tokenization.v1.TokenizationService/Encode")
    assert unwanted not in {span.trace_id for span in collector.spans}
    assert {span.trace_id for span in collector.spans} <= {f"{own:032x}" for own in (0x5EED, 0x5EC4E7, 0xBEEF)}
