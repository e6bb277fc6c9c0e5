"""One request's life in the library: started, read response by response, ended exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from argosy_services import metrics
from argosy_services.engine.base import EngineInfo, Finish, Request, StepOutput, Timings, TokenLogprobs
from argosy_services.engine.tensorrt_llm import logprobs
from argosy_services.engine.tensorrt_llm.library import Library
from argosy_services.engine.tensorrt_llm.lora import LoadedAdapter
from argosy_services.engine.tensorrt_llm.sampling import sampling_params
from argosy_services.errors import ArgosyError, Reason

_FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class Context:
    """What all streams of an engine share. `emit` takes outputs on the engine's thread."""

    model: str
    library: Library
    info: EngineInfo
    compiled: bool
    emit: Callable[[StepOutput], None]


class Stream:
    """One sequence. Lives on the engine's loop, in a task of its own.

    After `end` or `cancel` nothing more is emitted, but the responses are still read until the library itself has ended
    the request: only then is its place free.
    """

    def __init__(self, request: Request, context: Context) -> None:
        self.request = request
        self.started = False
        self._context = context
        self._submitted = time.monotonic()
        self._first_token: float | None = None
        self._cancelled: float | None = None
        self._ended = False
        self._result: Any = None

    async def run(self, llm: Any, adapter: LoadedAdapter | None) -> None:
        """Runs to the end. Raises whatever is neither this request's fault nor its failure alone."""
        try:
            self._start(llm, adapter)
            # One object comes again and again and changes meanwhile: `_take` copies what it needs.
            async for response in self._result:
                if not self._ended:
                    self._take(response)
        except ArgosyError as error:
            self.end(error)
            await self._drain()
        except self._context.library.request_error as error:
            # The result is not read again: after an error nothing comes any more.
            self.end(_failure(self.request, str(error)))
        if not self._ended:
            self.end(_given_up("the library ended it without a reason"))
        if self._cancelled is not None:
            freed = metrics.CANCEL_TO_FREE.labels(model=self._context.model)
            freed.observe(time.monotonic() - self._cancelled)

    def cancel(self, asked: float) -> None:
        """Ends without an output; `asked` is the time.monotonic() of the request to do so."""
        self._cancelled = asked
        self._ended = True
        self._abort()

    def end(self, error: ArgosyError) -> None:
        """Ends as FAILED, once; the library is told to stop."""
        if not self._ended:
            self._ended = True
            self._context.emit(StepOutput(self.request.id, finish=Finish.FAILED, error=error))
            self._abort()

    def _start(self, llm: Any, adapter: LoadedAdapter | None) -> None:
        library, request = self._context.library, self.request
        lora = None
        try:
            if adapter is not None:
                lora = lora_request(library, adapter)
            self._result = llm.generate_async(
                {"prompt_token_ids": [*request.prompt, *request.generated]},
                sampling_params=sampling_params(library, request, self._context.info),
                lora_request=lora,
                streaming=True,
                cache_salt=_salt(request),
            )
        except (ValueError, TypeError, library.request_error) as error:
            raise refused(error) from error
        if self._ended:
            self._abort()

    async def _drain(self) -> None:
        if self._result is not None and not self._result.finished:
            async for _ in self._result:
                pass

    def _abort(self) -> None:
        if self._result is None or self._result.finished:
            return
        if self._context.compiled and self.request.sampling.logprobs is not None:
            # Aborting a stream with log-probabilities ends the whole compiled engine: it runs on, unread by anyone.
            return
        self._result.abort()

    def _take(self, response: Any) -> None:
        output = response.outputs[0]
        reason = output.finish_reason
        if reason is None and not response.finished:
            if self.request.score_from is None and output.token_ids_diff:
                self._emit(output, None, response)
            return
        if reason not in _FINISHES:
            raise _ended_by_library(reason)
        finish = _FINISHES[reason]
        if self.request.score_from is not None:
            self._emit_scores(output, self.request.score_from, response)
        else:
            self._emit(output, finish, response)

    def _emit(self, output: Any, finish: Finish | None, response: Any) -> None:
        token_ids, finish = self._cut([int(token) for token in output.token_ids_diff], finish)
        found: tuple[TokenLogprobs, ...] = ()
        if self.request.sampling.logprobs is not None:
            # A stop token that was taken away stays away here: nothing promises a log-probability for it.
            found = logprobs.drawn(token_ids, list(output.logprobs_diff or ()), self.request.sampling.logprobs)
        elif finish is Finish.STOP:
            token_ids = self._with_stop(token_ids, output.stop_reason)
        now = time.monotonic()
        first = self._first_token is None
        self._first_token = self._first_token or now
        self.started = True
        self._ended = finish is not None
        self._context.emit(
            StepOutput(
                self.request.id,
                token_ids=tuple(token_ids),
                logprobs=found,
                finish=finish,
                cached_tokens=int(getattr(response, "cached_tokens", 0) or 0),
                timings=self._timings(now) if first or finish is not None else None,
            )
        )
        if finish is not None:
            self._abort()

    def _emit_scores(self, output: Any, first: int, response: Any) -> None:
        request = self.request
        scores = logprobs.scored(request.prompt, output.prompt_logprobs or (), first, request.sampling.logprobs or 1)
        now = self._first_token = time.monotonic()
        self._ended = self.started = True
        self._context.emit(
            StepOutput(
                request.id,
                logprobs=scores,
                finish=Finish.STOP,
                cached_tokens=int(getattr(response, "cached_tokens", 0) or 0),
                timings=self._timings(now),
            )
        )
        self._abort()

    def _cut(self, token_ids: list[int], finish: Finish | None) -> tuple[list[int], Finish | None]:
        """Ends at the first stop token, should the library have gone on past one."""
        for position, token in enumerate(token_ids):
            if token in self.request.stop_token_ids:
                return token_ids[: position + 1], Finish.STOP
        return token_ids, finish

    def _with_stop(self, token_ids: list[int], stop_reason: object) -> list[int]:
        """With the stop token at the end, which the library takes away and this interface's readers look for there."""
        if token_ids and token_ids[-1] in self.request.stop_token_ids:
            return token_ids
        if isinstance(stop_reason, int) and stop_reason in self.request.stop_token_ids:
            return [*token_ids, stop_reason]
        return token_ids

    def _timings(self, now: float) -> Timings:
        # The library does not tell when a request left its queue: waiting is part of the time to the first token.
        first = self._first_token or now
        return Timings(prefill_s=first - self._submitted, decode_s=now - first)


