"""The servicers against the schema. They inherit no generated base, so nothing else would notice a missing method."""

from __future__ import annotations

import importlib
import inspect

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from argosy_services.rpc.dispatch import SERVICES

AREAS = ("adapters", "agents", "embeddings", "generation", "tokenization")
METHODS = [method for service in SERVICES.values() for method in service.methods]


def servicer(service: ServiceDescriptor) -> type:
    area = service.full_name.split(".")[2]
    return getattr(importlib.import_module(f"argosy_services.{area}.servicer"), f"{area.capitalize()}Servicer")


def test_there_are_five_services() -> None:
    assert sorted(name.split(".")[2] for name in SERVICES) == list(AREAS)


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_servicer_names_its_service_and_takes_what_every_servicer_takes(service: ServiceDescriptor) -> None:
    cls = servicer(service)
    assert service.full_name == cls.SERVICE
    assert list(inspect.signature(cls).parameters) == ["service", "gate", "auth"]


@pytest.mark.parametrize("method", METHODS, ids=[method.full_name for method in METHODS])
def test_every_rpc_has_its_method(method: MethodDescriptor) -> None:
    implementation = getattr(servicer(method.containing_service), method.name)
    of_its_kind = inspect.isasyncgenfunction if method.server_streaming else inspect.iscoroutinefunction
    assert of_its_kind(implementation)
    # Ray Serve passes the context to a parameter of this name only.
    assert list(inspect.signature(implementation).parameters) == ["self", "request", "grpc_context"]


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_no_method_stands_outside_the_schema(service: ServiceDescriptor) -> None:
    public = {
        name
        for name, member in inspect.getmembers(servicer(service), inspect.isfunction)
        if not name.startswith("_") and "grpc_context" in inspect.signature(member).parameters
    }
    assert public == {method.name for method in service.methods}


def test_no_rpc_streams_requests() -> None:
    assert not [method.full_name for method in METHODS if method.client_streaming]


def test_unary_and_stream_rpcs_have_messages_of_their_own() -> None:
    for method in METHODS:
        prefix = f"{method.containing_service.file.package}.{method.name}"
        assert (method.input_type.full_name, method.output_type.full_name) == (f"{prefix}Request", f"{prefix}Response")
