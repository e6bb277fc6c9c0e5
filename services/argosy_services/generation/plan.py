"""From a request to the sequences that answer it: everything that can be wrong with it is found here, before an engine
sees any of it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from argosy_services import tracing
from argosy_services.engine.base import Grammar, Request, SequenceRunner
from argosy_services.errors import ArgosyError
from argosy_services.generation import options
from argosy_services.generation.answer import ChoiceWriter
from argosy_services.generation.prompt import max_tokens, prompt_ids
from argosy_services.generation.structure import field_of, grammar_of
from argosy_services.generation.types import GenerationSpec
from argosy_services.tokenization.backend import Tokenizer


@dataclass(frozen=True, slots=True)
class Plan:
    """The sequences of one request, one for each choice, and what writes their answers, by sequence id."""

    requests: list[Request]
    writers: dict[str, ChoiceWriter]
    prompt_tokens: int
    tokenization_s: float
    grammar_check_s: float


async def plan(
    spec: GenerationSpec, engine: SequenceRunner, tokenizer: Tokenizer, sequence_id: str, tenant: str
) -> Plan:
    """Checks and tokenizes a request of a tenant. The ids of its sequences begin with `sequence_id`.

    Raises INVALID_FIELD, INPUT_TOO_LARGE, PROMPT_TOO_LONG, INVALID_GRAMMAR, CHAT_TEMPLATE_MISSING or
    CHAT_TEMPLATE_FAILED.
    """
    info, asked = engine.info, spec.options
    options.check_standing("spec.", spec.priority, spec.cache_salt)
    options.check(asked, info)
    start = time.perf_counter()
    with tracing.span("tokenize"):
        ids = await prompt_ids(spec.prompt, tokenizer, info)
    tokenization_s = time.perf_counter() - start
    limit = max_tokens(asked, len(ids), info)
    if asked.min_tokens > limit:
        raise options.min_tokens_too_large(asked.min_tokens, limit)
    start = time.perf_counter()
    grammar = await _grammar(spec, engine)
    grammar_check_s = time.perf_counter() - start if grammar is not None else 0.0
    stop_token_ids = options.stop_token_ids(asked, info)
    requests = [
        Request(
            id=f"{sequence_id}-{index}",
            prompt=ids,
            max_tokens=limit,
            sampling=sampling,
            min_tokens=asked.min_tokens,
            stop_token_ids=stop_token_ids,
            grammar=grammar,
            tenant=tenant,
            priority=spec.priority,
            cache_salt=spec.cache_salt,
            call=sequence_id,
        )
        for index, sampling in enumerate(options.samplings(asked, info))
    ]
    writers = {
        request.id: ChoiceWriter(index, tokenizer.detokenizer(), asked.stop, stop_token_ids)
        for index, request in enumerate(requests)
    }
    return Plan(requests, writers, len(ids), tokenization_s, grammar_check_s)


async def _grammar(spec: GenerationSpec, engine: SequenceRunner) -> Grammar | None:
    if spec.form is None:
        return None
    grammar = grammar_of(spec.form)
    try:
        with tracing.span("check grammar"):
            await asyncio.to_thread(engine.check_grammar, grammar)
    except ArgosyError as error:
        # The engine does not know in which field of a request the grammar came.
        metadata = {**error.metadata, "field": field_of(spec.form)}
        raise ArgosyError(error.reason, error.message, retry_after_s=error.retry_after_s, **metadata) from error
    return grammar