def _salt(request: Request) -> str | None:
    """Requests share computed beginnings with those of the same salt only."""
    if request.score_from is not None:
        # Positions that come out of the cache have no log-probabilities: nobody shares this one.
        return request.id
    return request.namespace if request.tenant or request.cache_salt else None


def lora_request(library: Library, adapter: LoadedAdapter) -> Any:
    """The library's words for an adapter. Raises ValueError where its directory is gone."""
    files = adapter.files
    return library.lora_request(files.version, adapter.lora_id, str(files.directory))


def refused(error: Exception) -> ArgosyError:
    """What the library refused before it ran."""
    return ArgosyError(
        Reason.INVALID_FIELD,
        f"TensorRT-LLM refuses the request: {error}",
        field="spec",
        limit="what the engine was built for",
        value=type(error).__name__,
    )


def _failure(request: Request, problem: str) -> ArgosyError:
    """Why one request failed while it ran."""
    words = problem.lower()
    if request.grammar is not None and any(word in words for word in ("grammar", "guided", "schema", "regex")):
        return ArgosyError(
            Reason.INVALID_GRAMMAR,
            f"the grammar cannot be used by TensorRT-LLM: {problem}",
            field=f"structured_output.{request.grammar.kind.value}",
            detail=problem,
        )
    return _given_up(problem)


def _ended_by_library(reason: object) -> ArgosyError:
    if reason == "timeout":
        return ArgosyError(Reason.DEADLINE_EXCEEDED, "TensorRT-LLM ended the request after its time limit")
    return _given_up(f"it ended as '{reason}'")


def _given_up(problem: str) -> ArgosyError:
    return ArgosyError(Reason.ENGINE_FAILED, f"TensorRT-LLM gave up this sequence: {problem}; retry", retry_after_s=1.0)
