"""How a model's operations are written down, and how many tasks they have for the rows of a step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.buffers import Inputs, stride
from argosy_services.engine.torch_engine.native.compile import Machine
from argosy_services.engine.torch_engine.native.gemm import ROWS
from argosy_services.engine.torch_engine.native.layout import Attend, Product, Rotate, Rows, Step, Tasks
from argosy_services.engine.torch_engine.native.packing import Packed

Operation = tuple[int, list[int], int]
"""A kernel's address, its arguments, and where a step has the number of its tasks."""

# From how many rows on how many of them make a task.
_GRAINS = ((64, 8), (16, 2), (0, 1))
# More positions than any sequence has.
_NO_WINDOW = 1 << 30
_NO_ADAPTERS = {"table": 0, "table_modules": 0, "first_module": 0, "last_module": 0}


class Operations:
    """Writes the operations of one model."""

    def __init__(self, machine: Machine, *, inputs: str, threads: int) -> None:
        """`inputs` is the type that products take in, see `Format.inputs`."""
        self._machine = machine
        self._inputs = inputs
        self._threads = threads
        self._products: dict[int, int] = {}

    def operation(self, kernel: str, arguments: list[int], tasks: int) -> Operation:
        """One of any kernel."""
        return self._machine.address(kernel), arguments, int(tasks)

    def rows(
        self, kind: str, source: torch.Tensor, out: Inputs, *, norm: torch.Tensor | None = None, chosen: bool = False
    ) -> Operation:
        """What makes a product's inputs: one of `emit_rows`, for the step's rows or for those that it has `chosen`."""
        arguments = Rows.pack(
            inputs=source.data_ptr(),
            stride=stride(source),
            norm=0 if norm is None else norm.data_ptr(),
            size=out.size,
            indices_slot=Step.CHOSEN if chosen else Step.NOTHING,
            quantized=out.values.data_ptr(),
            scales=out.scales.data_ptr(),
            offsets=out.offsets.data_ptr(),
            group=out.group,
            row_bytes=out.row_bytes,
        )
        return self.operation(f"{kind}_{self._inputs}", arguments, Tasks.ROWS)

    def product(
        self,
        packed: Packed,
        inputs: Inputs,
        out: torch.Tensor,
        *,
        add: bool = False,
        adapters: Mapping[str, int] = _NO_ADAPTERS,
    ) -> Operation:
        """A product into `out`, or added to it. `adapters` says which modules' adapters come after it."""
        arguments = Product.pack(
            weights=packed.weights.data_ptr(),
            weight_scales=packed.scales.data_ptr(),
            bias=packed.bias.data_ptr(),
            chunk_bytes=packed.chunk_bytes,
            chunks=packed.chunks,
            size=packed.size,
            inputs=inputs.values.data_ptr(),
            row_bytes=inputs.row_bytes,
            scales=inputs.scales.data_ptr(),
            offsets=inputs.offsets.data_ptr(),
            group=inputs.group,
            out=out.data_ptr(),
            stride=stride(out),
            accumulate=int(add),
            # The others take the chunks in between.
            ahead=packed.chunk_bytes * self._threads,
            **adapters,
        )
        following = Tasks.PRODUCTS + len(self._products)
        tasks = self._products.setdefault(packed.chunks, following)
        return self.operation(f"product_{packed.form}", arguments, tasks)

    def attention(
        self,
        qkv: torch.Tensor,
        queries: torch.Tensor,
        out: torch.Tensor,
        *,
        cache: int,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        window: int | None = None,
        norms: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    ) -> list[Operation]:
        """Rotates `qkv` into `queries` and the cache at an address, and attends. `norms` are of queries and keys."""
        query_norm, key_norm = (0 if norm is None else norm.data_ptr() for norm in norms)
        rotate = Rotate.pack(
            inputs=qkv.data_ptr(),
            stride=stride(qkv),
            queries=queries.data_ptr(),
            cache=cache,
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            query_norm=query_norm,
            key_norm=key_norm,
        )
        attend = Attend.pack(
            queries=queries.data_ptr(),
            cache=cache,
            out=out.data_ptr(),
            stride=stride(out),
            window=window or _NO_WINDOW,
        )
        return [self.operation("rotate", rotate, Tasks.ROWS), self.operation("attend", attend, Tasks.ATTENTION)]

    def new_step(self) -> NDArray[np.int64]:
        """The numbers of a step, for `prepare`; every operation must have been written."""
        return np.zeros(Tasks.PRODUCTS + len(self._products), np.int64)

    def prepare(self, step: NDArray[np.int64], rows: int) -> None:
        """Notes in a step how many rows it has and what follows from that."""
        grain = next(grain for least, grain in _GRAINS if rows >= least)
        step[Step.ROWS], step[Step.GRAIN] = rows, grain
        step[Tasks.ROWS] = -(-rows // grain)
        parts = -(-rows // ROWS)
        for chunks, tasks in self._products.items():
            step[tasks] = chunks * parts
