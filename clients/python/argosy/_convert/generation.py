"""Generation and scoring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from argosy._convert import common
from argosy.api.common.v1 import usage_pb2
from argosy.api.generation.v1 import generation_pb2 as pb
from argosy.api.generation.v1 import generation_service_pb2 as rpc
from argosy.api.generation.v1 import model_pb2
from argosy.errors import ProtocolError
from argosy.types.common import Origin, Prompt, TextOrTokens, Tool
from argosy.types.generation import (
    Choice,
    ChoiceFinished,
    Delta,
    Finished,
    FinishReason,
    GenerateOptions,
    Generation,
    Model,
    SamplingOptions,
    Score,
    Scoring,
    Started,
    TextEvent,
    TokenLogprob,
    TokenLogprobs,
)

_FORMS = ("json_schema", "regex", "lark", "choice")
_STANDING = {"priority", "cache_salt", "adapter_sticky_key"}
_SAMPLING = SamplingOptions.__annotations__.keys()


def spec(prompt: Prompt, options: GenerateOptions) -> pb.GenerationSpec:
    """What to generate. Raises TypeError and ValueError for options that do not exist or contradict each other."""
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    message = pb.GenerationSpec(
        model=given.pop("model", ""),
        adapter=given.pop("adapter", ""),
        tokenizer_fingerprint=given.pop("tokenizer_fingerprint", ""),
    )
    for name in _STANDING & given.keys():
        common.set_field(message, name, given.pop(name), name=name)
    _set_prompt(message, prompt, given.pop("tools", ()))
    _set_form(message, {form: given.pop(form) for form in _FORMS if form in given})
    for name, value in given.items():
        common.set_field(message.sampling, name, _sampling_value(name, value), name=name)
    return message


def _set_prompt(message: pb.GenerationSpec, prompt: Any, tools: Sequence[Tool]) -> None:
    if tools and (isinstance(prompt, str) or not common.is_chat(prompt)):
        raise ValueError("tools need a conversation as the prompt: only chat templates announce them")
    if isinstance(prompt, str):
        message.text = prompt
    elif common.is_chat(prompt):
        message.chat.CopyFrom(common.chat_prompt(prompt, tools))
    else:
        message.tokens.CopyFrom(common.token_ids("prompt", prompt))


def _set_form(message: pb.GenerationSpec, forms: Mapping[str, Any]) -> None:
    if len(forms) > 1:
        raise ValueError(f"an answer has one form, not {' and '.join(forms)}")
    for form, value in forms.items():
        if form == "choice":
            message.structured_output.choice.options.extend(common.texts_of(form, value))
        else:
            source = json.dumps(value) if isinstance(value, Mapping) else value
            common.set_field(message.structured_output, form, source, name=form)


def _sampling_value(name: str, value: Any) -> Any:
    if name == "stop":
        return [value] if isinstance(value, str) else list(value)
    return list(value) if name == "stop_token_ids" else value


def generation(message: rpc.GenerateResponse) -> Generation:
    """A whole answer."""
    if not message.choices:
        raise ProtocolError("the server sent an answer without any choice", request_id=message.origin.request_id)
    return Generation(
        choices=tuple(_choice(choice) for choice in message.choices),
        origin=origin(message.origin),
        usage=common.usage(message.usage),
        timings=common.timings(message.timings),
    )


def _choice(message: pb.Choice) -> Choice:
    return Choice(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=_finish_reason(message.finish_reason),
        stop_string=common.optional(message, "stop_string"),
        stop_token_id=common.optional(message, "stop_token_id"),
        logprobs=_logprobs(message.logprobs),
    )


def events(message: rpc.StreamGenerateResponse) -> Iterator[TextEvent]:
    """The events in a message of a stream: none in a keep-alive, several in a batch."""
    messages = message.batch.events if message.HasField("batch") else (message,)
    return (event for each in messages if (event := _event(each)) is not None)


def _event(message: rpc.StreamGenerateResponse) -> TextEvent | None:
    kind = message.WhichOneof("event")
    if kind == "delta":
        delta = message.delta
        return Delta(delta.index, delta.text, tuple(delta.token_ids), _logprobs(delta.logprobs))
    if kind == "started":
        return Started(origin(message.started.origin), message.started.prompt_tokens)
    if kind == "choice_finished":
        end = message.choice_finished
        return ChoiceFinished(
            index=end.index,
            finish_reason=_finish_reason(end.finish_reason),
            stop_string=common.optional(end, "stop_string"),
            stop_token_id=common.optional(end, "stop_token_id"),
        )
    if kind == "finished":
        return Finished(common.usage(message.finished.usage), common.timings(message.finished.timings))
    return None


class _OpenChoice:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.end: ChoiceFinished | None = None

    def close(self, index: int) -> Choice:
        if self.end is None:
            raise ProtocolError(f"the stream finished, but choice {index} did not")
        return Choice(
            index=index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.end.finish_reason,
            stop_string=self.end.stop_string,
            stop_token_id=self.end.stop_token_id,
            logprobs=tuple(self.logprobs),
        )


class TextReader:
    """Reads the events of a stream and puts them together to the answer that `Generate` would have given."""

    def __init__(self) -> None:
        self.final: Generation | None = None
        self._origin = Origin()
        self._choices: dict[int, _OpenChoice] = {}

    def read(self, message: rpc.StreamGenerateResponse) -> Iterator[TextEvent]:
        """The events in a message."""
        for event in events(message):
            self._add(event)
            yield event

    def _add(self, event: TextEvent) -> None:
        match event:
            case Started():
                self._origin = event.origin
            case Delta():
                choice = self._choices.setdefault(event.index, _OpenChoice())
                choice.texts.append(event.text)
                choice.token_ids.extend(event.token_ids)
                choice.logprobs.extend(event.logprobs)
            case ChoiceFinished():
                self._choices.setdefault(event.index, _OpenChoice()).end = event
            case Finished():
                self.final = self._assemble(event)

    def _assemble(self, end: Finished) -> Generation:
        choices = tuple(choice.close(index) for index, choice in sorted(self._choices.items()))
        if not choices:
            raise ProtocolError("the stream finished without any choice", request_id=self._origin.request_id)
        return Generation(choices, self._origin, end.usage, end.timings)

    def end(self) -> None:
        """Raises ProtocolError unless the answer was complete."""
        if self.final is None:
            raise ProtocolError(
                "the stream ended without its last event; the answer is incomplete", request_id=self._origin.request_id
            )


def score_request(
    items: Sequence[tuple[TextOrTokens, TextOrTokens]],
    *,
    model: str,
    adapter: str,
    tokenizer_fingerprint: str,
    priority: int,
    cache_salt: str,
) -> rpc.ScoreRequest:
    """Pairs of context and continuation."""
    request = rpc.ScoreRequest(model=model, adapter=adapter, tokenizer_fingerprint=tokenizer_fingerprint)
    common.set_field(request, "priority", priority, name="priority")
    common.set_field(request, "cache_salt", cache_salt, name="cache_salt")
    for position, (context, continuation) in enumerate(items):
        item = request.items.add()
        _set_part(item, "context", context, position)
        _set_part(item, "continuation", continuation, position)
    return request


def _set_part(item: rpc.ScoreItem, part: str, given: TextOrTokens, position: int) -> None:
    if isinstance(given, str):
        setattr(item, f"{part}_text", given)
    else:
        ids: usage_pb2.TokenIds = getattr(item, f"{part}_tokens")
        ids.CopyFrom(common.token_ids(f"items[{position}].{part}", given))


def scoring(message: rpc.ScoreResponse) -> Scoring:
    """The scores of all items."""
    return Scoring(
        scores=tuple(
            Score(score.logprob, score.is_greedy, tuple(_logprob(token) for token in score.tokens))
            for score in message.scores
        ),
        origin=origin(message.origin),
        usage=common.usage(message.usage),
        timings=common.timings(message.timings),
    )


def model(message: model_pb2.Model) -> Model:
    """A served model."""
    return Model(**{field: getattr(message, field) for field in Model.__dataclass_fields__})


def origin(message: pb.Origin) -> Origin:
    """Who answered."""
    return Origin(message.request_id, message.model, message.adapter, message.adapter_version)


def _finish_reason(number: int) -> FinishReason:
    return common.enum_of(FinishReason, pb.FinishReason, "FINISH_REASON_", number)


def _logprob(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.logprob)


def _logprobs(messages: Sequence[pb.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(_logprob(at.chosen), tuple(_logprob(top) for top in at.top)) for at in messages)
