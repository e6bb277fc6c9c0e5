"""The engine's thread: an event loop of its own, on which every request of the library is made, read and ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import structlog

from argosy_services.engine.base import AdapterWeights, EngineStats, Request, StepCallback, StepOutput
from argosy_services.engine.door import Door, Limits
from argosy_services.engine.failures import adapter_gone, not_running
from argosy_services.engine.meters import EngineMeters
from argosy_services.engine.tensorrt_llm.lora import AdapterIds
from argosy_services.engine.tensorrt_llm.restart import Restarts, shut_down
from argosy_services.engine.tensorrt_llm.stats import Statistics
from argosy_services.engine.tensorrt_llm.stream import Context, Stream
from argosy_services.engine.tensorrt_llm.warmup import warm_up
from argosy_services.errors import ArgosyError, Reason, deadline_exceeded

log = structlog.get_logger("argosy.engine")

# How often the library is asked whether it lives; those that wait for its answers are not told.
_HEALTH_S = 0.25
_STATS_S = 0.25
_STATS_TIMEOUT_S = 0.5


class EngineThread(threading.Thread):
    """Runs requests until it is stopped, or until the library failed more often than it may."""

    def __init__(
        self,
        context: Context,
        llm: Any,
        restarts: Restarts,
        adapters: AdapterIds,
        on_step: StepCallback,
    ) -> None:
        super().__init__(name=f"engine-{context.model}", daemon=True)
        self.fault: Exception | None = None
        self._context = Context(context.model, context.library, context.info, context.compiled, emit=self._emit)
        self._llm = llm
        self._restarts = restarts
        self._adapters = adapters
        self._on_step = on_step
        self._meters = EngineMeters(context.model)
        self._streams: dict[str, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outputs: list[StepOutput] = []
        self._statistics = Statistics()
        self._asked = False
        self._lock = threading.Lock()
        self._door = Door()
        self._closing: ArgosyError | None = None
        self._running = threading.Event()
        self.stats = self._picture()

    # For any thread.

    def start(self) -> None:
        """Starts the thread and waits until its loop takes commands."""
        super().start()
        self._running.wait()

    @property
    def healthy(self) -> bool:
        """Whether requests are taken now, or once the library has been made anew: not after the last attempt."""
        return self.is_alive() and self._closing is None

    @property
    def takes(self) -> bool:
        """Whether requests are taken now."""
        return self.healthy and self._llm is not None

    def offer(self, request: Request, limits: Limits) -> None:
        """Has a sequence run. Raises QUEUE_FULL or ENGINE_FAILED."""
        with self._lock:
            if not self.takes:
                raise not_running() from self.fault
            self._door.enter(request, limits)
            self._loop.call_soon_threadsafe(self._submit, request)

    def cancel(self, request_id: str) -> None:
        """Ends a sequence without an output."""
        asked = time.monotonic()
        self._post(lambda: self._cancel(request_id, asked))

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """Puts an adapter in and has the library read it. The future raises what `Engine.load_adapter` says."""
        return self._ask(self._load_adapter(key, weights))

    def unload_adapter(self, key: str) -> Future[None]:
        """Takes an adapter out; sequences that use it end."""
        return self._ask(self._unload_adapter(key))

    def stop(self) -> None:
        """Ends every sequence, the library and the thread."""
        error = ArgosyError(Reason.DRAINING, "the engine is shutting down; retry elsewhere", retry_after_s=1.0)
        self._post(lambda: self._close(error))
        self.join()

    def run(self) -> None:
        """The thread's body."""
        asyncio.run(self._main())

    # On the engine's thread.

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._running.set()
        watchers = [asyncio.create_task(self._watch_health()), asyncio.create_task(self._read_stats())]
        await self._closed.wait()
        for task in (*watchers, *self._tasks):
            task.cancel()
        await asyncio.gather(*watchers, *self._tasks, return_exceptions=True)
        if self._llm is not None:
            await shut_down(self._llm)
        # Whatever was submitted before the door closed has been answered by now; this hands the answers out.
        self._hand_out()

    def _submit(self, request: Request) -> None:
        stream = Stream(request, self._context)
        adapter = None if request.adapter is None else self._adapters.get(request.adapter)
        if self._closing is not None or self._llm is None:
            stream.end(self._closing or not_running())
        elif request.adapter is not None and adapter is None:
            # The library would answer with the base model.
            stream.end(adapter_gone(request.adapter))
        else:
            self._streams[request.id] = stream
            self._asked = True
            timer = (
                None
                if request.timeout_s is None
                else self._loop.call_later(request.timeout_s, stream.end, deadline_exceeded())
            )
            task = self._spawn(self._run(stream, self._llm, adapter))
            # Not in the task itself: one that is cancelled before its first turn never runs.
            task.add_done_callback(lambda _: self._done(stream, timer))
            return
        self._release(request)

    async def _run(self, stream: Stream, llm: Any, adapter: Any) -> None:
        try:
            await stream.run(llm, adapter)
        except Exception as error:
            log.error("request failed in the library", model=self._context.model, exc_info=error)
            if llm is self._llm and not llm._check_health():
                self._fail_all(error)
            stream.end(not_running())
        else:
            if stream.started:
                self._restarts.succeeded()

    def _done(self, stream: Stream, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        if self._streams.get(stream.request.id) is stream:
            del self._streams[stream.request.id]
        self._release(stream.request)

    def _cancel(self, request_id: str, asked: float) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.cancel(asked)

    async def _load_adapter(self, key: str, weights: AdapterWeights) -> None:
        if self._llm is None:
            raise not_running()
        adapter = self._adapters.put(key, weights)
        try:
            await warm_up(self._llm, self._context, adapter)
        except BaseException:
            self._adapters.drop(key, forget=True)
            raise
        self._asked = True
        self.stats = self._picture()

    async def _unload_adapter(self, key: str) -> None:
        for stream in list(self._streams.values()):
            if stream.request.adapter == key:
                stream.end(adapter_gone(key))
        self._adapters.drop(key)
        self.stats = self._picture()

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_S)
            if self._llm is not None and not self._llm._check_health():
                self._fail_all(None)

    def _fail_all(self, fault: Exception | None) -> None:
        """The library has died: whatever runs ends, and another instance is made."""
        log.error("TensorRT-LLM stopped; it is started again", model=self._context.model)
        self.fault = fault or self.fault
        dead, self._llm = self._llm, None
        self.stats = self._picture()
        for stream in list(self._streams.values()):
            stream.end(not_running())
        # Their responses will never come.
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._spawn(self._restart(dead))

    async def _restart(self, dead: Any) -> None:
        try:
            self._llm = await self._restarts.replace(dead, wanted=lambda: self._closing is None)
        except Exception as error:
            log.error("TensorRT-LLM cannot be started again", model=self._context.model, exc_info=error)
            self.fault = error
            self._close(not_running())
            return
        self._adapters.library_was_replaced()
        self._statistics.library_was_replaced()
        self._asked = False
        self.stats = self._picture()
        log.info("TensorRT-LLM runs again", model=self._context.model)

    def _close(self, error: ArgosyError) -> None:
        with self._lock:
            self._closing = self._closing or error
        for stream in list(self._streams.values()):
            stream.end(error)
        self._closed.set()

    async def _read_stats(self) -> None:
        while True:
            await asyncio.sleep(_STATS_S)
            # Before its first request the library has none.
            if self._llm is None or not self._asked:
                continue
            try:
                async for report in self._llm.get_stats_async(timeout=_STATS_TIMEOUT_S):
                    self._take_report(report)
            except Exception as error:
                log.warning("statistics cannot be read", model=self._context.model, error=str(error))

    def _take_report(self, report: dict[str, Any]) -> None:
        statistics = self._statistics
        steps, preemptions = statistics.steps, statistics.preemptions
        statistics.take(report)
        self._meters.steps.inc(statistics.steps - steps)
        self._meters.preemptions.inc(statistics.preemptions - preemptions)
        self.stats = self._picture()

    # Outputs.

    def _emit(self, output: StepOutput) -> None:
        if output.timings is not None:
            # Only its first token shows that a request has left the library's queue.
            self._door.start(output.request_id)
        if not self._outputs:
            # Runs in the loop's next turn, after everything that this one brings.
            self._loop.call_soon(self._hand_out)
        self._outputs.append(output)

    def _hand_out(self) -> None:
        self.stats = self._picture()
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._on_step(outputs)

    def _release(self, request: Request) -> None:
        self._door.leave(request.id)
        self.stats = self._picture()

    def _picture(self) -> EngineStats:
        unstarted = [stream for stream in self._streams.values() if not stream.started]
        return self._statistics.picture(
            live=len(self._streams),
            unstarted=len(unstarted),
            unstarted_tokens=sum(len(stream.request.prompt) for stream in unstarted),
            adapters=len(self._adapters),
            ready=self._llm is not None,
        )

    # Commands.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _post(self, command: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(command)
        except RuntimeError:
            log.debug("the engine ended before a command", model=self._context.model)

    def _ask(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Has a coroutine run, and turns the engine's end into ENGINE_FAILED."""
        future: Future[None] = Future()

        async def answer() -> None:
            try:
                future.set_result(await work)
            except asyncio.CancelledError:
                future.set_exception(not_running())
                raise
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            if self._closing is not None or not self.is_alive():
                work.close()
                raise not_running() from self.fault
            self._loop.call_soon_threadsafe(lambda: self._spawn(answer()))
        return future
