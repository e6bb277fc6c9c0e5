"""Every status becomes the right exception, and none is missing."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.scripted import Failure, ScriptedServer

import argosy
from argosy import errors
from argosy._status import CLASS_OF_CODE, CLASS_OF_REASON, error_class, to_error
from argosy.api.common.v1 import errors_pb2

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
REASONS = {
    value.name.removeprefix("ERROR_REASON_") for value in errors_pb2.ErrorReason.DESCRIPTOR.values if value.number
}
CODE_OF_REASON = {
    # The comments of the schema start with the code.
    reason: grpc.StatusCode[code]
    for reason, code in {
        "INVALID_FIELD": "INVALID_ARGUMENT",
        "MODEL_NOT_FOUND": "NOT_FOUND",
        "ADAPTER_EXISTS": "ALREADY_EXISTS",
        "WRONG_BASE_MODEL": "FAILED_PRECONDITION",
        "KV_CACHE_FULL": "RESOURCE_EXHAUSTED",
        "DRAINING": "UNAVAILABLE",
        "INVALID_CREDENTIALS": "UNAUTHENTICATED",
        "NOT_PERMITTED": "PERMISSION_DENIED",
        "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
        "NOT_SUPPORTED": "UNIMPLEMENTED",
        "INTERNAL": "INTERNAL",
    }.items()
}


def test_there_is_a_class_for_every_code() -> None:
    assert set(CLASS_OF_CODE) == set(CODES)
    assert len(CODES) == 16


def test_there_is_a_class_for_every_reason() -> None:
    assert set(CLASS_OF_REASON) == REASONS


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("reason", ["", "FROM_THE_FUTURE", *sorted(REASONS)])
def test_the_table_is_total(code: grpc.StatusCode, reason: str) -> None:
    kind = error_class(code, reason)
    assert issubclass(kind, argosy.ArgosyError)
    assert issubclass(kind, CLASS_OF_CODE[code])


@pytest.mark.parametrize(("reason", "code"), CODE_OF_REASON.items())
def test_a_reason_refines_its_code(reason: str, code: grpc.StatusCode) -> None:
    assert error_class(code, reason) is CLASS_OF_REASON[reason]


def test_the_docstring_is_the_tree() -> None:
    documented: dict[str, str] = {}
    parents = ["ArgosyError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│ ]*)[├└]── (\w+)", line)
        if match:
            depth = len(match[1]) // 4 + 1
            parents[depth:] = [match[2]]
            documented[match[2]] = parents[depth - 1]
    actual = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, argosy.ArgosyError) and kind is not argosy.ArgosyError
    }
    assert documented == actual


async def test_an_error_carries_everything_that_the_server_said(face: Face, server: ScriptedServer) -> None:
    server.failures["Generate"] = [
        Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "sampling.top_p must be above 0",
            metadata={"field": "sampling.top_p", "limit": "1", "value": "3"},
            field_violation=("sampling.top_p", "must be above 0"),
        )
    ]
    with pytest.raises(argosy.InvalidRequestError) as caught:
        await face.call(lambda c: c.generation.generate("x", top_p=3.0, request_id="my-id"))
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_FIELD"
    assert error.message == "sampling.top_p must be above 0"
    assert error.metadata == {"field": "sampling.top_p", "limit": "1", "value": "3"}
    assert error.field_violations == (argosy.FieldViolation("sampling.top_p", "must be above 0", "INVALID_FIELD"),)
    assert error.retry_after is None
    assert error.request_id == "my-id"
    assert str(error) == "sampling.top_p must be above 0 (INVALID_FIELD, request id my-id)"
    assert not isinstance(error, grpc.RpcError)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_every_code_over_the_wire(face: Face, server: ScriptedServer, code: grpc.StatusCode) -> None:
    server.answers["Generate"] = Failure(code)
    server.answers["StreamGenerate"] = [Failure(code)]
    for use in (lambda c: c.generation.generate("x"), lambda c: c.generation.stream("x").result()):
        with pytest.raises(CLASS_OF_CODE[code]) as caught:
            await face.call(use)
        assert caught.value.code is code


async def test_details_of_another_domain_or_broken_ones_do_no_harm(face: Face, server: ScriptedServer) -> None:
    not_found = grpc.StatusCode.NOT_FOUND
    server.failures["Generate"] = [
        Failure(not_found, "MODEL_NOT_FOUND", domain="elsewhere.example"),
        Failure(not_found, raw_details=b"\xff\xff\xff"),
    ]
    for _ in range(2):
        with pytest.raises(argosy.NotFoundError) as caught:
            await face.call(lambda c: c.generation.generate("x"))
        assert type(caught.value) is argosy.NotFoundError
        assert caught.value.reason == ""


async def test_a_missed_deadline_is_also_a_timeout_error(face: Face, server: ScriptedServer) -> None:
    server.delays["Generate"] = 5.0
    with pytest.raises(TimeoutError) as caught:
        await face.call(lambda c: c.generation.generate("x", timeout=0.2))
    assert isinstance(caught.value, argosy.DeadlineExceededError)
    assert server.calls_of("Generate")[0].ended.wait(2)


class _Status:
    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, Any], ...]) -> None:
        self._parts = code, details, trailers

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._parts[2]


@given(code=st.sampled_from(CODES), details=st.text(), packed=st.binary(max_size=200))
def test_no_status_whatsoever_breaks_the_mapping(code: grpc.StatusCode, details: str, packed: bytes) -> None:
    error = to_error(
        _Status(code, details, (("grpc-status-details-bin", packed),)), address="somewhere", request_id="r"
    )
    assert isinstance(error, CLASS_OF_CODE[code])
    assert error.message


def test_errors_survive_pickling() -> None:
    error = argosy.QueueFullError("full", reason="QUEUE_FULL", metadata={"limit": "8"}, retry_after=1.5, request_id="r")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is argosy.QueueFullError
    assert (copy.message, copy.reason, copy.metadata, copy.retry_after) == ("full", "QUEUE_FULL", {"limit": "8"}, 1.5)
    assert str(copy) == str(error)
