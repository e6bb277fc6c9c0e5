"""The standard health protocol (grpc.health.v1), without its package: its two messages have one field each and the
wire form of `StringValue` and `Int32Value`.
"""

from __future__ import annotations

import enum

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from argosy.errors import ArgosyError, DeadlineExceededError

METHOD = "/grpc.health.v1.Health/Check"

AREAS = ("tokenization", "generation", "embeddings", "adapters", "agents")
"""The areas of a fleet. Each answers for itself: on a cluster they are applications of their own."""

TIMEOUT = 5.0
POLL_SECONDS = 0.2


class Health(enum.StrEnum):
    """What a service says about itself. UNKNOWN: nothing that this version understands."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    NOT_FOUND = "not_found"


_STATES = {1: Health.SERVING, 2: Health.NOT_SERVING, 3: Health.NOT_FOUND}


def check_area(area: str) -> str:
    """Raises ValueError for what is no area."""
    if area not in AREAS:
        raise ValueError(f"area must be one of {', '.join(AREAS)} (given: {area!r})")
    return area


def serialize(area: str) -> bytes:
    """A HealthCheckRequest for an area's service."""
    return StringValue(value=f"argosy.api.{area}.v1.{area.capitalize()}Service").SerializeToString()


def deserialize(packed: bytes) -> Health:
    """The state in a HealthCheckResponse."""
    return _STATES.get(Int32Value.FromString(packed).value, Health.UNKNOWN)


def more_telling(before: Health | ArgosyError | None, now: Health | ArgosyError) -> Health | ArgosyError:
    """What to tell of an area that never serves: the last thing seen of it, rather than that the time was up."""
    return now if before is None or not isinstance(now, DeadlineExceededError) else before


def not_ready(address: str, area: str, last: Health | ArgosyError, timeout: float) -> DeadlineExceededError:
    """An area did not serve in time; `last` is what was seen of it."""
    seen = last.message if isinstance(last, ArgosyError) else f"its health is {last}"
    return DeadlineExceededError(f"{area} at {address} was not ready within {timeout:g} s: {seen}")
