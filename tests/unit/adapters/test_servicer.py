"""The five RPCs over a real connection: hostile requests and the whole life of adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from argosy.api.adapters.v1 import adapter_pb2, adapters_service_pb2_grpc
from argosy.api.adapters.v1 import adapters_service_pb2 as pb
from argosy_services.adapters.convert import write_adapter
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.servicer import AdaptersServicer
from argosy_services.adapters.types import AdapterRecord, AdapterState, Failure
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.gate import Gate

from ..serving import serving

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
Stub = Any


@pytest.fixture
def gate() -> Gate:
    gate = Gate()
    gate.open()
    return gate


@pytest.fixture
async def stub(service: AdaptersService, gate: Gate) -> AsyncIterator[Stub]:
    servicer: Any = AdaptersServicer(service, gate, Authenticator())
    async with serving(partial(adapters_service_pb2_grpc.add_AdaptersServiceServicer_to_server, servicer)) as channel:
        yield adapters_service_pb2_grpc.AdaptersServiceStub(channel)


def why(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "argosy"
    return info


async def refusal(call: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), why(caught.value)


async def only_keep_alives(watch: Any) -> None:
    async for event in watch:
        assert event.WhichOneof("event") is None


async def follow(stub: Stub, *names: str) -> dict[str, adapter_pb2.Adapter]:
    """The named adapters once they are settled."""
    last: dict[str, adapter_pb2.Adapter] = {}
    async for event in stub.WatchAdapters(pb.WatchAdaptersRequest(names=names, until_settled=True), timeout=20):
        if event.WhichOneof("event") == "adapter":
            last[event.adapter.name] = event.adapter
    return last


async def load(stub: Stub, source: str | Path, name: str = "a") -> adapter_pb2.Adapter:
    uri = source if isinstance(source, str) else f"file://{source}"
    await stub.LoadAdapter(pb.LoadAdapterRequest(name=name, source=uri))
    return (await follow(stub, name))[name]


async def test_the_whole_life(stub: Stub, write_adapter: Any) -> None:
    source = f"file://{write_adapter()}"
    accepted = (await stub.LoadAdapter(pb.LoadAdapterRequest(name="a", source=source))).adapter
    assert accepted.state == adapter_pb2.ADAPTER_STATE_PENDING
    assert (accepted.name, accepted.source, accepted.base_model) == ("a", source, "small")
    settled = (await follow(stub, "a"))["a"]
    assert settled.state == adapter_pb2.ADAPTER_STATE_READY
    assert not settled.HasField("failure")
    assert (settled.rank, list(settled.target_modules)) == (2, ["down_proj", "q_proj"])
    assert settled.size_bytes > 0
    assert len(settled.version) == 64
    assert settled.update_time.ToNanoseconds() > settled.create_time.ToNanoseconds() > 0
    assert (await stub.GetAdapter(pb.GetAdapterRequest(name="a"))).adapter == settled
    again = await stub.LoadAdapter(pb.LoadAdapterRequest(name="a", source=source, base_model="small"))
    assert again.adapter == settled
    request = pb.UnloadAdapterRequest(name="a", drain_timeout=Duration(seconds=1, nanos=500_000_000))
    assert (await stub.UnloadAdapter(request)).adapter.state == adapter_pb2.ADAPTER_STATE_DRAINING
    assert (await follow(stub, "a"))["a"].state == adapter_pb2.ADAPTER_STATE_UNLOADED


async def test_unload_drains_running_requests_for_as_long_as_was_asked(
    stub: Stub, service: AdaptersService, write_adapter: Any
) -> None:
    await load(stub, write_adapter())
    revoked = asyncio.Event()
    async with service.lease("a", revoked.set):
        assert (await stub.GetAdapter(pb.GetAdapterRequest(name="a"))).adapter.active_leases == 1
        await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="a"))
        await asyncio.sleep(0.05)
        assert not revoked.is_set()
        await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="a", drain_timeout=Duration()))
        await asyncio.wait_for(revoked.wait(), 5)
    assert (await follow(stub, "a"))["a"].state == adapter_pb2.ADAPTER_STATE_UNLOADED


@pytest.mark.parametrize(
    "source", ["", "adapter", "file://{root}/../{root}/adapter", "file:///etc", "file://{root}/%2e%2e", "hf://o/n"]
)
async def test_a_source_elsewhere_is_refused_at_once(
    stub: Stub, tmp_path: Path, write_adapter: Any, source: str
) -> None:
    write_adapter()
    uri = source.replace("{root}", str(tmp_path))
    code, info = await refusal(stub.LoadAdapter(pb.LoadAdapterRequest(name="a", source=uri)))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SOURCE_REFUSED")
    assert info.metadata["field"] == "source"
    assert not (await stub.ListAdapters(pb.ListAdaptersRequest())).adapters


async def test_adapters_that_cannot_be_served_fail_with_their_reason(
    stub: Stub, write_adapter: Any, tmp_path: Path
) -> None:
    pickled = write_adapter("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    cut = write_adapter("cut")
    weights = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(weights[:-10])
    (tmp_path / "empty").mkdir()
    cases = {
        "missing": (tmp_path / "missing", "ADAPTER_INVALID", "No such file"),
        "empty": (tmp_path / "empty", "ADAPTER_INVALID", "adapter_config.json is missing"),
        "pickled": (pickled, "ADAPTER_INVALID", "is a pickle"),
        "cut": (cut, "ADAPTER_INVALID", "damaged"),
        "ranks": (write_adapter("ranks", tensors={B: torch.zeros(8, 3)}), "ADAPTER_INVALID", "B [8, 3]"),
        "nan": (write_adapter("nan", tensors={A: torch.full((2, 8), float("nan"))}), "ADAPTER_INVALID", "NaN"),
        "dora": (write_adapter("dora", options={"use_dora": True}), "ADAPTER_INVALID", "DoRA"),
        "base": (
            write_adapter("base", tensors={A: torch.zeros(2, 9), B: torch.zeros(9, 2)}),
            "WRONG_BASE_MODEL",
            "9 x 9",
        ),
    }
    for name, (directory, _, _) in cases.items():
        await stub.LoadAdapter(pb.LoadAdapterRequest(name=name, source=f"file://{directory}"))
    settled = await follow(stub, *cases)
    for name, (_, reason, said) in cases.items():
        assert settled[name].state == adapter_pb2.ADAPTER_STATE_FAILED
        assert settled[name].failure.reason == reason
        assert said in settled[name].failure.message


async def test_requests_that_make_no_sense_are_refused(stub: Stub, write_adapter: Any) -> None:
    await load(stub, write_adapter())
    source = f"file://{write_adapter('other')}"
    cases: list[tuple[Any, str]] = [
        (stub.LoadAdapter(pb.LoadAdapterRequest(name="", source=source)), "INVALID_FIELD"),
        (stub.LoadAdapter(pb.LoadAdapterRequest(name="a/b", source=source)), "INVALID_FIELD"),
        (stub.LoadAdapter(pb.LoadAdapterRequest(name="b", source=source, base_model="x")), "MODEL_NOT_FOUND"),
        (stub.LoadAdapter(pb.LoadAdapterRequest(name="a", source=source)), "ADAPTER_EXISTS"),
        (stub.GetAdapter(pb.GetAdapterRequest()), "INVALID_FIELD"),
        (stub.GetAdapter(pb.GetAdapterRequest(name="b")), "ADAPTER_NOT_FOUND"),
        (stub.UnloadAdapter(pb.UnloadAdapterRequest(name="b")), "ADAPTER_NOT_FOUND"),
        (stub.UnloadAdapter(pb.UnloadAdapterRequest(name="a", drain_timeout=Duration(nanos=-1))), "INVALID_FIELD"),
        (stub.UnloadAdapter(pb.UnloadAdapterRequest(name="a", drain_timeout=Duration(seconds=3601))), "INVALID_FIELD"),
        (stub.ListAdapters(pb.ListAdaptersRequest(page_size=1001)), "INVALID_FIELD"),
        (stub.ListAdapters(pb.ListAdaptersRequest(page_token="?")), "INVALID_FIELD"),
    ]
    for call, reason in cases:
        assert (await refusal(call))[1].reason == reason


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.WatchAdaptersRequest(names=["nobody"]), "ADAPTER_NOT_FOUND"),
        (pb.WatchAdaptersRequest(until_settled=True), "INVALID_FIELD"),
        (pb.WatchAdaptersRequest(names=["x"] * 1001), "TOO_MANY_INPUTS"),
    ],
)
async def test_watches_that_make_no_sense_are_refused(stub: Stub, request_: Any, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await only_keep_alives(stub.WatchAdapters(request_, timeout=20))
    assert why(caught.value).reason == reason


async def test_pages_go_by_name(stub: Stub, write_adapter: Any) -> None:
    source = f"file://{write_adapter()}"
    names = ["c", "a", "e", "b", "d"]
    for name in names:
        await stub.LoadAdapter(pb.LoadAdapterRequest(name=name, source=source))
    await follow(stub, *names)
    seen: list[str] = []
    token = ""
    while True:
        answer = await stub.ListAdapters(pb.ListAdaptersRequest(page_size=2, page_token=token))
        seen += [adapter.name for adapter in answer.adapters]
        token = answer.next_page_token
        if not token:
            break
    assert seen == sorted(names)
    assert len((await stub.ListAdapters(pb.ListAdaptersRequest())).adapters) == 5


async def test_a_watch_sends_a_picture_then_changes_until_the_server_drains(
    stub: Stub, gate: Gate, write_adapter: Any
) -> None:
    await load(stub, write_adapter())
    watch = aiter(stub.WatchAdapters(pb.WatchAdaptersRequest(), timeout=20))
    first, second = await anext(watch), await anext(watch)
    assert first.adapter.name == "a"
    assert second.snapshot_complete.revision == first.adapter.revision
    await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="a"))
    states = []
    while not states or states[-1] != adapter_pb2.ADAPTER_STATE_UNLOADED:
        event = await anext(watch)
        assert event.adapter.revision > second.snapshot_complete.revision
        states.append(event.adapter.state)
    gate.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await only_keep_alives(watch)
    assert (caught.value.code(), why(caught.value).reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_a_watcher_that_leaves_is_forgotten(stub: Stub, service: AdaptersService) -> None:
    watch = stub.WatchAdapters(pb.WatchAdaptersRequest())
    assert (await anext(aiter(watch))).WhichOneof("event") == "snapshot_complete"
    assert len(service._registry._events) == 1
    watch.cancel()
    async with asyncio.timeout(10):
        while service._registry._events:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("state", list(AdapterState))
def test_every_state_is_written_under_its_own_name(state: AdapterState) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
    failure = Failure("ADAPTER_INVALID", "why") if state is AdapterState.FAILED else None
    message = write_adapter(AdapterRecord("a", "file:///s", "m", state, 7, now, now, failure=failure))
    assert adapter_pb2.AdapterState.Name(message.state) == f"ADAPTER_STATE_{state.name}"
    assert message.HasField("failure") == (failure is not None)
    assert message.create_time.ToDatetime(UTC) == now
