"""Following adapters: first all as they are, then what changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection

from argosy_services.adapters.registry import Adapter, AdapterRegistry
from argosy_services.adapters.types import SETTLED, AdapterRecord, SnapshotComplete

WatchEvent = AdapterRecord | SnapshotComplete


async def watch(
    registry: AdapterRegistry, names: Collection[str], *, until_settled: bool
) -> AsyncGenerator[WatchEvent]:
    """Each adapter as it is, ordered by name, then SnapshotComplete, then what changes, in the order of revisions.

    `names` limits it to those adapters; none means all, those that come later included. With `until_settled` it ends
    once every one of `names` is READY or in a final state. Nothing is queued: whoever reads slower than adapters change
    gets each one's latest state, and misses some in between. Raises ADAPTER_NOT_FOUND.
    """
    wanted = frozenset(names)
    adapters = [registry.get(name) for name in wanted] if wanted else registry.adapters()
    pictures = sorted((registry.picture(adapter) for adapter in adapters), key=lambda record: record.name)
    seen = registry.revision
    with registry.news() as news:
        for record in pictures:
            yield record
        yield SnapshotComplete(seen)
        while True:
            while (adapter := _next_after(registry, wanted, seen)) is not None:
                seen = adapter.record.revision
                yield registry.picture(adapter)
            if until_settled and all(adapter.state in SETTLED for adapter in _watched(registry, wanted)):
                return
            news.clear()
            await news.wait()


def _next_after(registry: AdapterRegistry, wanted: frozenset[str], revision: int) -> Adapter | None:
    changed = (adapter for adapter in _watched(registry, wanted) if adapter.record.revision > revision)
    return min(changed, key=lambda adapter: adapter.record.revision, default=None)


def _watched(registry: AdapterRegistry, wanted: frozenset[str]) -> list[Adapter]:
    if not wanted:
        return registry.adapters()
    return [adapter for name in wanted if (adapter := registry.find(name)) is not None]
