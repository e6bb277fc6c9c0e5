"""Decorators that turn a method of a servicer into an RPC of either runtime.

Ray Serve takes no interceptors, so what interceptors do elsewhere (request ids, authentication, admission, deadlines,
metrics, logs, errors) is done here, once (docs/adr/0002). The decorated method receives `(self, request, call)`; the
RPC that gRPC or Ray Serve sees takes `(self, request, grpc_context)`, a name that Ray Serve asks for.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import structlog
from google.protobuf.message import Message

from argosy_services import metrics, tracing
from argosy_services.errors import ArgosyError, Reason, deadline_exceeded
from argosy_services.rpc import status
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call, open_call
from argosy_services.rpc.gate import Gate, draining

log = structlog.get_logger("argosy.rpc")

T = TypeVar("T")
Resp = TypeVar("Resp", bound=Message)

# A client gives up by its own clock, a little before the server's: the deadline travels rounded up by at most 1 %.
_CLOCKS_DIFFER_S = 0.05
_CLOCKS_DIFFER_SHARE = 0.01


class Servicer(Protocol):
    """What a class needs for its methods to be decorated."""

    SERVICE: str
    gate: Gate
    auth: Authenticator


@dataclass(frozen=True, slots=True)
class MalformedRequest:
    """Stands for a request whose bytes could not be read as its message; `problem` says why."""

    problem: str


def unary(response: type[Resp]) -> Callable[[Callable[[Any, Any, Call], Awaitable[Resp]]], Any]:
    """Makes an RPC that answers once. `response` is its message type."""

    def decorate(method: Callable[[Any, Any, Call], Awaitable[Resp]]) -> Any:
        async def rpc(self: Servicer, request: Any, grpc_context: Any) -> Resp:
            with (
                _observed(self, method.__name__, grpc_context) as attempt,
                _admitted(self, request, attempt),
            ):
                return await _in_time(lambda: method(self, request, attempt.call), attempt.call, self.gate)
            return response()

        return _named(rpc, method)

    return decorate


def stream(
    response: type[Resp], *, watch: bool = False
) -> Callable[[Callable[[Any, Any, Call], AsyncIterator[Resp]]], Any]:
    """Makes an RPC that answers with a stream of messages. The method is an async generator.

    After an error one empty message is sent before the status: Ray Serve would lose the status otherwise, and clients
    skip empty messages as keep-alives. A `watch` may last for ever: it is not waited for when the server drains, but
    ended with DRAINING.
    """

    def decorate(method: Callable[[Any, Any, Call], AsyncIterator[Resp]]) -> Any:
        async def rpc(self: Servicer, request: Any, grpc_context: Any) -> AsyncIterator[Resp]:
            with (
                _observed(self, method.__name__, grpc_context) as attempt,
                _admitted(self, request, attempt, counted=not watch),
            ):
                async with aclosing(cast(AsyncGenerator[Resp], method(self, request, attempt.call))) as events:
                    step = functools.partial(anext, events, None)
                    while (event := await _in_time(step, attempt.call, self.gate, watch=watch)) is not None:
                        yield event
            if attempt.error is not None:
                yield response()

        return _named(rpc, method)

    return decorate


@dataclass(slots=True)
class _Attempt:
    """A call and, once it has failed, why."""

    call: Call
    error: ArgosyError | None = None


@contextmanager
def _observed(servicer: Servicer, method: str, grpc_context: Any) -> Iterator[_Attempt]:
    """Counts, times and logs one call, and turns its exceptions into its status."""
    labels = {"service": servicer.SERVICE, "method": method}
    attempt = _Attempt(open_call(grpc_context))
    call = attempt.call
    # Never unbound: both runtimes run each call in a task, and so in a context, of its own.
    structlog.contextvars.bind_contextvars(request_id=call.request_id)
    span = tracing.open_call(servicer.SERVICE, method, call.metadata, call.request_id)
    code, start = "OK", time.monotonic()
    metrics.RPC_RUNNING.labels(**labels).inc()
    try:
        yield attempt
        grpc_context.set_trailing_metadata([("x-request-id", call.request_id)])
    except (asyncio.CancelledError, GeneratorExit):
        code = _code_of_cancelled(call, start)
        raise
    except Exception as raised:
        attempt.error = raised if isinstance(raised, ArgosyError) else _internal(raised, call, labels)
        code = status.CODES[attempt.error.reason].name
        status.write(grpc_context, attempt.error, call.request_id)
    finally:
        seconds = time.monotonic() - start
        reason = attempt.error.reason if attempt.error else ""
        metrics.RPC_RUNNING.labels(**labels).dec()
        metrics.RPC_SECONDS.labels(**labels).observe(seconds)
        metrics.RPC_TOTAL.labels(**labels, code=code, reason=reason).inc()
        log.info("rpc", **labels, code=code, reason=reason, ms=round(seconds * 1000, 1), request_id=call.request_id)
        span.end_call(code, reason)


@contextmanager
def _admitted(servicer: Servicer, request: Any, attempt: _Attempt, *, counted: bool = True) -> Iterator[None]:
    """Refuses a call that may not or cannot be answered, and finds out who makes it."""
    attempt.call = servicer.auth.check(attempt.call)
    with servicer.gate.admit(counted=counted):
        if attempt.call.remaining() == 0:
            raise deadline_exceeded()
        if isinstance(request, MalformedRequest):
            raise ArgosyError(Reason.MALFORMED_MESSAGE, request.problem)
        yield


async def _in_time(step: Callable[[], Awaitable[T]], call: Call, gate: Gate, *, watch: bool = False) -> T:
    """Awaits a step, until the call's deadline or until the gate ends what runs."""
    limit = asyncio.timeout(call.remaining())
    try:
        async with limit:
            with gate.bound(limit, watch=watch):
                return await step()
    except TimeoutError:
        if not limit.expired():
            raise
        raise (draining() if gate.must_end(watch=watch) else deadline_exceeded()) from None


def _code_of_cancelled(call: Call, start: float) -> str:
    """A call is cancelled when its client goes away, and also when its deadline passes."""
    if call.deadline is None:
        return "CANCELLED"
    tolerance = max(_CLOCKS_DIFFER_S, _CLOCKS_DIFFER_SHARE * (call.deadline - start))
    return "DEADLINE_EXCEEDED" if time.monotonic() + tolerance >= call.deadline else "CANCELLED"


def _internal(raised: Exception, call: Call, labels: dict[str, str]) -> ArgosyError:
    log.error("internal error", exc_info=raised, request_id=call.request_id, **labels)
    return ArgosyError(
        Reason.INTERNAL,
        f"internal error; the server's log has the cause under request id {call.request_id}",
        request_id=call.request_id,
    )


def _named(rpc: Any, method: Any) -> Any:
    # Without __wrapped__: Ray Serve inspects the signature, which must be that of `rpc`.
    functools.update_wrapper(rpc, method)
    del rpc.__wrapped__
    return rpc
