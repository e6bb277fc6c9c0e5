"""Forms of answers, compiled by the library that the engine uses."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.structure import MAX_OPTIONS, MAX_SOURCE_BYTES, field_of, grammar_of
from argosy_services.generation.types import TextChoice
from argosy_services.tokenization.backend import Tokenizer

NASTY = (
    "yes",
    "no",
    "yes, and no",
    "a|b",
    "(.*)",
    "[a-z]+?",
    "^$",
    "{2}",
    "\\d\\n\\",
    "\"quoted\" 'twice'",
    "/slash/ # comment",
    "line\nbreak\ttab\r",
    " spaces ",
    "-&~%@:,;=<>!`",
    "é ü ß 漢字",
    "🙂🇩🇪👩‍👩‍👧",
    "\x00\x7f",
    "%{json}",
)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> LLTokenizer:
    return LLTokenizer(tokenizer.json, n_vocab=49_152, eos_token=[2])


def accepts(compiler: LLTokenizer, grammar: Grammar, text: str) -> bool:
    """Whether an engine that keeps to the grammar could write exactly this text."""
    matcher = LLMatcher(compiler, LLMatcher.grammar_from_regex(grammar.source), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return all(matcher.consume_token(token) for token in compiler.tokenize_str(text)) and matcher.is_accepting()


def test_choices_accept_each_option_and_nothing_else(compiler: LLTokenizer) -> None:
    grammar = grammar_of(TextChoice(NASTY))
    for option in NASTY:
        assert accepts(compiler, grammar, option), option
    for other in ("", "maybe", "b", "aaa", "yes, and", "yesno", "22", "1\n\\", "x", "$", "line break\ttab\r"):
        assert not accepts(compiler, grammar, other), other


@given(options=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4), other=st.text(max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_option_is_taken_literally(
    tokenizer: Tokenizer, compiler: LLTokenizer, options: list[str], other: str
) -> None:
    # The model's vocabulary lacks some bytes, and what it cannot write no grammar can ask for.
    assume(all(tokenizer.decode(tokenizer.encode(option)) == option for option in options))
    grammar = grammar_of(TextChoice(tuple(options)))
    assert all(accepts(compiler, grammar, option) for option in options)
    assert accepts(compiler, grammar, other) == (other in options)


def test_grammars_pass_as_they_are() -> None:
    grammar = Grammar(GrammarKind.LARK, 'start: "a"')
    assert grammar_of(grammar) is grammar


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (Grammar(GrammarKind.JSON_SCHEMA, ""), "spec.structured_output.json_schema"),
        (Grammar(GrammarKind.REGEX, ""), "spec.structured_output.regex"),
        (Grammar(GrammarKind.LARK, ""), "spec.structured_output.lark"),
        (TextChoice(()), "spec.structured_output.choice.options"),
        (TextChoice(("a",) * (MAX_OPTIONS + 1)), "spec.structured_output.choice.options"),
        (TextChoice(("a", "")), "spec.structured_output.choice.options[1]"),
    ],
)
def test_what_is_empty_or_too_much_is_refused(form: Grammar | TextChoice, field: str) -> None:
    with pytest.raises(ArgosyError) as refused:
        grammar_of(form)
    assert refused.value.reason is Reason.INVALID_FIELD
    assert refused.value.metadata["field"] == field
    assert refused.value.metadata["limit"]


@pytest.mark.parametrize(
    "form", [Grammar(GrammarKind.REGEX, "a" * (MAX_SOURCE_BYTES + 1)), TextChoice(("%" * 99_999,))]
)
def test_a_grammar_has_a_largest_size(form: Grammar | TextChoice) -> None:
    with pytest.raises(ArgosyError) as refused:
        grammar_of(form)
    assert refused.value.reason is Reason.INPUT_TOO_LARGE
    assert refused.value.metadata["field"] == field_of(form)


def test_the_most_options_fit() -> None:
    grammar = grammar_of(TextChoice(tuple(f"option {number}" for number in range(MAX_OPTIONS))))
    assert grammar.source.count("|") == MAX_OPTIONS - 1
