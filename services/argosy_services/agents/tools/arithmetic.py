"""Evaluates arithmetic that a model or a stranger wrote.

A recursive-descent parser that computes as it goes. Python's `eval` is never involved, and every operation is bounded
before it is carried out: length of the text, depth of nesting, digits of an integer. Values and precedence are those of
Python, except that a division of integers without rest stays an exact integer, and that `^` also means power.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_CHARS = 200
MAX_DEPTH = 32
MAX_DIGITS = 400

Number = int | float

_LARGEST = 10**MAX_DIGITS
_TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.?\d*|\.\d+)|(?P<name>[A-Za-z_]+)|(?P<sign>\*\*|//|[-+*/%^(),]))", re.ASCII)


class ArithmeticFailedError(ValueError):
    """An expression has no value; the message says why, in a sentence."""


def evaluate(expression: str) -> Number:
    """The value of an expression. Raises ArithmeticFailedError.

    Knows `+ - * / // % ** ^`, parentheses, and the functions abs, max, min, round (halves to even, as in Python) and
    sqrt.
    """
    if len(expression) > MAX_CHARS:
        raise ArithmeticFailedError(f"the expression has {len(expression)} characters, at most {MAX_CHARS} are allowed")
    try:
        return _Parser(expression).value()
    except ZeroDivisionError as error:
        raise ArithmeticFailedError("division by zero") from error
    except OverflowError as error:
        raise ArithmeticFailedError("a number is too large") from error


def shown(value: Number) -> str:
    """A number for people: integers in full, others with up to 12 significant digits and no empty fraction."""
    return str(value) if isinstance(value, int) else f"{value + 0.0:.12g}"


class _Parser:
    """One pass over an expression. Each method reads what its name says and returns its value.

    sum:     product (("+" | "-") product)*
    product: factor (("*" | "/" | "//" | "%") factor)*
    factor:  ("-" | "+") factor | power
    power:   atom (("**" | "^") factor)?
    atom:    number | name "(" sum ("," sum)* ")" | "(" sum ")"
    """

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def value(self) -> Number:
        if not self._tokens:
            raise ArithmeticFailedError("the expression is empty")
        value = self._sum()
        if self._next < len(self._tokens):
            raise self._unexpected()
        return value

    def _sum(self) -> Number:
        value = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            value = _bounded(value + right if sign == "+" else value - right)
        return value

    def _product(self) -> Number:
        value = self._factor()
        while sign := self._take("*", "/", "//", "%"):
            value = _bounded(_PRODUCTS[sign](value, self._factor()))
        return value

    def _factor(self) -> Number:
        with self._nested():
            if sign := self._take("-", "+"):
                value = self._factor()
                return -value if sign == "-" else value
            return self._power()

    def _power(self) -> Number:
        base = self._atom()
        if self._take("**", "^"):
            return _bounded(_power(base, self._factor()))
        return base

    def _atom(self) -> Number:
        if self._take("("):
            value = self._sum()
            self._expect(")")
            return value
        kind, text, _ = self._peek()
        if kind == "number":
            self._next += 1
            return _number(text)
        if kind == "name":
            self._next += 1
            return _bounded(_function(text)(self._arguments()))
        raise self._unexpected()

    def _arguments(self) -> list[Number]:
        self._expect("(")
        values = [self._sum()]
        while self._take(","):
            values.append(self._sum())
        self._expect(")")
        return values

    @contextmanager
    def _nested(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ArithmeticFailedError(f"the expression is nested more than {MAX_DEPTH} deep")
        yield
        self._depth -= 1

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "", 0)

    def _take(self, *signs: str) -> str | None:
        kind, text, _ = self._peek()
        if kind != "sign" or text not in signs:
            return None
        self._next += 1
        return text

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._unexpected(f"'{sign}' is missing")

    def _unexpected(self, problem: str = "a number is missing") -> ArithmeticFailedError:
        kind, text, place = self._peek()
        if kind == "end":
            return ArithmeticFailedError(f"the expression ends too early: {problem}")
        hint = "; write 1000 rather than 1,000" if text == "," else ""
        return ArithmeticFailedError(f"'{text}' at character {place} is unexpected{hint}")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """Kind, text and place (from 1) of each token."""
    tokens: list[tuple[str, str, int]] = []
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise ArithmeticFailedError(f"'{text[place:].lstrip()[0]}' is no part of an arithmetic expression")
        kind = match.lastgroup
        tokens.append((kind, match[kind], match.start(kind) + 1))
        place = match.end()
    return tokens


def _number(text: str) -> Number:
    return float(text) if "." in text else int(text)


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise _too_many_digits()
    elif not math.isfinite(value):
        raise ArithmeticFailedError("a number is too large")
    return value


def _too_many_digits() -> ArithmeticFailedError:
    return ArithmeticFailedError(f"an integer has more than {MAX_DIGITS} digits")


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        # The result has more than (bits - 1) * exponent bits, and 3 bits are less than a digit.
        if (base.bit_length() - 1) * exponent > MAX_DIGITS * 4:
            raise _too_many_digits()
        return base**exponent
    if base < 0 and isinstance(exponent, float) and not exponent.is_integer():
        raise ArithmeticFailedError("a negative number has no such power")
    return base**exponent


def _divide(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int) and right and left % right == 0:
        return left // right
    return left / right


_PRODUCTS: dict[str, Callable[[Number, Number], Number]] = {
    "*": lambda left, right: left * right,
    "/": _divide,
    "//": lambda left, right: left // right,
    "%": lambda left, right: left % right,
}


def _function(name: str) -> Callable[[list[Number]], Number]:
    function = _FUNCTIONS.get(name)
    if function is None:
        raise ArithmeticFailedError(f"there is no function '{name}'; there are: {', '.join(_FUNCTIONS)}")
    return function


def _abs(values: list[Number]) -> Number:
    return abs(_only(values, "abs"))


def _round(values: list[Number]) -> Number:
    if len(values) == 1:
        return round(values[0])
    value, digits = values if len(values) == 2 else (0, None)
    if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:
        raise ArithmeticFailedError(f"round takes a number and a count of digits, at most {MAX_DIGITS}")
    return round(value, digits)


def _sqrt(values: list[Number]) -> Number:
    value = _only(values, "sqrt")
    if value < 0:
        raise ArithmeticFailedError("a negative number has no square root")
    if isinstance(value, int) and math.isqrt(value) ** 2 == value:
        return math.isqrt(value)
    return math.sqrt(value)


def _only(values: list[Number], name: str) -> Number:
    if len(values) != 1:
        raise ArithmeticFailedError(f"{name} takes one number, not {len(values)}")
    return values[0]


_FUNCTIONS: dict[str, Callable[[list[Number]], Number]] = {
    "abs": _abs,
    "max": max,
    "min": min,
    "round": _round,
    "sqrt": _sqrt,
}
