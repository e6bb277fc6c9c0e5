"""Stop strings against their definition over the whole text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from argosy_services.generation.stops import StopMatcher

ALPHABET = "ab🙂"
texts = st.lists(st.text(ALPHABET, max_size=4), max_size=12)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


def definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text as it grows a character at a time, until one of the stops stands at its end."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(texts, stops)
@example(["a", "b"], ["ab"])
@example(["aab"], ["aaab", "ab"])
@example(["ab", "a"], ["ba", "aba", "a"])
@example(["🙂", "a", "🙂"], ["a🙂", "🙂a🙂"])
def test_any_cutting_gives_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    expected, matched = definition(whole, stops)
    matcher = StopMatcher(stops)
    shown, read = "", ""
    for piece in pieces:
        shown += matcher.push(piece)
        read += piece
        assert matcher.matched is None or read.startswith(expected + matcher.matched)
        if matcher.matched is None:
            assert shown + undecided(read, stops) == read
    if matcher.matched is None:
        shown += matcher.flush()
    assert (shown, matcher.matched) == (expected, matched)


def undecided(text: str, stops: list[str]) -> str:
    """The longest end of a text with which a stop begins: that much must be held back, and no more."""
    ends = [text[start:] for start in range(len(text))]
    return next((end for end in ends if any(stop.startswith(end) for stop in stops)), "")


def test_without_stops_nothing_is_held_back() -> None:
    matcher = StopMatcher([])
    assert [matcher.push(piece) for piece in ("a", "", "bc")] == ["a", "", "bc"]
    assert matcher.flush() == ""


def test_text_after_a_match_is_ignored() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("One. Two") == "One"
    assert matcher.push(" three. ") == ""
    assert (matcher.flush(), matcher.matched) == ("", ".")


@pytest.mark.parametrize(("stop", "held"), [("END", "E"), ("xE", "")])
def test_only_the_beginning_of_a_stop_is_held_back(stop: str, held: str) -> None:
    matcher = StopMatcher([stop])
    assert matcher.push("SomE") == "SomE"[: 4 - len(held)]
    assert matcher.flush() == held
