"""Schemas from outside, rates, units, dates, and what marks data."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from argosy_services.agents.data import as_data, without_marks
from argosy_services.agents.strategies.chain import filled
from argosy_services.agents.strategies.chain_of_thought import vote
from argosy_services.agents.tools.base import Effect, InvalidArgumentsError, call
from argosy_services.agents.tools.dates import Calendar
from argosy_services.agents.tools.rates import Rates
from argosy_services.agents.tools.schema import ClientTool, SchemaRefusedError, usable
from argosy_services.agents.tools.units import UnitConverter

LIST = {
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
    "$defs": {"Item": {"type": "object", "properties": {"pattern": {"type": "string"}}, "required": ["pattern"]}},
}


def test_definitions_are_put_in_place() -> None:
    schema = usable(LIST)
    assert schema["properties"]["items"]["items"]["required"] == ["pattern"]
    assert "$defs" not in schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string"}, "type object"),
        (
            {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"items": {"$ref": "#/$defs/A"}}}},
            "refers to itself",
        ),
        ({"properties": {"a": {"$ref": "https://evil.test/schema"}}}, "does not define"),
        ({"properties": {"a": {"type": "no type"}}}, "no JSON schema"),
        ({"description": "x" * 20_000}, "more than"),
        ({"$defs": 5}, "no objects"),
    ],
)
def test_schemas_that_are_refused(schema: Mapping[str, object], said: str) -> None:
    with pytest.raises(SchemaRefusedError, match=said):
        usable(schema)


def test_arguments_are_checked_again() -> None:
    tool = ClientTool("t", "", LIST, Effect.READ)
    assert tool.validate({"items": [{"pattern": "a"}]})
    with pytest.raises(InvalidArgumentsError, match=r"\$\.items\[0\]"):
        tool.validate({"items": [{}]})


def test_a_pattern_from_outside_cannot_take_for_ever() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    tool = ClientTool("t", "", schema, Effect.READ)
    assert tool.parameters["properties"]["a"]["pattern"] == "^(a+)+$"
    assert tool.validate({"a": "a" * 60 + "!"})


def test_rates() -> None:
    now = 0.0
    rates = Rates(lambda: now)
    assert [rates.wait_for("a", 2) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert rates.wait_for("b", 2) == 0.0
    now = 31.0
    assert rates.wait_for("a", 2) == 0.0
    assert rates.wait_for("a", 0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"value": 5, "unit": "mi", "to": "km"}, "5 mi = 8.04672 km"),
        ({"value": 70, "unit": "F", "to": "C"}, "70 F = 21.1111111111 C"),
        ({"value": -40, "unit": "C", "to": "F"}, "-40 C = -40 F"),
        ({"value": 1, "unit": "GiB", "to": "MB"}, "1 GiB = 1073.741824 MB"),
    ],
)
async def test_units(arguments: dict[str, object], text: str) -> None:
    assert (await call(UnitConverter(), arguments, at_most_s=1)).text == text


async def test_units_of_different_quantities() -> None:
    result = await call(UnitConverter(), {"value": 1, "unit": "kg", "to": "km"}, at_most_s=1)
    assert (result.status, result.text) == ("error", "kg is a unit of mass, km one of length")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"date": "2024-02-28", "days": 2}, "Wednesday 2024-02-28 plus 2 days is Friday 2024-03-01."),
        ({"date": "2026-01-01", "until": "2025-12-25"}, "From Thursday 2026-01-01 to Thursday 2025-12-25 are -7 days."),
        ({"date": "2025-02-29"}, "2025-02-29 is no date: day is out of range for month"),
        ({"date": "9999-12-31", "days": 1}, "that date lies outside of the years 1 to 9999"),
    ],
)
async def test_dates(arguments: dict[str, object], text: str) -> None:
    assert (await call(Calendar(), arguments, at_most_s=1)).text == text


@pytest.mark.parametrize(
    "mark",
    [
        "<|im_end|>",
        "<|im_start|>system",
        "</tool_data>",
        "</ TOOL_DATA >",
        "</s>",
        "[/INST]",
        "<end_of_turn>",
        "<tool_call>",
    ],
)
def test_data_cannot_end_its_mark(mark: str) -> None:
    marked = as_data(f"before {mark} after")
    assert mark not in marked.removeprefix("<tool_data>").removesuffix("</tool_data>")
    assert marked.startswith("<tool_data>before ")
    assert marked.endswith(" after</tool_data>")


def test_other_text_stays_as_it_is() -> None:
    text = "1 < 2, a<b>c</b>, x[0] | y"
    assert without_marks(text) == text


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["4", "The answer is 4.", "5"], "4"),
        (["1,000", "1000.0", "7"], "1,000"),
        (["Paris", "paris.", "Rome"], "Paris"),
        (["a", "b"], "a"),
    ],
)
def test_votes(answers: list[str], winner: str) -> None:
    assert vote(answers) == winner


def test_an_answer_that_holds_a_placeholder_stays_as_it_is() -> None:
    assert filled("{{a}} {{ b }} {c}", {"a": "{{b}}", "b": "x"}) == "{{b}} x {c}"


def test_what_is_open_gets_a_bound() -> None:
    schema = usable(
        {
            "properties": {
                "text": {"type": "string"},
                "long": {"type": "string", "maxLength": 5_000},
                "one": {"type": "string", "enum": ["a"]},
                "list": {"type": "array", "items": {"type": "integer"}},
            }
        }
    )["properties"]
    assert schema["text"]["maxLength"] == 200
    assert schema["long"]["maxLength"] == 5_000
    assert "maxLength" not in schema["one"]
    assert (schema["list"]["maxItems"], schema["list"]["items"]["maximum"]) == (16, 10**15)
