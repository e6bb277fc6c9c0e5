"""Requests and answers between the schema and the vocabulary of generation.

Only what the schema itself demands is checked here: that one of several fields is set. Limits are the service's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.duration_pb2 import Duration

from argosy.api.common.v1 import usage_pb2
from argosy.api.generation.v1 import generation_pb2, generation_service_pb2, model_pb2
from argosy_services.engine.base import Grammar, GrammarKind, TokenLogprobs
from argosy_services.errors import invalid_field
from argosy_services.generation.types import (
    ChatPrompt,
    Choice,
    ChoiceFinished,
    Delta,
    Event,
    Finished,
    FinishReason,
    Generation,
    GenerationSpec,
    ModelInfo,
    Options,
    Origin,
    Prompt,
    Score,
    ScoreItem,
    Scores,
    ScoreSpec,
    StageTimings,
    Started,
    TextChoice,
    Usage,
)
from argosy_services.tokenization.convert import read_chat

_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}


def read_spec(given: generation_pb2.GenerationSpec) -> GenerationSpec:
    """What a request asks for. Raises INVALID_FIELD where the prompt or a set form is missing, or a chat is wrong."""
    return GenerationSpec(
        prompt=_read_prompt(given),
        model=given.model,
        adapter=given.adapter,
        adapter_sticky_key=given.adapter_sticky_key,
        options=_read_options(given.sampling),
        form=_read_form(given.structured_output) if given.HasField("structured_output") else None,
        tokenizer_fingerprint=given.tokenizer_fingerprint,
        priority=given.priority,
        cache_salt=given.cache_salt,
    )


def read_score(request: generation_service_pb2.ScoreRequest) -> ScoreSpec:
    """What a request asks to score. Raises INVALID_FIELD where an item lacks one of its halves."""
    return ScoreSpec(
        items=tuple(_read_item(f"items[{place}]", item) for place, item in enumerate(request.items)),
        model=request.model,
        adapter=request.adapter,
        tokenizer_fingerprint=request.tokenizer_fingerprint,
        priority=request.priority,
        cache_salt=request.cache_salt,
    )


def write_events(events: Sequence[Event], *, batched: bool) -> Iterator[generation_service_pb2.StreamGenerateResponse]:
    """The messages that events which are there at the same time make: one, or one for each."""
    messages = map(_event, events)
    if batched and len(events) > 1:
        batch = generation_service_pb2.EventBatch(events=messages)
        return iter((generation_service_pb2.StreamGenerateResponse(batch=batch),))
    return messages


def write_generation(generation: Generation) -> generation_service_pb2.GenerateResponse:
    """A whole answer."""
    return generation_service_pb2.GenerateResponse(
        origin=_origin(generation.origin),
        choices=map(_choice, generation.choices),
        usage=_usage(generation.usage),
        timings=_timings(generation.timings),
    )


def write_scores(scores: Scores) -> generation_service_pb2.ScoreResponse:
    """Scores, in the order of their items."""
    return generation_service_pb2.ScoreResponse(
        origin=_origin(scores.origin),
        scores=map(_score, scores.scores),
        usage=_usage(scores.usage),
        timings=_timings(scores.timings),
    )


def write_model(model: ModelInfo) -> model_pb2.Model:
    """A served model."""
    engine = model.engine
    return model_pb2.Model(
        name=model.name,
        architecture=engine.architecture,
        engine=engine.engine,
        dtype=engine.dtype,
        device=engine.device,
        parameter_count=engine.parameter_count,
        max_context_tokens=engine.max_context_tokens,
        vocabulary_size=engine.vocabulary_size,
        tokenizer_fingerprint=model.tokenizer_fingerprint,
        model_fingerprint=model.model_fingerprint,
        max_adapters=engine.max_adapters,
        max_adapter_rank=engine.max_adapter_rank,
        is_default=model.is_default,
    )


def _read_prompt(given: generation_pb2.GenerationSpec) -> Prompt:
    match given.WhichOneof("prompt"):
        case "text":
            return given.text
        case "chat":
            return ChatPrompt(read_chat("spec.chat", given.chat))
        case "tokens":
            return tuple(given.tokens.ids)
        case _:
            raise invalid_field("spec.prompt", "is required", limit="text, chat or tokens", value="none of them")


def _read_options(given: generation_pb2.SamplingParams) -> Options:
    # The fields of the message and of the dataclass have the same names; those that are unset keep their defaults.
    values = {field.name: value for field, value in given.ListFields()}
    for name, kind in (("logit_bias", dict), ("stop", tuple), ("stop_token_ids", tuple)):
        if name in values:
            values[name] = kind(values[name])
    return Options(**values)


def _read_form(given: generation_pb2.StructuredOutput) -> Grammar | TextChoice:
    form = given.WhichOneof("form")
    if form is None:
        raise invalid_field(
            "spec.structured_output.form",
            "is required",
            limit="json_schema, regex, lark or choice",
            value="none of them",
        )
    if form == "choice":
        return TextChoice(tuple(given.choice.options))
    return Grammar(GrammarKind(form), getattr(given, form))


def _read_item(field: str, given: generation_service_pb2.ScoreItem) -> ScoreItem:
    match given.WhichOneof("context"):
        case "context_text":
            context = given.context_text
        case "context_tokens":
            context = tuple(given.context_tokens.ids)
        case _:
            raise _missing_half(f"{field}.context")
    match given.WhichOneof("continuation"):
        case "continuation_text":
            return ScoreItem(context, given.continuation_text)
        case "continuation_tokens":
            return ScoreItem(context, tuple(given.continuation_tokens.ids))
        case _:
            raise _missing_half(f"{field}.continuation")


def _missing_half(field: str) -> Exception:
    return invalid_field(field, "is required", limit="text or tokens", value="neither")


def _event(event: Event) -> generation_service_pb2.StreamGenerateResponse:
    match event:
        case Delta():
            delta = generation_service_pb2.Delta(
                index=event.index, text=event.text, token_ids=event.token_ids, logprobs=_logprobs(event.logprobs)
            )
            return generation_service_pb2.StreamGenerateResponse(delta=delta)
        case Started():
            started = generation_service_pb2.Started(origin=_origin(event.origin), prompt_tokens=event.prompt_tokens)
            return generation_service_pb2.StreamGenerateResponse(started=started)
        case ChoiceFinished():
            choice = generation_service_pb2.ChoiceFinished(
                index=event.index,
                finish_reason=_REASONS[event.reason],
                stop_string=event.stop_string,
                stop_token_id=event.stop_token_id,
            )
            return generation_service_pb2.StreamGenerateResponse(choice_finished=choice)
        case Finished():
            finished = generation_service_pb2.Finished(usage=_usage(event.usage), timings=_timings(event.timings))
            return generation_service_pb2.StreamGenerateResponse(finished=finished)


def _origin(origin: Origin) -> generation_pb2.Origin:
    return generation_pb2.Origin(
        request_id=origin.request_id,
        model=origin.model,
        adapter=origin.adapter,
        adapter_version=origin.adapter_version,
    )


def _choice(choice: Choice) -> generation_pb2.Choice:
    return generation_pb2.Choice(
        index=choice.finished.index,
        text=choice.text,
        token_ids=choice.token_ids,
        finish_reason=_REASONS[choice.finished.reason],
        stop_string=choice.finished.stop_string,
        stop_token_id=choice.finished.stop_token_id,
        logprobs=_logprobs(choice.logprobs),
    )


def _score(score: Score) -> generation_service_pb2.Score:
    return generation_service_pb2.Score(
        logprob=score.logprob,
        is_greedy=score.is_greedy,
        tokens=[_logprob(token.token_id, token.logprob) for token in score.tokens],
    )


def _logprobs(entries: Sequence[TokenLogprobs]) -> list[generation_pb2.TokenLogprobs]:
    return [
        generation_pb2.TokenLogprobs(
            chosen=_logprob(entry.token_id, entry.logprob), top=[_logprob(*likely) for likely in entry.top]
        )
        for entry in entries
    ]


def _logprob(token_id: int, logprob: float) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(token_id=token_id, logprob=logprob)


def _usage(usage: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _timings(timings: StageTimings) -> usage_pb2.StageTimings:
    return usage_pb2.StageTimings(
        tokenization=_duration(timings.tokenization_s),
        queue=_duration(timings.queue_s),
        prefill=_duration(timings.prefill_s),
        decode=None if timings.decode_s is None else _duration(timings.decode_s),
        total=_duration(timings.total_s),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
