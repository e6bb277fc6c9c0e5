"""Attention over the paged cache, for decoding rows and for pieces of prompts.

Both walk a sequence's keys tile by tile with a running maximum, as FlashAttention does (Dao et al., 2022), find each
token's place through the sequence's table of blocks (Kwon et al., 2023), and multiply the query heads that share a
key-value head at once. A decoding row has one query, so its keys are split among programs and a second kernel puts the
parts together (Flash-Decoding; Dao et al., 2023). How they are split depends on what the row sees and on nothing else,
so its result does not depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from argosy_services.engine.torch_engine.gpu.kernels import Cache, Prompts, Scoring
from argosy_services.engine.torch_engine.gpu.triton.rows import tanh

# Bytes of the keys that a program multiplies at once, at most; twice that with the values, and twice again while the
# next ones are on their way, have to fit into the 99 KiB of an Ada GPU.
_TILE_BYTES = 16 << 10
_MOST_KEYS = 64
# Programs that share a row's keys: with 8 key-value heads, one row fills the multiprocessors of an H100.
_SPLITS = 16
# A program of a decoding row has few keys; measured on an H200 for rows that see 256 to 8,000 of them.
_DECODE_KEYS = 32
_STAGES = 2
# Query vectors (tokens times heads of a group) of one program over a prompt, and their bytes at most.
_MOST_VECTORS = 64
_VECTORS_BYTES = 32 << 10
# Least sides of a matrix product in Triton.
_LEAST = 16


def tile(size: int, dtype: torch.dtype) -> int:
    """Keys of `size` numbers that a program multiplies at once."""
    return min(_MOST_KEYS, max(_LEAST, _TILE_BYTES // (size * dtype.itemsize)))


def decode_tile(size: int, dtype: torch.dtype) -> int:
    """The same for a decoding row."""
    return min(_DECODE_KEYS, tile(size, dtype))


def vectors(vector_bytes: int) -> int:
    """Query vectors of a program over a prompt."""
    return min(_MOST_VECTORS, max(_LEAST, triton.next_power_of_2(_VECTORS_BYTES // vector_bytes)))


def attend_decodes(
    query: torch.Tensor, cache: Cache, tables: torch.Tensor, positions: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """See `kernels.Kernels`."""
    rows, heads, size = query.shape
    kv_heads = cache.keys.shape[0]
    parts = torch.empty(rows, heads, _SPLITS, size, dtype=torch.float32, device=query.device)
    weights = torch.empty(rows, heads, _SPLITS, dtype=torch.float32, device=query.device)
    padded = max(_LEAST, triton.next_power_of_2(size))
    _decode[(rows, kv_heads, _SPLITS)](
        query,
        cache.keys,
        cache.values,
        tables,
        positions,
        parts,
        weights,
        query.stride(0),
        query.stride(1),
        cache.keys.stride(0),
        tables.stride(0),
        scoring.scale,
        scoring.softcap or 1.0,
        scoring.window or 0,
        CAPPED=scoring.softcap is not None,
        WINDOWED=scoring.window is not None,
        GROUP=heads // kv_heads,
        GROUP_PADDED=max(_LEAST, triton.next_power_of_2(heads // kv_heads)),
        SIZE=size,
        SIZE_PADDED=padded,
        BLOCK=cache.block_tokens,
        TILE=decode_tile(padded, query.dtype),
        SPLITS=_SPLITS,
        num_stages=_STAGES,
    )
    out = torch.empty(rows, heads * size, dtype=query.dtype, device=query.device)
    _join[(rows, heads)](parts, weights, out, SIZE=size, SIZE_PADDED=padded, SPLITS=_SPLITS)
    return out


@triton.jit
def _scores(query, keys, scale, cap, CAPPED: tl.constexpr):
    """Scores float32 of `query` `[m, size]` and `keys` `[size, n]`, scaled and capped."""
    scores = tl.dot(query, keys, input_precision="ieee") * scale
    if CAPPED:
        scores = cap * tanh(scores / cap)
    return scores


@triton.jit
def _attend_tile(
    query,
    keys,
    values,
    table,
    positions,
    present,
    visible,
    scale,
    cap,
    highest,
    total,
    attended,
    CAPPED: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes the keys at `positions` into a running softmax; `keys` and `values` begin at their head."""
    column = tl.arange(0, SIZE_PADDED)
    block = tl.load(table + positions // BLOCK, mask=present, other=0).to(tl.int64)
    place = (block * BLOCK + positions % BLOCK) * SIZE
    narrow = column < SIZE
    key = tl.load(keys + place[None, :] + column[:, None], mask=present[None, :] & narrow[:, None], other=0.0)
    scores = tl.where(visible, _scores(query, key, scale, cap, CAPPED), float("-inf"))
    top = tl.maximum(highest, tl.max(scores, axis=1))
    # A row may have seen nothing yet.
    finite = tl.where(top == float("-inf"), 0.0, top)
    shares = tl.exp(scores - finite[:, None])
    shrink = tl.exp(highest - finite)
    value = tl.load(values + place[:, None] + column[None, :], mask=present[:, None] & narrow[None, :], other=0.0)
    product = tl.dot(shares.to(value.dtype), value, input_precision="ieee")
    return top, total * shrink + tl.sum(shares, axis=1), attended * shrink[:, None] + product


@triton.jit
def _decode(
    query,
    keys,
    values,
    tables,
    positions,
    parts,
    weights,
    row_stride,
    head_stride,
    cache_stride,
    table_stride,
    scale,
    cap,
    window,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(positions + row).to(tl.int32) + 1
    first = 0
    if WINDOWED:
        first = tl.maximum(length - window, 0)
    part = tl.cdiv(tl.cdiv(length - first, SPLITS), TILE) * TILE
    begin = first + split * part
    end = tl.minimum(begin + part, length)
    member, column = tl.arange(0, GROUP_PADDED), tl.arange(0, SIZE_PADDED)
    heads = head * GROUP + member
    place = (row * tl.num_programs(1) * GROUP + heads) * SPLITS + split
    if begin >= end:
        # A part without keys weighs nothing, and is never read.
        tl.store(weights + place, tl.full([GROUP_PADDED], float("-inf"), tl.float32), mask=member < GROUP)
        return
    vectors = (member < GROUP)[:, None] & (column < SIZE)[None, :]
    asked = tl.load(query + row * row_stride + heads[:, None] * head_stride + column[None, :], mask=vectors, other=0.0)
    highest = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    attended = tl.zeros([GROUP_PADDED, SIZE_PADDED], tl.float32)
    for at in range(begin, end, TILE):
        seen = at + tl.arange(0, TILE)
        present = seen < end
        highest, total, attended = _attend_tile(
            asked,
            keys + head * cache_stride,
            values + head * cache_stride,
            tables + row * table_stride,
            seen,
            present,
            present[None, :],
            scale,
            cap,
            highest,
            total,
            attended,
            CAPPED,
            SIZE,
            SIZE_PADDED,
            BLOCK,
        )
    tl.store(weights + place, highest + tl.log(total), mask=member < GROUP)
    tl.store(parts + place[:, None] * SIZE + column[None, :], attended / total[:, None], mask=vectors)


@triton.jit
def _join(parts, weights, out, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr, SPLITS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    split, column = tl.arange(0, SPLITS), tl.arange(0, SIZE_PADDED)
    logs = tl.load(weights + place * SPLITS + split)
    shares = tl.exp(logs - tl.max(logs, axis=0))
    written = (logs > float("-inf"))[:, None] & (column < SIZE)[None, :]
    values = tl.load(parts + (place * SPLITS + split)[:, None] * SIZE + column[None, :], mask=written, other=0.0)
    joined = tl.sum(values * shares[:, None], axis=0) / tl.sum(shares, axis=0)
    tl.store(out + place * SIZE + column, joined.to(out.dtype.element_ty), mask=column < SIZE)


def tasks_of(counts: list[int], group: int, vector_bytes: int) -> list[tuple[int, int]]:
    """See `kernels.Kernels`."""
    step = vectors(vector_bytes)
    return [(index, first) for index, count in enumerate(counts) for first in range(0, count * group, step)]


def attend_prompts(query: torch.Tensor, cache: Cache, prompts: Prompts, scoring: Scoring) -> torch.Tensor:
    """See `kernels.Kernels`."""
    tokens, heads, size = query.shape
    kv_heads = cache.keys.shape[0]
    padded = max(_LEAST, triton.next_power_of_2(size))
    out = torch.empty(tokens, heads * size, dtype=query.dtype, device=query.device)
    _prompt[(len(prompts.tasks), kv_heads)](
        query,
        cache.keys,
        cache.values,
        prompts.tables,
        prompts.spans,
        prompts.tasks,
        out,
        query.stride(0),
        query.stride(1),
        cache.keys.stride(0),
        prompts.tables.stride(0),
        scoring.scale,
        scoring.softcap or 1.0,
        scoring.window or 0,
        CAPPED=scoring.softcap is not None,
        WINDOWED=scoring.window is not None,
        GROUP=heads // kv_heads,
        SIZE=size,
        SIZE_PADDED=padded,
        BLOCK=cache.block_tokens,
        TILE=tile(padded, query.dtype),
        VECTORS=vectors(size * query.itemsize),
    )
    return out


# Not compiled anew for each width of tables: a request would wait for it.
@triton.jit(do_not_specialize=["table_stride"])
def _prompt(
    query,
    keys,
    values,
    tables,
    spans,
    tasks,
    out,
    row_stride,
    head_stride,
    cache_stride,
    table_stride,
    scale,
    cap,
    window,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    VECTORS: tl.constexpr,
):
    task, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence = tl.load(tasks + 2 * task).to(tl.int64)
    vector = tl.load(tasks + 2 * task + 1) + tl.arange(0, VECTORS)
    row = tl.load(spans + 3 * sequence).to(tl.int64)
    start = tl.load(spans + 3 * sequence + 1)
    count = tl.load(spans + 3 * sequence + 2)
    token = vector // GROUP
    inside = token < count
    heads = head * GROUP + vector % GROUP
    column = tl.arange(0, SIZE_PADDED)
    vectors = inside[:, None] & (column < SIZE)[None, :]
    place = (row + token)[:, None] * row_stride + heads[:, None] * head_stride + column[None, :]
    asked = tl.load(query + place, mask=vectors, other=0.0)
    position = start + token
    end = start + tl.minimum(tl.max(token, axis=0), count - 1) + 1
    begin = 0
    if WINDOWED:
        begin = tl.maximum(start + tl.min(token, axis=0) - window + 1, 0)
    highest = tl.full([VECTORS], float("-inf"), tl.float32)
    total = tl.zeros([VECTORS], tl.float32)
    attended = tl.zeros([VECTORS, SIZE_PADDED], tl.float32)
    for at in range(begin, end, TILE):
        seen = at + tl.arange(0, TILE)
        visible = seen[None, :] <= position[:, None]
        if WINDOWED:
            visible = visible & (seen[None, :] > position[:, None] - window)
        highest, total, attended = _attend_tile(
            asked,
            keys + head * cache_stride,
            values + head * cache_stride,
            tables + sequence * table_stride,
            seen,
            seen < end,
            visible & (seen < end)[None, :],
            scale,
            cap,
            highest,
            total,
            attended,
            CAPPED,
            SIZE,
            SIZE_PADDED,
            BLOCK,
        )
    safe = tl.where(total > 0.0, total, 1.0)
    target = ((row + token) * tl.num_programs(1) * GROUP + heads)[:, None] * SIZE + column[None, :]
    tl.store(out + target, (attended / safe[:, None]).to(out.dtype.element_ty), mask=vectors)
