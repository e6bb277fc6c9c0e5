"""Structured output: which tokens may come next, computed by llguidance from a JSON schema, regex or Lark grammar."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import ArgosyError, Reason

_CACHED_GRAMMARS = 128


class Matcher:
    """How far an answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self, vocab_size: int) -> torch.Tensor:
        """Bool `[vocab_size]`: the tokens that may come next; end tokens are among them where the answer may end."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        return torch.from_numpy(bits[:vocab_size].astype(bool))

    def accept(self, *token_ids: int) -> None:
        """Goes on by tokens that were allowed. Raises INVALID_GRAMMAR."""
        if not self._matcher.consume_tokens(list(token_ids)):
            raise ArgosyError(
                Reason.INVALID_GRAMMAR,
                f"the grammar became too complex to follow: {self._matcher.get_error()}; simplify it",
                field="structured_output",
                detail=self._matcher.get_error(),
            )

    def accept_forced(self) -> list[int]:
        """Goes on by the tokens that nothing but they may follow, and returns them. Raises INVALID_GRAMMAR.

        Drawing them would be work without a choice (jump-forward decoding, Zheng et al., SGLang, 2024).
        """
        forced = self._matcher.compute_ff_tokens()
        if forced:
            self.accept(*forced)
        return forced


class GrammarCompiler:
    """Compiles grammars against one tokenizer and keeps the most recent ones. Safe to use from any thread."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a grammar. Raises INVALID_GRAMMAR."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                compiled = self._compile(grammar)
                self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy())

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._tokenizer is None:
            # Half a second, which a server that never sees a grammar does not pay.
            self._tokenizer = LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
        try:
            matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0)
        except ValueError as error:
            raise _invalid(grammar, str(error)) from error
        if matcher.is_error():
            raise _invalid(grammar, matcher.get_error())
        return matcher


def _source(grammar: Grammar) -> str:
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        # One spelling of white space, or a small model may write nothing else until its tokens are used up.
        return LLMatcher.grammar_from_json_schema(grammar.source, overrides={"whitespace_flexible": False})
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.source)
    return LLMatcher.grammar_from_lark(grammar.source)


def _invalid(grammar: Grammar, problem: str) -> ArgosyError:
    return ArgosyError(
        Reason.INVALID_GRAMMAR,
        f"structured_output.{grammar.kind.value} cannot be used: {problem.strip()}",
        field=f"structured_output.{grammar.kind.value}",
        detail=problem.strip(),
    )
