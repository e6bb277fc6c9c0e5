"""What a client was told: arguments first, then ARGOSY_ADDRESS and ARGOSY_API_KEY, then defaults."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from argosy._tracing import check_available

DEFAULT_ADDRESS = "127.0.0.1:50051"

Tls: TypeAlias = bool | bytes | Path
"""False: plain text. True: TLS with the system's roots. Bytes or a path: TLS with these PEM root certificates."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call is tried again. Times are in seconds.

    Tried again are calls that started nothing: those that never reached a server, and those that a server refused with
    RESOURCE_EXHAUSTED or UNAVAILABLE and a delay (`RetryInfo`). A call whose connection breaks under it may have been
    started; it is tried again once where it only computes (tokenization, embeddings, generation), never where it might
    change something twice (adapters, agents). A call whose engine failed (ENGINE_FAILED) gets one more try as well: a
    request that kills engines must not meet them all. Streams are tried again only before their first event.

    A wait is the longer of the server's delay and an exponential backoff, plus jitter. A server that asks for more than
    `max_delay` gets no second try, nor does a call whose deadline is nearer than the wait. `max_attempts` counts the
    first one: 1 is no retry. The defaults wait for about 7 seconds altogether, longer than a fleet needs to replace
    a proxy that died.
    """

    max_attempts: int = 8
    initial_backoff: float = 0.1
    max_backoff: float = 2.0
    multiplier: float = 2.0
    jitter: float = 0.2
    max_delay: float = 30.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1 (given: {self.max_attempts})")

    def backoff(self, failures: int) -> float:
        """The wait after this many failures, from 1, before jitter."""
        return min(self.max_backoff, self.initial_backoff * self.multiplier ** (failures - 1))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the calls of one client share. `timeout` None: each area's own default."""

    address: str
    api_key: str | None = field(default=None, repr=False)
    tls: Tls = False
    timeout: float | None = None
    retry: RetryPolicy = RetryPolicy()
    trace: bool = False


def make_config(
    address: str | None, *, api_key: str | None, tls: Tls, timeout: float | None, retry: RetryPolicy, trace: bool
) -> Config:
    """Fills in the environment and defaults. Raises ValueError for what can never work."""
    address = address or os.environ.get("ARGOSY_ADDRESS") or DEFAULT_ADDRESS
    if address.startswith(("http://", "https://")):
        raise ValueError(f"address {address!r} is a URL; give host:port, and tls=True where the server speaks TLS")
    if timeout is not None:
        check_timeout(timeout)
    if trace:
        check_available()
    api_key = api_key or os.environ.get("ARGOSY_API_KEY") or None
    return Config(address=address, api_key=api_key, tls=tls, timeout=timeout, retry=retry, trace=trace)


def check_timeout(timeout: float) -> float:
    """A positive number of seconds, `math.inf` included."""
    if math.isnan(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be above 0 s, or math.inf for no deadline (given: {timeout})")
    return timeout
