"""What Python and the kernels agree on: where each argument of a kernel is, and the numbers of one step."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from argosy_services.engine.torch_engine.native.emit import I64, PTR, Body, Value

GROUP = 64
"""Inputs that share one scale when they are quantized. Projections have a multiple of it as inputs."""
SUPER = 64
"""Tokens that attention takes at once."""
TILE = 16
"""Tokens whose keys lie side by side; one vector."""


class Step(IntEnum):
    """Numbers and addresses of one step, each an int64: the same for all layers."""

    ROWS = 0
    LOGIT_ROWS = 1
    TOKENS = 2
    POSITIONS = 3
    SLOTS = 4
    TABLES = 5
    TILES = 6
    LOGIT_INDICES = 7
    ADAPTED = 8
    NOTHING = 9
    """Always 0: where there are no indices, rows are taken as they are."""
    TASKS = 10
    """The numbers of tasks of each kind of operation begin here; see `Tasks`."""


class Tasks(IntEnum):
    """How many tasks an operation has: an index into a step's numbers."""

    ROWS = Step.TASKS
    ATTENTION = Step.TASKS + 1
    LOGIT_ROWS = Step.TASKS + 2
    ADAPTED_ONE = Step.TASKS + 3
    ADAPTED_TWO = Step.TASKS + 4
    ADAPTED_THREE = Step.TASKS + 5
    PRODUCTS = Step.TASKS + 6
    """One for each shape of product begins here."""


MODULES = 3
"""Most modules that share an input: query, key and value."""


class AdapterField(IntEnum):
    """What the table of adapters has for each slot and module."""

    DOWN = 0
    UP = 1
    RANK = 2


class Arguments:
    """Arguments of one kind of kernel: a name for each int64."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def pack(self, **values: int) -> list[int]:
        """The values in their order. All must be there."""
        if set(values) != set(self.names):
            raise ValueError(f"arguments differ: {set(values) ^ set(self.names)}")
        return [values[name] for name in self.names]

    def reader(self, body: Body, pointer: Value) -> Any:
        """A function that reads an argument by name, and its `pointer`, which reads an address."""
        index = {name: 8 * place for place, name in enumerate(self.names)}

        def number(name: str) -> Value:
            return body.load(I64, pointer, index[name])

        def address(name: str) -> Value:
            return body.load(PTR, pointer, index[name])

        number.pointer = address  # type: ignore[attr-defined]
        return number


Product = Arguments(
    *("weights", "weight_scales", "bias", "chunk_bytes", "chunks", "size"),
    *("inputs", "row_bytes", "scales", "offsets", "out", "stride", "accumulate", "rows_slot"),
)
Rows = Arguments("inputs", "stride", "norm", "size", "indices_slot", "quantized", "scales", "offsets", "row_bytes")
Rotate = Arguments("inputs", "stride", "queries", "cache", "cosines", "sines", "query_norm", "key_norm")
Attend = Arguments("queries", "cache", "out", "stride", "window")
Embed = Arguments("table", "out", "stride", "size")
Largest = Arguments("logits", "stride", "size", "out")
Adapt = Arguments(
    *("inputs", "row_bytes", "size", "out", "stride", "table", "table_modules", "modules"),
    *(f"{name}_{index}" for index in range(MODULES) for name in ("module", "columns", "offset")),
)
