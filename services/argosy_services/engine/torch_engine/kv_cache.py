"""Which block of the key-value cache belongs to whom. Plain Python: the tensors are in `kv_pool.py`.

The paging is that of PagedAttention (Kwon et al., 2023): a sequence's tokens lie in blocks of a fixed number of tokens,
anywhere in the pool.
"""

from __future__ import annotations


class BlockAllocator:
    """Hands out blocks, each to one sequence at a time."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.total = blocks
        self.block_tokens = block_tokens
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    @property
    def in_use(self) -> int:
        """Blocks that somebody has."""
        return self.total - len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extends a sequence's block table until it holds `tokens`. False, and nothing taken: too few are free."""
        missing = self.needed(tokens) - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            table.append(self._free.pop())
        return True

    def release(self, table: list[int]) -> None:
        """Takes back all blocks of a sequence and empties its table."""
        self._free.extend(reversed(table))
        table.clear()

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Raises RuntimeError unless every block is either free or in exactly one of `tables`."""
        held = [block for table in tables for block in table]
        if sorted(held + self._free) != list(range(self.total)):
            raise RuntimeError(
                f"blocks leaked or shared: {len(held)} held, {len(self._free)} free, {self.total} in all"
            )
