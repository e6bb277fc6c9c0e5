"""Making the library's LLM, again where it died, without blocking the loop that runs it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

log = structlog.get_logger("argosy.engine")
T = TypeVar("T")

_LONGEST_DELAY_S = 60.0
_SHUTDOWN_S = 30.0


class Restarts:
    """How often an LLM may be made anew, and after which delays: `delay_s`, then twice as long each time.

    A request that ran through gives all attempts back.
    """

    def __init__(self, make: Callable[[], Any], *, attempts: int, delay_s: float) -> None:
        self._make = make
        self._attempts = attempts
        self._delay_s = delay_s
        self._made = 0

    def succeeded(self) -> None:
        """Counts from the beginning again."""
        self._made = 0

    async def replace(self, dead: Any, *, wanted: Callable[[], bool]) -> Any:
        """Ends the dead LLM and makes another. Raises the last attempt's error, or RuntimeError where none is left.

        One that is ready after nobody wants it any more is shut down again.
        """
        await shut_down(dead)
        fault: Exception = RuntimeError(f"it was started {self._attempts} times again and failed each time")
        while self._made < self._attempts:
            delay = min(self._delay_s * 2**self._made, _LONGEST_DELAY_S)
            self._made += 1
            await asyncio.sleep(delay)
            try:
                return await in_daemon_thread(lambda: self._make_wanted(wanted))
            except Exception as error:
                log.warning("an attempt to start TensorRT-LLM again failed", attempt=self._made, error=str(error))
                fault = error
        raise fault

    def _make_wanted(self, wanted: Callable[[], bool]) -> Any:
        llm = self._make()
        if not wanted():
            llm.shutdown()
            raise RuntimeError("the engine was closed meanwhile")
        return llm


async def shut_down(llm: Any) -> None:
    """Ends an LLM, which joins its workers; one that does not come to an end in time is left alone."""
    try:
        await asyncio.wait_for(in_daemon_thread(llm.shutdown), _SHUTDOWN_S)
    except Exception as error:
        log.warning("TensorRT-LLM did not shut down", error=repr(error))


def in_daemon_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Runs a blocking function. Its thread does not keep the process, nor the loop, from ending."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def body() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, name="tensorrt-llm", daemon=True).start()
    return asyncio.wrap_future(future)
