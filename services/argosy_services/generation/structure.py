"""From the form that an answer must have to a grammar that an engine compiles."""

from __future__ import annotations

from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import invalid_field
from argosy_services.generation.types import TextChoice
from argosy_services.rpc import validate

MAX_SOURCE_BYTES = 256 << 10
MAX_OPTIONS = 256

_FIELD = "spec.structured_output"


def field_of(form: Grammar | TextChoice) -> str:
    """The field of a request that holds a form."""
    return f"{_FIELD}.{'choice' if isinstance(form, TextChoice) else form.kind.value}"


def grammar_of(form: Grammar | TextChoice) -> Grammar:
    """The grammar of a form. Raises INVALID_FIELD where it is empty and INPUT_TOO_LARGE where it is too long."""
    field = field_of(form)
    grammar = _alternation(form.options) if isinstance(form, TextChoice) else form
    if not grammar.source:
        raise invalid_field(field, "must not be empty", limit="at least 1 byte", value=0)
    validate.text_size(field, grammar.source, limit_bytes=MAX_SOURCE_BYTES)
    return grammar


def _alternation(options: tuple[str, ...]) -> Grammar:
    """A regular expression that matches exactly the given texts."""
    field = f"{_FIELD}.choice.options"
    if not 1 <= len(options) <= MAX_OPTIONS:
        raise invalid_field(field, "must hold 1 to 256 texts", limit=f"1 to {MAX_OPTIONS}", value=len(options))
    for position, option in enumerate(options):
        if not option:
            raise invalid_field(f"{field}[{position}]", "must not be empty", limit="at least 1 byte", value=0)
    return Grammar(GrammarKind.REGEX, "|".join(_literal(option) for option in options))


def _literal(text: str) -> str:
    # Code points rather than backslashes: which characters may be escaped differs between dialects, this does not.
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):X}}}" for char in text)
