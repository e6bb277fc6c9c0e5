"""Arithmetic."""

from __future__ import annotations

from pydantic import Field

from argosy_services.agents.tools.arithmetic import ArithmeticFailedError, evaluate, shown
from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError

_NUMBER = r"[0-9]{1,30}(?:\.[0-9]{0,15})?"
_OPERAND = rf"(?:[-(]|sqrt\(|abs\(|min\(|max\(|round\()*{_NUMBER}\)*"
# All expressions in a common spelling, and some that are none (a regular expression cannot count parentheses). With it
# in the schema a small model cannot drift from the expression into prose.
_EXPRESSION = rf"^{_OPERAND}(?: ?(?:[-+*/%^,]|\*\*|//) ?{_OPERAND})*$"


class CalculatorArguments(Arguments):
    expression: str = Field(
        min_length=1, max_length=120, pattern=_EXPRESSION, description="Arithmetic, for example (2 + 3) * 4."
    )


class Calculator(BuiltInTool):
    """Computes what `arithmetic.evaluate` understands, and restates the expression with its result: a small model
    copies a statement more surely than it makes one.
    """

    name = "calculator"
    description = "Computes an arithmetic expression such as (2 + 3) * 4."
    arguments = CalculatorArguments
    timeout_s = 5.0

    async def run(self, arguments: CalculatorArguments) -> str:
        try:
            return f"{arguments.expression} = {shown(evaluate(arguments.expression))}"
        except ArithmeticFailedError as error:
            raise ToolError(f"{arguments.expression} has no value: {error}") from error
