"""The vocabulary of errors: one table, total, equal to the schema."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from argosy.api.common.v1 import errors_pb2
from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc import status

PROTO = Path(__file__).parents[3] / "protos/argosy/api/common/v1/errors.proto"


def test_reasons_are_those_of_the_schema() -> None:
    schema = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert {reason.name for reason in Reason} == schema - {"UNSPECIFIED"}
    assert all(reason.name == reason.value for reason in Reason)


def test_every_reason_has_a_code_of_its_own_kind() -> None:
    assert set(status.CODES) == set(Reason)
    assert grpc.StatusCode.OK not in status.CODES.values()


@pytest.mark.parametrize("reason", Reason)
def test_the_schema_documents_each_reason_with_its_code(reason: Reason) -> None:
    documented = re.search(rf"// ([A-Z_]+): [^\n]*(?:\n\s*//[^\n]*)*\n\s*ERROR_REASON_{reason} =", PROTO.read_text())
    assert documented is not None
    assert documented[1] == status.CODES[reason].name


def test_retry_info_is_there_exactly_where_it_was_asked_for() -> None:
    def retry_after(seconds: float | None) -> list[int]:
        packed = status.details(ArgosyError(Reason.QUEUE_FULL, "full", retry_after_s=seconds)).details
        found = [detail for detail in packed if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
        return [error_details_pb2.RetryInfo.FromString(d.value).retry_delay.ToMilliseconds() for d in found]

    assert retry_after(None) == []
    assert retry_after(0.25) == [250]


def test_text_is_cut_between_characters() -> None:
    cut = status.details(ArgosyError(Reason.INTERNAL, "é" * 1000))
    assert cut.message == "é" * 398 + "..."
    whole = status.details(ArgosyError(Reason.INTERNAL, "é" * 400))
    assert whole.message == "é" * 400


def test_what_an_error_quotes_can_be_sent_and_stored() -> None:
    """Neither UTF-8 nor PostgreSQL's text takes everything that a string of JSON may hold."""
    error = ArgosyError(Reason.ADAPTER_INVALID, "sets \ud800\x00é", detail="\udfff\x00")
    assert error.message == str(error) == "sets \\ud800\\x00é"
    assert error.metadata == {"detail": "\\udfff\\x00"}
    assert status.details(error).message == error.message
