"""Between gateways and the hosts of engines, over the loopback: real hosts, real links, an engine that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from argosy_services.cluster import links as module
from argosy_services.cluster.engine_host import EngineHost
from argosy_services.cluster.links import LinkedEngines
from argosy_services.cluster.messages import MessageRefusedError
from argosy_services.cluster.placement import ReplicaView
from argosy_services.cluster.remote_engine import ReplicaLost
from argosy_services.cluster.roster import Member, Roster
from argosy_services.cluster.wire import Contact
from argosy_services.engine.base import Finish, Grammar, Request, StepCallback, StepOutput, Timings
from argosy_services.errors import ArgosyError, Reason

HOST = "127.0.0.1"


class CountingEngine:
    """Gives the numbers from 0, one for each sequence whenever it is told to step."""

    def __init__(self) -> None:
        self.live: dict[str, list[int]] = {}
        self.refusal: Exception | None = None
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
            over = {} if left else {"finish": Finish.LENGTH, "timings": Timings(decode_s=1.0)}
            outputs.append(StepOutput(name, (token,), **over))
            if not left:
                del self.live[name]
        self.on_step(outputs)


class Replica:
    """A host and what others know of it."""

    def __init__(self) -> None:
        self.engine = CountingEngine()
        self.loaded: list[str] = []
        self.released: list[str] = []
        self.may_load = asyncio.Event()
        self.load_error: Exception | None = None
        self.host = EngineHost(self.engine, self._load, self.released.append)  # type: ignore[arg-type]
        self.contact: Contact

    async def start(self) -> None:
        self.contact = await self.host.start(HOST)

    def die(self) -> None:
        """Ends its connections as the end of its process would."""
        server: Any = self.host._server
        server.close()
        for outbox in self.host._outboxes:
            outbox._gateway.close()

    async def _load(self, adapter: str) -> None:
        await self.may_load.wait()
        self.loaded.append(adapter)
        if self.load_error is not None:
            raise self.load_error


class Fleet:
    """Replicas, the roster that names them, and what happens when a gateway finds none."""

    def __init__(self, replicas: dict[str, Replica]) -> None:
        self.replicas = replicas
        self.roster = Roster()
        self.woken = 0
        self.on_wake: Callable[[], None] = lambda: None
        self.gateways: list[LinkedEngines] = []

    def announce(self, *names: str, **views: ReplicaView) -> None:
        self.roster.members = {
            name: Member(self.replicas[name].contact, views.get(name, ReplicaView())) for name in names
        }

    def gateway(self) -> LinkedEngines:
        self.gateways.append(LinkedEngines(self.roster, self))
        return self.gateways[-1]

    async def wake(self) -> None:
        self.woken += 1
        self.on_wake()
        if not self.roster.members:
            raise ReplicaLost("none")

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        return None


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Two replicas, of which one is announced."""
    monkeypatch.setattr(module, "_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "_AVOIDED_S", 0.05)
    fleet = Fleet({"one": Replica(), "two": Replica()})
    for replica in fleet.replicas.values():
        await replica.start()
    fleet.announce("one")
    yield fleet
    for gateway in fleet.gateways:
        await gateway.close()
    for replica in fleet.replicas.values():
        replica.die()
    await asyncio.sleep(0.01)


def asking(name: str, tokens: int = 5, *, adapter: str | None = None, prompt: int = 1) -> Request:
    return Request(name, prompt=[prompt], max_tokens=tokens, adapter=adapter)


def ignore(output: StepOutput) -> None:
    """For runs whose outputs do not matter."""


async def until(condition: Callable[[], bool], step: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(5):
        while not condition():
            step()
            await asyncio.sleep(0.001)


async def test_many_sequences_share_one_link(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    got: dict[str, list[int]] = {f"s{index}": [] for index in range(20)}
    runs = [
        asyncio.create_task(engines.run(asking(name), lambda output, into=into: into.extend(output.token_ids)))
        for name, into in got.items()
    ]
    await until(lambda: len(one.engine.live) == 20)
    assert len(one.host._outboxes) == 1
    await until(lambda: all(run.done() for run in runs), one.engine.step)
    assert all(tokens == [0, 1, 2, 3, 4] for tokens in got.values())


async def test_two_gateways_do_not_see_each_others_sequences(fleet: Fleet) -> None:
    heard: list[list[str]] = [[], []]
    runs = [
        asyncio.create_task(
            fleet.gateway().run(asking(f"g{index}"), lambda output, into=into: into.append(output.request_id))
        )
        for index, into in enumerate(heard)
    ]
    await until(lambda: all(run.done() for run in runs), fleet.replicas["one"].engine.step)
    assert heard == [["g0"] * 5, ["g1"] * 5]


@pytest.mark.parametrize(
    ("problem", "reason"),
    [(ArgosyError(Reason.QUEUE_FULL, "full"), Reason.QUEUE_FULL), (ZeroDivisionError(), Reason.INTERNAL)],
)
@pytest.mark.parametrize("where", ["engine", "adapter"])
async def test_a_refusal_is_an_output_and_the_others_go_on(
    fleet: Fleet, where: str, problem: Exception, reason: Reason
) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    other = asyncio.create_task(engines.run(asking("b"), ignore))
    await until(lambda: bool(one.engine.live))
    one.may_load.set()
    if where == "engine":
        one.engine.refusal = problem
    else:
        one.load_error = problem
    outputs: list[StepOutput] = []
    await asyncio.wait_for(engines.run(asking("a", adapter="x@1"), outputs.append), 5)
    (output,) = outputs
    assert output.finish is Finish.FAILED
    assert output.error is not None
    assert output.error.reason is reason
    await until(other.done, one.engine.step)


async def test_a_cut_link_loses_its_sequences(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    outputs: list[StepOutput] = []
    run = asyncio.create_task(fleet.gateway().run(asking("a", 1_000), outputs.append))
    await until(lambda: bool(outputs), one.engine.step)
    one.die()
    with pytest.raises(ReplicaLost):
        await asyncio.wait_for(run, 5)


async def test_an_engine_that_is_not_understood_is_left(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    run = asyncio.create_task(engines.run(asking("a", 1_000), ignore))
    await until(lambda: bool(one.engine.live))
    (outbox,) = one.host._outboxes
    with capture_logs() as logged:
        outbox._gateway._writer.write(b"\x00\x00\x00\x01\xc1")
        with pytest.raises(ReplicaLost):
            await asyncio.wait_for(run, 5)
    assert [entry["log_level"] for entry in logged] == ["warning"]
    await until(lambda: not one.engine.live)
    again = asyncio.create_task(engines.run(asking("b"), ignore))
    await until(again.done, one.engine.step)


async def test_a_gateway_that_is_not_understood_is_left_and_no_other(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    bad, good = fleet.gateway(), fleet.gateway()
    runs = [asyncio.create_task(engines.run(asking(name, 20), ignore)) for engines, name in ((bad, "a"), (good, "b"))]
    await until(lambda: len(one.engine.live) == 2)
    (link,) = bad._links.values()
    link._connection._writer.write(b"\xff" * 4)
    await until(lambda: set(one.engine.live) == {"b"})
    with pytest.raises(ReplicaLost):
        await runs[0]
    await until(runs[1].done, one.engine.step)


async def test_outputs_that_cannot_be_sent_end_the_link(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    run = asyncio.create_task(fleet.gateway().run(asking("a", 1_000), ignore))
    await until(lambda: bool(one.engine.live))
    with capture_logs() as logged:
        one.engine.on_step([StepOutput("a", (2**64,))])
        with pytest.raises(ReplicaLost):
            await asyncio.wait_for(run, 5)
    assert [entry["log_level"] for entry in logged] == ["error"]
    await until(lambda: not one.engine.live)


async def test_a_request_that_cannot_be_sent_harms_no_other(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    other = asyncio.create_task(engines.run(asking("b"), ignore))
    await until(lambda: bool(one.engine.live))
    with pytest.raises(MessageRefusedError):
        await engines.run(asking("a", prompt=2**64), ignore)
    (link,) = engines._links.values()
    assert link.sequences == 1
    await until(other.done, one.engine.step)


async def test_a_gateway_that_dies_has_its_sequences_freed_and_no_others(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    dying, living = fleet.gateway(), fleet.gateway()
    runs = [
        asyncio.create_task(engines.run(asking(name, 1_000), ignore)) for engines, name in ((dying, "a"), (living, "b"))
    ]
    await until(lambda: len(one.engine.live) == 2)
    (link,) = dying._links.values()
    link._connection.close()
    await until(lambda: set(one.engine.live) == {"b"})
    with pytest.raises(ReplicaLost):
        await runs[0]
    runs[1].cancel()


async def test_cancelling_frees_the_sequence_and_only_it(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    runs = {name: asyncio.create_task(engines.run(asking(name, 1_000), ignore)) for name in "ab"}
    await until(lambda: len(one.engine.live) == 2)
    runs["a"].cancel()
    await until(lambda: set(one.engine.live) == {"b"})
    runs["b"].cancel()
    await until(lambda: not one.engine.live)


async def test_cancelling_one_that_waits_for_a_link_leaves_the_others(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    runs = {name: asyncio.create_task(engines.run(asking(name, 1_000), ignore)) for name in "ab"}
    await asyncio.sleep(0)
    runs["a"].cancel()
    await until(lambda: set(one.engine.live) == {"b"})
    runs["b"].cancel()
    with suppress(asyncio.CancelledError):
        await runs["a"]


async def test_a_sequence_waits_for_its_adapter(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    outputs: list[StepOutput] = []
    run = asyncio.create_task(engines.run(asking("a", adapter="x@1"), outputs.append))
    plain = asyncio.create_task(engines.run(asking("b"), outputs.append))
    await until(lambda: set(one.engine.live) == {"b"})
    one.may_load.set()
    await until(lambda: run.done() and plain.done(), one.engine.step)
    assert one.loaded == one.released == ["x@1"]
    told = {output.request_id: output.timings for output in outputs if output.timings}
    assert told["b"] == Timings(decode_s=1.0)
    assert told["a"] == Timings(decode_s=1.0, adapter_s=told["a"].adapter_s)
    assert told["a"].adapter_s > 0


async def test_a_sequence_that_is_cancelled_before_its_adapter_is_there_never_runs(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    run = asyncio.create_task(engines.run(asking("a", adapter="x@1"), ignore))
    await until(lambda: bool(one.host._loading))
    run.cancel()
    await until(lambda: not one.host._loading)
    one.may_load.set()
    await asyncio.wait_for(one.host.drain(), 5)
    assert not one.loaded
    assert not one.engine.live


async def test_a_replica_that_cannot_be_reached_is_passed_over(fleet: Fleet) -> None:
    for name in ("one", "two"):
        fleet.announce("one", "two")
        fleet.replicas[name].die()
        other = fleet.replicas["two" if name == "one" else "one"]
        engines = fleet.gateway()
        runs = [asyncio.create_task(engines.run(asking(f"{index}", prompt=index), ignore)) for index in range(20)]
        await until(lambda runs=runs: all(run.done() for run in runs), other.engine.step)
        await fleet.replicas[name].start()


async def test_where_no_replica_can_be_reached_one_is_woken(fleet: Fleet) -> None:
    fleet.replicas["one"].die()
    run = asyncio.create_task(fleet.gateway().run(asking("a"), ignore))
    fleet.on_wake = lambda: fleet.announce("two") if fleet.woken == 3 else None
    await until(run.done, fleet.replicas["two"].engine.step)
    assert run.result() is None
    assert fleet.woken >= 3


async def test_what_was_just_sent_somewhere_counts(fleet: Fleet) -> None:
    fleet.announce("one", "two")
    engines = fleet.gateway()
    runs = [asyncio.create_task(engines.run(asking(f"{index}", 1_000), ignore)) for index in range(40)]
    sent = [replica.engine.live for replica in fleet.replicas.values()]
    await until(lambda: sum(map(len, sent)) == 40)
    # Their prompts are alike, and so they go to one replica, but not with so many more than the other.
    assert sorted(map(len, sent)) == [16, 24]
    for run in runs:
        run.cancel()


async def test_a_replica_drains_before_it_leaves(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    engines = fleet.gateway()
    outputs: list[StepOutput] = []
    run = asyncio.create_task(engines.run(asking("a", 3), outputs.append))
    await until(lambda: bool(one.engine.live))
    draining = asyncio.create_task(one.host.drain())
    one.engine.step()
    await asyncio.sleep(0.01)
    assert not draining.done()
    await until(run.done, one.engine.step)
    await asyncio.wait_for(draining, 5)
    assert [output.token_ids for output in outputs] == [(0,), (1,), (2,)]
    await until(lambda: not engines._links)
    fleet.announce("two")
    again = asyncio.create_task(engines.run(asking("b"), ignore))
    await until(again.done, fleet.replicas["two"].engine.step)


async def test_a_gateway_that_reads_late_gets_everything(fleet: Fleet) -> None:
    one = fleet.replicas["one"]
    got: list[int] = []
    run = asyncio.create_task(fleet.gateway().run(asking("a", 3_000), lambda output: got.extend(output.token_ids)))
    await until(lambda: bool(one.engine.live))
    for _ in range(3_000):
        one.engine.step()
    await asyncio.wait_for(run, 5)
    assert got == list(range(3_000))
