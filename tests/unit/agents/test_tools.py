"""The clock, the registry, and how tools are called."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from argosy_services.agents.tools.base import MAX_OBSERVATION_CHARS, Arguments, call, shortened
from argosy_services.agents.tools.calculator import Calculator
from argosy_services.agents.tools.clock import Clock
from argosy_services.agents.tools.registry import ToolRegistry
from argosy_services.errors import ArgosyError, Reason

from .scripted import Echo

NOON = datetime(2026, 7, 1, 12, 0, 5, 999, tzinfo=UTC)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "It is 2026-07-01T12:00:05+00:00 in UTC."),
        ({"timezone": "UTC"}, "It is 2026-07-01T12:00:05+00:00 in UTC."),
        ({"timezone": "Asia/Tokyo"}, "It is 2026-07-01T21:00:05+09:00 in Asia/Tokyo."),
        ({"timezone": "America/New_York"}, "It is 2026-07-01T08:00:05-04:00 in America/New_York."),
        ({"timezone": "Asia/Kolkata"}, "It is 2026-07-01T17:30:05+05:30 in Asia/Kolkata."),
    ],
)
async def test_time_in_a_zone(arguments: dict[str, object], text: str) -> None:
    result = await call(Clock(lambda: NOON), arguments, at_most_s=1)
    assert (result.text, result.status) == (text, "ok")


@pytest.mark.parametrize("zone", ["Mars/Phobos", "../../etc/passwd", "/etc/passwd", "Europe", "", "utc\x00"])
async def test_unknown_zone(zone: str) -> None:
    result = await call(Clock(), {"timezone": zone}, at_most_s=1)
    assert result.status == "error"
    assert "Europe/Berlin" in result.text


async def test_the_clock_goes() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    result = await call(Clock(), {}, at_most_s=1)
    shown = datetime.fromisoformat(result.text.removeprefix("It is ").removesuffix(" in UTC."))
    assert before <= shown <= datetime.now(UTC)


def test_zones_are_offered_by_name() -> None:
    zones = Clock().parameters["properties"]["timezone"]["enum"]
    assert {"UTC", "Asia/Tokyo", "America/New_York", "Europe/London"} <= set(zones)
    assert zones == sorted(zones)
    assert not any(zone.startswith("Etc/") for zone in zones)


def test_models_are_not_shown_the_hundreds_of_zones() -> None:
    """Fails when a prompt carries a list that takes 4,000 tokens."""
    clock = Clock()
    properties = clock.shown["properties"]
    assert properties["timezone"] == {
        "default": "UTC",
        "description": "An IANA time zone.",
        "maxLength": 64,
        "type": "string",
    }
    assert {**clock.shown, "properties": None} == {**clock.parameters, "properties": None}
    assert Calculator().shown == Calculator().parameters


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "text: Field required"),
        ({"text": 5}, "text: Input should be a valid string"),
        ({"text": "a" * 21}, "text: String should have at most 20 characters"),
        ({"text": "a", "other": 1}, "other: Extra inputs are not permitted"),
    ],
)
async def test_invalid_arguments_are_never_executed(arguments: dict[str, object], problem: str) -> None:
    echo = Echo()
    result = await call(echo, arguments, at_most_s=1)
    assert result.status == "invalid"
    assert result.is_error
    assert problem in result.text
    assert echo.calls == []


async def test_a_failure_is_told() -> None:
    result = await call(Echo(), {"text": "fail"}, at_most_s=1)
    assert (result.text, result.status, result.is_error) == ("nothing to repeat; send another text", "error", True)


async def test_a_fault_of_ours_passes_through() -> None:
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await call(Echo(), {"text": "bug"}, at_most_s=1)


@pytest.mark.parametrize(("own", "given"), [(0.02, 10.0), (10.0, 0.02)])
async def test_time_of_a_call_is_bounded(own: float, given: float) -> None:
    result = await call(Echo(delay_s=30, timeout_s=own), {"text": "a"}, at_most_s=given)
    assert (result.text, result.status) == ("echo did not answer within 0.02 s", "timeout")
    assert 0.01 < result.seconds < 5


async def test_a_timeout_of_the_tools_own_is_a_fault() -> None:
    class Broken(Echo):
        async def run(self, arguments: object) -> str:
            raise TimeoutError("of something inside")

    with pytest.raises(TimeoutError, match="of something inside"):
        await call(Broken(), {"text": "a"}, at_most_s=1)


def test_long_observations_are_cut() -> None:
    text = shortened("word " * 10_000)
    assert len(text) == MAX_OBSERVATION_CHARS
    assert text.endswith("[...]")


def test_registry_selects() -> None:
    calculator, clock = Calculator(), Clock()
    registry = ToolRegistry([clock, calculator])
    assert registry.all() == [calculator, clock]
    assert registry.select([]) == [calculator, clock]
    assert registry.select(["current_time", "calculator", "current_time"]) == [calculator, clock]
    assert registry.select(["current_time"]) == [clock]


def test_registry_names_what_is_there() -> None:
    with pytest.raises(ArgosyError, match="calculator, current_time") as caught:
        ToolRegistry([Calculator(), Clock()]).select(["calculator", "shell"])
    assert caught.value.reason is Reason.TOOL_NOT_FOUND
    assert caught.value.metadata == {"tool": "shell"}


@pytest.mark.parametrize("name", ["calculator", "final_answer"])
def test_registry_refuses_taken_names(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ToolRegistry([Calculator(), Echo(name=name)])


def test_registry_refuses_schemas_with_references() -> None:
    class Inner(BaseModel):
        value: int

    class Outer(Arguments):
        inner: Inner

    with pytest.raises(ValueError, match="must not refer"):
        ToolRegistry([Echo(arguments=Outer)])


def test_schemas_are_bounded_and_closed() -> None:
    for tool in (Calculator(), Clock()):
        schema = tool.parameters
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        assert all("maxLength" in property_ for property_ in schema["properties"].values())
        assert len(json.dumps(schema)) < 64 << 10
