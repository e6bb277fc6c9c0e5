"""Adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from argosy import errors
from argosy._convert import common
from argosy._status import error_of_reason
from argosy.api.adapters.v1 import adapter_pb2
from argosy.api.adapters.v1 import adapters_service_pb2 as rpc
from argosy.types.adapters import (
    Adapter,
    AdapterEvent,
    AdapterFailure,
    AdapterState,
    AdapterTier,
    Alias,
    SnapshotComplete,
)


def load_request(name: str, source: str | Path, *, base_model: str, pinned: bool) -> rpc.LoadAdapterRequest:
    """An adapter to load. A path stands for its `file://` URI; the server must see the same directory."""
    uri = source.absolute().as_uri() if isinstance(source, Path) else source
    return rpc.LoadAdapterRequest(name=name, source=uri, base_model=base_model, pinned=pinned)


def unload_request(name: str, *, drain_timeout: float | None) -> rpc.UnloadAdapterRequest:
    """An adapter to take out of service."""
    drain = None if drain_timeout is None else common.duration(drain_timeout)
    return rpc.UnloadAdapterRequest(name=name, drain_timeout=drain)


def adapter(message: adapter_pb2.Adapter) -> Adapter:
    """A picture of an adapter."""
    failure = AdapterFailure(message.failure.reason, message.failure.message) if message.HasField("failure") else None
    return Adapter(
        name=message.name,
        version=message.version,
        base_model=message.base_model,
        source=message.source,
        state=common.enum_of(AdapterState, adapter_pb2.AdapterState, "ADAPTER_STATE_", message.state),
        failure=failure,
        rank=message.rank,
        target_modules=tuple(message.target_modules),
        size_bytes=message.size_bytes,
        active_leases=message.active_leases,
        create_time=common.time_of(message, "create_time"),
        update_time=common.time_of(message, "update_time"),
        revision=message.revision,
        pinned=message.pinned,
        tier=common.enum_of(AdapterTier, adapter_pb2.AdapterTier, "ADAPTER_TIER_", message.tier),
    )


def alias(message: adapter_pb2.Alias) -> Alias:
    """What an alias means."""
    return Alias(
        name=message.name,
        targets={target.version: target.weight for target in message.targets},
        revision=message.revision,
        create_time=common.time_of(message, "create_time"),
    )


def alias_request(name: str, targets: Mapping[str, int], *, expected_revision: int | None) -> rpc.SetAliasRequest:
    """What an alias shall mean."""
    request = rpc.SetAliasRequest(name=name, expected_revision=expected_revision)
    for adapter_name, weight in targets.items():
        choice = request.targets.add(adapter=adapter_name)
        common.set_field(choice, "weight", weight, name="weight")
    return request


class WatchReader:
    """Reads the events of a watch, which may end at any time."""

    def read(self, message: rpc.WatchAdaptersResponse) -> Iterator[AdapterEvent]:
        """The event in a message."""
        kind = message.WhichOneof("event")
        if kind == "adapter":
            yield adapter(message.adapter)
        elif kind == "snapshot_complete":
            yield SnapshotComplete(message.snapshot_complete.revision)

    def end(self) -> None:
        """Nothing is still to come."""


def check_loaded(seen: Adapter) -> Adapter:
    """A settled adapter that should be ready. Raises what stands in its way, as if the call had failed with it."""
    if seen.state is AdapterState.READY:
        return seen
    if seen.failure is not None:
        raise error_of_reason(seen.failure.reason, seen.failure.message, adapter=seen.name)
    raise errors.AdapterNotReadyError(
        f"adapter '{seen.name}' is {seen.state} and not ready; was it unloaded meanwhile?",
        reason="ADAPTER_NOT_READY",
        metadata={"adapter": seen.name, "state": seen.state.name},
    )


def watch_ended(name: str) -> errors.ProtocolError:
    """The watch of an adapter ended before the adapter settled."""
    return errors.ProtocolError(f"the watch of adapter '{name}' ended before the adapter settled")
