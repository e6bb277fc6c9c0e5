"""Where the time of a request went, told by a whole fleet."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import argosy

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Stage = argosy.Stage
PROMPT = "The harbour master wrote down every ship that came in, and for each of them " * 4


def test_the_stages_of_a_request_are_its_time(client: argosy.Client) -> None:
    """Fails when a stage is left out or counted twice."""
    started = time.monotonic()
    with client.generation.stream(PROMPT, max_tokens=48, ignore_eos=True) as stream:
        answer = stream.result()
    took = time.monotonic() - started
    found = client.generation.explain(answer.origin.request_id)
    assert found.state is argosy.RequestState.FINISHED
    assert found.seconds <= took
    assert sum(part.seconds for part in found.stages) == pytest.approx(found.seconds, rel=0.1, abs=0.05)
    assert (found.prompt_tokens, found.completion_tokens) == (answer.usage.prompt_tokens, 48)
    seconds = {part.stage: part.seconds for part in found.stages}
    assert seconds[Stage.DECODE] == pytest.approx(answer.timings.decode, rel=0.05, abs=0.02)
    assert {Stage.TOKENIZE, Stage.PREFILL, Stage.DECODE} <= seconds.keys()


def test_a_request_that_runs(client: argosy.Client) -> None:
    with client.generation.stream(PROMPT, max_tokens=400, ignore_eos=True) as stream:
        next(iter(stream.text()))
        found = client.generation.explain(stream.request_id)
        assert found.state is argosy.RequestState.RUNNING
        assert found.completion_tokens < 400
    deadline = time.monotonic() + 10
    while client.generation.explain(stream.request_id).state is argosy.RequestState.RUNNING:
        assert time.monotonic() < deadline, "it never ended"
        time.sleep(0.02)
    assert client.generation.explain(stream.request_id).state is argosy.RequestState.CANCELLED


def test_a_crowd_waits_for_itself(client: argosy.Client) -> None:
    """Fails when requests are not told who was before them."""

    def ask(number: int) -> argosy.Explanation:
        answer = client.generation.generate(f"{number} {PROMPT}", max_tokens=8, ignore_eos=True)
        return client.generation.explain(answer.origin.request_id)

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(ask, range(16)))
    ahead = [wait.ahead for one in found for wait in one.waits if wait.cause is argosy.WaitCause.QUEUE]
    assert len(ahead) == 16
    assert max(one.own for one in ahead if one) >= 4
    assert {one.others for one in ahead if one} == {0}


def test_a_grammar_and_an_adapter(client: argosy.Client, good_adapter: Path) -> None:
    client.adapters.load("explained", good_adapter)
    try:
        answer = client.generation.generate(
            "Name a ship.", adapter="explained", regex="[a-f]{3}-[0-9]{4}-[a-z]{2}", max_tokens=16
        )
        found = client.generation.explain(answer.origin.request_id)
    finally:
        client.adapters.unload("explained")
    assert found.adapter == "explained"
    assert Stage.CHECK_GRAMMAR in {part.stage for part in found.stages}
    assert "explained" in {wait.adapter for wait in found.waits}


def test_an_unknown_request(client: argosy.Client) -> None:
    with pytest.raises(argosy.RequestNotFoundError, match="request id of a generation"):
        client.generation.explain("never-asked")
    with pytest.raises(argosy.InvalidRequestError):
        client.generation.explain("")
