"""The heap beside a plain sort."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from argosy_services.engine.torch_engine.heap import Heap

ITEMS = st.integers(0, 9)
KEYS = st.integers(0, 5)


@settings(deadline=None)
@given(st.lists(st.one_of(st.tuples(ITEMS, KEYS), ITEMS, st.none())))
def test_it_gives_what_a_sort_gives(actions: list[tuple[int, int] | int | None]) -> None:
    """A pair is put in under a key, a number is taken out, and None takes out the first."""
    heap: Heap[int] = Heap()
    plain: dict[int, int] = {}
    for action in actions:
        if isinstance(action, tuple):
            item, key = action
            plain.pop(item, None)
            plain[item] = key
            heap.push(item, key)
        else:
            gone = heap.first() if action is None else action
            if gone is not None:
                heap.discard(gone)
                plain.pop(gone, None)
        # The sort is stable: of equal keys the one that was put in first comes first.
        assert heap.first() == (sorted(plain, key=plain.__getitem__) or [None])[0]
        assert (len(heap), set(heap)) == (len(plain), set(plain))
        assert all(heap.key(item) == key and item in heap for item, key in plain.items())


def test_what_was_taken_out_is_not_kept() -> None:
    heap: Heap[int] = Heap()
    heap.push(-1, -1)
    for item in range(1000):
        heap.push(item, item)
        heap.discard(item)
    assert len(heap._entries) < 40
    assert heap.first() == -1
