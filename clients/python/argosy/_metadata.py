"""What travels beside a request."""

from __future__ import annotations

import math
import re
import uuid
from typing import TypeAlias

from argosy._tracing import Pairs, trace_context

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def make_request_id(given: str | None) -> str:
    """The caller's own id, checked, or a new one."""
    if given is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        raise ValueError(f"request_id must be 1 to 64 letters, digits, '.', '_' or '-' (given: {given!r})")
    return given


def make_metadata(
    application: str,
    *,
    request_id: str,
    timeout: float | None,
    api_key: str | None,
    trace: Pairs | None = None,
) -> Metadata:
    """Metadata of one attempt. Ray Serve routes by `application` and hides gRPC's deadline from the service, so that
    the time left is sent as well. With them goes `trace`, or the caller's own if there is one.
    """
    pairs = [("application", application), ("x-request-id", request_id)]
    if timeout is not None:
        pairs.append(("x-argosy-timeout-ms", str(max(0, math.ceil(timeout * 1000)))))
    if api_key is not None:
        pairs.append(("authorization", f"Bearer {api_key}"))
    return (*pairs, *(trace_context() if trace is None else trace))
