"""Adapters on their way from a local directory to a server, and what an alias means once one of them gets its share."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeAlias

from argosy import errors
from argosy._call import Deadline
from argosy._caller import AsyncCaller, Caller, Rpc
from argosy.api.adapters.v1 import adapters_service_pb2 as rpc
from argosy.types.adapters import Alias

PushProgress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes that the server has and those of the whole."""

ATTEMPTS = 5
"""How often an upload goes on after a connection was lost, or an alias was changed by somebody else."""

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PART_BYTES = 1 << 20
_MAX_WEIGHT = 1_000_000


class LocalAdapter:
    """An adapter as PEFT saved it; its files are held open, so that what is sent is what was measured.

    Raises FileNotFoundError where one of its two files is missing.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._config = (self.directory / _CONFIG).read_bytes()
        self._weights = (self.directory / _WEIGHTS).open("rb")
        self.weights_bytes = os.fstat(self._weights.fileno()).st_size
        self.total = len(self._config) + self.weights_bytes
        digest = hashlib.sha256(self._config)
        while chunk := self._weights.read(_PART_BYTES):
            digest.update(chunk)
        self.version = digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._weights.close()

    def name(self, alias: str) -> str:
        """A name that says what it is and which version: the same content always gets the same one."""
        stem = alias.partition("@")[0] or self.directory.resolve().name
        return f"{re.sub(r'[^A-Za-z0-9._-]', '-', stem).lstrip('._-')[:100] or 'adapter'}-{self.version[:12]}"

    def question(self) -> rpc.UploadAdapterRequest:
        """Asks the server how much of it is there."""
        return self._request(0, b"")

    def part(self, offset: int) -> rpc.UploadAdapterRequest:
        """What follows the first `offset` bytes."""
        if offset < len(self._config):
            data = self._config[offset : offset + _PART_BYTES]
        else:
            data = os.pread(self._weights.fileno(), _PART_BYTES, offset - len(self._config))
        return self._request(offset, data)

    def _request(self, offset: int, data: bytes) -> rpc.UploadAdapterRequest:
        return rpc.UploadAdapterRequest(
            version=self.version,
            config_bytes=len(self._config),
            weights_bytes=self.weights_bytes,
            offset=offset,
            data=data,
        )


def check_weight(weight: float) -> float:
    """A percentage above 0. Raises ValueError."""
    if not 0 < weight <= 100:
        raise ValueError(f"weight is a percentage above 0 and up to 100 (given: {weight})")
    return weight


def with_share(alias: Alias | None, version: str, percent: float) -> dict[str, int]:
    """What an alias shall mean once `version` gets so many percent; the others share the rest as they did before.

    The new version comes last: requests with sticky keys that it got keep it when its share grows.
    """
    others = {key: weight for key, weight in alias.targets.items() if key != version and weight} if alias else {}
    if not others or percent == 100:
        return {version: 1}
    total, share = sum(others.values()), round(percent * 1000)
    targets = {key: weight * (100_000 - share) for key, weight in others.items()}
    targets[version] = total * share
    return _reduced(targets)


def _reduced(targets: dict[str, int]) -> dict[str, int]:
    divisor = math.gcd(*targets.values())
    largest = max(targets.values())
    if largest // divisor <= _MAX_WEIGHT:
        return {key: weight // divisor for key, weight in targets.items()}
    return {key: max(1, weight * _MAX_WEIGHT // largest) for key, weight in targets.items()}


class _Upload:
    """What to ask next while an adapter is sent, without any I/O."""

    def __init__(self, local: LocalAdapter, on_progress: PushProgress | None) -> None:
        self.request = local.question()
        self._local = local
        self._on_progress = on_progress
        self._lost = 0

    def lost(self, error: errors.ArgosyError) -> None:
        """A call was cut off: the server is asked how much it has. Raises `error` once that came too often."""
        self._lost += 1
        if self._lost == ATTEMPTS:
            raise error
        self.request = self._local.question()

    def take(self, done: rpc.UploadAdapterResponse) -> str:
        """What the server answered; gives what the adapter can be loaded from, empty before all of it is there."""
        if self._on_progress is not None:
            self._on_progress(done.received_bytes, self._local.total)
        if not done.source:
            self.request = self._local.part(done.received_bytes)
        return done.source


def upload(
    caller: Caller, rpc_method: Rpc, local: LocalAdapter, deadline: Deadline, on_progress: PushProgress | None
) -> str:
    """Sends what the server does not have yet; returns what it can be loaded from."""
    sent, source = _Upload(local, on_progress), ""
    while not source:
        try:
            done = caller.unary(rpc_method, sent.request, timeout=deadline.timeout, request_id=None)
        except (errors.UnavailableError, errors.CallCancelledError) as error:
            sent.lost(error)
        else:
            source = sent.take(done)
    return source


async def upload_async(
    caller: AsyncCaller, rpc_method: Rpc, local: LocalAdapter, deadline: Deadline, on_progress: PushProgress | None
) -> str:
    """`upload` for asyncio."""
    sent, source = _Upload(local, on_progress), ""
    while not source:
        try:
            done = await caller.unary(rpc_method, sent.request, timeout=deadline.timeout, request_id=None)
        except (errors.UnavailableError, errors.CallCancelledError) as error:
            sent.lost(error)
        else:
            source = sent.take(done)
    return source
