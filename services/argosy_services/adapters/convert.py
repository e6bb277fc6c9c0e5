"""Adapters between the service's records and the schema's messages."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from argosy.api.adapters.v1 import adapter_pb2 as pb
from argosy_services.adapters.types import AdapterRecord, AdapterState, AdapterTier, AliasRecord

_STATES: dict[AdapterState, pb.AdapterState.ValueType] = {
    AdapterState.PENDING: pb.ADAPTER_STATE_PENDING,
    AdapterState.FETCHING: pb.ADAPTER_STATE_FETCHING,
    AdapterState.VALIDATING: pb.ADAPTER_STATE_VALIDATING,
    AdapterState.LOADING: pb.ADAPTER_STATE_LOADING,
    AdapterState.READY: pb.ADAPTER_STATE_READY,
    AdapterState.DRAINING: pb.ADAPTER_STATE_DRAINING,
    AdapterState.UNLOADED: pb.ADAPTER_STATE_UNLOADED,
    AdapterState.FAILED: pb.ADAPTER_STATE_FAILED,
}


_TIERS: dict[AdapterTier | None, pb.AdapterTier.ValueType] = {
    None: pb.ADAPTER_TIER_UNSPECIFIED,
    AdapterTier.SLOT: pb.ADAPTER_TIER_SLOT,
    AdapterTier.MEMORY: pb.ADAPTER_TIER_MEMORY,
    AdapterTier.DISK: pb.ADAPTER_TIER_DISK,
}


def write_adapter(record: AdapterRecord) -> pb.Adapter:
    """A record as a message."""
    message = pb.Adapter(
        name=record.name,
        version=record.version,
        base_model=record.base_model,
        source=record.source,
        state=_STATES[record.state],
        rank=record.rank,
        target_modules=record.target_modules,
        size_bytes=record.size_bytes,
        active_leases=record.active_leases,
        revision=record.revision,
        pinned=record.pinned,
        tier=_TIERS[record.tier],
    )
    message.create_time.FromDatetime(record.created)
    message.update_time.FromDatetime(record.updated)
    if record.failure is not None:
        message.failure.reason = record.failure.reason
        message.failure.message = record.failure.message
    return message


def write_alias(record: AliasRecord) -> pb.Alias:
    """An alias as a message."""
    targets = [pb.AliasTarget(version=target.version, weight=target.weight) for target in record.targets]
    message = pb.Alias(name=record.name, targets=targets, revision=record.revision)
    message.create_time.FromDatetime(record.created)
    return message


def read_seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9
