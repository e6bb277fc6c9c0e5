"""Reads a safetensors file that is not trusted.

Format: https://github.com/huggingface/safetensors#format. The file is read once, and every number in its header is
checked against the bytes that are there before anything is made from it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

_MAX_HEADER_BYTES = 4 << 20
_MAX_DIMENSIONS = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = {"F32": np.dtype(np.uint32), "F16": np.dtype(np.uint16), "BF16": np.dtype(np.uint16)}
# Numbers that are looked at together: they stay in a processor's cache.
_PIECE = 1 << 17


class TensorFileError(ValueError):
    """The bytes are not a safetensors file, or its header contradicts them."""


class StoredTensor(NamedTuple):
    """Where a tensor lies: `dtype` as the file writes it, `start` and `end` as positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def floating(self) -> bool:
        """Whether it has one of the floating-point types that are read."""
        return self.dtype in _DTYPES


def load_alike(tensors: Sequence[StoredTensor], data: bytearray) -> torch.Tensor:
    """Tensors of one type and shape as one, `[tensors, *shape]`. Only for `floating` ones with at least one element.

    It is a view of the file's bytes where they lie at equal distances, as those of all layers do in most files, and a
    copy elsewhere.
    """
    first = tensors[0]
    dtype, size = _DTYPES[first.dtype], first.end - first.start
    starts = [tensor.start for tensor in tensors]
    distances = {after - before for before, after in pairwise(starts)} or {size}
    distance = distances.pop()
    if not distances and distance > 0 and not first.start % dtype.itemsize and not distance % dtype.itemsize:
        count = (tensors[-1].end - first.start) // dtype.itemsize
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=first.start)
        rows = flat.as_strided((len(tensors), size // dtype.itemsize), (distance // dtype.itemsize, 1))
        return rows.unflatten(1, first.shape)
    given, raw = memoryview(data), bytearray(size * len(tensors))
    for place, start in enumerate(starts):
        raw[place * size : (place + 1) * size] = given[start : start + size]
    return torch.frombuffer(raw, dtype=dtype).reshape(len(tensors), *first.shape)


def largest_magnitude(tensors: Collection[StoredTensor], data: bytearray) -> float:
    """The largest absolute value in a file of `read_header`; infinity where one is not finite, or where its tensors
    have several types or one that has more than 32 bits.

    The bits of floats without their sign have the order of what they stand for, infinity and NaN the last of all.
    """
    kind, *others = {tensor.dtype for tensor in tensors}
    bits = None if others else _BITS.get(kind)
    first = min(tensor.start for tensor in tensors)
    if bits is None or first % bits.itemsize:
        return math.inf
    numbers: NDArray[np.unsignedinteger] = np.frombuffer(data, bits, offset=first)
    without_sign = np.iinfo(bits).max >> 1
    pieces = (numbers[start : start + _PIECE] for start in range(0, len(numbers), _PIECE))
    largest = np.array([max((piece & without_sign).max() for piece in pieces)], bits)
    value = torch.from_numpy(largest).view(_DTYPES[kind]).item()
    return value if math.isfinite(value) else math.inf


def read_header(data: bytes | bytearray) -> Mapping[str, StoredTensor]:
    """The tensors of a file by name. Raises TensorFileError."""
    if len(data) < 8:
        raise TensorFileError(f"the file has {len(data)} bytes, not even a header's length")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise TensorFileError(
            f"the header claims {length} bytes; the file has {len(data)} and at most {_MAX_HEADER_BYTES} are read"
        )
    entries = _parse(bytes(memoryview(data)[8 : 8 + length]))
    tensors = {
        name: _entry(name, entry, 8 + length, len(data)) for name, entry in entries.items() if name != "__metadata__"
    }
    _check_tiling(tensors, 8 + length, len(data))
    return tensors


def _parse(header: bytes) -> dict[str, object]:
    try:
        entries = json.loads(header.decode())
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"the header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise TensorFileError("the header is not a JSON object")
    return entries


def _entry(name: str, entry: object, base: int, size: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise TensorFileError(f"the entry of tensor '{name[:200]}' is not a JSON object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError(f"tensor '{name[:200]}' has no valid dtype and shape")
    if not _is_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - base:
        raise TensorFileError(f"tensor '{name[:200]}' lies outside the file")
    start, end = offsets
    known = _DTYPES.get(dtype)
    if known is not None and end - start != math.prod(shape) * known.itemsize:
        raise TensorFileError(f"tensor '{name[:200]}' of shape {list(shape)} and type {dtype} has {end - start} bytes")
    return StoredTensor(dtype, tuple(shape), base + start, base + end)


def _check_tiling(tensors: Mapping[str, StoredTensor], base: int, size: int) -> None:
    position = base
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise TensorFileError("tensors overlap or leave gaps")
        position = tensor.end
    if position != size:
        raise TensorFileError(f"{size - position} bytes after the last tensor belong to none")


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    # An adapter has a thousand of them: three calls for the whole list take half the time of a look at each number.
    if type(value) is not list or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < 1 << 63)
