"""Structured output: grammars that llguidance compiles from a JSON schema, regex or Lark grammar."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher, LLTokenizer

from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import ArgosyError, Reason

_CACHED_GRAMMARS = 128
_WORKERS = 2


class Matcher:
    """How far an answer has come in its grammar."""

    def __init__(self, native: LLMatcher) -> None:
        self.native = native

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        return self.native.is_stopped()

    def valid(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens the grammar allows, one after another, from here on."""
        return self.native.validate_tokens(list(token_ids))

    def accept(self, *token_ids: int) -> None:
        """Goes on by tokens that were allowed. Raises INVALID_GRAMMAR."""
        self.native.consume_tokens(list(token_ids))
        self.check()

    def check(self) -> None:
        """Raises INVALID_GRAMMAR where the grammar broke down: from there on only end tokens seem to be allowed."""
        if self.native.is_error():
            raise ArgosyError(
                Reason.INVALID_GRAMMAR,
                f"the grammar became too complex to follow: {self.native.get_error()}; simplify it",
                field="structured_output",
                detail=self.native.get_error(),
            )

    def accept_forced(self) -> list[int]:
        """Goes on by the tokens that nothing but they may follow, and returns them. Raises INVALID_GRAMMAR.

        Drawing them would be work without a choice (jump-forward decoding, Zheng et al., SGLang, 2024).
        """
        forced = self.native.compute_ff_tokens()
        if forced:
            self.accept(*forced)
        return forced


class GrammarCompiler:
    """Compiles grammars against one tokenizer, on threads of its own, and keeps the most recent ones.

    Safe to use from any thread; no engine's thread ever waits for it.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="grammars")
        # It takes a fifth of a second in which no other Python runs: now, while a model loads, and not in a first
        # request's way.
        self._tokenizer = self._workers.submit(
            LLTokenizer, tokenizer_json, n_vocab=vocab_size, eos_token=sorted(eos_token_ids)
        )
        self._compiled: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, grammar: Grammar) -> None:
        """Compiles a grammar and keeps it for the request that follows. Blocks. Raises INVALID_GRAMMAR."""
        self._find(grammar).result()

    def matcher(self, grammar: Grammar, answer: Sequence[int] = ()) -> Future[Matcher]:
        """A matcher that has come as far as `answer`. The future raises INVALID_GRAMMAR."""
        # A worker that waits for a grammar waits for one that works: tasks begin in the order in which they came.
        return self._workers.submit(self._begin, self._find(grammar), answer)

    def close(self) -> None:
        """Ends the threads. What nobody began is cancelled."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _find(self, grammar: Grammar) -> Future[LLMatcher]:
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                compiled = self._compiled[grammar] = self._workers.submit(self._compile, grammar)
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
            return compiled

    def _begin(self, compiled: Future[LLMatcher], answer: Sequence[int]) -> Matcher:
        matcher = Matcher(compiled.result().deep_copy())
        matcher.accept(*answer)
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        tokenizer = self._tokenizer.result()
        try:
            matcher = LLMatcher(tokenizer, _source(grammar), log_level=0)
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
