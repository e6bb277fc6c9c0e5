"""Which block of the key-value cache belongs to whom. Plain Python: the tensors are in `kv_pool.py`.

The paging is that of PagedAttention (Kwon et al., 2023): a sequence's tokens lie in blocks of a fixed number of tokens,
anywhere in the pool. Full blocks are remembered by a digest of everything up to their end, as vLLM does it: a later
sequence that begins with the same tokens shares them instead of computing them again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence


class BlockAllocator:
    """Hands out blocks. A block with known content that nobody uses is kept until its place is needed."""

    def __init__(self, blocks: int, block_tokens: int, *, share_prefixes: bool = True) -> None:
        self.total = blocks
        self.block_tokens = block_tokens
        self._share_prefixes = share_prefixes
        self._users = [0] * blocks
        self._blank = list(range(blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # The longest unused first.
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._blank) + len(self._kept)

    @property
    def in_use(self) -> int:
        """Blocks that somebody uses."""
        return self.total - self.free

    def needed(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extends a sequence's block table until it holds `tokens`. False, and nothing taken: too few are free."""
        missing = self.needed(tokens) - len(table)
        if missing > self.free:
            return False
        for _ in range(missing):
            block = self._take()
            self._users[block] = 1
            table.append(block)
        return True

    def release(self, table: list[int]) -> None:
        """Takes back all blocks of a sequence and empties its table."""
        # The end of a sequence first: its beginning is likelier to be asked for again, and is kept longer.
        for block in reversed(table):
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._digest_of:
                    self._kept[block] = None
                else:
                    self._blank.append(block)
        table.clear()

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix. They are not taken."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def unused(self, blocks: Sequence[int]) -> int:
        """How many of these blocks count as free."""
        return sum(self._users[block] == 0 for block in blocks)

    def share(self, table: list[int], blocks: Sequence[int]) -> None:
        """Adds blocks with known content to a sequence's table."""
        for block in blocks:
            if self._users[block] == 0:
                del self._kept[block]
            self._users[block] += 1
        table.extend(blocks)

    def remember(self, block: int, digest: bytes) -> None:
        """Makes a full block, which is never written again, known by its digest."""
        if self._share_prefixes and digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def _take(self) -> int:
        if self._blank:
            return self._blank.pop()
        block, _ = self._kept.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        return block

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Raises RuntimeError unless every block is either free, once, or has as many users as tables name it."""
        users = Counter(block for table in tables for block in table)
        if any(count != users[block] for block, count in enumerate(self._users)):
            raise RuntimeError("blocks leaked: their users are not those that the tables name")
        free = [*self._blank, *self._kept]
        if sorted(free) != [block for block, count in enumerate(self._users) if count == 0]:
            raise RuntimeError(f"blocks leaked: {len(free)} are free, {self.total - len(users)} have no user")
        if {digest: block for block, digest in self._digest_of.items()} != self._block_of:
            raise RuntimeError("the digests of blocks disagree")


def extend_digests(digests: list[bytes], tokens: Sequence[int], block_tokens: int, namespace: str) -> None:
    """Adds the digests of a sequence's full blocks that have none yet.

    Each covers the block, all before it and `namespace`: sequences of different namespaces (adapters, tenants, salts)
    never share. The digest is a cryptographic one, so that nobody can make two texts meet on purpose.
    """
    while (len(digests) + 1) * block_tokens <= len(tokens):
        start = len(digests) * block_tokens
        # The namespace may hold a salt that a caller chose; hashed apart from blocks, it cannot pass for a digest.
        before = digests[-1] if digests else hashlib.blake2b(namespace.encode(), digest_size=32).digest()
        block = array("I", tokens[start : start + block_tokens]).tobytes()
        digests.append(hashlib.blake2b(before + block, digest_size=16).digest())
