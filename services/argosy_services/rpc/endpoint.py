"""Decorators that turn a method of a servicer into an RPC of either runtime.

Ray Serve takes no interceptors, so what interceptors do elsewhere (request ids, authentication, admission, deadlines,
metrics, logs, errors) is done here, once (docs/adr/0002). The decorated method receives `(self, request, call)`; the
RPC that gRPC or Ray Serve sees takes `(self, request, grpc_context)`, a name that Ray Serve asks for.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import structlog
from google.protobuf.message import Message

from argosy_services import metrics
from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc import status
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call, open_call
from argosy_services.rpc.gate import Gate, draining

log = structlog.get_logger("argosy.rpc")


class Servicer(Protocol):
    """What a class needs for its methods to be decorated."""

    SERVICE: str
    gate: Gate
    auth: Authenticator


S = TypeVar("S", bound=Servicer)
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


def unary(response: type[Resp]) -> Callable[[Callable[[S, Req, Call], Awaitable[Resp]]], Any]:
    """Makes an RPC that answers once. `response` is its message type."""

    def decorate(method: Callable[[S, Req, Call], Awaitable[Resp]]) -> Any:
        async def rpc(self: S, request: Req, grpc_context: Any) -> Resp:
            watch = _Observer(self, method.__name__, open_call(grpc_context), grpc_context)
            answer = response()
            with watch:
                watch.admit(self, request)
                async with asyncio.timeout(watch.call.remaining()):
                    answer = await method(self, request, watch.call)
            return answer

        return _named(rpc, method)

    return decorate


def stream(
    response: type[Resp], *, watch: bool = False
) -> Callable[[Callable[[S, Req, Call], AsyncIterator[Resp]]], Any]:
    """Makes an RPC that answers with a stream of messages.

    After an error one empty message is sent before the status: Ray Serve would lose the status otherwise, and clients
    skip empty messages as keep-alives. A `watch` may last for ever: it is not waited for when the server drains, but
    ended with DRAINING.
    """

    def decorate(method: Callable[[S, Req, Call], AsyncIterator[Resp]]) -> Any:
        async def rpc(self: S, request: Req, grpc_context: Any) -> AsyncIterator[Resp]:
            observer = _Observer(self, method.__name__, open_call(grpc_context), grpc_context)
            with observer:
                observer.admit(self, request, counted=not watch)
                async with aclosing(method(self, request, observer.call)) as events:  # type: ignore[type-var]
                    while True:
                        async with asyncio.timeout(observer.call.remaining()):
                            step = _or_drained(events, self.gate) if watch else anext(events, None)
                            event = await step
                        if event is None:
                            break
                        yield event
            if observer.failed:
                yield response()

        return _named(rpc, method)

    return decorate


async def _or_drained(events: AsyncIterator[Resp], gate: Gate) -> Resp | None:
    step: asyncio.Future[Resp | None] = asyncio.ensure_future(anext(events, None))  # type: ignore[arg-type]
    drained = asyncio.ensure_future(gate.draining.wait())
    try:
        await asyncio.wait({step, drained}, return_when=asyncio.FIRST_COMPLETED)
        if step.done():
            return step.result()
        raise draining()
    finally:
        drained.cancel()
        if not step.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)


class _Observer:
    """Counts, times and logs one call and turns its exceptions into a status."""

    def __init__(self, servicer: Servicer, method: str, call: Call, grpc_context: Any) -> None:
        self.call = call
        self.failed = False
        self._context = grpc_context
        self._labels = {"service": servicer.SERVICE, "method": method}
        self._start = time.perf_counter()
        self._admission: Any = None

    def admit(self, servicer: Servicer, request: Message, *, counted: bool = True) -> None:
        servicer.auth.check(self.call)
        admission = servicer.gate.admit()
        admission.__enter__()
        if counted:
            self._admission = admission
        else:
            admission.__exit__(None, None, None)
        if self.call.remaining() == 0:
            raise _deadline_exceeded()
        if isinstance(request, MalformedRequest):
            raise ArgosyError(Reason.MALFORMED_MESSAGE, request.problem)

    def __enter__(self) -> None:
        structlog.contextvars.bind_contextvars(request_id=self.call.request_id)
        metrics.RPC_RUNNING.labels(**self._labels).inc()

    def __exit__(self, _type: Any, raised: BaseException | None, _traceback: Any) -> bool:
        if self._admission is not None:
            self._admission.__exit__(None, None, None)
        seconds = time.perf_counter() - self._start
        metrics.RPC_RUNNING.labels(**self._labels).dec()
        metrics.RPC_SECONDS.labels(**self._labels).observe(seconds)
        error = self._as_error(raised)
        if error is None:
            code, reason = ("CANCELLED", "CANCELLED") if raised is not None else ("OK", "")
        else:
            code, reason = status.CODES[error.reason].name, str(error.reason)
        metrics.RPC_TOTAL.labels(**self._labels, code=code, reason=reason).inc()
        log.info("rpc", **self._labels, code=code, reason=reason, ms=round(seconds * 1000, 1))
        if error is not None:
            self.failed = True
            status.write(self._context, error, self.call.request_id)
            return True
        if raised is None:
            self._context.set_trailing_metadata((("x-request-id", self.call.request_id),))
        return False

    def _as_error(self, raised: BaseException | None) -> ArgosyError | None:
        """The error to report, or None where the call ended well or its client went away."""
        if raised is None or isinstance(raised, asyncio.CancelledError | GeneratorExit):
            return None
        if isinstance(raised, ArgosyError):
            return raised
        if isinstance(raised, TimeoutError) and self.call.remaining() == 0:
            return _deadline_exceeded()
        if not isinstance(raised, Exception):
            return None
        log.error("internal error", exc_info=raised, **self._labels)
        return ArgosyError(
            Reason.INTERNAL,
            f"internal error; the server's log has the cause under request id {self.call.request_id}",
            request_id=self.call.request_id,
        )


class MalformedRequest(Message):
    """Stands for a request whose bytes could not be read; see `embedded.py`."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


def _deadline_exceeded() -> ArgosyError:
    return ArgosyError(
        Reason.DEADLINE_EXCEEDED, "the deadline passed before the answer was complete; allow more time or ask for less"
    )


def _named(rpc: Any, method: Any) -> Any:
    # Without __wrapped__: Ray Serve inspects the signature, which must be that of `rpc`.
    functools.update_wrapper(rpc, method)
    del rpc.__wrapped__
    return rpc
