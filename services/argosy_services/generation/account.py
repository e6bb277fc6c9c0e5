"""What is kept of each request while it runs and for a while after: where its time went, and what it consumed."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from argosy_services import metrics
from argosy_services.engine.base import Timings
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.explanation import Explanation, RequestState, explained
from argosy_services.generation.progress import Progress
from argosy_services.leases import Lease

# Whatever a caller says is kept for a while; no adapter has a longer name.
_LONGEST_NAME = 128


class Account:
    """One request. Times are those of `time.monotonic()`."""

    def __init__(self, request_id: str, tenant: str, model: str, adapter: str, priority: int) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.model = model
        self.adapter = adapter[:_LONGEST_NAME]
        self.priority = priority
        self.came = datetime.now(UTC)
        self.arrived = time.monotonic()
        self.ended: float | None = None
        self.state = RequestState.RUNNING
        self.reason = ""
        self.tokenization_s = 0.0
        self.grammar_check_s = 0.0
        self._lease_wait_s = 0.0
        self.reader_s = 0.0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.progress: Mapping[str, Progress] = {}
        self.slowest: Progress | None = None
        self.sequences = 0

    @property
    def tokens(self) -> int:
        """Tokens generated until now, over all sequences."""
        return self.completion_tokens or sum(one.tokens for one in self.progress.values())

    def planned(self, tokenization_s: float, grammar_check_s: float = 0.0) -> None:
        """The request was read and found to be right."""
        self.tokenization_s, self.grammar_check_s = tokenization_s, grammar_check_s
        metrics.TOKENIZE_SECONDS.labels(model=self.model).observe(tokenization_s)

    def follows(self, progress: Mapping[str, Progress], prompt_tokens: int = 0) -> None:
        """Its sequences will be found here. `prompt_tokens` are those of a prompt that all of them have in common."""
        self.progress, self.prompt_tokens = progress, prompt_tokens

    @contextmanager
    def sending(self) -> Iterator[None]:
        """The reader has a message; meanwhile generation goes on."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.reader_s += time.monotonic() - since

    @contextmanager
    def waiting_for_adapter(self) -> Iterator[None]:
        """Nothing is submitted before the adapter is there."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._lease_wait_s = time.monotonic() - since

    def leased(self, lease: Lease | None) -> None:
        """An adapter is known by its own name from here on, whatever the request called it."""
        if lease is not None:
            self.adapter = lease.name

    @property
    def longest(self) -> Progress | None:
        """The sequence that took the longest, which is what the whole request waited for."""
        return max(self.progress.values(), key=lambda one: one.last, default=self.slowest)

    @property
    def timings(self) -> Timings | None:
        """Those of `longest`, None before the engine told them."""
        return None if self.longest is None else self.longest.told

    @property
    def adapter_wait_s(self) -> float:
        """Until the adapter was leased and, where engines are processes of their own, in a slot of the engine's."""
        return self._lease_wait_s + (self.timings.adapter_s if self.timings else 0.0)

    def close(self, state: RequestState, reason: str = "") -> None:
        """The request is over. Keeps of many sequences only the one that the others waited for."""
        self.ended = time.monotonic()
        self.state, self.reason = state, reason
        self.completion_tokens = self.tokens
        self.slowest = self.longest
        self.sequences = len(self.progress)
        self._count()
        self.progress = {}

    def _count(self) -> None:
        begun = [one for one in self.progress.values() if one.began]
        if not begun:
            return
        # Its name was found, or there would be no sequence: what callers make up never gets here.
        labels = {
            "tenant": metrics.tenant_label(self.tenant),
            "model": self.model,
            "adapter": self.adapter or metrics.NO_ADAPTER,
        }
        metrics.USAGE_REQUESTS.labels(**labels).inc()
        if self.adapter:
            metrics.ADAPTER_WAIT_SECONDS.labels(model=self.model).observe(self.adapter_wait_s)
        kinds = {
            "prompt": self.prompt_tokens or sum(one.prompt_tokens for one in begun),
            "cached": min(one.cached_tokens for one in begun)
            if self.prompt_tokens
            else sum(one.cached_tokens for one in begun),
            "completion": self.completion_tokens,
        }
        for kind, tokens in kinds.items():
            if tokens:
                metrics.USAGE_TOKENS.labels(**labels, kind=kind).inc(tokens)


class Ledger:
    """The accounts of the latest requests. Lives on one event loop's thread."""

    def __init__(self, keeps: int) -> None:
        """`keeps` is how many requests that are over are remembered."""
        self.keeps = keeps
        self._running: dict[tuple[str, str], Account] = {}
        self._over: OrderedDict[tuple[str, str], Account] = OrderedDict()

    @contextmanager
    def account(self, request_id: str, tenant: str, model: str, adapter: str, priority: int) -> Iterator[Account]:
        """Follows a request for the length of a block. Where a caller uses an id twice, the later request has it."""
        account = Account(request_id, tenant, model, adapter, priority)
        key = (tenant, request_id)
        self._running[key] = account
        try:
            yield account
            account.close(RequestState.FINISHED)
        except ArgosyError as error:
            account.close(RequestState.FAILED, error.reason)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            account.close(RequestState.CANCELLED)
            raise
        except Exception:
            account.close(RequestState.FAILED, Reason.INTERNAL)
            raise
        finally:
            if self._running.get(key) is account:
                del self._running[key]
            self._remember(key, account)

    def explain(self, request_id: str, tenant: str) -> Explanation | None:
        """What is known of a request of this tenant; None where nothing is."""
        key = (tenant, request_id)
        account = self._running.get(key) or self._over.get(key)
        return None if account is None else explained(account)

    def _remember(self, key: tuple[str, str], account: Account) -> None:
        self._over[key] = account
        self._over.move_to_end(key)
        while len(self._over) > self.keeps:
            self._over.popitem(last=False)
