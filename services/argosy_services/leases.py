"""The right to use an adapter: what services that compute with adapters ask of the registry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from argosy_services.errors import ArgosyError, Reason


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use an adapter of `base_model`: `key` names it in the engine, `version` is its content hash.

    While a lease is out, the adapter stays in the engine.
    """

    name: str
    key: str
    version: str
    base_model: str

    def check_base(self, model: str) -> None:
        """Raises WRONG_BASE_MODEL unless the adapter is one of that model."""
        if self.base_model != model:
            raise ArgosyError(
                Reason.WRONG_BASE_MODEL,
                f"adapter '{self.name}' belongs to {self.base_model} and cannot change {model}; "
                "name an adapter of the model, or the model of the adapter",
                adapter=self.name,
                expected=self.base_model,
                value=model,
            )


class AdapterLeases(Protocol):
    """Gives leases. Filled by the adapter registry."""

    def lease(
        self, name: str, on_revoke: Callable[[], None], sticky_key: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """A lease for the length of an `async with` block. An adapter that is not in an engine is put there first.

        `name` is that of an adapter, a version, or an alias; requests with one `sticky_key` get the same version of an
        alias. Raises ADAPTER_NOT_FOUND, ALIAS_NOT_FOUND or ADAPTER_NOT_READY. `on_revoke` is called, on the event
        loop's thread, when the adapter must leave and its drain deadline has passed: the holder then ends what it does
        with the adapter with ADAPTER_NOT_READY.
        """
        ...


def adapter_left(name: str) -> ArgosyError:
    """The adapter was unloaded before its user was done."""
    return ArgosyError(
        Reason.ADAPTER_NOT_READY,
        f"adapter '{name}' was unloaded before the request was done; load it again or leave it out",
        adapter=name,
        state="draining",
    )


def adapter_name(key: str) -> str:
    """The name of an adapter, with which its key in engines begins."""
    return key.rpartition("@")[0] or key
