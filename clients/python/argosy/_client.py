"""The client for threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Self

from argosy import _health
from argosy._call import Deadline
from argosy._caller import Caller
from argosy._channel import open_channel
from argosy._config import RetryPolicy, Tls, make_config
from argosy._health import AREAS, Health
from argosy.adapters import AdaptersClient
from argosy.agents import AgentsClient
from argosy.embeddings import EmbeddingsClient
from argosy.errors import DeadlineExceededError, NotFoundError, UnavailableError
from argosy.generation import GenerationClient
from argosy.tokenization import TokenizationClient

_DEFAULT_RETRY = RetryPolicy()


class Client:
    """A connection to an Argosy fleet; safe to share between threads, and made once.

    `address` is host:port or a gRPC target such as `dns:///host:port` or `unix:/path`; without it ARGOSY_ADDRESS
    counts, then 127.0.0.1:50051. `api_key` (or ARGOSY_API_KEY) goes with each call, in clear text unless `tls` is on:
    True takes the system's root certificates, bytes or a Path a PEM file of your own. `timeout` is the deadline of each
    call in seconds, retries included; every method takes its own as well, and `math.inf` means none. `retry` says when
    a call that started nothing is tried again. Calls become part of the OpenTelemetry span that is current, if there is
    one; with `trace` each has a span of its own in there.

    Every method raises ArgosyError; `request_id` goes into the server's log, and a new one is made where none is given.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls = False,
        timeout: float | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        trace: bool = False,
    ) -> None:
        self._config = make_config(address, api_key=api_key, tls=tls, timeout=timeout, retry=retry, trace=trace)
        self._channel = open_channel(self._config)

    @property
    def address(self) -> str:
        """Where calls go."""
        return self._config.address

    @cached_property
    def tokenization(self) -> TokenizationClient:
        """Text to token ids and back."""
        return TokenizationClient(self._caller("tokenization"))

    @cached_property
    def generation(self) -> GenerationClient:
        """Generates and scores text."""
        return GenerationClient(self._caller("generation"))

    @cached_property
    def embeddings(self) -> EmbeddingsClient:
        """Turns texts into vectors."""
        return EmbeddingsClient(self._caller("embeddings"))

    @cached_property
    def adapters(self) -> AdaptersClient:
        """Loads and unloads LoRA adapters."""
        return AdaptersClient(self._caller("adapters"))

    @cached_property
    def agents(self) -> AgentsClient:
        """Runs agents."""
        return AgentsClient(self._caller("agents"))

    def health(self, area: str, *, timeout: float = _health.TIMEOUT) -> Health:
        """What an area's service says about itself."""
        caller = self._caller(_health.check_area(area))
        check = self._channel.unary_unary(_health.METHOD, _health.serialize, _health.deserialize)
        try:
            return caller.unary(check, area, timeout=timeout, request_id=None)
        except NotFoundError:
            return Health.NOT_FOUND

    def wait_until_ready(self, timeout: float = 60.0, *, areas: Sequence[str] = AREAS) -> None:
        """Returns once every area serves. Raises DeadlineExceededError, which says what did not come."""
        deadline = Deadline(timeout)
        for area in areas:
            last = None
            while (seen := self._health_or_error(area, deadline)) is not Health.SERVING:
                last = _health.more_telling(last, seen)
                if deadline.remaining() == 0:
                    raise _health.not_ready(self.address, area, last, timeout)
                time.sleep(_health.POLL_SECONDS)

    def _health_or_error(self, area: str, deadline: Deadline) -> Health | UnavailableError | DeadlineExceededError:
        try:
            return self.health(area, timeout=min(_health.TIMEOUT, deadline.timeout))
        except (UnavailableError, DeadlineExceededError) as error:
            return error

    def close(self) -> None:
        """Closes the connection; running calls end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _caller(self, area: str) -> Caller:
        return Caller(self._config, area, self._channel)
