"""The sync and the async face have the same methods and the same signatures."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import argosy
from argosy import adapters, agents, embeddings, generation, tokenization
from argosy._stream import AsyncStream, Stream

PAIRS = [
    (argosy.Client, argosy.AsyncClient),
    (tokenization.TokenizationClient, tokenization.AsyncTokenizationClient),
    (generation.GenerationClient, generation.AsyncGenerationClient),
    (embeddings.EmbeddingsClient, embeddings.AsyncEmbeddingsClient),
    (adapters.AdaptersClient, adapters.AsyncAdaptersClient),
    (agents.AgentsClient, agents.AsyncAgentsClient),
    (argosy.TextStream, argosy.AsyncTextStream),
    (argosy.AgentRun, argosy.AsyncAgentRun),
    (argosy.AdapterWatch, argosy.AsyncAdapterWatch),
    (Stream, AsyncStream),
]


def public(kind: type) -> dict[str, Any]:
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


def parameters(method: Any) -> list[tuple[str, Any, Any, Any]]:
    signature = inspect.signature(method)
    return [
        (p.name, p.kind, p.default, p.annotation.replace("Async", "")) for p in list(signature.parameters.values())[1:]
    ]


@pytest.mark.parametrize(("sync", "aio"), PAIRS, ids=lambda kind: kind.__name__)
def test_same_methods_with_the_same_parameters(sync: type, aio: type) -> None:
    assert public(sync).keys() == public(aio).keys()
    for name, method in public(sync).items():
        twin = public(aio)[name]
        if inspect.isfunction(method):
            assert parameters(method) == parameters(twin), name
    assert parameters(sync.__init__) == parameters(aio.__init__)


@pytest.mark.parametrize(("sync", "aio"), PAIRS[1:6], ids=lambda kind: kind.__name__)
def test_every_method_takes_a_timeout_and_a_request_id(sync: type, aio: type) -> None:
    for name, method in public(sync).items():
        assert {"timeout", "request_id"} <= inspect.signature(method).parameters.keys(), name


@pytest.mark.parametrize(("sync", "aio"), PAIRS[1:6], ids=lambda kind: kind.__name__)
def test_results_have_matching_types(sync: type, aio: type) -> None:
    def without_async(annotation: str) -> str:
        return annotation.replace("Async", "")

    for name, method in public(sync).items():
        expected = inspect.signature(method).return_annotation
        assert without_async(inspect.signature(public(aio)[name]).return_annotation) == expected, name
