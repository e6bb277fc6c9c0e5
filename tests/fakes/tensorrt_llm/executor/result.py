from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tensorrt_llm._control import control


class RequestError(RuntimeError):
    pass


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class Response:
    """What crosses from the executor: new tokens, or an error."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: Any = field(default_factory=list)
    prompt_logprobs: Any = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    _last_token_ids_len: int = field(default=0, init=False, repr=False)
    _last_logprobs_len: int = field(default=0, init=False, repr=False)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]

    @property
    def logprobs_diff(self) -> Any:
        return self.logprobs[self._last_logprobs_len :]


class RequestOutput:
    def __init__(self) -> None:
        raise RuntimeError("RequestOutput is made by the LLM")

    @classmethod
    def _make(cls, llm: Any, request_id: int, prompt: list[int]) -> RequestOutput:
        made = object.__new__(cls)
        made._llm = llm
        made.request_id = request_id
        made.prompt = None
        made.prompt_token_ids = prompt
        made.outputs = [CompletionOutput(0)]
        made.cached_tokens = 0
        made.abort_asked = False
        made._done = False
        made._failed = False
        try:
            made._loop = asyncio.get_running_loop()
            made.aqueue = asyncio.Queue()
        except RuntimeError:
            made._loop = made.aqueue = None
        return made

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self.abort_asked = True
        self._llm._abort_request(self)

    def aborted(self) -> bool:
        return self.abort_asked

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        await self._step()
        return self

    def __await__(self) -> Any:
        return self._all().__await__()

    async def _all(self) -> RequestOutput:
        while not self._done:
            await self._step()
        return self

    async def _step(self) -> None:
        assert self.aqueue is not None, "The asyncio event loop was not present during initialization"
        if self._failed:
            control.violations.append("a result was read again after an error")
        if self._loop is not asyncio.get_running_loop():
            control.violations.append("a result was read on another loop")
        response = await self.aqueue.get()
        if response.error is not None:
            self._failed = True
            raise RequestError(response.error)
        output = self.outputs[0]
        output._last_token_ids_len = len(output.token_ids)
        output._last_logprobs_len = len(output.logprobs)
        output.token_ids = output.token_ids + response.token_ids
        output.logprobs = output.logprobs + response.logprobs
        output.prompt_logprobs = response.prompt_logprobs or output.prompt_logprobs
        output.finish_reason = response.finish_reason
        output.stop_reason = response.stop_reason
        self._done = response.finish_reason is not None
