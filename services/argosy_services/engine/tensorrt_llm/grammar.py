"""Structured output: which of our grammars the library's xgrammar takes, and how they are handed to it."""

from __future__ import annotations

from typing import Any

from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.engine.tensorrt_llm.library import Library
from argosy_services.engine.torch_engine.grammar import GrammarCompiler
from argosy_services.errors import ArgosyError, Reason


class GrammarCheck:
    """Refuses grammars before the library sees them: there, a wrong one would only fail once its request runs.

    JSON schemas and regular expressions are compiled by our own engine's compiler. xgrammar may still refuse one that
    this one takes; the request then fails with INVALID_GRAMMAR. Safe to use from any thread.
    """

    def __init__(self, tokenizer_json: str, vocabulary_size: int, eos_token_ids: frozenset[int]) -> None:
        self._compiler = GrammarCompiler(tokenizer_json, vocabulary_size, eos_token_ids)

    def check(self, grammar: Grammar) -> None:
        """Raises INVALID_GRAMMAR, or NOT_SUPPORTED for Lark."""
        require_supported(grammar)
        self._compiler.check(grammar)


def guided_decoding(library: Library, grammar: Grammar) -> Any:
    """The library's parameters for a grammar. Raises NOT_SUPPORTED for Lark."""
    require_supported(grammar)
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        return library.guided_decoding(json=grammar.source)
    return library.guided_decoding(regex=grammar.source)


def require_supported(grammar: Grammar) -> None:
    """Raises NOT_SUPPORTED for Lark, which is another language than the EBNF that xgrammar reads."""
    if grammar.kind is GrammarKind.LARK:
        raise ArgosyError(
            Reason.NOT_SUPPORTED,
            "Lark grammars are not supported by the TensorRT-LLM engine; send a JSON schema or a regular expression, "
            "or use a server with the torch engine",
            field="structured_output.lark",
        )
