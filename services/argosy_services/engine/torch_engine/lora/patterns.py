"""Regular expressions from adapter files, matched as PEFT matches them and refused where matching could take long.

PEFT looks a module up in `rank_pattern` and `alpha_pattern` by matching each key against the end of the module's path,
from its start or from after one of its dots, and takes the first key that matches. The keys come from a file that
somebody else wrote, and Python's matcher backtracks while it holds the interpreter lock: one bad key could stop the
whole server. So the number of ways in which a key can be tried is bounded before it is matched.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

_MAX_LENGTH = 1_000
# Upper bound of matching attempts over all keys and modules: about a second on one core.
_MAX_ATTEMPTS = 30_000_000
_ESCAPES = frozenset("dDwW.-_^$*+?()[]{}|\\/")


class PatternError(ValueError):
    """A key that is no regular expression, or one that is not accepted from a file."""


class PatternTable(Generic[T]):
    """Values by pattern, in the file's order. `paths` are all the module paths that will be looked up.

    Raises PatternError.
    """

    def __init__(self, values: Mapping[str, T], paths: Collection[str]) -> None:
        longest = max((len(path) for path in paths), default=0)
        prefixes = max((path.count(".") for path in paths), default=0) + 1
        attempts = sum(_attempts(key, longest) for key in values) * prefixes * len(paths)
        if attempts > _MAX_ATTEMPTS:
            raise PatternError("the patterns are too complex; write the module names out")
        self._values = [(_compile(key), value) for key, value in values.items()]

    def get(self, path: str, default: T) -> T:
        """The value of the first pattern that matches `path`."""
        return next((value for pattern, value in self._values if pattern.match(path)), default)


def _compile(key: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"'{key[:100]}' is not a regular expression: {error}") from error


def _attempts(key: str, length: int) -> int:
    """Upper bound of the ways in which a backtracking matcher can try `key` on a text of `length` characters.

    Each quantifier of a single character can stop at any place, each group can take any of its alternatives.
    Quantified groups, counted repeats, look-around and back-references are refused.
    """
    if len(key) > _MAX_LENGTH:
        raise PatternError(f"a pattern has {len(key)} characters, at most {_MAX_LENGTH} are accepted")
    attempts = 1
    alternatives = [1]
    position = 0
    while position < len(key):
        char = key[position]
        if char == "\\":
            if key[position + 1 : position + 2] not in _ESCAPES:
                raise _refused(key, f"the escape '{key[position : position + 2]}'")
            position += 1
        elif char == "[":
            position = _end_of_class(key, position)
        elif char == "(":
            if key[position + 1 : position + 2] == "?" and key[position + 1 : position + 3] != "?:":
                raise _refused(key, "a group that starts with '(?'")
            position += 2 if key[position + 1 : position + 2] == "?" else 0
            alternatives.append(1)
        elif char == ")":
            if len(alternatives) == 1:
                raise PatternError(f"'{key[:100]}' is not a regular expression: unbalanced parenthesis")
            attempts *= alternatives.pop()
            if key[position + 1 : position + 2] in ("*", "+", "?", "{"):
                raise _refused(key, "a repeated group")
        elif char == "|":
            alternatives[-1] += 1
        elif char in "*+?":
            attempts *= length + 1
        elif char == "{":
            raise _refused(key, "a counted repeat")
        position += 1
        if attempts > _MAX_ATTEMPTS:
            raise PatternError(f"'{key[:100]}' is too complex; write the module names out")
    return attempts * alternatives[0]


def _end_of_class(key: str, start: int) -> int:
    # A bracket directly after the opening one, or after its ^, is an ordinary member.
    first = start + 2 if key[start + 1 : start + 2] == "^" else start + 1
    position = first
    while position < len(key):
        if key[position] == "\\":
            position += 1
        elif key[position] == "]" and position > first:
            return position
        position += 1
    raise PatternError(f"'{key[:100]}' is not a regular expression: unterminated character class")


def _refused(key: str, what: str) -> PatternError:
    return PatternError(f"'{key[:100]}' holds {what}, which is not accepted; write the module names out")
