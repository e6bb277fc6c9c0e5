"""The calculator against Python's own arithmetic, and against expressions made to hurt."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy_services.agents.tools.arithmetic import MAX_CHARS, ArithmeticFailedError, evaluate, shown
from argosy_services.agents.tools.base import call
from argosy_services.agents.tools.calculator import Calculator

PYTHON = {"__builtins__": {}, "abs": abs, "max": max, "min": min, "round": round, "sqrt": math.sqrt}


def trees() -> st.SearchStrategy[str]:
    leaves = st.one_of(
        st.integers(0, 999).map(str),
        st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda parts: f"{parts[0]}.{parts[1]:02d}"),
    )

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        operators = st.sampled_from(["+", "-", "*", "/", "//", "%"])
        return st.one_of(
            st.tuples(inner, operators, inner).map(lambda parts: "{} {} {}".format(*parts)),
            st.tuples(inner, st.sampled_from(["**", "^"]), st.integers(-3, 3)).map(
                lambda parts: f"({parts[0]}) {parts[1]} {parts[2]}"
            ),
            inner.map(lambda text: f"({text})"),
            inner.map(lambda text: f"-{text}"),
            inner.map(lambda text: f"abs({text})"),
            inner.map(lambda text: f"sqrt(abs({text}))"),
            inner.map(lambda text: f"round({text}, 3)"),
            st.tuples(inner, inner).map(lambda parts: "max({}, {})".format(*parts)),
            st.tuples(inner, inner).map(lambda parts: "min({}, {})".format(*parts)),
        )

    return st.recursive(leaves, grown, max_leaves=8).filter(lambda text: len(text) <= MAX_CHARS)


@settings(max_examples=1000, deadline=None)
@given(trees())
def test_agrees_with_python(text: str) -> None:
    try:
        expected = eval(text.replace("^", "**"), PYTHON)
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(ArithmeticFailedError):
            evaluate(text)
        return
    if isinstance(expected, complex) or not math.isfinite(expected):
        with pytest.raises(ArithmeticFailedError):
            evaluate(text)
        return
    assert evaluate(text) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@settings(deadline=None)
@given(st.integers(-(10**60), 10**60), st.integers(-(10**60), 10**60), st.sampled_from(["+", "-", "*", "//", "%"]))
def test_integers_are_exact(left: int, right: int, sign: str) -> None:
    text = f"({left}) {sign} ({right})"
    if right == 0 and sign in ("//", "%"):
        with pytest.raises(ArithmeticFailedError, match="division by zero"):
            evaluate(text)
    else:
        assert shown(evaluate(text)) == str(eval(text, PYTHON))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("17 * 23 + 4", "395"),
        ("(120 - 36) / 7", "12"),
        ("10 / 4", "2.5"),
        ("0.1 + 0.2", "0.3"),
        ("19.99 * 3", "59.97"),
        ("1 / 3", "0.333333333333"),
        ("3.5 * 4.", "14"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "-4"),
        ("2 ** -1", "0.5"),
        ("2^10", "1024"),
        ("7 - -3", "10"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("sqrt(625)", "25"),
        ("sqrt(2)", "1.41421356237"),
        ("round(2.567, 1)", "2.6"),
        ("max(1, 5, 3)", "5"),
        ("(10 ** 40) / 5", "2" + "0" * 39),
        ("0 * -1.5", "0"),
    ],
)
def test_results_read_well(text: str, result: str) -> None:
    assert shown(evaluate(text)) == result


NESTED = "(" * 90 + "1" + ")" * 90


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9**9**9", "more than 400 digits"),
        ("9**9**9**9**9", "more than 400 digits"),
        ("(9**400)*(9**400)", "more than 400 digits"),
        ("99999999**99999999", "more than 400 digits"),
        ("9.9**9999", "too large"),
        ("10**399 * 1.5", "too large"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("(-8) ** 0.5", "no such power"),
        ("sqrt(-1)", "no square root"),
        ("round(1, 10**300)", "count of digits"),
        (NESTED, "nested"),
        ("-" * 150 + "1", "nested"),
        ("2**" * 60 + "2", "nested"),
        ("sqrt(" * 35 + "1", "nested"),
        ("1" * 201, "201 characters"),
        ("", "empty"),
        ("   ", "empty"),
        ("1 +", "ends too early"),
        ("(1", r"'\)' is missing"),
        ("1)", "unexpected"),
        ("1 2", "unexpected"),
        ("1,000 + 1", "1000 rather than"),
        ("sqrt(1, 2)", "takes one number"),
        ("sqrt()", "unexpected"),
        ("sqrt", "missing"),
        ("open(1)", "no function 'open'"),
        ("__import__(1)", "no function '__import__'"),
        ("(1).real", "no part"),
        ("1 if 1 else 2", "unexpected"),
        ("'a' * 9", "no part"),
        ("x = 1", "no part"),
        ("[1] * 9", "no part"),
        ("\x00", "no part"),
        ("١ + ١", "no part"),
    ],
)
def test_hostile_expressions_end_at_once(text: str, problem: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ArithmeticFailedError, match=problem):
        evaluate(text)
    assert time.perf_counter() - start < 0.5


@settings(max_examples=500, deadline=2000)
@given(st.text(alphabet="0123456789.+-*/%^(), sqrtmaxinbdo", max_size=MAX_CHARS))
def test_any_text_has_a_value_or_an_error(text: str) -> None:
    try:
        value = evaluate(text)
    except ArithmeticFailedError:
        return
    # An integer is finite, and may be too large for a float: 4^600 is.
    assert isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


async def test_the_tool_restates_the_expression() -> None:
    result = await call(Calculator(), {"expression": "2 + 3 * 4"}, at_most_s=1)
    assert (result.text, result.status) == ("2 + 3 * 4 = 14", "ok")


async def test_the_tool_says_why_there_is_no_result() -> None:
    result = await call(Calculator(), {"expression": "1 / 0"}, at_most_s=1)
    assert (result.text, result.status) == ("1 / 0 has no value: division by zero", "error")


@pytest.mark.parametrize("text", ["1 + 1 is 2", "2" * 121, "", "import os", "1 + + 1"])
async def test_the_schema_keeps_prose_out(text: str) -> None:
    result = await call(Calculator(), {"expression": text}, at_most_s=1)
    assert result.status == "invalid"


@pytest.mark.parametrize("text", ["(1 + 2) * 3", "max(3, sqrt(2)) * -1", "2 ** -1", "((4))", "7//2", "-(3 - 1)"])
async def test_the_schema_admits_common_spellings(text: str) -> None:
    result = await call(Calculator(), {"expression": text}, at_most_s=1)
    assert result.status == "ok"
