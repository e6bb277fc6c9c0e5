"""Between a gateway and the hosts of engines, without a network: real hosts, real gateways, an engine that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from argosy_services.cluster import engine_host
from argosy_services.cluster.engine_host import EngineHost
from argosy_services.cluster.flights import Flights
from argosy_services.cluster.links import LinkedEngines
from argosy_services.cluster.remote_engine import ReplicaLost
from argosy_services.engine.base import Finish, Grammar, Request, StepCallback, StepOutput
from argosy_services.errors import ArgosyError, Reason


class CountingEngine:
    """Gives the numbers from 0, one for each sequence whenever it is told to step."""

    def __init__(self) -> None:
        self.live: dict[str, list[int]] = {}
        self.refusal: ArgosyError | None = None
        self.on_step: StepCallback = lambda outputs: None

    def start(self, on_step: StepCallback) -> None:
        self.on_step = on_step

    def submit(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.live[request.id] = list(range(request.max_tokens))

    def cancel(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def step(self) -> None:
        outputs = []
        for name, left in list(self.live.items()):
            token = left.pop(0)
            outputs.append(StepOutput(name, (token,), finish=None if left else Finish.LENGTH))
            if not left:
                del self.live[name]
        self.on_step(outputs)


class Calls:
    """Calls that reach hosts in this process; `cut` ends every link as the death of a replica does."""

    def __init__(self, hosts: dict[str, EngineHost]) -> None:
        self.hosts = hosts
        self.flights = Flights()
        self.links = 0
        self.cut = asyncio.Event()
        self.after_submit: Callable[[], Any] = lambda: None

    async def submit(self, request: Request, gateway: str) -> str | ArgosyError:
        replica = next(iter(self.hosts))
        try:
            self.hosts[replica].submit(request, gateway)
        except ArgosyError as error:
            return error
        self.after_submit()
        await asyncio.sleep(0)
        self.flights.routed(request.id, replica)
        return replica

    async def link(self, replica: str, gateway: str) -> AsyncGenerator[list[StepOutput]]:
        self.links += 1
        batches: Any = self.hosts[replica].link(gateway)
        cut = asyncio.create_task(self.cut.wait())
        try:
            while True:
                batch = asyncio.ensure_future(anext(batches, None))
                await asyncio.wait({batch, cut}, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    batch.cancel()
                    with suppress(asyncio.CancelledError):
                        await batch
                    raise ReplicaLost("cut")
                outputs = batch.result()
                if outputs is None:
                    return
                yield outputs
        finally:
            cut.cancel()
            await batches.aclose()

    async def cancel(self, replica: str, request_id: str) -> None:
        self.hosts[replica].cancel(request_id)

    def forget(self, request_id: str) -> str | None:
        return self.flights.ended(request_id)

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        return None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_host, "_MIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(engine_host, "_IDLE_S", 0.05)
    monkeypatch.setattr(engine_host, "_UNREAD_S", 0.05)


@pytest.fixture
def fleet() -> SimpleNamespace:
    engine = CountingEngine()
    host = EngineHost(engine)  # type: ignore[arg-type]
    return SimpleNamespace(engine=engine, host=host, make=lambda: Calls({"one": host}))


def asking(name: str, tokens: int = 5) -> Request:
    return Request(name, prompt=[1], max_tokens=tokens)


async def until(condition: Callable[[], bool], step: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(5):
        while not condition():
            step()
            await asyncio.sleep(0.001)


async def test_many_sequences_share_one_link(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    calls = fleet.make()
    engines = LinkedEngines(calls)
    got: dict[str, list[int]] = {f"s{index}": [] for index in range(20)}
    runs = [
        asyncio.create_task(engines.run(asking(name), lambda output, into=into: into.extend(output.token_ids)))
        for name, into in got.items()
    ]
    await until(lambda: all(run.done() for run in runs), fleet.engine.step)
    assert all(tokens == [0, 1, 2, 3, 4] for tokens in got.values())
    assert calls.links == 1
    assert calls.flights.count("one") == 0


async def test_two_gateways_do_not_see_each_others_sequences(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    heard: list[list[str]] = [[], []]
    runs = [
        asyncio.create_task(
            LinkedEngines(fleet.make()).run(
                asking(f"g{index}"), lambda output, into=into: into.append(output.request_id)
            )
        )
        for index, into in enumerate(heard)
    ]
    await until(lambda: all(run.done() for run in runs), fleet.engine.step)
    assert heard == [["g0"] * 5, ["g1"] * 5]


async def test_a_refusal_is_an_output(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    fleet.engine.refusal = ArgosyError(Reason.QUEUE_FULL, "full", retry_after_s=1.0)
    outputs: list[StepOutput] = []
    await LinkedEngines(fleet.make()).run(asking("a"), outputs.append)
    assert [(output.finish, output.error) for output in outputs] == [(Finish.FAILED, fleet.engine.refusal)]


async def test_a_cut_link_loses_its_sequences_and_frees_them(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    calls = fleet.make()
    outputs: list[StepOutput] = []
    run = asyncio.create_task(LinkedEngines(calls).run(asking("a", 1_000), outputs.append))
    await until(lambda: bool(outputs), fleet.engine.step)
    calls.cut.set()
    with pytest.raises(ReplicaLost):
        await run
    await until(lambda: not fleet.engine.live)
    assert calls.flights.count("one") == 0


async def test_cancelling_frees_the_sequence_and_only_it(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    engines = LinkedEngines(fleet.make())
    runs = {name: asyncio.create_task(engines.run(asking(name, 1_000), lambda output: None)) for name in "ab"}
    await until(lambda: len(fleet.engine.live) == 2)
    runs["a"].cancel()
    await until(lambda: set(fleet.engine.live) == {"b"})
    runs["b"].cancel()
    await until(lambda: not fleet.engine.live)


async def test_what_is_given_up_while_it_is_submitted_is_freed(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    calls = fleet.make()
    run = asyncio.create_task(LinkedEngines(calls).run(asking("a", 1_000), lambda output: None))
    calls.after_submit = run.cancel
    with pytest.raises(asyncio.CancelledError):
        await run
    # Nobody reads a link yet, or else its next output gives it away.
    await until(lambda: not fleet.engine.live, fleet.engine.step)


async def test_what_nobody_reads_is_freed(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    fleet.host.submit(asking("a", 1_000), "a gateway that died")
    await until(lambda: not fleet.engine.live)


async def test_an_idle_link_ends_and_the_next_sequence_opens_another(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    calls = fleet.make()
    engines = LinkedEngines(calls)
    for round_number in (1, 2):
        run = asyncio.create_task(engines.run(asking("a"), lambda output: None))
        await until(run.done, fleet.engine.step)
        assert calls.links == round_number
        await asyncio.sleep(0.2)
        assert not fleet.host._outboxes


async def test_a_sequence_that_waits_long_keeps_its_link(fleet: SimpleNamespace) -> None:
    fleet.host.start()
    calls = fleet.make()
    run = asyncio.create_task(LinkedEngines(calls).run(asking("a"), lambda output: None))
    await asyncio.sleep(0.2)
    await until(run.done, fleet.engine.step)
    assert calls.links == 1
